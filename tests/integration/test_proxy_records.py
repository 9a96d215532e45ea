"""What is recorded of requests: each one once, whatever became of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest

from codius_proxy.config import Timeouts
from codius_proxy.outbox import MAX_MESSAGE, pair, unpack
from tests.harness.certificates import Authority
from tests.harness.front import OTHER, POD, ZONE, front, name
from tests.harness.origin import ANSWER, DEADLINE, Line, closed_port, origin, websocket_echo

Record: TypeAlias = dict[str, Any]
"""Of the access log."""

SOON = Timeouts(linger=0.1)  # the shortest time-out says how often a worker posts what it has


@dataclass
class Recorded:
    """The recorder's end, in a test's hands."""

    sending: socket.socket
    receiving: socket.socket
    records: list[Record] = field(default_factory=list)
    turned_away: Counter[str] = field(default_factory=Counter)

    async def get(self, count: int) -> list[Record]:
        """The records of that many requests; no more may come with them."""
        async with asyncio.timeout(DEADLINE):
            while len(self.records) < count:
                try:
                    message = self.receiving.recv(MAX_MESSAGE)
                except BlockingIOError:
                    await asyncio.sleep(0.01)
                else:
                    self.take(message)
        assert len(self.records) == count
        return self.records

    async def get_turned_away(self, count: int) -> dict[str, int]:
        """Why that many connections got no answer."""
        async with asyncio.timeout(DEADLINE):
            while sum(self.turned_away.values()) < count:
                try:
                    self.take(self.receiving.recv(MAX_MESSAGE))
                except BlockingIOError:
                    await asyncio.sleep(0.01)
        return dict(self.turned_away)

    def take(self, data: bytes) -> None:
        message, lines = unpack(memoryview(data))
        self.turned_away.update(message.turned_away)
        found = [json.loads(line) for line in bytes(lines).splitlines()]
        assert len(found) == message.requests
        self.records += found


@pytest.fixture
async def recorded() -> AsyncIterator[Recorded]:
    sending, receiving = pair()
    with sending, receiving:
        yield Recorded(sending, receiving)


def brief(record: Record) -> tuple[object, ...]:
    return tuple(record[name] for name in ("method", "target", "pod", "status", "refusal", "end"))


def number(record: Record) -> int:
    """Of the request in its worker."""
    return int(record["id"].partition("-")[2], 16)


async def test_answers_of_pods_and_of_the_api_with_their_bytes(recorded: Recorded) -> None:
    async with (
        origin() as pod,
        front({POD: pod.port}, timeouts=SOON, recorder=recorded.sending) as proxy,
    ):
        client = await proxy.client()
        answer = await client.get(name(), "/a")
        await client.send(f"POST /b HTTP/1.1\r\nHost: {ZONE}\r\nContent-Length: 5\r\n\r\nhello".encode())
        await client.answer()
        first, second = await recorded.get(2)
    assert brief(first) == ("GET", "/a", POD, 200, "", "answered")
    assert (first["client"], first["scheme"]) == ("127.0.0.1", "http")
    assert first["sent"] == len(answer.head) + len(answer.body)
    assert brief(second) == ("POST", "/b", "api", 200, "", "answered")
    assert second["received"] == 5
    assert number(second) == number(first) + 1


async def test_pipelined_requests_are_one_record_each(recorded: Recorded) -> None:
    async with (
        origin() as pod,
        front({POD: pod.port}, timeouts=SOON, recorder=recorded.sending) as proxy,
    ):
        client = await proxy.client()
        await client.send(b"".join(f"GET /{n} HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode() for n in range(5)))
        for _ in range(5):
            assert (await client.answer()).status == 200
        assert [record["target"] for record in await recorded.get(5)] == [f"/{n}" for n in range(5)]


async def test_refusals_say_why(recorded: Recorded) -> None:
    async with front({POD: closed_port()}, timeouts=SOON, recorder=recorded.sending) as proxy:
        ids = [
            (await proxy.get(name(OTHER))).one("x-request-id"),
            (await proxy.get("elsewhere.example")).one("x-request-id"),
            (await proxy.get(name())).one("x-request-id"),
        ]
        client = await proxy.client()
        await client.send(b"GET / HTTP/1.1\r\nBad Field: x\r\n\r\n")
        ids.append((await client.answer()).one("x-request-id"))
        records = await recorded.get(4)
    assert [(record["status"], record["refusal"], record["pod"]) for record in records] == [
        (404, "no_pod", ""),
        (421, "unknown_name", ""),
        (503, "pod_starting", POD),
        (400, "malformed", ""),
    ]
    assert {record["end"] for record in records} == {"refused"}
    assert ids == [record["id"] for record in records]


async def test_ends_that_were_nobodys_answer(recorded: Recorded) -> None:
    asked = asyncio.Event()

    async def script(line: Line) -> None:
        head = await line.read_head()
        if b"/broken" in head:
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe")
            line.reset()
        else:
            asked.set()
            await asyncio.Event().wait()

    async with (
        origin(script) as pod,
        front({POD: pod.port}, timeouts=SOON, recorder=recorded.sending) as proxy,
    ):
        with pytest.raises(asyncio.IncompleteReadError):
            await proxy.get(name(), "/broken")
        client = await proxy.client()
        await client.send(f"GET /left HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        await asked.wait()
        await client.aclose()
        records = await recorded.get(2)
    assert [brief(record)[1:] for record in records] == [
        ("/broken", POD, 200, "broken_off", "target_lost"),
        ("/left", POD, 0, "", "visitor_lost"),
    ]


async def test_a_tunnel_is_one_record_with_the_bytes_of_both_ways(recorded: Recorded) -> None:
    async with (
        websocket_echo() as port,
        front({POD: port}, timeouts=SOON, recorder=recorded.sending) as proxy,
        aiohttp.ClientSession() as session,
    ):
        async with session.ws_connect(f"http://127.0.0.1:{proxy.port}/", headers={"Host": name()}) as echo:
            await echo.send_bytes(b"x" * 50_000)
            await echo.receive_bytes()
        [record] = await recorded.get(1)
    assert (record["status"], record["end"]) == (101, "upgraded")
    assert record["received"] >= 50_000
    assert record["sent"] >= 50_000


async def test_connections_that_get_no_answer_are_counted(recorded: Recorded, tmp_path: Path) -> None:
    authority = Authority()
    authority.issue(tmp_path / "host", ZONE, f"*.{ZONE}")
    async with front(
        timeouts=SOON,
        recorder=recorded.sending,
        scheme="https",
        certificates=tmp_path,
        trusted_proxies=(ip_network("127.0.0.0/8"),),
        proxy_protocol=True,
    ) as proxy:
        for first in (b"nonsense", b"PROXY UNKNOWN\r\nnonsense"):
            client = await proxy.client()
            await client.send(first)
            with contextlib.suppress(ConnectionResetError):
                await client.rest()
        assert await recorded.get_turned_away(2) == {"proxy_header": 1, "handshake": 1}


async def test_whoever_is_behind_a_trusted_proxy_is_the_one_who_is_recorded(recorded: Recorded) -> None:
    async with (
        origin() as pod,
        front(
            {POD: pod.port},
            timeouts=SOON,
            recorder=recorded.sending,
            trusted_proxies=(ip_network("127.0.0.0/8"),),
        ) as proxy,
    ):
        client = await proxy.client()
        for host in (name(), name(OTHER)):
            await client.get(host, extra="X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n")
        assert [(record["client"], record["scheme"]) for record in await recorded.get(2)] == [
            ("192.0.2.7", "https")
        ] * 2


async def test_a_request_that_is_sent_again_is_still_from_its_visitor() -> None:
    async def script(line: Line) -> None:
        first = await line.read_request()
        assert first is not None
        pod.record(first)
        await line.send(ANSWER)
        await line.read_request()  # on a connection that has served one, the next is not answered

    async with (
        origin(script) as pod,
        front({POD: pod.port}, trusted_proxies=(ip_network("127.0.0.0/8"),)) as proxy,
    ):
        client = await proxy.client()
        for number in range(2):
            answer = await client.get(name(), extra=f"X-Forwarded-For: 192.0.2.{number}\r\n")
            assert answer.status == 200
    assert [request.one("x-forwarded-for") for request in pod.requests] == ["192.0.2.0", "192.0.2.1"]
