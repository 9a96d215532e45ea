"""The operator's HTTP API: pods, price, network policy, self-test; for root and the node's own user."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Protocol

from aiohttp import web

from codius_netpolicy.policy import Policy
from codius_netpolicy.probes import Result
from codius_netpolicy.traffic import NO_TRAFFIC, Reason, Traffic, Volume
from codius_node import answers, schema
from codius_node.errors import BodyTooLargeError, ForbiddenError, NotFoundError, RequestError
from codius_node.model import Json, ManifestHash, Pod, PodState
from codius_node.policy import Origin, Repairs, build_report

MAX_BODY: Final = 4096
"""Bytes of a POST: it holds one number."""
MAX_POLICY_BODY: Final = 64 * 1024
"""Bytes of a policy: four lists of 256 entries, an IPv6 range being the longest with 43 characters."""
MAX_COST: Final = 10**12
"""Currency units a month, as for CODIUS_COST_PER_MONTH."""

LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid."""


class Engine(Protocol):
    """What the admin API asks of the host's coordinator."""

    async def pods(self) -> Sequence[Pod]: ...
    def url(self, hash: ManifestHash) -> str: ...
    async def set_cost_per_month(self, cost: Decimal) -> None: ...
    async def traffic(self) -> Mapping[ManifestHash, Traffic]: ...
    async def probe(self, hash: ManifestHash) -> Sequence[Result]: ...


class Rules(Protocol):
    """What the admin API asks of whoever keeps the network's rules."""

    @property
    def policy(self) -> Policy: ...
    @property
    def origin(self) -> Origin: ...
    async def refused(self) -> Mapping[Reason, int]: ...
    async def change(self, document: Json) -> int: ...
    async def reset(self) -> int: ...


class Watch(Protocol):
    """What the admin API asks of whoever watches the network."""

    @property
    def repairs(self) -> Repairs: ...


class Report(Protocol):
    """What came of a self-test."""

    def as_document(self) -> dict[str, Json]: ...


class SelfTest(Protocol):
    """What the admin API asks of whoever tries the host out."""

    async def run(self) -> Report: ...


def build_app(
    *,
    engine: Engine,
    rules: Rules,
    watch: Watch,
    selftest: SelfTest,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    allowed_uids: frozenset[int] | None = None,
) -> web.Application:
    """The admin API, for a Unix socket and for 127.0.0.1; each connection is judged by its kind.

    `allowed_uids` are the users let in by the Unix socket: root and our own by default.
    """
    guard = _Guard(frozenset({0, os.geteuid()}) if allowed_uids is None else allowed_uids)
    admin = _Admin(engine, clock)
    network = _NetworkAdmin(engine, rules, watch)

    async def test(_: web.Request) -> web.Response:
        return answers.render_json((await selftest.run()).as_document())

    app = web.Application(middlewares=[answers.answer_operators_errors, guard.check])
    app.on_response_prepare.append(answers.set_headers)
    answers.add_routes(
        app,
        (
            ("GET", "/getPods", admin.list_running),
            ("GET", "/getPodInfo", admin.tell_pod),
            ("POST", "/config", admin.configure),
            ("GET", "/pods", admin.list_pods),
            ("POST", "/pods/{hash}/probe", network.probe),
            ("GET", "/policy", network.tell),
            ("PUT", "/policy", network.change),
            ("DELETE", "/policy", network.reset),
            ("POST", "/selftest", test),
            ("*", answers.ANY_PATH, _refuse_path),
        ),
    )
    return app


class _Guard:
    """Who may in: by the kernel's word on a Unix socket; on loopback TCP anybody but a browser's page."""

    def __init__(self, uids: frozenset[int]) -> None:
        self._uids = uids

    @web.middleware
    async def check(self, request: web.Request, handler: answers.Handler) -> web.StreamResponse:
        peer = request.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            uid = read_peer_uid(peer)
            if uid not in self._uids:
                raise ForbiddenError(
                    f"user {uid} may not administer this host", hint="Run the command as root (sudo)."
                )
        elif "Origin" in request.headers or not _is_loopback_name(request.host):
            # A page in the operator's browser reaches 127.0.0.1 too, also under a name of its own
            # (DNS rebinding).
            raise ForbiddenError(
                "the admin API does not answer web pages, nor under other names than localhost",
                hint="Use the Unix socket, or http://127.0.0.1 with a command-line client.",
            )
        return await handler(request)


def read_peer_uid(peer: socket.socket) -> int:
    """The user at the other end of a Unix socket, as of its connect (SO_PEERCRED, unix(7))."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(credentials)
    return int(uid)


class _Admin:
    """The handlers. No answer holds a private value: pods as rows do not carry them."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._clock = clock

    async def list_running(self, _: web.Request) -> web.Response:
        now = self._clock()
        running: list[Json] = [
            pod.hash
            for pod in await self._engine.pods()
            if pod.state is PodState.RUNNING and pod.expires_at > now
        ]
        return answers.render_json({"running": running})

    async def list_pods(self, _: web.Request) -> web.Response:
        traffic = await self._engine.traffic()
        pods: list[Json] = [
            self._describe(pod, traffic.get(pod.hash, NO_TRAFFIC)) for pod in await self._engine.pods()
        ]
        return answers.render_json(pods)

    async def tell_pod(self, request: web.Request) -> web.Response:
        values = request.query.getall("id", [])
        if len(values) != 1 or not values[0]:
            raise RequestError("id must be given once: the hash of a pod", hint="/getPods lists them.")
        for pod in await self._engine.pods():
            if pod.hash == values[0]:
                return answers.render_json(
                    {
                        "hash": pod.hash,
                        "running": pod.state is PodState.RUNNING and pod.expires_at > self._clock(),
                        "start": _render_time(pod.created_at),
                        "expiry": _render_time(pod.expires_at),
                        "ip": str(pod.address),
                        "port": None if pod.manifest.port is None else str(pod.manifest.port),
                    }
                )
        raise NotFoundError(f"no pod found with id. id={values[0]}", hint="/getPods lists the running ones.")

    async def configure(self, request: web.Request) -> web.Response:
        cost = parse_config(await _read_json(request, limit=MAX_BODY))
        await self._engine.set_cost_per_month(cost)
        return web.Response(status=204)

    def _describe(self, pod: Pod, traffic: Traffic) -> dict[str, Json]:
        left = (pod.expires_at - self._clock()).total_seconds()
        return {
            "hash": pod.hash,
            "name": pod.manifest.name,
            "state": pod.state.value,
            "url": self._engine.url(pod.hash),
            "expiry": _render_time(pod.expires_at),
            "secondsLeft": max(int(left), 0),
            "address": str(pod.address),
            "port": pod.manifest.port,
            "debug": pod.manifest.debug,
            "containers": [
                {"id": container.id, "image": container.image} for container in pod.manifest.containers
            ],
            "traffic": {
                "sent": _render_volume(traffic.sent),
                "received": _render_volume(traffic.received),
                "refused": {reason.value: packets for reason, packets in traffic.refused.items()},
            },
        }


class _NetworkAdmin:
    """The handlers of the network policy."""

    def __init__(self, engine: Engine, rules: Rules, watch: Watch) -> None:
        self._engine = engine
        self._rules = rules
        self._watch = watch

    async def tell(self, _: web.Request) -> web.Response:
        return answers.render_json(await self._report())

    async def change(self, request: web.Request) -> web.Response:
        cut = await self._rules.change(await _read_json(request, limit=MAX_POLICY_BODY))
        return answers.render_json(await self._report() | {"cut": cut})

    async def reset(self, _: web.Request) -> web.Response:
        cut = await self._rules.reset()
        return answers.render_json(await self._report() | {"cut": cut})

    async def probe(self, request: web.Request) -> web.Response:
        results = await self._engine.probe(ManifestHash(request.match_info["hash"]))
        probes: list[Json] = [
            {
                "name": result.name,
                "expected": result.expected.value,
                "found": result.found.value,
                "detail": result.detail,
                "ok": result.ok,
            }
            for result in results
        ]
        return answers.render_json({"ok": all(result.ok for result in results), "probes": probes})

    async def _report(self) -> dict[str, Json]:
        rules = self._rules
        report = build_report(
            rules.policy, rules.origin, refused=await rules.refused(), repairs=self._watch.repairs
        )
        return report.as_document()


async def _read_json(request: web.Request, *, limit: int) -> Json:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise BodyTooLargeError(f"the body has more than {limit} bytes")
    return schema.decode_json(bytes(body), limit=limit)


def _render_volume(volume: Volume) -> dict[str, Json]:
    return {"bytes": volume.bytes, "packets": volume.packets}


def parse_config(document: Json) -> Decimal:
    """The new price from `{"hostCostPerMonth": number}`; 0 is a price too."""
    if not isinstance(document, dict) or set(document) != {"hostCostPerMonth"}:
        raise RequestError('the body must be {"hostCostPerMonth": <number>} and nothing else')
    cost = document["hostCostPerMonth"]
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost <= MAX_COST:
        raise RequestError(f"hostCostPerMonth must be a number from 0 to {MAX_COST}")
    return Decimal(str(cost))


async def _refuse_path(request: web.Request) -> web.StreamResponse:
    raise NotFoundError(
        f"there is no {request.method} {request.path}",
        hint="There are GET /pods, POST /pods/<hash>/probe, GET, PUT and DELETE /policy, POST /selftest,"
        " GET /getPods, GET /getPodInfo?id= and POST /config.",
    )


def _is_loopback_name(authority: str) -> bool:
    name = authority if authority.endswith("]") else authority.rpartition(":")[0] or authority
    return name.lower() in LOOPBACK_NAMES


def _render_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
