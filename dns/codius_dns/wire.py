"""The wire format: a strict reader of questions, and dnslib's door for writing answers."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

import dnslib
from dnslib.label import DNSBuffer

from codius_dns.names import MAX_LABEL, MAX_NAME, Name, labels_of
from codius_dns.zone import Answer, Hinfo, Ns, Qtype, Record, Soa, Text

HEADER_SIZE: Final = 12  # bytes, RFC 1035 section 4.1.1
MAX_UDP_PLAIN: Final = 512  # bytes without EDNS, RFC 1035 section 2.3.4
MAX_UDP_EDNS: Final = 1232  # bytes: fits every path's MTU unfragmented (DNS flag day 2020)
MAX_TCP: Final = 65535  # bytes: what the length prefix can say, RFC 1035 section 4.2.2
MAX_SHAPES: Final = 2048  # rendered answers kept, well above (kinds of answer) x (lengths of names)

CLASS_IN: Final = 1
OPCODE_QUERY: Final = 0

_QR: Final = 0x8000
_OPCODE: Final = 0x7800
_AA: Final = 0x0400
_TC: Final = 0x0200
_RD: Final = 0x0100
_ECHOED: Final = _OPCODE | _RD  # RA, Z, AD and CD stay 0 (RFC 4035 section 3.1.6)
_POINTER: Final = 0xC0  # the two bits of a compression pointer
_DO: Final = 0x8000  # in the OPT record's TTL field; copied to the answer, RFC 3225 section 3

_HEADER: Final = struct.Struct("!HHHHHH")
_TYPE_CLASS: Final = struct.Struct("!HH")
_RECORD_FIXED: Final = struct.Struct("!HHIH")  # type, class, ttl, rdlength
_OPT_RECORD: Final = struct.Struct(
    "!BHHBBHH"
)  # root, type, payload, extended rcode, version, flags, rdlength

# Stands for "the name that was asked" while dnslib writes: no name of ours has a dot inside a label.
_ASKED: Final = (b".asked",)


@dataclass(frozen=True, slots=True)
class Edns:
    """What a question's OPT record says (RFC 6891). Options are checked for form and otherwise ignored."""

    version: int
    payload: int
    flags: int


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
        return (self.flags & _OPCODE) >> 11


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
    ident, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(packet)
    end = _name_end(packet, HEADER_SIZE) if questions == 1 else None  # RFC 9619: one question or none
    if end is None or end + 4 > len(packet) or end - HEADER_SIZE > MAX_NAME:
        return Query(ident, flags, b"", Name(b"\0"), 0, 0, None, well_formed=False)
    question = packet[HEADER_SIZE : end + 4]
    # A length byte is at most 63 and thus never mistaken for a letter.
    name = Name(packet[HEADER_SIZE:end].lower())
    qtype, qclass = _TYPE_CLASS.unpack_from(packet, end)
    edns: Edns | None = None
    at = end + 4
    before_additional = answers + authorities
    # Every record takes eleven bytes at least: the packet's size bounds this loop, not the counts.
    for index in range(before_additional + additionals):
        found, after = _parse_record(packet, at)
        if after is None or (found is not None and (edns is not None or index < before_additional)):
            return Query(ident, flags, question, name, qtype, qclass, edns, well_formed=False)
        edns = found or edns
        at = after
    return Query(ident, flags, question, name, qtype, qclass, edns, well_formed=at == len(packet))


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
    if packet[at] != 0 or not _options_fill(packet, data, after):
        return None, None
    return Edns(version=ttl >> 16 & 0xFF, payload=payload, flags=ttl & 0xFFFF), after


def _options_fill(packet: bytes, at: int, end: int) -> bool:
    while at + 4 <= end:
        at += 4 + _TYPE_CLASS.unpack_from(packet, at)[1]
    return at == end


def udp_limit(query: Query) -> int:
    """The largest answer over UDP, in bytes (RFC 6891 section 6.2.5: less than 512 means 512)."""
    if query.edns is None:
        return MAX_UDP_PLAIN
    return min(max(query.edns.payload, MAX_UDP_PLAIN), MAX_UDP_EDNS)


def render_header_only(packet: bytes, rcode: int) -> bytes:
    """An error without a question, for a packet of which only the header can be trusted."""
    ident, flags = _TYPE_CLASS.unpack_from(packet)
    return _HEADER.pack(ident, _QR | flags & _ECHOED | rcode, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class _Shape:
    """An answer's records as bytes, right for every question whose name has the same length."""

    counts: tuple[int, int, int]
    main: bytes  # answer and authority sections
    extra: bytes  # additional section, without OPT


class Renderer:
    """Writes one table's answers. What dnslib wrote once is kept: a flood costs it nothing.

    Records point back into the question (RFC 1035 section 4.1.4) at the asked name and at the origin within
    it, so their bytes depend on the answer and the asked name's length alone, and on no stranger's letters.
    """

    def __init__(self, origin: Name) -> None:
        self._origin = origin
        self._shapes: dict[tuple[Answer, int], _Shape] = {}

    def render(self, query: Query, answer: Answer, limit: int) -> bytes:
        """The whole answer in at most `limit` bytes, TC set when records had to be left out."""
        size = len(query.name)
        shape = self._shapes.get((answer, size)) or self._add_shape(answer, size)
        main, extra = shape.main, shape.extra
        answers, authorities, additionals = shape.counts
        flags = _QR | query.flags & _ECHOED | answer.rcode & 0xF
        if answer.authoritative:
            flags |= _AA
        opt = b"" if query.edns is None else _render_opt(query.edns, answer.rcode)
        room = limit - HEADER_SIZE - len(query.question) - len(opt)
        if len(main) + len(extra) > room:
            extra, additionals = b"", 0  # help nobody asked for: no reason for TC (RFC 2181 section 9)
            if len(main) > room:
                main, answers, authorities = b"", 0, 0
                flags |= _TC
        questions = 1 if query.question else 0
        if opt:
            additionals += 1
        header = _HEADER.pack(query.id, flags, questions, answers, authorities, additionals)
        return b"".join((header, query.question, main, extra, opt))

    def _add_shape(self, answer: Answer, size: int) -> _Shape:
        shape = render_sections(answer, self._origin, size)
        if len(self._shapes) < MAX_SHAPES:
            self._shapes[answer, size] = shape
        return shape


def _render_opt(edns: Edns, rcode: int) -> bytes:
    return _OPT_RECORD.pack(0, Qtype.OPT, MAX_UDP_EDNS, rcode >> 4, 0, edns.flags & _DO, 0)


def render_sections(answer: Answer, origin: Name, size: int) -> _Shape:
    """The records after a question whose name is `size` bytes long, written by dnslib."""
    start = HEADER_SIZE + size + 4
    buffer: Any = DNSBuffer(bytes(start))
    buffer.offset = start
    if size >= len(origin):
        buffer.names[labels_of(origin)] = HEADER_SIZE + size - len(origin)
    buffer.names[_ASKED] = HEADER_SIZE
    for record in (*answer.records, *answer.authority):
        _pack(record, buffer)
    middle = len(buffer.data)
    for record in answer.additional:
        _pack(record, buffer)
    return _Shape(
        counts=(len(answer.records), len(answer.authority), len(answer.additional)),
        main=bytes(buffer.data[start:middle]),
        extra=bytes(buffer.data[middle:]),
    )


def _pack(record: Record, buffer: Any) -> None:
    owner = _ASKED if record.owner is None else labels_of(record.owner)
    rtype, data = _to_dnslib(record)
    dnslib.RR(dnslib.DNSLabel(owner), rtype, CLASS_IN, record.ttl, data).pack(buffer)


def _to_dnslib(record: Record) -> tuple[int, Any]:
    match record.data:
        case IPv4Address() as address:
            return Qtype.A, dnslib.A(tuple(address.packed))
        case IPv6Address() as address:
            return Qtype.AAAA, dnslib.AAAA(tuple(address.packed))
        case Ns(target):
            return Qtype.NS, dnslib.NS(dnslib.DNSLabel(labels_of(target)))
        case Text(value):
            return Qtype.TXT, dnslib.TXT([value])
        case Hinfo(cpu, os):
            strings = bytes((len(cpu),)) + cpu + bytes((len(os),)) + os
            return Qtype.HINFO, dnslib.RD(strings)  # dnslib has no HINFO of its own
        case Soa() as soa:
            times = (soa.serial, soa.refresh, soa.retry, soa.expire, soa.minimum)
            mname, rname = (dnslib.DNSLabel(labels_of(name)) for name in (soa.mname, soa.rname))
            return Qtype.SOA, dnslib.SOA(mname, rname, times)
