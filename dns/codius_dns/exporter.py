"""The metrics' own small HTTP server, for a collector on this machine; strangers never reach it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

MAX_REQUEST: Final = 4096  # bytes of a request's head
TIMEOUT: Final = 5.0  # seconds for one request and its answer
MAX_AT_ONCE: Final = 8  # connections; a collector needs one

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Exporter:
    """Answers `GET /metrics` with the text of the moment, one request per connection."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What asyncio calls for each connection."""
        self._open += 1
        try:
            if self._open <= MAX_AT_ONCE:
                async with asyncio.timeout(TIMEOUT):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever that was, it was no collector
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path != b"/metrics":
            return _response("404 Not Found", b"The metrics are at /metrics.\n")
        if method not in (b"GET", b"HEAD"):
            return _response(
                "405 Method Not Allowed", b"Only GET reads the metrics.\n", "Allow: GET, HEAD\r\n"
            )
        return _response("200 OK", self._render(), head_only=method == b"HEAD")


def _response(status: str, body: bytes, more: str = "", *, head_only: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n{more}"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if head_only else body)
