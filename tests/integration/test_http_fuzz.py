"""Hostile bytes, read by us, h11 and llhttp: nothing is forwarded that a strict reader reads differently.

`make fuzz` runs this file with many more examples.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile

from hypothesis import HealthCheck, example, given, settings

from codius_proxy.authority import read_host
from codius_proxy.chunked import ChunkedBody
from codius_proxy.fields import HttpError
from codius_proxy.identity import Identity, build_fields
from codius_proxy.request import RequestHead, render_request
from codius_proxy.request_reader import RequestReader
from tests.harness.front import POD, Front, front, name
from tests.harness.hostile_http import CUTS, HOST, STREAMS
from tests.harness.judges import Reading, Seen, read_with_h11, read_with_llhttp
from tests.harness.origin import DEADLINE, Line, Origin, origin
from tests.harness.smuggling import VECTORS

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "400"))
OVER_SOCKETS = max(40, EXAMPLES // 20)
Judge = Callable[[bytes], Reading]
RENDERED = Identity("127.0.0.1", "http").render()
NAME = name().encode()
OFFER_WITH_BODY = (
    b"GET / HTTP/1.1\r\nHost: " + HOST + b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Content-Length: 3\r\n\r\nGET / HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n"
)
COMMON = frozenset((b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PATCH"))


@dataclass(slots=True)
class Forwarded:
    """A request as the sans-io core passes it on."""

    head: RequestHead
    body: bytes = b""  # as framed
    complete: bool = False
    after_blank: bool = False
    """An empty line came before it, which RFC 9112 section 2.2 has a server ignore, and h11 does not."""

    @property
    def wire(self) -> bytes:
        return render_request(self.head, build_fields(RENDERED, self.head.host)) + self.body

    @property
    def content(self) -> bytes:
        if not self.head.chunked:
            return self.body
        chunks, content, left = ChunkedBody(decode=True), b"", self.body
        while left:
            data, left = chunks.feed(left)
            content += data
        return content

    @property
    def routed(self) -> bool:
        """Whether there is a pod of this name: the others never leave."""
        return read_host(self.head.host).hostname == name()


@dataclass(slots=True)
class Decision:
    """What becomes of a stream of bytes."""

    read: list[Forwarded] = field(default_factory=list)
    refused: bool = False

    @property
    def forwarded(self) -> list[Forwarded]:
        """Without those that are answered here."""
        return [request for request in self.read if not (request.head.last_hop or request.head.secure)]


def decide(pieces: Sequence[bytes]) -> Decision:
    """The core alone: what a connection would pass on of these bytes, were each request answered at once."""
    reader = RequestReader()
    decision = Decision()
    current: Forwarded | None = None
    closed = blank = False
    try:
        for piece in pieces:
            reader.receive(piece)
            while reader.waiting and not closed:
                if current is None:
                    blank = blank or reader.waiting.startswith(b"\r")
                    head = reader.next_head()
                    if head is None:
                        break
                    current = Forwarded(head, after_blank=blank)
                    blank = False
                    decision.read.append(current)
                while not reader.body_done and reader.waiting:
                    current.body += reader.read_body()
                if not reader.body_done:
                    break
                current.complete = True
                closed = not current.head.keep_alive or current.head.upgrade is not None
                current = None
    except HttpError:
        decision.refused = True
    return decision


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    marks = sorted(min(at, len(data)) for at in cuts)
    return [data[start:end] for start, end in zip([0, *marks], [*marks, len(data)], strict=True)]


def agree(request: Forwarded, seen: Seen) -> bool:
    return (
        request.head.method == seen.method
        and request.head.target == seen.target
        and seen.hosts == (request.head.host,)
        and request.content == seen.body
    )


def check_wire(decision: Decision) -> None:
    """What goes to one pod connection is, to each judge, the requests we meant, one after the other."""
    # An upgrade ends the reading; 1.0 and close do not exist on this side.
    sent = [r for r in decision.forwarded if r.complete and r.head.upgrade is None]
    for judge in (read_with_h11, read_with_llhttp):
        # llhttp knows a list of methods and refuses all others, which is no misreading.
        plain = [r for r in sent if judge is read_with_h11 or r.head.method in COMMON]
        data = b"".join(request.wire for request in plain)
        reading = judge(data)
        assert not reading.refused, f"{judge.__name__} refuses what we forward: {data!r}"
        assert len(reading.requests) == len(plain), f"{judge.__name__}: {reading} in {data!r}"
        for request, seen in zip(plain, reading.requests, strict=True):
            assert agree(request, seen), f"{judge.__name__}: {seen} for {request}"


def check_origin(data: bytes, decision: Decision, judge: Judge) -> None:
    """What a judge sees in the visitor's own bytes is what we saw, for as long as we went along."""
    complete = [request for request in decision.read if request.complete]
    if judge is read_with_llhttp:
        complete = list(takewhile(lambda request: request.head.method in COMMON, complete))
    else:
        complete = list(takewhile(lambda request: not request.after_blank, complete))
    reading = judge(data)
    if reading.upgraded:  # httptools does not read on, not even the body that comes before any switch
        complete = complete[: len(reading.requests)]
    for number, (request, seen) in enumerate(zip(complete, reading.requests, strict=False), 1):
        assert request.head.method == seen.method, data
        unread = reading.upgraded and number == len(reading.requests)
        assert unread or request.content == seen.body, data
        assert seen.hosts == (request.head.host,), data
        if seen.target.startswith((b"/", b"*")):
            assert request.head.target == seen.target, data
    assert len(reading.requests) >= len(complete), f"a judge refuses, and we forward: {data!r}"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STREAMS, CUTS)
@example(VECTORS["CL.TE"], [])
@example(OFFER_WITH_BODY, [])
def test_nothing_is_forwarded_that_a_strict_reader_reads_differently(stream: bytes, cuts: list[int]) -> None:
    data = stream.replace(HOST, NAME)
    decision = decide(cut(data, cuts))
    whole = decide([data])
    assert [request.wire for request in whole.forwarded if request.complete] == [
        request.wire for request in decision.forwarded if request.complete
    ], "it matters how the bytes arrive"
    assert whole.refused == decision.refused
    check_wire(decision)
    for judge in (read_with_h11, read_with_llhttp):
        check_origin(data, decision, judge)


class Recorder:
    """A pod that keeps every byte of every connection, and answers each complete request."""

    def __init__(self) -> None:
        self.connections: list[bytearray] = []

    async def script(self, line: Line) -> None:
        kept = bytearray()
        self.connections.append(kept)
        answered = 0
        while data := await line.reader.read(65536):
            kept += data
            complete = len(read_with_llhttp(bytes(kept)).requests)
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * (complete - answered))
            answered = complete


@contextmanager
def _running(runner: asyncio.Runner, recorder: Recorder) -> Iterator[tuple[Front, Origin]]:
    pods = origin(recorder.script)
    pod = runner.run(pods.__aenter__())
    fronts = front({POD: pod.port})
    proxy = runner.run(fronts.__aenter__())
    try:
        yield proxy, pod
    finally:
        runner.run(fronts.__aexit__(None, None, None))
        runner.run(pods.__aexit__(None, None, None))


def test_a_recording_pod_gets_byte_for_byte_what_the_core_decided() -> None:
    """Over sockets: no byte of one request ever arrives as part of another."""
    recorder = Recorder()

    async def send(proxy: Front, pieces: Sequence[bytes]) -> None:
        client = await proxy.client()
        for piece in pieces:
            client.writer.write(piece)
            await asyncio.sleep(0)
        client.writer.write_eof()
        async with asyncio.timeout(DEADLINE):
            with suppress(ConnectionError):
                await client.reader.read()
        await client.aclose()
        # The connection is kept for the next request, which brings the end of this one's bytes with it.
        assert (await proxy.get(name(), "/end")).status == 200

    @settings(max_examples=OVER_SOCKETS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(STREAMS, CUTS)
    def check(stream: bytes, cuts: list[int]) -> None:
        data = stream.replace(HOST, NAME)
        recorder.connections.clear()
        runner.run(send(proxy, cut(data, cuts)))
        expected = [request for request in decide([data]).forwarded if request.routed]
        wires = [request.wire for request in expected if request.complete]
        unfinished = [request.wire for request in expected if not request.complete]
        got = [bytes(kept) for kept in recorder.connections]
        for kept in got:
            rest = kept
            while rest:
                found = [wire for wire in (*wires, END) if rest.startswith(wire)]
                if found:
                    rest = rest[len(max(found, key=len)) :]
                    continue
                # Only a request that never became complete may end so, and nothing may follow it.
                assert any(wire.startswith(rest) or rest == wire for wire in unfinished), (data, kept)
                break

    with asyncio.Runner() as runner, _running(runner, recorder) as (proxy, _):
        check()


END = render_request(
    RequestHead(b"GET", b"/end", 1, NAME, b"\r\nHost: " + NAME, None, False, True, None, False),
    build_fields(RENDERED, NAME),
)
