"""A response's head: what a pod may say, and that nothing else ever gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_proxy.fields import HttpError
from codius_proxy.response import (
    MAX_FIELDS,
    MEMO_HEAD_LENGTH,
    MEMO_HEADS,
    Body,
    find_response_end,
    parse_response,
    remembered_heads,
    render_response,
)
from tests.unit.proxy.lines import FIRST, LINES


def response(*fields: str, line: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([line, *fields]).encode("latin-1")


@pytest.mark.parametrize(
    ("raw", "method", "body", "length", "reusable"),
    [
        (response("Content-Length: 5"), b"GET", Body.LENGTH, 5, True),
        (response("Content-Length: 0"), b"GET", Body.NONE, 0, True),
        (response("Transfer-Encoding: chunked"), b"GET", Body.CHUNKED, None, True),
        (response(), b"GET", Body.UNTIL_CLOSE, None, False),
        (response("Connection: close", "Content-Length: 5"), b"GET", Body.LENGTH, 5, False),
        (response("Content-Length: 5", line="HTTP/1.0 200 OK"), b"GET", Body.LENGTH, 5, False),
        (response("Content-Length: 5"), b"HEAD", Body.NONE, 5, True),
        (response("Transfer-Encoding: chunked"), b"HEAD", Body.NONE, None, True),
        (response(line="HTTP/1.1 204 No Content"), b"GET", Body.NONE, None, True),
        (response("Content-Length: 5", line="HTTP/1.1 204 No Content"), b"GET", Body.NONE, None, True),
        (response("Content-Length: 5", line="HTTP/1.1 304 Not Modified"), b"GET", Body.NONE, 5, True),
        (response(line="HTTP/1.1 103 Early Hints"), b"GET", Body.NONE, None, True),
        (response("Content-Length: 1", line="HTTP/1.1 404"), b"GET", Body.LENGTH, 1, True),
    ],
)
def test_a_responses_framing(
    raw: bytes, method: bytes, body: Body, length: int | None, reusable: bool
) -> None:
    head = parse_response(raw, method=method, upgrade=None)
    assert (head.body, head.length, head.reusable) == (body, length, reusable)


def test_hop_by_hop_fields_of_a_response_stay_behind() -> None:
    raw = response(
        "Connection: X-Mine",
        "X-Mine: 1",
        "Keep-Alive: 5",
        "Upgrade: h2c",
        "Set-Cookie: a",
        "Content-Length: 2",
    )
    head = parse_response(raw, method=b"GET", upgrade=None)
    expected = b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nContent-Length: 2\r\n\r\n"
    assert render_response(head, close=False, chunked=False) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0-x",
        response(line="HTTP/2 200 OK"),
        response(line="HTTP/1.1 20 OK"),
        response(line="HTTP/1.1 099 OK"),
        response(line="http/1.1 200 OK"),
        response(line="HTTP/1.1 200 O\x00K"),
        response("Content-Length: 1", "Content-Length: 1"),
        response("Content-Length: -1"),
        response("Content-Length: 1", "Transfer-Encoding: chunked"),
        response("Transfer-Encoding: gzip, chunked"),
        response("Transfer-Encoding: chunked", line="HTTP/1.0 200 OK"),
        response(": y"),
        response("X: a", " b"),
        response("X: a\nb"),
        response("Upgrade: websocket", line="HTTP/1.1 101 Switching"),
        response(*["X: y"] * (MAX_FIELDS + 1)),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_broken_response_is_refused(raw: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        parse_response(raw, method=b"GET", upgrade=None)
    assert caught.value.status == 502


def test_only_a_protocol_that_was_offered_can_be_switched_to() -> None:
    raw = response("Connection: Upgrade", "Upgrade: WebSocket", line="HTTP/1.1 101 Switching Protocols")
    assert parse_response(raw, method=b"GET", upgrade=b"websocket").upgrade == b"WebSocket"
    with pytest.raises(HttpError):
        parse_response(raw, method=b"GET", upgrade=b"foo")
    with pytest.raises(HttpError):
        parse_response(response(line="HTTP/1.1 101 Switching"), method=b"GET", upgrade=b"websocket")


@given(
    (FIRST | st.binary(max_size=40)),
    LINES,
    st.sampled_from([b"GET", b"HEAD"]),
    st.sampled_from([None, b"websocket"]),
)
def test_no_bytes_escape_the_response_parser(
    first: bytes, lines: list[bytes], method: bytes, upgrade: bytes | None
) -> None:
    try:
        head = parse_response(b"\r\n".join([first, *lines]), method=method, upgrade=upgrade)
    except HttpError as error:
        assert error.status == 502  # noqa: PT017 - either outcome is right
        return
    rendered = render_response(head, close=True, chunked=head.body in (Body.CHUNKED, Body.UNTIL_CLOSE))
    assert rendered.count(b"\r\n\r\n") == 1
    assert parse_response(rendered[:-4], method=method, upgrade=upgrade).status == head.status


@given(st.binary(max_size=80))
def test_no_bytes_escape_the_search_for_a_responses_end(data: bytes) -> None:
    try:
        find_response_end(data)
    except HttpError as error:
        assert error.status == 502  # noqa: PT017 - either outcome is right


def test_what_is_remembered_is_bounded_and_depends_on_no_other_request() -> None:
    for number in range(MEMO_HEADS * 2):
        for _ in range(2):
            parse_response(response(f"X-{number}: y"), method=b"GET", upgrade=None)
    for _ in range(2):
        parse_response(response("X: " + "y" * MEMO_HEAD_LENGTH), method=b"GET", upgrade=None)
    assert len(remembered_heads) <= MEMO_HEADS
    assert max(map(len, remembered_heads)) <= MEMO_HEAD_LENGTH
    raw = response("Content-Length: 5")
    for _ in range(3):
        assert parse_response(raw, method=b"HEAD", upgrade=None).body is Body.NONE
        assert parse_response(raw, method=b"GET", upgrade=None).body is Body.LENGTH
    raw = response("Connection: Upgrade", "Upgrade: foo", line="HTTP/1.1 101 Switching")
    assert parse_response(raw, method=b"GET", upgrade=b"foo").upgrade == b"foo"
    with pytest.raises(HttpError):
        parse_response(raw, method=b"GET", upgrade=None)
