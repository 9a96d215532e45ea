"""The responder: any packet in, a right answer or silence out."""

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_dns import query as reader
from codius_dns.cookies import MAX_AGE, RENEW_AGE, Cookies
from codius_dns.errors import DnsStartError, ZoneError
from codius_dns.metrics import Drop, slot_of, slot_of_drop
from codius_dns.records import Ede, Rcode
from codius_dns.responder import MAX_KEPT, MAX_LOGGED_FAULTS, MAX_NSID, Identity, Responder, Transport
from codius_dns.zone import MAX_ADDRESSES
from tests.unit.dns.zones import CHALLENGE, HASH_NAME, IPV4, ORIGIN, ZONE

RESPONDER = Responder((ZONE,), {CHALLENGE: (b"one", b"two")})
BIG = Responder(
    (
        replace(
            ZONE,
            ipv4=tuple(IPv4Address(i) for i in range(MAX_ADDRESSES)),
            ipv6=tuple(IPv6Address(i) for i in range(MAX_ADDRESSES)),
            nameservers=tuple(f"ns{i}.{ORIGIN}" for i in range(8)),
        ),
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
    # And as an answer to a query: in one to an UPDATE the question would have to be of type SOA.
    message = dns.message.from_wire(answer[:2] + bytes((answer[2] & 0x87,)) + answer[3:])
    assert answer[:2] == packet[:2]
    assert message.flags & dns.flags.QR
    assert not message.flags & (dns.flags.RA | dns.flags.AD | dns.flags.CD)
    assert (answer[2] ^ packet[2]) & 0x78 == 0  # the opcode
    assert message.rcode() != dns.rcode.SERVFAIL
    query = reader.parse_query(packet)
    assert answer[12 : 12 + len(query.question)] == query.question
    assert len(message.question) == (1 if query.question else 0)
    assert (message.edns >= 0) == (query.edns is not None)
    if transport is Transport.UDP:
        assert len(answer) <= reader.udp_limit(query, len(packet)) <= reader.MAX_UDP_EDNS
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
    responder = Responder((ZONE,))
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
    def broken(packet: bytes) -> reader.Query:
        raise ValueError("broken on purpose")

    responder = Responder((replace(ZONE, ipv4=(IPV4,)),))
    monkeypatch.setattr(reader, "parse_query", broken)
    packet = dns.message.make_query(HASH_NAME, "A").to_wire()
    with caplog.at_level(logging.ERROR):
        for _ in range(MAX_LOGGED_FAULTS + 5):
            answer = responder.respond(packet, transport=Transport.UDP)
            assert answer is not None
            assert (answer[:2], answer[3] & 0xF, len(answer)) == (packet[:2], Rcode.SERVFAIL, 12)
    assert len(caplog.records) == MAX_LOGGED_FAULTS


# ---- replies kept --------------------------------------------------------------------------------


def warm() -> Responder:
    """One that has answered every ordinary question before, in several names of the same kind."""
    responder = Responder((ZONE,), {CHALLENGE: (b"one", b"two")}, identity=Identity(b"me"))
    for name in (*NAMES, f"{'a' * 52}.{ORIGIN}", f"x.y.{ORIGIN}", "id.server"):
        for qtype in TYPES:
            for qclass in ("IN", "CH"):
                for edns in (-1, 0, 1):
                    packet = dns.message.make_query(name, qtype, qclass, use_edns=edns, payload=4096)
                    responder.respond(packet.to_wire(), transport=Transport.UDP)
    return responder


WARM = warm()


@given(
    st.sampled_from([*NAMES, "ab.server", f"z.y.{ORIGIN}", f"nobodi.{ORIGIN}", f"{'q' * 52}.{ORIGIN}"]),
    st.sampled_from(TYPES),
    st.sampled_from(["IN", "CH"]),
    st.sampled_from([-1, 0, 1]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from("=+-")), max_size=3),
)
def test_a_kept_reply_is_the_one_that_would_be_written(
    name: str, qtype: str, qclass: str, edns: int, mutations: list[tuple[int, int, str]]
) -> None:
    """Whatever is asked, the quick way says nothing or just what the careful way says."""
    packet = bytearray(dns.message.make_query(name, qtype, qclass, use_edns=edns, payload=4096).to_wire())
    for place, value, kind in mutations:
        at = place % len(packet)
        if kind == "=":
            packet[at] = value
        elif kind == "+":
            packet.insert(at, value)
        elif len(packet) > 1:
            del packet[at]
    kept = WARM.quick(bytes(packet))
    if kept is not None:
        careful = Responder((ZONE,), {CHALLENGE: (b"one", b"two")}, identity=Identity(b"me"))
        assert kept == careful.respond(bytes(packet), transport=Transport.UDP)


@pytest.mark.parametrize(
    ("name", "qclass"),
    [
        *(
            (f"{label}.{ORIGIN}", "IN")
            for label in ("1" * 52, "a" * 51 + "_", "a" * 51 + "8", "-" + "a" * 51)
        ),
        (f"x.{HASH_NAME}", "IN"),
        ("ab.server", "CH"),  # as long as id.server, and as little a node
        ("id.server", "IN"),
    ],
)
@pytest.mark.parametrize("qtype", ["A", "TXT"])
def test_what_only_looks_like_a_question_answered_before_is_not_taken_for_it(
    name: str, qclass: str, qtype: str
) -> None:
    packet = dns.message.make_query(name, qtype, qclass, use_edns=0, payload=4096).to_wire()
    careful = Responder((ZONE,), {CHALLENGE: (b"one", b"two")}, identity=Identity(b"me"))
    assert WARM.quick(packet) in (None, careful.respond(packet, transport=Transport.UDP))


@given(st.binary(max_size=600))
def test_any_bytes_are_too_much_for_nothing(packet: bytes) -> None:
    WARM.quick(packet)


@pytest.mark.parametrize("qtype", ["A", "AAAA", "HTTPS", "TXT", "ANY", "NS"])
@pytest.mark.parametrize("size", [52, 20])
@pytest.mark.parametrize("below", [ORIGIN, f"x.y.{ORIGIN}", "example"])
def test_what_a_flood_asks_is_written_once_for_all_its_names(below: str, size: int, qtype: str) -> None:
    responder = Responder((ZONE,))
    first, *others = (
        dns.message.make_query(f"{letter * size}.{below}", qtype, use_edns=0).to_wire() for letter in "abcq"
    )
    assert responder.quick(first) is None
    responder.respond(first, transport=Transport.UDP)
    assert all(responder.quick(packet) is not None for packet in others)


@pytest.mark.parametrize("name", [HASH_NAME, f"nobody.{ORIGIN}", CHALLENGE, "example"])
def test_types_that_nothing_is_done_for_share_one_reply(name: str) -> None:
    responder = Responder((ZONE,), {CHALLENGE: (b"one",)})
    packets = [
        dns.message.make_query(name, f"TYPE{number}").to_wire() for number in (1000, 0, 99, 65280, 65535)
    ]
    answer = responder.respond(packets[0], transport=Transport.UDP)
    assert answer is not None
    for packet in packets[1:]:
        careful = Responder((ZONE,), {CHALLENGE: (b"one",)}).respond(packet, transport=Transport.UDP)
        assert responder.quick(packet) == careful
    for qtype in ("A", "MX", "AXFR", "ANY"):
        assert responder.quick(dns.message.make_query(name, qtype).to_wire()) is None


def test_a_change_of_texts_forgets_the_replies_kept() -> None:
    responder = Responder((ZONE,))
    packet = dns.message.make_query(CHALLENGE, "TXT").to_wire()
    responder.respond(packet, transport=Transport.UDP)
    assert responder.quick(packet) is not None
    responder.publish_texts({CHALLENGE: (b"one",)})
    assert responder.quick(packet) is None
    packet = dns.message.make_query(HASH_NAME, "TXT").to_wire()
    responder.respond(packet, transport=Transport.UDP)
    assert responder.quick(packet) is not None
    responder.publish_texts({HASH_NAME: (b"one",)})  # now one hash name is unlike all others
    assert responder.quick(packet) is None


def test_odd_questions_cannot_fill_the_memory_with_replies() -> None:
    responder = Responder((ZONE,))
    for number in range(MAX_KEPT + 100):
        packet = dns.message.make_query(HASH_NAME, "A", use_edns=0, payload=number).to_wire()
        responder.respond(packet, transport=Transport.UDP)
        assert len(responder._keeping) <= MAX_KEPT
    assert responder.quick(packet) is not None


# ---- serials --------------------------------------------------------------------------------------


def test_the_serial_rises_with_every_change_and_only_then() -> None:
    responder = Responder((ZONE,))

    def serial() -> int:
        packet = dns.message.make_query(ORIGIN, "SOA").to_wire()
        answer = responder.respond(packet, transport=Transport.UDP)
        assert answer is not None
        return int(dns.message.from_wire(answer).answer[0][0].serial)

    seen = [serial()]
    for values in ((b"one",), (b"one", b"two"), (b"one", b"two"), ()):
        responder.publish_texts({CHALLENGE: values} if values else {})
        seen.append(serial())
    assert seen == [1, 2, 3, 3, 4]
    responder.publish_texts({}, 77)
    assert serial() == 77


# ---- cookies, identity, extended errors -------------------------------------------------------------

CLIENT = b"\x24\x64\xc4\xab\xcf\x10\xc9\x57"
ASKER = IPV4.packed


def ask(responder: Responder, options: Sequence[dns.edns.Option], **more: object) -> dns.message.Message:
    query = dns.message.make_query(more.pop("name", HASH_NAME), more.pop("qtype", "A"), **more)  # type: ignore[arg-type]
    query.use_edns(0, options=list(options), payload=1232)
    answer = responder.respond(query.to_wire(), transport=Transport.UDP, asker=ASKER)
    assert answer is not None
    return dns.message.from_wire(answer)


def cookie_in(message: dns.message.Message) -> bytes:
    (option,) = message.options
    assert isinstance(option, dns.edns.CookieOption)
    assert option.client == CLIENT
    return bytes(option.server)


def test_a_cookie_is_given_kept_while_fresh_and_renewed_before_it_is_too_old() -> None:
    now = 1_700_000_000.0
    responder = Responder((ZONE,), cookies=Cookies(bytes(16)), clock=lambda: now)
    first = cookie_in(ask(responder, [dns.edns.CookieOption(CLIENT, b"")]))
    assert len(first) == 16

    def again() -> bytes:
        return cookie_in(ask(responder, [dns.edns.CookieOption(CLIENT, first)]))

    now += RENEW_AGE - 1
    assert again() == first
    now += 1
    assert again() != first
    now += MAX_AGE
    assert again() != first


def test_a_cookie_proves_the_address_and_a_proven_asker_gets_more_than_its_share() -> None:
    responder = Responder((ZONE,), {CHALLENGE: [bytes((65 + i,)) * 100 for i in range(8)]})
    first = ask(responder, [dns.edns.CookieOption(CLIENT, b"")], name=CHALLENGE, qtype="TXT")
    assert first.flags & dns.flags.TC
    proof: list[dns.edns.Option] = [dns.edns.CookieOption(CLIENT, cookie_in(first))]
    assert len(ask(responder, proof, name=CHALLENGE, qtype="TXT").answer[0]) == 8
    packet = dns.message.make_query(HASH_NAME, "A", use_edns=0, options=proof).to_wire()
    assert responder.has_proof(packet, ASKER)
    assert not responder.has_proof(packet, b"\1\2\3\4")
    assert not responder.has_proof(packet[:20], ASKER)


def test_a_question_for_a_cookie_alone_gets_one() -> None:
    packet = bytes.fromhex("123400000000000000000001" + "00002904d000000000000c" + "000a0008") + CLIENT
    answer = Responder((ZONE,)).respond(packet, transport=Transport.UDP, asker=ASKER)
    assert answer is not None
    message = dns.message.from_wire(answer)
    assert message.rcode() == dns.rcode.NOERROR
    assert (message.question, message.answer) == ([], [])
    assert cookie_in(message)


def test_a_machine_may_not_have_a_name_longer_than_answers_have_room_for() -> None:
    Identity(b"x" * MAX_NSID)
    with pytest.raises(DnsStartError):
        Identity(b"x" * (MAX_NSID + 1))


def test_who_we_are_is_told_when_the_operator_said_so_and_only_then() -> None:
    silent, named = Responder((ZONE,)), Responder((ZONE,), identity=Identity(b"fra-1"))
    wish = [dns.edns.GenericOption(dns.edns.OptionType.NSID, b"")]
    assert ask(silent, wish).options == ()
    assert [option.to_text() for option in ask(named, wish).options] == ["NSID fra-1"]
    assert ask(named, []).options == ()
    for name in ("id.server", "hostname.bind"):
        assert ask(silent, [], name=name, qtype="TXT", rdclass="CH").rcode() == dns.rcode.REFUSED
        (found,) = ask(named, [], name=name, qtype="TXT", rdclass="CH").answer
        assert found.to_text() == f'{name}. 0 CH TXT "fra-1"'
    for name in ("version.bind", "version.server"):
        assert ask(named, [], name=name, qtype="TXT", rdclass="CH").rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"name": "example"}, Ede.NOT_AUTHORITATIVE),
        ({"qtype": "AXFR"}, Ede.PROHIBITED),
        ({"rdclass": "CH"}, Ede.NOT_SUPPORTED),
    ],
)
def test_a_refusal_says_why(more: dict[str, object], code: Ede) -> None:
    message = ask(Responder((ZONE,)), [], **more)
    assert message.rcode() == dns.rcode.REFUSED
    assert [option.code for option in message.options] == [code]


# ---- counting and logging ---------------------------------------------------------------------------


def test_questions_are_counted_by_transport_type_and_rcode_the_quick_ones_too() -> None:
    responder = Responder((ZONE,))
    packet = dns.message.make_query(HASH_NAME, "A").to_wire()
    responder.respond(packet, transport=Transport.UDP)
    responder.quick(packet)
    responder.respond(packet, transport=Transport.TCP)
    responder.respond(packet[:5], transport=Transport.UDP)
    responder.respond(b"\0\0\x80" + bytes(9), transport=Transport.UDP)
    counts = responder.counts
    assert counts[slot_of("udp", 1, Rcode.NOERROR)] == 2
    assert counts[slot_of("tcp", 1, Rcode.NOERROR)] == 1
    assert counts[slot_of_drop(Drop.SHORT)] == counts[slot_of_drop(Drop.RESPONSE)] == 1
    assert sum(counts) == 5


def test_the_query_log_has_one_line_for_each_question_and_no_stranger_can_break_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    responder = Responder((ZONE,), log_queries=True)
    name = dns.name.Name([b"a\nb", *dns.name.from_text(ORIGIN).labels])
    packet = dns.message.make_query(name, "A").to_wire()
    with caplog.at_level(logging.INFO, logger="codius_dns.queries"):
        for _ in range(2):
            assert responder.quick(packet) is None
            responder.respond(packet, transport=Transport.UDP, asker=ASKER)
    assert [record.getMessage() for record in caplog.records] == [
        f"{IPV4} udp a\\010b.{ORIGIN}. TYPE1 NXDOMAIN"
    ] * 2


def test_queries_are_not_logged_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        ask(Responder((ZONE,)), [])
    assert caplog.records == []


def test_new_zones_are_served_from_the_next_packet_on_with_the_texts_there_are() -> None:
    responder = Responder((ZONE,), {CHALLENGE: (b"one",)})
    question = dns.message.make_query(HASH_NAME, "A").to_wire()
    responder.respond(question, transport=Transport.UDP)
    assert responder.quick(question) is not None
    responder.publish_zones((replace(ZONE, ipv4=(IPv4Address("192.0.2.18"),)),))
    assert responder.quick(question) is None  # nothing is kept of what was said before
    answer = responder.respond(question, transport=Transport.UDP)
    assert answer is not None
    assert "192.0.2.18" in dns.message.from_wire(answer).to_text()
    texts = responder.respond(dns.message.make_query(CHALLENGE, "TXT").to_wire(), transport=Transport.UDP)
    assert texts is not None
    assert '"one"' in dns.message.from_wire(texts).to_text()


def test_zones_that_cannot_be_served_leave_the_old_ones() -> None:
    responder = Responder((ZONE,), {CHALLENGE: (b"one",)})
    for zones in ((), (ZONE, ZONE), (replace(ZONE, origin="other.example", nameservers=()),)):
        with pytest.raises(ZoneError):
            responder.publish_zones(zones)
    responder.publish_texts({CHALLENGE: (b"two",)})
    answer = responder.respond(dns.message.make_query(HASH_NAME, "A").to_wire(), transport=Transport.UDP)
    assert answer is not None
    assert str(IPV4) in dns.message.from_wire(answer).to_text()
