"""Names: settings in, look-up keys out."""

import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_dns.errors import ZoneError
from codius_dns.names import (
    ancestors,
    is_hash_name,
    is_within,
    labels_of,
    parse_mailbox,
    parse_name,
    parse_owner,
    to_text,
)
from tests.unit.dns.zones import HASH, HASH_NAME, ORIGIN

LABELS = st.from_regex(r"[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,20}[a-zA-Z0-9_])?", fullmatch=True)


@given(st.lists(LABELS, min_size=1, max_size=8).map(".".join))
def test_a_name_is_written_as_dnspython_writes_it(text: str) -> None:
    assert parse_name(text) == dns.name.from_text(text).to_digestable()
    assert parse_name(text + ".") == parse_name(text)
    assert labels_of(parse_name(text)) == tuple(label.encode() for label in text.lower().split("."))


@pytest.mark.parametrize(
    "text", ["", ".", "a..b", "-a.b", "a b", "ä.example", "x" * 64, ".".join(["x" * 63] * 4), "a\x00", "a\n"]
)
def test_what_is_no_host_name_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ZoneError, match="DNS name"):
        parse_name(text)


def test_a_mailbox_keeps_the_dots_of_its_user_in_one_label() -> None:
    assert labels_of(parse_mailbox("jane.doe@pods.example")) == (b"jane.doe", b"pods", b"example")
    assert parse_mailbox("hostmaster.pods.example") == parse_mailbox("hostmaster@pods.example")


@pytest.mark.parametrize(
    "text", ["@pods.example", f"{'x' * 64}@pods.example", "ä@pods.example", "a@", "a@b..c"]
)
def test_a_mailbox_dns_cannot_write_is_refused(text: str) -> None:
    with pytest.raises(ZoneError):
        parse_mailbox(text)


def test_a_record_may_be_a_wildcards() -> None:
    assert parse_owner("*.Pods.Example") == b"\1*" + parse_name(ORIGIN)
    assert parse_owner("www.pods.example.") == parse_name("www.pods.example")
    longest = ".".join(["x" * 63] * 3 + ["x" * 60])  # by itself it is a name still
    assert parse_name(longest)
    for text in ("*", "*.", "a.*.b", "**.b", f"*.{longest}"):
        with pytest.raises(ZoneError):
            parse_owner(text)


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=8))
def test_a_name_for_people_is_read_back_by_dnspython(labels: list[bytes]) -> None:
    """And holds nothing that could end a line or colour a terminal."""
    name = dns.name.Name([*labels, b""])
    text = to_text(name.to_wire() or b"")
    assert dns.name.from_text(text) == name
    assert text.isascii()
    assert text.isprintable()


def test_ancestors_come_nearest_first() -> None:
    assert list(ancestors(parse_name("a.b.c"))) == [parse_name("b.c"), parse_name("c"), b"\0"]


def test_a_label_that_contains_the_origins_bytes_is_not_within_the_origin() -> None:
    origin = parse_name(ORIGIN)
    disguised = bytes((len(origin),)) + b"x" + origin  # one label "x\4pods\7example"
    assert disguised.endswith(origin)
    assert not is_within(disguised, origin)  # type: ignore[arg-type]
    assert is_within(parse_name(f"x.{ORIGIN}"), origin)
    assert is_within(origin, origin)
    assert not is_within(parse_name(f"x{ORIGIN}"), origin)
    assert not is_within(parse_name("example"), origin)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HASH_NAME, True),
        (HASH_NAME.upper(), True),
        (f"{'a' * 52}.{ORIGIN}", True),
        (f"{HASH[:-1]}.{ORIGIN}", False),
        (f"{HASH}a.{ORIGIN}", False),
        (f"{HASH[:-1]}1.{ORIGIN}", False),
        (f"{HASH[:-1]}0.{ORIGIN}", False),
        (f"{HASH[:-1]}8.{ORIGIN}", False),
        (f"{HASH[:-1]}_.{ORIGIN}", False),
        (f"www.{HASH_NAME}", False),
        (f"{HASH}.www.{ORIGIN}", False),
        (f"{HASH}.pods.exampl", False),
        (HASH, False),
        (ORIGIN, False),
    ],
)
def test_a_hash_name_is_52_base32_characters_directly_under_the_zone(text: str, expected: bool) -> None:
    assert is_hash_name(parse_name(text), parse_name(ORIGIN)) is expected
