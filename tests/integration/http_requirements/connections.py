"""Connections, and which answer is to which request."""

from __future__ import annotations

from typing import Final

from tests.harness.origin import ANSWER
from tests.integration.http_requirements.row import LENGTH, Requirement, answer, get, post

ROWS: Final = (
    # Connections.
    Requirement(
        "9112 9.2",
        "MUST NOT",
        "Bytes nobody asked for are no answer to a later request.",
        get() + get(line=b"GET /second HTTP/1.1"),
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
        b"GET / HTTP/1.1\r\nHost: x.example\r\n\r\n" + get(),
        visitor_gets=(b"HTTP/1.1 421 ", b"HTTP/1.1 200 "),
    ),
    Requirement(
        "9112 9.6",
        "MUST NOT",
        "Nothing after a request with `close` is a request.",
        get(b"Connection: close") + get(line=b"GET /second HTTP/1.1"),
        visitor_gets=(b"hello",),
        pod_misses=(b"/second",),
        goes_on=False,
    ),
    Requirement(
        "9112 9.6",
        "MUST NOT",
        "No request follows on a connection a pod wants to close.",
        get() + get(),
        pod=answer(LENGTH, b"Connection: close"),
        visitor_gets=(b"hello",),
        visitor_misses=(b"Connection: close",),
        pod_connections=2,
    ),
    Requirement(
        "9112 9.3",
        "MUST NOT",
        "No request follows on a connection with an HTTP/1.0 pod.",
        get() + get(),
        pod=answer(LENGTH, b"Connection: keep-alive", line=b"HTTP/1.0 200 OK"),
        visitor_gets=(b"hello",),
        pod_connections=2,
    ),
    Requirement(
        "9112 9.3.1",
        "MUST NOT",
        "What may not be done twice is not sent again, also where a connection ended early.",
        get() + post(),
        pod_answers=(ANSWER, b""),
        visitor_gets=(b"HTTP/1.1 200 ", b"HTTP/1.1 502 "),
        pod_connections=1,
    ),
    Requirement(
        "9112 9.3.1",
        "MAY",
        "What may be done twice is sent again when a kept connection ended early.",
        get() + get(line=b"GET /again HTTP/1.1"),
        pod_answers=(ANSWER, b"", answer(LENGTH, body=b"whole")),
        visitor_gets=(b"hello", b"whole"),
        pod_gets=(b"GET /again HTTP/1.1\r\n",),
        pod_connections=2,
    ),
    Requirement(
        "9112 9.3.2",
        "MUST",
        "Of two requests, the second one's answer does not come first.",
        get(line=b"GET /first HTTP/1.1") + get(line=b"GET /second HTTP/1.1"),
        pod_answers=(answer(LENGTH, body=b"first"), answer(b"Content-Length: 6", body=b"second")),
        visitor_gets=(b"first", b"second"),
    ),
    Requirement(
        "9112 9.6",
        "MUST",
        "A connection is closed after the answer to a request with `close`.",
        get(b"Connection: close"),
        visitor_gets=(b"Connection: close\r\n", b"hello"),
        goes_on=False,
    ),
    Requirement(
        "9112 9.6",
        "MUST",
        "Case does not matter there, nor what else is in the list.",
        get(b"Connection: keep-alive, CLOSE"),
        visitor_gets=(b"hello",),
        goes_on=False,
    ),
    Requirement(
        "9110 10.1.1",
        "MUST",
        "After 100 there is a final status, whatever becomes of the pod.",
        post(b"Expect: 100-continue", LENGTH, body=b"hello"),
        pod=b"HTTP/1.1 100 Continue\r\n\r\n",
        pod_ends=True,
        visitor_gets=(b"HTTP/1.1 100 ", b"HTTP/1.1 502 "),
    ),
)
