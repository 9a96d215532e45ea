"""An engine whose every answer a test decides, and the API served in front of it on a Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path

import aiohttp
from aiohttp import web

from codius_netpolicy.policy import Egress, Policy
from codius_netpolicy.probes import Result
from codius_netpolicy.traffic import Reason, Traffic
from codius_node import admin, answers, api, pricing
from codius_node.config import Settings, load
from codius_node.egress import parse_egress
from codius_node.errors import ForbiddenError, NotFoundError
from codius_node.model import (
    Capacity,
    Currency,
    Isolation,
    Json,
    LogLine,
    ManifestHash,
    Pod,
    PodState,
    Quote,
    Upload,
)
from codius_node.policy import Origin, Repairs
from codius_node.store import LedgerEntry
from codius_node.takedown import Denial, DenialKind, Denylist, Enforcement, Stop, Terms
from codius_node.usage import Account, Usage

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class EngineDouble:
    """Pods in a dictionary. Set `error`, `gate`, `sentences` or `log` to decide what happens next."""

    def __init__(self) -> None:
        self.kept: dict[ManifestHash, Pod] = {}
        self.now = NOON
        self.currency = Currency("DEV", 3)
        self.cost_per_month = Decimal(10)
        self.room = Capacity(full=False, free_memory=8 * 2**30, running=0)
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        """When set, uploads and extensions wait for it."""
        self.started = asyncio.Event()
        self.finished = asyncio.Event()
        self.cancelled = False
        self.sentences: list[str] = []
        self.tokens: list[str | None] = []
        self.log: Callable[[], AsyncIterator[LogLine]] | None = None
        self.changes = 0
        self.stopped: list[tuple[ManifestHash, Terms]] = []
        self.denials = DenialsDouble()
        self.results: tuple[Result, ...] = ()

    async def quote(self, upload: Upload, duration: int) -> Quote:
        if self.error:
            raise self.error
        price = pricing.price(duration, cost_per_month=self.cost_per_month, scale=self.currency.scale)
        return Quote(upload.manifest.hash, duration, price)

    async def upload(
        self,
        upload: Upload,
        duration: int,
        *,
        token: str | None,
        progress: Callable[[str], None] | None = None,
    ) -> Pod:
        for sentence in self.sentences:
            if progress:
                progress(sentence)
        await self._work(token)
        hash = upload.manifest.hash
        known = self.kept.get(hash)
        start = known.expires_at if known else self.now
        self.kept[hash] = Pod(
            upload.manifest,
            PodState.RUNNING,
            self.now,
            start + timedelta(seconds=duration),
            IPv4Address("10.77.0.2"),
        )
        return self.kept[hash]

    async def extend(self, hash: ManifestHash, duration: int, *, token: str | None) -> Pod:
        pod = await self.get(hash)
        await self._work(token)
        self.kept[hash] = replace(pod, expires_at=pod.expires_at + timedelta(seconds=duration))
        return self.kept[hash]

    async def _work(self, token: str | None) -> None:
        self.tokens.append(token)
        self.started.set()
        try:
            if self.gate:
                await self.gate.wait()
            if self.error:
                raise self.error
            self.changes += 1
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.finished.set()

    async def get(self, hash: ManifestHash) -> Pod:
        if self.error:
            raise self.error
        if hash not in self.kept:
            raise NotFoundError(f"no pod found with this id. id={hash}")
        return self.kept[hash]

    async def logs(self, hash: ManifestHash, *, follow: bool) -> AsyncIterator[LogLine]:
        pod = await self.get(hash)
        if not pod.manifest.debug:
            raise ForbiddenError(f"pod manifest does not allow debugging. id={hash}")
        return self.log() if self.log else nothing()

    async def capacity(self) -> Capacity:
        if self.error:
            raise self.error
        return self.room

    async def isolation(self) -> Isolation:
        return Isolation.CONTAINER

    async def pods(self) -> Sequence[Pod]:
        return list(self.kept.values())

    def url(self, hash: ManifestHash) -> str:
        return f"http://{hash}.codius.localhost:3000/"

    async def stop(self, hash: ManifestHash, terms: Terms) -> Stop:
        pod = await self.get(hash)
        self.stopped.append((hash, terms))
        return Stop(hash, terms, int((pod.expires_at - self.now).total_seconds()), self.now)

    async def deny(self, denial: Denial) -> Enforcement:
        if self.error:
            raise self.error
        self.denials.put(denial)
        return Enforcement(
            [pod.hash for pod in self.kept.values() if self.denials.find_takedown(pod.manifest)]
        )

    async def probe(self, hash: ManifestHash) -> Sequence[Result]:
        await self.get(hash)
        return self.results


class DenialsDouble(Denylist):
    """A denylist in memory."""

    def all(self) -> Sequence[Denial]:
        return list(self)

    async def remove(self, kind: DenialKind, value: str) -> None:  # type: ignore[override]
        if (kind, value) not in {(denial.kind, denial.value) for denial in self}:
            raise NotFoundError(f"the {kind} {value} is not on the denylist")
        super().remove(kind, value)


class PricesDouble:
    """A price in memory."""

    def __init__(self) -> None:
        self.own = Decimal(10)
        self.prices = pricing.Prices(self.own)
        self.chosen = False

    @property
    def told(self) -> Decimal:
        return self.prices.told

    @property
    def charged(self) -> Decimal:
        return self.prices.charged(NOON)

    @property
    def earlier(self) -> Sequence[pricing.Earlier]:
        return self.prices.earlier

    async def set(self, cost: Decimal) -> None:
        self.prices, self.chosen = self.prices.changed(cost, NOON), True

    async def reset(self) -> None:
        self.prices, self.chosen = self.prices.changed(self.own, NOON), False


class MeterDouble:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.counted: dict[ManifestHash, Traffic] = {}
        self.known: dict[ManifestHash, Usage] = {}
        self.ledger: list[LedgerEntry] = []
        self.account = Account()
        self.asked: list[tuple[int, int]] = []

    async def traffic(self) -> Mapping[ManifestHash, Traffic]:
        return self.counted

    async def usages(self, limit: int, before: int) -> tuple[Sequence[Usage], int | None]:
        self.asked.append((limit, before))
        page = list(self.known.values())
        return page[:limit], 7 if len(page) > limit else None

    async def usage(self, hash: ManifestHash) -> Usage:
        if hash not in self.known:
            raise NotFoundError(f"no pod of this hash was ever paid for here. id={hash}")
        return self.known[hash]

    async def entries(
        self, hash: ManifestHash, limit: int, before: int
    ) -> tuple[Sequence[LedgerEntry], int | None]:
        self.asked.append((limit, before))
        return self.ledger[:limit], self.ledger[limit - 1].id if len(self.ledger) > limit else None

    async def whole_account(self) -> Account:
        return self.account


class RulesDouble:
    """Rules in memory. Set `error` to have them refused, `cut` for the flows a change costs."""

    def __init__(self) -> None:
        self.policy = Policy(resolvers=(IPv4Address("192.0.2.53"),))
        self.origin = Origin.SETTINGS
        self.counters: dict[Reason, int] = {}
        self.cut = 0
        self.error: Exception | None = None

    async def refused(self) -> Mapping[Reason, int]:
        return self.counters

    async def change(self, document: Json) -> int:
        return self._put(parse_egress(document, self.policy), Origin.RUN_TIME)

    async def reset(self) -> int:
        return self._put(Egress(), Origin.SETTINGS)

    def _put(self, egress: Egress, origin: Origin) -> int:
        if self.error:
            raise self.error
        self.policy, self.origin = self.policy.with_egress(egress), origin
        return self.cut


@dataclass
class WatchDouble:
    """Says what it is told to."""

    repairs: Repairs = field(default_factory=Repairs)


@dataclass(frozen=True, slots=True)
class NodeDouble:
    """All that the admin API asks, and the API in front of it."""

    engine: EngineDouble = field(default_factory=EngineDouble)
    prices: PricesDouble = field(default_factory=PricesDouble)
    meter: MeterDouble = field(default_factory=MeterDouble)
    rules: RulesDouble = field(default_factory=RulesDouble)
    watch: WatchDouble = field(default_factory=WatchDouble)
    selftest: SelfTestDouble = field(default_factory=lambda: SelfTestDouble())

    def admin(self, uids: frozenset[int] | None = None) -> web.Application:
        return admin.build_app(
            engine=self.engine,
            denials=self.engine.denials,
            prices=self.prices,
            meter=self.meter,
            rules=self.rules,
            watch=self.watch,
            selftest=self.selftest,
            clock=lambda: self.engine.now,
            allowed_uids=uids,
        )


class PeersDouble:
    """A list, and what was suggested for it."""

    def __init__(self, *uris: str) -> None:
        self.uris = uris
        self.suggested: list[str] = []

    async def sample(self, limit: int) -> Sequence[str]:
        return self.uris[:limit]

    async def count(self) -> int:
        return len(self.uris)

    def suggest(self, uris: Iterable[str]) -> None:
        self.suggested += uris


class SelfTestDouble:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.success: bool | None = None
        self.report: dict[str, Json] = {"success": None, "steps": [], "unchecked": []}
        self.runs = 0

    async def run(self) -> SelfTestDouble:
        self.runs += 1
        return self

    def as_document(self) -> dict[str, Json]:
        return self.report


class HostDouble:
    """A machine of 16 GiB, up for an hour."""

    def memory(self) -> tuple[int, int]:
        return 8 * 2**30, 16 * 2**30

    def uptime(self) -> float:
        return 3600.5

    def load(self) -> float:
        return 0.25


@dataclass(frozen=True, slots=True)
class Served:
    """The API in front of a double, and a client that speaks to it."""

    engine: EngineDouble
    peers: PeersDouble
    selftest: SelfTestDouble
    client: aiohttp.ClientSession
    socket: Path


async def nothing() -> AsyncIterator[LogLine]:
    lines: tuple[LogLine, ...] = ()
    for line in lines:
        yield line


@asynccontextmanager
async def serve(app: web.Application, socket: Path, *, plain: bool = False) -> AsyncIterator[None]:
    """`plain`: by aiohttp's own runner instead of ours."""
    runner: web.AppRunner = (
        web.AppRunner(app, access_log=None, shutdown_timeout=1)
        if plain
        else answers.Runner(app, shutdown_timeout=1)
    )
    await runner.setup()
    try:
        await web.UnixSite(runner, str(socket)).start()
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve_api(
    directory: Path, settings: Settings | None = None, *, plain: bool = False
) -> AsyncIterator[Served]:
    engine = EngineDouble()
    peers = PeersDouble("https://a.example", "https://b.example")
    selftest = SelfTestDouble()
    app = api.build_app(
        engine=engine,
        peers=peers,
        host=HostDouble(),
        selftest=selftest,
        settings=settings or load({}),
        started_at=NOON - timedelta(seconds=90),
        clock=lambda: engine.now,
    )
    socket = directory / "api.sock"
    async with (
        serve(app, socket, plain=plain),
        aiohttp.ClientSession(
            "http://codius.localhost:3000", connector=aiohttp.UnixConnector(path=str(socket))
        ) as client,
    ):
        yield Served(engine, peers, selftest, client, socket)
