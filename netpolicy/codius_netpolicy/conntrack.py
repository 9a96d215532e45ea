"""Forgets the tracked flows of one address, over nfnetlink; an address must not inherit them."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from codius_netpolicy.policy import PolicyError

# pyroute2 filters a dump in Python, entry by entry; the kernel does it here, and the few entries found are
# deleted by sending their own bytes back. Numbers: linux/netfilter/nfnetlink*.h.
NETLINK_NETFILTER: Final = 12
CTNETLINK: Final = 1 << 8
MESSAGE_NEW: Final = CTNETLINK | 0
MESSAGE_GET: Final = CTNETLINK | 1
MESSAGE_DELETE: Final = CTNETLINK | 2
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 1
NLM_F_ACK: Final = 4
NLM_F_DUMP: Final = 0x300
NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF
CTA_TUPLE_ORIG: Final = 1
CTA_TUPLE_REPLY: Final = 2
CTA_ID: Final = 12
CTA_ZONE: Final = 18
CTA_FILTER: Final = 25
CTA_TUPLE_IP: Final = 1
CTA_IP_V4_SRC: Final = 1
FILTER_ON_SOURCE: Final = 1

HEADER: Final = struct.Struct("=IHHII")
FAMILY_HEADER: Final = struct.Struct("=BBH")
ATTRIBUTE: Final = struct.Struct("=HH")
RECEIVE_BYTES: Final = 256 * 1024
"""A dump comes in messages of at most 32 KiB; larger buffers only save system calls."""
RECEIVE_TIMEOUT: Final = 5.0
"""Seconds; the kernel answers at once, or something is very wrong."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tracked flow, as the bytes that name it to the kernel."""

    tuple_origin: bytes
    zone: bytes | None
    id: bytes | None


def forget_flows(address: IPv4Address) -> int:
    """Deletes every tracked flow the address began or answered; the count of those deleted."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
            netlink.bind((0, 0))
            netlink.settimeout(RECEIVE_TIMEOUT)
            # Flows it began have it as their origin; flows to it have it as the source of the replies.
            entries = {
                entry
                for side in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY)
                for entry in _find_entries(netlink, side, address)
            }
            return sum(_delete(netlink, entry) for entry in entries)
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL):
            return 0  # the module is not loaded: nothing is tracked
        raise PolicyError(f"cannot forget the tracked flows of {address}: {error}", "run as root") from error


def build_dump(side: int, address: IPv4Address) -> bytes:
    """Asks for all flows whose tuple on `side` has the address as its source."""
    source = _attribute(CTA_IP_V4_SRC, address.packed)
    wanted = _attribute(side | NLA_F_NESTED, _attribute(CTA_TUPLE_IP | NLA_F_NESTED, source))
    # CTA_FILTER_ORIG_FLAGS and CTA_FILTER_REPLY_FLAGS have the numbers of the sides. Kernels before 5.8
    # do not know the filter and answer with every flow: `parse_entries` looks again.
    flags = _attribute(side, struct.pack("=I", FILTER_ON_SOURCE))
    return _message(MESSAGE_GET, NLM_F_DUMP, wanted + _attribute(CTA_FILTER | NLA_F_NESTED, flags))


def build_deletion(entry: Entry) -> bytes:
    body = _attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, entry.tuple_origin)
    if entry.zone is not None:
        body += _attribute(CTA_ZONE, entry.zone)
    if entry.id is not None:
        body += _attribute(CTA_ID, entry.id)
    return _message(MESSAGE_DELETE, NLM_F_ACK, body)


def find_entry(body: bytes, side: int, address: IPv4Address) -> Entry | None:
    """The flow a message describes, when its tuple on `side` has the address as its source."""
    attributes = dict(_attributes(body[FAMILY_HEADER.size :]))
    addresses = dict(_attributes(dict(_attributes(attributes.get(side, b""))).get(CTA_TUPLE_IP, b"")))
    if addresses.get(CTA_IP_V4_SRC) != address.packed or CTA_TUPLE_ORIG not in attributes:
        return None
    return Entry(attributes[CTA_TUPLE_ORIG], attributes.get(CTA_ZONE), attributes.get(CTA_ID))


def _find_entries(netlink: socket.socket, side: int, address: IPv4Address) -> Iterator[Entry]:
    netlink.send(build_dump(side, address))
    while True:
        for kind, body in _messages(netlink.recv(RECEIVE_BYTES)):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                _raise_error(body)
                return
            if kind == MESSAGE_NEW and (entry := find_entry(body, side, address)):
                yield entry


def _delete(netlink: socket.socket, entry: Entry) -> bool:
    netlink.send(build_deletion(entry))
    for kind, body in _messages(netlink.recv(RECEIVE_BYTES)):
        if kind == NLMSG_ERROR:
            try:
                _raise_error(body)
            except FileNotFoundError:
                return False  # it ended by itself meanwhile
    return True


def _raise_error(body: bytes) -> None:
    (code,) = struct.unpack_from("=i", body)
    if code:
        raise OSError(-code, os.strerror(-code))


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= HEADER.size:
        length, kind, _, _, _ = HEADER.unpack_from(data)
        if not HEADER.size <= length <= len(data):
            return
        yield kind, data[HEADER.size : length]
        data = data[_aligned(length) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if not ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & NLA_TYPE_MASK, data[ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _attribute(kind: int, value: bytes) -> bytes:
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    payload = FAMILY_HEADER.pack(socket.AF_INET, 0, 0) + body
    return HEADER.pack(HEADER.size + len(payload), kind, NLM_F_REQUEST | flags, 1, 0) + payload


def _aligned(length: int) -> int:
    return (length + 3) & ~3
