"""Connections, and which answer is to which request."""

from __future__ import annotations

from typing import Final

from tests.harness.origin import ANSWER
from tests.integration.http_requirements.row import (
    LENGTH,
    Requirement,
    answer,
    get,
)

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
)
