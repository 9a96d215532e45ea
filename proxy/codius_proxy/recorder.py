"""What becomes of finished requests: workers post them in batches, one process writes the log and counts.

The recorder is the only writer of the access log and the only one that sums, so neither needs a lock, a
worker never waits for a disk, and a worker that ends takes no counter with it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import marshal
import os
import socket
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from codius_proxy import access_log, metrics
from codius_proxy.access_log import MAX_SHOWN, MICRO, LogFile, Record
from codius_proxy.authority import MAX_AUTHORITY
from codius_proxy.metrics import Metrics
from codius_proxy.visit import End, Visit

logger = logging.getLogger(__name__)

BATCH: Final = 512  # requests of one message: some 30 kB
MAX_KEPT: Final = 4096  # requests a worker keeps while the recorder is behind; more are counted and dropped
MAX_MESSAGE: Final = 128 * 1024  # bytes; a batch of long targets is cut in two until it fits
SEND_BUFFER: Final = 1024 * 1024  # bytes asked for between workers and recorder; the kernel may give less
MAX_READS: Final = 16  # messages read before the scraper of the metrics gets its turn
LAST_WORDS: Final = 1.0  # seconds for a recorder that is behind to take what a worker says at its end
SCRAPE_TIMEOUT: Final = 5.0  # seconds for a scraper to say what it wants, and to read it
MAX_SCRAPE_HEAD: Final = 8 * 1024  # bytes
FORMAT: Final = 2  # of marshal: the last one that does not look for objects it has seen

_LATER: Final = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))  # no room now; there will be

Message: TypeAlias = tuple[
    int,  # process id of the worker
    str,  # the worker's name, the first part of its requests' ids
    int,  # connections open now
    int,  # connections accepted since the last message
    dict[str, int],  # connections ended without an answer since then, by reason
    int,  # records dropped since the last message
    list[Record],
]


def pair() -> tuple[socket.socket, socket.socket]:
    """The workers' end and the recorder's: whole messages, in order, none lost once it was taken."""
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    sending.setblocking(False)
    receiving.setblocking(False)
    return sending, receiving


class Outbox:
    """A worker's side: an append for each request, a message now and then."""

    def __init__(self, sending: socket.socket, worker: str) -> None:
        """`worker` is the first part of the ids of its requests."""
        self.connections: Callable[[], int] = lambda: 0  # counts those open now
        self._worker = worker
        self._accepted = 0  # connections, since the last message
        self._turned_away: dict[str, int] = {}
        self._sending = sending
        self._visits: list[Visit] = []
        self._records: list[Record] = []  # which a recorder that is behind has not taken
        self._dropped = 0
        self._told = 0  # the number of connections of the last message

    def visited(self, visit: Visit) -> None:
        self._visits.append(visit)
        if len(self._visits) == BATCH:
            self.flush()

    def connected(self) -> None:
        self._accepted += 1

    def turned_away(self, reason: str) -> None:
        self._turned_away[reason] = self._turned_away.get(reason, 0) + 1

    def flush(self) -> None:
        """Send what there is; what the recorder has no room for waits, the oldest being dropped first."""
        records = self._records
        if self._visits:
            # The clocks may have been set since: the wall's time is asked each time.
            offset = time.time() - time.monotonic()
            records += [_record(visit, offset) for visit in self._visits]
            self._visits.clear()
        elif not (records or self._news or self._told != self.connections()):
            return
        sent = 0
        while True:
            batch = records[sent : sent + BATCH]
            taken = self._send(batch)
            sent += taken
            if taken < len(batch) or sent == len(records):
                break
        del records[:sent]
        excess = len(records) - MAX_KEPT
        if excess > 0:
            del records[:excess]
            self._dropped += excess

    async def aclose(self) -> None:
        """Send the rest; no request is left out because the recorder was busy at that moment."""
        deadline = asyncio.get_running_loop().time() + LAST_WORDS
        self.flush()
        while self._records and await self._has_room(deadline):
            self.flush()

    async def _has_room(self, deadline: float) -> bool:
        """Whether the recorder takes something more before `deadline`, in seconds of the loop's clock."""
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        loop.add_writer(self._sending, room.set)
        try:
            async with asyncio.timeout_at(deadline):
                await room.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_writer(self._sending)
        return room.is_set()

    @property
    def _news(self) -> bool:
        return bool(self._accepted or self._dropped or self._turned_away)

    def _send(self, records: list[Record]) -> int:
        """How many of the records went out."""
        connections = self.connections()
        message: Message = (
            os.getpid(), self._worker, connections, self._accepted, self._turned_away, self._dropped, records
        )  # fmt: skip
        data = marshal.dumps(message, FORMAT)
        if len(data) > MAX_MESSAGE and len(records) > 1:
            middle = len(records) // 2
            taken = self._send(records[:middle])
            return taken + self._send(records[middle:]) if taken == middle else taken
        try:
            self._sending.send(data)
        except OSError as error:
            if error.errno in _LATER:
                return 0
            logger.warning("the recorder did not take %d records: %s", len(records), error)
            self._dropped += len(records)
            return len(records)
        self._accepted = self._dropped = 0
        self._turned_away = {}
        self._told = connections
        return len(records)


def _record(visit: Visit, offset: float) -> Record:
    method = host = target = b""
    request = visit.request
    if request is not None:
        method = request.method
        # What a stranger makes long is cut, so that what is kept is bounded; render says that it was.
        target, host = request.target[: MAX_SHOWN + 1], request.host[: MAX_AUTHORITY + 1]
    end = visit.end
    return (
        int((visit.started + visit.seconds + offset) * MICRO), int(visit.seconds * MICRO),
        visit.visitor.address, visit.visitor.scheme, method, host, target, visit.pod, visit.status,
        visit.received, visit.sent, visit.number, visit.reason,
        "answered" if end is _ANSWERED else end.name.lower(),
    )  # fmt: skip


_ANSWERED: Final = End.ANSWERED  # nearly always; an enum's name takes its time


class Recorder:
    """The recorder's side: messages in, log lines and sums out."""

    def __init__(self, log: LogFile | None) -> None:
        self.metrics = Metrics()
        self._log = log
        self._connections: dict[int, int] = {}  # open now, by process id
        self.buffer = memoryview(bytearray(2 * MAX_MESSAGE))

    def take(self, message: bytes | memoryview) -> None:
        """Log and count what a worker sent."""
        found: Message = marshal.loads(message)  # noqa: S302 - our own
        pid, worker, connections, accepted, turned_away, dropped, records = found
        self._connections[pid] = connections
        self.metrics.count_accepted(accepted)
        self.metrics.count_turned_away(turned_away)
        self.metrics.count_lost(dropped)
        self.metrics.count(records)
        if self._log is not None and records and not self._log.write(access_log.render(records, worker)):
            self.metrics.count_lost(len(records))

    def render_metrics(self) -> str:
        for pid in [found for found in self._connections if not _alive(found)]:
            del self._connections[pid]
        return self.metrics.render(self._connections)


async def serve(
    recorder: Recorder, receiving: socket.socket, scrapes: socket.socket | None, stop: asyncio.Event
) -> None:
    """Take messages, and show the metrics to whoever connects to `scrapes`, until `stop`."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        _read(receiving, recorder, MAX_READS)

    async def scraped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SCRAPE_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head, recorder))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    loop.add_reader(receiving, readable)
    server = (
        await asyncio.start_server(scraped, sock=scrapes, limit=MAX_SCRAPE_HEAD)
        if scrapes is not None
        else None
    )
    try:
        await stop.wait()
    finally:
        if server is not None:
            server.close()
        loop.remove_reader(receiving)
        while _read(receiving, recorder, MAX_READS):
            pass  # the last words of workers that ended before us


def _read(receiving: socket.socket, recorder: Recorder, most: int) -> bool:
    """Take at most that many messages; whether there may be more."""
    for _ in range(most):
        try:
            size = receiving.recv_into(recorder.buffer)
        except BlockingIOError:
            return False
        recorder.take(recorder.buffer[:size])
    return True


def _answer(head: bytes, recorder: Recorder) -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if path != b"/metrics":
        status, kind, body = "404 Not Found", "text/plain", "The metrics are at /metrics.\n"
    elif method not in (b"GET", b"HEAD"):
        status, kind, body = "405 Method Not Allowed", "text/plain", "Only GET is answered here.\n"
    else:
        status, kind, body = "200 OK", metrics.CONTENT_TYPE, recorder.render_metrics()
    content = body.encode()
    lines = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\nConnection: close"
    )
    return lines.encode() + b"\r\n\r\n" + (b"" if method == b"HEAD" else content)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
