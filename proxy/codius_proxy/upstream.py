"""The target side: one connection to a pod or to the host's API, and the pool that keeps idle ones."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Protocol, TypeAlias, cast

from codius_proxy.http1 import (
    Body,
    ChunkedBody,
    HttpError,
    ResponseHead,
    find_response_end,
    parse_response,
)
from codius_proxy.routes import Target

logger = logging.getLogger(__name__)

MAX_INTERIM: Final = 16  # 1xx answers to one request: more is a flood
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds


@dataclass(frozen=True, slots=True)
class Api:
    """The host's own public API, on a Unix socket."""

    path: Path


Destination: TypeAlias = Target | Api


class Fault(Enum):
    """How a target failed its visitor."""

    REFUSED = "nothing takes connections there"
    LIMITED = "this host has no connection left for it"
    TIMEOUT = "it did not take the connection in time"
    LOST = "the connection ended before the answer did"
    GARBAGE = "what it answered is not HTTP"


@dataclass(frozen=True, slots=True)
class Failure:
    """A fault with its details; `untouched` when not one byte of an answer had come."""

    fault: Fault
    detail: str
    untouched: bool = False


class Exchange(Protocol):
    """Who a target's answer is for: the visitor's connection."""

    def interim(self, head: ResponseHead) -> None: ...
    def response_started(self, head: ResponseHead, data: bytes, done: bool) -> None: ...
    def response_body(self, data: bytes, done: bool) -> None: ...
    def response_failed(self, failure: Failure) -> None: ...
    def tunnel_started(self, head: ResponseHead, data: bytes) -> None: ...
    def tunnel_data(self, data: bytes) -> None: ...
    def tunnel_eof(self) -> None: ...
    def tunnel_lost(self, clean: bool) -> None: ...
    def target_blocked(self, blocked: bool) -> None: ...


class _State(Enum):
    IDLE = "nothing was asked"
    HEAD = "waiting for the head of an answer"
    BODY = "an answer's body is coming"
    DONE = "the answer is complete"
    TUNNEL = "upgraded: bytes mean nothing to us"
    CLOSED = "over"


class TargetConnection(asyncio.Protocol):
    """One connection to a target; serves one exchange at a time."""

    __slots__ = (
        "_buffer",
        "_chunks",
        "_decode",
        "_interims",
        "_left",
        "_method",
        "_owner",
        "_pool",
        "_reading",
        "_received",
        "_reusable",
        "_state",
        "_transport",
        "_until_close",
        "_upgrade",
        "destination",
        "idle_since",
        "reused",
    )  # fmt: skip

    def __init__(self, pool: Pool, destination: Destination) -> None:
        self.destination = destination
        self.reused = False
        self.idle_since = 0.0
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._owner: Exchange | None = None
        self._state = _State.IDLE
        self._buffer = b""
        self._reading = True
        self._reusable = True

    @property
    def usable(self) -> bool:
        """Whether a request may be sent: its end may have been seen and not yet been reported."""
        return self._state is _State.IDLE and self._transport is not None and not self._transport.is_closing()

    # What the visitor's connection asks for.

    def start(
        self, owner: Exchange, payload: bytes, *, method: bytes, upgrade: bytes | None, decode: bool
    ) -> None:
        """Send a request's head and what there is of its body. `decode`: give content without chunks."""
        self._owner = owner
        self._method = method
        self._upgrade = upgrade
        self._decode = decode
        self._state = _State.HEAD
        self._received = False
        self._interims = 0
        self.write(payload)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_eof(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def hold(self, held: bool) -> None:
        """Stop or go on reading: the visitor is slower than the target."""
        transport = self._transport
        if held is not self._reading or transport is None or transport.is_closing():
            return
        self._reading = not held
        if held:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def release(self) -> None:
        """The exchange is over on both sides: keep the connection when nothing speaks against it."""
        self._owner = None
        if self._state is _State.DONE and self._reusable and self._transport is not None:
            self._state = _State.IDLE
            self.reused = True
            self.hold(False)
            if not self._transport.is_closing():
                self._pool.put(self)
                return
        self.abort()

    def close(self) -> None:
        """End after what was written has been sent: the end of a tunnel."""
        self._owner = None
        self._state = _State.CLOSED
        if self._transport is not None:
            self._pool.closing(self)
            self._transport.close()

    def abort(self) -> None:
        """End now: nobody wants the rest."""
        self._owner = None
        self._state = _State.CLOSED
        if self._transport is not None:
            self._transport.abort()

    def break_off(self) -> None:
        """End now, and let whoever waits for the rest know."""
        if self._transport is not None:
            self._transport.abort()

    # What the event loop tells us.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._state is _State.CLOSED:  # nobody waits for it any more
            self._transport.abort()
        else:
            self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            if self._state is _State.HEAD:
                self._received = True
                self._head(data)
            elif self._state is _State.BODY:
                self._body(data)
            elif self._state is _State.TUNNEL:
                if self._owner is not None:
                    self._owner.tunnel_data(data)
            elif self._state is _State.IDLE:
                # Nobody asked: whatever this is, it must not become the answer to the next request.
                logger.info("dropped a connection to %s: it spoke unasked", self.destination)
                self.abort()
            else:
                self._reusable = False
        except HttpError as error:
            self._fail(Fault.GARBAGE, error.reason)

    def eof_received(self) -> bool:
        if self._state is _State.TUNNEL and self._owner is not None:
            self._owner.tunnel_eof()
            return True
        if self._state is _State.BODY and self._until_close:
            self._state = _State.DONE
            if self._owner is not None:
                self._owner.response_body(b"", True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)
        state, owner = self._state, self._owner
        self._state, self._owner = _State.CLOSED, None
        if owner is None:
            return
        if state is _State.TUNNEL:
            owner.tunnel_lost(exc is None)
        elif state in (_State.HEAD, _State.BODY):
            what = "before it answered" if state is _State.HEAD else "in the middle of its answer"
            how = "closed the connection" if exc is None else "reset the connection"
            untouched = state is _State.HEAD and not self._received
            owner.response_failed(Failure(Fault.LOST, f"It {how} {what}.", untouched))

    def pause_writing(self) -> None:
        if self._owner is not None:
            self._owner.target_blocked(True)

    def resume_writing(self) -> None:
        if self._owner is not None:
            self._owner.target_blocked(False)

    # Reading an answer.

    def _head(self, data: bytes) -> None:
        owner = self._owner
        if owner is None:
            return
        buffer = self._buffer + data if self._buffer else data
        while True:
            end = find_response_end(buffer)
            if end < 0:
                self._buffer = buffer
                return
            head = parse_response(buffer[:end], method=self._method, upgrade=self._upgrade)
            buffer = buffer[end + 4 :]
            if head.status >= 200 or head.status == 101:
                break
            self._interims += 1
            if self._interims > MAX_INTERIM:
                raise HttpError(502, f"It sent more than {MAX_INTERIM} interim answers.")
            owner.interim(head)
        self._buffer = b""
        if head.status == 101:
            self._state = _State.TUNNEL
            self._reusable = False
            owner.tunnel_started(head, buffer)
            return
        self._reusable = head.reusable
        self._until_close = head.body is Body.UNTIL_CLOSE
        self._chunks = ChunkedBody(decode=self._decode) if head.body is Body.CHUNKED else None
        self._left = (head.length or 0) if head.body is Body.LENGTH else 0
        self._state = _State.DONE if head.body is Body.NONE else _State.BODY
        owner.response_started(head, *self._content(buffer))

    def _body(self, data: bytes) -> None:
        data, done = self._content(data)
        if self._owner is not None and (data or done):
            self._owner.response_body(data, done)

    def _content(self, data: bytes) -> tuple[bytes, bool]:
        """What of `data` belongs to the body, and whether it is complete now."""
        if self._state is _State.DONE:
            excess = data
            data = b""
        elif self._until_close:
            return data, False
        elif self._chunks is not None:
            data, excess = self._chunks.feed(data)
            if self._chunks.done:
                self._state = _State.DONE
        else:
            excess = data[self._left :]
            if excess:
                data = data[: self._left]
            self._left -= len(data)
            if not self._left:
                self._state = _State.DONE
        if excess:
            self._reusable = False
        return data, self._state is _State.DONE

    def _fail(self, fault: Fault, detail: str) -> None:
        owner = self._owner
        self.abort()
        if owner is not None:
            owner.response_failed(Failure(fault, detail))


class Pool:
    """Connections to all targets: the busy ones counted, the idle ones kept, last used first."""

    def __init__(
        self,
        *,
        idle_per_target: int,
        idle_for: float,
        closing_for: float,
        gone_for: float,
        clock: Callable[[], float],
    ) -> None:
        self._idle_per_target = idle_per_target
        self._idle_for = idle_for
        self._closing_for = closing_for
        self._gone_for = gone_for
        self._clock = clock
        self._idle: dict[Destination, list[TargetConnection]] = {}
        self._busy: dict[Destination, int] = {}
        self._open: set[TargetConnection] = set()
        self._closing: dict[TargetConnection, float] = {}  # until when, at the latest
        self._gone = asyncio.Event()

    def enter(self, destination: Destination, limit: int) -> bool:
        """Count one exchange with `destination`; False, and not counted, when there are `limit` already."""
        busy = self._busy.get(destination, 0)
        if busy >= limit:
            return False
        self._busy[destination] = busy + 1
        return True

    def leave(self, destination: Destination) -> None:
        busy = self._busy[destination] - 1
        if busy:
            self._busy[destination] = busy
        else:
            del self._busy[destination]

    def take(self, destination: Destination, *, unused_for: float) -> TargetConnection | None:
        """The idle connection used last, if it was within `unused_for` seconds."""
        idle = self._idle.get(destination)
        while idle and self._clock() - idle[-1].idle_since <= unused_for:
            connection = idle.pop()
            if not idle:
                del self._idle[destination]
            if connection.usable:
                return connection
        return None

    def put(self, connection: TargetConnection) -> None:
        if connection in self._closing:  # its pod is gone
            connection.abort()
            return
        idle = self._idle.setdefault(connection.destination, [])
        connection.idle_since = self._clock()
        idle.append(connection)
        if len(idle) > self._idle_per_target:
            idle.pop(0).abort()

    def forget(self, destination: Destination) -> None:
        """The pod is gone: its address may soon be another one's, and its link is cut without a word."""
        for connection in self._idle.pop(destination, ()):
            connection.abort()
        deadline = self._clock() + self._gone_for
        for connection in self._open:
            if connection.destination == destination:
                self._closing.setdefault(connection, deadline)

    async def connect(self, destination: Destination) -> TargetConnection:
        """A new connection; OSError when there is none to be had."""
        loop = asyncio.get_running_loop()
        connection = TargetConnection(self, destination)
        try:
            if isinstance(destination, Target):
                await loop.create_connection(lambda: connection, destination.address, destination.port)
            else:
                await loop.create_unix_connection(lambda: connection, str(destination.path))
        except asyncio.CancelledError:
            # It may have been made in the same moment; uvloop then closes it without connection_lost.
            connection.abort()
            self.lost(connection)
            raise
        return connection

    def sweep(self) -> None:
        """End what idled too long, what does not get its last bytes sent, and what a gone pod began."""
        now = self._clock()
        for destination, idle in list(self._idle.items()):
            while idle and now - idle[0].idle_since > self._idle_for:
                idle.pop(0).abort()
            if not idle:
                del self._idle[destination]
        for connection in [found for found, deadline in self._closing.items() if deadline < now]:
            connection.break_off()

    def opened(self, connection: TargetConnection) -> None:
        self._open.add(connection)
        self._gone.clear()

    def closing(self, connection: TargetConnection) -> None:
        self._closing[connection] = self._clock() + self._closing_for

    def lost(self, connection: TargetConnection) -> None:
        self._open.discard(connection)
        self._closing.pop(connection, None)
        idle = self._idle.get(connection.destination)
        if idle and connection in idle:
            idle.remove(connection)
            if not idle:
                del self._idle[connection.destination]
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


def reset(transport: asyncio.Transport) -> None:
    """End with a reset, so that the other side cannot take the end for a proper one."""
    found = transport.get_extra_info("socket")
    if found is not None and not transport.is_closing():
        cast(socket.socket, found).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
