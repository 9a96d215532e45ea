"""The readers of a connection's bytes: what belongs to whom, however it arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_proxy.chunked import LAST_CHUNK, MAX_LINES
from codius_proxy.fields import HttpError
from codius_proxy.request import MEMO_BLOCK_LENGTH
from codius_proxy.request_reader import RequestReader
from codius_proxy.response_reader import MAX_INTERIM, ResponseReader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\n\r\n"


def read(wire: bytes, cuts: list[int], method: bytes = b"GET") -> tuple[list[int], bytes, bool, bool]:
    """Statuses, the body, whether it is complete, and whether the connection may be used again."""
    reader = ResponseReader()
    reader.begin(method, None, decode=False)
    statuses: list[int] = []
    body = b""
    marks = sorted(min(at, len(wire)) for at in cuts)
    for start, end in zip([0, *marks], [*marks, len(wire)], strict=True):
        reader.receive(wire[start:end])
        while not statuses or statuses[-1] < 200:
            head = reader.next_head()
            if head is None:
                break
            statuses.append(head.status)
        if statuses and statuses[-1] >= 200:
            body += reader.read_body()
            while reader.waiting:
                body += reader.read_body()
    return statuses, body, reader.done, reader.clean


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (HEAD + b"hello", ([200], b"hello", True, True)),
        (HEAD + b"hel", ([200], b"hel", False, True)),
        (HEAD + b"hello!", ([200], b"hello", True, False)),
        (HINTS + HEAD + b"hello", ([103, 200], b"hello", True, True)),
        (HINTS.replace(b"\r", b"") + HEAD + b"hello", ([103, 200], b"hello", True, False)),
        (HEAD.replace(b"\r", b"") + b"hello", ([200], b"hello", True, False)),
        (HEAD.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n") + b"hello", ([200], b"hello", True, False)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ([204], b"", True, True)),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", ([200], b"hello", False, False)),
    ],
)
@given(st.lists(st.integers(0, 90), max_size=5))
def test_an_answer_is_the_same_however_it_arrives(
    wire: bytes, expected: tuple[list[int], bytes, bool, bool], cuts: list[int]
) -> None:
    assert read(wire, cuts) == expected


@pytest.mark.parametrize("decode", [False, True])
def test_of_an_answer_of_many_chunks_some_wait(decode: bool) -> None:
    chunks = b"1\r\na\r\n" * MAX_LINES
    reader = ResponseReader()
    reader.begin(b"GET", None, decode=decode)
    reader.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + LAST_CHUNK + b"x")
    reader.next_head()
    body = reader.read_body()
    assert (reader.done, reader.clean, reader.waiting) == (
        False,
        True,
        chunks[len(chunks) // 2 :] + LAST_CHUNK + b"x",
    )
    body += reader.read_body()
    assert (reader.done, reader.clean, reader.waiting) == (False, True, LAST_CHUNK + b"x")
    body += reader.read_body()
    assert (reader.done, reader.clean, reader.waiting) == (True, False, b"")
    assert body == (b"a" * MAX_LINES if decode else chunks + LAST_CHUNK)


def test_of_a_request_of_many_chunks_some_wait_and_what_is_behind_it_is_no_part_of_it() -> None:
    chunks, behind = b"1\r\na\r\n" * MAX_LINES, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    reader = RequestReader()
    reader.receive(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    reader.next_head()
    reader.receive(chunks)
    body = reader.read_body()
    assert (reader.body_done, reader.waiting) == (False, chunks[len(chunks) // 2 :])
    reader.receive(LAST_CHUNK + behind)  # behind what waits
    body += reader.read_body()
    assert (reader.body_done, reader.waiting) == (False, LAST_CHUNK + behind)
    body += reader.read_body()
    assert (reader.body_done, reader.waiting) == (True, behind)
    assert body == chunks + LAST_CHUNK


def test_a_body_without_a_length_ends_with_the_connection_and_no_other_does() -> None:
    for head, ends in ((b"HTTP/1.1 200 OK\r\n\r\n", True), (HEAD, False)):
        reader = ResponseReader()
        assert not reader.end()
        reader.begin(b"GET", None, decode=False)
        reader.receive(head + b"hel")
        reader.next_head()
        reader.read_body()
        assert reader.end() is ends
        assert reader.done is ends


def test_too_many_interim_answers_are_a_flood() -> None:
    reader = ResponseReader()
    reader.begin(b"GET", None, decode=False)
    reader.receive(HINTS * (MAX_INTERIM + 1))
    for _ in range(MAX_INTERIM):
        assert reader.next_head() is not None
    with pytest.raises(HttpError):
        reader.next_head()


@given(st.lists(st.integers(0, 200), max_size=6))
def test_requests_behind_one_another_are_told_apart_however_they_arrive(cuts: list[int]) -> None:
    wire = (
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
        b"\r\nPOST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
        b"GET /c HTTP/1.1\r\nHost: h\r\n\r\nGET"
    )
    reader = RequestReader()
    found: list[tuple[bytes, bytes]] = []
    marks = sorted(min(at, len(wire)) for at in cuts)
    for start, end in zip([0, *marks], [*marks, len(wire)], strict=True):
        reader.receive(wire[start:end])
        while reader.waiting:
            if reader.body_done:
                head = reader.next_head()
                if head is None:
                    break
                found.append((head.target, b""))
            if not reader.body_done:
                found[-1] = (found[-1][0], found[-1][1] + reader.read_body())
    assert found == [(b"/a", b"abc"), (b"/b", b"1\r\nx\r\n0\r\n\r\n"), (b"/c", b"")]
    assert reader.waiting == b"GET"


@pytest.mark.parametrize(
    "body", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n" + LAST_CHUNK]
)
def test_the_same_head_again_is_read_as_a_request_of_its_own(body: bytes) -> None:
    """It is not parsed a second time; its body is still another one."""
    wire = b"POST / HTTP/1.1\r\nHost: a.example\r\n" + body
    reader = RequestReader()
    heads = []
    for _ in range(3):
        reader.receive(wire)
        heads.append(reader.next_head())
        rest = body.partition(b"\r\n\r\n")[2]
        assert [reader.body_done, reader.read_body(), reader.body_done] == [False, rest, True]
        assert reader.next_head() is None
    assert heads[0] is heads[1] is heads[2]
    reader.receive(wire.replace(b"POST", b"post"))
    other = reader.next_head()
    assert other is not None
    assert other.method == b"post"


def test_a_connection_at_rest_keeps_no_large_head() -> None:
    reader = RequestReader()
    reader.receive(b"GET /" + b"x" * MEMO_BLOCK_LENGTH + b" HTTP/1.1\r\nHost: a.example\r\n\r\n")
    assert reader.next_head() is not None
    assert reader._last is None
