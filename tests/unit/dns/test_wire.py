"""The writer of answers: dnslib's bytes, kept, and right for every name of one length."""

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
from codius_dns.query import parse_query
from codius_dns.records import Record
from codius_dns.table import Table
from codius_dns.wire import MAX_SHAPES, Renderer, _to_dnslib, render_sections, render_truncated
from tests.unit.dns.zones import CHALLENGE, HASH_NAME, ORIGIN, ZONE

TABLE = Table((ZONE,), {CHALLENGE: (b"one", b"two")})
QUESTION_HEADER = bytes.fromhex("123400000001000000000000")


@pytest.mark.parametrize("edns", [False, True])
@pytest.mark.parametrize("qtype", ["A", "AAAA", "NS", "SOA", "TXT", "ANY", "CAA"])
@pytest.mark.parametrize(
    "name", [ORIGIN, HASH_NAME, f"ns1.{ORIGIN}", CHALLENGE, f"dns.{ORIGIN}", f"x.{ORIGIN}"]
)
def test_a_kept_answer_is_what_dnslib_writes_for_this_very_name(name: str, qtype: str, edns: bool) -> None:
    query = parse_query(dns.message.make_query(name, qtype, use_edns=edns).to_wire())
    answer = TABLE.find(query.name, query.qtype)
    renderer = Renderer()
    renderer.render(query, answer, 512)
    kept = dnslib.DNSRecord.parse(renderer.render(query, answer, 512))

    def written(records: tuple[Record, ...]) -> list[dnslib.RR]:
        return [
            dnslib.RR(dnslib.DNSLabel(labels_of(record.owner or query.name)), rtype, 1, record.ttl, data)
            for record in records
            for rtype, data in [_to_dnslib(record.data)]
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
    renderer = Renderer()
    size = min(len(first), len(second))
    for label in (b"ns1", first[:size], b"hostmaster"[:size], second[:size]):
        packet = QUESTION_HEADER + bytes((len(label),)) + label + parse_name(ORIGIN) + b"\0\x0f\0\1"
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
    renderer = Renderer()
    whole = dns.message.from_wire(renderer.render(query, answer, 512))
    assert len(whole.additional) == 4
    size = len(renderer.render(query, answer, 512))
    without_help = dns.message.from_wire(renderer.render(query, answer, size - 1))
    assert (len(without_help.answer), without_help.additional) == (1, [])
    assert not without_help.flags & dns.flags.TC
    shape = render_sections(answer, len(query.name))
    short = renderer.render(query, answer, 12 + len(query.question) + len(shape.main) - 1)
    truncated = dns.message.from_wire(short)
    assert truncated.flags & dns.flags.TC
    assert (truncated.answer, truncated.additional) == ([], [])


@pytest.mark.parametrize("edns", [False, True])
def test_no_limit_is_ever_exceeded(edns: bool) -> None:
    query = parse_query(dns.message.make_query(ORIGIN, "NS", use_edns=edns).to_wire())
    answer = TABLE.find(query.name, query.qtype)
    renderer = Renderer()
    bare = 12 + len(query.question) + (11 if edns else 0)
    for limit in range(bare, 512):
        assert len(renderer.render(query, answer, limit)) <= limit


def test_options_go_into_the_opt_record_and_count() -> None:
    query = parse_query(dns.message.make_query(HASH_NAME, "A", use_edns=0).to_wire())
    answer = TABLE.find(query.name, query.qtype)
    message = dns.message.from_wire(Renderer().render(query, answer, 512, wire.render_option(3, b"me")))
    assert [(option.otype, option.to_text()) for option in message.options] == [(3, "NSID me")]


@pytest.mark.parametrize("edns", [False, True])
def test_a_truncated_answer_is_no_longer_than_its_question(edns: bool) -> None:
    packet = dns.message.make_query(HASH_NAME, "A", use_edns=edns - 1).to_wire()
    message = dns.message.from_wire(render_truncated(parse_query(packet)))
    assert message.flags == dns.flags.QR | dns.flags.TC | dns.flags.RD
    assert len(render_truncated(parse_query(packet))) == len(packet)
    assert message.edns == edns - 1


def test_dnslib_writes_an_answer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer()
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
    renderer = Renderer()
    origin = parse_name(ORIGIN)
    for total in range(2, 255 - len(origin)):
        labels, left = b"", total
        while left:
            size = min(left, 64) - (left == 65)
            labels += bytes((size - 1,)) + b"x" * (size - 1)
            left -= size
        for qtype in (1, 2, 16, 28, 255, 252):
            query = parse_query(QUESTION_HEADER + labels + origin + qtype.to_bytes(2) + b"\0\1")
            renderer.render(query, TABLE.find(query.name, qtype), 512)
    before = len(renderer._shapes)
    for number in range(1000):
        name = parse_name(f"{format(number, '052b').replace('0', 'a').replace('1', 'b')}.{ORIGIN}")
        query = parse_query(QUESTION_HEADER + name + b"\0\1\0\1")
        renderer.render(query, TABLE.find(query.name, 1), 512)
    assert len(renderer._shapes) <= before + 1 <= MAX_SHAPES
