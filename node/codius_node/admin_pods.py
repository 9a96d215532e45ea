"""The operator's handlers for pods: lists, stops, the denylist, the price, usage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final, Protocol

from aiohttp import web

from codius_netpolicy.traffic import NO_TRAFFIC, Traffic, Volume
from codius_node import answers, bodies, jsontext
from codius_node.errors import NotFoundError, RequestError
from codius_node.model import Currency, Json, ManifestHash, Pod, PodState
from codius_node.parameters import BEFORE, MANIFEST_HASH, USAGE_LIMIT
from codius_node.policy import Origin
from codius_node.pricing import MAX_COST, Earlier
from codius_node.replies import render_number, render_time
from codius_node.store import LedgerEntry
from codius_node.takedown import (
    Denial,
    DenialKind,
    Enforcement,
    Stop,
    Terms,
    normalize,
    parse_denial,
    parse_terms,
)
from codius_node.usage import Account, Usage, render_exactly

MAX_BODY: Final = 4096
"""Bytes of a body here: a reason and a name are the most it holds."""
STOPS_TOLD: Final = 20
"""Stops of one manifest in an answer, the newest."""


class Engine(Protocol):
    """What is asked of the host's coordinator."""

    @property
    def currency(self) -> Currency: ...
    async def pods(self) -> Sequence[Pod]: ...
    def url(self, hash: ManifestHash) -> str: ...
    async def stop(self, hash: ManifestHash, terms: Terms) -> Stop: ...
    async def deny(self, denial: Denial) -> Enforcement: ...


class Denials(Protocol):
    """What is asked of whoever keeps the denylist."""

    def all(self) -> Sequence[Denial]: ...
    async def remove(self, kind: DenialKind, value: str) -> None: ...


class Prices(Protocol):
    """What is asked of whoever keeps the price."""

    @property
    def own(self) -> Decimal: ...
    @property
    def told(self) -> Decimal: ...
    @property
    def charged(self) -> Decimal: ...
    @property
    def chosen(self) -> bool: ...
    @property
    def earlier(self) -> Sequence[Earlier]: ...
    async def set(self, cost: Decimal) -> None: ...
    async def reset(self) -> None: ...


class Meter(Protocol):
    """What is asked of whoever reads what was used."""

    async def traffic(self) -> Mapping[ManifestHash, Traffic]: ...
    async def usages(self, limit: int, before: int) -> tuple[Sequence[Usage], int | None]: ...
    async def usage(self, hash: ManifestHash) -> Usage: ...
    async def entries(
        self, hash: ManifestHash, limit: int, before: int
    ) -> tuple[Sequence[LedgerEntry], int | None]: ...
    async def whole_account(self) -> Account: ...


class PodsAdmin:
    """Pods and what they used. No answer holds a private value or a token: pods as rows carry neither."""

    def __init__(self, engine: Engine, meter: Meter, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._meter = meter
        self._clock = clock

    async def list_running(self, _: web.Request) -> web.Response:
        running: list[Json] = [pod.hash for pod in await self._engine.pods() if self._runs(pod)]
        return answers.render_json({"running": running})

    async def tell_recorded(self, request: web.Request) -> web.Response:
        id = _read_once(request, "id", "the hash of a pod; /getPods lists them")
        for pod in await self._engine.pods():
            if pod.hash == id:
                return answers.render_json(
                    {
                        "hash": pod.hash,
                        "running": self._runs(pod),
                        "start": render_time(pod.created_at),
                        "expiry": render_time(pod.expires_at),
                        "ip": str(pod.address),
                        "port": None if pod.manifest.port is None else str(pod.manifest.port),
                    }
                )
        raise NotFoundError(f"no pod found with id. id={id}", hint="/getPods lists the running ones.")

    async def tell_all_uptime(self, _: web.Request) -> web.Response:
        account = await self._meter.whole_account()
        earnings: dict[str, Decimal] = {self._engine.currency.code: Decimal(0)}
        for currency, amount in account.prices.items():
            earnings[currency.code] = earnings.get(currency.code, Decimal(0)) + currency.units(amount)
        return answers.render_json(
            {
                "aggregate_pod_uptime": str(account.paid),
                "aggregate_earnings": {code: render_exactly(amount) for code, amount in earnings.items()},
            }
        )

    async def list_all(self, _: web.Request) -> web.Response:
        traffic = await self._meter.traffic()
        pods: list[Json] = [
            self._describe(pod, traffic.get(pod.hash, NO_TRAFFIC)) for pod in await self._engine.pods()
        ]
        return answers.render_json(pods)

    async def stop(self, request: web.Request) -> web.Response:
        hash = MANIFEST_HASH.parse([request.match_info["hash"]])
        terms = parse_terms(await bodies.read_json(request, limit=MAX_BODY))
        stop = await self._engine.stop(hash, terms)
        return answers.render_json({"hash": hash, **_render_stop(stop)})

    async def list_usage(self, request: web.Request) -> web.Response:
        limit, before = _read_page(request)
        usages, following = await self._meter.usages(limit, before)
        return answers.render_json(
            {"usage": [_render_usage(usage, self._clock()) for usage in usages], "next": following}
        )

    async def tell_usage(self, request: web.Request) -> web.Response:
        hash = MANIFEST_HASH.parse([request.match_info["hash"]])
        limit, before = _read_page(request)
        usage = await self._meter.usage(hash)
        entries, following = await self._meter.entries(hash, limit, before)
        return answers.render_json(
            {
                **_render_usage(usage, self._clock()),
                "ledger": [_render_entry(entry) for entry in entries],
                "next": following,
            }
        )

    def _runs(self, pod: Pod) -> bool:
        return pod.state is PodState.RUNNING and pod.expires_at > self._clock()

    def _describe(self, pod: Pod, traffic: Traffic) -> dict[str, Json]:
        left = (pod.expires_at - self._clock()).total_seconds()
        return {
            "hash": pod.hash,
            "name": pod.manifest.name,
            "state": pod.state.value,
            "url": self._engine.url(pod.hash),
            "expiry": render_time(pod.expires_at),
            "secondsLeft": max(int(left), 0),
            "address": str(pod.address),
            "port": pod.manifest.port,
            "debug": pod.manifest.debug,
            "containers": [
                {"id": container.id, "image": container.image} for container in pod.manifest.containers
            ],
            "traffic": _render_traffic(traffic),
        }


class DenylistAdmin:
    """What this host does not run."""

    def __init__(self, engine: Engine, denials: Denials, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._denials = denials
        self._clock = clock

    async def list_all(self, _: web.Request) -> web.Response:
        return answers.render_json({"denials": [_render_denial(denial) for denial in self._denials.all()]})

    async def add(self, request: web.Request) -> web.Response:
        denial = parse_denial(await bodies.read_json(request, limit=MAX_BODY), now=self._clock())
        enforcement = await self._engine.deny(denial)
        return answers.render_json(
            {
                "denial": _render_denial(denial),
                "stopped": list(enforcement.stopped),
                "waiting": list(enforcement.waiting),
            }
        )

    async def remove(self, request: web.Request) -> web.Response:
        kind = _read_once(request, "kind", "manifest, image or registry")
        if kind not in set(DenialKind):
            raise RequestError(f"kind must be manifest, image or registry, not {jsontext.quote(kind)}")
        value = normalize(DenialKind(kind), _read_once(request, "value", "what the list has of that kind"))
        await self._denials.remove(DenialKind(kind), value)
        return answers.render_json({"kind": kind, "value": value})


class PriceAdmin:
    """The price of a month."""

    def __init__(self, engine: Engine, prices: Prices) -> None:
        self._engine = engine
        self._prices = prices

    async def tell(self, _: web.Request) -> web.Response:
        return answers.render_json(self._describe())

    async def set(self, request: web.Request) -> web.Response:
        await self._prices.set(parse_config(await bodies.read_json(request, limit=MAX_BODY)))
        return web.Response(status=204)

    async def reset(self, _: web.Request) -> web.Response:
        await self._prices.reset()
        return answers.render_json(self._describe())

    def _describe(self) -> dict[str, Json]:
        prices = self._prices
        return {
            "hostCostPerMonth": render_number(prices.told),
            "currency": self._engine.currency.code,
            "origin": (Origin.RUN_TIME if prices.chosen else Origin.SETTINGS).value,
            "settings": render_number(prices.own),
            "charged": render_number(prices.charged),
            "earlier": [
                {"hostCostPerMonth": render_number(price.cost), "until": render_time(price.until)}
                for price in prices.earlier
            ],
        }


def parse_config(document: Json) -> Decimal:
    """The new price from `{"hostCostPerMonth": number}`; 0 is a price too."""
    if not isinstance(document, dict) or set(document) != {"hostCostPerMonth"}:
        raise RequestError('the body must be {"hostCostPerMonth": <number>} and nothing else')
    cost = document["hostCostPerMonth"]
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost <= MAX_COST:
        raise RequestError(f"hostCostPerMonth must be a number from 0 to {MAX_COST}")
    return Decimal(str(cost))


def _read_once(request: web.Request, name: str, what: str) -> str:
    values = request.query.getall(name, [])
    if len(values) != 1 or not values[0]:
        raise RequestError(f"{name} must be given once: {what}")
    return values[0]


def _read_page(request: web.Request) -> tuple[int, int]:
    query = request.query
    limit = USAGE_LIMIT.parse(query.getall(USAGE_LIMIT.name, []))
    return limit, BEFORE.parse(query.getall(BEFORE.name, []))


def _render_volume(volume: Volume) -> dict[str, Json]:
    return {"bytes": volume.bytes, "packets": volume.packets}


def _render_traffic(traffic: Traffic) -> dict[str, Json]:
    return {
        "sent": _render_volume(traffic.sent),
        "received": _render_volume(traffic.received),
        "refused": {reason.value: packets for reason, packets in traffic.refused.items()},
    }


def _render_terms(terms: Terms) -> dict[str, Json]:
    return {
        "reason": terms.reason,
        "public": terms.public,
        "legal": terms.legal,
        "credit": terms.credit,
    }


def _render_stop(stop: Stop) -> dict[str, Json]:
    return {
        **_render_terms(stop.terms),
        "seconds": stop.seconds,
        "stoppedAt": render_time(stop.created_at),
        "endedAt": None if stop.ended_at is None else render_time(stop.ended_at),
    }


def _render_denial(denial: Denial) -> dict[str, Json]:
    return {
        "kind": denial.kind.value,
        "value": denial.value,
        **_render_terms(denial.terms),
        "takedown": denial.takedown,
        "since": render_time(denial.created_at),
    }


def _render_usage(usage: Usage, now: datetime) -> dict[str, Json]:
    account = usage.account
    document: dict[str, Json] = {
        "hash": usage.hash,
        "name": None if usage.pod is None else usage.pod.manifest.name,
        "state": usage.state,
        "secondsPaid": account.paid,
        "secondsUsed": usage.used(now),
        "secondsLeft": usage.left(now),
        "secondsHeld": usage.held,
        "secondsRestored": account.restored,
        "secondsOfOutage": account.outage,
        "prices": [
            {"currency": currency.code, "amount": render_exactly(currency.units(amount))}
            for currency, amount in account.prices.items()
        ],
        "entries": account.entries,
        "firstEntry": None if account.first is None else render_time(account.first),
        "lastEntry": None if account.last is None else render_time(account.last),
        "traffic": _render_traffic(usage.traffic),
        "stops": [_render_stop(stop) for stop in usage.stops[:STOPS_TOLD]],
    }
    if usage.consumption is not None:
        document["memory"] = usage.consumption.memory
        document["cpuSeconds"] = round(usage.consumption.cpu / 10**9, 3)
    return document


def _render_entry(entry: LedgerEntry) -> dict[str, Json]:
    """Without its token: that is the client's."""
    return {
        "id": entry.id,
        "kind": entry.kind.value,
        "seconds": entry.seconds,
        "amount": render_exactly(entry.currency.units(entry.price)),
        "currency": entry.currency.code,
        "rail": entry.rail,
        "at": render_time(entry.created_at),
    }
