"""Packets lost while the rules are replaced, and how long that takes: `python -m tests.bench.reload`.

A pod sends numbered packets to the internet all the while; every one of them is looked for at the far end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from statistics import median
from typing import Final

from codius_netpolicy.network import PodNetwork
from codius_netpolicy.policy import Egress
from tests.bench import flow
from tests.bench.policy import know_pods
from tests.harness.namespaces import FAR_ADDRESS, HostNetwork, Namespace, missing_privilege

PODS: Final = 1_000
RELOADS: Final = 60
"""Of each kind."""
RATE: Final = 2_000
"""Packets a second."""
LEAST_RATE: Final = 0.99 * RATE
"""What the sender must have kept up for a run to count: the rest is its start."""
TARGET_MS: Final = 100.0
"""Of one reload: a start of the node, or a repair, is over before anybody notices."""
PORTS: Final = (9_001, 9_002)
"""The first is answered once, so that its packets are of an established flow; the second never is, and each
of its packets is judged by all rules."""
RECEIVE_BUFFER: Final = 64 * 2**20
"""Bytes; room for all packets of a run, so that nobody needs to read them in time."""
SO_RCVBUFFORCE: Final = 33
SO_MEMINFO: Final = 55
MEMINFO: Final = struct.Struct("=9I")
"""sk_meminfo of linux/sock_diag.h; the last number is what the socket itself dropped."""
LATEST_SECONDS: Final = 0.5
"""After the sender has ended, until a packet that is still under way counts as lost."""
OTHER: Final = Egress(denied_ranges=(ip_network("203.0.113.0/24"),))
"""Rules that allow the flows as well (TEST-NET-3, RFC 5737)."""


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one run of packets."""

    sent: int
    lost: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.sent / self.seconds


@dataclass(frozen=True, slots=True)
class Measurement:
    """Milliseconds of each reload, all of them under the packets."""

    repairs: Sequence[float]
    """The whole table anew."""
    changes: Sequence[float]
    """The rules and ranges in place."""
    busy: Run
    quiet: Run
    """As long a run without any reload."""


async def measure() -> Measurement:
    with ExitStack() as stack:
        net = stack.enter_context(HostNetwork())
        pod = stack.enter_context(net.pod())
        network = PodNetwork(netns=net.host.path)
        known = know_pods(network.policy, PODS)
        await network.start(known)
        await network.attach(next(iter(known)), pod.fd)
        repairs, changes = [], []
        began = time.perf_counter()
        async with _packets(pod, net.internet) as busy:
            for number in range(RELOADS):
                repairs.append(await _time(network.repair))
                egress = Egress() if number % 2 else OTHER
                changes.append(await _time(lambda egress=egress: network.change(egress)))  # type: ignore[misc]
        took = time.perf_counter() - began
        async with _packets(pod, net.internet) as quiet:
            await asyncio.sleep(took)
        await network.stop()
        await network.aclose()
        return Measurement(repairs, changes, busy[0], quiet[0])


async def _time(call: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await call()
    return 1000 * (time.perf_counter() - began)


@asynccontextmanager
async def _packets(pod: Namespace, internet: Namespace) -> AsyncIterator[list[Run]]:
    """Packets go as long as the block runs; then the list has the one run."""
    runs: list[Run] = []
    with ExitStack() as stack:
        receivers = [stack.enter_context(_receive(internet, port)) for port in PORTS]
        sender = pod.spawn(
            *(sys.executable, "-m", "tests.bench.flow", str(FAR_ADDRESS)),
            *map(str, PORTS),
            f"--rate={RATE}",
            stdout=subprocess.PIPE,
        )
        first, peer = await asyncio.to_thread(receivers[0].recvfrom, 64)
        receivers[0].sendto(first, peer)
        yield runs
        sender.terminate()
        out, _ = await asyncio.to_thread(sender.communicate)
        report = flow.Report(**json.loads(out))
        arrived = [_collect(receiver) for receiver in receivers]
        arrived[0].add(flow.number(first))
        for count, numbers in zip(report.sent, arrived, strict=True):
            if not numbers <= set(range(count)):
                raise RuntimeError("somebody else's packets arrived")
        lost = sum(count - len(numbers) for count, numbers in zip(report.sent, arrived, strict=True))
        runs.append(Run(sum(report.sent), lost, report.seconds))


def _receive(where: Namespace, port: int) -> socket.socket:
    receiver = where.socket(kind=socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    receiver.bind((str(FAR_ADDRESS), port))
    receiver.settimeout(10)
    return receiver


def _collect(receiver: socket.socket) -> set[int]:
    """The numbers of all packets that arrived; an overflow of the socket's own buffer spoils the run."""
    numbers = set()
    receiver.settimeout(LATEST_SECONDS)
    with contextlib.suppress(TimeoutError):
        while True:
            numbers.add(flow.number(receiver.recv(64)))
    *_, dropped = MEMINFO.unpack(receiver.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size))
    if dropped:
        raise RuntimeError(f"the receiver itself dropped {dropped} packets: its buffer is too small")
    return numbers


def as_document(measurement: Measurement) -> dict[str, object]:
    """For `make bench`."""

    def describe(run: Run) -> dict[str, object]:
        return {
            "sent": run.sent,
            "lost": run.lost,
            "seconds": round(run.seconds, 1),
            "rate": round(run.rate),
        }

    return {
        "pods": PODS,
        "reloads": 2 * RELOADS,
        "repair_ms": {
            "median": round(median(measurement.repairs), 1),
            "worst": round(max(measurement.repairs), 1),
        },
        "change_ms": {
            "median": round(median(measurement.changes), 1),
            "worst": round(max(measurement.changes), 1),
        },
        "target_ms": TARGET_MS,
        "with_reloads": describe(measurement.busy),
        "without": describe(measurement.quiet),
    }


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.bench.reload", description=__doc__).parse_args()
    if reason := missing_privilege():
        print(reason, file=sys.stderr)
        return 1
    print(json.dumps(as_document(asyncio.run(measure())), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
