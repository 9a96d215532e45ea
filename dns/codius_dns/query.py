"""The strict reader of questions: a stranger's bytes in, a frozen value out."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from codius_dns.names import MAX_LABEL, MAX_NAME, ROOT, Name
from codius_dns.records import Qtype

HEADER_SIZE: Final = 12  # bytes, RFC 1035 section 4.1.1
MAX_UDP_PLAIN: Final = 512  # bytes without EDNS, RFC 1035 section 2.3.4
MAX_UDP_EDNS: Final = 1232  # bytes: fits every path's MTU unfragmented (DNS flag day 2020)
MAX_TCP: Final = 65535  # bytes: what the length prefix can say, RFC 1035 section 4.2.2
FAIR_SHARE: Final = 8
"""Times a question's own bytes that an answer over UDP may have while the asker's address is unproven.
A reflected flood gains no more than that; who needs more has a cookie, or asks again over TCP."""

OPCODE_QUERY: Final = 0

OPTION_NSID: Final = 3  # RFC 5001
OPTION_COOKIE: Final = 10  # RFC 7873
CLIENT_COOKIE: Final = 8  # bytes, always
COOKIE_SIZES: Final = frozenset({CLIENT_COOKIE, *range(16, 41)})  # bytes, RFC 7873 section 4

QR: Final = 0x8000
OPCODE: Final = 0x7800
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
ECHOED: Final = OPCODE | RD  # RA, Z, AD and CD stay 0 (RFC 4035 section 3.1.6)
DO: Final = 0x8000  # in the OPT record's TTL field; copied to the answer, RFC 3225 section 3
_POINTER: Final = 0xC0  # the two bits of a compression pointer

HEADER: Final = struct.Struct("!HHHHHH")
TWO: Final = struct.Struct("!HH")  # type and class; option and length; id and flags
_RECORD_FIXED: Final = struct.Struct("!HHIH")  # type, class, ttl, rdlength


@dataclass(frozen=True, slots=True)
class Edns:
    """What a question's OPT record says (RFC 6891). Unknown options are checked for form, and ignored."""

    version: int
    payload: int
    flags: int
    bare: bool = True  # without any option
    cookie: bytes | None = None  # as it came: the client's, and behind it the server's if it has one
    nsid: bool = False  # whether it asks who we are


@dataclass(frozen=True, slots=True)
class Query:
    """What could be read of a question. Not `well_formed`: say FORMERR, with the question if there is one."""

    id: int
    flags: int
    question: bytes  # as it came, to be echoed in the asker's own case; empty when it cannot be read
    name: Name
    qtype: int
    qclass: int
    edns: Edns | None
    well_formed: bool

    @property
    def opcode(self) -> int:
        return (self.flags & OPCODE) >> 11


def is_question(packet: bytes) -> bool:
    """Whether this could be answered at all: a whole header, and not itself an answer (so two servers cannot
    keep each other busy).
    """
    return len(packet) >= HEADER_SIZE and not packet[2] & 0x80


def parse_query(packet: bytes) -> Query:
    """Read a packet that `is_question`. Never raises: strangers write these bytes.

    Not done with dnslib: it refuses labels that are not UTF-8, which RFC 2181 section 11 allows, and it
    follows compression pointers, which a question never needs.
    """
    ident, flags, questions, answers, authorities, additionals = HEADER.unpack_from(packet)
    question, name, qtype, qclass, at = b"", ROOT, 0, 0, HEADER_SIZE
    if questions:
        end = _name_end(packet, HEADER_SIZE) if questions == 1 else None  # RFC 9619: one question or none
        if end is None or end + 4 > len(packet) or end - HEADER_SIZE > MAX_NAME:
            return Query(ident, flags, b"", ROOT, 0, 0, None, well_formed=False)
        at = end + 4
        question = packet[HEADER_SIZE:at]
        # A length byte is at most 63 and thus never mistaken for a letter.
        name = Name(packet[HEADER_SIZE:end].lower())
        qtype, qclass = TWO.unpack_from(packet, end)
    edns: Edns | None = None
    before_additional = answers + authorities
    # Every record takes eleven bytes at least: the packet's size bounds this loop, not the counts.
    for index in range(before_additional + additionals):
        found, after = _parse_record(packet, at)
        if after is None or (found is not None and (edns is not None or index < before_additional)):
            return Query(ident, flags, question, name, qtype, qclass, edns, well_formed=False)
        edns = found or edns
        at = after
    # Without a question there is one thing left to ask for: a cookie (RFC 7873 section 5.4).
    asks = bool(questions) or (edns is not None and edns.cookie is not None)
    return Query(ident, flags, question, name, qtype, qclass, edns, well_formed=asks and at == len(packet))


def _name_end(packet: bytes, at: int) -> int | None:
    """Where a name without compression ends; None when it does not end well."""
    size = len(packet)
    while at < size:
        length = packet[at]
        if length == 0:
            return at + 1
        if length > MAX_LABEL:
            return None
        at += 1 + length
    return None


def _owner_end(packet: bytes, at: int) -> int | None:
    """Where a record's owner ends. Pointers are stepped over, never followed."""
    size = len(packet)
    while at < size:
        length = packet[at]
        if length == 0:
            return at + 1
        if length >= _POINTER:
            return at + 2
        if length > MAX_LABEL:
            return None
        at += 1 + length
    return None


def _parse_record(packet: bytes, at: int) -> tuple[Edns | None, int | None]:
    """The OPT record found there, if it is one, and where the record ends: None when it is malformed."""
    end = _owner_end(packet, at)
    if end is None or end + _RECORD_FIXED.size > len(packet):
        return None, None
    rtype, payload, ttl, length = _RECORD_FIXED.unpack_from(packet, end)
    data = end + _RECORD_FIXED.size
    after = data + length
    if after > len(packet):
        return None, None
    if rtype != Qtype.OPT:
        return None, after
    # Its owner is the root (RFC 6891 section 6.1.2), and its options fill the data exactly.
    if packet[at] != 0:
        return None, None
    edns = _parse_options(packet, data, after, payload, ttl)
    return edns, None if edns is None else after


def _parse_options(packet: bytes, at: int, end: int, payload: int, ttl: int) -> Edns | None:
    """None when the options do not fill the data, or a cookie has a size none can have."""
    bare = at == end
    cookie: bytes | None = None
    nsid = False
    while at + 4 <= end:
        code, length = TWO.unpack_from(packet, at)
        at += 4 + length
        if code == OPTION_NSID:
            nsid = True
        elif code == OPTION_COOKIE and cookie is None:  # further ones are ignored, RFC 7873 section 5.2
            cookie = packet[at - length : at]
            if length not in COOKIE_SIZES:
                return None
    if at != end:
        return None
    return Edns(ttl >> 16 & 0xFF, payload, ttl & 0xFFFF, bare, cookie, nsid)


def udp_limit(query: Query, size: int, *, proven: bool = False) -> int:
    """The largest answer over UDP, in bytes, to a question of `size` bytes.

    `proven`: the asker has shown by a cookie that its address is its own.
    """
    # RFC 6891 section 6.2.5: less than 512 means 512.
    limit = MAX_UDP_PLAIN if query.edns is None else min(max(query.edns.payload, MAX_UDP_PLAIN), MAX_UDP_EDNS)
    return limit if proven else min(limit, FAIR_SHARE * size)
