"""The access log: what is known of one finished request, its line of JSON, and the file that rotates."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeAlias

logger = logging.getLogger(__name__)

MICRO: Final = 1_000_000
MAX_SHOWN: Final = 2048  # bytes of a request target in a line
SHARED: Final = 4096  # combinations of visitor, method, host and pod whose text is remembered: 2 MiB
KEPT_FILES: Final = 5  # the current one and those before it: access.log, access.log.1 … .4

# A plain tuple, the way it travels from a worker to the recorder.
Record: TypeAlias = tuple[
    int,  # when the request ended, in microseconds since the epoch
    int,  # microseconds from the end of its head to the end of its answer
    str,  # the visitor's address
    str,  # the visitor's scheme
    bytes,  # method; empty when no request could be read
    bytes,  # host, as the visitor wrote it
    bytes,  # target
    str,  # the pod's manifest hash, `api`, or nothing when it led nowhere
    int,  # status of the answer; 0: the connection ended before there was one
    int,  # bytes of the request's body, or through the tunnel
    int,  # bytes of the answer, with its head
    int,  # the request's number in its worker
    str,  # why it was refused; empty when its target answered
    str,  # how it ended
]

_quote = json.encoder.encode_basestring_ascii


def build_id(worker: str, number: int) -> str:
    """A request's id, as error pages and log lines show it."""
    return f"{worker}-{number:x}"


def render(records: Iterable[Record], worker: str) -> str:
    """Lines of JSON; in one loop with its names at hand, for this is most of what a request costs here."""
    quote, line, shared = _quote, _LINE, _shared
    at, clock = -1, ""
    lines: list[str] = []
    for (
        ended, took, address, scheme, method, host, target,
        pod, status, received, sent, number, refusal, end,
    ) in records:  # fmt: skip
        second = ended // MICRO
        if second != at:
            at, clock = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        shown = target if len(target) <= MAX_SHOWN else target[:MAX_SHOWN] + b"..."
        before, behind = shared(address, scheme, method, host, pod)
        lines.append(
            line
            % (
                clock, ended - second * MICRO, worker, number, before,
                quote(shown.decode("latin-1")), behind,
                status, received, sent, took // MICRO, took % MICRO, refusal, end,
            )
        )  # fmt: skip
    return "".join(lines)


_LINE: Final = (
    '{"time":"%s.%06dZ","id":"%s-%x"%s%s%s%d,"received":%d,"sent":%d'
    ',"seconds":%d.%06d,"refusal":"%s","end":"%s"}\n'
)


@lru_cache(maxsize=SHARED)
def _shared(address: str, scheme: str, method: bytes, host: bytes, pod: str) -> tuple[str, str]:
    """What is the same in many lines: before the target, and behind it up to the status."""
    return (
        f',"client":"{address}","scheme":"{scheme}","method":"{method.decode()}"'
        f',"host":{_quote(host.decode("latin-1"))},"target":',
        f',"pod":"{pod}","status":',
    )


class LogFile:
    """The file at `path`, for one writer: moved aside at `max_bytes`, opened anew when somebody moved it."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """OSError when the file cannot be opened."""
        self._path = path
        self._max_bytes = max_bytes
        self._complained = False
        self._file = self._open()

    def write(self, text: str) -> bool:
        """Append whole lines; False, said once in our own log, when the disk does not take them."""
        data = text.encode("ascii", "backslashreplace")
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
