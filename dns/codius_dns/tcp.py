"""Questions over TCP (RFC 7766): several per connection, bounded in size, time and number."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from codius_dns.limits import network_of
from codius_dns.query import HEADER_SIZE
from codius_dns.responder import Responder, Transport

MAX_QUERY: Final = 4096  # bytes of one message: no honest question comes near
MAX_CONNECTIONS: Final = 128  # per worker; beyond that the longest silent one makes room
MAX_PER_NETWORK: Final = 16  # of these for one network, so that nobody alone can take the places of all
IDLE_TIMEOUT: Final = 10.0  # seconds without a complete question, "of the order of seconds" (section 6.2.3)
WRITE_BUFFER: Final = 16384  # bytes of answers not taken before we stop reading from that asker
STOP_TIMEOUT: Final = 2.0  # seconds for the last answers to leave when we stop


@dataclass(frozen=True, slots=True)
class TcpLimits:
    """How much of one process all askers over TCP may take together."""

    connections: int = MAX_CONNECTIONS
    per_network: int = MAX_PER_NETWORK
    idle_timeout: float = IDLE_TIMEOUT


class TcpService:
    """The connections of one worker, the longest silent first."""

    def __init__(self, responder: Responder, limits: TcpLimits) -> None:
        self.responder: Final = responder
        self.limits: Final = limits
        self._connections: dict[Connection, None] = {}
        self._networks: Counter[bytes] = Counter()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._connections)

    def connect(self) -> Connection:
        """What asyncio calls for each accepted connection."""
        return Connection(self)

    def add(self, connection: Connection) -> None:
        if self._networks[connection.network] >= self.limits.per_network:
            self._end_first(lambda other: other.network == connection.network)
        if len(self._connections) >= self.limits.connections:
            self._end_first(lambda _: True)
        self._connections[connection] = None
        self._networks[connection.network] += 1
        self._empty.clear()

    def _end_first(self, condition: Callable[[Connection], bool]) -> None:
        """End the longest silent of those."""
        longest_silent = next(filter(condition, self._connections))
        self.remove(longest_silent)
        longest_silent.end()

    def touch(self, connection: Connection) -> None:
        if connection in self._connections:
            del self._connections[connection]
            self._connections[connection] = None

    def remove(self, connection: Connection) -> None:
        if connection in self._connections:
            del self._connections[connection]
            self._networks -= Counter((connection.network,))  # those at zero go: no stranger leaves a trace
        if not self._connections:
            self._empty.set()

    async def aclose(self) -> None:
        """End every connection, those that take their last answers too slowly without them."""
        for connection in tuple(self._connections):
            connection.finish()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._empty.wait()
        except TimeoutError:
            for connection in tuple(self._connections):
                connection.abort()


class Connection(asyncio.BufferedProtocol):
    """One asker's connection. Its buffer holds one message at most, however fast it sends."""

    _transport: asyncio.Transport
    _timer: asyncio.TimerHandle
    _asker: bytes
    network: bytes  # the prefix of the asker's address that counts as one

    def __init__(self, service: TcpService) -> None:
        self._service = service
        self._buffer = bytearray(2 + MAX_QUERY)
        self._used = 0
        self._deadline = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio's own promise for streams
        self._transport = transport
        peer = transport.get_extra_info("peername")  # None when it has gone again already
        self._asker = ip_address(peer[0].partition("%")[0]).packed if peer else b""
        self.network = network_of(self._asker)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + self._service.limits.idle_timeout
        self._timer = loop.call_at(self._deadline, self._on_timer)
        self._service.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._service.remove(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._used :]

    def buffer_updated(self, nbytes: int) -> None:
        self._used += nbytes
        answers: list[bytes] = []
        understood = True
        at = 0
        while understood and self._used - at >= 2:
            size = int.from_bytes(self._buffer[at : at + 2])
            if not HEADER_SIZE <= size <= MAX_QUERY:
                understood = False  # what follows cannot be told apart any more
            elif self._used - at < 2 + size:
                break
            else:
                packet = bytes(self._buffer[at + 2 : at + 2 + size])
                at += 2 + size
                answer = self._service.responder.respond(packet, transport=Transport.TCP, asker=self._asker)
                if answer is None:
                    understood = False  # an answer sent to us: whoever does that wants nothing good
                else:
                    answers += (len(answer).to_bytes(2), answer)
        rest = self._used - at
        self._buffer[:rest] = self._buffer[at : self._used]
        self._used = rest
        if answers:
            self._deadline = asyncio.get_running_loop().time() + self._service.limits.idle_timeout
            self._service.touch(self)
            self._transport.write(b"".join(answers))
        if not understood:
            self.finish()

    def pause_writing(self) -> None:
        # Every complete message in the buffer has been answered by now: there is nothing else to hold back.
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def finish(self) -> None:
        """Close once the answers already written have left; the idle timer sees to it that they do."""
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def end(self) -> None:
        """Close now: politely when nothing is owed, else without the rest."""
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    def _on_timer(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._deadline:
            self._timer = loop.call_at(self._deadline, self._on_timer)
        else:
            self.end()
