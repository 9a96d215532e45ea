"""Forgets tracked flows, over nfnetlink: an address must not inherit them, nor outlive a change of rules."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from codius_netpolicy.nfnetlink import (
    FAMILY_HEADER,
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLMSG_DONE,
    NLMSG_ERROR,
    build_attribute,
    build_message,
    open_socket,
    parse_attributes,
    receive,
)
from codius_netpolicy.policy import PolicyError
from codius_netpolicy.ranges import Address

# pyroute2 filters a dump in Python, entry by entry; the kernel does it here, and the few entries found are
# deleted by sending their own bytes back. Numbers: linux/netfilter/nfnetlink_conntrack.h.
CTNETLINK: Final = 1 << 8
MESSAGE_NEW: Final = CTNETLINK | 0
MESSAGE_GET: Final = CTNETLINK | 1
MESSAGE_DELETE: Final = CTNETLINK | 2
CTA_TUPLE_ORIG: Final = 1
CTA_TUPLE_REPLY: Final = 2
CTA_ID: Final = 12
CTA_ZONE: Final = 18
CTA_FILTER: Final = 25
CTA_TUPLE_IP: Final = 1
CTA_TUPLE_PROTO: Final = 2
CTA_IP_V4_SRC: Final = 1
CTA_IP_V4_DST: Final = 2
CTA_IP_V6_SRC: Final = 3
CTA_IP_V6_DST: Final = 4
CTA_PROTO_NUM: Final = 1
CTA_PROTO_DST_PORT: Final = 3
FILTER_ON_SOURCE: Final = 1

_KEYS: Final[Mapping[int, tuple[socket.AddressFamily, int, int]]] = {
    4: (socket.AF_INET, CTA_IP_V4_SRC, CTA_IP_V4_DST),
    6: (socket.AF_INET6, CTA_IP_V6_SRC, CTA_IP_V6_DST),
}
"""Family, and the attributes of a flow's ends, by IP version."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tracked flow, as the bytes that name it to the kernel."""

    family: int
    tuple_origin: bytes
    zone: bytes | None
    id: bytes | None


@dataclass(frozen=True, slots=True)
class Flow:
    """The way a flow was begun. `protocol` is IANA's number, `port` the far end's; 0 where there is none."""

    source: Address
    destination: Address
    protocol: int
    port: int


def forget_flows(*addresses: Address) -> int:
    """Deletes every tracked flow one of the addresses began or answered; the count of those deleted."""

    def find(netlink: socket.socket) -> Iterator[Entry]:
        # Flows it began have it as their origin; flows to it have it as the source of the replies.
        for address in addresses:
            for side in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
                netlink.send(build_dump(side, address))
                for kind, body in receive(netlink, until=NLMSG_DONE):
                    if kind == MESSAGE_NEW and (entry := find_entry(body, side, address)):
                        yield entry

    return _delete_all("forget the tracked flows of a pod", find)


def cut_flows(version: int, unwanted: Callable[[Flow], bool]) -> int:
    """Deletes the tracked flows of an IP version that are unwanted; the count of those deleted."""

    def find(netlink: socket.socket) -> Iterator[Entry]:
        family, *_ = _KEYS[version]
        netlink.send(build_message(MESSAGE_GET, NLM_F_DUMP, b"", family=family))
        for kind, body in receive(netlink, until=NLMSG_DONE):
            flow = parse_flow(body, version) if kind == MESSAGE_NEW else None
            if flow is not None and unwanted(flow) and (entry := _parse_entry(body)):
                yield entry

    return _delete_all("cut the flows that are no longer allowed", find)


def build_dump(side: int, address: Address) -> bytes:
    """Asks for all flows whose tuple on `side` has the address as its source.

    Kernels have the filter since 5.8; older ones answer with every flow, and `find_entry` looks again. For
    IPv6 it is left out: as of 6.18 the kernel compares the wrong way round and hides what was asked for.
    """
    family, key, _ = _KEYS[address.version]
    if address.version == 6:
        return build_message(MESSAGE_GET, NLM_F_DUMP, b"", family=family)
    source = build_attribute(key, address.packed)
    wanted = build_attribute(side | NLA_F_NESTED, build_attribute(CTA_TUPLE_IP | NLA_F_NESTED, source))
    # CTA_FILTER_ORIG_FLAGS and CTA_FILTER_REPLY_FLAGS have the numbers of the sides.
    flags = build_attribute(side, struct.pack("=I", FILTER_ON_SOURCE))
    body = wanted + build_attribute(CTA_FILTER | NLA_F_NESTED, flags)
    return build_message(MESSAGE_GET, NLM_F_DUMP, body, family=family)


def build_deletion(entry: Entry) -> bytes:
    body = build_attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, entry.tuple_origin)
    if entry.zone is not None:
        body += build_attribute(CTA_ZONE, entry.zone)
    if entry.id is not None:
        body += build_attribute(CTA_ID, entry.id)
    return build_message(MESSAGE_DELETE, NLM_F_ACK, body, family=entry.family)


def find_entry(body: bytes, side: int, address: Address) -> Entry | None:
    """The flow a message describes, when its tuple on `side` has the address as its source."""
    _, key, _ = _KEYS[address.version]
    attributes = dict(parse_attributes(body[FAMILY_HEADER.size :]))
    ends = _parse_nested(attributes.get(side, b""), CTA_TUPLE_IP)
    return _parse_entry(body) if ends.get(key) == address.packed else None


def parse_flow(body: bytes, version: int) -> Flow | None:
    """The flow a message describes, as it was begun; None when it says too little."""
    _, source_key, destination_key = _KEYS[version]
    origin = dict(parse_attributes(body[FAMILY_HEADER.size :])).get(CTA_TUPLE_ORIG, b"")
    ends, transport = _parse_nested(origin, CTA_TUPLE_IP), _parse_nested(origin, CTA_TUPLE_PROTO)
    source, destination = ends.get(source_key, b""), ends.get(destination_key, b"")
    kind = IPv4Address if version == 4 else IPv6Address
    size = kind(0).max_prefixlen // 8
    if len(source) != size or len(destination) != size:
        return None
    return Flow(
        kind(source),
        kind(destination),
        int.from_bytes(transport.get(CTA_PROTO_NUM, b""), "big"),
        int.from_bytes(transport.get(CTA_PROTO_DST_PORT, b""), "big"),
    )


def _parse_entry(body: bytes) -> Entry | None:
    if len(body) < FAMILY_HEADER.size:
        return None
    family, _, _ = FAMILY_HEADER.unpack_from(body)
    attributes = dict(parse_attributes(body[FAMILY_HEADER.size :]))
    if CTA_TUPLE_ORIG not in attributes:
        return None
    return Entry(family, attributes[CTA_TUPLE_ORIG], attributes.get(CTA_ZONE), attributes.get(CTA_ID))


def _parse_nested(data: bytes, key: int) -> dict[int, bytes]:
    return dict(parse_attributes(dict(parse_attributes(data)).get(key, b"")))


def _delete_all(action: str, find: Callable[[socket.socket], Iterator[Entry]]) -> int:
    try:
        with open_socket() as netlink:
            # All are found first: an answer to a deletion must not meet the rest of a dump.
            return sum(_delete(netlink, entry) for entry in set(find(netlink)))
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL):
            return 0  # the module is not loaded: nothing is tracked
        raise PolicyError(f"cannot {action}: {error}", "run as root") from error


def _delete(netlink: socket.socket, entry: Entry) -> bool:
    netlink.send(build_deletion(entry))
    try:
        for _ in receive(netlink, until=NLMSG_ERROR):
            pass
    except FileNotFoundError:
        return False  # it ended by itself meanwhile
    return True
