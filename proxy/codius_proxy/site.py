"""What all connections of one worker share: names, routes, limits, a clock, the pool."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from itertools import count
from typing import Final

from codius_proxy.admission import Admission, Visitor
from codius_proxy.authority import AuthorityError, HostItself, PodName, Unknown, classify, parse
from codius_proxy.config import ProxyConfig
from codius_proxy.identity import Trust
from codius_proxy.pages import Refusal
from codius_proxy.pool import Pool
from codius_proxy.routes import Api, Destination, Route, RouteTable
from codius_proxy.upstream import Failure, Fault
from codius_proxy.visit import Observer

logger = logging.getLogger(__name__)

REMEMBERED_NAMES: Final = 4096  # Host values whose meaning is remembered
TICKS_PER_TIMEOUT: Final = 4  # how exactly time-outs are kept: to a quarter of the shortest
MAX_TICK: Final = 1.0  # seconds


class Site:
    """One worker's share of the host: decides where a name leads and how long anybody may wait."""

    def __init__(self, config: ProxyConfig, table: RouteTable, observer: Observer) -> None:
        self.config = config
        self.table = table
        self.observer = observer
        self.trust = Trust(())
        self.draining = False
        self.next_number = count(1).__next__  # a name for each request
        # Read once per tick, so that bookkeeping on every packet costs no system call.
        self.now = asyncio.get_running_loop().time()
        self.pool = Pool(
            idle_per_target=config.limits.idle_per_target,
            idle_for=config.timeouts.pooled,
            closing_for=config.timeouts.body,
            gone_for=config.timeouts.gone,
            clock=lambda: self.now,
        )
        self.admission = Admission(connections=config.limits.connections, per_client=config.limits.per_client)
        self._api = Route(None, Api(config.api_socket))
        self._made_room = 0.0  # when it was last crowded
        self._empty = asyncio.Event()
        self._empty.set()
        self._tick = min(MAX_TICK, config.timeouts.shortest() / TICKS_PER_TIMEOUT)
        self._ticker: asyncio.TimerHandle | None = None
        self._meaning = lru_cache(maxsize=REMEMBERED_NAMES)(self._read_name)

    def route(self, host: bytes) -> Route | Refusal:
        """Where a request with this Host value goes, or why it goes nowhere."""
        meaning = self._meaning(host)
        if isinstance(meaning, PodName):
            return self.table.find(meaning.hash) or self._no_pod(meaning)
        return meaning

    def limit(self, destination: Destination) -> int:
        """How many requests may be on their way to it at once."""
        limits = self.config.limits
        return limits.to_api if isinstance(destination, Api) else limits.per_target

    def explain(self, destination: Destination, failure: Failure) -> Refusal:
        """What a visitor is told when the target failed."""
        if isinstance(destination, Api):
            return _explain_api(failure)
        if failure.fault is Fault.REFUSED:
            return Refusal(
                503,
                "The pod is here, but nothing in it takes connections on the manifest's port.",
                "The pod may still be starting. If you own it: check `port` in its manifest, and its logs.",
            )
        if failure.fault is Fault.TIMEOUT:
            return Refusal(
                504,
                f"The pod did not answer in time. {failure.detail}",
                "Try again later. If you own it: look at the pod's logs.",
            )
        if failure.fault is Fault.LIMITED:
            return Refusal(503, "This host is out of connections to its pods.", "Try again in a moment.")
        what = (
            "answered with something that is not HTTP" if failure.fault is Fault.GARBAGE else "did not answer"
        )
        return Refusal(
            502, f"The pod {what}. {failure.detail}", "Try again. If you own it: look at the pod's logs."
        )

    def add(self, visitor: Visitor) -> bool:
        """Look after `visitor`; False when there are more than this worker should serve."""
        if self._ticker is None:
            loop = asyncio.get_running_loop()
            self.now = loop.time()
            self._ticker = loop.call_later(self._tick, self._on_tick)
        room = not self.admission.full
        # Once per tick: a flood must not cost a search per connection.
        if not room and self._made_room != self.now:
            self._made_room = self.now
            room = self.admission.make_room()
        self.admission.visitors.add(visitor)
        self._empty.clear()
        return room

    def discard(self, visitor: Visitor) -> None:
        self.admission.visitors.discard(visitor)
        if not self.admission.visitors:
            self._empty.set()

    async def drain(self) -> None:
        """Let every request that was begun finish, under the deadline; then cut what is left."""
        self.draining = True
        for visitor in list(self.admission.visitors):
            visitor.drain()
        try:
            await asyncio.wait_for(self._empty.wait(), self.config.timeouts.drain)
        except TimeoutError:
            logger.info("cutting %d visitors that did not finish in time", len(self.admission.visitors))
            for visitor in list(self.admission.visitors):
                visitor.abort()
            await self._empty.wait()

    async def aclose(self) -> None:
        await self.pool.aclose()
        if self._ticker is not None:
            self._ticker.cancel()

    def _on_tick(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = now = loop.time()
        for visitor in [found for found in self.admission.visitors if found.deadline < now]:
            visitor.expired()
        self.pool.sweep()
        if self.admission.visitors or self.pool.occupied:
            self._ticker = loop.call_later(self._tick, self._on_tick)
        else:
            self._ticker = None  # a proxy at rest wakes up for nobody

    def _read_name(self, host: bytes) -> PodName | Route | Refusal:
        try:
            authority = parse(host.decode("latin-1"))
        except AuthorityError as error:
            return Refusal(400, f"The Host field is not valid: {error}.", f"This host is {self.config.url()}")
        meaning = classify(authority.hostname, self.config.zone)
        if isinstance(meaning, HostItself):
            return self._api
        if isinstance(meaning, Unknown):
            return Refusal(
                421,
                f"{meaning.hostname} is not served here. This host serves {self.config.zone} and "
                f"<manifest hash>.{self.config.zone}; a manifest hash has 52 characters of a-z and 2-7.",
                f"Check the name. This host is {self.config.url()}",
            )
        return meaning

    def _no_pod(self, name: PodName) -> Refusal:
        if not self.table.known:
            return Refusal(
                503, "This host is starting and does not know its pods yet.", "Try again in a moment."
            )
        return Refusal(
            404,
            f"There is no pod {name.hash} on this host: it was never uploaded, or its time is over.",
            f"Whoever has its manifest can upload it again to {self.config.url()}",
        )


def _explain_api(failure: Failure) -> Refusal:
    if failure.fault is Fault.GARBAGE or (failure.fault is Fault.LOST and not failure.untouched):
        return Refusal(502, f"The host's API did not answer properly. {failure.detail}", "Try again.")
    if failure.fault is Fault.TIMEOUT:
        return Refusal(504, f"The host's API did not answer in time. {failure.detail}", "Try again later.")
    return Refusal(
        503,
        "The host's API is away. The pods are not concerned: they answer as before.",
        "It may be restarting: try again in a few seconds.",
    )
