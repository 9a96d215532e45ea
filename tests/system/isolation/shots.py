"""What a probe is built with: who is where, and the frames of one probe in one volley."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Final

from codius_netpolicy.policy import DEFAULT_GATEWAY, DEFAULT_GATEWAY6, DEFAULT_POOL
from tests.harness.namespaces import FAR_ADDRESS, FAR_ADDRESS6
from tests.system.isolation import packets
from tests.system.isolation.packets import Address

GATEWAY6: Final = DEFAULT_GATEWAY6
POOL6: Final = IPv6Network("fd77:c0d1:5::/64")
MAGIC: Final = b"\xc0\xd1\x05probe"
TOKEN: Final = struct.Struct(f"!{len(MAGIC)}sHH")
"""Magic, number of the volley, number of the probe: it is in every frame, and found wherever that arrives."""
FIRST_PORT: Final = 20_000
"""Of the probes' own ports: out of the way of those that kernels choose (32768 and above)."""


class Place(StrEnum):
    """Where a probe is sent from, and where it can be seen to arrive."""

    ATTACKER = "pod A"
    VICTIM = "pod B"
    HOST = "the host"
    INTERNET = "the internet"
    UNMASKED = "the internet with the pod's address"
    NEIGHBOURS = "a neighbour table"


@dataclass(frozen=True, slots=True)
class Pod:
    """Addresses of a pod, and of both ends of its link."""

    address: IPv4Address
    mac: bytes
    host_mac: bytes
    link: str

    @property
    def address6(self) -> IPv6Address:
        """The one it has, or would have with IPv6."""
        return POOL6[int(self.address) - int(DEFAULT_POOL[0])]


@dataclass(frozen=True, slots=True)
class Scene:
    """The two pods, the ends of the host's uplink, and the one port that differs from run to run."""

    attacker: Pod
    victim: Pod
    host_mac: bytes
    internet_mac: bytes
    front_door: int


@dataclass(frozen=True, slots=True)
class Shot:
    """One probe in one volley. Its methods make whole frames, of the IP version of `to`."""

    scene: Scene
    sender: Place
    volley: int
    number: int
    port: int
    """Its own, so that an answer is known by the port it comes to."""

    @property
    def a(self) -> Pod:
        return self.scene.attacker

    @property
    def b(self) -> Pod:
        return self.scene.victim

    @property
    def token(self) -> bytes:
        return TOKEN.pack(MAGIC, self.volley, self.number)

    @property
    def mac(self) -> bytes:
        """Nobody's but this probe's: wherever it turns up later, this probe has put it there."""
        return b"\x06\x66\x66" + struct.pack("!BH", self.volley & 0xFF, self.number)

    def frame(
        self, payload: bytes, *, kind: int | None = None, to: bytes | None = None, source: bytes | None = None
    ) -> bytes:
        """Between the hardware addresses that the sender would use, unless it is told others."""
        macs = {
            Place.ATTACKER: (self.a.host_mac, self.a.mac),
            Place.INTERNET: (self.scene.host_mac, self.scene.internet_mac),
            Place.HOST: (self.a.mac, self.a.host_mac),
        }[self.sender]
        if kind is None:
            kind = packets.ETHERTYPE_IP6 if payload[0] >> 4 == 6 else packets.ETHERTYPE_IP
        return packets.ethernet(to or macs[0], source or macs[1], kind, payload)

    def source(self, to: Address) -> Address:
        """The sender's own address."""
        if self.sender is Place.ATTACKER:
            return self.a.address if to.version == 4 else self.a.address6
        if self.sender is Place.INTERNET:
            return FAR_ADDRESS if to.version == 4 else FAR_ADDRESS6
        return DEFAULT_GATEWAY if to.version == 4 else GATEWAY6

    def tcp(
        self, to: Address, port: int, flags: int = packets.SYN, *, source: Address | None = None
    ) -> bytes:
        sender = source or self.source(to)
        segment = packets.tcp((sender, self.port), (to, port), flags, self.token)
        return self.packet(to, packets.TCP, segment, source=sender)

    def udp(self, to: Address, port: int, *, source: Address | None = None, padding: int = 0) -> bytes:
        sender = source or self.source(to)
        datagram = packets.udp((sender, self.port), (to, port), self.token + bytes(padding))
        return self.packet(to, packets.UDP, datagram, source=sender)

    def ping(self, to: Address, *, source: Address | None = None) -> bytes:
        sender, rest = source or self.source(to), struct.pack("!HH", self.port, 1)
        if to.version == 4:
            message = packets.icmp(packets.ECHO_REQUEST, 0, rest, self.token)
            return self.packet(to, packets.ICMP, message, source=sender)
        return self.icmp6(to, packets.ECHO_REQUEST6, rest, self.token, source=sender)

    def icmp(
        self,
        to: IPv4Address,
        kind: int,
        code: int,
        rest: bytes,
        about: bytes = b"",
        *,
        source: IPv4Address | None = None,
    ) -> bytes:
        """With the frame it complains `about`, if any."""
        message = packets.icmp(kind, code, rest, about[packets.ETHERNET_HEADER :] or self.token)
        return self.packet(to, packets.ICMP, message, source=source)

    def icmp6(
        self, to: Address, kind: int, rest: bytes, payload: bytes, *, source: Address | None = None
    ) -> bytes:
        sender = source or self.source(to)
        message = packets.icmp6(sender, to, kind, rest, payload)
        return self.packet(to, packets.ICMP6, message, source=sender)

    def other(self, to: Address, protocol: int, payload: bytes = b"") -> bytes:
        """Something of a protocol without ports; `payload` instead of bare zeros before the token."""
        return self.packet(to, protocol, (payload or bytes(8)) + self.token)

    def sctp(self, to: Address, port: int) -> bytes:
        return self.packet(to, packets.SCTP, packets.sctp(self.port, port, self.token))

    def packet(
        self,
        to: Address,
        protocol: int,
        payload: bytes,
        *,
        source: Address | None = None,
        options: bytes = b"",
    ) -> bytes:
        sender = source or self.source(to)
        # A number of its own: pieces of one volley never meet those of another.
        return self.frame(
            packets.ip(sender, to, protocol, payload, identification=self.port, options=options)
        )

    def again(self, frame: bytes, *, to: bytes | None = None, source: bytes | None = None) -> bytes:
        """The same packet between other hardware addresses."""
        return (to or frame[:6]) + (source or frame[6:12]) + frame[12:]

    def pieces(self, frame: bytes, *sizes: int) -> list[bytes]:
        """The frame's packet in fragments, of these sizes and the rest."""
        header, packet = frame[: packets.ETHERNET_HEADER], frame[packets.ETHERNET_HEADER :]
        if packet[0] >> 4 == 6:
            return [header + piece for piece in packets.fragment6(packet, self.port, *sizes)]
        return [header + piece for piece in packets.fragment(packet, *sizes)]

    def arp(
        self,
        operation: int,
        claimed: IPv4Address,
        target: IPv4Address,
        *,
        to: bytes = packets.BROADCAST,
        mac: bytes | None = None,
    ) -> bytes:
        """As who has `claimed`, at this probe's own hardware address."""
        body = packets.arp(operation, (mac or self.mac, claimed), (bytes(6), target))
        # Behind the 28 bytes of ARP a frame has room to its least size of 60.
        return self.frame(body + self.token, kind=packets.ETHERTYPE_ARP, to=to, source=mac or self.mac)

    def at(self, port: int) -> Shot:
        """The same with another port of its own, for a flow of its own."""
        return replace(self, port=port)
