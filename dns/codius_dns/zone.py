"""What the host's zone says: every answer it can give, decided without I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from codius_dns.errors import ZoneError
from codius_dns.names import (
    HASH_LABEL,
    MAX_NAME,
    Name,
    ancestors,
    is_hash_name,
    is_within,
    parse_mailbox,
    parse_name,
)

MAX_ADDRESSES: Final = 8  # of each family: more would let a small question fetch a large answer
MAX_NAMESERVERS: Final = 8  # the same
MAX_TEXTS: Final = 16  # values at one name: an order for several names needs two or three at once
MAX_TEXT: Final = 255  # bytes of one character-string, RFC 1035 section 3.3
MAX_TTL: Final = 2**31 - 1  # seconds, RFC 2181 section 8
MAX_SERIAL: Final = 2**32 - 1

SOA_REFRESH: Final = 3600  # seconds; the SOA's timers are for secondaries, and we have none
SOA_RETRY: Final = 600
SOA_EXPIRE: Final = 1209600  # seconds: two weeks, as RIPE-203 advises
TEXT_TTL: Final = 5  # seconds: a challenge lives for one validation, and the next one must be seen
ANY_TTL: Final = 3600  # seconds: RFC 8482 section 4.2 asks for a long life, so that the asker stops


class Qtype(IntEnum):
    """The record types this zone has an opinion on."""

    A = 1
    NS = 2
    SOA = 6
    HINFO = 13
    TXT = 16
    AAAA = 28
    OPT = 41
    IXFR = 251
    AXFR = 252
    ANY = 255


class Rcode(IntEnum):
    """How an answer ends, RFC 1035 section 4.1.1 and RFC 6891 section 9."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


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
    """The data of a delegation to a nameserver."""

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


RecordData = IPv4Address | IPv6Address | Soa | Ns | Text | Hinfo


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record, class IN."""

    owner: Name | None  # None: whatever name was asked, so that one answer serves every hash
    ttl: int  # seconds
    data: RecordData


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What is said to one question. Compared by identity: the zone makes each of its answers once."""

    rcode: Rcode
    records: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()  # left out first when there is no room
    authoritative: bool = True


REFUSED: Final = Answer(Rcode.REFUSED, authoritative=False)
NOTIMP: Final = Answer(Rcode.NOTIMP, authoritative=False)
FORMERR: Final = Answer(Rcode.FORMERR, authoritative=False)
BADVERS: Final = Answer(Rcode.BADVERS, authoritative=False)

Node = Mapping[int, Answer]
"""The answers at one name by type. An empty one is a name that exists only because one below it does."""


@dataclass(frozen=True, slots=True)
class Zone:
    """The host's zone as the operator configured it."""

    origin: str
    ipv4: tuple[IPv4Address, ...] = ()
    ipv6: tuple[IPv6Address, ...] = ()
    nameservers: tuple[str, ...] = ()  # none: ns1.<origin>, with our own addresses as glue
    hostmaster: str | None = None  # a mailbox; none: hostmaster@<origin>
    address_ttl: int = 300  # seconds
    nameserver_ttl: int = 3600  # seconds, of NS and SOA
    negative_ttl: int = 60  # seconds a resolver remembers that something is not there, RFC 2308
    serial: int = 1

    def __post_init__(self) -> None:
        """Refuse what could not be served, with a sentence, before any socket is open."""
        if not self.ipv4 and not self.ipv6:
            raise ZoneError(
                f"the zone {self.origin} has no public address to answer with",
                hint="Give the addresses visitors reach this host by.",
            )
        for family, addresses in (("IPv4", self.ipv4), ("IPv6", self.ipv6)):
            if len(addresses) > MAX_ADDRESSES:
                raise ZoneError(
                    f"{len(addresses)} {family} addresses are more than the {MAX_ADDRESSES} we answer with"
                )
        if len(self.nameservers) > MAX_NAMESERVERS:
            raise ZoneError(f"{len(self.nameservers)} nameservers are more than {MAX_NAMESERVERS}")
        for label, seconds in (
            ("address_ttl", self.address_ttl),
            ("nameserver_ttl", self.nameserver_ttl),
            ("negative_ttl", self.negative_ttl),
        ):
            if not 0 <= seconds <= MAX_TTL:
                raise ZoneError(f"{label}={seconds} is not between 0 and {MAX_TTL} seconds")
        if not 0 <= self.serial <= MAX_SERIAL:
            raise ZoneError(f"serial={self.serial} is not between 0 and {MAX_SERIAL}")
        origin = parse_name(self.origin)
        if 1 + HASH_LABEL + len(origin) > MAX_NAME:
            raise ZoneError(
                f"{self.origin!r} is too long: a hash name under it would not be a DNS name any more"
            )
        for nameserver in self.nameservers:
            parse_name(nameserver)
        parse_mailbox(self.mailbox)

    @property
    def nameserver_names(self) -> tuple[str, ...]:
        return self.nameservers or (f"ns1.{self.origin}",)

    @property
    def mailbox(self) -> str:
        return self.hostmaster or f"hostmaster@{self.origin.removesuffix('.')}"


class Table:
    """Every answer of a zone, made once. A change makes a new table, so a look-up never sees half of one."""

    def __init__(self, zone: Zone, texts: Mapping[str, Sequence[bytes]] | None = None) -> None:
        """`texts` are the TXT values by name, such as `_acme-challenge.<origin>` while a challenge runs."""
        self.origin: Final = parse_name(zone.origin)
        servers = tuple(dict.fromkeys(parse_name(name) for name in zone.nameserver_names))
        soa = Soa(
            mname=servers[0],
            rname=parse_mailbox(zone.mailbox),
            serial=zone.serial,
            refresh=SOA_REFRESH,
            retry=SOA_RETRY,
            expire=SOA_EXPIRE,
            minimum=zone.negative_ttl,
        )
        # A negative answer lives as long as the lesser of the two, RFC 2308 section 5.
        denial = (Record(self.origin, min(zone.negative_ttl, zone.nameserver_ttl), soa),)
        self._nodata: Final = Answer(Rcode.NOERROR, authority=denial)
        self._nxdomain: Final = Answer(Rcode.NXDOMAIN, authority=denial)
        self._hash: Final = self._address_node(zone)

        addresses: tuple[IPv4Address | IPv6Address, ...] = (*zone.ipv4, *zone.ipv6)
        glue = tuple(
            Record(server, zone.address_ttl, address)
            for server in servers
            if is_within(server, self.origin)
            for address in addresses
        )
        nameservers = tuple(Record(None, zone.nameserver_ttl, Ns(server)) for server in servers)
        nodes: dict[Name, Node] = {}
        for server in servers:
            if is_within(server, self.origin):
                nodes[server] = self._hash
        nodes[self.origin] = {
            **self._hash,
            Qtype.SOA: Answer(Rcode.NOERROR, (Record(None, zone.nameserver_ttl, soa),)),
            Qtype.NS: Answer(Rcode.NOERROR, nameservers, additional=glue),
        }
        for text_name, values in (texts or {}).items():
            if values:
                self._add_texts(nodes, text_name, values)
        for name in tuple(nodes):
            self._add_ancestors(nodes, name)
        self._nodes: Final = nodes

    @staticmethod
    def _address_node(zone: Zone) -> Node:
        """The answers at a name that leads to this host."""
        any_answer = Answer(Rcode.NOERROR, (Record(None, ANY_TTL, Hinfo(b"RFC8482", b"")),))
        node = {int(Qtype.ANY): any_answer}
        if zone.ipv4:
            node[Qtype.A] = Answer(Rcode.NOERROR, tuple(Record(None, zone.address_ttl, a) for a in zone.ipv4))
        if zone.ipv6:
            node[Qtype.AAAA] = Answer(
                Rcode.NOERROR, tuple(Record(None, zone.address_ttl, a) for a in zone.ipv6)
            )
        return node

    def _add_texts(self, nodes: dict[Name, Node], text_name: str, values: Sequence[bytes]) -> None:
        name = parse_name(text_name)
        if not is_within(name, self.origin):
            raise ZoneError(f"the TXT name {text_name!r} is outside the zone")
        if len(values) > MAX_TEXTS or any(len(value) > MAX_TEXT for value in values):
            raise ZoneError(f"{text_name!r} may have {MAX_TEXTS} TXT values of {MAX_TEXT} bytes at most")
        records = tuple(Record(None, TEXT_TTL, Text(value)) for value in dict.fromkeys(values))
        node = nodes.get(name) or (self._hash if is_hash_name(name, self.origin) else {})
        nodes[name] = {
            Qtype.ANY: self._hash[Qtype.ANY],
            **node,
            Qtype.TXT: Answer(Rcode.NOERROR, records),
        }

    def _add_ancestors(self, nodes: dict[Name, Node], name: Name) -> None:
        """Names between this one and the origin exist too, if only as empty non-terminals (RFC 8020)."""
        if name == self.origin:
            return
        for above in ancestors(name):
            if above == self.origin:
                return
            nodes.setdefault(above, self._hash if is_hash_name(above, self.origin) else {})

    def find(self, name: Name, qtype: int) -> Answer:
        """What the zone says to a question of class IN, never None: REFUSED when it is not ours to say."""
        node = self._nodes.get(name)
        if node is None:
            if is_hash_name(name, self.origin):
                node = self._hash
            elif is_within(name, self.origin):
                return self._transfer_or(qtype, self._nxdomain)
            else:
                return REFUSED
        return self._transfer_or(qtype, node.get(qtype, self._nodata))

    @staticmethod
    def _transfer_or(qtype: int, answer: Answer) -> Answer:
        """The zone is never given away as a whole (RFC 5936 section 2.2.1, RFC 1995)."""
        return REFUSED if qtype in (Qtype.AXFR, Qtype.IXFR) else answer
