"""Whether another pod fits on this machine."""

from __future__ import annotations

from typing import Final

MIN_FREE_DISK: Final = 512 * 1024 * 1024
"""Bytes that must be free before a pod is accepted: room for its image's layers, logs and the database."""
MIB: Final = 2**20


def find_shortage(
    *, available: int, total: int, fraction: float, coming: int, pod: int, free_disk: int
) -> str | None:
    """Why another pod of `pod` bytes would not fit; None when it would. All in bytes.

    `coming` is what uploads under way will take, `fraction` the share of `total` that pods may fill.
    """
    used = total - available + coming
    limit = fraction * total
    if used + pod > limit:
        return (
            f"memory: {used / MIB:.0f} MiB in use and {pod / MIB:.0f} MiB for the pod are more than"
            f" the {limit / MIB:.0f} MiB this host gives"
        )
    if free_disk < MIN_FREE_DISK:
        return f"disk: {free_disk / MIB:.0f} MiB free, {MIN_FREE_DISK / MIB:.0f} MiB needed"
    return None
