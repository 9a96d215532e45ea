"""Probes of IPv4 by what they are after: other pods, the host, private ranges, closed ports."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address

from codius_netpolicy.policy import DEFAULT_GATEWAY
from codius_netpolicy.traffic import Reason
from tests.harness.namespaces import FAR_ADDRESS, HOST_ADDRESS
from tests.system.isolation import packets
from tests.system.isolation.packets import ACK, FIN, PUSH, RST, SYN, URGENT
from tests.system.isolation.probe import (
    DIRECTED_BROADCAST,
    LOOPBACK,
    METADATA,
    PAYMENTS,
    PRIVATE,
    RANGES,
    RESOLVER,
    UNUSED,
    Build,
    Group,
    Probe,
    answered,
    reaches,
    to_front_door,
    to_port,
    to_udp,
)
from tests.system.isolation.shots import Shot


def build_target_probes() -> list[Probe]:
    """A pod's own packets, whole or in pieces, to where they must not go."""
    return [*_pod(), *_host(), *_ranges(), *_ports(), *_names(), *_protocols(), *_fragments()]


def _pod() -> list[Probe]:
    def refused(name: str, build: Build, reason: Reason = Reason.POD) -> Probe:
        return Probe(Group.POD, name, build, reason=reason)

    return [
        refused("TCP SYN to B", lambda s: s.tcp(s.b.address, 8080)),
        refused("UDP to B", lambda s: s.udp(s.b.address, 8080)),
        refused("UDP to port 53 of B", lambda s: s.udp(s.b.address, 53)),
        refused("ping to B", lambda s: s.ping(s.b.address)),
        refused("TCP ACK to B, as of a connection in progress", lambda s: s.tcp(s.b.address, 8080, ACK)),
        refused("TCP SYN-ACK to B", lambda s: s.tcp(s.b.address, 8080, SYN | ACK), Reason.INVALID),
        refused("TCP RST to B", lambda s: s.tcp(s.b.address, 8080, RST), Reason.INVALID),
        refused("GRE to B", lambda s: s.other(s.b.address, packets.GRE)),
        refused("SCTP to B", lambda s: s.sctp(s.b.address, 80)),
        refused("UDP to its own address, by the gateway", lambda s: s.udp(s.a.address, 8080)),
        refused("TCP SYN to an unused address of the pool", lambda s: s.tcp(UNUSED, 8080)),
        refused("UDP to the pool's first address", lambda s: s.udp(IPv4Address("10.77.0.0"), 8080)),
        refused("UDP to the pool's last address", lambda s: s.udp(IPv4Address("10.77.255.255"), 8080)),
    ]


def _host() -> list[Probe]:
    def refused(name: str, build: Build, reason: Reason | None = Reason.HOST) -> Probe:
        return Probe(Group.HOST, name, build, reason=reason)

    addresses = {
        "the uplink's address": HOST_ADDRESS,
        "the gateway's address": DEFAULT_GATEWAY,
        "the address of payments": PAYMENTS,
    }
    ports = {"ssh": 22, "podman": 2375, "the admin API": 3001}
    found = [
        refused(f"TCP SYN to {service} on {where}", to_port(address, port))
        for where, address in addresses.items()
        for service, port in ports.items()
    ]
    found += [
        refused(f"TCP SYN to the front door on {where}", to_front_door(address))
        for where, address in addresses.items()
    ]
    return [
        *found,
        *(
            refused(f"UDP to port {port} of {where}", to_udp(address, port))
            for where, address in addresses.items()
            for port in (53, 5300)
        ),
        refused("UDP to the port of payments", lambda s: s.udp(PAYMENTS, 7768)),
        refused("TCP SYN to the gateway's port of payments", lambda s: s.tcp(DEFAULT_GATEWAY, 7768)),
        refused("TCP ACK to ssh, as of a connection in progress", lambda s: s.tcp(HOST_ADDRESS, 22, ACK)),
        refused("ping to the uplink's address", lambda s: s.ping(HOST_ADDRESS)),
        refused("ping to the address of payments", lambda s: s.ping(PAYMENTS)),
        refused("GRE to the gateway", lambda s: s.other(DEFAULT_GATEWAY, packets.GRE)),
        refused("UDP to the uplink's broadcast address", lambda s: s.udp(DIRECTED_BROADCAST, 8080)),
        refused("UDP to 127.0.0.1", lambda s: s.udp(LOOPBACK, 8080), None),
        refused("TCP SYN to the front door on 127.0.0.1", to_front_door(LOOPBACK), None),
        refused(
            "ICMP redirect to the gateway",
            lambda s: s.icmp(DEFAULT_GATEWAY, packets.REDIRECT, 1, s.a.address.packed, s.udp(FAR_ADDRESS, 9)),
            Reason.INVALID,
        ),
    ]


def _ranges() -> list[Probe]:
    def refused(name: str, build: Build, reason: Reason | None = Reason.RANGE) -> Probe:
        return Probe(Group.RANGES, name, build, reason=reason)

    found = [
        # Addresses of this machine's loopback are the kernel's own to refuse (martians).
        refused(f"TCP SYN into {name}", to_port(address, 80), None if name == "127.0.0.0/8" else Reason.RANGE)
        for name, address in RANGES.items()
    ]
    return [
        refused("TCP SYN to the metadata address", lambda s: s.tcp(METADATA, 80)),
        refused("UDP to the metadata address", lambda s: s.udp(METADATA, 53)),
        refused("ping to the metadata address", lambda s: s.ping(METADATA)),
        *found,
        refused("UDP into 10.0.0.0/8", lambda s: s.udp(PRIVATE, 8080)),
        refused("ping into 10.0.0.0/8", lambda s: s.ping(PRIVATE)),
        refused("TCP ACK into 10.0.0.0/8", lambda s: s.tcp(PRIVATE, 80, ACK)),
        refused("GRE into 10.0.0.0/8", lambda s: s.other(PRIVATE, packets.GRE)),
        refused(
            "multicast DNS",
            lambda s: s.again(s.udp(IPv4Address("224.0.0.251"), 5353), to=bytes.fromhex("01005e0000fb")),
        ),
        refused(
            "SSDP",
            lambda s: s.again(s.udp(IPv4Address("239.255.255.250"), 1900), to=bytes.fromhex("01005e7ffffa")),
        ),
        refused("IGMP", lambda s: s.other(IPv4Address("224.0.0.22"), packets.IGMP)),
        refused(
            "UDP to 255.255.255.255",
            lambda s: s.again(s.udp(IPv4Address("255.255.255.255"), 67), to=packets.BROADCAST),
        ),
    ]


def _ports() -> list[Probe]:
    def refused(name: str, build: Build) -> Probe:
        return Probe(Group.PORTS, name, build, reason=Reason.PORT)

    return [
        refused("TCP SYN to port 25 of the internet", lambda s: s.tcp(FAR_ADDRESS, 25)),
        refused("TCP ACK to port 25 of the internet", lambda s: s.tcp(FAR_ADDRESS, 25, ACK)),
        refused("TCP SYN to port 5060 of the internet", lambda s: s.tcp(FAR_ADDRESS, 5060)),
        refused("UDP to port 5060 of the internet", lambda s: s.udp(FAR_ADDRESS, 5060)),
    ]


def _names() -> list[Probe]:
    def refused(name: str, build: Build) -> Probe:
        return Probe(Group.NAMES, name, build, reason=Reason.RANGE)

    return [
        refused("UDP to port 5353 of a private resolver", lambda s: s.udp(RESOLVER, 5353)),
        refused("TCP SYN to port 80 of a private resolver", lambda s: s.tcp(RESOLVER, 80)),
        refused("TCP SYN to port 853 of a private resolver", lambda s: s.tcp(RESOLVER, 853)),
        refused("ping to a private resolver", lambda s: s.ping(RESOLVER)),
        refused("UDP to port 53 of another private address", lambda s: s.udp(PRIVATE, 53)),
        refused("TCP SYN to port 53 of another private address", lambda s: s.tcp(PRIVATE, 53)),
        reaches("a query by UDP to a private resolver", lambda s: s.udp(RESOLVER, 53), group=Group.NAMES),
        answered("a query by TCP to a private resolver", lambda s: s.tcp(RESOLVER, 53), group=Group.NAMES),
    ]


def _protocols() -> list[Probe]:
    def refused(name: str, build: Build, reason: Reason | None) -> Probe:
        return Probe(Group.PROTOCOLS, name, build, reason=reason)

    def protocol(name: str, number: int, payload: Callable[[Shot], bytes] = lambda s: b"") -> Probe:
        return refused(
            f"{name} to the internet", lambda s: s.other(FAR_ADDRESS, number, payload(s)), Reason.PROTOCOL
        )

    def flags(name: str, flags: int) -> Probe:
        return refused(f"TCP {name} to the internet", lambda s: s.tcp(FAR_ADDRESS, 80, flags), Reason.INVALID)

    return [
        protocol("GRE", packets.GRE),
        protocol("ESP", packets.ESP),
        refused("SCTP to the internet", lambda s: s.sctp(FAR_ADDRESS, 80), Reason.PROTOCOL),
        protocol("OSPF", packets.OSPF),
        protocol("IP in IP, with UDP to B inside,", packets.IPIP, lambda s: s.udp(s.b.address, 8080)[14:]),
        protocol("6in4", packets.SIX_IN_FOUR, lambda s: s.udp(s.b.address6, 8080)[14:]),
        flags("without flags", 0),
        flags("with all flags", FIN | SYN | RST | PUSH | ACK | URGENT),
        flags("SYN-FIN", SYN | FIN),
        flags("SYN-ACK of no connection", SYN | ACK),
        flags("RST of no connection", RST),
        refused(
            "ICMP error about a flow of B to the internet",
            lambda s: s.icmp(
                FAR_ADDRESS, packets.UNREACHABLE, 1, bytes(4), s.udp(s.b.address, 9, source=FAR_ADDRESS)
            ),
            Reason.INVALID,
        ),
        refused(
            "ICMP echo reply nobody asked for",
            lambda s: s.icmp(FAR_ADDRESS, packets.ECHO_REPLY, 0, bytes(4)),
            Reason.INVALID,
        ),
        refused(
            "ICMP router advertisement",
            lambda s: s.icmp(FAR_ADDRESS, packets.ROUTER_ADVERTISEMENT, 0, bytes(4)),
            Reason.INVALID,
        ),
        refused(
            "UDP source-routed by the internet to B", lambda s: _routed(s, FAR_ADDRESS, s.b.address), None
        ),
        refused(
            "UDP source-routed by the gateway to B",
            lambda s: _routed(s, DEFAULT_GATEWAY, s.b.address),
            None,
        ),
        refused(
            "UDP source-routed by the gateway to a private address",
            lambda s: _routed(s, DEFAULT_GATEWAY, PRIVATE),
            None,
        ),
    ]


def _fragments() -> list[Probe]:
    def refused(name: str, build: Build, reason: Reason | None) -> Probe:
        return Probe(Group.FRAGMENTS, name, build, reason=reason)

    return [
        refused(
            "UDP to B in two fragments",
            lambda s: s.pieces(s.udp(s.b.address, 8080, padding=64), 24),
            Reason.POD,
        ),
        refused(
            "TCP SYN to B, its header in two fragments",
            lambda s: s.pieces(s.tcp(s.b.address, 8080), 8),
            Reason.POD,
        ),
        refused(
            "a first fragment to B", lambda s: s.pieces(s.udp(s.b.address, 8080, padding=64), 24)[0], None
        ),
        refused("a last fragment to B", lambda s: s.pieces(s.udp(s.b.address, 8080), 8)[1], None),
        refused(
            "UDP to the uplink's address in two fragments",
            lambda s: s.pieces(s.udp(HOST_ADDRESS, 8080, padding=64), 24),
            Reason.HOST,
        ),
        refused(
            "UDP into 10.0.0.0/8 in two fragments",
            lambda s: s.pieces(s.udp(PRIVATE, 8080, padding=64), 24),
            Reason.RANGE,
        ),
        refused(
            "UDP to port 5060 in two fragments, the last one first",
            lambda s: s.pieces(s.udp(FAR_ADDRESS, 5060, padding=64), 24)[::-1],
            Reason.PORT,
        ),
        refused(
            "TCP SYN to port 25, its header in two fragments",
            lambda s: s.pieces(s.tcp(FAR_ADDRESS, 25), 8),
            Reason.PORT,
        ),
        refused("fragments that overlap, the second with port 25", _overlapping, None),
        refused(
            "UDP from B's address in two fragments",
            lambda s: s.pieces(s.udp(FAR_ADDRESS, 8080, source=s.b.address, padding=64), 24),
            Reason.SPOOFED,
        ),
        reaches(
            "UDP to the internet in two fragments",
            lambda s: s.pieces(s.udp(FAR_ADDRESS, 8080, padding=64), 24),
            group=Group.FRAGMENTS,
        ),
    ]


def _routed(shot: Shot, by: IPv4Address, to: IPv4Address) -> bytes:
    # Without a checksum (RFC 768): it would be over the last hop's address, and wrong for all the others.
    datagram = struct.pack("!HHHH", shot.port, 8080, 8 + len(shot.token), 0) + shot.token
    return shot.packet(by, packets.UDP, datagram, options=packets.source_route(to))


def _overlapping(shot: Shot) -> list[bytes]:
    harmless, mail = shot.tcp(FAR_ADDRESS, 80), shot.tcp(FAR_ADDRESS, 25)
    first, _ = shot.pieces(harmless, 24)
    _, second = shot.pieces(mail, 16)
    return [first, second]
