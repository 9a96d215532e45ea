"""What DNS answers are made of: types, codes, records and answers, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from codius_dns.names import ROOT, Name

CLASS_IN: Final = 1
CLASS_CH: Final = 3

MAX_TEXT: Final = 255  # bytes of one character-string, RFC 1035 section 3.3
MAX_TTL: Final = 2**31 - 1  # seconds, RFC 2181 section 8
MAX_SERIAL: Final = 2**32 - 1
MAX_RDATA: Final = (
    4096  # bytes of one record's data; DKIM keys and TLSA certificates are the longest honest ones
)


class Qtype(IntEnum):
    """The types that something here is done for, and those that are counted by name."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    HINFO = 13
    MX = 15
    TXT = 16
    AAAA = 28
    SRV = 33
    DNAME = 39
    OPT = 41
    DS = 43
    RRSIG = 46
    NSEC = 47
    DNSKEY = 48
    NSEC3 = 50
    NSEC3PARAM = 51
    SVCB = 64
    HTTPS = 65
    IXFR = 251
    AXFR = 252
    ANY = 255
    CAA = 257


class Rcode(IntEnum):
    """How an answer ends, RFC 1035 section 4.1.1 and RFC 6891 section 9."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Ede(IntEnum):
    """Why an answer is an error, for people who look (RFC 8914 section 4)."""

    PROHIBITED = 18
    NOT_AUTHORITATIVE = 20
    NOT_SUPPORTED = 21


@dataclass(frozen=True, slots=True)
class Soa:
    """The data of a start of authority."""

    mname: Name
    rname: Name
    serial: int
    refresh: int
    retry: int
    expire: int
    minimum: int


@dataclass(frozen=True, slots=True)
class Ns:
    """The data of a delegation to a name server."""

    target: Name


@dataclass(frozen=True, slots=True)
class Cname:
    """The data of an alias."""

    target: Name


@dataclass(frozen=True, slots=True)
class Text:
    """One TXT value of one character-string."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Hinfo:
    """What ANY gets instead of everything, RFC 8482 section 4.2."""

    cpu: bytes
    os: bytes


@dataclass(frozen=True, slots=True)
class Raw:
    """The data of any other type, as it goes on the wire: names in it are not compressed (RFC 3597)."""

    rtype: int
    data: bytes


RecordData = IPv4Address | IPv6Address | Soa | Ns | Cname | Text | Hinfo | Raw


def type_of(data: RecordData) -> int:
    """The number of the record type that has such data."""
    match data:
        case IPv4Address():
            return Qtype.A
        case IPv6Address():
            return Qtype.AAAA
        case Soa():
            return Qtype.SOA
        case Ns():
            return Qtype.NS
        case Cname():
            return Qtype.CNAME
        case Text():
            return Qtype.TXT
        case Hinfo():
            return Qtype.HINFO
        case Raw(rtype):
            return rtype


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record, of its answer's class."""

    owner: Name | None  # None: whatever name was asked, so that one answer serves every hash
    ttl: int  # seconds
    data: RecordData


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What is said to one question. Compared by identity: a table makes each of its answers once."""

    rcode: Rcode
    records: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()  # left out first when there is no room
    authoritative: bool = True
    origin: Name = ROOT  # a name that every asked name is within: its letters need not be written again
    rclass: int = CLASS_IN
    ede: Ede | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """A record in somebody else's answer, as text in lower case."""

    owner: str
    rtype: int
    data: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Somebody else's answer."""

    rcode: int
    authoritative: bool
    truncated: bool
    answer: tuple[Said, ...]
    authority: tuple[Said, ...]
    additional: tuple[Said, ...]


REFUSED: Final = Answer(Rcode.REFUSED, authoritative=False, ede=Ede.NOT_AUTHORITATIVE)
NO_TRANSFER: Final = Answer(Rcode.REFUSED, authoritative=False, ede=Ede.PROHIBITED)
NO_SUCH_CLASS: Final = Answer(Rcode.REFUSED, authoritative=False, ede=Ede.NOT_SUPPORTED)
NOTIMP: Final = Answer(Rcode.NOTIMP, authoritative=False, ede=Ede.NOT_SUPPORTED)
FORMERR: Final = Answer(Rcode.FORMERR, authoritative=False)
BADVERS: Final = Answer(Rcode.BADVERS, authoritative=False)
BARE: Final = Answer(
    Rcode.NOERROR, authoritative=False
)  # to a question for a cookie alone, RFC 7873 section 5.4
