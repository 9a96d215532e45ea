"""Two bare pods, a host and an internet in throw-away namespaces, and what one can try from any of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Final

from codius_netpolicy.network import PodNetwork
from codius_netpolicy.policy import Policy
from codius_netpolicy.ranges import Address
from codius_netpolicy.traffic import NO_TRAFFIC, Reason
from tests.harness.namespaces import FAR_ADDRESS, HostNetwork, Namespace

DEADLINE: Final = 10.0
"""Seconds until something that must happen has not."""
POLL: Final = 0.01

A: Final = IPv4Address("10.77.0.2")
B: Final = IPv4Address("10.77.0.3")
UNUSED: Final = IPv4Address("10.77.0.99")
GATEWAY: Final = IPv4Address("169.254.77.1")
PAYMENTS: Final = IPv4Address("169.254.77.68")
PORT: Final = 8080
MARKER_PORT: Final = 9999
METADATA: Final = IPv4Address("169.254.169.254")
PRIVATE: Final = tuple(
    IPv4Address(address)
    for address in ("10.1.2.3", "100.64.0.1", "172.16.5.5", "192.0.0.8", "192.168.1.1", "198.18.0.1")
)
"""Somebody in each denied range, really there on the internet's side: only policy keeps pods from them."""
ECHO_REQUEST: Final = 8
SYN: Final = 0x02
DEFAULT: Final = Policy()
POOL6: Final = IPv6Network("fd77:c0d1:5::/64")
DUAL: Final = Policy(pool6=POOL6)
A6: Final = POOL6[2]
B6: Final = POOL6[3]
BOTH: Final = {A: NO_TRAFFIC, B: NO_TRAFFIC}


class Outcome(Enum):
    """What became of a probe."""

    REACHED = "reached"
    REFUSED = "refused"  # with an error for the sender
    DROPPED = "dropped"  # in silence, and counted


@dataclass
class World:
    """A host with its network started, two attached pods, and everybody a probe could reach."""

    net: HostNetwork
    network: PodNetwork
    a: Namespace
    b: Namespace
    stack: ExitStack
    marker: socket.socket | None = None
    """When set, a probe also ends as dropped once a packet sent behind it has arrived here, far away.

    A prohibiting route is silent when it has sent too many errors, and counts nothing.
    """

    def listen(self, where: Namespace, port: int = PORT, address: str = "0.0.0.0") -> socket.socket:
        def make() -> socket.socket:
            listener = socket.create_server((address, port), family=family_of(ip_address(address)))
            listener.settimeout(DEADLINE)
            return listener

        return self.stack.enter_context(where.call(make))

    def receive(self, where: Namespace, port: int = PORT, family: int = socket.AF_INET) -> socket.socket:
        receiver = self.stack.enter_context(where.socket(family, socket.SOCK_DGRAM))
        receiver.settimeout(DEADLINE)
        receiver.bind(("", port))
        return receiver

    def connect(self, where: Namespace, to: Address, port: int = PORT) -> socket.socket:
        connection = self.stack.enter_context(where.socket(family_of(to)))
        connection.settimeout(DEADLINE)
        connection.connect((str(to), port))
        return connection

    async def refused(self) -> int:
        """Packets our table has refused; it stands still without a table."""
        return sum((await self.network.counters()).values())

    async def overtaken(self, where: Namespace) -> bool:
        if self.marker is None:
            return False
        with where.socket(kind=socket.SOCK_DGRAM) as sender:
            sender.sendto(b"marker", (str(FAR_ADDRESS), MARKER_PORT))
        assert await asyncio.to_thread(self.marker.recv, 64) == b"marker"
        # An answer to the probe may be on its way back still.
        await asyncio.sleep(POLL)
        return True

    async def tcp(self, where: Namespace, to: Address, port: int = PORT) -> Outcome:
        before = await self.refused()
        with where.socket(family_of(to)) as probe:
            probe.setblocking(False)
            overtaken = False
            error = probe.connect_ex((str(to), port))
            while error in (0, errno.EINPROGRESS):
                if select.select([], [probe], [], 0)[1]:
                    error = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if error in (0, errno.ECONNREFUSED):  # a reset comes from the target itself
                        return Outcome.REACHED
                    break
                if overtaken or await self.refused() > before:
                    return Outcome.DROPPED
                overtaken = await self.overtaken(where)
                await pause(f"TCP from {where.label} to {to}:{port}")
            assert error in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES), os.strerror(error)
            return Outcome.REFUSED

    async def udp(self, where: Namespace, to: Address, target: socket.socket, port: int = PORT) -> Outcome:
        before = await self.refused()
        with where.socket(family_of(to), socket.SOCK_DGRAM) as probe:
            try:
                probe.setblocking(False)
                probe.connect((str(to), port))
                probe.send(b"probe")
                overtaken = False
                while True:
                    if select.select([target], [], [], 0)[0]:
                        target.recv(64)
                        return Outcome.REACHED
                    with contextlib.suppress(BlockingIOError):
                        probe.recv(64)
                    if overtaken or await self.refused() > before:
                        return Outcome.DROPPED
                    overtaken = await self.overtaken(where)
                    await pause(f"UDP from {where.label} to {to}:{port}")
            except OSError:
                return Outcome.REFUSED

    async def ping(self, where: Namespace, to: IPv4Address) -> Outcome:
        before = await self.refused()
        with where.socket(kind=socket.SOCK_RAW, protocol=socket.IPPROTO_ICMP) as probe:
            probe.setblocking(False)
            probe.sendto(build_echo_request(), (str(to), 0))
            overtaken = False
            while True:
                if select.select([probe], [], [], 0)[0]:
                    packet, (source, _) = probe.recvfrom(1024)
                    kind = packet[20]
                    if kind == 0 and source == str(to):
                        return Outcome.REACHED
                    if kind == 3:
                        return Outcome.REFUSED
                if overtaken or await self.refused() > before:
                    return Outcome.DROPPED
                overtaken = await self.overtaken(where)
                await pause(f"ping from {where.label} to {to}")

    async def counted(self, reason: Reason, before: int = 0) -> None:
        """Returns when something was refused for this reason."""
        while (await self.network.counters())[reason] <= before:
            await pause(f"counter {reason}")


started_waiting: dict[str, float] = {}


async def pause(waiting_for: str) -> None:
    began = started_waiting.setdefault(waiting_for, time.monotonic())
    assert time.monotonic() - began < DEADLINE, f"nothing became of: {waiting_for}"
    await asyncio.sleep(POLL)


def family_of(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def build_echo_request() -> bytes:
    body = struct.pack("!HH", 77, 1) + b"codius"
    header = struct.pack("!BBH", ECHO_REQUEST, 0, 0)
    return struct.pack("!BBH", ECHO_REQUEST, 0, _checksum(header + body)) + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def build_udp(source: IPv4Address, to: IPv4Address, port: int = PORT) -> bytes:
    """A whole IPv4 packet; the kernel fills in length and checksum of a raw one."""
    udp = struct.pack("!HHHH", 4000, port, 8 + 5, 0) + b"spoof"
    return (
        struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, source.packed, to.packed) + udp
    )


def send_raw(where: Namespace, packet: bytes, to: IPv4Address) -> None:
    with where.socket(kind=socket.SOCK_RAW, protocol=socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (str(to), 0))


def first_datagram(receiver: socket.socket, where: Namespace, port: int = PORT) -> bytes:
    """What came first, when a marker is sent now: what was delivered before it is seen before it."""
    with where.socket(kind=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"marker", ("127.0.0.1", port))
    return receiver.recv(64)


def count_flows(net: HostNetwork, address: Address) -> int:
    """Flows the address has a part in, as the conntrack command sees them."""
    listing = net.exec("conntrack", "-L").stdout
    return sum(f"={address} " in line for line in listing.splitlines())


@contextlib.contextmanager
def answering(names: socket.socket) -> Iterator[None]:
    """Sends each datagram back: to a probe an answer is an answer."""
    end = names.getsockname()

    def echo() -> None:
        while (received := names.recvfrom(2048))[0] != b"end":
            names.sendto(*received)

    thread = threading.Thread(target=echo, name="answering")
    thread.start()
    try:
        yield
    finally:
        names.sendto(b"end", end)
        thread.join()
