"""What RFC 9112 and RFC 9110 demand of an intermediary, and how the front door is seen to do it.

One row per MUST or MUST NOT, in our words, with bytes a visitor sends, bytes a pod answers, and what must
be seen on both sides. `test_http_conformance.py` runs every row over real sockets; docs/http-conformance.md
is written from this table. What binds only user agents, origin servers, caches or tunnels of their own
making, and TLS, is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.harness.origin import ANSWER

CHUNKED_ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nDate: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """`{host}` in what a visitor sends is the pod's name."""

    section: str
    level: str
    says: str
    visitor: bytes
    pod: bytes = ANSWER
    """What the pod answers to each request."""
    pod_ends: bool = False
    """The pod ends its connection after each answer."""
    visitor_gets: tuple[bytes, ...] = ()
    visitor_misses: tuple[bytes, ...] = ()
    pod_gets: tuple[bytes, ...] = ()
    pod_misses: tuple[bytes, ...] = ()
    reaches_pod: bool = True
    goes_on: bool = True
    """Another request on the visitor's connection is answered."""
    pod_connections: int | None = None
    note: str = ""
    """Where we are stricter than we have to be, and why."""


def _get(*fields: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join((line, b"Host: {host}", *fields, b"", b""))


def _post(*fields: bytes, body: bytes = b"") -> bytes:
    return _get(*fields, line=b"POST / HTTP/1.1") + body


def _answer(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK", body: bytes = b"hello") -> bytes:
    return b"\r\n".join((line, *fields, b"", b"")) + body


def _refused(
    section: str, level: str, says: str, visitor: bytes, status: int = 400, note: str = ""
) -> Requirement:
    """A request that gets this status and a closed connection, and of which no pod sees a byte."""
    return Requirement(
        section, level, says, visitor,
        visitor_gets=(b"HTTP/1.1 %d " % status, b"Connection: close"), reaches_pod=False, goes_on=False,
        note=note,
    )  # fmt: skip


def _bad_gateway(section: str, level: str, says: str, pod: bytes, note: str = "") -> Requirement:
    return Requirement(
        section, level, says, _get(), pod=pod, visitor_gets=(b"HTTP/1.1 502 ",), visitor_misses=(b"hello",),
        note=note,
    )  # fmt: skip


LENGTH: Final = b"Content-Length: 5"
CHUNKED: Final = b"Transfer-Encoding: chunked"

REQUIREMENTS: Final = (
    # Messages.
    Requirement(
        "9112 2.2",
        "MUST",
        "A message is read as octets, whatever encoding its values seem to have.",
        _get(b"X-Octets: \xff\xfe\xc3\x28"),
        pod_gets=(b"X-Octets: \xff\xfe\xc3\x28\r\n",),
    ),
    _refused("9112 2.2", "MUST", "A bare CR makes what it stands in invalid.", _get(b"X: a\rb")),
    _bad_gateway(
        "9112 2.2",
        "MUST",
        "The same for a bare CR in an answer.",
        _answer(b"X: a\rb", LENGTH),
    ),
    _refused(
        "9112 2.2",
        "MUST",
        "White space between the request line and the first field is refused or skipped.",
        b"GET / HTTP/1.1\r\n Host: {host}\r\n\r\n",
    ),
    Requirement(
        "9112 2.2",
        "SHOULD",
        "One empty line before a request line is ignored.",
        b"\r\n" + _get(),
        visitor_gets=(b"hello",),
    ),
    Requirement(
        "9112 2.2",
        "MAY",
        "A bare LF may end a line: allowed to pods, whose heads we write anew.",
        _get(),
        pod=b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        visitor_gets=(b"Content-Length: 5\r\n", b"hello"),
    ),
    _refused(
        "9112 2.2",
        "MAY",
        "A bare LF may end a line: not allowed to visitors.",
        b"GET / HTTP/1.1\nHost: {host}\n\n",
        note="Where we see the end of a line, a pod may see none.",
    ),
    Requirement(
        "9112 2.3",
        "MUST",
        "A forwarded request carries our own version.",
        b"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n",
        pod_gets=(b"GET / HTTP/1.1\r\n",),
        goes_on=False,
    ),
    Requirement(
        "9112 2.3",
        "MUST",
        "A forwarded answer carries our own version.",
        _get(),
        pod=_answer(LENGTH, line=b"HTTP/1.0 200 OK"),
        visitor_gets=(b"HTTP/1.1 200 OK\r\n",),
    ),
    # Request lines and targets.
    _refused(
        "9112 3",
        "MUST",
        "A target too long to be read gets 414.",
        _get(line=b"GET /%b HTTP/1.1" % (b"x" * 20_000)),
        414,
    ),
    _refused(
        "9112 3",
        "SHOULD",
        "A method too long to be known gets 501.",
        _get(line=b"M" * 40 + b" / HTTP/1.1"),
        501,
    ),
    _refused("9112 3.2", "SHOULD", "White space in a target gets 400.", _get(line=b"GET /a b HTTP/1.1")),
    _refused("9112 3.2", "MUST", "A request without Host gets 400.", b"GET / HTTP/1.1\r\n\r\n"),
    _refused("9112 3.2", "MUST", "A request with two Host fields gets 400.", _get(b"Host: {host}")),
    Requirement(
        "9112 3.2",
        "MUST",
        "A Host value that is no host gets 400.",
        b"GET / HTTP/1.1\r\nHost: {host}/x\r\n\r\n",
        visitor_gets=(b"HTTP/1.1 400 ",),
        reaches_pod=False,
    ),
    Requirement(
        "9112 3.2.1",
        "MUST",
        "A pod gets path and query; an empty path becomes `/`.",
        _get(line=b"GET http://{host}?q HTTP/1.1"),
        pod_gets=(b"GET /?q HTTP/1.1\r\n",),
    ),
    Requirement(
        "9112 3.2.2",
        "MUST",
        "The absolute form is accepted, and Host is that of the target.",
        _get(line=b"GET http://{host}/x HTTP/1.1"),
        pod_gets=(b"GET /x HTTP/1.1\r\nHost: {host}\r\n",),
    ),
    _refused(
        "9112 3.2.2",
        "MUST",
        "Where target and Host differ, the target counts.",
        _get(line=b"GET http://other.example/ HTTP/1.1"),
        note="Refused: no honest client sends two names (section 3.2), and who looks at the other is misled.",
    ),
    _refused(
        "9112 3.2.3",
        "MUST",
        "CONNECT names a host and port; it is for forward proxies.",
        _get(line=b"CONNECT {host}:80 HTTP/1.1"),
        501,
    ),
    Requirement(
        "9112 3.2.4",
        "MUST",
        "OPTIONS for a whole server goes out with `*` as its target.",
        _get(line=b"OPTIONS http://{host} HTTP/1.1"),
        pod_gets=(b"OPTIONS * HTTP/1.1\r\n",),
    ),
    Requirement(
        "9112 4",
        "MUST",
        "The space after a status code is there even when no phrase follows.",
        _get(),
        pod=_answer(LENGTH, line=b"HTTP/1.1 299"),
        visitor_gets=(b"HTTP/1.1 299 \r\n",),
    ),
    # Fields.
    _refused("9112 5.1", "MUST", "White space between a name and its colon gets 400.", _get(b"X : y")),
    Requirement(
        "9112 5.1",
        "MUST",
        "White space between a name and its colon is taken out of an answer.",
        _get(),
        pod=_answer(b"X-A : y", b"Content-Length : 5"),
        visitor_gets=(b"\r\nX-A: y\r\n", b"\r\nContent-Length: 5\r\n", b"hello"),
    ),
    _refused("9112 5.2", "MUST", "A field folded over two lines gets 400.", _get(b"X: a", b" b")),
    _bad_gateway(
        "9112 5.2",
        "MUST",
        "A folded field in an answer is mended or gets 502.",
        _answer(LENGTH, b"X: a", b" b"),
    ),
    Requirement(
        "9110 5.1",
        "MUST",
        "Fields we do not know are forwarded.",
        _get(b"X-Unknown: 1"),
        pod=_answer(b"X-Strange: 2", LENGTH),
        pod_gets=(b"X-Unknown: 1\r\n",),
        visitor_gets=(b"X-Strange: 2\r\n",),
    ),
    Requirement(
        "9110 5.3",
        "MUST NOT",
        "The order of lines with the same name is not changed.",
        _get(b"X: 1", b"Y: 0", b"X: 2"),
        pod=_answer(b"Set-Cookie: a=1", b"Y: 0", b"Set-Cookie: b=2", LENGTH),
        pod_gets=(b"X: 1\r\nY: 0\r\nX: 2\r\n",),
        visitor_gets=(b"Set-Cookie: a=1\r\n", b"Set-Cookie: b=2\r\n"),
    ),
    _refused("9110 5.4", "MUST", "Fields larger than we take get a 4xx.", _get(b"X: " + b"x" * 40_000), 431),
    _refused("9110 5.4", "MUST", "More fields than we take get a 4xx.", _get(*[b"X: y"] * 200), 431),
    _refused("9110 5.5", "MUST", "NUL in a value is refused or replaced.", _get(b"X: a\x00b")),
    _bad_gateway("9110 5.5", "MUST", "The same for an answer.", _answer(b"X: a\x00b", LENGTH)),
    Requirement(
        "9110 5.5",
        "MUST",
        "White space around a value is no part of it.",
        _get(b"Connection: \t close \t"),
        visitor_gets=(b"Connection: close\r\n", b"hello"),
        goes_on=False,
    ),
    Requirement(
        "9110 5.6.1",
        "MUST",
        "Empty members of a list are ignored.",
        _get(b"Connection: ,, close ,,"),
        visitor_gets=(b"Connection: close\r\n", b"hello"),
        goes_on=False,
    ),
    Requirement(
        "9110 6.6.1",
        "MUST",
        "An answer without Date gets one when it is passed on.",
        _get(),
        pod=_answer(LENGTH),
        visitor_gets=(b"\r\nDate: ", b" GMT\r\n"),
    ),
    Requirement(
        "9110 6.6.1",
        "MUST NOT",
        "A Date that is there is not touched.",
        _get(),
        pod=_answer(b"Date: Tue, 15 Nov 1994 08:12:31 GMT", LENGTH),
        visitor_gets=(b"Date: Tue, 15 Nov 1994 08:12:31 GMT\r\n",),
    ),
    # Framing.
    _refused(
        "9112 6.1",
        "MUST NOT",
        "Chunked is not applied twice.",
        _post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    ),
    _refused(
        "9112 6.1",
        "SHOULD",
        "A transfer coding we do not know gets 501.",
        _post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
        501,
    ),
    Requirement(
        "9112 6.1",
        "MUST NOT",
        "No Transfer-Encoding in a 204.",
        _get(),
        pod=_answer(CHUNKED, line=b"HTTP/1.1 204 No Content", body=b""),
        visitor_misses=(b"Transfer-Encoding",),
    ),
    Requirement(
        "9112 6.1",
        "MUST NOT",
        "No Transfer-Encoding in a 1xx.",
        _get(),
        pod=_answer(CHUNKED, line=b"HTTP/1.1 103 Early Hints", body=b"") + ANSWER,
        visitor_gets=(b"HTTP/1.1 103 ", b"hello"),
        visitor_misses=(b"Transfer-Encoding",),
    ),
    Requirement(
        "9112 6.1",
        "MUST NOT",
        "No Transfer-Encoding in an answer to HTTP/1.0.",
        b"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n",
        pod=CHUNKED_ANSWER,
        visitor_gets=(b"\r\n\r\nhello",),
        visitor_misses=(b"Transfer-Encoding",),
        goes_on=False,
    ),
    _refused(
        "9112 6.1",
        "MUST",
        "HTTP/1.0 with Transfer-Encoding has faulty framing.",
        b"POST / HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    _bad_gateway(
        "9112 6.1",
        "MUST",
        "The same for an answer.",
        _answer(CHUNKED, line=b"HTTP/1.0 200 OK", body=b"5\r\nhello\r\n0\r\n\r\n"),
    ),
    Requirement(
        "9112 6.2",
        "MUST NOT",
        "No Content-Length beside Transfer-Encoding, to a pod.",
        _post(CHUNKED, body=b"1\r\na\r\n0\r\n\r\n"),
        pod_gets=(b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n0\r\n\r\n"),
        pod_misses=(b"Content-Length",),
    ),
    Requirement(
        "9112 6.2",
        "MUST NOT",
        "No Content-Length beside Transfer-Encoding, to a visitor.",
        _get(),
        pod=CHUNKED_ANSWER,
        visitor_gets=(b"Transfer-Encoding: chunked\r\n",),
        visitor_misses=(b"Length: 5",),
    ),
    Requirement(
        "9112 6.3",
        "MUST",
        "An answer to HEAD ends with its head, whatever its fields say.",
        _get(line=b"HEAD / HTTP/1.1"),
        pod=_answer(b"Content-Length: 500", body=b""),
        visitor_gets=(b"Content-Length: 500\r\n",),
    ),
    Requirement(
        "9112 6.3",
        "MUST",
        "A 304 ends with its head.",
        _get(),
        pod=_answer(b"Content-Length: 500", line=b"HTTP/1.1 304 Not Modified", body=b""),
        visitor_gets=(b"HTTP/1.1 304 ",),
    ),
    _refused(
        "9112 6.3",
        "MUST",
        "Both Transfer-Encoding and Content-Length: an error.",
        _post(CHUNKED, LENGTH, body=b"0\r\n\r\n"),
    ),
    _bad_gateway(
        "9112 6.3",
        "MUST",
        "The same for an answer.",
        _answer(CHUNKED, LENGTH, body=b"5\r\nhello\r\n0\r\n\r\n"),
    ),
    _refused(
        "9112 6.3",
        "MUST",
        "A request whose last coding is not chunked gets 400.",
        _post(b"Transfer-Encoding: gzip", body=b"hello"),
    ),
    _refused(
        "9112 6.3",
        "MUST",
        "A Content-Length that is no number gets 400.",
        _post(b"Content-Length: 5, 6", body=b"hello"),
    ),
    _refused("9112 6.3", "MUST", "So does a signed one.", _post(b"Content-Length: +5", body=b"hello")),
    _refused(
        "9112 6.3", "MUST", "So do two that differ.", _post(LENGTH, b"Content-Length: 6", body=b"hello")
    ),
    _bad_gateway(
        "9112 6.3",
        "MUST",
        "A Content-Length of a pod that is no number gets 502.",
        _answer(b"Content-Length: x"),
    ),
    Requirement(
        "9112 6.3",
        "MUST",
        "A request without either has no body.",
        _post() + _get(line=b"GET /second HTTP/1.1"),
        pod_gets=(b"POST / HTTP/1.1\r\n", b"GET /second HTTP/1.1\r\n"),
    ),
    Requirement(
        "9112 6.3",
        "MUST",
        "An answer without either ends with the pod's connection.",
        _get(),
        pod=_answer(),
        pod_ends=True,
        visitor_gets=(b"hello",),
        pod_connections=1,
    ),
    Requirement(
        "9112 6.3",
        "MUST",
        "An answer cut short is never passed on as if it were whole.",
        _get(),
        pod=_answer(b"Content-Length: 9"),
        pod_ends=True,
        visitor_gets=(b"hello",),
        goes_on=False,
    ),
    Requirement(
        "9112 6.3",
        "MUST",
        "Neither is a chunked one.",
        _get(),
        pod=CHUNKED_ANSWER[:-5],
        pod_ends=True,
        visitor_gets=(b"hello",),
        visitor_misses=(b"0\r\n\r\n",),
        goes_on=False,
    ),
    # Chunks.
    _refused(
        "9112 7.1",
        "MUST",
        "A chunk size too large for its reader is an error.",
        _post(CHUNKED, body=b"f" * 17 + b"\r\n"),
    ),
    _refused(
        "9112 7.1", "MUST", "A chunk's data end with CR LF.", _post(CHUNKED, body=b"1\r\nab\r\n0\r\n\r\n")
    ),
    _refused(
        "9112 7.1",
        "MUST",
        "A chunk size is a hexadecimal number and nothing else.",
        _post(CHUNKED, body=b"0x1\r\na\r\n0\r\n\r\n"),
    ),
    Requirement(
        "9112 7.1.1",
        "MUST",
        "Chunk extensions we do not know are ignored.",
        _post(CHUNKED, body=b'1;x="y"\r\na\r\n0\r\n\r\n'),
        visitor_gets=(b"hello",),
    ),
    _refused(
        "9110 5.6.3",
        "MUST",
        "White space around a chunk extension's parts is skipped.",
        _post(CHUNKED, body=b"1 ; x\r\na\r\n0\r\n\r\n"),
        note="Refused: nobody sends it, and where a size ends readers do not agree.",
    ),
    _refused(
        "9110 6.5.1",
        "MUST NOT",
        "A trailer holds no field that frames, routes or authenticates.",
        _post(CHUNKED, body=b"0\r\nContent-Length: 1\r\n\r\n"),
    ),
    Requirement(
        "9112 7.1.2",
        "MUST",
        "A trailer is kept with its body.",
        _post(CHUNKED, body=b"0\r\nX-Sum: 1\r\n\r\n"),
        pod_gets=(b"0\r\nX-Sum: 1\r\n\r\n",),
    ),
    Requirement(
        "9112 7.4",
        "MUST",
        "TE is meant for the next hop and stays behind.",
        _get(b"TE: trailers", b"Connection: TE"),
        pod_misses=(b"TE:", b"Connection:"),
    ),
    # Connections.
    Requirement(
        "9112 9.2",
        "MUST NOT",
        "Bytes nobody asked for are no answer to a later request.",
        _get() + _get(line=b"GET /second HTTP/1.1"),
        pod=ANSWER + ANSWER.replace(b"hello", b"wrong"),
        visitor_gets=(b"hello",),
        visitor_misses=(b"wrong",),
        pod_connections=2,
    ),
    Requirement(
        "9112 9.3",
        "MUST",
        "A body is read to its end, or the connection closed after the answer.",
        b"POST / HTTP/1.1\r\nHost: x.example\r\nContent-Length: 28\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\nab",
        visitor_gets=(b"HTTP/1.1 421 ",),
        reaches_pod=False,
    ),
    Requirement(
        "9112 9.3",
        "MUST NOT",
        "A connection is not kept open for HTTP/1.0.",
        b"GET / HTTP/1.0\r\nHost: {host}\r\nConnection: keep-alive\r\n\r\n",
        visitor_gets=(b"Connection: close\r\n",),
        goes_on=False,
    ),
    Requirement(
        "9112 9.3.2",
        "MUST",
        "Answers come in the order of their requests.",
        b"GET / HTTP/1.1\r\nHost: x.example\r\n\r\n" + _get(),
        visitor_gets=(b"HTTP/1.1 421 ", b"HTTP/1.1 200 "),
    ),
    Requirement(
        "9112 9.6",
        "MUST NOT",
        "Nothing after a request with `close` is a request.",
        _get(b"Connection: close") + _get(line=b"GET /second HTTP/1.1"),
        visitor_gets=(b"hello",),
        pod_misses=(b"/second",),
        goes_on=False,
    ),
    Requirement(
        "9112 9.6",
        "MUST NOT",
        "No request follows on a connection a pod wants to close.",
        _get() + _get(),
        pod=_answer(LENGTH, b"Connection: close"),
        visitor_gets=(b"hello",),
        visitor_misses=(b"Connection: close",),
        pod_connections=2,
    ),
    # Intermediaries.
    Requirement(
        "9110 7.6.1",
        "MUST",
        "Fields the Connection field names stay behind, in a request.",
        _get(b"X-Mine: 1", b"Connection: X-Mine", b"X-Yours: 2"),
        pod_gets=(b"X-Yours: 2\r\n",),
        pod_misses=(b"X-Mine", b"Connection"),
    ),
    Requirement(
        "9110 7.6.1",
        "MUST",
        "Fields the Connection field names stay behind, in an answer.",
        _get(),
        pod=_answer(b"X-Mine: 1", b"Connection: X-Mine", LENGTH),
        visitor_misses=(b"X-Mine", b"Connection"),
    ),
    _refused(
        "9110 7.6.1",
        "MUST",
        "So do trailer fields it names.",
        _post(CHUNKED, b"Connection: X-Sum", body=b"0\r\nX-Sum: 1\r\n\r\n"),
        note="Refused: a body goes on as it came.",
    ),
    _refused(
        "9110 7.6.1",
        "MUST NOT",
        "Connection does not name what is meant for everybody.",
        _get(b"Connection: Host"),
    ),
    Requirement(
        "9110 7.6.2",
        "MUST",
        "OPTIONS with Max-Forwards 0 is answered here.",
        _get(b"Max-Forwards: 0", line=b"OPTIONS / HTTP/1.1"),
        visitor_gets=(b"HTTP/1.1 200 ",),
        reaches_pod=False,
    ),
    Requirement(
        "9110 7.6.2",
        "MUST",
        "Otherwise the number goes down by one.",
        _get(b"Max-Forwards: 3", line=b"OPTIONS / HTTP/1.1"),
        pod_gets=(b"Max-Forwards: 2\r\n",),
    ),
    Requirement(
        "9110 7.6.3",
        "MUST",
        "A gateway says in Via that it was there.",
        _get(b"Via: 1.0 somebody"),
        pod_gets=(b"Via: 1.0 somebody\r\n", b"Via: 1.1 codius\r\n"),
    ),
    Requirement(
        "9110 7.7",
        "MUST NOT",
        "Path and query are not touched.",
        _get(line=b"GET /%7e/../%2F//a;b=c?d=%00&{e} HTTP/1.1"),
        pod_gets=(b"GET /%7e/../%2F//a;b=c?d=%00&{e} HTTP/1.1\r\n",),
    ),
    Requirement(
        "9110 7.7",
        "MUST NOT",
        "Content is not transformed.",
        _get(),
        pod=_answer(
            b"Cache-Control: no-transform", b"Content-Encoding: gzip", LENGTH, body=b"\x1f\x8b\x00ab"
        ),
        visitor_gets=(b"Content-Encoding: gzip\r\n", b"\r\n\r\n\x1f\x8b\x00ab"),
    ),
    Requirement(
        "9110 7.8",
        "MUST",
        "Upgrade counts only when Connection names it.",
        _get(b"Upgrade: websocket"),
        pod_misses=(b"Upgrade",),
        visitor_gets=(b"hello",),
    ),
    Requirement(
        "9110 7.8",
        "MUST",
        "Upgrade in an HTTP/1.0 request is ignored.",
        b"GET / HTTP/1.0\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        pod_misses=(b"Upgrade",),
        goes_on=False,
    ),
    _bad_gateway(
        "9110 7.8",
        "MUST NOT",
        "Nobody switches to a protocol that was not offered.",
        _answer(
            b"Connection: Upgrade", b"Upgrade: websocket", line=b"HTTP/1.1 101 Switching Protocols", body=b""
        ),
    ),
    Requirement(
        "9110 7.8",
        "MUST",
        "A 426 says which protocol it takes.",
        _get(),
        pod=_answer(b"Connection: Upgrade", b"Upgrade: foo/2", LENGTH, line=b"HTTP/1.1 426 Upgrade Required"),
        visitor_gets=(b"Upgrade: foo/2\r\n", b"Connection: Upgrade\r\n"),
    ),
    Requirement(
        "9110 8.6",
        "MUST NOT",
        "No Content-Length in a 204.",
        _get(),
        pod=_answer(b"Content-Length: 0", line=b"HTTP/1.1 204 No Content", body=b""),
        visitor_gets=(b"HTTP/1.1 204 ",),
        visitor_misses=(b"204 No Content\r\nContent-Length",),
    ),
    _bad_gateway(
        "9110 8.6", "MUST NOT", "Two lengths are not passed on as one.", _answer(LENGTH, b"Content-Length: 6")
    ),
    Requirement(
        "9110 9.3.2",
        "MUST NOT",
        "Our own answer to HEAD has no content.",
        b"HEAD / HTTP/1.1\r\nHost: x.example\r\n\r\n",
        visitor_gets=(b"HTTP/1.1 421 ",),
        visitor_misses=(b"statusCode",),
        reaches_pod=False,
    ),
    Requirement(
        "9110 10.1.1",
        "MUST",
        "An expectation of 100 is forwarded or answered with a final status.",
        _post(b"Expect: 100-continue", LENGTH, body=b"hello"),
        pod=b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER,
        pod_gets=(b"Expect: 100-continue\r\n",),
        visitor_gets=(b"HTTP/1.1 100 ", b"HTTP/1.1 200 "),
    ),
    Requirement(
        "9110 10.1.1",
        "MUST",
        "An expectation of 100 in HTTP/1.0 is ignored.",
        b"POST / HTTP/1.0\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        pod_misses=(b"Expect",),
        goes_on=False,
    ),
    _refused(
        "9110 10.1.1", "MAY", "An expectation that cannot be met gets 417.", _get(b"Expect: wonders"), 417
    ),
    Requirement(
        "9110 15.2",
        "MUST",
        "1xx answers are forwarded.",
        _get(),
        pod=b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ANSWER,
        visitor_gets=(b"HTTP/1.1 103 ", b"Link: </x>\r\n", b"hello"),
    ),
    Requirement(
        "9110 15.2",
        "MUST NOT",
        "HTTP/1.0 gets no 1xx answers.",
        b"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n",
        pod=b"HTTP/1.1 103 Early Hints\r\n\r\n" + ANSWER,
        visitor_gets=(b"hello",),
        visitor_misses=(b"103",),
        goes_on=False,
    ),
)


def render() -> str:
    """docs/http-conformance.md."""
    lines = [
        "# What HTTP demands of the front door",
        "",
        "Each MUST and MUST NOT of RFC 9112 and RFC 9110 that binds an intermediary, in our words, and what",
        "is sent over a real socket to see it kept. `tests/integration/test_http_conformance.py` runs every",
        "row against a running front door with a recording pod behind it; this page is written from the same",
        "table by `make docs`. What binds user agents, origin servers or caches only is not here.",
        "",
        "| RFC, section | level | what it demands | a visitor sends | a pod answers | seen |",
        "|---|---|---|---|---|---|",
    ]
    for row in REQUIREMENTS:
        says = row.says + (f" **{row.note}**" if row.note else "")
        pod = _shown(row.pod) if row.reaches_pod else "is not asked"
        cells = (row.section, row.level, says, _shown(row.visitor), pod, _seen(row))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _seen(row: Requirement) -> str:
    parts = [f"visitor gets {_shown(found)}" for found in row.visitor_gets]
    parts += [f"visitor never sees {_shown(found)}" for found in row.visitor_misses]
    parts += [f"pod gets {_shown(found)}" for found in row.pod_gets]
    parts += [f"pod never sees {_shown(found)}" for found in row.pod_misses]
    if row.pod_connections is not None:
        parts.append(f"{row.pod_connections} connection(s) to the pod")
    parts.append("the connection goes on" if row.goes_on else "the connection ends")
    return "<br>".join(parts)


def _shown(data: bytes) -> str:
    text = ascii(data.decode("latin-1"))[1:-1]
    return f"`{text if len(text) <= 160 else text[:120] + '…' + text[-20:]}`"
