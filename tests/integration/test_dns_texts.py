"""A challenge's story: the node publishes TXT values, and every worker of the responder says them."""

import asyncio
import logging
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import dns.message
import dns.query
import pytest

from codius_dns.errors import ZoneError
from codius_dns.texts import Texts, TextsReader
from codius_node.config import load
from codius_node.daemon import open_node
from codius_node.feed import TextFeed
from tests.unit.dns.zones import CHALLENGE, ORIGIN

DEADLINE: Final = 10.0  # seconds until a test gives up
WORKERS: Final = 3

PROGRAM: Final = """
import sys
from ipaddress import ip_address
from pathlib import Path
from codius_dns.server import DnsConfig, run
from codius_dns.zone import Zone
zone = Zone(origin=sys.argv[1], ipv4=(ip_address("192.0.2.17"),))
port, workers, path = int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
config = DnsConfig(zones=(zone,), port=port, workers=workers, texts_socket=path)
sys.exit(run(config, drop_privileges=lambda: print("open", flush=True)))
"""


@asynccontextmanager
async def published(path: Path) -> AsyncIterator[TextFeed]:
    feed = TextFeed()
    await feed.start(path)
    try:
        yield feed
    finally:
        await feed.aclose()


@contextmanager
def responder(path: Path) -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    arguments = (sys.executable, "-c", PROGRAM, ORIGIN, str(port), str(WORKERS), str(path))
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
            yield port
        finally:
            child.terminate()


def ask(port: int, name: str = CHALLENGE, qtype: str = "TXT") -> set[str]:
    """From a new port each time, and so from any of the workers."""
    answer = dns.query.udp(dns.message.make_query(name, qtype), "127.0.0.1", port=port, timeout=DEADLINE)
    return {str(value).strip('"') for rrset in answer.answer for value in rrset}


async def say_the_same(port: int, expected: set[str]) -> None:
    """Until many questions in a row, to whatever worker, get this answer."""
    in_a_row = 0
    async with asyncio.timeout(DEADLINE):
        while in_a_row < 10 * WORKERS:
            in_a_row = in_a_row + 1 if await asyncio.to_thread(ask, port) == expected else 0


async def test_all_workers_say_what_the_node_publishes_and_the_serial_rises(tmp_path: Path) -> None:
    path = tmp_path / "texts.sock"

    async def serial(port: int) -> int:
        (soa,) = await asyncio.to_thread(ask, port, ORIGIN, "SOA")
        return int(soa.split()[2])

    with responder(path) as port:
        await say_the_same(port, set())
        async with published(path) as feed:
            feed.publish(CHALLENGE, ["one", "two"])
            await say_the_same(port, {"one", "two"})
            before = await serial(port)
            feed.publish(CHALLENGE, ["three"])
            await say_the_same(port, {"three"})
            assert await serial(port) > before
        await say_the_same(port, {"three"})  # the node is away: what was said last stays
        async with published(path):
            await say_the_same(port, set())


async def test_a_reader_is_told_everything_at_once_and_then_of_each_change(tmp_path: Path) -> None:
    told: asyncio.Queue[Texts] = asyncio.Queue()
    path = tmp_path / "texts.sock"
    async with asyncio.timeout(DEADLINE), published(path) as feed:
        feed.publish(CHALLENGE, ["one"])
        reader = asyncio.create_task(TextsReader(path, told.put_nowait).run())
        first = await told.get()
        assert dict(first.values) == {CHALLENGE: (b"one",)}
        feed.publish(CHALLENGE, ["one"])  # nothing new
        feed.publish(f"_acme-challenge.x.{ORIGIN}", ["two", "three"])
        second = await told.get()
        assert dict(second.values) == {
            CHALLENGE: (b"one",),
            f"_acme-challenge.x.{ORIGIN}": (b"two", b"three"),
        }
        assert second.serial > first.serial
        feed.publish(CHALLENGE, [])
        assert dict((await told.get()).values) == {f"_acme-challenge.x.{ORIGIN}": (b"two", b"three")}
        reader.cancel()


async def test_a_value_no_zone_could_say_is_refused_where_it_comes_from() -> None:
    feed = TextFeed()
    for name, values in (
        ("no..name", ["x"]),
        (CHALLENGE, ["x" * 256]),
        (CHALLENGE, [str(i) for i in range(17)]),
    ):
        with pytest.raises(ZoneError):
            feed.publish(name, values)


async def test_nonsense_from_the_publisher_is_complained_of_once_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "texts.sock"
    connections = 0
    enough = asyncio.Event()

    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 4:
            enough.set()
        writer.write(b"nonsense\n")
        writer.close()

    told: list[Texts] = []
    async with await asyncio.start_unix_server(babble, path):
        with caplog.at_level(logging.WARNING):
            reader = asyncio.create_task(TextsReader(path, told.append).run())
            await asyncio.wait_for(enough.wait(), DEADLINE)
            reader.cancel()
    assert told == []
    assert len(caplog.records) == 1


async def test_the_nodes_own_socket_can_be_read_by_the_responders_user(tmp_path: Path) -> None:
    settings = load(
        {
            "CODIUS_ROOT": str(tmp_path / "lib"),
            "CODIUS_RUN": str(tmp_path / "run"),
            "CODIUS_HYPER_NOOP": "true",
        }
    )
    told: asyncio.Queue[Texts] = asyncio.Queue()
    async with asyncio.timeout(DEADLINE), open_node(settings) as node:
        assert stat.S_IMODE(os.stat(settings.texts_socket).st_mode) == 0o666  # noqa: PTH116
        node.texts.publish(CHALLENGE, ["one"])
        reader = asyncio.create_task(TextsReader(settings.texts_socket, told.put_nowait).run())
        assert (await told.get()).values == {CHALLENGE: (b"one",)}
        reader.cancel()
