"""The coordinator: it alone brings pods up and takes them down, effects in order, undos beside them."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Final

from codius_netpolicy.probes import Result
from codius_node import lifecycle, podspec, pricing
from codius_node.addresses import AddressPool
from codius_node.config import Settings
from codius_node.denials import Denials
from codius_node.doors import ContainerEngine, HostStats, Network, Rail, RoutePublisher
from codius_node.errors import (
    CodiusError,
    ForbiddenError,
    HostFullError,
    NotFoundError,
    StoreError,
)
from codius_node.launch import Launcher, Progress
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
from codius_node.prices import PriceList
from codius_node.room import find_shortage
from codius_node.store import EntryKind, LedgerEntry, PodChangedError, Store
from codius_node.takedown import MAX_NOTICES, Denial, Enforcement, Stop, Terms, refuse

logger = logging.getLogger(__name__)

UPLOADS_AT_ONCE: Final = 64
"""Uploads under way, waiting ones included; beyond it a client is asked to come back."""
DRAIN_SECONDS: Final = 1.0
"""What requests under way get to finish when their pod's time is up."""
TAKEDOWNS_AT_ONCE: Final = 4
"""Denied pods being taken down at the same moment; their routes are gone before the first of them is."""


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
        self._launcher = Launcher(
            settings=settings,
            store=store,
            containers=containers,
            network=network,
            clock=clock,
            target_of=self._target_of,
        )
        self._in_flight: set[ManifestHash] = set()
        self._addresses = AddressPool(settings.pod_network)
        self._allocation = asyncio.Lock()  # from choosing an address to its row in the store
        self._takedowns = asyncio.Semaphore(TAKEDOWNS_AT_ONCE)
        self.denials = Denials(store)
        self.prices = PriceList(store=store, own=settings.cost_per_month, clock=clock)
        self.changed = asyncio.Event()

    # ---- what callers ask -----------------------------------------------------------------------

    @property
    def currency(self) -> Currency:
        """What this host's prices are counted in."""
        return self._rail.currency

    @property
    def cost_per_month(self) -> Decimal:
        """What clients are told: as set at run time, or else by the operator's settings."""
        return self.prices.told

    async def load(self) -> None:
        """Take up what the operator decided in earlier runs: the price, the denylist, and who was stopped."""
        await self.prices.load()
        await self.denials.load()
        for stop in await self._store.open_stops(MAX_NOTICES):
            self._routes.stop(stop.hash, stop.terms.notice)

    def url(self, hash: ManifestHash) -> str:
        """Where visitors find the pod."""
        return self._settings.public_uri.pod_url(hash)

    async def quote(self, upload: Upload, duration: int) -> Quote:
        """The price of running this manifest for `duration` seconds, as it is told now. DeniedError."""
        self.denials.check(upload.manifest)
        return self._price(upload.manifest.hash, duration, self.prices.told)

    async def get(self, hash: ManifestHash) -> Pod:
        """The running pod of this manifest; NotFoundError when there is none, or its time is over."""
        pod = await self._find_running(hash)
        if pod is None:
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
            self.denials.check(upload.manifest)
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
            self._launcher.half_undone.discard(hash)
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
            await self._launcher.start(pod, undo, progress)
            self.denials.check(pod.manifest)  # the list may have grown meanwhile
            receipt = await self._rail.claim(quote, token)
            started = self._clock()
            pod = await self._store.start_pod(
                hash,
                expires_at=started + timedelta(seconds=quote.duration),
                entry=_entry(hash, EntryKind.UPLOAD, quote.duration, receipt, started),
            )
            undo.pop_all()  # from here on the pod is paid for: only time or its operator takes it back
        self.changed.set()
        if (denial := self.denials.find_takedown(pod.manifest)) is not None:
            await self._stop(pod, denial.terms)  # it came on the list while the payment was claimed
            raise refuse(denial)
        self._publish(pod)
        logger.info("pod %s: running until %s", hash, pod.expires_at.isoformat())
        return pod

    async def _undo_row(self, hash: ManifestHash) -> None:
        """The last undo. After one that failed the row stays and keeps the address from other pods: the
        reconciler, or the next upload of the manifest, ends what was begun.
        """
        if hash not in self._launcher.half_undone:
            await self._launcher.undo(hash, "row", self._store.remove_pod)

    # ---- extension ------------------------------------------------------------------------------

    async def extend(self, hash: ManifestHash, duration: int, *, token: str | None) -> Pod:
        """More time for a running pod, counted from its old expiry."""
        async with self._lock(hash):
            return await self._extend(await self.get(hash), duration, token)

    async def _extend(self, pod: Pod, duration: int, token: str | None) -> Pod:
        self.denials.check(pod.manifest)
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
                case lifecycle.TakeDown():
                    denial = self.denials.find_takedown(pod.manifest)
                    if denial is not None and not expired:
                        await self._stop(pod, denial.terms)
                case lifecycle.Adopt():
                    self._publish(pod)
                case lifecycle.Rewire():
                    logger.info("pod %s: network wired again", step.hash)
                    await self._launcher.wire(pod)
                    self._publish(pod)
                case lifecycle.Restart():
                    await self._restart(pod)

    async def give_back(self, step: lifecycle.Restart | lifecycle.TakeDown) -> None:
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
            await self._launcher.detach(pod)
            await self._containers.remove(pod.hash)
            async with AsyncExitStack() as undo:
                await self._launcher.start(pod, undo, _say_nothing)
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
        await self._launcher.detach(pod)
        await self._containers.remove(pod.hash)
        await self._store.remove_pod(pod.hash)
        self._launcher.half_undone.discard(pod.hash)
        logger.info("pod %s: gone", pod.hash)

    # ---- what the operator takes down -----------------------------------------------------------

    async def stop(self, hash: ManifestHash, terms: Terms) -> Stop:
        """Take a running pod down, route first. Of one that is stopped already, change the terms.

        What cannot be removed at once (podman is away) goes when it can: nobody reaches it meanwhile.
        """
        if hash in self._in_flight:  # its start may take minutes, and nobody has paid for it
            raise PodChangedError(
                f"pod {hash} is only being started",
                hint="Wait until it runs, or `codiusd admin deny add manifest` its hash.",
            )
        async with self._lock(hash):
            pod = await self._find_running(hash)
            if pod is not None:
                return await self._stop(pod, terms)
            stop = await self._store.amend_stop(hash, terms)
            if stop is None:
                raise NotFoundError(
                    f"no pod of this hash runs here. id={hash}",
                    hint="`codiusd admin pods` lists those that do.",
                )
            self._routes.stop(hash, terms.notice)
        logger.info("pod %s: stopped before; the terms are changed (%s)", hash, terms.reason)
        return stop

    async def deny(self, denial: Denial) -> Enforcement:
        """Keep it off this host from now on, and take down what runs of it."""
        await self.denials.put(denial)
        # An upload that is under way looks at the list again before it is paid for, and before it is served.
        now = self._clock()
        running = [pod for pod in await self._store.pods(PodState.RUNNING) if pod.expires_at > now]
        denied = self.denials.find_denied(running)
        for pod, reason in denied:
            self._routes.stop(pod.hash, reason.terms.notice)
        hashes = [pod.hash for pod, _ in denied]
        outcomes = await asyncio.gather(*map(self._enforce, hashes), return_exceptions=True)
        for hash, error in zip(hashes, outcomes, strict=True):
            if isinstance(error, BaseException):  # the reconciler tries again, and no route comes back
                logger.warning("pod %s: denied, and not taken down yet: %s", hash, error)
        found = list(zip(hashes, outcomes, strict=True))
        return Enforcement(
            stopped=[hash for hash, gone in found if gone is True],
            waiting=[hash for hash, gone in found if isinstance(gone, BaseException)],
        )

    async def _enforce(self, hash: ManifestHash) -> bool:
        """Take a denied pod down; False when there is nothing to take down any more."""
        async with self._takedowns, self._lock(hash):
            pod = await self._find_running(hash)
            denial = None if pod is None else self.denials.find_takedown(pod.manifest)
            if pod is None or denial is None:
                return False
            await self._stop(pod, denial.terms)
            return True

    async def _stop(self, pod: Pod, terms: Terms) -> Stop:
        self._routes.stop(pod.hash, terms.notice)
        try:
            stop = await self._store.stop_pod(pod.hash, terms, self._clock())
        except CodiusError:
            self._publish(pod)  # nothing was written: it runs on, unless it is denied
            raise
        logger.info(
            "pod %s: stopped by the operator with %d s left (%s)", pod.hash, stop.seconds, terms.reason
        )
        try:
            await self._take_down(replace(pod, state=PodState.STOPPING))
        except CodiusError as error:
            logger.warning("pod %s: cannot be removed yet: %s", pod.hash, error)
        return stop

    # ---- routes over restarts -------------------------------------------------------------------

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

    async def _find_running(self, hash: ManifestHash) -> Pod | None:
        pod = await self._store.find_pod(hash)
        if pod is None or pod.state is not PodState.RUNNING or pod.expires_at <= self._clock():
            return None
        return pod

    def _quote(self, hash: ManifestHash, duration: int) -> Quote:
        """What is to be paid: never more than any quote said of late."""
        return self._price(hash, duration, self.prices.charged)

    def _price(self, hash: ManifestHash, duration: int, cost_per_month: Decimal) -> Quote:
        scale = self._rail.currency.scale
        return Quote(hash, duration, pricing.price(duration, cost_per_month=cost_per_month, scale=scale))

    def _find_shortage(self) -> str | None:
        """Why another pod would not fit; None when it would."""
        available, total = self._host.memory()
        pod = podspec.LIMITS[Machine.SMALL].memory
        return find_shortage(
            available=available,
            total=total,
            fraction=self._settings.max_memory_fraction,
            coming=len(self._in_flight) * pod,
            pod=pod,
            free_disk=self._host.free_disk(),
        )

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
        if (denial := self.denials.find_takedown(pod.manifest)) is not None:
            self._routes.stop(pod.hash, denial.terms.notice)  # whoever would bring it back
        elif target is not None:
            self._routes.publish(pod.hash, target)
        else:
            self._routes.readmit(pod.hash)

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
