"""Known ways to hide a request in another one: all refused, and no pod sees a byte of what was hidden."""

from __future__ import annotations

import asyncio

import pytest

from codius_proxy.config import Timeouts
from tests.harness.front import POD, ZONE, front, name
from tests.harness.hostile_http import HOST
from tests.harness.origin import ANSWER, DEADLINE, Line, origin
from tests.harness.smuggling import VECTORS

AFTER = b"GET /after HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n"


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "byte by byte"])
async def test_a_known_way_to_smuggle_is_refused(vector: bytes, at_once: bool) -> None:
    data = (vector + AFTER).replace(HOST, name().encode())
    got: list[bytes] = []

    async def script(line: Line) -> None:
        got.append(await line.reader.read())

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        for piece in [data] if at_once else [data[n : n + 1] for n in range(len(data))]:
            client.writer.write(piece)
            if not at_once:
                await asyncio.sleep(0)  # lets each byte have a packet of its own, mostly
        answer = await client.answer()
        assert answer.status in (400, 413, 417, 501, 505)
        assert answer.one("connection") == "close"
        assert await client.rest() == b""
    # The head of a body that turned out to be broken may have come, but no end of that request.
    for request in got:
        assert b"smuggled" not in request
        assert b"/after" not in request
        assert request.count(b"HTTP/1.1\r\n") <= 1
        assert not request.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("framing", ["Content-Length: 60", "Transfer-Encoding: chunked"])
async def test_a_body_that_comes_after_a_pause_is_no_request(framing: str) -> None:
    async with origin() as pod, front({POD: pod.port}, timeouts=Timeouts(body=0.1)) as proxy:
        client = await proxy.client()
        await client.send(f"POST / HTTP/1.1\r\nHost: {name()}\r\n{framing}\r\n\r\n".encode())
        assert (await client.answer()).status == 408
        client.writer.write(f"GET /smuggled HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        assert await client.rest() == b""
        assert not pod.requests


@pytest.mark.parametrize("framing", ["Content-Length: 300", "Transfer-Encoding: chunked"])
async def test_what_follows_an_early_answer_is_no_request_of_this_visitor_nor_of_the_next(
    framing: str,
) -> None:
    """The pod answers before the body came, and keeps its connection: nobody else's request goes there."""
    asked = asyncio.Event()
    heads: list[bytes] = []

    async def script(line: Line) -> None:
        while head := await line.read_head():
            heads.append(head)
            await line.send(ANSWER)
            asked.set()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"POST / HTTP/1.1\r\nHost: {name()}\r\n{framing}\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
        assert (await client.answer()).body == b"hello"
        client.writer.write(f"GET /smuggled HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode() * 3)
        other = await proxy.client()
        assert (await other.get(name(), "/honest")).body == b"hello"
        assert pod.connections == 2
        assert (await other.get(ZONE)).body == b"api"
    lines = [head.split(b"\r\n", 1)[0] for head in heads]
    assert lines == [b"POST / HTTP/1.1", b"GET /honest HTTP/1.1"]


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
    ids=["answered", "refused", "another protocol", "no protocol"],
)
async def test_an_upgrade_that_did_not_happen_opens_no_tunnel(answer: bytes) -> None:
    """What comes behind it is read as requests, by name, and never passed on unread."""
    heads: list[bytes] = []

    async def script(line: Line) -> None:
        while head := await line.read_head():
            heads.append(head)
            await line.send(answer)

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        offer = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n"
        hidden = f"GET /hidden HTTP/1.1\r\nHost: {ZONE}\r\nConnection: close\r\n\r\n"
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n{offer}\r\n{hidden}".encode())
        assert (await client.answer()).status in (200, 426, 502)
        assert (await client.answer()).body == b"api"
    assert [head.split(b" ", 2)[1] for head in heads] == [b"/"]


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", b"200 OK"), ("GET", b"204 No Content"), ("GET", b"304 Not Modified")]
)
async def test_content_behind_an_answer_that_has_none_is_nobodys_answer(method: str, status: bytes) -> None:
    """The pod says more than its head: not even the next visitor is told that."""
    extra = ANSWER.replace(b"hello", b"wrong")

    async def script(line: Line) -> None:
        if line.number == 1:
            await line.read_head()
            await line.send(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(extra), extra))
        while await line.read_head():
            await line.send(ANSWER)

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        assert (await client.get(name(), method=method)).body == b""
        for visitor in (client, await proxy.client()):
            assert (await visitor.get(name())).body == b"hello"
        assert pod.connections == 2


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("GET", False), ("HEAD", False), ("DELETE", False), ("OPTIONS", False), ("get", False),
        ("POST", True), ("PUT", True), ("PATCH", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_pod_that_overlooks_a_body_takes_it_for_a_request_of_nobody_else(
    method: str, kept: bool, chunked: bool
) -> None:
    """It reads on where the head ended. Where a body is nothing unusual, it has to know better itself."""
    heads: list[bytes] = []

    async def script(line: Line) -> None:
        while head := await line.read_head():
            heads.append(head)
            await line.send(ANSWER[:-5] if head.startswith(b"HEAD") else ANSWER)
            if line.number == 1:
                heads.append(await line.read_head())  # what was hidden, or of a chunk
                if chunked:
                    assert await line.reader.readexactly(7) == b"\r\n0\r\n\r\n"
                heads.append(await line.read_head())  # somebody else's, if it comes here
                await line.send(ANSWER.replace(b"hello", b"wrong") if heads[-1] else b"")

    hidden = f"GET /hidden HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode()
    framing, body = f"Content-Length: {len(hidden)}", hidden
    if chunked:
        framing, body = "Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        visitor, other = await proxy.client(), await proxy.client()
        await visitor.send(f"{method} / HTTP/1.1\r\nHost: {name()}\r\n{framing}\r\n\r\n".encode() + body)
        assert (await visitor.answer(method=method)).status == 200
        answer = await other.get(name(), "/honest")
        assert answer.body == (b"wrong" if kept else b"hello")
        assert pod.connections == (1 if kept else 2)
        assert (await visitor.get(ZONE)).body == b"api"
    assert b"/hidden" in heads[1]
    assert heads[-1].startswith(b"GET /honest ")
