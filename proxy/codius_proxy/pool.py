"""Connections to targets: the busy ones counted, the idle ones kept, last used first."""

from __future__ import annotations

import asyncio
import errno
import socket

from codius_proxy.channel import Channel
from codius_proxy.routes import Destination, Target
from codius_proxy.turns import Turns
from codius_proxy.upstream import Failure, Fault, TargetConnection


class Lane:
    """All connections to one target."""

    __slots__ = ("busy", "destination", "idle", "open")

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.busy = 0  # exchanges under way or waiting for a connection
        self.idle: list[TargetConnection] = []  # the one used last at the end
        self.open = 0


class Pool:
    """A lane per target, made when first needed and gone when empty."""

    def __init__(
        self,
        *,
        idle_per_target: int,
        idle_for: float,
        closing_for: float,
        gone_for: float,
        now: float,
        turns: Turns,
    ) -> None:
        self._idle_per_target = idle_per_target
        self._idle_for = idle_for
        self._closing_for = closing_for
        self._gone_for = gone_for
        self.turns = turns  # for answers that take long to read
        self.now = now  # kept by the site: a clock that costs no call
        self._lanes: dict[Destination, Lane] = {}
        self._open: set[TargetConnection] = set()
        self._closing: dict[TargetConnection, float] = {}  # until when, at the latest
        self._gone = asyncio.Event()

    def enter(self, destination: Destination, limit: int) -> Lane | None:
        """Count one exchange with `destination`; None, and not counted, when there are `limit` already."""
        lane = self._lanes.get(destination)
        if lane is None:
            lane = self._lanes[destination] = Lane(destination)
        if lane.busy >= limit:
            return None
        lane.busy += 1
        return lane

    def leave(self, lane: Lane) -> None:
        lane.busy -= 1
        if not lane.busy and not lane.open:
            self._forget_empty(lane)

    def take(self, lane: Lane, *, unused_for: float) -> TargetConnection | None:
        """The idle connection used last, if it was within `unused_for` seconds."""
        idle = lane.idle
        while idle and self.now - idle[-1].idle_since <= unused_for:
            connection = idle.pop()
            if connection.usable:
                return connection
        return None

    def put(self, connection: TargetConnection) -> None:
        if connection in self._closing:  # its pod is gone
            connection.abort()
            return
        idle = connection.lane.idle
        connection.idle_since = self.now
        idle.append(connection)
        if len(idle) > self._idle_per_target:
            idle.pop(0).abort()

    def forget(self, destination: Destination) -> None:
        """The pod is gone: its address may soon be another one's, and its link is cut without a word."""
        lane = self._lanes.get(destination)
        if lane is None:
            return
        for connection in lane.idle:
            connection.abort()
        lane.idle.clear()
        deadline = self.now + self._gone_for
        for connection in self._open:
            if connection.lane is lane:
                self._closing.setdefault(connection, deadline)

    async def connect(self, lane: Lane) -> TargetConnection:
        """A new connection; OSError when there is none to be had."""
        loop = asyncio.get_running_loop()
        destination = lane.destination
        address: tuple[str, int] | str
        if isinstance(destination, Target):
            family = socket.AF_INET6 if ":" in destination.address else socket.AF_INET
            address = destination.address, destination.port
        else:
            family, address = socket.AF_UNIX, str(destination.path)
        connected = socket.socket(family, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            if family != socket.AF_UNIX:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(connected, address)
        except BaseException:
            connected.close()
            raise
        connection = TargetConnection(self, lane)
        Channel(connected, connection, address)
        return connection

    def sweep(self) -> None:
        """End what idled too long, what does not get its last bytes sent, and what a gone pod began."""
        now = self.now
        for lane in self._lanes.values():
            idle = lane.idle
            while idle and now - idle[0].idle_since > self._idle_for:
                idle.pop(0).abort()
        for connection in [found for found, deadline in self._closing.items() if deadline < now]:
            connection.break_off()

    def opened(self, connection: TargetConnection) -> None:
        self._open.add(connection)
        connection.lane.open += 1
        self._gone.clear()

    def closing(self, connection: TargetConnection) -> None:
        """It ends when its last bytes are sent, which may not take forever."""
        if connection in self._open:
            self._closing[connection] = self.now + self._closing_for

    def lost(self, connection: TargetConnection) -> None:
        if connection not in self._open:
            return
        self._open.discard(connection)
        self._closing.pop(connection, None)
        lane = connection.lane
        lane.open -= 1
        if connection in lane.idle:
            lane.idle.remove(connection)
        if not lane.busy and not lane.open:
            self._forget_empty(lane)
        if not self._open:
            self._gone.set()

    @property
    def occupied(self) -> bool:
        return bool(self._open)

    async def aclose(self) -> None:
        """Cut everything, and wait until the event loop has let go of it."""
        for connection in list(self._open):
            connection.abort()
        if self._open:
            await self._gone.wait()

    def _forget_empty(self, lane: Lane) -> None:
        if self._lanes.get(lane.destination) is lane:
            del self._lanes[lane.destination]


def explain(error: OSError) -> Failure:
    """What a failed connect means."""
    if isinstance(error, TimeoutError):
        return Failure(Fault.TIMEOUT, "It did not take the connection in time.")
    if error.errno in (
        errno.EMFILE,
        errno.ENFILE,
        errno.EADDRNOTAVAIL,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EAGAIN,
    ):
        return Failure(Fault.LIMITED, "This host has no connection left for it.")
    return Failure(Fault.REFUSED, "Nothing takes connections there.")
