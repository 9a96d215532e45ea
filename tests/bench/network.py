"""What one pod's network costs with 1, 100 and 500 pods already there: `python -m tests.bench.network`.

In namespaces of its own. Times are of a machine that does other things too: compare them with each other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from codius_netpolicy.network import PodNetwork
from codius_netpolicy.traffic import NO_TRAFFIC
from tests.harness.namespaces import HostNetwork, Namespace, missing_privilege

SIZES: Final = (1, 100, 500)
"""Pods that are there already when the measured ones come."""
ROUNDS: Final = 21
"""Pods attached and detached at each size."""
FIRST_POD: Final = 2


@dataclass(frozen=True, slots=True)
class Measurement:
    """Medians, in milliseconds."""

    pods: int
    attach: float
    detach: float
    restart: float
    """A start that adopts all of them."""


async def measure(sizes: Sequence[int] = SIZES, rounds: int = ROUNDS) -> list[Measurement]:
    with ExitStack() as stack:
        net = stack.enter_context(HostNetwork())
        network = PodNetwork(netns=net.host.path)
        pool = network.policy.pool
        await network.start({})
        measurements = []
        attached = 0
        for size in sizes:
            while attached < size:
                pod = stack.enter_context(net.pod())
                await network.attach(pool[FIRST_POD + attached], pod.fd)
                attached += 1
            measurements.append(await _measure_at(network, net, size, rounds))
        await network.stop()
        await network.aclose()
        return measurements


async def _measure_at(network: PodNetwork, net: HostNetwork, pods: int, rounds: int) -> Measurement:
    pool = network.policy.pool
    attach, detach = [], []
    for number in range(rounds):
        address = pool[FIRST_POD + pods + number]
        with net.pod() as pod:
            attach.append(await _time_attach(network, address, pod))
            began = time.perf_counter()
            await network.detach(address)
            detach.append(time.perf_counter() - began)
    began = time.perf_counter()
    adopted = await network.start({pool[FIRST_POD + number]: NO_TRAFFIC for number in range(pods)})
    restart = time.perf_counter() - began
    if len(adopted) != pods:
        raise RuntimeError(f"{len(adopted)} of {pods} pods were adopted")
    return Measurement(
        pods, *(1000 * seconds for seconds in (statistics.median(attach), statistics.median(detach), restart))
    )


async def _time_attach(network: PodNetwork, address: IPv4Address, pod: Namespace) -> float:
    began = time.perf_counter()
    await network.attach(address, pod.fd)
    return time.perf_counter() - began


def as_document(measurements: Sequence[Measurement]) -> dict[str, object]:
    """For `make bench`: the numbers, and how they grow from the fewest pods to the most."""
    first, last = measurements[0], measurements[-1]
    return {
        "unit": "ms, median",
        "rounds": ROUNDS,
        "pods": [
            {
                "pods": m.pods,
                "attach": round(m.attach, 2),
                "detach": round(m.detach, 2),
                "restart": round(m.restart, 2),
            }
            for m in measurements
        ],
        "attach_growth": round(last.attach / first.attach, 2),
        "detach_growth": round(last.detach / first.detach, 2),
    }


def as_table(measurements: Sequence[Measurement]) -> str:
    lines = [f"{'pods':>6}{'attach ms':>12}{'detach ms':>12}{'start ms':>12}"]
    lines += [f"{m.pods:>6}{m.attach:>12.1f}{m.detach:>12.1f}{m.restart:>12.1f}" for m in measurements]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.network", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args()
    if reason := missing_privilege():
        print(reason, file=sys.stderr)
        return 1
    measurements = asyncio.run(measure())
    if options.json:
        print(json.dumps(as_document(measurements)))
    else:
        print(as_table(measurements))
    return 0


if __name__ == "__main__":
    sys.exit(main())
