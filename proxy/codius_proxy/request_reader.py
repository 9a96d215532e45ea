"""A visitor's bytes, in order: requests' heads, the bodies that belong to them, what waits behind."""

from __future__ import annotations

from typing import Final

from codius_proxy.bounds import DEFAULT, Bounds
from codius_proxy.chunked import ChunkedBody
from codius_proxy.request import MEMO_BLOCK_LENGTH, RequestHead, find_head_end, parse_request

_CR: Final = ord("\r")


class RequestReader:
    """Reads one request after the other from what it is given; no byte is ever in two of them."""

    __slots__ = (
        "_blank", "_bounds", "_chunks", "_last", "_last_bytes", "_left", "_scanned", "body_done", "chunked",
        "waiting",
    )  # fmt: skip

    def __init__(self, bounds: Bounds = DEFAULT) -> None:
        self._bounds = bounds
        self.waiting = b""  # received, and not yet its turn
        self.body_done = True  # of the current request; only then is there a next head to read
        self.chunked = False  # the current request's body has no length
        self._left = 0  # bytes of a body with Content-Length still to come
        self._chunks: ChunkedBody | None = None
        self._scanned = 0  # bytes known to hold no complete head
        self._blank = False  # an empty line before the request line was skipped
        self._last: RequestHead | None = None  # the last head, if it is worth to be remembered
        self._last_bytes = b""

    @property
    def left(self) -> int:
        """Bytes of a body with Content-Length still to come."""
        return self._left

    def receive(self, data: bytes) -> None:
        self.waiting = self.waiting + data if self.waiting else data

    def next_head(self) -> RequestHead | None:
        """The next request's head, None while it is not complete; HttpError when it can be none."""
        waiting = self.waiting
        if not waiting:
            return None
        if waiting[0] == _CR and not self._blank:  # one empty line is allowed, RFC 9112 section 2.2
            if len(waiting) == 1:
                return None
            if waiting.startswith(b"\r\n"):
                self._blank = True
                self.waiting = waiting[2:]
                self._scanned = 0
                return self.next_head()
        end = find_head_end(waiting, self._scanned, self._bounds)
        if end < 0:
            self._scanned = len(waiting)
            return None
        found = waiting[:end]
        head = self._last
        if head is None or found != self._last_bytes:  # programs ask the same again and again
            head = parse_request(found, self._bounds)
            if end <= MEMO_BLOCK_LENGTH:
                self._last, self._last_bytes = head, found
        self.waiting = waiting[end + 4 :]
        self._scanned = 0
        self._blank = False
        if head.chunked:
            self._chunks = ChunkedBody(line=self._bounds.chunk_line)
            self.chunked = True
            self.body_done = False
        else:
            self._chunks = None
            self.chunked = False
            self._left = head.length or 0
            self.body_done = not self._left
        return head

    def read_body(self) -> bytes:
        """What of the waiting bytes belongs to the current request's body; HttpError when it is malformed.

        Bytes that still wait before the body is done need another turn of the event loop.
        """
        data = self.waiting
        if self._chunks is not None:
            data, self.waiting = self._chunks.feed(data)
            self.body_done = self._chunks.done
            return data
        left = self._left
        if len(data) > left:
            self.waiting = data[left:]
            data = data[:left]
        else:
            self.waiting = b""
        self._left = left = left - len(data)
        self.body_done = not left
        return data
