"""A target's bytes, in order: interim heads, the answer's head, its body, and what is too much."""

from __future__ import annotations

from typing import Final

from codius_proxy.chunked import ChunkedBody
from codius_proxy.fields import HttpError
from codius_proxy.response import (
    BY_LENGTH,
    CHUNKED,
    NO_BODY,
    UNTIL_CLOSE,
    ResponseHead,
    find_response_end,
    parse_response,
    recall_response,
)

MAX_INTERIM: Final = 16  # 1xx answers to one request: more is a flood
_STRICT_END: Final = len(b"\r\n\r\n")


class ResponseReader:
    """Reads one answer after the other; `begin` says what the next one answers."""

    __slots__ = (
        "_chunks", "_decode", "_interims", "_left", "_method", "_scanned", "_until_close", "_upgrade",
        "clean", "done", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.waiting = b""
        self.done = True
        self.clean = True  # nothing came that no answer accounts for, and nobody asked to close
        self._chunks: ChunkedBody | None = None
        self._left = 0
        self._until_close = False
        self._scanned = 0  # bytes known to hold no complete head

    def begin(self, method: bytes, upgrade: bytes | None, *, decode: bool) -> None:
        """What the next answer is to. `decode`: give content without chunks, for HTTP/1.0."""
        self._method = method
        self._upgrade = upgrade
        self._decode = decode
        self._interims = 0
        self.clean = True
        self.done = False

    def receive(self, data: bytes) -> None:
        self.waiting = self.waiting + data if self.waiting else data

    def next_head(self) -> ResponseHead | None:
        """The next head, interim or final, None while it is not complete; HttpError 502."""
        waiting = self.waiting
        if not waiting:
            return None
        end = waiting.find(b"\r\n\r\n")
        begin = end + _STRICT_END
        head = recall_response(waiting[:end], self._method) if end > 0 else None
        if head is None:
            end, begin = find_response_end(waiting, self._scanned)
            if end < 0:
                self._scanned = len(waiting)
                return None
            head = parse_response(waiting[:end], method=self._method, upgrade=self._upgrade)
        self._scanned = 0
        self.waiting = waiting[begin:]
        self.clean = self.clean and head.reusable and begin - end == _STRICT_END
        if head.status < 200:
            if head.status == 101:
                return head
            self._interims += 1
            if self._interims > MAX_INTERIM:
                raise HttpError(502, f"It sent more than {MAX_INTERIM} interim answers.")
            return head
        body = head.body
        self._until_close = body is UNTIL_CLOSE
        self._chunks = ChunkedBody(decode=self._decode) if body is CHUNKED else None
        self._left = (head.length or 0) if body is BY_LENGTH else 0
        self.done = body is NO_BODY
        return head

    def read_body(self) -> bytes:
        """What of the waiting bytes belongs to the body; `done` when that was its end. HttpError.

        Bytes that still wait before that need another turn of the event loop.
        """
        data, self.waiting = self.waiting, b""
        if self._until_close:
            return data
        if self._chunks is not None:
            data, excess = self._chunks.feed(data)
            self.done = self._chunks.done
            if not self.done:
                self.waiting = excess
                return data
        else:
            left = self._left
            excess = data[left:]
            if excess:
                data = data[:left]
            self._left = left = left - len(data)
            self.done = not left
        if excess:
            self.clean = False
        return data

    def end(self) -> bool:
        """The connection ended: whether that is how this body ends."""
        if self._until_close and not self.done:
            self.done = True
            return True
        return False
