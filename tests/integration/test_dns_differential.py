"""The same zone in Knot DNS: thousands of questions, equal answers, or a difference with a name.

Questions are generated from a fixed seed, so that a failure can be looked at. Each difference below is there
on purpose; one that explains nothing any more fails the test too.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

import dns.edns
import dns.flags
import dns.message
import dns.rdatatype
import pytest

from codius_dns.master import parse_zone
from codius_dns.query import FAIR_SHARE
from codius_dns.responder import Responder, Transport
from codius_dns.zone import Zone
from tests.harness import knot
from tests.unit.dns.zones import ORIGIN

pytestmark = pytest.mark.skipif(knot.KNOTD is None, reason=knot.MISSING)

QUESTIONS: Final = 4000
SEED: Final = 8906
DEADLINE: Final = 5.0  # seconds for Knot to answer on loopback
BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"

rng = random.Random(SEED)
HASHES: Final = ["".join(rng.choices(BASE32, k=52)) for _ in range(30)]

RECORDS: Final = r"""
$TTL 600
@      MX 10 mail
       TXT "v=spf1 mx -all" "second"
       CAA 0 issue "ca.example"
mail   A 192.0.2.25
       AAAA 2001:db8::25
www    CNAME web
web    A 192.0.2.80
       A 192.0.2.81
away   CNAME elsewhere.example.
lost   CNAME not-there
twice  CNAME www
*.apps A 192.0.2.90
       TXT "star"
here.apps TXT "not the wildcard's"
*.alias CNAME web
odd    TYPE65280 \# 2 beef
_sip._tcp SRV 1 2 5060 web
svc    HTTPS 1 . alpn=h2 port=8443
sub    NS ns.sub
       NS ns.elsewhere.example.
ns.sub A 192.0.2.53
deep.er.and.deeper TXT "far down"
big    TXT "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
       TXT "1123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
       TXT "2123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
       TXT "3123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
       TXT "4123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
       TXT "5123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
       TXT "6123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
"""
"""What both are given as it is."""
CHALLENGE: Final = f"_acme-challenge.{ORIGIN}"
HOST: Final = Zone(
    ORIGIN,
    ipv4=(IPv4Address("192.0.2.17"), IPv4Address("192.0.2.18")),
    ipv6=(IPv6Address("2001:db8::17"),),
    nameservers=(f"ns1.{ORIGIN}", f"ns2.dns.{ORIGIN}"),
    https=True,
    records=parse_zone(RECORDS, ORIGIN),
)
TEXTS: Final = {CHALLENGE: (b"first", b"second")}
HERE: Final = "300 A 192.0.2.17\n 300 A 192.0.2.18\n 300 AAAA 2001:db8::17\n"
SAME_FOR_KNOT: Final = "".join(
    (
        f"$ORIGIN {ORIGIN}.\n",
        "@ 3600 SOA ns1 hostmaster 1 3600 600 1209600 60\n",
        "@ 3600 NS ns1\n@ 3600 NS ns2.dns\n",
        f"@ {HERE} 300 HTTPS 1 .\nns1 {HERE}ns2.dns {HERE}",
        *(f"{each} {HERE} 300 HTTPS 1 .\n" for each in HASHES),
        f'{CHALLENGE}. 5 TXT "first"\n{CHALLENGE}. 5 TXT "second"\n',
        RECORDS,
    )
)
"""What we say without a record, written out."""

Records = frozenset[tuple[str, int, str, str]]


@dataclass(frozen=True)
class Question:
    """One packet, and what it was made from."""

    packet: bytes
    name: str
    qtype: str
    qclass: str
    opcode: int
    broken: str  # what was done to it; nothing for most
    transport: Transport


@dataclass(frozen=True)
class Reply:
    """All of an answer that has to be equal; sections as sets, for their order means nothing."""

    rcode: int
    flags: int
    question: str
    answer: Records
    authority: Records
    additional: Records
    edns: tuple[int, int, int] | None  # version, payload, flags
    size: int = 0

    @classmethod
    def parse(cls, packet: bytes | None) -> Reply | None:
        if packet is None:
            return None
        # In an answer to an UPDATE dnspython would want a zone section: the opcode is compared apart.
        message = dns.message.from_wire(
            packet[:2] + bytes((packet[2] & 0x87,)) + packet[3:], one_rr_per_rrset=True
        )
        answer, authority, additional = (
            frozenset(
                (str(r.name).lower(), r.ttl, dns.rdatatype.to_text(r.rdtype), str(r[0]).lower()) for r in each
            )
            for each in (message.answer, message.authority, message.additional)
        )
        return cls(
            int(message.rcode()),
            message.flags | (packet[2] & 0x78) << 8,
            str(message.question),
            answer,
            authority,
            additional,
            (message.edns, message.payload, message.ednsflags & 0xFFFF) if message.edns >= 0 else None,
            len(packet),
        )


def same(ours: Reply, theirs: Reply, **changes: object) -> bool:
    """Whether both say the same, but for these changes; names may be compressed to different sizes."""
    return replace(ours, size=theirs.size, **changes) == theirs  # type: ignore[arg-type]


FORMERR, NOTIMP, REFUSED, NOTAUTH = 1, 4, 5, 9
TC: Final = int(dns.flags.TC)

Explanation = Callable[[Question, Reply, Reply | None], bool]
"""Whether this is what makes the answers differ: the question, ours, Knot's."""

DIFFERENCES: Final[dict[str, Explanation]] = {
    "ANY gets one small record, RFC 8482": lambda question, ours, theirs: (
        theirs is not None
        and question.qtype == "ANY"
        and question.qclass == "IN"
        and len(ours.answer) == 1
        and {record[2] for record in ours.answer} <= {"HINFO", "CNAME"}
        and (ours.rcode, ours.authority) == (theirs.rcode, frozenset())
    ),
    "transfers are REFUSED, where Knot says NOTAUTH, or NOTIMP over UDP": lambda question, ours, theirs: (
        theirs is not None
        and question.qtype in ("AXFR", "IXFR")
        and ours.rcode == REFUSED
        and theirs.rcode
        == (NOTAUTH if question.transport is Transport.TCP or question.qtype == "IXFR" else NOTIMP)
        and not (ours.answer or ours.authority or theirs.answer or theirs.authority)
    ),
    "other opcodes are NOTIMP, also those that Knot has rules for": lambda question, ours, theirs: (
        theirs is not None and question.opcode != 0 and ours.rcode == NOTIMP and theirs.rcode != 0
    ),
    "a malformed question gets FORMERR, where Knot may be silent or leave out OPT": (
        lambda question, ours, theirs: (
            question.broken != ""
            and ours.rcode == (NOTIMP if question.opcode else FORMERR)
            and (theirs is None or same(ours, theirs, edns=None, question=theirs.question))
        )
    ),
    "no class besides IN is served, where Knot takes ANY for IN": lambda question, ours, theirs: (
        theirs is not None and question.qclass != "IN" and ours.rcode == REFUSED
    ),
    "who asks for MX or SRV can ask for the addresses too": lambda question, ours, theirs: (
        theirs is not None
        and question.qtype in ("MX", "SRV")
        and ours.additional == frozenset()
        and {record[2] for record in theirs.additional} <= {"A", "AAAA"}
        and same(ours, theirs, additional=theirs.additional)
    ),
    "an asker without a cookie gets eight times its question over UDP": lambda question, ours, theirs: (
        theirs is not None
        and question.transport is Transport.UDP
        and theirs.size > FAIR_SHARE * len(question.packet)
        and same(ours, theirs, flags=ours.flags & ~TC, answer=theirs.answer)
    ),
}


KNOWN: Final = (
    ORIGIN, f"ns1.{ORIGIN}", f"ns2.dns.{ORIGIN}", f"dns.{ORIGIN}", CHALLENGE,
    *(f"{label}.{ORIGIN}" for label in (
        "mail", "www", "web", "away", "lost", "twice", "apps", "x.apps", "a.b.apps", "*.apps", "here.apps",
        "x.here.apps", "x.alias", "alias", "odd", "_sip._tcp", "_tcp", "svc", "sub", "x.sub", "ns.sub",
        "y.ns.sub", "deep.er.and.deeper", "er.and.deeper", "deeper", "x.deeper", "big", "big", "big",
    )),
)  # fmt: skip
OUTSIDE: Final = (
    ".",
    "example",
    "com",
    f"x{ORIGIN}",
    f"{HASHES[0]}.example",
    "elsewhere.example",
    "a.b.c.d.e",
)
COMMON: Final = [
    "A",
    "AAAA",
    "NS",
    "SOA",
    "TXT",
    "MX",
    "CAA",
    "HTTPS",
    "CNAME",
    "SRV",
    "DS",
    "ANY",
    "TYPE65280",
]
RARE: Final = ["PTR", "HINFO", "NAPTR", "DNSKEY", "NSEC", "RRSIG", "SVCB", "TLSA", "TYPE1000", "AXFR", "IXFR"]
FLAGS: Final = (0, dns.flags.RD, dns.flags.AD, dns.flags.CD, dns.flags.RD | dns.flags.AD, 0x40)
OPTIONS: Final[tuple[dns.edns.Option, ...]] = (
    dns.edns.GenericOption("100", b""),
    dns.edns.GenericOption("65001", b"unknown"),
    dns.edns.ECSOption("192.0.2.0", 24),
)
BREAKS: Final = ("no question", "two questions", "trailing", "cut", "short", "response")


def generate(count: int) -> Iterator[Question]:
    """Mostly what is asked in earnest, some of everything else."""
    for _ in range(count):
        name = choose_name()
        if rng.random() < 0.3:
            name = "".join(rng.choice((c.upper(), c.lower())) for c in name)
        qtype = rng.choice(COMMON if rng.random() < 0.85 else RARE)
        qclass = "IN" if rng.random() < 0.97 else rng.choice(("CH", "ANY", "HS", "NONE"))
        message = dns.message.make_query(name, qtype, qclass, id=rng.randrange(65536))
        message.flags = dns.flags.Flag(rng.choice(FLAGS))
        if rng.random() < 0.6:
            message.use_edns(
                0 if rng.random() < 0.95 else rng.choice((1, 255)),
                rng.choice((0, 0, 0, dns.flags.DO, 0x40)),
                rng.choice((0, 512, 1000, 1232, 1232, 4096, 65535)),
                options=[rng.choice(OPTIONS)] if rng.random() < 0.1 else [],
            )
        opcode = 0 if rng.random() < 0.97 else rng.choice((1, 2, 3, 4, 5, 6, 15))
        packet = message.to_wire()
        packet = packet[:2] + bytes((packet[2] | opcode << 3,)) + packet[3:]
        broken = rng.choice(BREAKS) if rng.random() < 0.04 else ""
        if broken:
            packet = break_it(packet, broken)
        over_udp = rng.random() < 0.8 or broken in ("short", "response")  # TCP has its own end for those
        transport = Transport.UDP if over_udp else Transport.TCP
        yield Question(packet, name.lower(), qtype, qclass, opcode, broken, transport)


def choose_name() -> str:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(KNOWN)
    if kind < 0.6:
        return f"{rng.choice(HASHES)}.{ORIGIN}"
    if kind < 0.7:
        return f"{rng.choice(('www', 'x', '_acme-challenge'))}.{rng.choice(HASHES)}.{ORIGIN}"
    if kind < 0.9:
        label = "".join(rng.choices(BASE32 + "-_", k=rng.randint(1, 51)))
        return f"{label}.{rng.choice((ORIGIN, f'deeper.{ORIGIN}', f'x.y.{ORIGIN}'))}"
    return rng.choice(OUTSIDE)


def break_it(packet: bytes, how: str) -> bytes:
    match how:
        case "no question":
            return packet[:4] + bytes(8)
        case "two questions":
            return packet[:5] + b"\2" + packet[6:]
        case "trailing":
            return packet + b"\0"
        case "cut":
            return packet[:-3]
        case "short":
            return packet[:11]
        case _:
            return packet[:2] + bytes((packet[2] | 0x80,)) + packet[3:]


def ask_knot(question: Question, port: int) -> bytes | None:
    """Silence is known by the answer to the next packet, which is there sooner than any time-out."""
    where = ("127.0.0.1", port)
    if question.transport is Transport.TCP:
        with socket.create_connection(where, DEADLINE) as sock:
            sock.sendall(len(question.packet).to_bytes(2) + question.packet)
            head = sock.recv(2, socket.MSG_WAITALL)
            return sock.recv(int.from_bytes(head), socket.MSG_WAITALL) if head else None
    marker = dns.message.make_query(ORIGIN, "SOA", id=int.from_bytes(question.packet[:2]) ^ 0xFFFF).to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(where)
        sock.send(question.packet)
        sock.send(marker)
        first = sock.recv(65535)
        return None if first[:2] == marker[:2] else first


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def judge(directory: Path) -> Iterator[int]:
    port = free_port()
    with knot.running({ORIGIN: SAME_FOR_KNOT}, directory, port):
        yield port


def test_every_answer_is_knots_or_differs_for_a_reason_with_a_name(tmp_path: Path) -> None:
    responder = Responder((HOST,), TEXTS)
    explained: Counter[str] = Counter()
    with judge(tmp_path) as port:
        for question in generate(QUESTIONS):
            packet = responder.respond(question.packet, transport=question.transport)
            ours, theirs = Reply.parse(packet), Reply.parse(ask_knot(question, port))
            if ours is theirs is None or (ours and theirs and same(ours, theirs)):
                continue
            assert ours is not None, question
            names = [name for name, explains in DIFFERENCES.items() if explains(question, ours, theirs)]
            assert names, f"{question}\n  ours {ours}\n  knot {theirs}"
            explained[names[0]] += 1
            if question.transport is Transport.UDP:
                assert responder.quick(question.packet) in (None, packet)
    assert set(explained) == set(DIFFERENCES), "a difference that explains nothing is none any more"
    assert explained.total() < QUESTIONS / 8
