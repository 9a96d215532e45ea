"""Sending all probes at once, and seeing where each has arrived: no time-outs, no sleeps."""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from codius_netpolicy.policy import DEFAULT_POOL
from tests.harness.namespaces import UPLINK, Namespace
from tests.system.isolation import packets
from tests.system.isolation.probe import Probe
from tests.system.isolation.shots import FIRST_PORT, MAGIC, POOL6, TOKEN, Place, Scene, Shot

ETH_P_ALL: Final = 3
SOL_PACKET: Final = 263
PACKET_QDISC_BYPASS: Final = 20
PACKET_IGNORE_OUTGOING: Final = 23
"""linux/if_packet.h; Python does not name them."""
SO_RCVBUFFORCE: Final = 33
RECEIVE_BUFFER: Final = 8 * 1024 * 1024
"""Bytes; a volley with everything it brings about takes a tenth."""
FRAME_SIZE: Final = 2048
BARRIERS: Final = 8
"""Packets through loopback, one after another: a probe, its answer and the answer to that take six hops."""
BARRIER_SECONDS: Final = 10.0
PORTS: Final = range(FIRST_PORT, 32_000)
HOST_PROTOCOLS: Final = (
    *(packets.ICMP, packets.IGMP, packets.IPIP, packets.TCP, packets.UDP, packets.SIX_IN_FOUR),
    *(packets.GRE, packets.ESP, packets.OSPF, packets.SCTP, packets.UDPLITE),
)
HOST_PROTOCOLS6: Final = (packets.TCP, packets.UDP, packets.ICMP6, packets.GRE, packets.IPIP)
ERRORS: Final = frozenset({packets.UNREACHABLE, packets.REDIRECT, 4, 11, 12})
"""Types of ICMP messages that quote another packet."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Where the probes of one volley were seen, and how many frames of each, by their numbers."""

    frames: Mapping[int, Mapping[Place, int]]

    def places(self, number: int) -> frozenset[Place]:
        return frozenset(self.frames.get(number, ()))

    def count(self, number: int, place: Place) -> int:
        return self.frames.get(number, {}).get(place, 0)


@dataclass(frozen=True, slots=True)
class Tap:
    """A socket that sees what arrives at a place; `offset` is where the IP header is."""

    place: Place
    socket: socket.socket
    offset: int
    protocol: int | None = None
    """Of raw IPv6 sockets, which hand over no header."""


class Range:
    """The sockets in all four namespaces, open from the first volley to the last."""

    def __init__(
        self, scene: Scene, *, attacker: Namespace, victim: Namespace, host: Namespace, internet: Namespace
    ) -> None:
        self.scene = scene
        self._host, self._victim = host, victim
        self._volleys = itertools.count(1)
        self._ports = itertools.cycle(PORTS)
        with ExitStack() as stack:
            self._senders = {
                Place.ATTACKER: stack.enter_context(_open_link(attacker, "eth0", 0)),
                Place.INTERNET: stack.enter_context(_open_link(internet, UPLINK, 0)),
            }
            self._from_host = {
                family: stack.enter_context(host.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW))
                for family in (socket.AF_INET, socket.AF_INET6)
            }
            self._taps = [
                *(
                    Tap(
                        place,
                        stack.enter_context(_open_link(where, link, ETH_P_ALL)),
                        packets.ETHERNET_HEADER,
                    )
                    for place, where, link in (
                        (Place.ATTACKER, attacker, "eth0"),
                        (Place.VICTIM, victim, "eth0"),
                        (Place.INTERNET, internet, UPLINK),
                    )
                ),
                *(
                    Tap(Place.HOST, stack.enter_context(_open_raw(host, socket.AF_INET, protocol)), 0)
                    for protocol in HOST_PROTOCOLS
                ),
                *(
                    Tap(
                        Place.HOST,
                        stack.enter_context(_open_raw(host, socket.AF_INET6, protocol)),
                        0,
                        protocol,
                    )
                    for protocol in HOST_PROTOCOLS6
                ),
            ]
            self._barrier = stack.enter_context(host.socket(kind=socket.SOCK_DGRAM))
            self._barrier.bind(("127.0.0.1", 0))
            self._barrier.settimeout(BARRIER_SECONDS)
            self._barrier.connect(self._barrier.getsockname())
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def fire(self, probes: Sequence[Probe], *, neighbours: bool = True) -> Arrivals:
        """One volley; the neighbour tables are looked at only when asked for."""
        volley = next(self._volleys)
        answers: dict[object, int] = {}
        complaints = set()
        loads: list[tuple[Place, bytes]] = []
        for number, probe in enumerate(probes):
            shot = Shot(self.scene, probe.sender, volley, number, next(self._ports))
            for frame in probe.frames(shot):
                loads.append((probe.sender, frame))
                for key in _answer_keys(frame):
                    answers[key] = number
                if _is_complaint(frame, packets.ETHERNET_HEADER):
                    complaints.add(number)
        self._drain()
        with _one_processor():
            for sender, frame in loads:
                self._send(sender, frame)
            self._wait()
        seen: dict[int, Counter[Place]] = defaultdict(Counter)
        for tap, data in self._drain():
            found = _find_token(data, volley)
            if found is None:
                found = answers.get(_answer_key(data, tap))
            elif _is_complaint(data, tap.offset, tap.protocol) and found not in complaints:
                continue  # the probe is only quoted
            if found is not None:
                seen[found][_place(tap, data)] += 1
        if neighbours:
            for number in self._poisoned(volley):
                seen[number][Place.NEIGHBOURS] += 1
        return Arrivals(seen)

    def _send(self, sender: Place, frame: bytes) -> None:
        if sender is not Place.HOST:
            self._senders[sender].send(frame)
            return
        packet = frame[packets.ETHERNET_HEADER :]
        try:
            if packet[0] >> 4 == 6:
                to = str(ip_address(packet[24:40]))
                self._from_host[socket.AF_INET6].sendto(packet, (to, 0))
            else:
                self._from_host[socket.AF_INET].sendto(packet, (str(ip_address(packet[16:20])), 0))
        except OSError:
            return  # refused before it left: the counters say why, and it does not arrive

    def _wait(self) -> None:
        """Until the kernel has dealt with everything sent from this processor, answers included.

        A processor has one queue for the packets that virtual links hand on, in all namespaces. What comes
        back by loopback was behind all of them; what those have put into the queue meanwhile is one hop on.
        """
        for _ in range(BARRIERS):
            self._barrier.send(b"barrier")
            self._barrier.recv(FRAME_SIZE)

    def _drain(self) -> list[tuple[Tap, bytes]]:
        found = []
        for tap in self._taps:
            while True:
                try:
                    found.append((tap, tap.socket.recv(FRAME_SIZE, socket.MSG_DONTWAIT)))
                except BlockingIOError:
                    break
        return found

    def _poisoned(self, volley: int) -> Iterator[int]:
        """The probes whose hardware address has got into somebody's neighbour table."""
        for where in (self._host, self._victim):
            for entry in json.loads(where.exec("ip", "-json", "neigh").stdout or "[]"):
                mac = bytes.fromhex(entry.get("lladdr", "").replace(":", ""))
                if mac[:3] == b"\x06\x66\x66" and mac[3] == volley & 0xFF:
                    yield struct.unpack("!H", mac[4:])[0]


@contextmanager
def _one_processor() -> Iterator[None]:
    """The calling thread stays on one processor, so that all it sends goes through one queue in order."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _open_link(where: Namespace, link: str, protocol: int) -> socket.socket:
    """For frames as they are. With `protocol` 0 it only sends, and past the link's own shaping."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        if protocol:
            made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        else:
            made.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        made.bind((link, protocol))
        return made

    return where.call(make)


def _open_raw(where: Namespace, family: int, protocol: int) -> socket.socket:
    made = where.socket(family, socket.SOCK_RAW, protocol)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    return made


def _find_token(data: bytes, volley: int) -> int | None:
    position = data.find(MAGIC)
    if position < 0 or len(data) < position + TOKEN.size:
        return None
    _, found, number = TOKEN.unpack_from(data, position)
    return int(number) if found == volley else None


def _place(tap: Tap, data: bytes) -> Place:
    if tap.place is not Place.INTERNET:
        return tap.place
    version = data[tap.offset] >> 4
    if data[12:14] == b"\x08\0" and version == 4:
        source = ip_address(data[tap.offset + 12 : tap.offset + 16])
        return Place.UNMASKED if source in DEFAULT_POOL else Place.INTERNET
    if data[12:14] == b"\x86\xdd" and version == 6:
        source = ip_address(data[tap.offset + 8 : tap.offset + 24])
        return Place.UNMASKED if source in POOL6 else Place.INTERNET
    return Place.INTERNET


def _layer4(data: bytes, offset: int) -> tuple[int, int] | None:
    """Protocol and where it begins, of an IP packet without extension headers."""
    if len(data) < offset + 20:
        return None
    if data[offset] >> 4 == 4:
        return data[offset + 9], offset + 4 * (data[offset] & 15)
    if data[offset] >> 4 == 6 and len(data) >= offset + 40:
        return data[offset + 6], offset + 40
    return None


def _is_complaint(data: bytes, offset: int, protocol: int | None = None) -> bool:
    """An ICMP error, which quotes the packet it is about."""
    found = _layer4(data, offset) if protocol is None else (protocol, 0)
    if found is None or len(data) <= found[1]:
        return False
    kind = data[found[1]]
    return (found[0] == packets.ICMP and kind in ERRORS) or (
        found[0] == packets.ICMP6 and (kind < packets.ECHO_REQUEST6 or kind == packets.REDIRECT6)
    )


def _answer_keys(frame: bytes) -> Iterable[object]:
    """What an answer to the frame would be known by; answers carry no token."""
    kind = frame[12:14]
    if kind == b"\x08\x06":
        yield "arp", frame[6:12]
        return
    found = _layer4(frame, packets.ETHERNET_HEADER)
    if found is None:
        return
    protocol, start = found
    if protocol == packets.TCP and len(frame) >= start + 4:
        yield "tcp", frame[start : start + 2]
    elif protocol == packets.ICMP6 and frame[start] == packets.NEIGHBOUR_SOLICITATION6:
        yield "neighbour", frame[start + 8 : start + 24]


def _answer_key(data: bytes, tap: Tap) -> object:
    if tap.offset and data[12:14] == b"\x08\x06":
        return "arp", data[:6]
    found = _layer4(data, tap.offset) if tap.protocol is None else (tap.protocol, 0)
    if found is None:
        return None
    protocol, start = found
    if protocol == packets.TCP:
        return "tcp", data[start + 2 : start + 4]
    if protocol == packets.ICMP6 and data[start] == packets.NEIGHBOUR_ADVERTISEMENT6:
        return "neighbour", data[start + 8 : start + 24]
    return None
