"""What the front door is told: routes and stops, each change once, and everything to whoever comes late."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from codius_node.feed import Feed
from codius_node.model import ManifestHash, Notice, Target
from codius_proxy import routes
from codius_proxy.routes import Add, Message, Remove, Snapshot, Stop

POD, OTHER = ManifestHash("a" * 52), ManifestHash("b" * 52)
HERE = Target("10.77.0.2", 8080)
WHY = Notice(legal=False, reason="Malware.")
SECONDS = 10


class Reader:
    """A worker of the front door."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream

    async def next(self) -> Message:
        async with asyncio.timeout(SECONDS):
            return routes.parse(await self._stream.readline())


Connect = Callable[[], Awaitable[Reader]]


@pytest.fixture
async def feed(tmp_path: Path) -> AsyncIterator[Feed]:
    feed = Feed()
    await feed.start(tmp_path / "feed")
    yield feed
    await feed.aclose()


@pytest.fixture
async def connect(feed: Feed, tmp_path: Path) -> AsyncIterator[Connect]:
    writers: list[asyncio.StreamWriter] = []

    async def open_reader() -> Reader:
        stream, writer = await asyncio.open_unix_connection(str(tmp_path / "feed"), limit=routes.MAX_LINE)
        writers.append(writer)
        return Reader(stream)

    yield open_reader
    for writer in writers:
        writer.close()
        await writer.wait_closed()


async def test_a_stop_takes_the_place_of_the_route_and_a_route_that_of_the_stop(
    feed: Feed, connect: Connect
) -> None:
    early = await connect()
    assert await early.next() == Snapshot({})
    feed.publish(POD, HERE)
    feed.stop(POD, WHY)
    feed.stop(POD, WHY)  # said twice changes nothing
    feed.unpublish(POD)
    feed.publish(POD, HERE)
    told = [await early.next() for _ in range(3)]
    target, notice = routes.Target("10.77.0.2", 8080), routes.Notice(False, "Malware.")
    assert told == [Add(POD, target), Stop(POD, notice), Add(POD, target)]
    feed.stop(OTHER, WHY)
    late = await connect()
    assert await late.next() == Snapshot({POD: target}, {OTHER: notice})
    feed.readmit(OTHER)
    feed.readmit(OTHER)
    feed.unpublish(POD)
    assert [await late.next() for _ in range(2)] == [Remove(OTHER), Remove(POD)]
    assert await (await connect()).next() == Snapshot({})


async def test_a_front_door_that_heard_everything_forgets_the_same_stops_as_the_node(
    feed: Feed, connect: Connect
) -> None:
    reader, table = await connect(), routes.RouteTable()
    table.apply(await reader.next())
    pods = itertools.islice(itertools.product("abcdefghijklmnop", repeat=3), routes.MAX_STOPPED + 3)
    for number, last in enumerate(pods):
        pod = ManifestHash("a" * 49 + "".join(last))
        feed.publish(pod, HERE)
        feed.stop(pod, Notice(legal=number % 2 == 0, reason=str(number)))
        for _ in range(2):
            table.apply(await reader.next())
    assert table.snapshot == await (await connect()).next()
