"""The responder: any packet in, a right answer or silence out."""

import logging
import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_dns import wire
from codius_dns.responder import MAX_LOGGED_FAULTS, Responder, Transport
from codius_dns.zone import MAX_ADDRESSES, Rcode
from tests.unit.dns.zones import CHALLENGE, HASH_NAME, IPV4, ORIGIN, ZONE

RESPONDER = Responder(ZONE, {CHALLENGE: (b"one", b"two")})
BIG = Responder(
    replace(
        ZONE,
        ipv4=tuple(IPv4Address(i) for i in range(MAX_ADDRESSES)),
        ipv6=tuple(IPv6Address(i) for i in range(MAX_ADDRESSES)),
        nameservers=tuple(f"ns{i}.{ORIGIN}" for i in range(8)),
    ),
    {CHALLENGE: [bytes((i,)) * 255 for i in range(16)]},
)
NAMES = [ORIGIN, HASH_NAME, f"ns1.{ORIGIN}", CHALLENGE, f"dns.{ORIGIN}", f"nobody.{ORIGIN}", "example", "."]
TYPES = ["A", "AAAA", "NS", "SOA", "TXT", "ANY", "CAA", "HTTPS", "AXFR", "DS", "TYPE65280"]


def check(packet: bytes, transport: Transport, responder: Responder) -> bytes | None:
    """What holds for every packet whatsoever. SERVFAIL would be an exception that the last guard caught."""
    answer = responder.respond(packet, transport=transport)
    if answer is None:
        assert len(packet) < 12 or packet[2] & 0x80
        return None
    # Read leniently: a FORMERR to a broken OPT still echoes a question, and that may hold any bytes.
    message = dns.message.from_wire(answer)
    assert answer[:2] == packet[:2]
    assert message.flags & dns.flags.QR
    assert not message.flags & (dns.flags.RA | dns.flags.AD | dns.flags.CD)
    assert message.opcode() == packet[2] >> 3 & 0xF
    assert message.rcode() != dns.rcode.SERVFAIL
    query = wire.parse_query(packet)
    assert answer[12 : 12 + len(query.question)] == query.question
    assert len(message.question) == (1 if query.question else 0)
    assert (message.edns >= 0) == (query.edns is not None)
    if transport is Transport.UDP:
        assert len(answer) <= wire.udp_limit(query) <= wire.MAX_UDP_EDNS
    if message.flags & dns.flags.TC:
        assert transport is Transport.UDP
        assert not message.answer
    return answer


@given(st.binary(max_size=600), st.sampled_from(Transport))
def test_any_bytes_get_a_fair_answer_or_none(packet: bytes, transport: Transport) -> None:
    check(packet, transport, RESPONDER)


@given(st.binary(max_size=300), st.binary(min_size=2, max_size=2), st.sampled_from(Transport))
def test_any_bytes_after_a_good_header_get_a_fair_answer(
    rest: bytes, ident: bytes, transport: Transport
) -> None:
    check(ident + bytes.fromhex("01000001000000000001") + rest, transport, BIG)


@given(
    st.sampled_from(NAMES),
    st.sampled_from(TYPES),
    st.sampled_from([-1, 0, 1]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from("=+-")), max_size=4),
    st.sampled_from(Transport),
    st.sampled_from([RESPONDER, BIG]),
)
def test_mutated_questions_get_a_fair_answer_or_none(
    name: str,
    qtype: str,
    edns: int,
    mutations: list[tuple[int, int, str]],
    transport: Transport,
    responder: Responder,
) -> None:
    packet = bytearray(dns.message.make_query(name, qtype, use_edns=edns, payload=4096).to_wire())
    for place, value, kind in mutations:
        at = place % len(packet)
        if kind == "=":
            packet[at] = value
        elif kind == "+":
            packet.insert(at, value)
        elif len(packet) > 1:
            del packet[at]
    check(bytes(packet), transport, responder)


@given(st.integers(), st.sampled_from(NAMES[:-1]), st.sampled_from(TYPES))
def test_the_questions_case_comes_back_and_changes_nothing(seed: int, name: str, qtype: str) -> None:
    rng = random.Random(seed)
    mixed = "".join(rng.choice((c.upper(), c.lower())) for c in name)
    plain, odd = (dns.message.make_query(text, qtype, id=7).to_wire() for text in (name, mixed))
    answers = [RESPONDER.respond(packet, transport=Transport.UDP) for packet in (plain, odd)]
    assert answers[0] is not None
    assert answers[1] == answers[0][:12] + odd[12:] + answers[0][len(odd) :]


def test_no_answer_gets_an_answer() -> None:
    packet = RESPONDER.respond(dns.message.make_query(HASH_NAME, "A").to_wire(), transport=Transport.UDP)
    assert packet is not None
    assert RESPONDER.respond(packet, transport=Transport.UDP) is None


@pytest.mark.parametrize("size", range(12))
def test_less_than_a_header_gets_silence(size: int) -> None:
    assert RESPONDER.respond(bytes(size), transport=Transport.UDP) is None


@pytest.mark.parametrize("opcode", [1, 2, 3, 4, 5, 6, 7, 15])
@pytest.mark.parametrize("questions", [0, 1])
def test_other_opcodes_are_not_implemented(opcode: int, questions: int) -> None:
    packet = bytearray(dns.message.make_query(ORIGIN, "SOA").to_wire())
    packet[2] = opcode << 3
    packet[5] = questions
    answer = check(bytes(packet[: None if questions else 12]), Transport.UDP, RESPONDER)
    assert answer is not None
    assert answer[3] & 0xF == Rcode.NOTIMP


def test_the_unused_header_bits_are_ignored_and_not_copied() -> None:
    query = dns.message.make_query(HASH_NAME, "A")
    query.flags |= dns.flags.AD | dns.flags.CD | dns.flags.TC | dns.flags.AA | dns.flags.RA | 0x40
    answer = RESPONDER.respond(query.to_wire(), transport=Transport.UDP)
    assert answer is not None
    message = dns.message.from_wire(answer)
    assert message.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD
    assert message.answer


def test_texts_change_from_one_packet_to_the_next() -> None:
    responder = Responder(ZONE)
    packet = dns.message.make_query(CHALLENGE, "TXT").to_wire()

    def values() -> list[str]:
        answer = responder.respond(packet, transport=Transport.UDP)
        assert answer is not None
        return sorted(str(value) for rrset in dns.message.from_wire(answer).answer for value in rrset)

    assert values() == []
    responder.publish_texts({CHALLENGE: (b"one", b"two")})
    assert values() == ['"one"', '"two"']
    responder.publish_texts({CHALLENGE: (b"three",)})
    assert values() == ['"three"']
    responder.publish_texts({})
    assert values() == []


def test_a_large_answer_is_truncated_over_udp_and_whole_over_tcp() -> None:
    packet = dns.message.make_query(CHALLENGE, "TXT").to_wire()
    over_udp = BIG.respond(packet, transport=Transport.UDP)
    over_tcp = BIG.respond(packet, transport=Transport.TCP)
    assert over_udp is not None
    assert over_tcp is not None
    assert dns.message.from_wire(over_udp).flags & dns.flags.TC
    assert len(over_udp) == len(packet)
    assert len(dns.message.from_wire(over_tcp).answer[0]) == 16


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("qtype", TYPES)
def test_nothing_an_ordinary_zone_says_is_worth_amplifying(name: str, qtype: str) -> None:
    """At most 130 bytes more than the question, which on the wire has 28 bytes of IP and UDP besides."""
    packet = dns.message.make_query(name, qtype, use_edns=0, payload=4096).to_wire()
    answer = RESPONDER.respond(packet, transport=Transport.UDP)
    assert answer is not None
    assert len(answer) <= len(packet) + 130


def test_a_fault_of_ours_becomes_servfail_and_is_not_logged_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(packet: bytes) -> wire.Query:
        raise ValueError("broken on purpose")

    responder = Responder(replace(ZONE, ipv4=(IPV4,)))
    monkeypatch.setattr(wire, "parse_query", broken)
    packet = dns.message.make_query(HASH_NAME, "A").to_wire()
    with caplog.at_level(logging.ERROR):
        for _ in range(MAX_LOGGED_FAULTS + 5):
            answer = responder.respond(packet, transport=Transport.UDP)
            assert answer is not None
            assert (answer[:2], answer[3] & 0xF, len(answer)) == (packet[:2], Rcode.SERVFAIL, 12)
    assert len(caplog.records) == MAX_LOGGED_FAULTS
