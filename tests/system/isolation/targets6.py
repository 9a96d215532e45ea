"""Probes of IPv6, all kinds of them; without IPv6 for pods every one is refused for being that."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv6Address

from codius_netpolicy.traffic import Reason
from tests.harness.namespaces import FAR_ADDRESS6, HOST_ADDRESS6
from tests.system.isolation import packets
from tests.system.isolation.packets import ACK, SYN
from tests.system.isolation.probe import (
    ALL_NODES_MAC,
    MLD_MAC,
    MLD_ROUTERS,
    PRIVATE6,
    RANGES6,
    RESOLVER6,
    UNUSED6,
    Build,
    Group,
    Probe,
    to_udp,
)
from tests.system.isolation.shots import GATEWAY6, Shot


def build_ip6_probes() -> list[Probe]:
    def refused(
        name: str,
        build: Build,
        reason: Reason | None,
        without_ip6: Reason | None = Reason.IPV6,
    ) -> Probe:
        return Probe(Group.IP6, name, build, reason=reason, ip6=True, reason_without_ip6=without_ip6)

    def solicit(target: IPv6Address) -> Callable[[Shot], bytes]:
        return lambda s: s.icmp6(
            target, packets.NEIGHBOUR_SOLICITATION6, bytes(4), target.packed + b"\1\1" + s.mac + _note(s)
        )

    def advertise(claimed: IPv6Address, source: IPv6Address) -> Callable[[Shot], bytes]:
        return lambda s: s.icmp6(
            GATEWAY6,
            packets.NEIGHBOUR_ADVERTISEMENT6,
            b"\x60\0\0\0",
            claimed.packed + b"\2\1" + s.mac + _note(s),
            source=source,
        )

    all_nodes, all_routers = IPv6Address("ff02::1"), IPv6Address("ff02::2")
    own_link_local = IPv6Address("fe80::666")
    found = [
        refused("TCP SYN to B by IPv6", lambda s: s.tcp(s.b.address6, 8080), Reason.POD),
        refused("UDP to B by IPv6", lambda s: s.udp(s.b.address6, 8080), Reason.POD),
        refused("ping to B by IPv6", lambda s: s.ping(s.b.address6), Reason.POD),
        refused(
            "UDP to its own IPv6 address, by the gateway", lambda s: s.udp(s.a.address6, 8080), Reason.POD
        ),
        refused("UDP to an unused IPv6 address of the pool", lambda s: s.udp(UNUSED6, 8080), Reason.POD),
        refused(
            "UDP to B by IPv6, to B's hardware address",
            lambda s: s.again(s.udp(s.b.address6, 8080), to=s.b.mac),
            None,
            None,
        ),
        refused(
            "UDP to B by IPv6, multicast",
            lambda s: s.again(s.udp(s.b.address6, 8080), to=ALL_NODES_MAC),
            Reason.POD,
        ),
        refused(
            "UDP to the link-local address of B's link",
            lambda s: s.udp(_link_local(s.b.mac), 8080, source=own_link_local),
            Reason.SPOOFED,
        ),
        refused("TCP SYN to ssh on the host's IPv6 address", lambda s: s.tcp(HOST_ADDRESS6, 22), Reason.HOST),
        refused(
            "TCP SYN to the front door on the host's IPv6 address",
            lambda s: s.tcp(HOST_ADDRESS6, s.scene.front_door),
            Reason.HOST,
        ),
        refused("ping to the host's IPv6 address", lambda s: s.ping(HOST_ADDRESS6), Reason.HOST),
        refused("UDP to the IPv6 gateway", lambda s: s.udp(GATEWAY6, 8080), Reason.HOST),
        refused("TCP SYN to the admin API on the IPv6 gateway", lambda s: s.tcp(GATEWAY6, 3001), Reason.HOST),
        refused(
            "UDP to the link-local address of the host's uplink",
            lambda s: s.udp(_link_local(s.scene.host_mac), 8080),
            Reason.RANGE,
        ),
        refused("UDP to ::1", lambda s: s.udp(IPv6Address("::1"), 8080), None, None),
        *(
            refused(f"UDP to {address} ({name})", to_udp(address, 8080), Reason.RANGE)
            for name, address in RANGES6.items()
        ),
        refused("TCP SYN to a unique local address", lambda s: s.tcp(PRIVATE6, 80), Reason.RANGE),
        refused(
            "UDP to port 5353 of a private IPv6 resolver", lambda s: s.udp(RESOLVER6, 5353), Reason.RANGE
        ),
        refused(
            "UDP to port 53 of another private IPv6 address", lambda s: s.udp(PRIVATE6, 53), Reason.RANGE
        ),
        refused("TCP SYN to port 25 by IPv6", lambda s: s.tcp(FAR_ADDRESS6, 25), Reason.PORT),
        refused("UDP to port 5060 by IPv6", lambda s: s.udp(FAR_ADDRESS6, 5060), Reason.PORT),
        refused("GRE by IPv6", lambda s: s.other(FAR_ADDRESS6, packets.GRE), Reason.PROTOCOL),
        refused(
            "4in6, with UDP to B inside,",
            lambda s: s.other(FAR_ADDRESS6, packets.IPIP, s.udp(s.b.address, 8080)[14:]),
            Reason.PROTOCOL,
        ),
        refused(
            "TCP SYN-ACK of no connection by IPv6",
            lambda s: s.tcp(FAR_ADDRESS6, 80, SYN | ACK),
            Reason.INVALID,
        ),
    ]
    forged = {
        "B's IPv6 address": lambda s: s.b.address6,
        "an unused IPv6 address of the pool": lambda s: UNUSED6,
        "somebody's on the internet": lambda s: IPv6Address("2001:db8:beef::7"),
        "the host's IPv6 address": lambda s: HOST_ADDRESS6,
        "the IPv6 gateway": lambda s: GATEWAY6,
        "a link-local address": lambda s: own_link_local,
        "::": lambda s: IPv6Address(0),
    }
    found += [
        refused(f"UDP by IPv6 to the internet from {name}", _from6(find), Reason.SPOOFED)
        for name, find in forged.items()
    ]
    return [
        *found,
        refused(
            "UDP by IPv6 from another hardware address",
            lambda s: s.again(s.udp(FAR_ADDRESS6, 8080), source=s.mac),
            Reason.SPOOFED,
        ),
        refused("UDP by IPv6 to the internet from ::1", _from6(lambda s: IPv6Address("::1")), None, None),
        refused("UDP by IPv6 to the internet from ff02::1", _from6(lambda s: all_nodes), None, None),
        refused(
            "router solicitation",
            lambda s: s.again(
                s.icmp6(all_routers, packets.ROUTER_SOLICITATION6, bytes(4), _note(s), source=own_link_local),
                to=bytes.fromhex("333300000002"),
            ),
            Reason.SPOOFED,
        ),
        refused(
            "router advertisement",
            lambda s: s.again(
                s.icmp6(
                    all_nodes,
                    packets.ROUTER_ADVERTISEMENT6,
                    b"\x40\0\x07\x08",
                    bytes(8) + packets.prefix_option(IPv6Address("2001:db8:bad::")) + _note(s),
                    source=own_link_local,
                ),
                to=ALL_NODES_MAC,
            ),
            Reason.SPOOFED,
        ),
        refused(
            "the pod's own multicast listener report",
            lambda s: s.again(
                s.icmp6(MLD_ROUTERS, 143, bytes(4), s.token, source=IPv6Address(0)), to=MLD_MAC
            ),
            None,
        ),
        refused("neighbour solicitation for the host's IPv6 address", solicit(HOST_ADDRESS6), Reason.HOST),
        refused("neighbour solicitation for the gateway", solicit(GATEWAY6), Reason.HOST),
        refused(
            "neighbour advertisement as B",
            lambda s: advertise(s.b.address6, s.a.address6)(s),
            Reason.HOST,
        ),
        refused("neighbour advertisement as the gateway", advertise(GATEWAY6, GATEWAY6), Reason.SPOOFED),
        refused(
            "neighbour advertisement as the uplink's gateway",
            lambda s: advertise(IPv6Address("2001:db8:1::1"), s.a.address6)(s),
            Reason.HOST,
        ),
        refused(
            "ICMPv6 redirect to B from the gateway",
            lambda s: s.icmp6(
                s.b.address6, packets.REDIRECT6, bytes(4), bytes(32) + _note(s), source=GATEWAY6
            ),
            Reason.SPOOFED,
        ),
        refused(
            "UDP to B by IPv6 in two fragments",
            lambda s: s.pieces(s.udp(s.b.address6, 8080, padding=64), 24),
            Reason.POD,
        ),
        refused(
            "UDP to B behind a hop-by-hop header",
            lambda s: s.packet(
                s.b.address6,
                packets.HOP_BY_HOP,
                _options_before(packets.UDP) + s.udp(s.b.address6, 8080)[54:],
            ),
            Reason.POD,
        ),
        refused(
            "UDP to port 5060 behind destination options",
            lambda s: s.packet(
                FAR_ADDRESS6,
                packets.DESTINATION_OPTIONS,
                _options_before(packets.UDP) + s.udp(FAR_ADDRESS6, 5060)[54:],
            ),
            Reason.PORT,
        ),
        refused(
            "UDP source-routed by the gateway to B by IPv6",
            lambda s: s.packet(
                GATEWAY6,
                packets.ROUTING,
                packets.routing_header(packets.UDP, [s.b.address6]) + s.udp(GATEWAY6, 8080)[54:],
            ),
            Reason.HOST,
        ),
    ]


def _from6(find: Callable[[Shot], IPv6Address]) -> Build:
    return lambda s: s.udp(FAR_ADDRESS6, 8080, source=find(s))


def _note(shot: Shot) -> bytes:
    """The token where neighbour discovery has room for it."""
    return packets.neighbour_option(shot.token)


def _options_before(next_header: int) -> bytes:
    """An extension header of options that say nothing: padding."""
    return struct.pack("!BBBB4x", next_header, 0, 1, 4)


def _link_local(mac: bytes) -> IPv6Address:
    """RFC 4291, appendix A."""
    interface = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + interface)
