"""Chunked bodies: the same however they arrive, and nothing of a broken one passed on."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codius_proxy.chunked import LAST_CHUNK, MAX_EXTENSIONS, MAX_LINES, MAX_TRAILER, ChunkedBody, encode_chunk
from codius_proxy.fields import HttpError


def feed_all(pieces: list[bytes], *, decode: bool = False) -> tuple[bytes, bytes, bool] | str:
    """What was passed on, what came after the end, whether the end was reached; or why it was refused."""
    body = ChunkedBody(decode=decode)
    passed = excess = b""
    try:
        for piece in pieces:
            if body.done:
                excess += piece
                continue
            left = piece
            while left and not body.done:
                out, left = body.feed(left)
                passed += out
            excess += left
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


TINY = b"1\r\na\r\n"


@pytest.mark.parametrize(
    ("data", "at_once"),
    [
        (TINY * 500, MAX_LINES // 2 * len(TINY)),
        (b"1;x\r\na\r\n" * 500, MAX_LINES // 2 * 8),
        (b"3e8\r\n" + b"a" * 1000 + b"\r\n" + TINY * 500, 1007 + (MAX_LINES // 2 - 1) * len(TINY)),
        (b"0\r\n" + b"X:\r\n" * 500 + b"\r\n", 3 + (MAX_LINES - 1) * 4),
        (TINY * (MAX_LINES // 2) + LAST_CHUNK, MAX_LINES // 2 * len(TINY)),
    ],
    ids=["chunks", "extensions", "a large one first", "a trailer", "the end"],
)
@pytest.mark.parametrize("decode", [False, True])
def test_so_many_lines_are_read_at_once_and_the_others_are_left(
    data: bytes, at_once: int, decode: bool
) -> None:
    passed, left = ChunkedBody(decode=decode).feed(data)
    assert left == data[at_once:]
    assert decode or passed == data[:at_once]
    # The rest is what it would have been, piece by piece.
    pieces = [data[n : n + 40] for n in range(0, len(data), 40)]
    assert feed_all([data], decode=decode) == feed_all(pieces, decode=decode) != "refused"


def test_a_body_of_few_lines_leaves_nothing_before_its_end() -> None:
    chunk = encode_chunk(b"x" * 4096)
    data = chunk * (MAX_LINES // 2)
    body = ChunkedBody()
    assert body.feed(data) == (data, b"")
    assert body.feed(chunk + b"1") == (chunk, b"")  # the 1 may become a 12
    assert body.feed(b"2\r\n") == (b"12\r\n", b"")


def test_a_line_that_is_not_complete_is_no_line_that_is_left() -> None:
    """Else it would get turn after turn for nothing."""
    body = ChunkedBody()
    data = TINY * (MAX_LINES // 2)
    assert body.feed(data + b"1\r") == (data, b"1\r")
    assert body.feed(b"1\r") == (b"", b"")
    assert body.feed(b"\na") == (b"1\r\na", b"")


def test_bounds_go_on_over_what_is_left() -> None:
    """What was read before counts, however many lines at once: of extensions, and of a trailer."""
    assert feed_all([b"0\r\n" + b"X:\r\n" * (MAX_TRAILER // 4) + b"\r\n"]) != "refused"
    assert feed_all([b"0\r\n" + b"X:\r\n" * (MAX_TRAILER // 4 + 1) + b"\r\n"]) == "refused"
    assert feed_all([b"1;xyz\r\na\r\n" * (MAX_EXTENSIONS // 3)]) != "refused"
    assert feed_all([b"1;xyz\r\na\r\n" * (MAX_EXTENSIONS // 3 + 1)]) == "refused"


def test_no_byte_of_a_broken_chunk_line_is_passed_on() -> None:
    body = ChunkedBody()
    assert body.feed(b"5\r\nhello\r\n5") == (b"5\r\nhello\r\n", b"")
    with pytest.raises(HttpError):
        body.feed(b"\nGET / HTTP/1.1\r\n")
