"""A connection's bytes, in and out: what asyncio calls a transport, on the front door's event loop."""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections import deque
from itertools import islice
from typing import Final, TypeAlias

from codius_proxy.event_loop import running_poller
from codius_proxy.poller import BROKEN, READABLE, WRITABLE

READ: Final = 16 * 1024  # bytes taken at once from a connection that says little
BULK: Final = 256 * 1024  # and from one that has just filled that: fewer calls for a large body
HIGH_WATER: Final = 64 * 1024  # bytes waiting to be sent, above which the endpoint is asked to pause
LOW_WATER: Final = 16 * 1024  # and at which it may go on
MAX_BUFFERS: Final = 64  # given to the kernel at once
SMALL: Final = 4 * 1024  # bytes of waiting pieces that are joined: a piece alone costs 250 bytes

_OFF: Final = -1  # as events: the poller does not know us
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds

Peer: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str
"""A socket's address: of IPv4, of IPv6, of the Unix domain."""


class Endpoint:
    """Who hears from a channel: what asyncio calls a protocol, with the same calls in the same order."""

    __slots__ = ()

    def connection_made(self, channel: Channel) -> None: ...
    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool:
        """Whether our direction stays open."""
        return False

    def connection_lost(self, error: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...

    def writing_failed(self) -> bool:
        """The other side takes no more bytes: whether those that came from it before are still wanted."""
        return False


class Channel:
    """A stream socket that is connected, and the endpoint that hears from it.

    As with asyncio's transports, `connection_lost` comes once, in a later turn of the event loop, and
    nothing comes after it. Unlike there, what is written goes to the kernel at once.
    """

    __slots__ = (
        "_backlog", "_bulk", "_closing", "_ended", "_endpoint", "_error", "_events", "_file", "_full",
        "_hearing", "_loop", "_lost", "_poller", "_receive", "_send", "_shut", "_size", "_socket", "_waiting",
        "peer",
    )  # fmt: skip

    def __init__(
        self, connection: socket.socket, endpoint: Endpoint, peer: Peer, *, bulk: int = BULK
    ) -> None:
        """`connection` does not block; it is ours from now on. At most `bulk` bytes are taken at once."""
        self.peer = peer
        self._loop = asyncio.get_running_loop()
        self._poller = running_poller()
        self._socket = connection
        self._file = connection.fileno()
        self._receive = connection.recv
        self._send = connection.send
        self._bulk = bulk
        self._size = READ
        self._hearing = True  # what comes is read
        self._ended = False  # the other side has shut its direction
        self._shut = False  # ours is shut, or will be as soon as everything is sent
        self._closing = False
        self._lost = False  # connection_lost is on its way
        self._error: OSError | None = None  # that of a write, while what came before it is read
        self._full = False  # the endpoint was asked to pause
        self._backlog: deque[memoryview] = deque()
        self._waiting = 0  # bytes of it
        self._events = READABLE
        self._endpoint = endpoint
        self._poller.attach(self._file, self._handle, READABLE)
        try:
            endpoint.connection_made(self)
        except Exception as error:  # noqa: BLE001 - as in `_handle`
            self._fail(error)

    # What the endpoint asks for.

    def hand_to(self, endpoint: Endpoint) -> None:
        """Another one hears from now on."""
        self._endpoint = endpoint

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def waiting(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._waiting

    @property
    def half_closable(self) -> bool:
        """Whether `write_eof` is possible."""
        return True

    def count_unsent(self) -> int:
        """Bytes written that the other side has not acknowledged, ours and the kernel's."""
        if self._lost:
            return 0
        queued = array.array("i", [0])
        try:
            fcntl.ioctl(self._file, termios.TIOCOUTQ, queued)
        except OSError:
            return self._waiting
        return self._waiting + queued[0]

    def pause_reading(self) -> None:
        self._hearing = False  # the poller is told when something comes nevertheless: most pauses are short

    def resume_reading(self) -> None:
        if self._ended or self._closing:
            return
        self._hearing = True
        if self._events == _OFF or not self._events & READABLE:
            self._watch(max(self._events, 0) | READABLE)

    def write(self, data: bytes) -> None:
        if self._waiting:
            self._keep(memoryview(data))
            return
        if self._closing or self._shut or not data:
            return
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._stop_writing(error)
            return
        if sent != len(data):
            self._keep(memoryview(data)[sent:])

    def write_eof(self) -> None:
        """No more is written; the other direction goes on."""
        if self._shut or self._closing:
            return
        self._shut = True
        if not self._waiting:
            self._shut_down()

    def close(self) -> None:
        """End after what was written has been sent."""
        if self._closing:
            return
        self._closing = True
        self._hearing = False
        if self._waiting:
            self._watch(WRITABLE)
        else:
            self._part()

    def abort(self) -> None:
        """End now."""
        self._lose(None)

    def reset(self) -> None:
        """End now, so that the other side cannot take the end for a proper one."""
        if not self._lost:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._lose(None)

    # What the poller tells us.

    def _handle(self, events: int) -> None:
        try:
            if events != WRITABLE:
                if self._hearing:
                    self._read()
                elif events & BROKEN:
                    self._hang_up()
                else:
                    self._watch(self._events & ~READABLE)
            if self._waiting and events != READABLE:  # a break is also told by the attempt to send
                self._flush()
        except Exception as error:  # noqa: BLE001 - whatever went wrong is the end of this connection only
            self._fail(error)

    def _read(self) -> None:
        data = self._take()
        if data:
            self._endpoint.data_received(data)
        elif data is not None:
            self._end()

    def _take(self) -> bytes | None:
        """What has come; nothing at its end; None when there is nothing to be had."""
        size = self._size
        try:
            data = self._receive(size)
        except BlockingIOError:
            return None
        except OSError as error:
            self._lose(error)
            return None
        if len(data) == size:
            self._size = self._bulk
        elif size == self._bulk and len(data) < READ:
            self._size = READ
        return data

    def _end(self) -> None:
        """The other side says no more."""
        if self._error is not None:
            self._lose(self._error)
            return
        self._ended = True
        self._hearing = False
        if not self._endpoint.eof_received():
            self.close()

    def _hang_up(self) -> None:
        """It hung up or broke while nobody wanted to read: what it said before may still be asked for."""
        if self._ended or self._closing:
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._lose(OSError(number, os.strerror(number)) if number else None)
        elif self._events != _OFF:
            self._poller.detach(self._file)  # else it would be said again and again
            self._events = _OFF

    def _flush(self) -> None:
        """Send on: the kernel has room again."""
        backlog = self._backlog
        try:
            sent = self._socket.sendmsg(list(islice(backlog, MAX_BUFFERS)))
        except BlockingIOError:
            return
        except OSError as error:
            self._stop_writing(error)
            return
        self._waiting -= sent
        while sent:
            first = backlog[0]
            if sent < len(first):
                backlog[0] = first[sent:]
                break
            sent -= len(first)
            backlog.popleft()
        if not self._waiting:
            self._watch(self._events & ~WRITABLE)
            if self._closing:
                self._part()
            elif self._shut:
                self._shut_down()
        if self._full and self._waiting <= LOW_WATER:
            self._full = False
            self._endpoint.resume_writing()

    # On the way.

    def _keep(self, data: memoryview) -> None:
        """It has to wait until the kernel has room."""
        if self._closing or self._shut or not data:
            return
        if not self._waiting:
            self._watch(max(self._events, 0) | WRITABLE)
        backlog = self._backlog
        self._waiting += len(data)
        if backlog and len(backlog[-1]) + len(data) <= SMALL:
            data = memoryview(b"".join((backlog.pop(), data)))
        backlog.append(data)
        if self._waiting > HIGH_WATER and not self._full:
            self._full = True
            self._endpoint.pause_writing()

    def _stop_writing(self, error: OSError) -> None:
        """A write failed. Linux keeps what came before a reset, and it may be all that is waited for."""
        over = self._ended or self._closing or not isinstance(error, ConnectionError)
        if over or not self._endpoint.writing_failed():
            self._lose(error)
            return
        self._shut = True
        self._backlog.clear()
        self._waiting = 0
        # The kernel tells of a reset once, and of an end from then on. EPIPE: the end had come before it.
        if not isinstance(error, BrokenPipeError):
            self._error = error
        if self._events != _OFF:
            self._watch(self._events & ~WRITABLE)
        if self._full:
            self._full = False
            self._endpoint.resume_writing()

    def _watch(self, events: int) -> None:
        if self._events == _OFF:
            self._poller.attach(self._file, self._handle, events)
        elif events != self._events:
            self._poller.adjust(self._file, events)
        self._events = events

    def _shut_down(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._lose(error)

    def _part(self) -> None:
        """Everything is sent, and we are to close."""
        self._lose(None)

    def _fail(self, error: Exception) -> None:
        """The endpoint did: a mistake of ours."""
        self._loop.call_exception_handler({"message": "a connection failed", "exception": error})
        self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._hearing = False
        self._backlog.clear()
        self._waiting = 0
        if self._events != _OFF:
            self._poller.detach(self._file)
            self._events = _OFF
        self._loop.call_soon(self._finish, error)

    def _finish(self, error: Exception | None) -> None:
        endpoint, self._endpoint = self._endpoint, _NOBODY  # they know each other: the cycle ends here
        try:
            endpoint.connection_lost(error)
        finally:
            self._socket.close()


_NOBODY: Final = Endpoint()
