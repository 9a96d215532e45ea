"""What whoever stands in between does with what passes."""

from __future__ import annotations

from typing import Final

from tests.harness.origin import ANSWER
from tests.integration.http_requirements.row import (
    CHUNKED,
    LENGTH,
    Requirement,
    answer,
    bad_gateway,
    get,
    post,
    refused,
)

ROWS: Final = (
    # Intermediaries.
    Requirement(
        "9110 7.6.1",
        "MUST",
        "Fields the Connection field names stay behind, in a request.",
        get(b"X-Mine: 1", b"Connection: X-Mine", b"X-Yours: 2"),
        pod_gets=(b"X-Yours: 2\r\n",),
        pod_misses=(b"X-Mine", b"Connection"),
    ),
    Requirement(
        "9110 7.6.1",
        "MUST",
        "Fields the Connection field names stay behind, in an answer.",
        get(),
        pod=answer(b"X-Mine: 1", b"Connection: X-Mine", LENGTH),
        visitor_misses=(b"X-Mine", b"Connection"),
    ),
    refused(
        "9110 7.6.1",
        "MUST",
        "So do trailer fields it names.",
        post(CHUNKED, b"Connection: X-Sum", body=b"0\r\nX-Sum: 1\r\n\r\n"),
        note="Refused: a body goes on as it came.",
    ),
    refused(
        "9110 7.6.1",
        "MUST NOT",
        "Connection does not name what is meant for everybody.",
        get(b"Connection: Host"),
    ),
    Requirement(
        "9110 7.6.2",
        "MUST",
        "OPTIONS with Max-Forwards 0 is answered here.",
        get(b"Max-Forwards: 0", line=b"OPTIONS / HTTP/1.1"),
        visitor_gets=(b"HTTP/1.1 200 ",),
        reaches_pod=False,
    ),
    Requirement(
        "9110 7.6.2",
        "MUST",
        "Otherwise the number goes down by one.",
        get(b"Max-Forwards: 3", line=b"OPTIONS / HTTP/1.1"),
        pod_gets=(b"Max-Forwards: 2\r\n",),
    ),
    Requirement(
        "9110 7.6.3",
        "MUST",
        "A gateway says in Via that it was there.",
        get(b"Via: 1.0 somebody"),
        pod_gets=(b"Via: 1.0 somebody\r\n", b"Via: 1.1 codius\r\n"),
    ),
    Requirement(
        "9110 7.7",
        "MUST NOT",
        "Path and query are not touched.",
        get(line=b"GET /%7e/../%2F//a;b=c?d=%00&{e} HTTP/1.1"),
        pod_gets=(b"GET /%7e/../%2F//a;b=c?d=%00&{e} HTTP/1.1\r\n",),
    ),
    Requirement(
        "9110 7.7",
        "MUST NOT",
        "Content is not transformed.",
        get(),
        pod=answer(b"Cache-Control: no-transform", b"Content-Encoding: gzip", LENGTH, body=b"\x1f\x8b\x00ab"),
        visitor_gets=(b"Content-Encoding: gzip\r\n", b"\r\n\r\n\x1f\x8b\x00ab"),
    ),
    Requirement(
        "9110 7.8",
        "MUST",
        "Upgrade counts only when Connection names it.",
        get(b"Upgrade: websocket"),
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
    bad_gateway(
        "9110 7.8",
        "MUST NOT",
        "Nobody switches to a protocol that was not offered.",
        answer(
            b"Connection: Upgrade", b"Upgrade: websocket", line=b"HTTP/1.1 101 Switching Protocols", body=b""
        ),
    ),
    Requirement(
        "9110 7.8",
        "MUST",
        "A 426 says which protocol it takes.",
        get(),
        pod=answer(b"Connection: Upgrade", b"Upgrade: foo/2", LENGTH, line=b"HTTP/1.1 426 Upgrade Required"),
        visitor_gets=(b"Upgrade: foo/2\r\n", b"Connection: Upgrade\r\n"),
    ),
    Requirement(
        "9110 8.6",
        "MUST NOT",
        "No Content-Length in a 204.",
        get(),
        pod=answer(b"Content-Length: 0", line=b"HTTP/1.1 204 No Content", body=b""),
        visitor_gets=(b"HTTP/1.1 204 ",),
        visitor_misses=(b"204 No Content\r\nContent-Length",),
    ),
    bad_gateway(
        "9110 8.6", "MUST NOT", "Two lengths are not passed on as one.", answer(LENGTH, b"Content-Length: 6")
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
        post(b"Expect: 100-continue", LENGTH, body=b"hello"),
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
    refused(
        "9110 10.1.1", "MAY", "An expectation that cannot be met gets 417.", get(b"Expect: wonders"), 417
    ),
    Requirement(
        "9110 15.2",
        "MUST",
        "1xx answers are forwarded.",
        get(),
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
