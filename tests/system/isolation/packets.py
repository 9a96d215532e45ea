"""Packets byte by byte, the forged ones too: Ethernet, ARP, IPv4, IPv6, and what they carry."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final

Address = IPv4Address | IPv6Address

ETHERTYPE_IP: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IP6: Final = 0x86DD
ETHERNET_HEADER: Final = 14
BROADCAST: Final = b"\xff" * 6

ICMP, IGMP, IPIP, TCP, UDP, SIX_IN_FOUR, GRE, ESP, ICMP6, OSPF, SCTP, UDPLITE = (
    *(1, 2, 4, 6, 17, 41, 47, 50, 58, 89, 132, 136),
)
"""Numbers of protocols, as IANA assigned them."""
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
"""IPv6 extension headers (RFC 8200)."""

FIN, SYN, RST, PUSH, ACK, URGENT = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
ECHO_REPLY, UNREACHABLE, REDIRECT, ECHO_REQUEST, ROUTER_ADVERTISEMENT = 0, 3, 5, 8, 9
ECHO_REQUEST6, ROUTER_SOLICITATION6, ROUTER_ADVERTISEMENT6 = 128, 133, 134
NEIGHBOUR_SOLICITATION6, NEIGHBOUR_ADVERTISEMENT6, REDIRECT6 = 135, 136, 137
ARP_REQUEST, ARP_REPLY = 1, 2

HOP_LIMIT: Final = 255
"""Of every packet: with less, nobody listens to neighbour discovery (RFC 4861, 7.1)."""
MORE_FRAGMENTS: Final = 0x2000


def ethernet(destination: bytes, source: bytes, kind: int, payload: bytes) -> bytes:
    return destination + source + struct.pack("!H", kind) + payload


def arp(operation: int, sender: tuple[bytes, IPv4Address], target: tuple[bytes, IPv4Address]) -> bytes:
    """Sender and target are hardware and protocol address (RFC 826)."""
    header = struct.pack("!HHBBH", 1, ETHERTYPE_IP, 6, 4, operation)
    return header + sender[0] + sender[1].packed + target[0] + target[1].packed


def ip(
    source: Address,
    destination: Address,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    identification: int = 0,
    fragment: int = 0,
) -> bytes:
    """Of the version of its destination. `options` and `fragment` (flags and offset) are IPv4's."""
    if isinstance(destination, IPv6Address):
        return (
            struct.pack("!IHBB", 6 << 28, len(payload), protocol, HOP_LIMIT)
            + source.packed
            + destination.packed
            + payload
        )
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH4s4s",
        *(4 << 4 | words, 0, 4 * words + len(payload), identification, fragment, HOP_LIMIT, protocol, 0),
        *(source.packed, destination.packed),
    )
    header += options
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:] + payload


def tcp(source: tuple[Address, int], destination: tuple[Address, int], flags: int, payload: bytes) -> bytes:
    acknowledged = 1 if flags & ACK else 0
    segment = struct.pack(
        "!HHIIBBHHH", source[1], destination[1], 1000, acknowledged, 5 << 4, flags, 1024, 0, 0
    )
    return _with_checksum(segment + payload, 16, TCP, source[0], destination[0])


def udp(source: tuple[Address, int], destination: tuple[Address, int], payload: bytes) -> bytes:
    datagram = struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), 0) + payload
    return _with_checksum(datagram, 6, UDP, source[0], destination[0])


def sctp(source: int, destination: int, payload: bytes) -> bytes:
    """A chunk INIT (RFC 9260, 3.3.2) that carries the payload as an unknown parameter."""
    parameter = struct.pack("!HH", 0x8777, 4 + len(payload)) + payload
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20 + len(parameter), 1, 1500, 1, 1, 1) + parameter
    segment = struct.pack("!HHII", source, destination, 0, 0) + chunk
    return segment[:8] + struct.pack("<I", _crc32c(segment)) + segment[12:]


def icmp(kind: int, code: int, rest: bytes, payload: bytes = b"") -> bytes:
    """`rest` is the second half of its header: four bytes."""
    message = struct.pack("!BBH", kind, code, 0) + rest + payload
    return message[:2] + struct.pack("!H", _checksum(message)) + message[4:]


def icmp6(source: Address, destination: Address, kind: int, rest: bytes, payload: bytes = b"") -> bytes:
    message = struct.pack("!BBH", kind, 0, 0) + rest + payload
    return _with_checksum(message, 2, ICMP6, source, destination)


def fragment(packet: bytes, *sizes: int) -> list[bytes]:
    """The IPv4 packet in pieces: these many bytes of its payload (multiples of eight), and the rest."""
    header, payload = packet[:20], packet[20:]
    source, destination = IPv4Address(header[12:16]), IPv4Address(header[16:20])
    (identification,) = struct.unpack("!H", header[4:6])
    pieces, offset = [], 0
    for size in (*sizes, len(payload) - sum(sizes)):
        more = MORE_FRAGMENTS if offset + size < len(payload) else 0
        piece = payload[offset : offset + size]
        pieces.append(
            ip(
                *(source, destination, header[9], piece),
                identification=identification,
                fragment=more | offset // 8,
            )
        )
        offset += size
    return pieces


def fragment6(packet: bytes, identification: int, *sizes: int) -> list[bytes]:
    """The same with IPv6's fragment header (RFC 8200, 4.5)."""
    header, payload = packet[:40], packet[40:]
    source, destination = IPv6Address(header[8:24]), IPv6Address(header[24:40])
    pieces, offset = [], 0
    for size in (*sizes, len(payload) - sum(sizes)):
        more = 1 if offset + size < len(payload) else 0
        extension = struct.pack("!BBHI", header[6], 0, offset | more, identification)
        pieces.append(ip(source, destination, FRAGMENT, extension + payload[offset : offset + size]))
        offset += size
    return pieces


def neighbour_option(content: bytes) -> bytes:
    """One of a type for experiments (RFC 4727), which everybody has to skip."""
    units = (2 + len(content) + 7) // 8
    return struct.pack("!BB", 253, units) + content + bytes(8 * units - 2 - len(content))


def prefix_option(prefix: IPv6Address) -> bytes:
    """Invites whoever hears it to take an address of the prefix (RFC 4861, 4.6.2)."""
    return struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + prefix.packed


def source_route(*hops: IPv4Address) -> bytes:
    """The option "loose source route" (RFC 791, 3.1), padded."""
    route = b"".join(hop.packed for hop in hops)
    return _padded(struct.pack("!BBB", 131, 3 + len(route), 4) + route)


def routing_header(next_header: int, hops: Sequence[IPv6Address]) -> bytes:
    """Of type 0, which RFC 5095 forbids to follow."""
    route = b"".join(hop.packed for hop in hops)
    return struct.pack("!BBBBI", next_header, 2 * len(hops), 0, len(hops), 0) + route


def _padded(options: bytes) -> bytes:
    return options + b"\0" * (-len(options) % 4)


def _with_checksum(
    payload: bytes, offset: int, protocol: int, source: Address, destination: Address
) -> bytes:
    pseudo = source.packed + destination.packed + struct.pack("!II", len(payload), protocol)
    found = _checksum(pseudo + payload) or 0xFFFF
    return payload[:offset] + struct.pack("!H", found) + payload[offset + 2 :]


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def _crc32c(data: bytes) -> int:
    """RFC 9260, appendix A."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF
