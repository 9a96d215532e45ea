"""One pod's counters, element by element over nfnetlink: their cost is the same with 1 and with 5000 pods."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final

from codius_netpolicy import ruleset
from codius_netpolicy.addressing import link_name, pod_mac
from codius_netpolicy.nfnetlink import (
    FAMILY_HEADER,
    NFTABLES,
    NLA_F_NESTED,
    NLM_F_ACK,
    NLMSG_ERROR,
    build_attribute,
    build_message,
    parse_attributes,
    receive,
)
from codius_netpolicy.policy import Policy
from codius_netpolicy.ranges import Address
from codius_netpolicy.traffic import Reason, Traffic, Volume

# libnftables fetches every element of the table before it shows one. Numbers: linux/netfilter/nf_tables.h.
MESSAGE_NEW: Final = NFTABLES | 12
MESSAGE_GET: Final = NFTABLES | 13
NFPROTO_INET: Final = 1
"""The `family` of a table that sees both versions of IP."""
LIST_TABLE: Final = 1
LIST_SET: Final = 2
LIST_ELEMENTS: Final = 3
LIST_ELEMENT: Final = 1
ELEMENT_KEY: Final = 1
ELEMENT_EXPRESSION: Final = 7
DATA_VALUE: Final = 1
EXPRESSION_NAME: Final = 1
EXPRESSION_DATA: Final = 2
COUNTER_BYTES: Final = 1
COUNTER_PACKETS: Final = 2
COUNTER: Final = b"counter\0"
LINK: Final = struct.Struct("16s")
"""A link's name in a key, IFNAMSIZ bytes; every part of a key fills whole words of 4 bytes."""
HARDWARE_ADDRESS: Final = struct.Struct("6s2x")
MARK: Final = struct.Struct("=I")


def read_traffic(netlink: socket.socket, policy: Policy, address: IPv4Address) -> Traffic:
    """What the table has counted for the pod; what it has no element for counts as nothing. OSError."""

    def read(name: str, key: bytes) -> Volume:
        return _read_counter(netlink, policy.table, name, key)

    sent = received = Volume()
    for suffix, own in ruleset.pod_addresses(policy, address):
        sent += read(ruleset.SENT_SET + suffix, build_sent_key(address, own))
        received += read(ruleset.RECEIVED_SET + suffix, own.packed)
    refused = {
        reason: read(ruleset.REFUSED_SET, build_refused_key(address, reason)).packets for reason in Reason
    }
    return Traffic(sent, received, {reason: packets for reason, packets in refused.items() if packets})


def build_sent_key(address: IPv4Address, own: Address) -> bytes:
    """As the set has it: `ifname . ether_addr . address`."""
    mac = bytes.fromhex(pod_mac(address).replace(":", ""))
    return LINK.pack(link_name(address).encode()) + HARDWARE_ADDRESS.pack(mac) + own.packed


def build_refused_key(address: IPv4Address, reason: Reason) -> bytes:
    """As the set has it: `ifname . mark`."""
    return LINK.pack(link_name(address).encode()) + MARK.pack(reason.mark)


def build_request(table: str, name: str, key: bytes) -> bytes:
    """Asks for one element of a set, which is answered by the element or by ENOENT."""
    value = build_attribute(ELEMENT_KEY | NLA_F_NESTED, build_attribute(DATA_VALUE, key))
    element = build_attribute(LIST_ELEMENT | NLA_F_NESTED, value)
    body = (
        build_attribute(LIST_TABLE, table.encode() + b"\0")
        + build_attribute(LIST_SET, name.encode() + b"\0")
        + build_attribute(LIST_ELEMENTS | NLA_F_NESTED, element)
    )
    return build_message(MESSAGE_GET, NLM_F_ACK, body, family=NFPROTO_INET)


def parse_counters(body: bytes) -> Iterator[Volume]:
    """The counter of every element a message has."""
    for kind, elements in parse_attributes(body[FAMILY_HEADER.size :]):
        if kind != LIST_ELEMENTS:
            continue
        for _, element in parse_attributes(elements):
            expression = dict(parse_attributes(dict(parse_attributes(element)).get(ELEMENT_EXPRESSION, b"")))
            if expression.get(EXPRESSION_NAME) == COUNTER:
                counter = dict(parse_attributes(expression.get(EXPRESSION_DATA, b"")))
                yield Volume(
                    int.from_bytes(counter.get(COUNTER_BYTES, b""), "big"),
                    int.from_bytes(counter.get(COUNTER_PACKETS, b""), "big"),
                )


def _read_counter(netlink: socket.socket, table: str, name: str, key: bytes) -> Volume:
    netlink.send(build_request(table, name, key))
    found = Volume()
    try:
        for kind, body in receive(netlink, until=NLMSG_ERROR):
            if kind == MESSAGE_NEW:
                for counter in parse_counters(body):
                    found += counter
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    return found
