"""From zones to nodes: what is said at each name, put together once, from settings and records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from codius_dns.errors import ZoneError
from codius_dns.names import (
    WILDCARD,
    Name,
    ancestors,
    is_hash_name,
    is_within,
    parse_mailbox,
    parse_name,
    to_text,
)
from codius_dns.records import (
    MAX_TEXT,
    NO_TRANSFER,
    Answer,
    Hinfo,
    Ns,
    Qtype,
    Raw,
    Rcode,
    Record,
    RecordData,
    Soa,
    Text,
    type_of,
)
from codius_dns.zone import Zone

MAX_TEXTS: Final = 16  # values at one name: an order for several names needs two or three at once
MAX_SET: Final = 64  # records of one name and type: more would not fit an answer over UDP anyway

SOA_REFRESH: Final = 3600  # seconds; the SOA's timers are for secondaries, and we have none
SOA_RETRY: Final = 600
SOA_EXPIRE: Final = 1209600  # seconds: two weeks, as RIPE-203 advises
TEXT_TTL: Final = 5  # seconds: a challenge lives for one validation, and the next one must be seen
ANY_TTL: Final = 3600  # seconds: RFC 8482 section 4.2 asks for a long life, so that the asker stops

HTTPS_HERE: Final = Raw(Qtype.HTTPS, b"\0\1\0")
"""`1 .`: https at this very name, with nothing that not every server has (RFC 9460 section 2.4.3)."""
CAA_ISSUE: Final = b"\0\5issue"  # not critical, RFC 8659 section 4.2
UNSERVED: Final = frozenset(
    {Qtype.DNAME, Qtype.DS, Qtype.RRSIG, Qtype.NSEC, Qtype.DNSKEY, Qtype.NSEC3, Qtype.NSEC3PARAM}
)
"""Types that ask more of a server than to say them: to rewrite names, and to sign."""

Sets = dict[int, tuple[Record, ...]]
"""The record sets at one name, by type; without an owner, for they are for whoever asks that name."""

Kept = tuple[bytes, int, bytes, int]
"""A reply: flags and counts, where the question ends, what is after it, where it is counted."""

ANY_ANSWER: Final = Answer(Rcode.NOERROR, (Record(None, ANY_TTL, Hinfo(b"RFC8482", b"")),))


class Node:
    """What is said at one name."""

    __slots__ = ("alias", "answers", "below", "hashes", "kept", "other")

    def __init__(self, other: Answer) -> None:
        self.answers: dict[int, Answer] = {}
        self.other = other  # to every type not in `answers`
        self.alias: Record | None = None  # its CNAME
        self.below: Node = self  # for names below that do not exist: the wildcard's node, or that of no name
        self.hashes: Node | None = None  # for hash names directly below
        self.kept: dict[bytes, Kept] = {}  # for the responder: replies written before

    def find(self, qtype: int) -> Answer:
        return self.answers.get(qtype, self.other)


@dataclass(frozen=True, slots=True)
class Scope:
    """A zone's place among the others."""

    origin: Name
    inner: tuple[Name, ...]  # origins of zones below: what is said there is theirs to say

    def holds(self, name: Name) -> bool:
        return is_within(name, self.origin) and not any(is_within(name, deeper) for deeper in self.inner)


def parse_texts(texts: Mapping[str, Sequence[bytes]]) -> dict[Name, tuple[bytes, ...]]:
    """TXT values by name, each value once; ZoneError for what cannot be served."""
    parsed = {}
    for name, values in texts.items():
        if len(values) > MAX_TEXTS or any(len(value) > MAX_TEXT for value in values):
            raise ZoneError(f"{name!r} may have {MAX_TEXTS} TXT values of {MAX_TEXT} bytes at most")
        if values:
            parsed[parse_name(name)] = tuple(dict.fromkeys(values))
    return parsed


def build_nodes(
    zone: Zone, scope: Scope, texts: Mapping[Name, tuple[bytes, ...]], serial: int
) -> dict[bytes, Node]:
    """The nodes of one zone. Aliases are not followed yet: they may lead into another one."""
    origin = scope.origin
    here = _host_sets(zone)
    sets = _gather(zone, scope, here, texts, serial)
    cuts = {name for name, found in sets.items() if Qtype.NS in found and name != origin}
    (soa,) = sets[origin][Qtype.SOA]
    assert isinstance(soa.data, Soa)  # noqa: S101 - _gather made it
    # A negative answer lives as long as the lesser of the two, RFC 2308 section 5.
    denial = (Record(origin, min(soa.ttl, soa.data.minimum), soa.data),)
    nodata = Answer(Rcode.NOERROR, authority=denial, origin=origin)
    nothing = _refuse_transfers(Node(Answer(Rcode.NXDOMAIN, authority=denial, origin=origin)))

    nodes: dict[bytes, Node] = {}
    for name, found in sets.items():
        if cuts and any(above in cuts for above in ancestors(name)):
            continue  # glue, said along with the referral
        if name in cuts:
            nodes[name] = _cut(name, found[Qtype.NS], _glue(found[Qtype.NS], sets, scope), origin, nodata)
        else:
            nodes[name] = _node(found, nodata, origin)
    if server_glue := _glue(sets[origin][Qtype.NS], sets, scope):
        plain = nodes[origin].answers[Qtype.NS]
        nodes[origin].answers[Qtype.NS] = replace(plain, additional=server_glue)
    if zone.hashes:
        pods = nodes[origin].hashes = _node(here, nodata, origin)
        pods.below = nothing
    for owner, node in nodes.items():
        if owner not in cuts:
            node.below = nodes.get(WILDCARD + owner, nothing)
    return nodes


def _host_sets(zone: Zone) -> Sets:
    """What leads to this host."""
    sets: Sets = {}
    if zone.ipv4:
        sets[Qtype.A] = tuple(Record(None, zone.address_ttl, address) for address in zone.ipv4)
    if zone.ipv6:
        sets[Qtype.AAAA] = tuple(Record(None, zone.address_ttl, address) for address in zone.ipv6)
    if zone.https:
        sets[Qtype.HTTPS] = (Record(None, zone.address_ttl, HTTPS_HERE),)
    return sets


def _gather(
    zone: Zone, scope: Scope, here: Sets, texts: Mapping[Name, tuple[bytes, ...]], serial: int
) -> dict[Name, Sets]:
    """Every name that exists, with its records: the operator's, and ours where the operator has none."""
    origin = scope.origin
    sets: dict[Name, Sets] = {origin: {}}
    for record in zone.records:
        assert record.owner is not None  # noqa: S101 - Zone saw to it
        if scope.holds(record.owner):
            _add(sets.setdefault(record.owner, {}), record.ttl, (record.data,), record.owner)
    for name, values in texts.items():
        _add(sets.setdefault(name, {}), TEXT_TTL, map(Text, values), name)

    apex = sets[origin]
    servers = tuple(dict.fromkeys(parse_name(name) for name in zone.nameserver_names))
    apex.setdefault(Qtype.NS, tuple(Record(None, zone.nameserver_ttl, Ns(server)) for server in servers))
    apex[Qtype.SOA] = (_soa(zone, apex, serial),)
    if zone.issuers:
        issuers = (Raw(Qtype.CAA, CAA_ISSUE + name.encode("ascii")) for name in zone.issuers)
        apex.setdefault(Qtype.CAA, tuple(Record(None, zone.nameserver_ttl, issuer) for issuer in issuers))
    addresses = {qtype: found for qtype, found in here.items() if qtype != Qtype.HTTPS}
    for server in _targets(apex[Qtype.NS]):
        if scope.holds(server) and not sets.get(server):
            sets[server] = dict(addresses)
    # Names between two that exist exist too, if only as empty non-terminals (RFC 8020).
    for name in tuple(sets):
        for above in ancestors(name):
            if not is_within(above, origin):
                break
            sets.setdefault(above, {})
    for name, found in sets.items():
        if name == origin or (zone.hashes and is_hash_name(name, origin)):
            for qtype, ours in here.items():
                found.setdefault(qtype, ours)
        if Qtype.CNAME in found and len(found) > 1:
            raise ZoneError(
                f"{to_text(name)} is an alias (CNAME) and has other records: it can only be one of the two",
                hint="RFC 1034 section 3.6.2. The zone's own name and hash names have records always.",
            )
        if unserved := UNSERVED & found.keys():
            raise ZoneError(
                f"{to_text(name)} has records of the type {min(unserved).name}, which is not served here",
                hint="This server does not sign zones and does not rewrite names (DNAME).",
            )
    return sets


def _add(found: Sets, ttl: int, values: Iterable[RecordData], name: Name) -> None:
    for value in values:
        qtype = type_of(value)
        before = found.get(qtype, ())
        if any(record.data == value for record in before):
            continue
        # One TTL for the whole set, RFC 2181 section 5.2.
        least = min(ttl, *(record.ttl for record in before)) if before else ttl
        found[qtype] = tuple(
            Record(None, least, record.data) for record in (*before, Record(None, ttl, value))
        )
        if len(found[qtype]) > MAX_SET or (qtype in (Qtype.CNAME, Qtype.SOA) and before):
            raise ZoneError(f"{to_text(name)} has too many records of type {qtype}")


def _soa(zone: Zone, apex: Sets, serial: int) -> Record:
    """The operator's, or ours; its serial is always ours, so that it rises by itself."""
    serial = max(zone.serial, serial)
    if Qtype.SOA in apex:
        (written,) = apex[Qtype.SOA]
        assert isinstance(written.data, Soa)  # noqa: S101 - the type says so
        return replace(written, data=replace(written.data, serial=serial))
    soa = Soa(
        mname=_targets(apex[Qtype.NS])[0],
        rname=parse_mailbox(zone.mailbox),
        serial=serial,
        refresh=SOA_REFRESH,
        retry=SOA_RETRY,
        expire=SOA_EXPIRE,
        minimum=zone.negative_ttl,
    )
    return Record(None, zone.nameserver_ttl, soa)


def _targets(servers: Iterable[Record]) -> list[Name]:
    return [record.data.target for record in servers if isinstance(record.data, Ns)]


def _glue(servers: Iterable[Record], sets: Mapping[Name, Sets], scope: Scope) -> tuple[Record, ...]:
    """The addresses of name servers within the zone, without which nobody would find them."""
    glue: list[Record] = []
    for server in _targets(servers):
        found = sets.get(server, {})
        addresses = (*found.get(Qtype.A, ()), *found.get(Qtype.AAAA, ()))
        if scope.holds(server) and not addresses:
            raise ZoneError(
                f"the name server {to_text(server)} is within the zone {to_text(scope.origin)}"
                " and has no address there",
                hint="Add its A or AAAA record to the zone file.",
            )
        glue += (replace(record, owner=server) for record in addresses)
    return tuple(glue)


def _refuse_transfers(node: Node) -> Node:
    """The zone is never given away as a whole (RFC 5936 section 2.2.1, RFC 1995)."""
    node.answers[Qtype.AXFR] = node.answers[Qtype.IXFR] = NO_TRANSFER
    return node


def _node(found: Sets, nodata: Answer, origin: Name) -> Node:
    node = _refuse_transfers(Node(nodata))
    for qtype, records in found.items():
        node.answers[qtype] = Answer(Rcode.NOERROR, records, origin=origin)
    if Qtype.CNAME in found:
        (node.alias,) = found[Qtype.CNAME]
        node.answers[Qtype.ANY] = node.answers[Qtype.CNAME]  # RFC 8482 section 4.2: no HINFO beside an alias
        # These would be the alias's own, not its target's (RFC 4035 section 2.5); we have none.
        node.answers[Qtype.RRSIG] = node.answers[Qtype.NSEC] = nodata
    elif found:
        node.answers[Qtype.ANY] = ANY_ANSWER
    return node


def _cut(
    name: Name, servers: tuple[Record, ...], glue: tuple[Record, ...], origin: Name, nodata: Answer
) -> Node:
    """Where the zone ends because somebody else's begins (RFC 1034 section 4.3.2, step 3b)."""
    authority = tuple(replace(record, owner=name) for record in servers)
    referral = Answer(Rcode.NOERROR, authority=authority, additional=glue, authoritative=False, origin=origin)
    node = _refuse_transfers(Node(referral))
    node.answers[Qtype.DS] = nodata  # the parent's to say, RFC 4035 section 3.1.4.1
    node.below = _refuse_transfers(Node(referral))
    return node
