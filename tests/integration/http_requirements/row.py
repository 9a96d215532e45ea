"""One row of the table: what is demanded, what is sent to see it kept, and what must be seen."""

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
    pod_answers: tuple[bytes, ...] = ()
    """Where it does not answer all requests alike: what it answers to each; nothing ends its connection."""
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


def get(*fields: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join((line, b"Host: {host}", *fields, b"", b""))


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return get(*fields, line=b"POST / HTTP/1.1") + body


def answer(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK", body: bytes = b"hello") -> bytes:
    return b"\r\n".join((line, *fields, b"", b"")) + body


def refused(
    section: str, level: str, says: str, visitor: bytes, status: int = 400, note: str = ""
) -> Requirement:
    """A request that gets this status and a closed connection, and of which no pod sees a byte."""
    return Requirement(
        section, level, says, visitor,
        visitor_gets=(b"HTTP/1.1 %d " % status, b"Connection: close"), reaches_pod=False, goes_on=False,
        note=note,
    )  # fmt: skip


def bad_gateway(section: str, level: str, says: str, pod: bytes, note: str = "") -> Requirement:
    return Requirement(
        section, level, says, get(), pod=pod, visitor_gets=(b"HTTP/1.1 502 ",), visitor_misses=(b"hello",),
        note=note,
    )  # fmt: skip


LENGTH: Final = b"Content-Length: 5"
CHUNKED: Final = b"Transfer-Encoding: chunked"
