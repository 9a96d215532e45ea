"""Probes that are not what they claim: frames, sources and neighbours that a pod makes up."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address

from codius_netpolicy.policy import DEFAULT_GATEWAY
from codius_netpolicy.traffic import Reason
from tests.harness.namespaces import FAR_ADDRESS, HOST_ADDRESS
from tests.system.isolation import packets
from tests.system.isolation.probe import (
    LOOPBACK,
    PAYMENTS,
    PRIVATE,
    UNUSED,
    Build,
    Group,
    Probe,
)
from tests.system.isolation.shots import Shot


def build_forged_probes() -> list[Probe]:
    """What only raw sockets can send."""
    return [*_frames(), *_spoofed(), *_arp()]


def _frames() -> list[Probe]:
    def lost(name: str, build: Build, reason: Reason | None = None) -> Probe:
        return Probe(Group.FRAMES, name, build, reason=reason)

    def to(name: str, find: Callable[[Shot], bytes], reason: Reason | None = None) -> Probe:
        return lost(name, lambda s: s.again(s.udp(s.b.address, 8080), to=find(s)), reason)

    def odd(name: str, kind: int, find: Callable[[Shot], bytes]) -> Probe:
        return lost(name, lambda s: s.frame(bytes(40) + s.token, kind=kind, to=find(s)))

    return [
        to("UDP to B, to B's hardware address", lambda s: s.b.mac),
        to("UDP to B, to the host's end of B's link", lambda s: s.b.host_mac),
        to("UDP to B, to the uplink's hardware address", lambda s: s.scene.host_mac),
        to("UDP to B, broadcast", lambda s: packets.BROADCAST, Reason.POD),
        to("UDP to B, multicast", lambda s: bytes.fromhex("01005e000001"), Reason.POD),
        odd("unknown type to B's hardware address", 0x88B5, lambda s: s.b.mac),
        odd("unknown type to the gateway's", 0x88B5, lambda s: s.a.host_mac),
        odd("unknown type, broadcast", 0x88B5, lambda s: packets.BROADCAST),
        odd("spanning tree", 0x0027, lambda s: bytes.fromhex("0180c2000000")),
        odd("LLDP", 0x88CC, lambda s: bytes.fromhex("0180c200000e")),
        odd("EAPOL", 0x888E, lambda s: bytes.fromhex("0180c2000003")),
        odd("MPLS", 0x8847, lambda s: s.a.host_mac),
        odd("PPPoE discovery", 0x8863, lambda s: packets.BROADCAST),
        lost(
            "802.1Q with UDP to B inside",
            lambda s: _tagged(s.udp(s.b.address, 8080), struct.pack("!HH", 0x8100, 5)),
        ),
        lost(
            "802.1ad with UDP to B inside",
            lambda s: _tagged(s.udp(s.b.address, 8080), struct.pack("!HHHH", 0x88A8, 5, 0x8100, 6)),
        ),
        lost("IPv4 under IPv6's type", lambda s: s.frame(s.udp(s.b.address, 8080)[14:], kind=0x86DD)),
    ]


def _spoofed() -> list[Probe]:
    def forged(name: str, find: Callable[[Shot], IPv4Address]) -> Probe:
        return refused(f"UDP to the internet from {name}", lambda s: s.udp(FAR_ADDRESS, 8080, source=find(s)))

    def refused(name: str, build: Build, packets: int = 1) -> Probe:
        return Probe(Group.SPOOFED, name, build, reason=Reason.SPOOFED, packets=packets)

    return [
        forged("B's address", lambda s: s.b.address),
        forged("an unused address of the pool", lambda s: UNUSED),
        forged("somebody's on the internet", lambda s: IPv4Address("203.0.113.7")),
        forged("the host's address", lambda s: HOST_ADDRESS),
        forged("the gateway's address", lambda s: DEFAULT_GATEWAY),
        forged("a private address", lambda s: PRIVATE),
        forged("0.0.0.0", lambda s: IPv4Address(0)),
        forged("127.0.0.1", lambda s: LOOPBACK),
        forged("a multicast address", lambda s: IPv4Address("224.0.0.1")),
        forged("255.255.255.255", lambda s: IPv4Address("255.255.255.255")),
        refused(
            "UDP to the internet from another hardware address",
            lambda s: s.again(s.udp(FAR_ADDRESS, 8080), source=s.mac),
        ),
        refused(
            "UDP to the internet from the gateway's hardware address",
            lambda s: s.again(s.udp(FAR_ADDRESS, 8080), source=s.a.host_mac),
        ),
        refused(
            "UDP to the internet from B's address and hardware address",
            lambda s: s.again(s.udp(FAR_ADDRESS, 8080, source=s.b.address), source=s.b.mac),
        ),
        refused(
            "UDP to the internet from B's hardware address",
            lambda s: s.again(s.udp(FAR_ADDRESS, 8080), source=s.b.mac),
        ),
        refused(
            "UDP to the gateway from B's address", lambda s: s.udp(DEFAULT_GATEWAY, 8080, source=s.b.address)
        ),
        refused("TCP SYN to payments from B's address", lambda s: s.tcp(PAYMENTS, 7768, source=s.b.address)),
        refused(
            "UDP to B from the gateway's address", lambda s: s.udp(s.b.address, 8080, source=DEFAULT_GATEWAY)
        ),
        refused("UDP to B from B's own address", lambda s: s.udp(s.b.address, 8080, source=s.b.address)),
        refused(
            "ICMP redirect to B from the gateway",
            lambda s: s.icmp(
                s.b.address,
                packets.REDIRECT,
                1,
                s.a.address.packed,
                s.udp(FAR_ADDRESS, 9, source=s.b.address),
                source=DEFAULT_GATEWAY,
            ),
        ),
        refused("DHCP request", lambda s: s.again(_dhcp(s), to=packets.BROADCAST)),
    ]


def _arp() -> list[Probe]:
    def silent(name: str, build: Build) -> Probe:
        return Probe(Group.ARP, name, build)

    def ask(name: str, find: Callable[[Shot], IPv4Address]) -> Probe:
        return silent(f"ARP: who has {name}?", lambda s: s.arp(packets.ARP_REQUEST, s.a.address, find(s)))

    def ask_host(name: str, find: Callable[[Shot], IPv4Address]) -> Probe:
        return silent(
            f"ARP to the gateway alone: who has {name}?",
            lambda s: s.arp(packets.ARP_REQUEST, s.a.address, find(s), to=s.a.host_mac),
        )

    def claim(name: str, find: Callable[[Shot], IPv4Address]) -> Probe:
        return silent(f"gratuitous ARP as {name}", lambda s: s.arp(packets.ARP_REQUEST, find(s), find(s)))

    def reply(name: str, find: Callable[[Shot], IPv4Address]) -> Probe:
        return silent(
            f"ARP reply nobody asked for, as {name}",
            lambda s: s.arp(packets.ARP_REPLY, find(s), DEFAULT_GATEWAY, to=s.a.host_mac),
        )

    return [
        ask("the uplink's address", lambda s: HOST_ADDRESS),
        ask("the address of payments", lambda s: PAYMENTS),
        ask("127.0.0.1", lambda s: LOOPBACK),
        ask("B's address", lambda s: s.b.address),
        ask("an unused address", lambda s: UNUSED),
        ask("a private address", lambda s: PRIVATE),
        ask_host("somebody's on the internet", lambda s: FAR_ADDRESS),
        ask_host("B's address", lambda s: s.b.address),
        claim("the gateway", lambda s: DEFAULT_GATEWAY),
        claim("B", lambda s: s.b.address),
        claim("the uplink's gateway", lambda s: IPv4Address("192.0.2.1")),
        claim("the host", lambda s: HOST_ADDRESS),
        claim("itself at another hardware address", lambda s: s.a.address),
        reply("B", lambda s: s.b.address),
        reply("the uplink's gateway", lambda s: IPv4Address("192.0.2.1")),
        reply("itself at another hardware address", lambda s: s.a.address),
        silent(
            "ARP request for the gateway as B",
            lambda s: s.arp(packets.ARP_REQUEST, s.b.address, DEFAULT_GATEWAY),
        ),
        silent(
            "ARP request for the gateway as an unused address",
            lambda s: s.arp(packets.ARP_REQUEST, UNUSED, DEFAULT_GATEWAY),
        ),
        silent(
            "ARP reply to B's hardware address as the gateway",
            lambda s: s.arp(packets.ARP_REPLY, DEFAULT_GATEWAY, s.b.address, to=s.b.mac),
        ),
    ]


def _tagged(frame: bytes, tags: bytes) -> bytes:
    return frame[:12] + tags + frame[12:]


def _dhcp(shot: Shot) -> bytes:
    nobody, everybody = IPv4Address(0), IPv4Address("255.255.255.255")
    datagram = packets.udp((nobody, 68), (everybody, 67), shot.token)
    return shot.packet(everybody, packets.UDP, datagram, source=nobody)
