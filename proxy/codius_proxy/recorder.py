"""The recorder: one process that writes what the workers post into the access log, and shows the sums.

It is the only writer of the log and the only one that sums over workers, so neither needs a lock, a worker
never waits for a disk, and a worker that ends takes no counter with it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Final

from codius_proxy import metrics
from codius_proxy.log_file import LogFile
from codius_proxy.metrics import Metrics
from codius_proxy.outbox import MAX_MESSAGE, unpack

MAX_READS: Final = 16  # messages read before the scraper of the metrics gets its turn
SCRAPE_TIMEOUT: Final = 5.0  # seconds for a scraper to say what it wants, and to read it
MAX_SCRAPE_HEAD: Final = 8 * 1024  # bytes


class Recorder:
    """The recorder's side: messages in, log lines and sums out."""

    def __init__(self, log: LogFile | None) -> None:
        self.metrics = Metrics()
        self._log = log
        self._connections: dict[int, int] = {}  # open now, by process id
        self.buffer = memoryview(bytearray(MAX_MESSAGE))

    def take(self, data: memoryview) -> None:
        """Write and add up what a worker sent."""
        message, lines = unpack(data)
        self._connections[message.worker] = message.connections
        self.metrics.count_accepted(message.accepted)
        self.metrics.count_turned_away(message.turned_away)
        self.metrics.count_lost(message.dropped)
        for sums in message.sums:
            self.metrics.add(sums)
        if self._log is not None and lines and not self._log.write(lines):
            self.metrics.count_lost(message.requests)

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
