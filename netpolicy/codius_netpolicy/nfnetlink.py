"""Netfilter's netlink: messages and attributes as bytes, and the ruleset's generation."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

# Numbers: linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
NETLINK_NETFILTER: Final = 12
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 1
NLM_F_ACK: Final = 4
NLM_F_DUMP: Final = 0x300
NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF
NFTABLES: Final = 10 << 8
MESSAGE_NEW_GENERATION: Final = NFTABLES | 15
MESSAGE_GET_GENERATION: Final = NFTABLES | 16
NFTA_GEN_ID: Final = 1

HEADER: Final = struct.Struct("=IHHII")
FAMILY_HEADER: Final = struct.Struct("=BBH")
ATTRIBUTE: Final = struct.Struct("=HH")
RECEIVE_BYTES: Final = 256 * 1024
"""A dump comes in messages of at most 32 KiB; larger buffers only save system calls."""
RECEIVE_TIMEOUT: Final = 5.0
"""Seconds; the kernel answers at once, or something is very wrong."""


def open_socket() -> socket.socket:
    """In the network namespace of the calling thread, for as long as it is open."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    try:
        netlink.bind((0, 0))
        netlink.settimeout(RECEIVE_TIMEOUT)
    except BaseException:
        netlink.close()
        raise
    return netlink


def read_generation(netlink: socket.socket) -> int:
    """A number that is one higher after every transaction on any table, whoever made it; OSError."""
    netlink.send(build_message(MESSAGE_GET_GENERATION, 0, b"", family=socket.AF_UNSPEC))
    for kind, body in parse_messages(netlink.recv(RECEIVE_BYTES)):
        if kind == MESSAGE_NEW_GENERATION:
            attributes = dict(parse_attributes(body[FAMILY_HEADER.size :]))
            return int.from_bytes(attributes[NFTA_GEN_ID], "big")
    raise OSError(errno.EPROTO, "the kernel does not number its rulesets")


def receive(netlink: socket.socket, *, until: int) -> Iterator[tuple[int, bytes]]:
    """Messages up to the one of the kind `until`; the kernel's refusal is an OSError."""
    while True:
        for kind, body in parse_messages(netlink.recv(RECEIVE_BYTES)):
            if kind == NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", body)
                if code:
                    raise OSError(-code, os.strerror(-code))
            if kind in (until, NLMSG_ERROR):
                return
            yield kind, body


def build_message(kind: int, flags: int, body: bytes, *, family: int) -> bytes:
    """A request with its header; `family` is the socket family the attributes speak of."""
    payload = FAMILY_HEADER.pack(family, 0, 0) + body
    return HEADER.pack(HEADER.size + len(payload), kind, NLM_F_REQUEST | flags, 1, 0) + payload


def build_attribute(kind: int, value: bytes) -> bytes:
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def parse_messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each; what makes no sense ends it."""
    while len(data) >= HEADER.size:
        length, kind, _, _, _ = HEADER.unpack_from(data)
        if not HEADER.size <= length <= len(data):
            return
        yield kind, data[HEADER.size : length]
        data = data[_aligned(length) :]


def parse_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each; what makes no sense ends it."""
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if not ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & NLA_TYPE_MASK, data[ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3
