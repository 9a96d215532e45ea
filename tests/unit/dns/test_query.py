"""The reader of questions: everything strangers can write, nothing they can break."""

import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_dns.names import parse_name
from codius_dns.query import FAIR_SHARE, Edns, parse_query, udp_limit
from tests.unit.dns.zones import ORIGIN

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
    query = parse_query(header(1, additionals=bool(options)) + QUESTION + options)
    assert udp_limit(query, 4000) == limit
    assert udp_limit(query, 0, proven=True) == limit


def test_an_unproven_asker_gets_a_fair_share_of_what_it_sent() -> None:
    query = parse_query(header(1, additionals=1) + QUESTION + OPT)
    assert udp_limit(query, 41) == FAIR_SHARE * 41
    assert udp_limit(query, 41, proven=True) == 1232


def opt(*options: bytes) -> bytes:
    data = b"".join(options)
    return OPT[:-2] + len(data).to_bytes(2) + data


def cookie(size: int) -> bytes:
    return b"\0\x0a" + size.to_bytes(2) + bytes(range(size))


@pytest.mark.parametrize("size", [8, 16, 24, 40])
def test_a_cookie_is_read_as_it_came(size: int) -> None:
    query = parse_query(header(1, additionals=1) + QUESTION + opt(b"\0\3\0\0", cookie(size)))
    assert query.well_formed
    assert query.edns == Edns(0, 4000, 0, bare=False, cookie=bytes(range(size)), nsid=True)


@pytest.mark.parametrize("size", [0, 7, 9, 15, 41])
def test_a_cookie_of_a_size_none_can_have_is_malformed(size: int) -> None:
    assert not parse_query(header(1, additionals=1) + QUESTION + opt(cookie(size))).well_formed


def test_of_two_cookies_the_first_one_counts() -> None:
    query = parse_query(header(1, additionals=1) + QUESTION + opt(cookie(8), cookie(7)))
    assert query.edns is not None
    assert query.edns.cookie == bytes(range(8))


def test_no_question_at_all_may_still_ask_for_a_cookie() -> None:
    assert parse_query(header(0, additionals=1) + opt(cookie(8))).well_formed
    assert not parse_query(header(0, additionals=1) + OPT).well_formed
