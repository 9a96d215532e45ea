"""CPU time of a pod's packet through the rules of 1 and of 5000 pods: `python -m tests.bench.packets`.

A veth hands a packet on within the system call that sends it: the sender's thread itself runs the host's
part up to the far end, where a first rule counts and drops it. So the CPU time of that thread, pinned to one
core, is the packet's whole way, the system call included; what else runs on the machine is not in it.
(A kernel with CONFIG_IRQ_TIME_ACCOUNTING tells interrupts apart: `measure` refuses to go on there.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Final

from codius_netpolicy.conntrack import cut_flows
from codius_netpolicy.network import PodNetwork
from codius_netpolicy.policy import Limits, Policy
from tests.bench.policy import know_pods
from tests.harness.namespaces import FAR_ADDRESS, HOST_ADDRESS, HostNetwork, Namespace, missing_privilege

SIZES: Final = (1, 5_000)
"""Pods in the two tables."""
ROUNDS: Final = 15
"""All ways in turn; odd, so that a median is a round."""
PACKETS: Final = 6_000
"""Of the established flow, each round and way: about 50 ms."""
FLOWS: Final = 200
"""New ones at once: as many as a pod may have by default, about; the kernel goes through them for each."""
BATCHES: Final = 8
"""Of new flows, each round and way."""
TARGET_RATIO: Final = 1.2
PAYLOAD: Final = bytes(36)
"""Makes an IP packet of 64 bytes."""
ANSWERED_PORT: Final = 9_000
FIRST_PORT: Final = 20_000
"""Of new flows."""
LEAST_SHARE: Final = 0.8
"""CPU time of the thread in the time a calm round takes, where the kernel puts packets on its bill."""
LIMITS: Final = Limits(
    connections=100_000,
    new_connections=1_000_000,
    new_connections_burst=1_000_000,
    send_rate=0,
    receive_rate=0,
)
"""Both limits of flows are looked at and none is reached. Bandwidth is the links' matter."""
COUNTED: Final = re.compile(r"counter packets ([0-9]+)")


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU nanoseconds of a packet, by round."""

    established: Sequence[float]
    new: Sequence[float]


@dataclass(frozen=True, slots=True)
class Measurement:
    few: Cost
    many: Cost
    bare: Cost
    """The same host without our table: routing alone, no connection tracking."""

    @property
    def established_ratio(self) -> float:
        return _ratio(self.many.established, self.few.established)

    @property
    def new_ratio(self) -> float:
        return _ratio(self.many.new, self.few.new)

    @property
    def established_over_bare(self) -> float:
        return _ratio(self.few.established, self.bare.established)

    @property
    def new_over_bare(self) -> float:
        return _ratio(self.few.new, self.bare.new)


class Way:
    """From a pod through a host of its own to an internet of its own."""

    def __init__(self, net: HostNetwork, pod: Namespace) -> None:
        self._net = net
        self._sender = pod.socket(kind=socket.SOCK_DGRAM)
        self._beginner = pod.socket(kind=socket.SOCK_DGRAM)
        self._answer()
        net.internet.nft(
            "table ip sink { chain swallow { type filter hook prerouting priority raw; udp dport"
            f" {{ {ANSWERED_PORT}, {FIRST_PORT}-{FIRST_PORT + FLOWS - 1} }} counter drop; }}; }}\n"
        )
        self._sent = 0

    def close(self) -> None:
        self._sender.close()
        self._beginner.close()

    def send_established(self) -> None:
        for _ in range(PACKETS):
            self._sender.send(PAYLOAD)
        self._sent += PACKETS

    def send_new(self) -> None:
        for port in range(FIRST_PORT, FIRST_PORT + FLOWS):
            self._beginner.sendto(PAYLOAD, (str(FAR_ADDRESS), port))
        self._sent += FLOWS

    def forget_new(self) -> None:
        """The flows just begun, so that the next ones are new again."""
        self._net.host.call(lambda: cut_flows(4, lambda flow: flow.port != ANSWERED_PORT))

    def require_all_arrived(self) -> None:
        """A packet that was refused underway would have been cheap."""
        listing = self._net.internet.exec("nft", "list", "table", "ip", "sink").stdout
        match = COUNTED.search(listing)
        arrived = int(match[1]) if match else 0
        if arrived != self._sent:
            raise RuntimeError(f"{self._sent} packets were sent, {arrived} arrived")

    def _answer(self) -> None:
        """One packet there and one back make the flow an established one."""
        with self._net.internet.socket(kind=socket.SOCK_DGRAM) as far:
            far.bind((str(FAR_ADDRESS), ANSWERED_PORT))
            far.settimeout(10)
            self._sender.settimeout(10)
            self._sender.connect((str(FAR_ADDRESS), ANSWERED_PORT))
            self._sender.send(PAYLOAD)
            packet, peer = far.recvfrom(64)
            far.sendto(packet, peer)
            self._sender.recv(64)
            self._sender.setblocking(True)


async def measure() -> Measurement:
    with ExitStack() as stack:
        few, many, bare = [stack.enter_context(HostNetwork()) for _ in range(3)]
        ways = [
            await _open(stack, few, SIZES[0]),
            await _open(stack, many, SIZES[1]),
            await _open(stack, bare, SIZES[0], table=False),
        ]
        with ThreadPoolExecutor(1) as alone:
            costs = await asyncio.get_running_loop().run_in_executor(alone, _measure, ways)
        return Measurement(*costs)


async def _open(stack: ExitStack, net: HostNetwork, pods: int, *, table: bool = True) -> Way:
    network = PodNetwork(Policy(limits=LIMITS), netns=net.host.path)
    known = know_pods(network.policy, pods)
    pod = stack.enter_context(net.pod())
    await network.start(known)
    await network.attach(next(iter(known)), pod.fd)
    await network.aclose()
    if not table:
        net.host.nft(f"delete table inet {network.policy.table}")
        # Nobody translates the pod's address now, so the far end has to know the way back.
        net.internet.ip(f"route add {network.policy.pool} via {HOST_ADDRESS}")
    way = Way(net, pod)
    stack.callback(way.close)
    return way


def _measure(ways: Sequence[Way]) -> list[Cost]:
    established: list[list[float]] = [[] for _ in ways]
    new: list[list[float]] = [[] for _ in ways]
    shares = []
    with _pinned():
        # The first round warms what is loaded at the first use, and is not counted.
        for number in range(1 + ROUNDS):
            # Each way comes first, in the middle and last equally often.
            for index in sorted(range(len(ways)), key=lambda index: (index + number) % len(ways)):
                spent, share = _time(ways[index].send_established)
                shares.append(share)
                begun = 0.0
                for _ in range(BATCHES):
                    begun += _time(ways[index].send_new)[0]
                    ways[index].forget_new()
                if number:
                    established[index].append(spent / PACKETS)
                    new[index].append(begun / (BATCHES * FLOWS))
    for way in ways:
        way.require_all_arrived()
    if max(shares) < LEAST_SHARE:
        raise RuntimeError("this kernel does not put packets on the bill of the thread that sends them")
    return [Cost(*each) for each in zip(established, new, strict=True)]


def _time(send: Callable[[], None]) -> tuple[float, float]:
    """CPU nanoseconds of the calling thread, and their share of the time it took."""
    began, spent = time.perf_counter_ns(), time.thread_time_ns()
    send()
    spent = time.thread_time_ns() - spent
    return spent, spent / (time.perf_counter_ns() - began)


@contextmanager
def _pinned() -> Iterator[None]:
    """The calling thread, to the last core: the first one has most of the machine's interrupts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the rounds' own ratios: both sides of a round met the machine in the same mood."""
    return median(a / b for a, b in zip(above, below, strict=True))


def as_document(measurement: Measurement) -> dict[str, object]:
    """For `make bench`."""

    def describe(cost: Cost) -> dict[str, float]:
        return {"established": round(median(cost.established)), "new": round(median(cost.new))}

    return {
        "unit": "CPU ns a packet, median",
        "rounds": ROUNDS,
        "pods": SIZES,
        "few": describe(measurement.few),
        "many": describe(measurement.many),
        "no_table": describe(measurement.bare),
        "established_ratio": round(measurement.established_ratio, 2),
        "new_ratio": round(measurement.new_ratio, 2),
        "target_ratio": TARGET_RATIO,
        "over_no_table": {
            "established": round(measurement.established_over_bare, 2),
            "new": round(measurement.new_over_bare, 2),
        },
    }


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.bench.packets", description=__doc__).parse_args()
    if reason := missing_privilege():
        print(reason, file=sys.stderr)
        return 1
    print(json.dumps(as_document(asyncio.run(measure())), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
