"""A request's head: what is taken, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codius_proxy.bounds import DEFAULT, LEAST, Bounds
from codius_proxy.fields import (
    FIELD,
    MEMO_NAME_LENGTH,
    MEMO_NAMES,
    REQUEST_NAMES,
    HttpError,
    split_block,
    why_no_name,
)
from codius_proxy.identity import Identity, build_fields
from codius_proxy.request import (
    MEMO_BLOCK_LENGTH,
    MEMO_BLOCKS,
    RequestHead,
    find_head_end,
    parse_request,
    remembered_blocks,
    render_request,
)
from tests.unit.proxy.lines import FIRST, LINES

FORWARDED = build_fields(Identity("192.0.2.7", "https").render(), b"H.example:81")


def request(*fields: str, line: str = "GET /a?b=c HTTP/1.1", host: str | None = "h.example") -> bytes:
    lines = [line, *([] if host is None else [f"Host: {host}"]), *fields]
    return "\r\n".join(lines).encode("latin-1")


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
        b"Via: 1.1 codius\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n"
        b'Forwarded: for=192.0.2.7;proto=https;host="H.example:81"\r\n'
        b"X-Forwarded-Host: H.example:81\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("raw", "length", "chunked"),
    [
        (request(), None, False),
        (request("Content-Length: 0"), 0, False),
        (request("content-length:5"), 5, False),
        (request("Transfer-Encoding: Chunked"), None, True),
    ],
)
def test_a_requests_framing(raw: bytes, length: int | None, chunked: bool) -> None:
    head = parse_request(raw)
    assert (head.length, head.chunked) == (length, chunked)


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
    ("fields", "html"),
    [
        ((), False),
        (("Accept: */*",), False),
        (("Accept: application/json, text/plain, */*",), False),
        (("Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",), True),
        (("Accept: text/*",), False),  # not HTML by its name: a program that takes whatever comes
        (("Accept: TEXT/HTML",), True),
        (("Accept: text/html;q=0",), False),
        (("Accept: text/html;q=0.000, */*",), False),
        (("Accept: text/html;q=0.1, */*",), False),
        (("Accept: application/json, text/html;q=0.9",), False),
        (("Accept: application/json;q=0.9 , text/html ; q=0.9",), True),
        (("Accept: application/json;q=0.1, application/*, text/html;q=0.5",), True),
        (("Accept: application/*, text/html;q=0.5",), False),
        (("Accept: text/html;level=1;Q=0.3, */*;q=0.2",), True),
        (("Accept: text/html;q=2, */*",), True),  # no weight at all
        (("Accept: " + "a/b," * 300 + "text/html",), False),  # longer than anybody reads
        (("Accept: text/html;q=0.5", "Accept: application/json"), False),
        (("Accept: application/json;q=0.5", "accept: text/html"), True),
        (("Accept: ,;,text/html;;q=;", "Accept:"), True),
        (("Accept: x/text/html",), False),
    ],
)
def test_a_page_is_for_who_asks_for_html_no_less_than_for_json(fields: tuple[str, ...], html: bool) -> None:
    head = parse_request(request(*fields))
    assert head.html is html
    assert all(field.encode() in head.fields for field in fields)


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
    (400, request("Content-Length: 00")),
    (400, request("Content-Length: 010")),
    (400, request("Transfer-Encoding: chunked\t")),
    (400, request("Transfer-Encoding:\tchunked")),
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
    (501, request(line="connect / HTTP/1.1")),
    (501, request(line="Trace / HTTP/1.1")),
    (400, request("Expect: 100-continue", "Expect: 100-continue", "Content-Length: 1")),
    (400, request("Content.Length: 1")),
    (400, request("transfer~encoding: chunked")),
    (400, request(host="h.example:080")),
    (400, request(host="user@h.example")),
    (505, request(line="GET / HTTP/2.0")),
    (505, request(line="GET / HTTP/1.2")),
    (505, request(line="GET / HTTP/0.9")),
    (505, b"PRI * HTTP/2.0"),
    (414, request(line=f"GET /{'x' * DEFAULT.line} HTTP/1.1")),
    (431, request(*["X: y"] * DEFAULT.fields)),
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
        (b"GET /" + b"x" * DEFAULT.head, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * DEFAULT.head, 431),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * DEFAULT.head + b"\r\n\r\n", 431),
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


@given((FIRST | st.binary(max_size=40)), LINES)
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
    assert again.fields.replace(b"\r\nVia: 1.%d codius" % head.minor, b"", 1) == head.fields


def test_a_bound_holds_for_what_was_read_under_a_wider_one_before() -> None:
    for number in (LEAST.fields - 1, LEAST.fields):  # Host is one more
        many = request(*(f"X-{line}: y" for line in range(number)))
        for _ in range(3):
            parse_request(many)
        if number == LEAST.fields:
            with pytest.raises(HttpError, match=f"more than {LEAST.fields} header lines"):
                parse_request(many, LEAST)
        else:
            parse_request(many, LEAST)
    long = request("X: " + "y" * LEAST.line)
    for _ in range(3):
        parse_request(long)
    with pytest.raises(HttpError, match="header line is longer") as caught:
        parse_request(long, LEAST)
    assert caught.value.status == 431
    assert min(LEAST.line, LEAST.head) >= MEMO_BLOCK_LENGTH


@pytest.mark.parametrize(
    ("buffer", "status"),
    [
        (b"GET /" + b"x" * 200, 414),
        (b"GET /" + b"x" * 200 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 200 + b"\r\n\r\n", 431),
    ],
)
@pytest.mark.parametrize("line", [50, 500], ids=["of a line", "of the head alone"])
def test_a_heads_bounds_are_the_callers(buffer: bytes, status: int, line: int) -> None:
    with pytest.raises(HttpError) as caught:
        find_head_end(buffer, bounds=Bounds(head=100, line=line))
    assert caught.value.status == status


def test_what_is_remembered_is_bounded() -> None:
    for number in range(MEMO_BLOCKS * 2):
        for _ in range(2):
            parse_request(request(f"X-{number}: y"))
    for _ in range(2):
        parse_request(request("Cookie: " + "x" * MEMO_BLOCK_LENGTH))
    parse_request(request("X" * (MEMO_NAME_LENGTH + 1) + ": y"))
    assert len(remembered_blocks) <= MEMO_BLOCKS
    assert max(map(len, remembered_blocks)) <= MEMO_BLOCK_LENGTH
    assert len(REQUEST_NAMES) <= MEMO_NAMES
    assert max(map(len, REQUEST_NAMES)) <= MEMO_NAME_LENGTH


def facts(head: RequestHead) -> tuple[object, ...]:
    return render_request(head, b""), head.host, head.length, head.keep_alive, head.html, head.claims


def test_what_is_remembered_is_what_was_read() -> None:
    first = parse_request(request("Connection: close, X-Mine", "X-Mine: 1", "Accept: text/html"))
    for _ in range(3):
        again = parse_request(request("Connection: close, X-Mine", "X-Mine: 1", "Accept: text/html"))
        assert facts(again) == facts(first)
    assert first.fields == b"\r\nHost: h.example\r\nAccept: text/html"
    old = parse_request(request("Connection: upgrade", "Upgrade: websocket", line="GET / HTTP/1.0"))
    new = parse_request(request("Connection: upgrade", "Upgrade: websocket"))
    assert (old.upgrade, new.upgrade) == (None, b"websocket")


@given(
    LINES.map(lambda lines: b"".join(b"\r\n" + line for line in lines))
    | st.binary(max_size=80).map(b"\r\n".__add__)
)
def test_the_quick_check_of_a_block_says_what_the_grammar_says(block: bytes) -> None:
    lines = block.split(b"\r\n")[1:]
    sound = all(map(FIELD.fullmatch, lines))
    try:
        found = split_block(block, DEFAULT.fields)
        for line in found:
            name, colon, _ = line.partition(b":")
            REQUEST_NAMES[name]
            if not colon:
                raise HttpError(400, why_no_name(name))
    except HttpError:
        assert not sound
    else:
        assert sound
        assert found == lines
