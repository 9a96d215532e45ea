"""How late the event loop is while the rules of 5000 pods are at work: `python -m tests.bench.loop`.

In a process of its own that has loaded what a node has, because collections of garbage walk what is in
memory. The kernel has the rules of that many pods and no links.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import median
from typing import Final

from codius_netpolicy.network import PodNetwork
from codius_node.daemon import settle_memory
from tests.bench.policy import SIZES, know_pods
from tests.harness.host import clean_environment
from tests.harness.namespaces import HostNetwork, Namespace, missing_privilege

PODS: Final = SIZES[-1]
RELOADS: Final = 7
"""Of the whole table, while the event loop's lag is taken."""
TICK_SECONDS: Final = 0.001
TARGET_LAG: Final = 20.0
"""Milliseconds the event loop may be kept from its work: an API call or a visit waits no longer."""
PRIORITY: Final = 1
"""Of real time, the lowest: before what else runs on the machine, so that the lag is of our own making."""
CHECKS: Final = 100
"""Of the walls; a node makes one a second."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How late the event loop was at worst, in milliseconds, while a call ran in the network's worker."""

    idle: float
    """While nothing ran: what the machine itself adds."""
    reload: float
    traffic: float
    check: float


@dataclass(frozen=True, slots=True)
class Watching:
    """CPU milliseconds of one check."""

    quiet: float
    """While nobody touches any table."""
    busy: float
    """After somebody changed a table of their own, so that all rules have to be looked at."""


@dataclass(frozen=True, slots=True)
class Measurement:
    lag: Lag
    watching: Watching


async def measure() -> Measurement:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.loop"),
        env=clean_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError("the event loop's lag cannot be measured; the run's own message is above")
    document = json.loads(out)
    return Measurement(Lag(**document["worst_lag"]), Watching(**document["check_cpu"]))


async def _measure_here() -> Measurement:
    with suppress(PermissionError):  # without it the lag is what the rest of the machine makes of it
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    with HostNetwork() as net:
        network = PodNetwork(netns=net.host.path)
        await network.start(know_pods(network.policy, PODS))
        settle_memory()  # as a node does once it is up
        lag = await _measure_lag(network)
        watching = await _measure_watching(network, net.host)
        await network.stop()
        await network.aclose()
    return Measurement(lag, watching)


async def _measure_lag(network: PodNetwork) -> Lag:
    async def idle() -> None:
        await asyncio.sleep(1)

    return Lag(
        idle=await _worst_lag(idle, 1),
        reload=await _worst_lag(network.repair, RELOADS),
        traffic=await _worst_lag(network.traffic, RELOADS),
        check=await _worst_lag(network.check, CHECKS),
    )


async def _worst_lag(call: Callable[[], Awaitable[object]], times: int) -> float:
    """Milliseconds; a task on the same loop wants to run every millisecond, and notes how late it was."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            worst = max(worst, time.perf_counter() - began - TICK_SECONDS)

    task = asyncio.create_task(tick(), name="tick")
    for _ in range(times):
        began = time.perf_counter()
        await call()
        # A rest as long: whoever takes all of the real time there is (0.95 s of each) is made to wait.
        await asyncio.sleep(time.perf_counter() - began)
    task.cancel()
    return 1000 * worst


async def _measure_watching(network: PodNetwork, host: Namespace) -> Watching:
    quiet, busy = [], []
    for _ in range(CHECKS):
        quiet.append(await _time_check(network))
    for number in range(CHECKS // 10):
        await asyncio.to_thread(host.nft, f"add table ip foreign{number}")
        busy.append(await _time_check(network))
    return Watching(1000 * median(quiet), 1000 * median(busy))


async def _time_check(network: PodNetwork) -> float:
    began = time.process_time()
    problems = await network.check()
    spent = time.process_time() - began
    if problems:
        raise RuntimeError(f"the walls do not stand: {', '.join(problems)}")
    return spent


def as_document(measurement: Measurement) -> dict[str, object]:
    """For `make bench`."""
    return {
        "unit": "ms",
        "pods": PODS,
        "worst_lag": {name: round(value, 2) for name, value in asdict(measurement.lag).items()},
        "target_lag": TARGET_LAG,
        "check_cpu": {name: round(value, 3) for name, value in asdict(measurement.watching).items()},
    }


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.bench.loop", description=__doc__).parse_args()
    if reason := missing_privilege():
        print(reason, file=sys.stderr)
        return 1
    print(json.dumps(as_document(asyncio.run(_measure_here())), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
