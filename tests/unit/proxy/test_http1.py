"""The strict reader: what it takes, what it refuses, and that nothing else ever happens."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codius_proxy import http1
from codius_proxy.http1 import (
    Body,
    ChunkedBody,
    HttpError,
    encode_chunk,
    find_head_end,
    find_response_end,
    parse_request,
    parse_response,
    render_request,
    render_response,
)

FORWARDED = http1.render_forwarded("192.0.2.7", "https")


def request(*fields: str, line: str = "GET /a?b=c HTTP/1.1", host: str | None = "h.example") -> bytes:
    lines = [line, *([] if host is None else [f"Host: {host}"]), *fields]
    return "\r\n".join(lines).encode("latin-1")


def response(*fields: str, line: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([line, *fields]).encode("latin-1")


# Requests.


def test_a_request_goes_to_the_pod_with_the_visitors_host_and_our_word_about_the_visitor() -> None:
    head = parse_request(
        request(
            "User-Agent: x",
            "X-Forwarded-For: 6.6.6.6",
            "x-forwarded-proto: gopher",
            "X-Forwarded-Port: 1",
            "X_Forwarded_For: 6.6.6.6",
            "X-Real-IP: 6.6.6.6",
            "Forwarded: for=6.6.6.6",
            "Proxy: http://evil",
            "Keep-Alive: 5",
            "TE: trailers",
            "Proxy-Connection: keep-alive",
            "Connection: keep-alive, X-Mine",
            "X-Mine: 1",
            "Cookie: a=b",
            host="H.example:81",
        )
    )
    assert render_request(head, FORWARDED) == (
        b"GET /a?b=c HTTP/1.1\r\nHost: H.example:81\r\nUser-Agent: x\r\nCookie: a=b\r\n"
        b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: H.example:81\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("raw", "length", "chunked", "has_body"),
    [
        (request(), None, False, False),
        (request("Content-Length: 0"), 0, False, False),
        (request("Content-Length: 007"), 7, False, True),
        (request("content-length:5"), 5, False, True),
        (request("Transfer-Encoding: Chunked"), None, True, True),
    ],
)
def test_a_requests_framing(raw: bytes, length: int | None, chunked: bool, has_body: bool) -> None:
    head = parse_request(raw)
    assert (head.length, head.chunked, head.has_body) == (length, chunked, has_body)


@pytest.mark.parametrize(
    ("raw", "keep_alive"),
    [
        (request(), True),
        (request("Connection: close"), False),
        (request("Connection: Keep-Alive", "Connection: , CLOSE"), False),
        (request(line="GET / HTTP/1.0"), False),
        (request("Connection: keep-alive", line="GET / HTTP/1.0"), False),
    ],
)
def test_a_connection_is_kept_or_not(raw: bytes, keep_alive: bool) -> None:
    assert parse_request(raw).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("raw", "upgrade"),
    [
        (request("Connection: Upgrade", "Upgrade: websocket"), b"websocket"),
        (request("Connection: keep-alive, upgrade", "Upgrade: foo/2"), b"foo/2"),
        (request("Upgrade: websocket"), None),
        (request("Connection: Upgrade"), None),
        (request("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x"), None),
        (request("Connection: Upgrade", "Upgrade: websocket, h2c"), None),
        (request("Connection: Upgrade", "Upgrade: HTTP/2.0"), None),
        (request("Connection: Upgrade", "Upgrade: TLS/1.2"), None),
        (request("Connection: Upgrade", "Upgrade: a b"), None),
        (request("Connection: Upgrade", "Upgrade: websocket", "Content-Length: 3"), None),
        (request("Connection: Upgrade", "Upgrade: websocket", line="GET / HTTP/1.0"), None),
    ],
)
def test_an_offer_to_upgrade_is_passed_on_only_when_it_is_sound(raw: bytes, upgrade: bytes | None) -> None:
    head = parse_request(raw)
    assert head.upgrade == upgrade
    assert (b"Upgrade" in render_request(head, FORWARDED)) is (upgrade is not None)


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("GET /x HTTP/1.1", b"/x"),
        ("GET http://h.example/x?y HTTP/1.1", b"/x?y"),
        ("GET HTTP://H.example HTTP/1.1", b"/"),
        ("GET http://h.example?q HTTP/1.1", b"/?q"),
        ("OPTIONS * HTTP/1.1", b"*"),
        ("OPTIONS http://h.example HTTP/1.1", b"*"),
        ("GET //evil/x HTTP/1.1", b"//evil/x"),
        ('GET /{|}^"` HTTP/1.1', b'/{|}^"`'),
    ],
)
def test_a_target_goes_out_in_origin_form(line: str, target: bytes) -> None:
    assert parse_request(request(line=line)).target == target


REFUSED = [
    (400, request("Content-Length: 1", "Transfer-Encoding: chunked")),
    (400, request("Transfer-Encoding: chunked", "Content-Length: 1")),
    (400, request("Content-Length: 1", "Content-Length: 1")),
    (400, request("Content-Length: 1, 1")),
    (400, request("Content-Length: +1")),
    (400, request("Content-Length: -1")),
    (400, request("Content-Length: 0x1")),
    (400, request("Content-Length: 1_0")),
    (400, request("Content-Length: ")),
    (400, request("Content-Length: \xb2")),
    (413, request("Content-Length: " + "9" * 19)),
    (400, request("Content_Length: 1")),
    (400, request("Transfer_Encoding: chunked")),
    (400, request("Transfer-Encoding: chunked", "Transfer-Encoding: chunked")),
    (400, request("Transfer-Encoding: chunked, chunked")),
    (400, request("Transfer-Encoding: xchunked")),
    (400, request("Transfer-Encoding: identity")),
    (400, request("Transfer-Encoding: chunked, identity")),
    (400, request("Transfer-Encoding: \x0bchunked")),
    (400, request('Transfer-Encoding: "chunked"')),
    (400, request("Transfer-Encoding:")),
    (501, request("Transfer-Encoding: gzip, chunked")),
    (400, request("Transfer-Encoding: chunked", line="POST / HTTP/1.0")),
    (400, request("Transfer-Encoding : chunked")),
    (400, request("Content-Length : 1")),
    (400, request("X : y")),
    (400, request("X: a", " b: c")),
    (400, request("X: a", "\tb")),
    (400, request(" X: a")),
    (400, request("X")),
    (400, request(": x")),
    (400, request("")),
    (400, request("X\x00: a")),
    (400, request("X: a\x00b")),
    (400, request("X: a\rb")),
    (400, request("X: a\nTransfer-Encoding: chunked")),
    (400, request("X: a\r")),
    (400, request("X: a\x7f")),
    (400, request("X(: a")),
    (400, request("\xe9: a")),
    (400, request(host=None)),
    (400, request("Host: h.example")),
    (400, request("Host: other.example")),
    (400, request("H_ost: x", host=None)),
    (400, request("Connection: host")),
    (400, request("Connection: close, Content-Length")),
    (400, request("Connection: transfer-encoding")),
    (400, request("Connection: X-Forwarded-For")),
    (400, request("Connection: cookie")),
    (400, request("Connection: a b")),
    (400, request(line="GET / HTTP/1.1 ")),
    (400, request(line="GET  / HTTP/1.1")),
    (400, request(line="GET /a b HTTP/1.1")),
    (400, request(line="GET\t/ HTTP/1.1")),
    (400, request(line=" GET / HTTP/1.1")),
    (400, request(line="GET /")),
    (400, request(line="GET / HTTP/1")),
    (400, request(line="GET / http/1.1")),
    (400, request(line="GET / HTTP/11.1")),
    (400, request(line="G=T / HTTP/1.1")),
    (400, request(line="GET /\x00 HTTP/1.1")),
    (400, request(line="GET /\xe9 HTTP/1.1")),
    (400, request(line="GET /#f HTTP/1.1")),
    (400, request(line="GET x HTTP/1.1")),
    (400, request(line="GET * HTTP/1.1")),
    (400, request(line="GET ftp://h.example/ HTTP/1.1")),
    (400, request(line="GET http://other.example/ HTTP/1.1")),
    (400, request(line="GET http://u@h.example/ HTTP/1.1")),
    (400, request(line="GET / HTTP/1.1\nX: y")),
    (400, b""),
    (501, request(line="CONNECT h.example:443 HTTP/1.1")),
    (501, request(line="X" * 33 + " / HTTP/1.1")),
    (505, request(line="GET / HTTP/2.0")),
    (505, request(line="GET / HTTP/1.2")),
    (505, request(line="GET / HTTP/0.9")),
    (505, b"PRI * HTTP/2.0"),
    (414, request(line=f"GET /{'x' * http1.MAX_TARGET} HTTP/1.1")),
    (431, request(*["X: y"] * http1.MAX_FIELDS)),
    (417, request("Expect: 200-ok", "Content-Length: 1")),
]


@pytest.mark.parametrize(("status", "raw"), REFUSED, ids=lambda value: repr(value)[:60])
def test_an_ambiguous_request_is_refused(status: int, raw: bytes) -> None:
    for _ in range(2):  # the second time from the memo, where there is one
        with pytest.raises(HttpError) as caught:
            parse_request(raw)
        assert caught.value.status == status
        assert caught.value.reason.endswith(".")


@pytest.mark.parametrize(
    ("buffer", "expected"),
    [
        (b"", -1),
        (b"GET / HTTP/1.1\r\nHost: x", -1),
        (b"GET / HTTP/1.1\r\n\r", -1),
        (b"GET / HTTP/1.1\r\n\r\n", 14),
        (b"GET / HTTP/1.1\r\n\r\nGET /" + b"x" * 100_000, 14),
        (b"GET / HTTP/1.1\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b" GET", 400),
        (b"\r\nGET", 400),
        (b"GET /" + b"x" * http1.MAX_HEAD, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * http1.MAX_HEAD, 431),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * http1.MAX_HEAD + b"\r\n\r\n", 431),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_heads_end_is_found_or_ruled_out(buffer: bytes, expected: int) -> None:
    if expected < 100:
        assert find_head_end(buffer) == expected
    else:
        with pytest.raises(HttpError) as caught:
            find_head_end(buffer)
        assert caught.value.status == expected


@given(st.binary(max_size=60), st.integers(0, 60))
@example(b"a\r\n\r\n", 3)
@example(b"a\r\n", 2)
def test_looking_for_the_heads_end_in_two_steps_gives_the_same(data: bytes, cut: int) -> None:
    def look(buffer: bytes, start: int) -> int:
        try:
            return find_head_end(buffer, start)
        except HttpError as error:
            return error.status

    first = look(data[:cut], 0)
    whole = look(data, 0)
    assert look(data, min(cut, len(data))) == whole if first == -1 else whole in (first, 400) or first >= 0


_lines = st.lists(
    st.sampled_from(
        [
            b"Host: a",
            b"Host:",
            b"Content-Length: 3",
            b"Content-Length: x",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Connection: close",
            b"Connection: upgrade, x",
            b"Upgrade: websocket",
            b"Expect: 100-continue",
            b"Accept: text/html",
            b"X: y",
            b" fold",
            b"",
            b"\xff: \xff",
            b"A:\x01",
        ]
    )
    | st.binary(max_size=30),
    max_size=6,
)
_first = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /x HTTP/1.0", b"HTTP/1.1 200 OK", b"HTTP/1.0 304", b"HTTP/1.1 101 S"]
)


@given((_first | st.binary(max_size=40)), _lines)
def test_no_bytes_escape_the_request_parser_and_what_it_renders_it_reads_the_same(
    first: bytes, lines: list[bytes]
) -> None:
    try:
        head = parse_request(b"\r\n".join([first, *lines]))
    except HttpError as error:
        assert 400 <= error.status < 600  # noqa: PT017 - either outcome is right
        return
    rendered = render_request(head, FORWARDED)
    assert rendered.count(b"\r\n\r\n") == 1
    again = parse_request(rendered[:-4])
    assert (again.method, again.target, again.host) == (head.method, head.target, head.host)
    assert (again.length, again.chunked, again.upgrade) == (head.length, head.chunked, head.upgrade)
    assert again.fields == head.fields


@given(
    (_first | st.binary(max_size=40)),
    _lines,
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


# Responses.


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
        response("X : y"),
        response("X: a", " b"),
        response("X: a\nb"),
        response("Upgrade: websocket", line="HTTP/1.1 101 Switching"),
        response(*["X: y"] * (http1.MAX_FIELDS + 1)),
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


# Chunked bodies.


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
    wire = b"".join(map(encode_chunk, parts)) + http1.LAST_CHUNK
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


def test_no_byte_of_a_broken_chunk_line_is_passed_on() -> None:
    body = ChunkedBody()
    assert body.feed(b"5\r\nhello\r\n5") == (b"5\r\nhello\r\n", b"")
    with pytest.raises(HttpError):
        body.feed(b"\nGET / HTTP/1.1\r\n")


def test_the_memo_is_bounded() -> None:
    for number in range(http1.MEMO_LINES * 2):
        parse_request(request(f"X-{number}: y"))
    assert len(http1._request_lines) <= http1.MEMO_LINES
    parse_request(request("Cookie: " + "x" * 5000))
    assert not any(len(line) > http1.MEMO_LINE_LENGTH for line in http1._request_lines)
