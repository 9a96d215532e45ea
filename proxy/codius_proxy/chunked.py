"""Chunked bodies: their framing checked as they go by, and made for content without a length."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from codius_proxy.bounds import DEFAULT
from codius_proxy.fields import (
    CLAIMS,
    FIELD,
    NOT_IN_TRAILERS,
    TOKEN,
    HttpError,
    alike,
    shown,
    why_no_field,
)

MAX_CHUNK_DIGITS: Final = 15  # hexadecimal: below 2**63
# Bytes of chunk extensions that a body's data have not made up for yet, in however many chunks: they have to
# be read, and mean nothing (RFC 9112 section 7.1.1).
MAX_EXTENSIONS: Final = 8 * 1024
MAX_TRAILER: Final = 8 * 1024  # bytes of all fields after a chunked body
# Lines read at once, some 30 µs of work: 256 KiB, which is what is taken from a connection at once, may be
# chunks of one byte, and others must not wait for 90,000 lines.
MAX_LINES: Final = 128
LAST_CHUNK: Final = b"0\r\n\r\n"

_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t \x21-\x7e])*"'
_CHUNK_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]++)(?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + _QUOTED + rb"))?)*"
)


class _Chunk(Enum):
    """Where in a chunked body the next byte belongs."""

    SIZE = "a chunk size"
    DATA = "a chunk's data"
    DATA_END = "the data of a chunk"
    TRAILER = "the trailer"


class ChunkedBody:
    """A chunked body going by: checks its framing and knows where it ends, RFC 9112 section 7.1."""

    __slots__ = ("_decode", "_extensions", "_left", "_longest", "_pending", "_state", "_trailer", "done")

    def __init__(self, *, decode: bool = False, line: int = DEFAULT.chunk_line) -> None:
        """`decode`: give out the content only, for a reader that knows no chunks (HTTP/1.0).

        `line` is how many bytes a chunk's size may have with its extensions.
        """
        self.done = False
        self._longest = line
        self._decode = decode
        self._state = _Chunk.SIZE
        self._left = 0  # bytes of the current chunk's data still to come
        self._extensions = 0  # bytes of chunk extensions that no data made up for
        self._pending = b""  # an incomplete line: nothing is passed on before it was checked
        self._trailer = 0  # bytes of trailer fields so far

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What may be passed on, and what is left; HttpError 400 for bad framing.

        Left is what came after the body's end. Before its end, it is what came after `MAX_LINES` lines, and
        has to be fed again, in another turn of the event loop.
        """
        buffer = self._pending + data if self._pending else data
        self._pending = b""
        size = len(buffer)
        position = 0
        lines = MAX_LINES
        content: list[bytes] = []
        while position < size and not self.done:
            if self._state is _Chunk.DATA:
                taken = min(self._left, size - position)
                if self._decode:
                    content.append(buffer[position : position + taken])
                position += taken
                self._left -= taken
                if not self._left:
                    self._state = _Chunk.DATA_END
                continue
            if not lines:
                break
            lines -= 1
            line_end = self._line_end(buffer, position)
            if line_end < 0:
                self._pending = buffer[position:]
                size = position
                break
            self._line(buffer[position:line_end])
            position = line_end + 2
        passed = b"".join(content) if self._decode else buffer[:position]
        return passed, buffer[position:size]

    def _line_end(self, buffer: bytes, position: int) -> int:
        """Where the line at `position` ends, -1 while its CR LF has not arrived."""
        state = self._state
        limit = self._longest if state is _Chunk.SIZE else 0 if state is _Chunk.DATA_END else MAX_TRAILER
        end = buffer.find(b"\r\n", position, position + limit + 2)
        if end < 0:
            line = buffer[position:]
            # `limit` bytes and the CR may be there already; anything else is too much.
            if len(line.removesuffix(b"\r")) > limit or b"\n" in line or b"\r" in line[:-1]:
                raise HttpError(
                    400, f"A chunked body is broken: {self._state.value} does not end where it must."
                )
        return end

    def _line(self, line: bytes) -> None:
        if self._state is _Chunk.SIZE:
            match = _CHUNK_LINE.fullmatch(line)
            if match is None or len(match[1]) > MAX_CHUNK_DIGITS:
                raise HttpError(400, f"A chunked body is broken: {shown(line)} is no chunk size.")
            self._left = int(match[1], 16)
            extension = len(line) - len(match[1])
            if extension or self._extensions:
                self._extensions = max(0, self._extensions + extension - self._left)
                if self._extensions > MAX_EXTENSIONS:
                    raise HttpError(400, "A chunked body has more chunk extensions than data.")
            self._state = _Chunk.DATA if self._left else _Chunk.TRAILER
        elif self._state is _Chunk.DATA_END:
            self._state = _Chunk.SIZE
        elif not line:
            self.done = True
        else:
            self._trailer += len(line) + 2
            if self._trailer > MAX_TRAILER:
                raise HttpError(400, f"The trailer of a chunked body is longer than {MAX_TRAILER} bytes.")
            match = FIELD.fullmatch(line)
            if match is None:
                raise HttpError(400, why_no_field(line))
            name = alike(match[1])
            # A pod that merges trailers into its header would take these for ours (RFC 9110 section 6.5.1).
            if name in NOT_IN_TRAILERS or name.startswith(CLAIMS):
                raise HttpError(400, f"The field {name.decode()} is not allowed in a trailer.")


def encode_chunk(data: bytes) -> bytes:
    """One chunk; nothing for no data, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
