"""The coordinator: it alone brings pods up and takes them down, effects in order, undos beside them."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Final

from codius_netpolicy.probes import Result
from codius_netpolicy.traffic import NO_TRAFFIC, Traffic
from codius_node import lifecycle, podspec, pricing
from codius_node.addresses import AddressPool
from codius_node.config import Settings
from codius_node.doors import ContainerEngine, HostStats, Network, Rail, RoutePublisher
from codius_node.errors import (
    CodiusError,
    ForbiddenError,
    HostFullError,
    NetworkError,
    NotFoundError,
    StoreError,
)
from codius_node.model import (
    Capacity,
    Currency,
    Isolation,
    LogLine,
    Machine,
    ManifestHash,
    Pod,
    PodState,
    Quote,
    Receipt,
    Target,
    Upload,
)
from codius_node.store import EntryKind, LedgerEntry, PodChangedError, Store

logger = logging.getLogger(__name__)

STARTS_AT_ONCE: Final = 4
"""Pods being started at the same moment; more only makes each of them slower, podman locks inside."""
UPLOADS_AT_ONCE: Final = 64
"""Uploads under way, waiting ones included; beyond it a client is asked to come back."""
MIN_FREE_DISK: Final = 512 * 1024 * 1024
"""Bytes that must be free before a pod is accepted: room for its image's layers, logs and the database."""
SETTLE_SECONDS: Final = 0.3
"""How long a pod without an answering port is watched before its containers are called started."""
PORT_POLL_SECONDS: Final = 0.002
"""Between two looks at a starting pod's port: a refused connection costs 0.1 ms."""
DRAIN_SECONDS: Final = 1.0
"""What requests under way get to finish when their pod's time is up."""
COST_SETTING: Final = "cost_per_month"


Progress = Callable[[str], None]


class Engine:
    """Pods as the host's one authority on them: every change of a pod passes through here."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        containers: ContainerEngine,
        network: Network,
        rail: Rail,
        routes: RoutePublisher,
        host: HostStats,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        target_of: Callable[[Pod], Target | None] | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._containers = containers
        self._network = network
        self._rail = rail
        self._routes = routes
        self._host = host
        self._clock = clock
        self._target_of = target_of or _target_of
        self._locks: defaultdict[ManifestHash, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._holders: defaultdict[ManifestHash, int] = defaultdict(int)
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self._in_flight: set[ManifestHash] = set()
        self._half_undone: set[ManifestHash] = set()  # since their last upload
        self._banked: Mapping[ManifestHash, Traffic] = {}
        self._addresses = AddressPool(settings.pod_network)
        self._allocation = asyncio.Lock()  # from choosing an address to its row in the store
        self._cost_per_month = settings.cost_per_month
        self.changed = asyncio.Event()

    # ---- what callers ask -----------------------------------------------------------------------

    @property
    def currency(self) -> Currency:
        """What this host's prices are counted in."""
        return self._rail.currency

    @property
    def cost_per_month(self) -> Decimal:
        """As set at run time, or else by the operator's settings."""
        return self._cost_per_month

    async def load_cost_per_month(self) -> None:
        """Take up the price an administrator set in an earlier run."""
        saved = await self._store.get_setting(COST_SETTING)
        if isinstance(saved, str):
            self._cost_per_month = Decimal(saved)

    async def set_cost_per_month(self, cost: Decimal) -> None:
        """For new quotes, from now on and across restarts."""
        await self._store.set_setting(COST_SETTING, str(cost), now=self._clock())
        self._cost_per_month = cost
        logger.info("price set to %s per month", cost)

    def url(self, hash: ManifestHash) -> str:
        """Where visitors find the pod."""
        return self._settings.public_uri.pod_url(hash)

    async def quote(self, upload: Upload, duration: int) -> Quote:
        """The price of running this manifest for `duration` seconds."""
        return self._quote(upload.manifest.hash, duration)

    async def get(self, hash: ManifestHash) -> Pod:
        """The running pod of this manifest; NotFoundError when there is none, or its time is over."""
        pod = await self._store.find_pod(hash)
        if pod is None or pod.state is not PodState.RUNNING or pod.expires_at <= self._clock():
            raise NotFoundError(
                f"no pod found with this id. id={hash}",
                hint="It was never uploaded here, or its paid time is over: upload its manifest again.",
            )
        return pod

    async def pods(self) -> Sequence[Pod]:
        """Every row there is, whatever its state."""
        return await self._store.pods()

    async def logs(self, hash: ManifestHash, *, follow: bool) -> AsyncIterator[LogLine]:
        """What the pod's containers wrote; only pods whose manifest says `debug: true` show it."""
        pod = await self.get(hash)
        if not pod.manifest.debug:
            raise ForbiddenError(
                f"pod manifest does not allow debugging. id={hash}",
                hint="Logs are shown for manifests with `debug: true`; it is part of the hash.",
            )
        return self._containers.logs(hash, follow=follow)

    async def traffic(self) -> Mapping[ManifestHash, Traffic]:
        """Of every pod: the kernel's counters, and where it has none (or cannot be asked) the kept ones."""
        pods = await self._store.pods()
        kept = await self._store.traffic(pod.hash for pod in pods)
        try:
            live = await self._network.traffic()
        except NetworkError as error:
            logger.warning("the pods' traffic is told as it was last kept: %s", error)
            live = {}
        return {pod.hash: live.get(pod.address, kept.get(pod.hash, NO_TRAFFIC)) for pod in pods}

    async def bank_traffic(self) -> None:
        """Keep the counters that have changed since the last time, so that a crash loses little of them."""
        # Of pods that were there before the kernel was asked and still are: nobody else had their address
        # meanwhile. Pending ones are left out: a stranger's failed uploads must not fill the store.
        before = {_life(pod) for pod in await self._store.pods(PodState.RUNNING)}
        live = await self._network.traffic()
        read = {
            pod.hash: live[pod.address]
            for pod in await self._store.pods()
            if pod.address in live and _life(pod) in before
        }
        changed = {hash: t for hash, t in read.items() if t != self._banked.get(hash, NO_TRAFFIC)}
        if changed:
            await self._store.save_traffic(changed, now=self._clock())
        self._banked = read

    async def probe(self, hash: ManifestHash) -> Sequence[Result]:
        """What the pod finds when it tries, without doing harm, what the policy allows and what it denies."""
        await self.get(hash)
        others = [other.address for other in await self._store.pods(PodState.RUNNING) if other.hash != hash]
        netns = await self._containers.open_netns(hash)
        try:
            return await self._network.probe(netns, others)
        finally:
            os.close(netns)

    async def capacity(self) -> Capacity:
        """Whether the next upload would find room, by the test the upload itself makes."""
        available, _ = self._host.memory()
        running = len(await self._store.pods(PodState.RUNNING))
        return Capacity(full=self._find_shortage() is not None, free_memory=available, running=running)

    async def isolation(self) -> Isolation:
        """What stands between a pod and the host."""
        return await self._containers.isolation()

    # ---- path 1: upload -------------------------------------------------------------------------

    async def upload(
        self, upload: Upload, duration: int, *, token: str | None, progress: Progress | None = None
    ) -> Pod:
        """Bring the manifest's pod up, or extend it when it runs; everything is undone on failure.

        Cancelled, it undoes what it did: who must not lose it (a client may hang up) runs it in a task.
        """
        hash = upload.manifest.hash
        async with self._lock(hash):
            pod = await self._store.find_pod(hash)
            if pod is not None and pod.state is PodState.RUNNING and pod.expires_at > self._clock():
                return await self._extend(pod, duration, token)
            if pod is not None:
                # its time ended, or a crash left it half made, and the reconciler has not come by yet
                await self._take_down(pod)
            quote = self._quote(hash, duration)
            await self._rail.authorize(quote, token)
            self._check_room()
            self._in_flight.add(hash)
            self._half_undone.discard(hash)
            try:
                return await self._bring_up(upload, quote, token, progress or _say_nothing)
            finally:
                self._in_flight.discard(hash)

    async def _bring_up(self, upload: Upload, quote: Quote, token: str | None, progress: Progress) -> Pod:
        hash = upload.manifest.hash
        now = self._clock()
        async with AsyncExitStack() as undo:
            async with self._allocation:
                pod = Pod(
                    manifest=upload.manifest,
                    state=PodState.PENDING,
                    created_at=now,
                    expires_at=now + timedelta(seconds=quote.duration),
                    address=self._addresses.next_free(await self._store.addresses()),
                )
                logger.info("pod %s: upload for %d s", hash, quote.duration)
                await self._store.add_pod(pod, upload.private)
            undo.push_async_callback(self._undo_row, hash)
            await self._start(pod, undo, progress)
            receipt = await self._rail.claim(quote, token)
            started = self._clock()
            pod = await self._store.start_pod(
                hash,
                expires_at=started + timedelta(seconds=quote.duration),
                entry=_entry(hash, EntryKind.UPLOAD, quote.duration, receipt, started),
            )
            undo.pop_all()  # from here on the pod is paid for: nothing takes it back but time
        self._publish(pod)
        self.changed.set()
        logger.info("pod %s: running until %s", hash, pod.expires_at.isoformat())
        return pod

    async def _start(self, pod: Pod, undo: AsyncExitStack, progress: Progress) -> None:
        """From nothing to running containers behind a wired network; each effect with its undo."""
        hash = pod.hash
        spec = podspec.build(
            pod, await self._store.private(hash), public_uri=self._settings.public_uri.origin
        )
        for image in dict.fromkeys(container.image for container in spec.containers):
            async with aclosing(self._containers.pull(image)) as steps:
                async for step in steps:
                    progress(f"{step.image}: {step.message}")
        async with self._starts:
            progress("creating the pod")
            undo.push_async_callback(self._undo, hash, "containers", self._containers.remove)
            await self._containers.create(spec)
            await self._containers.start_infra(hash)
            progress("wiring its network")
            undo.push_async_callback(self._undo, hash, "network", lambda _: self._network.detach(pod.address))
            await _both(self._wire(pod), self._containers.prepare_members(hash))
            progress(f"starting {len(spec.containers)} container{'s' if len(spec.containers) > 1 else ''}")
            await self._containers.start_members(hash)
            await self._settle(pod)

    async def _wire(self, pod: Pod) -> None:
        traffic = (await self._store.traffic([pod.hash])).get(pod.hash, NO_TRAFFIC)
        netns = await self._containers.open_netns(pod.hash)
        try:
            await self._network.attach(pod.address, netns, traffic)
        finally:
            os.close(netns)

    async def _detach(self, pod: Pod) -> None:
        """Off the network; what its counters came to is kept."""
        last = await self._network.detach(pod.address)
        if last is None or last == NO_TRAFFIC:
            return
        try:
            await self._store.save_traffic({pod.hash: last}, now=self._clock())
        except StoreError as error:  # a full disk: going on is what frees it
            logger.warning("pod %s: its traffic since the last look is not kept: %s", pod.hash, error)

    async def _settle(self, pod: Pod) -> None:
        """Return when the pod's port answers, or when nothing has exited for a while (PodStartError)."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (0 if self._settings.noop else SETTLE_SECONDS)
        target = self._target_of(pod)
        while (left := deadline - loop.time()) > 0:
            if target is None:
                await asyncio.sleep(left)
            elif await _answers(target, left):
                break
            else:
                await asyncio.sleep(PORT_POLL_SECONDS)
        await self._containers.check_members(pod.hash)

    async def _undo(
        self, hash: ManifestHash, what: str, effect: Callable[[ManifestHash], Awaitable[object]]
    ) -> None:
        """One undo; a failing one is left to the reconciler, which finds what is left by its label."""
        try:
            await effect(hash)
        except CodiusError as error:
            self._half_undone.add(hash)
            logger.warning("pod %s: its %s could not be taken back yet: %s", hash, what, error)

    async def _undo_row(self, hash: ManifestHash) -> None:
        """The last undo. After one that failed the row stays and keeps the address from other pods: the
        reconciler, or the next upload of the manifest, ends what was begun.
        """
        if hash not in self._half_undone:
            await self._undo(hash, "row", self._store.remove_pod)

    # ---- extension ------------------------------------------------------------------------------

    async def extend(self, hash: ManifestHash, duration: int, *, token: str | None) -> Pod:
        """More time for a running pod, counted from its old expiry."""
        async with self._lock(hash):
            return await self._extend(await self.get(hash), duration, token)

    async def _extend(self, pod: Pod, duration: int, token: str | None) -> Pod:
        quote = self._quote(pod.hash, duration)
        await self._rail.authorize(quote, token)
        receipt = await self._rail.claim(quote, token)
        entry = _entry(pod.hash, EntryKind.EXTENSION, duration, receipt, self._clock())
        pod = await self._store.extend_pod(pod.hash, seconds=duration, entry=entry)
        self.changed.set()
        logger.info("pod %s: extended by %d s until %s", pod.hash, duration, pod.expires_at.isoformat())
        return pod

    # ---- paths 4 and 5: what the reconciler asks for --------------------------------------------

    async def apply(self, step: lifecycle.Step) -> None:
        """Carry out one step of a plan. Every step may run twice, and late: each looks at the row again."""
        async with self._lock(step.hash):
            if step.hash in self._in_flight:
                return
            pod = await self._store.find_pod(step.hash)
            if isinstance(step, lifecycle.RemoveOrphan):
                if pod is None:
                    logger.info("pod %s: removed, nobody wants it", step.hash)
                    await self._containers.remove(step.hash)
                return
            if pod is None or pod.created_at != step.pod.created_at:
                return  # gone, or uploaded anew
            expired = pod.state is not PodState.RUNNING or pod.expires_at <= self._clock()
            match step:
                case lifecycle.Expire() | lifecycle.Discard() | lifecycle.Finish():
                    if expired:  # and not extended between the plan and this moment
                        await self._take_down(pod)
                case lifecycle.Adopt():
                    self._publish(pod)
                case lifecycle.Rewire():
                    logger.info("pod %s: network wired again", step.hash)
                    await self._wire(pod)
                    self._publish(pod)
                case lifecycle.Restart():
                    await self._restart(pod)

    async def give_back(self, step: lifecycle.Restart) -> None:
        """The time a pod stood still, as its plan counted it; NotFoundError and the like are no harm."""
        with suppress(NotFoundError, PodChangedError):
            await self._give_back(step.pod, step.expires_at - step.pod.expires_at)

    async def _give_back(self, pod: Pod, outage: timedelta) -> Pod:
        if not outage:
            return pod
        nothing = Receipt(rail="outage", price=0, currency=self._rail.currency, token=None)
        entry = _entry(pod.hash, EntryKind.CREDIT, math.ceil(outage.total_seconds()), nothing, self._clock())
        return await self._store.move_expiry(
            pod.hash, pod.expires_at + outage, expected=pod.expires_at, entry=entry
        )

    async def _restart(self, pod: Pod) -> None:
        """Bring a paid pod back after its containers are gone; what that takes is given back as well."""
        self._routes.unpublish(pod.hash)
        began = self._clock()
        try:
            await self._detach(pod)
            await self._containers.remove(pod.hash)
            async with AsyncExitStack() as undo:
                await self._start(pod, undo, _say_nothing)
                undo.pop_all()
        finally:
            pod = await self._give_back(pod, self._clock() - began)
        self._publish(pod)
        logger.info("pod %s: running again until %s", pod.hash, pod.expires_at.isoformat())

    async def _take_down(self, pod: Pod) -> None:
        """Route first, then whoever is on the way out, network, containers, and the row last."""
        logger.info("pod %s: taking it down (%s)", pod.hash, pod.state)
        self._routes.unpublish(pod.hash)
        if pod.state is not PodState.STOPPING:
            try:
                await self._store.set_state(pod.hash, PodState.STOPPING, expected=pod.state)
            except PodChangedError:
                raise
            except StoreError as error:  # a full disk: going on is what frees it
                logger.warning("pod %s: %s; it goes all the same", pod.hash, error)
        if pod.state is PodState.RUNNING and pod.manifest.port is not None and not self._settings.noop:
            await asyncio.sleep(DRAIN_SECONDS)
        await self._detach(pod)
        await self._containers.remove(pod.hash)
        await self._store.remove_pod(pod.hash)
        self._half_undone.discard(pod.hash)
        logger.info("pod %s: gone", pod.hash)

    def publish_wired(self, pods: Sequence[Pod], wired: Collection[IPv4Address]) -> None:
        """Routes of pods, the newest last, whose link outlived the daemon."""
        # A front door that has not heard of us yet still sends visitors to any of these addresses, also to
        # those of pods that have expired meanwhile: the next pod must get another one.
        if pods:
            self._addresses.go_on_after(pods[-1].address)
        now = self._clock()
        for pod in pods:
            if pod.state is PodState.RUNNING and pod.expires_at > now and pod.address in wired:
                self._publish(pod)

    def retire_routes(self, pods: Iterable[Pod]) -> None:
        """Unpublish what has expired: the one step that must not wait for an engine that is away."""
        now = self._clock()
        for pod in pods:
            if pod.state is PodState.RUNNING and pod.expires_at <= now:
                self._routes.unpublish(pod.hash)

    @property
    def in_flight(self) -> frozenset[ManifestHash]:
        """Uploads under way; the reconciler leaves them alone."""
        return frozenset(self._in_flight)

    # ---- the small parts ------------------------------------------------------------------------

    def _quote(self, hash: ManifestHash, duration: int) -> Quote:
        price = pricing.price(duration, cost_per_month=self._cost_per_month, scale=self._rail.currency.scale)
        return Quote(hash, duration, price)

    def _find_shortage(self) -> str | None:
        """Why another pod would not fit; None when it would."""
        available, total = self._host.memory()
        pod = podspec.LIMITS[Machine.SMALL].memory
        used = total - available + len(self._in_flight) * pod
        limit = self._settings.max_memory_fraction * total
        if used + pod > limit:
            return (
                f"memory: {used / 2**20:.0f} MiB in use and {pod / 2**20:.0f} MiB for the pod are more than"
                f" the {limit / 2**20:.0f} MiB this host gives"
            )
        if (free := self._host.free_disk()) < MIN_FREE_DISK:
            return f"disk: {free / 2**20:.0f} MiB free, {MIN_FREE_DISK / 2**20:.0f} MiB needed"
        return None

    def _check_room(self) -> None:
        if len(self._in_flight) >= UPLOADS_AT_ONCE:
            raise HostFullError(
                f"this host is busy with {UPLOADS_AT_ONCE} uploads", hint="Try again in a minute."
            )
        if (shortage := self._find_shortage()) is not None:
            raise HostFullError(
                f"this host is full ({shortage})", hint="Try again later, or another host: GET /peers."
            )

    def _publish(self, pod: Pod) -> None:
        target = self._target_of(pod)
        if target is not None:
            self._routes.publish(pod.hash, target)

    @asynccontextmanager
    async def _lock(self, hash: ManifestHash) -> AsyncIterator[None]:
        """One change of a pod at a time; locks nobody holds are forgotten."""
        self._holders[hash] += 1
        try:
            async with self._locks[hash]:
                yield
        finally:
            self._holders[hash] -= 1
            if not self._holders[hash]:
                del self._holders[hash], self._locks[hash]


async def _both(first: Awaitable[None], second: Awaitable[None]) -> None:
    """Side by side, and both over before a failure of either is raised: its undo must meet neither."""
    for result in await asyncio.gather(first, second, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def _answers(target: Target, seconds: float) -> bool:
    """Whether something accepts a connection at the target within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(target.address, target.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _life(pod: Pod) -> tuple[ManifestHash, IPv4Address, datetime]:
    """What tells one life of a manifest on this host from the next."""
    return pod.hash, pod.address, pod.created_at


def _target_of(pod: Pod) -> Target | None:
    return None if pod.manifest.port is None else Target(str(pod.address), pod.manifest.port)


def _entry(hash: ManifestHash, kind: EntryKind, seconds: int, receipt: Receipt, now: datetime) -> LedgerEntry:
    return LedgerEntry(
        manifest_hash=hash,
        kind=kind,
        seconds=seconds,
        price=receipt.price,
        currency=receipt.currency,
        rail=receipt.rail,
        token=receipt.token,
        created_at=now,
    )


def _say_nothing(_: str) -> None: ...
