"""The message that carries TXT values: what is written is what is read, anything else is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_dns.texts import Texts, TextsError, parse_texts_message, render_texts

VALUES = st.dictionaries(
    st.text("abc-_.", max_size=20),
    st.lists(st.text("ABCdef-_019", max_size=50).map(str.encode), max_size=4).map(tuple),
    max_size=4,
)


@given(st.integers(0, 2**32 - 1), VALUES)
def test_what_is_written_is_read_again(serial: int, values: dict[str, tuple[bytes, ...]]) -> None:
    line = render_texts(Texts(serial, values))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_texts_message(line) == Texts(serial, values)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"1",
        b"{}",
        b'{"serial": 1}',
        b'{"serial": -1, "texts": {}}',
        b'{"serial": 4294967296, "texts": {}}',
        b'{"serial": true, "texts": {}}',
        b'{"serial": "1", "texts": {}}',
        b'{"serial": 1, "texts": []}',
        b'{"serial": 1, "texts": {"a": "b"}}',
        b'{"serial": 1, "texts": {"a": [1]}}',
        '{"serial": 1, "texts": {"a": ["ä"]}}'.encode(),
        b'{"serial": 1, "texts": {"a": ["b"]}',
        b"\xff",
    ],
)
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(TextsError):
        parse_texts_message(line)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(line: bytes) -> None:
    with contextlib.suppress(TextsError):
        parse_texts_message(line)
