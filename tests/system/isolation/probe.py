"""What a probe is, who is there to be reached, and what must become of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from codius_netpolicy.traffic import Reason
from tests.harness.namespaces import HOST_ADDRESS6
from tests.system.isolation.packets import Address
from tests.system.isolation.shots import Place, Shot

PAYMENTS: Final = IPv4Address("169.254.77.68")
UNUSED: Final = IPv4Address("10.77.0.99")
UNUSED6: Final = IPv6Address("fd77:c0d1:5::99")
METADATA: Final = IPv4Address("169.254.169.254")
PRIVATE: Final = IPv4Address("10.1.2.3")
PRIVATE6: Final = IPv6Address("fd00:1::3")
RESOLVER: Final = IPv4Address("10.53.0.53")
RESOLVER6: Final = IPv6Address("fd00:53::53")
"""The operator's resolvers, each in a range that is denied otherwise."""
HOST_RESOLVER6: Final = HOST_ADDRESS6
"""One that runs on the host itself."""
DIRECTED_BROADCAST: Final = IPv4Address("192.0.2.255")
LOOPBACK: Final = IPv4Address("127.0.0.1")
ALL_NODES_MAC: Final = bytes.fromhex("333300000001")
MLD_ROUTERS: Final = IPv6Address("ff02::16")
MLD_MAC: Final = bytes.fromhex("333300000016")
"""Whom the kernel of a pod tells about its multicast groups when its link comes up."""

RANGES: Final = {
    "0.0.0.0/8": IPv4Address("0.1.2.3"),
    "10.0.0.0/8": PRIVATE,
    "100.64.0.0/10": IPv4Address("100.64.0.1"),
    "127.0.0.0/8": IPv4Address("127.1.2.3"),
    "169.254.0.0/16": IPv4Address("169.254.1.1"),
    "172.16.0.0/12": IPv4Address("172.16.5.5"),
    "192.0.0.0/24": IPv4Address("192.0.0.8"),
    "192.168.0.0/16": IPv4Address("192.168.1.1"),
    "198.18.0.0/15": IPv4Address("198.18.0.1"),
    "224.0.0.0/4": IPv4Address("224.0.0.251"),
    "240.0.0.0/4": IPv4Address("240.0.0.1"),
}
"""Somebody in each denied range; those that can exist do, on the internet's side of the uplink."""
RANGES6: Final = {
    "mapped 10.1.2.3": IPv6Address("::ffff:10.1.2.3"),
    "compatible 10.1.2.3": IPv6Address("::10.1.2.3"),
    "NAT64 of 10.1.2.3": IPv6Address("64:ff9b::a01:203"),
    "6to4 of 10.1.2.3": IPv6Address("2002:a01:203::1"),
    "Teredo": IPv6Address("2001::1"),
    "unique local": PRIVATE6,
    "site local": IPv6Address("fec0::1"),
    "link local": IPv6Address("fe80::1234"),
    "all nodes": IPv6Address("ff02::1"),
    "multicast of a site": IPv6Address("ff05::2"),
}


class Group(StrEnum):
    """Chapters of the table."""

    POD = "another pod"
    FRAMES = "raw frames"
    HOST = "the host"
    RANGES = "metadata and private ranges"
    SPOOFED = "forged sources"
    ARP = "ARP and neighbour tables"
    PORTS = "closed ports"
    NAMES = "resolvers"
    PROTOCOLS = "protocols, flags and options"
    FRAGMENTS = "fragments"
    IP6 = "IPv6"
    INBOUND = "to the pod"
    WORKS = "what must work"


@dataclass(frozen=True, slots=True)
class Expectation:
    """Where a probe must arrive, and nowhere else; under which reason its packets are refused."""

    arrives: frozenset[Place] = frozenset()
    reason: Reason | None = None
    packets: int = 0


Build = Callable[[Shot], bytes | Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing an attacker can try, or a user needs. `reason` is None where the kernel itself refuses."""

    group: Group
    name: str
    build: Build
    arrives: frozenset[Place] = frozenset()
    reason: Reason | None = None
    packets: int = 1
    """Counted as refused; fewer than the frames where the rules see pieces put together."""
    sender: Place = Place.ATTACKER
    ip6: bool = False
    reason_without_ip6: Reason | None = None
    stranger: bool = False
    """From outside with a pod's address: counted for the host, since it is no pod's."""

    def expect(self, ip6: bool) -> Expectation:
        """What must become of it when pods have IPv6, and when they do not."""
        if self.ip6 and not ip6:
            reason = self.reason_without_ip6
            return Expectation(reason=reason, packets=self.packets if reason else 0)
        return Expectation(self.arrives, self.reason, self.packets if self.reason else 0)

    def frames(self, shot: Shot) -> Sequence[bytes]:
        built = self.build(shot)
        return [built] if isinstance(built, bytes) else built


def reaches(
    name: str,
    build: Build,
    *,
    at: Place = Place.INTERNET,
    sender: Place = Place.ATTACKER,
    group: Group = Group.WORKS,
    ip6: bool = False,
) -> Probe:
    without = Reason.IPV6 if ip6 and sender is Place.ATTACKER else None
    return Probe(
        group, name, build, arrives=frozenset({at}), sender=sender, ip6=ip6, reason_without_ip6=without
    )


def answered(
    name: str,
    build: Build,
    *,
    at: Place = Place.INTERNET,
    sender: Place = Place.ATTACKER,
    group: Group = Group.WORKS,
    ip6: bool = False,
) -> Probe:
    """It arrives, and the answer comes back to the sender."""
    without = Reason.IPV6 if ip6 and sender is Place.ATTACKER else None
    return Probe(
        group,
        name,
        build,
        arrives=frozenset({at, sender}),
        sender=sender,
        ip6=ip6,
        reason_without_ip6=without,
    )


def to_port(address: IPv4Address, port: int) -> Build:
    return lambda s: s.tcp(address, port)


def to_udp(address: Address, port: int) -> Build:
    return lambda s: s.udp(address, port)


def to_front_door(address: IPv4Address) -> Build:
    return lambda s: s.tcp(address, s.scene.front_door)
