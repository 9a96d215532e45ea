"""The last routes any worker knew: for a worker that is started while the node is away."""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from codius_proxy.routes import FeedError, RouteTable, Snapshot, parse

_HEADER: Final = struct.Struct("=II")  # bytes that follow, and their CRC-32: a writer may die half-way


class LastTable:
    """A piece of memory shared by the workers; made before they are forked, gone with the last of them."""

    def __init__(self) -> None:
        self._file = os.memfd_create("codius-routes")

    def save(self, snapshot: bytes) -> None:
        """Keep a message as `render_snapshot` makes it, instead of all that was kept before."""
        with self._locked():
            os.ftruncate(self._file, 0)
            self._write(_HEADER.pack(len(snapshot), zlib.crc32(snapshot)) + snapshot, 0)

    def note(self, message: bytes) -> None:
        """Keep a message as `render_add` and its like make it, behind what was kept before.

        At once, where a whole table takes its time: a route that is gone must not come back in a worker that
        is started in the next moment. Each worker notes what it hears, so most is here several times.
        """
        with self._locked():
            self._write(message, os.fstat(self._file).st_size)

    def load(self) -> Snapshot | None:
        """What was saved last, with what was noted since; None when nothing was."""
        with self._locked():
            kept = os.pread(self._file, os.fstat(self._file).st_size, 0)
        if len(kept) < _HEADER.size:
            return None
        size, checksum = _HEADER.unpack_from(kept)
        saved, noted = kept[_HEADER.size : _HEADER.size + size], kept[_HEADER.size + size :]
        if zlib.crc32(saved) != checksum:
            return None
        table = RouteTable()
        for line in (saved, *noted.splitlines()):
            try:
                message = parse(line)
            except FeedError:
                continue  # whoever wrote it died half-way; the others have noted it as well
            if table.known or isinstance(message, Snapshot):
                table.apply(message)
        return table.snapshot if table.known else None

    def _write(self, data: bytes, at: int) -> None:
        while data:
            written = os.pwrite(self._file, data, at)
            data, at = data[written:], at + written

    def close(self) -> None:
        os.close(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)  # let go by the kernel, however its holder ends
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
