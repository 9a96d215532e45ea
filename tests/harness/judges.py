"""Independent readers of HTTP/1.1: what h11 and llhttp (node's parser) see in the bytes of a connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import h11
import httptools

MAX_EVENT = 1 << 20
"""Bytes h11 may wait for the end of a head or a chunk: our own limits are to be the ones that count."""


class Seen(NamedTuple):
    """One complete request."""

    method: bytes
    target: bytes
    hosts: tuple[bytes, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """The complete requests of a connection, and whether the judge stopped at something it cannot accept."""

    requests: tuple[Seen, ...]
    refused: bool
    upgraded: bool = False
    """It took the last request's offer to upgrade for accepted, and what follows for something else."""


def read_with_h11(data: bytes) -> Reading:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_EVENT)
    found: list[Seen] = []
    connection.receive_data(data)
    request: h11.Request | None = None
    body = b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return Reading(tuple(found), refused=True)
        if isinstance(event, h11.Request):
            request, body = event, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            hosts = tuple(bytes(value) for name, value in request.headers if name == b"host")
            found.append(Seen(bytes(request.method), bytes(request.target), hosts, body))
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE:
                return Reading(tuple(found), refused=False)
            connection.start_next_cycle()
        else:
            return Reading(tuple(found), refused=False)


class _Collector:
    """What httptools calls while llhttp reads."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.found: list[Seen] = []
        self._start()

    def _start(self) -> None:
        self._target = b""
        self._hosts: list[bytes] = []
        self._body = b""

    def on_message_begin(self) -> None:
        self._start()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self._hosts.append(value.rstrip(b" \t"))  # no part of the value, but llhttp leaves it there

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self.parser.get_method()
        self.found.append(Seen(method, self._target, tuple(self._hosts), self._body))


def read_with_llhttp(data: bytes) -> Reading:
    collector = _Collector()
    try:
        collector.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        return Reading(tuple(collector.found), refused=False, upgraded=True)
    except httptools.HttpParserError:
        return Reading(tuple(collector.found), refused=True)
    return Reading(tuple(collector.found), refused=False)
