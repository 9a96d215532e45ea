"""An engine with a real store and scripted edges: what was done, in order, and what fails on demand."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from codius_netpolicy.policy import Egress, Policy
from codius_netpolicy.probes import Result
from codius_netpolicy.traffic import Reason, Traffic, larger
from codius_node import config, manifest
from codius_node.engine import Engine
from codius_node.errors import CodiusError
from codius_node.meter import Meter
from codius_node.model import (
    FoundPod,
    Json,
    ManifestHash,
    Notice,
    PodSpec,
    PullProgress,
    Receipt,
    Target,
    Upload,
)
from codius_node.model import Quote as PriceQuote
from codius_node.noop import NoopEngine, NoopNetwork
from codius_node.payments import FreeRail
from codius_node.policy import build_policy
from codius_node.reconciler import Reconciler
from codius_node.store import Store

IMAGE = "example.com/app@sha256:" + "0" * 64
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GIB = 2**30


class Clock:
    """A clock that moves when told to."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


@dataclass
class Diary:
    """Effects in the order they happened; an effect named in `fails` raises instead, once."""

    entries: list[str] = field(default_factory=list)
    fails: dict[str, CodiusError] = field(default_factory=dict)

    def note(self, effect: str) -> None:
        if (error := self.fails.pop(effect, None)) is not None:
            self.entries.append(f"{effect} failed")
            raise error
        self.entries.append(effect)

    def take(self) -> list[str]:
        """The entries since last time."""
        entries, self.entries = self.entries, []
        return entries


class ScriptedContainers(NoopEngine):
    """Containers that exist in memory, and fail when the diary says so."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self._diary = diary

    async def pull(self, image: str) -> AsyncGenerator[PullProgress, None]:
        self._diary.note("pull")
        async for step in super().pull(image):
            yield step

    async def create(self, spec: PodSpec) -> None:
        self._diary.note("create")
        await super().create(spec)

    async def start_infra(self, hash: ManifestHash) -> None:
        self._diary.note("start infra")

    async def start_members(self, hash: ManifestHash) -> None:
        self._diary.note("start members")
        await super().start_members(hash)

    async def check_members(self, hash: ManifestHash) -> None:
        self._diary.note("check members")

    async def remove(self, hash: ManifestHash) -> None:
        self._diary.note("remove")
        await super().remove(hash)

    async def find_pods(self) -> list[FoundPod]:
        if (error := self._diary.fails.get("find pods")) is not None:
            raise error
        return await super().find_pods()

    def lose(self, hash: ManifestHash) -> None:
        """As after a power cut."""
        self._pods.pop(hash, None)


class ScriptedNetwork(NoopNetwork):
    """Links in memory, with the traffic that a test says there was."""

    def __init__(self, diary: Diary, policy: Policy) -> None:
        super().__init__(policy)
        self._diary = diary
        self.results: tuple[Result, ...] = ()
        self.neighbours: Sequence[IPv4Address] = ()
        self.cut = 0
        self.refused: dict[Reason, int] = {}

    async def start(self, pods: Mapping[IPv4Address, Traffic]) -> frozenset[IPv4Address]:
        self._diary.note("network start")
        self._links = {
            address: larger(traffic, pods[address])
            for address, traffic in self._links.items()
            if address in pods
        }
        return frozenset(self._links)

    async def attach(self, address: IPv4Address, netns_fd: int, traffic: Traffic) -> None:
        self._diary.note("attach")
        await super().attach(address, netns_fd, traffic)

    async def detach(self, address: IPv4Address) -> Traffic | None:
        self._diary.note("detach")
        return await super().detach(address)

    async def traffic(self) -> Mapping[IPv4Address, Traffic]:
        if (error := self._diary.fails.get("traffic")) is not None:
            raise error
        return await super().traffic()

    async def counters(self) -> Mapping[Reason, int]:
        return self.refused

    async def change(self, egress: Egress) -> int:
        self._diary.note("change")
        await super().change(egress)
        return self.cut

    async def probe(self, netns_fd: int, others: Sequence[IPv4Address]) -> tuple[Result, ...]:
        self.neighbours = others
        return self.results

    def count(self, address: IPv4Address, traffic: Traffic) -> None:
        """As if the pod had sent, received and been refused so much by now."""
        self._links[address] = traffic


class ScriptedRail(FreeRail):
    """Claims that succeed for nothing, unless told otherwise."""

    def __init__(self, diary: Diary) -> None:
        self._diary = diary

    async def authorize(self, quote: PriceQuote, token: str | None) -> None:
        self._diary.note("authorize")

    async def claim(self, quote: PriceQuote, token: str | None) -> Receipt:
        self._diary.note("claim")
        return await super().claim(quote, token)


class Routes:
    """What visitors would find."""

    def __init__(self, diary: Diary) -> None:
        self.table: dict[str, Target] = {}
        self.notices: dict[str, Notice] = {}
        self._diary = diary

    def publish(self, hash: ManifestHash, target: Target) -> None:
        self._diary.note("publish")
        self.table[hash] = target
        self.notices.pop(hash, None)

    def unpublish(self, hash: ManifestHash) -> None:
        if self.table.pop(hash, None) is not None:
            self._diary.note("unpublish")

    def stop(self, hash: ManifestHash, notice: Notice) -> None:
        if self.table.pop(hash, None) is not None or self.notices.get(hash) != notice:
            self._diary.note("stop")
        self.notices[hash] = notice

    def readmit(self, hash: ManifestHash) -> None:
        self.notices.pop(hash, None)


@dataclass
class Machine:
    """A host with room, until told otherwise."""

    available: int = 16 * GIB
    total: int = 24 * GIB
    disk: int = 100 * GIB

    def memory(self) -> tuple[int, int]:
        return self.available, self.total

    def free_disk(self) -> int:
        return self.disk


@dataclass
class World:
    """The engine and everything around it."""

    engine: Engine
    meter: Meter
    reconciler: Reconciler
    store: Store
    containers: ScriptedContainers
    network: ScriptedNetwork
    rail: ScriptedRail
    routes: Routes
    machine: Machine
    diary: Diary
    clock: Clock


@asynccontextmanager
async def open_world(
    root: Path, *, clock: Clock | None = None, remains: World | None = None
) -> AsyncIterator[World]:
    """A world on a database in `root`; with `remains`, those of an earlier one still run."""
    diary = Diary()
    clock = clock or Clock()
    settings = config.load({"CODIUS_HYPER_NOOP": "true", "CODIUS_ROOT": str(root)})
    store = await Store.open(settings.database, key_path=settings.key_file, restore=manifest.restore)
    try:
        containers = ScriptedContainers(diary)
        network = ScriptedNetwork(diary, build_policy(settings))
        if remains is not None:
            containers._pods = dict(remains.containers._pods)
            network._links = dict(remains.network._links)
        machine, routes, rail = Machine(), Routes(diary), ScriptedRail(diary)
        engine = Engine(
            settings=settings,
            store=store,
            containers=containers,
            network=network,
            rail=rail,
            routes=routes,
            host=machine,
            clock=clock,
        )
        reconciler = Reconciler(
            engine=engine, store=store, containers=containers, network=network, clock=clock
        )
        await engine.load()
        meter = Meter(store=store, network=network, containers=containers, clock=clock)
        yield World(
            engine, meter, reconciler, store, containers, network, rail, routes, machine, diary, clock
        )
    finally:
        await store.aclose()


def make_upload(name: str = "app", *, debug: bool = False, port: str | None = "8080") -> Upload:
    """A valid upload; each name has its own hash."""
    document: dict[str, Json] = {
        "name": name,
        "version": "1.0.0",
        "machine": "small",
        "containers": [{"id": "web", "image": IMAGE}],
    }
    if port is not None:
        document["port"] = port
    if debug:
        document["debug"] = True
    return manifest.parse({"manifest": document})
