"""What all connections of one worker share: names, routes, limits, a clock, the pool."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from typing import Final

from codius_proxy import pages, refusals
from codius_proxy.access_log import build_id
from codius_proxy.admission import Admission, Visitor
from codius_proxy.authority import HostItself, PodName, Unknown, classify, read_host
from codius_proxy.config import ProxyConfig
from codius_proxy.identity import Trust
from codius_proxy.pages import Refusal
from codius_proxy.pool import Pool
from codius_proxy.request import RequestHead
from codius_proxy.routes import Api, Destination, Route, RouteTable
from codius_proxy.turns import Turns
from codius_proxy.upstream import Failure
from codius_proxy.visit import Observer

logger = logging.getLogger(__name__)

REMEMBERED_NAMES: Final = 4096  # Host values whose meaning is remembered
TICKS_PER_TIMEOUT: Final = 4  # how exactly time-outs are kept: to a quarter of the shortest
MAX_TICK: Final = 1.0  # seconds


class Site:
    """One worker's share of the host: decides where a name leads and how long anybody may wait."""

    def __init__(self, config: ProxyConfig, table: RouteTable, observer: Observer, name: str) -> None:
        """`name` is the worker's: requests are told apart by it and their number."""
        self.config = config
        self.timeouts = config.timeouts
        self.name = name
        self.table = table
        self.observer = observer
        self.trust = Trust(config.trusted_proxies)
        self.draining = False
        self.turns = Turns()
        self._number = 0  # of the last request
        # Read once per tick, so that bookkeeping on every packet costs no system call.
        self.now = asyncio.get_running_loop().time()
        self.pool = Pool(
            idle_per_target=config.limits.idle_per_target,
            idle_for=config.timeouts.pooled,
            closing_for=config.timeouts.body,
            gone_for=config.timeouts.gone,
            now=self.now,
            turns=self.turns,
        )
        self.admission = Admission(connections=config.limits.connections, per_client=config.limits.per_client)
        self._api = Route("api", Api(config.api_socket))
        self._made_room = 0.0  # when it was last crowded
        self._empty = asyncio.Event()
        self._empty.set()
        self._tick = min(MAX_TICK, config.timeouts.shortest() / TICKS_PER_TIMEOUT)
        self._ticker: asyncio.TimerHandle | None = None
        self._meaning = lru_cache(maxsize=REMEMBERED_NAMES)(self._read_name)

    def next_number(self) -> int:
        """A name for the next request."""
        self._number += 1
        return self._number

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
        explain = refusals.explain_api if isinstance(destination, Api) else refusals.explain_pod
        return explain(failure)

    def redirect(self, request: RequestHead) -> Refusal:
        """To the same place by https; the name is one of ours."""
        hostname = read_host(request.host).hostname
        path = request.target.decode("ascii") if request.target != b"*" else "/"
        if ":" in hostname:
            hostname = f"[{hostname}]"
        return refusals.moved_to(f"https://{hostname}{self.config.port_suffix('https')}{path}")

    def render_page(
        self, refusal: Refusal, number: int, *, html: bool, head_only: bool, close: bool, policy: bytes
    ) -> bytes:
        """The complete answer to the request of this number; `policy` is a line of its head."""
        return pages.render(
            refusal,
            html=html,
            head_only=head_only,
            close=close,
            request_id=build_id(self.name, number),
            contact=self.config.contact,
            policy=policy,
        )

    def add(self, visitor: Visitor) -> bool:
        """Look after `visitor`; False when there are more than this worker should serve."""
        self._wake()
        room = not self.admission.full
        # Once per tick: a flood must not cost a search per connection.
        if not room and self._made_room != self.now:
            self._made_room = self.now
            room = self.admission.make_room()
        self.admission.visitors.add(visitor)
        self._empty.clear()
        return room

    def turn_away(self, reason: str) -> None:
        """A connection is ended without an answer; `reason` is one word, for the metrics."""
        self.observer.turned_away(reason)
        self._wake()  # for who listens to the observer: there may be no visitor to keep us awake

    def discard(self, visitor: Visitor) -> None:
        self.admission.visitors.discard(visitor)
        if not self.admission.visitors:
            self._empty.set()

    async def drain(self) -> None:
        """Let every request that was begun finish, under the deadline; then cut what is left.

        A busy visitor sends its next request before it sees an end that is just coming, and could not
        tell whether that one was served. So it is told with an answer that this was the last one, and
        only those that say nothing for a while are left.
        """
        self.draining = True
        timeouts = self.timeouts
        parting = min(timeouts.parting, timeouts.drain)
        if await self.emptied(parting):
            return
        for visitor in list(self.admission.visitors):
            visitor.drain()
        if not await self.emptied(timeouts.drain - parting):
            logger.info("cutting %d visitors that did not finish in time", len(self.admission.visitors))
            for visitor in list(self.admission.visitors):
                visitor.abort()
            await self._empty.wait()

    async def emptied(self, within: float) -> bool:
        """Wait until there is no visitor; False after that many seconds."""
        try:
            await asyncio.wait_for(self._empty.wait(), within)
        except TimeoutError:
            return False
        return True

    async def aclose(self) -> None:
        await self.pool.aclose()
        await self.observer.aclose()
        if self._ticker is not None:
            self._ticker.cancel()

    def _wake(self) -> None:
        if self._ticker is None:
            loop = asyncio.get_running_loop()
            self.now = self.pool.now = loop.time()
            self._ticker = loop.call_later(self._tick, self._on_tick)

    def _on_tick(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = self.pool.now = now = loop.time()
        for visitor in [found for found in self.admission.visitors if found.deadline < now]:
            visitor.expired()
        self.pool.sweep()
        self.observer.flush()
        if self.admission.visitors or self.pool.occupied:
            self._ticker = loop.call_later(self._tick, self._on_tick)
        else:
            self._ticker = None  # a proxy at rest wakes up for nobody

    def _read_name(self, host: bytes) -> PodName | Route | Refusal:
        meaning = classify(read_host(host).hostname, self.config.zone)
        if isinstance(meaning, HostItself):
            return self._api
        if isinstance(meaning, Unknown):
            return refusals.unknown_name(meaning.hostname, self.config.zone, self.config.url())
        return meaning

    def _no_pod(self, name: PodName) -> Refusal:
        if not self.table.known:
            return refusals.host_starting()
        if (notice := self.table.find_notice(name.hash)) is not None:
            return refusals.pod_stopped(name.hash, notice, self.config.url())
        tell = refusals.pod_gone if self.table.was_known(name.hash) else refusals.no_pod
        return tell(name.hash, self.config.url())
