"""What one pod's rules cost in a table of 1, 1000 and 5000 pods: `python -m tests.bench.policy`.

The kernel has the rules of that many pods and no links: `tests.bench.network` measures those.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from statistics import median
from typing import Final

from codius_netpolicy.kernel import Kernel
from codius_netpolicy.policy import Policy
from codius_netpolicy.traffic import Reason, Traffic, Volume
from codius_netpolicy.walls import Walls
from tests.harness.namespaces import HostNetwork, Namespace, missing_privilege

SIZES: Final = (1, 1_000, 5_000)
"""Pods in the table."""
ROUNDS: Final = 101
"""Pods admitted and evicted at each size, in turn."""
TARGET_GROWTH: Final = 2.0
"""Of the time to admit or evict a pod, from the fewest pods to the most: a list would grow 5000-fold."""
FIRST_POD: Final = 2


@dataclass(frozen=True, slots=True)
class Admission:
    """Medians, in milliseconds."""

    pods: int
    admit: float
    evict: float


@dataclass(frozen=True, slots=True)
class Measurement:
    admissions: Sequence[Admission]

    @property
    def admit_growth(self) -> float:
        return self.admissions[-1].admit / self.admissions[0].admit

    @property
    def evict_growth(self) -> float:
        return self.admissions[-1].evict / self.admissions[0].evict


def know_pods(policy: Policy, number: int) -> dict[IPv4Address, Traffic]:
    """So many pods, each of which sent, received, and was refused something."""
    return {
        policy.pool[FIRST_POD + index]: Traffic(
            Volume(1_000_000 + index, 10_000), Volume(9_000_000 + index, 10_000), {Reason.RANGE: 1 + index}
        )
        for index in range(number)
    }


async def measure(sizes: Sequence[int] = SIZES) -> Measurement:
    return Measurement(await asyncio.to_thread(_measure_admissions, sizes))


def _measure_admissions(sizes: Sequence[int]) -> list[Admission]:
    """Through one kept door to nftables each; a table of each size, and one pod in each in turn."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(HostNetwork()).host for _ in sizes]
        walls = [_raise_walls(host, size) for host, size in zip(hosts, sizes, strict=True)]
        for each in walls:
            stack.callback(each.close)
        admit: list[list[float]] = [[] for _ in sizes]
        evict: list[list[float]] = [[] for _ in sizes]
        for number in range(ROUNDS):
            for index, size in enumerate(sizes):
                address = walls[index].policy.pool[FIRST_POD + size + number]
                began = time.perf_counter()
                walls[index].admit(address, Traffic())
                admitted = time.perf_counter()
                walls[index].evict(address)
                evict[index].append(time.perf_counter() - admitted)
                admit[index].append(admitted - began)
        return [
            Admission(size, 1000 * median(admit[index]), 1000 * median(evict[index]))
            for index, size in enumerate(sizes)
        ]


def _raise_walls(host: Namespace, pods: int) -> Walls:
    def inside() -> Walls:
        walls = Walls(Policy())
        with Kernel() as kernel:
            walls.raise_both(kernel, know_pods(walls.policy, pods))
        return walls

    return host.call(inside)


def as_document(measurement: Measurement) -> dict[str, object]:
    """For `make bench`."""
    return {
        "unit": "ms",
        "rounds": ROUNDS,
        "pods": [
            {"pods": a.pods, "admit": round(a.admit, 3), "evict": round(a.evict, 3)}
            for a in measurement.admissions
        ],
        "admit_growth": round(measurement.admit_growth, 2),
        "evict_growth": round(measurement.evict_growth, 2),
        "target_growth": TARGET_GROWTH,
    }


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.bench.policy", description=__doc__).parse_args()
    if reason := missing_privilege():
        print(reason, file=sys.stderr)
        return 1
    print(json.dumps(as_document(asyncio.run(measure())), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
