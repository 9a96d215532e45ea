"""The machine's own figures: memory, disk, load, uptime. The door to /proc and /sys."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NO_LIMIT: Final = 2**60
"""Bytes. cgroup v1 writes "no limit" as a number near 2^63; nobody has an exbibyte of memory."""

_MEMINFO_LINE: Final = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes; `available` is what new work can have without swapping."""

    available: int
    total: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a control group may use and does use, in bytes; reclaimable page cache is not counted as used."""

    limit: int
    used: int


def parse_meminfo(text: str) -> Memory:
    """/proc/meminfo (proc(5)), which counts in KiB and writes kB; ValueError when a line is missing."""
    figures = {name: int(kib) * 1024 for name, kib in _MEMINFO_LINE.findall(text)}
    try:
        total = figures["MemTotal"]
        # kernels before 3.14 have no MemAvailable
        available = figures["MemAvailable"] if "MemAvailable" in figures else figures["MemFree"]
    except KeyError as error:
        raise ValueError(f"/proc/meminfo has no line {error}") from error
    return Memory(min(available, total), total)


def parse_allowance(limit: str, usage: str, stat: str) -> Allowance | None:
    """The memory files of a cgroup, version 1 or 2; None when there is no limit."""
    if not limit.strip().isdigit() or int(limit) >= NO_LIMIT:
        return None  # version 2 writes `max`
    counters = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    reclaimable = int(counters.get("total_inactive_file", counters.get("inactive_file", "0")))
    return Allowance(int(limit), max(int(usage) - reclaimable, 0))


def constrain(memory: Memory, allowance: Allowance | None) -> Memory:
    """The machine's memory, or the group's where that is less."""
    if allowance is None or allowance.limit >= memory.total:
        return memory
    left = max(allowance.limit - allowance.used, 0)
    return Memory(min(memory.available, left), allowance.limit)


def parse_uptime(text: str) -> float:
    """Seconds since boot from /proc/uptime."""
    return float(text.split(maxsplit=1)[0])


def parse_load(text: str) -> float:
    """The one-minute average from /proc/loadavg."""
    return float(text.split(maxsplit=1)[0])


class HostStats:
    """The machine, read afresh at every question; a few microseconds each, no awaiting needed.

    Only the group at the root of what is visible counts: a node inside a container shares its limit with
    the pods it starts, while a limit on the node's own systemd unit says nothing about its pods.
    """

    def __init__(
        self, disk: Path, *, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
    ) -> None:
        self._disk = disk
        self._proc = proc
        self._cgroup = cgroup

    def memory(self) -> tuple[int, int]:
        """Available and total memory, in bytes."""
        memory = constrain(parse_meminfo((self._proc / "meminfo").read_text("ascii")), self._allowance())
        return memory.available, memory.total

    def uptime(self) -> float:
        """Seconds since the machine's boot."""
        return parse_uptime((self._proc / "uptime").read_text("ascii"))

    def load(self) -> float:
        """Processes ready to run, averaged over a minute."""
        return parse_load((self._proc / "loadavg").read_text("ascii"))

    def free_disk(self) -> int:
        """Bytes an unprivileged writer could still use where the node keeps its data."""
        path = self._disk
        while not path.exists() and path != path.parent:
            path = path.parent  # before the first start the directory is not there yet
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize

    def _allowance(self) -> Allowance | None:
        v1 = self._cgroup / "memory"
        for root, limit, usage in (
            (self._cgroup, "memory.max", "memory.current"),
            (v1, "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            try:
                return parse_allowance(
                    (root / limit).read_text("ascii"),
                    (root / usage).read_text("ascii"),
                    (root / "memory.stat").read_text("ascii"),
                )
            except (OSError, ValueError):
                continue  # not this version, or the root group of a machine, which has no such files
        return None
