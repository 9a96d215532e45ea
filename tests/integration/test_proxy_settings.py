"""Each limit of the front door is an operator's: its variable set to another value, and seen to hold.

Bounds are tried on both sides of their default; time-outs against another one, by which of them ends first.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

import pytest

from codius_node import edge
from codius_node.config import DECLARED, load
from codius_proxy.bounds import DEFAULT, LEAST, MOST, Bounds
from codius_proxy.config import Limits, ProxyConfig, Timeouts
from tests.harness.front import OTHER, POD, ZONE, Front, front, name
from tests.harness.origin import ANSWER, DEADLINE, Line, origin

HALF_A_HEAD = b"GET / HTTP/1.1\r\n"
COLUMNS = ("variable", "value", "request_", "status")


def configure(environ: Mapping[str, str]) -> ProxyConfig:
    return edge.proxy_config(load(environ))


@contextlib.asynccontextmanager
async def configured(environ: Mapping[str, str], table: Mapping[str, int]) -> AsyncIterator[Front]:
    """A front door with what these variables mean for its limits."""
    config = configure(environ)
    async with front(table, timeouts=config.timeouts, limits=config.limits, bounds=config.bounds) as proxy:
        yield proxy


async def ask(proxy: Front, request: bytes) -> int:
    client = await proxy.client()
    await client.send(request)
    return (await client.answer()).status


def get(*lines: str, target: str = "/") -> bytes:
    return "\r\n".join((f"GET {target} HTTP/1.1", f"Host: {name()}", *lines, "", "")).encode()


def chunked(line: bytes) -> bytes:
    head = f"POST / HTTP/1.1\r\nHost: {name()}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + line + b"\r\nhello\r\n0\r\n\r\n"


BOUNDS = {
    # A request that the default bound lets through, and the least one refuses.
    "CODIUS_PROXY_HEAD_SIZE": (LEAST.head, get(*[f"X-{n}: {'y' * 500}" for n in range(10)]), 431),
    "CODIUS_PROXY_HEADER_LINES": (LEAST.fields, get(*[f"X-{n}: y" for n in range(LEAST.fields)]), 431),
    "CODIUS_PROXY_LINE_SIZE": (LEAST.line, get(target="/" + "x" * LEAST.line), 414),
    "CODIUS_PROXY_LINE_SIZE ": (LEAST.line, get("X: " + "y" * LEAST.line), 431),
    "CODIUS_PROXY_CHUNK_LINE_SIZE": (LEAST.chunk_line, chunked(b"5;x=" + b"y" * LEAST.chunk_line), 400),
}


@pytest.mark.parametrize(
    ("variable", "value", "request_", "status"), [(n, *row) for n, row in BOUNDS.items()]
)
async def test_a_narrower_bound_refuses_what_the_default_lets_through(
    variable: str, value: int, request_: bytes, status: int
) -> None:
    async with origin() as pod:
        async with configured({}, {POD: pod.port}) as proxy:
            for _ in range(3):  # so that it is remembered, where it can be
                assert await ask(proxy, request_) == 200
        async with configured({variable.strip(): str(value)}, {POD: pod.port}) as proxy:
            assert await ask(proxy, request_) == status
            assert await ask(proxy, get()) == 200


WIDER = {
    "CODIUS_PROXY_HEAD_SIZE": (MOST.head, get(*[f"X-{n}: {'y' * 1000}" for n in range(50)]), 431),
    "CODIUS_PROXY_HEADER_LINES": (MOST.fields, get(*[f"X-{n}: y" for n in range(DEFAULT.fields)]), 431),
    "CODIUS_PROXY_LINE_SIZE": (MOST.line, get(target="/" + "x" * DEFAULT.line), 414),
    "CODIUS_PROXY_LINE_SIZE ": (MOST.line, get("X: " + "y" * DEFAULT.line), 431),
    "CODIUS_PROXY_CHUNK_LINE_SIZE": (MOST.chunk_line, chunked(b"5;x=" + b"y" * DEFAULT.chunk_line), 400),
}


@pytest.mark.parametrize(COLUMNS, [(n, *row) for n, row in WIDER.items()])
async def test_a_wider_bound_lets_through_what_the_default_refuses(
    variable: str, value: int, request_: bytes, status: int
) -> None:
    async def script(line: Line) -> None:  # a pod with no limits of its own
        async with asyncio.timeout(DEADLINE):
            seen = b""
            while not seen.endswith(b"\r\n\r\n"):
                seen += await line.reader.read(65536)
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with origin(script) as pod:
        async with configured({}, {POD: pod.port}) as proxy:
            assert await ask(proxy, request_) == status
        async with configured({variable.strip(): str(value)}, {POD: pod.port}) as proxy:
            assert await ask(proxy, request_) == 200


async def idle_ends(proxy: Front) -> None:
    client = await proxy.client()
    assert (await client.get(ZONE)).status == 200
    assert await client.rest() == b""


async def head_ends(proxy: Front) -> None:
    assert await ask(proxy, HALF_A_HEAD) == 408


async def body_ends(proxy: Front) -> None:
    assert await ask(proxy, f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: 5\r\n\r\n".encode()) == 408


async def connect_ends(proxy: Front) -> None:
    assert (await proxy.get(name(OTHER))).status == 504


async def first_byte_ends(proxy: Front) -> None:
    assert (await proxy.get(name())).status == 504


TIMEOUTS: Mapping[str, Callable[[Front], Awaitable[None]]] = {
    "CODIUS_PROXY_IDLE_TIMEOUT": idle_ends,
    "CODIUS_PROXY_HEAD_TIMEOUT": head_ends,
    "CODIUS_PROXY_BODY_TIMEOUT": body_ends,
    "CODIUS_PROXY_CONNECT_TIMEOUT": connect_ends,
    "CODIUS_PROXY_FIRST_BYTE_TIMEOUT": first_byte_ends,
}


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose queue is full: who connects waits."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(2):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        port: int = full.getsockname()[1]
        yield port


@pytest.mark.parametrize("variable", TIMEOUTS)
async def test_a_time_out_is_the_settings(variable: str) -> None:
    """Every other one is longer, and the judge's is shorter than any default: it has to come second."""

    async def silent(line: Line) -> None:
        await line.reader.read()

    first, second = "CODIUS_PROXY_HEAD_TIMEOUT", "CODIUS_PROXY_BODY_TIMEOUT"
    judge = second if variable == first else first
    environ = {**dict.fromkeys(TIMEOUTS, "3600"), judge: "1", variable: "0.1"}
    async with origin(silent) as pod:
        with deaf_port() as deaf:
            async with configured(environ, {POD: pod.port, OTHER: deaf}) as proxy:
                order: list[str] = []

                async def see(name: str) -> None:
                    await TIMEOUTS[name](proxy)
                    order.append(name)

                await asyncio.gather(see(judge), see(variable))
                assert order == [variable, judge]


async def test_an_address_gets_as_many_connections_as_are_set() -> None:
    async with configured({"CODIUS_PROXY_CLIENT_CONNECTIONS": "3"}, {}) as proxy:
        kept = [await proxy.client() for _ in range(3)]
        for client in kept:
            assert (await client.get(ZONE)).status == 200
        assert (await (await proxy.client()).get(ZONE)).status == 429
        await kept[0].aclose()
        assert (await proxy.until(ZONE, 200)).body == b"api"


async def test_a_pod_gets_as_many_requests_as_are_set() -> None:
    asked, go = asyncio.Semaphore(0), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        asked.release()
        await go.wait()
        await line.send(ANSWER)

    environ = {"CODIUS_PROXY_POD_REQUESTS": "2"}
    async with origin(script) as pod, configured(environ, {POD: pod.port}) as proxy:
        waiting = [await proxy.client() for _ in range(2)]
        for client in waiting:
            await client.send(get())
            await asked.acquire()
        assert await ask(proxy, get()) == 503
        assert (await proxy.get(ZONE)).status == 200
        go.set()
        for client in waiting:
            assert (await client.answer()).status == 200


async def test_a_worker_takes_as_many_visitors_as_are_set() -> None:
    async with configured({"CODIUS_PROXY_CONNECTIONS": "2"}, {}) as proxy:
        busy = [await proxy.client() for _ in range(2)]
        for client in busy:
            await client.send(get().replace(name().encode(), ZONE.encode()) + HALF_A_HEAD)
            assert (await client.answer()).status == 200  # so the half is there as well
        answer = await (await proxy.client()).answer()
        assert answer.status == 503
        assert b"all the visitors it can serve" in answer.body
        for client in busy:
            await client.aclose()
        await proxy.until(ZONE, 200)


def test_the_defaults_are_the_front_doors_own() -> None:
    config = configure({})
    assert config.timeouts == Timeouts()
    assert config.limits == Limits()
    assert config.bounds == Bounds()


LIMITS = [setting for setting in DECLARED.values() if setting.name.startswith("CODIUS_PROXY_")]


def test_every_limit_that_is_a_setting_is_tried_here() -> None:
    tried = {*(name.strip() for name in BOUNDS), *TIMEOUTS}
    tried |= {"CODIUS_PROXY_CONNECTIONS", "CODIUS_PROXY_CLIENT_CONNECTIONS", "CODIUS_PROXY_POD_REQUESTS"}
    assert {setting.name for setting in LIMITS} - tried == {"CODIUS_PROXY_WORKERS", "CODIUS_PROXY_PROTOCOL"}
