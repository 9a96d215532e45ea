"""Probes from outside to the pod, and of all that must work."""

from __future__ import annotations

from codius_netpolicy.policy import DEFAULT_DENIED_IN_UDP, DEFAULT_GATEWAY, PortRange
from codius_netpolicy.traffic import Reason
from tests.harness.namespaces import FAR_ADDRESS, FAR_ADDRESS6, HOST_ADDRESS, HOST_ADDRESS6
from tests.system.isolation import packets
from tests.system.isolation.packets import ACK, SYN
from tests.system.isolation.probe import (
    HOST_RESOLVER6,
    PAYMENTS,
    RESOLVER6,
    Build,
    Group,
    Probe,
    answered,
    reaches,
)
from tests.system.isolation.shots import GATEWAY6, Place


def build_service_probes() -> list[Probe]:
    """From the host and from the internet; and what a pod is there for."""
    return [*_inbound(), *_works()]


def _inbound() -> list[Probe]:
    def refused(
        name: str, build: Build, reason: Reason | None, sender: Place = Place.INTERNET, count: int = 1
    ) -> Probe:
        return Probe(Group.INBOUND, name, build, reason=reason, packets=count, sender=sender)

    def refused6(name: str, build: Build, reason: Reason | None, sender: Place = Place.INTERNET) -> Probe:
        return Probe(Group.INBOUND, name, build, reason=reason, sender=sender, ip6=True)

    def stranger(name: str, build: Build, *, ip6: bool = False) -> Probe:
        return Probe(Group.INBOUND, name, build, sender=Place.INTERNET, ip6=ip6, stranger=True)

    def amplifier(ports: PortRange) -> Probe:
        numbers = range(ports.first, ports.last + 1)
        return refused(
            f"UDP from the host to port {ports}",
            lambda s: [s.udp(s.a.address, port) for port in numbers],
            Reason.PORT,
            Place.HOST,
            len(numbers),
        )

    return [
        *map(amplifier, DEFAULT_DENIED_IN_UDP),
        refused("TCP SYN from the internet", lambda s: s.tcp(s.a.address, 8080), Reason.UNSOLICITED),
        refused("TCP ACK from the internet", lambda s: s.tcp(s.a.address, 8080, ACK), Reason.UNSOLICITED),
        refused(
            "TCP SYN-ACK from the internet", lambda s: s.tcp(s.a.address, 8080, SYN | ACK), Reason.UNSOLICITED
        ),
        refused("UDP from the internet", lambda s: s.udp(s.a.address, 8080), Reason.UNSOLICITED),
        refused("UDP from the internet to port 1900", lambda s: s.udp(s.a.address, 1900), Reason.UNSOLICITED),
        refused("ping from the internet", lambda s: s.ping(s.a.address), Reason.UNSOLICITED),
        refused("GRE from the internet", lambda s: s.other(s.a.address, packets.GRE), Reason.UNSOLICITED),
        refused(
            "UDP from the internet in two fragments",
            lambda s: s.pieces(s.udp(s.a.address, 8080, padding=64), 24),
            Reason.UNSOLICITED,
        ),
        stranger(
            "UDP from the internet with B's address", lambda s: s.udp(s.a.address, 8080, source=s.b.address)
        ),
        stranger(
            "UDP from the internet to the host with B's address",
            lambda s: s.udp(HOST_ADDRESS, 8080, source=s.b.address),
        ),
        refused6(
            "TCP SYN from the internet by IPv6", lambda s: s.tcp(s.a.address6, 8080), Reason.UNSOLICITED
        ),
        refused6("UDP from the internet by IPv6", lambda s: s.udp(s.a.address6, 8080), Reason.UNSOLICITED),
        stranger(
            "UDP from the internet to the host with B's IPv6 address",
            lambda s: s.udp(HOST_ADDRESS6, 8080, source=s.b.address6),
            ip6=True,
        ),
        refused6(
            "UDP from the host to port 1900 by IPv6",
            lambda s: s.udp(s.a.address6, 1900),
            Reason.PORT,
            Place.HOST,
        ),
    ]


def _works() -> list[Probe]:
    from_host = Place.HOST
    return [
        answered("TCP SYN to the internet", lambda s: s.tcp(FAR_ADDRESS, 443)),
        reaches("UDP to the internet", lambda s: s.udp(FAR_ADDRESS, 443)),
        answered("ping to the internet", lambda s: s.ping(FAR_ADDRESS)),
        answered("TCP SYN to a port beside a closed one", lambda s: s.tcp(FAR_ADDRESS, 26)),
        reaches("a query to a public resolver", lambda s: s.udp(FAR_ADDRESS, 53)),
        answered("ping to the gateway", lambda s: s.ping(DEFAULT_GATEWAY), at=Place.HOST),
        answered("TCP SYN to payments", lambda s: s.tcp(PAYMENTS, 7768), at=Place.HOST),
        answered(
            "TCP SYN from the host", lambda s: s.tcp(s.a.address, 8080), at=Place.ATTACKER, sender=from_host
        ),
        answered("ping from the host", lambda s: s.ping(s.a.address), at=Place.ATTACKER, sender=from_host),
        reaches(
            "UDP from the host to a port that does not amplify",
            lambda s: s.udp(s.a.address, 33535),
            at=Place.ATTACKER,
            sender=from_host,
        ),
        answered("TCP SYN to the internet by IPv6", lambda s: s.tcp(FAR_ADDRESS6, 443), ip6=True),
        reaches("UDP to the internet by IPv6", lambda s: s.udp(FAR_ADDRESS6, 443), ip6=True),
        answered("ping to the internet by IPv6", lambda s: s.ping(FAR_ADDRESS6), ip6=True),
        answered("ping to the gateway by IPv6", lambda s: s.ping(GATEWAY6), at=Place.HOST, ip6=True),
        reaches("a query by UDP to a private IPv6 resolver", lambda s: s.udp(RESOLVER6, 53), ip6=True),
        answered("a query by TCP to a private IPv6 resolver", lambda s: s.tcp(RESOLVER6, 53), ip6=True),
        answered(
            "a query by TCP to a resolver on the host's IPv6 address",
            lambda s: s.tcp(HOST_RESOLVER6, 53),
            at=Place.HOST,
            ip6=True,
        ),
        answered(
            "TCP SYN from the host by IPv6",
            lambda s: s.tcp(s.a.address6, 8080),
            at=Place.ATTACKER,
            sender=from_host,
            ip6=True,
        ),
        answered(
            "ping from the host by IPv6",
            lambda s: s.ping(s.a.address6),
            at=Place.ATTACKER,
            sender=from_host,
            ip6=True,
        ),
    ]
