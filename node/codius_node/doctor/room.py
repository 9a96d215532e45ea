"""Disk and memory for pods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from codius_node.doctor.findings import Finding, bad, ok, warn
from codius_node.doctor.machine import Machine
from codius_node.hoststats import HostStats
from codius_node.model import MEMORY_SMALL

SCARCE_DISK: Final = 5 * 1024**3
"""Bytes free below which a few images fill the disk."""
NO_DISK: Final = 512 * 1024**2
"""Bytes free below which not even the database is safe."""
GRAPH_ROOT: Final = Path("/var/lib/containers/storage")
"""Where podman keeps images unless it is told otherwise."""


def check_disk(machine: Machine) -> Finding:
    graph_root = GRAPH_ROOT if machine.podman is None else machine.podman.graph_root
    places = [machine.settings.root] if machine.settings.noop else [machine.settings.root, graph_root]
    return judge_disk({place: HostStats(place).free_disk() for place in places})


def judge_disk(free: Mapping[Path, int]) -> Finding:
    """`free` in bytes, by place."""
    place = min(free, key=lambda path: free[path])
    shown = f"{_gib(free[place])} free at {place}"
    fix = "podman image prune --all, or a larger disk"
    if free[place] < NO_DISK:
        return bad("disk", f"only {shown}", fix)
    if free[place] < SCARCE_DISK:
        return warn("disk", f"only {shown}: a few images fill it", fix)
    return ok("disk", shown)


def check_memory(machine: Machine) -> Finding:
    available, total = HostStats(machine.settings.root, proc=machine.proc, cgroup=machine.cgroup).memory()
    return judge_memory(available, total, machine.settings.max_memory_fraction)


def judge_memory(available: int, total: int, fraction: float) -> Finding:
    """Room for pods in bytes: what the fraction allows, less what is in use."""
    room = int(total * fraction) - (total - available)
    shown = f"{_gib(available)} of {_gib(total)} available"
    if room < MEMORY_SMALL:
        return warn(
            "memory",
            f"{shown}: no room for a pod at CODIUS_MAX_MEMORY_FRACTION={fraction:g}",
            "free some memory, or raise CODIUS_MAX_MEMORY_FRACTION",
        )
    return ok("memory", f"{shown}: room for {room // MEMORY_SMALL} pods")


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"
