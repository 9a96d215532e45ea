"""The wire: what is read of a question, and dnslib's bytes under a stranger's name."""

from typing import Any

import dns.flags
import dns.message
import dns.name
import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_dns import wire
from codius_dns.names import labels_of, parse_name
from codius_dns.wire import MAX_SHAPES, Renderer, _to_dnslib, parse_query, render_sections, udp_limit
from codius_dns.zone import Record, Table
from tests.unit.dns.zones import CHALLENGE, HASH_NAME, ORIGIN, ZONE

TABLE = Table(ZONE, {CHALLENGE: (b"one", b"two")})

LABELS = st.binary(min_size=1, max_size=12)
NAMES = st.lists(LABELS, max_size=8).map(lambda labels: dns.name.Name([*labels, b""]))


@given(NAMES, st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 65535))
def test_any_name_dns_allows_is_read(name: dns.name.Name, qtype: int, qclass: int, ident: int) -> None:
    """Also labels that are not UTF-8, or hold dots and zeros (RFC 2181 section 11)."""
    wire_name = name.to_wire()
    assert wire_name is not None
    question = wire_name + qtype.to_bytes(2) + qclass.to_bytes(2)
    query = parse_query(ident.to_bytes(2) + bytes.fromhex("01000001000000000000") + question)
    assert query.well_formed
    assert (query.id, query.question, query.qtype, query.qclass) == (ident, question, qtype, qclass)
    assert query.name == name.to_digestable()


def header(questions: int = 1, answers: int = 0, authorities: int = 0, additionals: int = 0) -> bytes:
    counts = (questions, answers, authorities, additionals)
    return b"\x12\x34\x00\x00" + b"".join(count.to_bytes(2) for count in counts)


QUESTION = parse_name(ORIGIN) + b"\0\1\0\1"
OPT = bytes.fromhex("0000290fa0000000000000")


@pytest.mark.parametrize(
    "packet",
    [
        header(0),
        header(2) + QUESTION * 2,
        header(1),
        header(1) + QUESTION[:-1],
        header(1) + b"\xc0\x0c\0\1\0\1",  # a pointer to itself
        header(1) + b"\x40" + b"x" * 64 + b"\0\0\1\0\1",  # a label of 64 bytes
        header(1) + b"\x3f" + b"x" * 63,  # the packet ends within the name
        header(1) + (b"\x3f" + b"x" * 63) * 4 + b"\0\0\1\0\1",  # a name of 257 bytes
    ],
)
def test_a_question_that_cannot_be_read_is_not_echoed(packet: bytes) -> None:
    query = parse_query(packet)
    assert not query.well_formed
    assert query.question == b""


@pytest.mark.parametrize(
    "packet",
    [
        header(1) + QUESTION + b"\0",  # something after the end
        header(1, additionals=1) + QUESTION,  # announced and not there
        header(1, additionals=65535) + QUESTION + OPT,
        header(1, additionals=2) + QUESTION + OPT + OPT,  # RFC 6891 section 6.1.1: one OPT
        header(1, answers=1) + QUESTION + OPT,  # in the wrong section
        header(1, additionals=1) + QUESTION + b"\1x" + OPT,  # an owner that is not the root
        header(1, additionals=1) + QUESTION + OPT[:-2] + b"\0\3" + b"\0\1\0",  # half an option
        header(1, additionals=1)
        + QUESTION
        + OPT[:-2]
        + b"\0\4"
        + b"\0\1\0\1",  # an option longer than its place
        header(1, additionals=1) + QUESTION + OPT[:-2] + b"\xff\xff",
    ],
)
def test_trouble_after_the_question_leaves_the_question_readable(packet: bytes) -> None:
    query = parse_query(packet)
    assert not query.well_formed
    assert query.question == QUESTION


def test_records_besides_opt_are_stepped_over() -> None:
    record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x7f\0\0\1"
    query = parse_query(header(1, 1, 1, 2) + QUESTION + record * 3 + OPT)
    assert query.well_formed
    assert query.edns is not None
    assert query.edns.payload == 4000


@pytest.mark.parametrize(
    ("payload", "limit"), [(None, 512), (0, 512), (511, 512), (1000, 1000), (65535, 1232)]
)
def test_an_answer_over_udp_is_never_longer_than_asked_for_or_safe(payload: int | None, limit: int) -> None:
    options = b"" if payload is None else OPT[:3] + payload.to_bytes(2) + OPT[5:]
    assert udp_limit(parse_query(header(1, additionals=bool(options)) + QUESTION + options)) == limit


@pytest.mark.parametrize("edns", [False, True])
@pytest.mark.parametrize("qtype", ["A", "AAAA", "NS", "SOA", "TXT", "ANY", "CAA"])
@pytest.mark.parametrize(
    "name", [ORIGIN, HASH_NAME, f"ns1.{ORIGIN}", CHALLENGE, f"dns.{ORIGIN}", f"x.{ORIGIN}"]
)
def test_a_kept_answer_is_what_dnslib_writes_for_this_very_name(name: str, qtype: str, edns: bool) -> None:
    query = parse_query(dns.message.make_query(name, qtype, use_edns=edns).to_wire())
    answer = TABLE.find(query.name, query.qtype)
    renderer = Renderer(TABLE.origin)
    renderer.render(query, answer, 512)
    kept = dnslib.DNSRecord.parse(renderer.render(query, answer, 512))

    def written(records: tuple[Record, ...]) -> list[dnslib.RR]:
        return [
            dnslib.RR(dnslib.DNSLabel(labels_of(record.owner or query.name)), rtype, 1, record.ttl, data)
            for record in records
            for rtype, data in [_to_dnslib(record)]
        ]

    options = [dnslib.EDNS0(udp_len=1232)] if edns else []
    fresh = dnslib.DNSRecord(
        dnslib.DNSHeader(id=query.id, qr=1, aa=1, rd=1, ra=0, rcode=answer.rcode),
        q=dnslib.DNSQuestion(name, query.qtype),
        rr=written(answer.records),
        auth=written(answer.authority),
        ar=written(answer.additional) + options,
    )
    assert kept == dnslib.DNSRecord.parse(fresh.pack())


@given(st.binary(min_size=1, max_size=60), st.binary(min_size=1, max_size=60))
def test_one_strangers_name_leaves_no_trace_in_anothers_answer(first: bytes, second: bytes) -> None:
    """Kept bytes depend on a name's length alone: asking `ns1` must not bend the SOA for other names."""
    renderer = Renderer(TABLE.origin)
    size = min(len(first), len(second))
    for label in (b"ns1", first[:size], b"hostmaster"[:size], second[:size]):
        packet = header() + bytes((len(label),)) + label + parse_name(ORIGIN) + b"\0\x0f\0\1"
        query = parse_query(packet)
        answer = TABLE.find(query.name, query.qtype)
        message = dns.message.from_wire(renderer.render(query, answer, 512))
        (soa,) = message.authority
        assert soa.name == dns.name.from_text(ORIGIN)
        assert soa[0].mname == dns.name.from_text(f"ns1.{ORIGIN}")
        assert soa[0].rname == dns.name.from_text(f"hostmaster.{ORIGIN}")


def test_records_that_do_not_fit_are_left_out_extras_first() -> None:
    query = parse_query(dns.message.make_query(ORIGIN, "NS").to_wire())
    answer = TABLE.find(query.name, query.qtype)
    renderer = Renderer(TABLE.origin)
    whole = dns.message.from_wire(renderer.render(query, answer, 512))
    assert len(whole.additional) == 4
    size = len(renderer.render(query, answer, 512))
    without_help = dns.message.from_wire(renderer.render(query, answer, size - 1))
    assert (len(without_help.answer), without_help.additional) == (1, [])
    assert not without_help.flags & dns.flags.TC
    shape = render_sections(answer, TABLE.origin, len(query.name))
    short = renderer.render(query, answer, 12 + len(query.question) + len(shape.main) - 1)
    truncated = dns.message.from_wire(short)
    assert truncated.flags & dns.flags.TC
    assert (truncated.answer, truncated.additional) == ([], [])


@pytest.mark.parametrize("edns", [False, True])
def test_no_limit_is_ever_exceeded(edns: bool) -> None:
    query = parse_query(dns.message.make_query(ORIGIN, "NS", use_edns=edns).to_wire())
    answer = TABLE.find(query.name, query.qtype)
    renderer = Renderer(TABLE.origin)
    bare = 12 + len(query.question) + (11 if edns else 0)
    for limit in range(bare, 512):
        assert len(renderer.render(query, answer, limit)) <= limit


def test_dnslib_writes_an_answer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(TABLE.origin)
    written = []

    def counting(*arguments: Any) -> Any:
        written.append(arguments)
        return render_sections(*arguments)

    monkeypatch.setattr(wire, "render_sections", counting)
    for label in ("a" * 52, "b" * 52, "C" * 52):
        query = parse_query(dns.message.make_query(f"{label}.{ORIGIN}", "A").to_wire())
        renderer.render(query, TABLE.find(query.name, query.qtype), 512)
    assert len(written) == 1


def test_what_is_kept_is_bounded() -> None:
    """As many kinds of answer and lengths of names as a flood can ask for, and then a million hashes."""
    renderer = Renderer(TABLE.origin)
    origin = parse_name(ORIGIN)
    for total in range(2, 255 - len(origin)):
        labels, left = b"", total
        while left:
            size = min(left, 64) - (left == 65)
            labels += bytes((size - 1,)) + b"x" * (size - 1)
            left -= size
        for qtype in (1, 2, 16, 28, 255, 252):
            query = parse_query(header() + labels + origin + qtype.to_bytes(2) + b"\0\1")
            renderer.render(query, TABLE.find(query.name, qtype), 512)
    before = len(renderer._shapes)
    for number in range(1000):
        name = parse_name(f"{format(number, '052b').replace('0', 'a').replace('1', 'b')}.{ORIGIN}")
        query = parse_query(header() + name + b"\0\1\0\1")
        renderer.render(query, TABLE.find(query.name, 1), 512)
    assert len(renderer._shapes) <= before + 1 <= MAX_SHAPES
