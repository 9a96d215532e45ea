"""Chunked bodies: the same however they arrive, and nothing of a broken one passed on."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codius_proxy.chunked import LAST_CHUNK, MAX_EXTENSIONS, ChunkedBody, encode_chunk
from codius_proxy.fields import HttpError


def feed_all(pieces: list[bytes], *, decode: bool = False) -> tuple[bytes, bytes, bool] | str:
    """What was passed on, what came after the end, whether the end was reached; or why it was refused."""
    body = ChunkedBody(decode=decode)
    passed = excess = b""
    try:
        for piece in pieces:
            if body.done:
                excess += piece
            else:
                out, after = body.feed(piece)
                passed += out
                excess += after
    except HttpError as error:
        assert error.status == 400  # noqa: PT017 - either outcome is right
        return "refused"
    return passed, excess, body.done


_chunk_like = st.lists(
    st.sampled_from(
        [
            b"5\r\nhello\r\n",
            b"0\r\n",
            b"\r\n",
            b"A;x=y\r\n0123456789\r\n",
            b'1;a="q\\""\r\n',
            b"x",
            b"T: v\r\n",
            b"0" * 20,
            b"\n",
            b"\r",
            b";",
            b"00\r\n",
            b"Host: x\r\n",
            b"ffffffffffffffff\r\n",
        ]
    )
    | st.binary(max_size=8),
    max_size=6,
).map(b"".join)


@given(_chunk_like, st.lists(st.integers(0, 80), max_size=6), st.booleans())
@example(b"5\r\nhello\r\n0\r\n\r\nGET /", [3, 4, 11], False)
@example(b"1" + b";a=" + b"b" * 252 + b"\r\nx", [257], False)
@example(b"1" + b";a=" + b"b" * 253 + b"\r\nx", [257], False)
def test_a_chunked_body_is_the_same_however_it_arrives(data: bytes, cuts: list[int], decode: bool) -> None:
    marks = sorted(min(cut, len(data)) for cut in cuts)
    pieces = [data[start:end] for start, end in zip([0, *marks], [*marks, len(data)], strict=True)]
    whole = feed_all([data], decode=decode)
    assert feed_all(pieces, decode=decode) == whole
    assert feed_all([data[n : n + 1] for n in range(len(data))], decode=decode) == whole


@given(st.lists(st.binary(max_size=40), max_size=5), st.binary(max_size=10))
def test_what_we_encode_is_read_back(parts: list[bytes], after: bytes) -> None:
    wire = b"".join(map(encode_chunk, parts)) + LAST_CHUNK
    assert feed_all([wire + after]) == (wire, after, True)
    assert feed_all([wire + after], decode=True) == (b"".join(parts), after, True)


@pytest.mark.parametrize(
    "data",
    [
        b"x\r\n",
        b"\r\n",
        b"+5\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b" 5\r\n",
        b"5 \r\n",
        b"5\n",
        b"5\nhello\r\n",
        b"5\rhello",
        b"5;\r\n",
        b"5; a\r\n",
        b"5;a=\r\n",
        b"5;a=b\nc\r\n",
        b'5;a="b\r\n',
        b"5\x00\r\n",
        b"1" * 16 + b"\r\n",
        b"5\r\nhello!",
        b"5\r\nhello\n",
        b"5\r\nhello\r0",
        b"5;" + b"a" * 300,
        b"0\r\nHost: x\r\n",
        b"0\r\nContent-Length: 1\r\n",
        b"0\r\nTransfer_Encoding: x\r\n",
        b"0\r\nX-Forwarded-For: x\r\n",
        b"0\r\nX.Real.IP: x\r\n",
        b"0\r\nProxy: x\r\n",
        b"0\r\nKeep-Alive: x\r\n",
        b"0\r\nX : y\r\n",
        b"0\r\n fold\r\n",
        b"0\r\nX: \x00\r\n",
        b"0\r\n" + b"X: y\r\n" * 2000,
        b"0\r\nX: " + b"y" * 9000,
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_broken_chunked_body_is_refused(data: bytes) -> None:
    assert feed_all([data]) == "refused"
    assert feed_all([data[n : n + 1] for n in range(len(data))]) == "refused"


def test_extensions_may_be_no_longer_than_what_they_extend() -> None:
    extended = b";x=" + b"y" * 100
    small = b"1" + extended + b"\r\na\r\n"
    assert feed_all([small * (MAX_EXTENSIONS // 200)]) != "refused"
    assert feed_all([small * (MAX_EXTENSIONS // 100)]) == "refused"
    # A signature with each large chunk is nothing to be afraid of, however many they are.
    assert feed_all([b"400" + extended + b"\r\n" + b"a" * 1024 + b"\r\n"] * 500) != "refused"
    # Data that came make up for extensions that came before, and not for those that come later.
    data = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    most = small * (MAX_EXTENSIONS // 103)
    assert feed_all([most, data, most, data]) != "refused"
    assert feed_all([data, most, small * 2]) == "refused"


def test_no_byte_of_a_broken_chunk_line_is_passed_on() -> None:
    body = ChunkedBody()
    assert body.feed(b"5\r\nhello\r\n5") == (b"5\r\nhello\r\n", b"")
    with pytest.raises(HttpError):
        body.feed(b"\nGET / HTTP/1.1\r\n")
