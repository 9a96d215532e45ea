"""The resource limits containers start with, within what this process may hand on."""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_OPEN_FILES: Final = 65536
"""File descriptors per process: a busy server's need; some programs close every possible one at start."""
MAX_PROCESSES: Final = 1_048_576
"""Counted by the kernel per user of the whole machine, so it must not be the pod's limit: see pids."""
CORE_SIZE: Final = 0
"""Bytes: no core dumps of strangers' programs on the host's disk."""
PID_MAX: Final = Path("/proc/sys/kernel/pid_max")


@dataclass(frozen=True, slots=True)
class RLimit:
    """A resource limit, soft and hard alike; `name` without `RLIMIT_`, in capitals."""

    name: str
    value: int


def clamp_rlimits(*, open_files: int, processes: int) -> tuple[RLimit, ...]:
    """The limits of a container whose maker has these hard limits itself.

    A runtime without CAP_SYS_RESOURCE cannot start a container with limits above its own.
    """
    return (
        RLimit("NOFILE", min(MAX_OPEN_FILES, open_files)),
        RLimit("NPROC", min(MAX_PROCESSES, processes)),
        RLimit("CORE", CORE_SIZE),
    )


def read_rlimits() -> tuple[RLimit, ...]:
    """Limits for containers made by this process or by a podman of the same standing."""
    processes = _hard(resource.RLIMIT_NPROC)
    with suppress(OSError, ValueError):
        # podman lowers its own process limit to pid_max when it starts
        processes = min(processes, int(PID_MAX.read_text()))
    return clamp_rlimits(open_files=_hard(resource.RLIMIT_NOFILE), processes=processes)


def _hard(which: int) -> int:
    hard = resource.getrlimit(which)[1]
    return MAX_PROCESSES if hard == resource.RLIM_INFINITY else hard
