"""The access log's file, which rotates."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

KEPT_FILES: Final = 5  # the current one and those before it: access.log, access.log.1 … .4


class LogFile:
    """The file at `path`, for one writer: moved aside at `max_bytes`, opened anew when somebody moved it."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """OSError when the file cannot be opened."""
        self._path = path
        self._max_bytes = max_bytes
        self._complained = False
        self._file = self._open()

    def write(self, data: bytes | memoryview) -> bool:
        """Append whole lines; False, said once in our own log, when the disk does not take them."""
        try:
            self._rotate(len(data))
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            if not self._complained:
                logger.error("the access log %s takes no lines: %s", self._path, error)
            self._complained = True
            return False
        self._complained = False
        return True

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _rotate(self, size: int) -> None:
        ours = os.fstat(self._file)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            self._reopen()  # moved away by logrotate or by hand
        elif ours.st_size and ours.st_size + size > self._max_bytes:
            for number in range(KEPT_FILES - 1, 0, -1):
                younger = self._numbered(number - 1)
                if younger.exists():
                    younger.rename(self._numbered(number))
            self._reopen()

    def _reopen(self) -> None:
        fresh = self._open()  # before the old one is given up: a failure keeps it
        os.close(self._file)
        self._file = fresh

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
