"""How much of one message of a visitor's is read: a frozen value, handed to whoever reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Bounds:
    """More than this is answered 414, 431 or 400, and the connection ends."""

    head: int = 32 * 1024  # bytes of a request's head; browsers stay below 16 KiB
    fields: int = 128  # header lines of a request; browsers send two dozen
    line: int = 16 * 1024  # bytes of one line of it: of the request target, or of a header line
    chunk_line: int = 256  # bytes of a chunk's size with its extensions, which nobody is known to use


# What may be remembered (`request.remembered_blocks`) is within every bound that can be set: so no memory of
# what was read has to know the bounds. The settings end here; MEMO_BLOCK_LENGTH is not above LEAST.line.
LEAST: Final = Bounds(head=4096, fields=32, line=1024, chunk_line=32)
MOST: Final = Bounds(head=1024 * 1024, fields=4096, line=1024 * 1024, chunk_line=16 * 1024)
DEFAULT: Final = Bounds()
