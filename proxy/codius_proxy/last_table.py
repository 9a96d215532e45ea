"""The last routes any worker knew: for a worker that is started while the node is away."""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from codius_proxy.routes import FeedError, Snapshot, parse

_HEADER: Final = struct.Struct("=II")  # bytes that follow, and their CRC-32: a writer may die half-way


class LastTable:
    """A piece of memory shared by the workers; made before they are forked, gone with the last of them."""

    def __init__(self) -> None:
        self._file = os.memfd_create("codius-routes")

    def save(self, snapshot: bytes) -> None:
        """Keep a message as `render_snapshot` makes it."""
        with self._locked():
            data = _HEADER.pack(len(snapshot), zlib.crc32(snapshot)) + snapshot
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], written)

    def load(self) -> Snapshot | None:
        """What was saved last; None when nothing was."""
        with self._locked():
            header = os.pread(self._file, _HEADER.size, 0)
            if len(header) < _HEADER.size:
                return None
            size, checksum = _HEADER.unpack(header)
            saved = os.pread(self._file, size, _HEADER.size)
        if zlib.crc32(saved) != checksum:
            return None
        try:
            message = parse(saved)
        except FeedError:
            return None
        return message if isinstance(message, Snapshot) else None

    def close(self) -> None:
        os.close(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)  # let go by the kernel, however its holder ends
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
