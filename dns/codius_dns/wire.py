"""dnslib's door: answers and zone files' records become bytes here, and replies become values."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

import dnslib
from dnslib.dns import RDMAP
from dnslib.label import DNSBuffer

from codius_dns.errors import DnsError, ZoneError
from codius_dns.names import ROOT, Name, labels_of
from codius_dns.query import (
    AA,
    DO,
    ECHOED,
    HEADER,
    HEADER_SIZE,
    MAX_UDP_EDNS,
    QR,
    RD,
    TC,
    TWO,
    Edns,
    Query,
)
from codius_dns.records import (
    BARE,
    CLASS_IN,
    MAX_RDATA,
    Answer,
    Cname,
    Hinfo,
    Ns,
    Qtype,
    Raw,
    Record,
    RecordData,
    Reply,
    Said,
    Soa,
    Text,
)

MAX_SHAPES: Final = 4096
"""Rendered answers kept, each as long as a UDP message at most: a flood can ask for every length of name."""

_OPT_RECORD: Final = struct.Struct(
    "!BHHBBHH"
)  # root, type, payload, extended rcode, version, flags, rdlength
_OPTION_EDE: Final = 15  # RFC 8914

_META_TYPES: Final = range(128, 256)  # of questions and transactions, never of records (RFC 6895 section 3.1)

# Stands for "the name that was asked" while dnslib writes: no name of ours has a dot inside a label.
_ASKED: Final = (b".asked",)


def render_header_only(packet: bytes, rcode: int) -> bytes:
    """An error without a question, for a packet of which only the header can be trusted."""
    ident, flags = TWO.unpack_from(packet)
    return HEADER.pack(ident, QR | flags & ECHOED | rcode, 0, 0, 0, 0)


def render_truncated(query: Query) -> bytes:
    """What says "ask again over TCP" and nothing else: never longer than its question."""
    opt = b"" if query.edns is None else _render_opt(query.edns, BARE, b"")
    flags = QR | TC | query.flags & ECHOED
    header = HEADER.pack(query.id, flags, 1 if query.question else 0, 0, 0, 1 if opt else 0)
    return header + query.question + opt


@dataclass(frozen=True, slots=True)
class _Shape:
    """An answer's records as bytes, right for every question whose name has the same length."""

    counts: tuple[int, int, int]
    main: bytes  # answer and authority sections
    extra: bytes  # additional section, without OPT


class Renderer:
    """Writes answers. What dnslib wrote once is kept: a flood costs it nothing.

    Records point back into the question (RFC 1035 section 4.1.4) at the asked name and at the zone's origin
    within it, so their bytes depend on the answer and the asked name's length alone, and on no stranger's
    letters.
    """

    def __init__(self) -> None:
        self._shapes: dict[tuple[Answer, int], _Shape] = {}

    def render(self, query: Query, answer: Answer, limit: int, options: bytes = b"") -> bytes:
        """The whole answer in at most `limit` bytes, TC set when records had to be left out.

        `options` go into the OPT record of a question that has one.
        """
        size = len(query.name)
        shape = self._shapes.get((answer, size)) or self._add_shape(answer, size)
        main, extra = shape.main, shape.extra
        answers, authorities, additionals = shape.counts
        flags = QR | query.flags & ECHOED | answer.rcode & 0xF
        if answer.authoritative:
            flags |= AA
        opt = b"" if query.edns is None else _render_opt(query.edns, answer, options)
        room = limit - HEADER_SIZE - len(query.question) - len(opt)
        if len(main) + len(extra) > room:
            extra, additionals = b"", 0  # help nobody asked for: no reason for TC (RFC 2181 section 9)
            if len(main) > room:
                main, answers, authorities = b"", 0, 0
                flags |= TC
        questions = 1 if query.question else 0
        if opt:
            additionals += 1
        header = HEADER.pack(query.id, flags, questions, answers, authorities, additionals)
        return b"".join((header, query.question, main, extra, opt))

    def _add_shape(self, answer: Answer, size: int) -> _Shape:
        shape = render_sections(answer, size)
        if len(self._shapes) >= MAX_SHAPES:
            self._shapes.clear()  # those still asked for are soon back
        self._shapes[answer, size] = shape
        return shape


def render_option(code: int, data: bytes) -> bytes:
    return TWO.pack(code, len(data)) + data


def _render_opt(edns: Edns, answer: Answer, options: bytes) -> bytes:
    if answer.ede is not None:
        options += render_option(_OPTION_EDE, answer.ede.to_bytes(2))
    head = _OPT_RECORD.pack(0, Qtype.OPT, MAX_UDP_EDNS, answer.rcode >> 4, 0, edns.flags & DO, len(options))
    return head + options


def render_sections(answer: Answer, size: int) -> _Shape:
    """The records after a question whose name is `size` bytes long, written by dnslib."""
    start = HEADER_SIZE + size + 4
    buffer: Any = DNSBuffer(bytes(start))
    buffer.offset = start
    if answer.origin != ROOT:
        buffer.names[labels_of(answer.origin)] = HEADER_SIZE + size - len(answer.origin)
    buffer.names[_ASKED] = HEADER_SIZE
    for record in (*answer.records, *answer.authority):
        _pack(record, answer.rclass, buffer)
    middle = len(buffer.data)
    for record in answer.additional:
        _pack(record, answer.rclass, buffer)
    return _Shape(
        counts=(len(answer.records), len(answer.authority), len(answer.additional)),
        main=bytes(buffer.data[start:middle]),
        extra=bytes(buffer.data[middle:]),
    )


def _pack(record: Record, rclass: int, buffer: Any) -> None:
    owner = _ASKED if record.owner is None else labels_of(record.owner)
    rtype, data = _to_dnslib(record.data)
    dnslib.RR(dnslib.DNSLabel(owner), rtype, rclass, record.ttl, data).pack(buffer)


def _to_dnslib(data: RecordData) -> tuple[int, Any]:
    match data:
        case IPv4Address() as address:
            return Qtype.A, dnslib.A(tuple(address.packed))
        case IPv6Address() as address:
            return Qtype.AAAA, dnslib.AAAA(tuple(address.packed))
        case Ns(target):
            return Qtype.NS, dnslib.NS(dnslib.DNSLabel(labels_of(target)))
        case Cname(target):
            return Qtype.CNAME, dnslib.CNAME(dnslib.DNSLabel(labels_of(target)))
        case Raw(rtype, written):
            return rtype, dnslib.RD(written)
        case Text(value):
            return Qtype.TXT, dnslib.TXT([value])
        case Hinfo(cpu, os):
            strings = bytes((len(cpu),)) + cpu + bytes((len(os),)) + os
            return Qtype.HINFO, dnslib.RD(strings)  # dnslib has no HINFO of its own
        case Soa() as soa:
            times = (soa.serial, soa.refresh, soa.retry, soa.expire, soa.minimum)
            mname, rname = (dnslib.DNSLabel(labels_of(name)) for name in (soa.mname, soa.rname))
            return Qtype.SOA, dnslib.SOA(mname, rname, times)


# ---- zone files -----------------------------------------------------------------------------------


class _Plain(DNSBuffer):  # type: ignore[misc]
    """A buffer in which names are written out: elsewhere there would be nothing to point at."""

    def encode_name(self, name: Any) -> None:
        self.encode_name_nocompress(name)


def parse_type(mnemonic: str) -> int:
    """The number of a type: `A`, or `TYPE65280` (RFC 3597 section 5)."""
    digits = mnemonic.removeprefix("TYPE")
    if digits != mnemonic and digits.isdecimal():
        number = int(digits)
    else:
        number = dnslib.QTYPE.reverse.get(mnemonic, 0)
    if not 0 < number <= 0xFFFF or number == Qtype.OPT or number in _META_TYPES:
        raise ZoneError(
            f"{mnemonic} is no type of records known here",
            hint=r"Write it as TYPE and its number, with data as in `TYPE65280 \# 2 beef`.",
        )
    return int(number)


def parse_rdata(mnemonic: str, words: list[str]) -> bytes:
    """The data of a record in the words of a zone file; any exception of dnslib when they make no sense."""
    kind = RDMAP.get(mnemonic)
    if kind is None:
        raise ZoneError(
            f"{mnemonic} can only be written as bytes here", hint=r"As in `\# 2 beef` (RFC 3597 section 5)."
        )
    buffer = _Plain()
    kind.fromZone(words, None).pack(buffer)
    data = bytes(buffer.data)
    if len(data) > MAX_RDATA:
        raise ZoneError(f"{len(data)} bytes of data are more than the {MAX_RDATA} one record may have")
    return data


def render_rdata(data: RecordData) -> bytes:
    """A record's data by itself, names written out."""
    buffer = _Plain()
    _to_dnslib(data)[1].pack(buffer)
    return bytes(buffer.data)


# ---- asking others --------------------------------------------------------------------------------


def render_question(ident: int, name: Name, qtype: int, *, recursive: bool) -> bytes:
    """A question with EDNS, for a resolver (`recursive`) or for a name server."""
    header = HEADER.pack(ident, RD if recursive else 0, 1, 0, 0, 1)
    return (
        header + name + TWO.pack(qtype, CLASS_IN) + _OPT_RECORD.pack(0, Qtype.OPT, MAX_UDP_EDNS, 0, 0, 0, 0)
    )


def parse_reply(packet: bytes) -> Reply:
    """What another server said; DnsError when it is no DNS message."""
    try:
        record = dnslib.DNSRecord.parse(packet)
        sections = [
            tuple(
                Said(str(rr.rname).lower(), int(rr.rtype), str(rr.rdata).lower())
                for rr in section
                if rr.rtype != Qtype.OPT
            )
            for section in (record.rr, record.auth, record.ar)
        ]
    except Exception as error:  # dnslib tells of what it cannot read by whatever it ran into
        raise DnsError(f"not a DNS message: {error}") from error
    header = record.header
    return Reply(int(header.rcode), bool(header.aa), bool(header.tc), *sections)
