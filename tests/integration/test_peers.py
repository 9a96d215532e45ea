"""Hosts that find each other: real APIs on loopback ports, real databases, and some that are no hosts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from codius_node import answers, api, manifest, peers
from codius_node.config import load
from codius_node.outbound import Outbound
from codius_node.peers import Peers
from codius_node.store import Store
from tests.integration.engine_double import EngineDouble, HostDouble, SelfTestDouble

DEADLINE: Final = 20.0
SECONDS: Final = 1.0
"""What the others get to answer, less than in earnest."""


@dataclass
class Neighbour:
    """A host among others."""

    origin: str
    peers: Peers
    store: Store
    now: datetime


@contextlib.asynccontextmanager
async def neighbour(directory: Path, *bootstrap: str) -> AsyncIterator[Neighbour]:
    directory.mkdir()
    async with AsyncExitStack() as stack:
        store = await Store.open(
            directory / "codius.db", key_path=directory / "secret.key", restore=manifest.restore
        )
        stack.push_async_callback(store.aclose)
        held = web.Application()
        runner = web.AppRunner(held, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        await runner.cleanup()  # the port had to be known before the application that names it
        settings = load({"CODIUS_PUBLIC_URI": f"http://localhost:{port}", "CODIUS_DEV": "true"})
        host = Neighbour(settings.public_uri.origin, None, store, datetime.now(UTC))  # type: ignore[arg-type]
        host.peers = Peers(
            store,
            Outbound(development=True, seconds=SECONDS),
            bootstrap=bootstrap,
            own=settings.public_uri,
            clock=lambda: host.now,
            round_seconds=1e6,  # rounds only when a test asks for one
        )
        app = api.build_app(
            engine=EngineDouble(),
            peers=host.peers,
            host=HostDouble(),
            selftest=SelfTestDouble(),
            settings=settings,
            started_at=host.now,
        )
        served = answers.Runner(app, shutdown_timeout=0.1)
        await served.setup()
        stack.push_async_callback(served.cleanup)
        await web.TCPSite(served, "127.0.0.1", port).start()
        await host.peers.start()
        stack.push_async_callback(host.peers.aclose)
        yield host


@contextlib.asynccontextmanager
async def stranger(info: Callable[[web.Request], web.StreamResponse]) -> AsyncIterator[str]:
    """Something else that listens on a port: what it answers to GET /info."""

    async def tell(request: web.Request) -> web.StreamResponse:
        return info(request)

    app = web.Application()
    app.router.add_get("/info", tell)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_three_hosts_of_which_each_knows_one_find_each_other_and_remember(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        neighbour(tmp_path / "a") as a,
        neighbour(tmp_path / "b", a.origin) as b,
        neighbour(tmp_path / "c", b.origin) as c,
    ):
        for _ in range(4):
            for host in (a, b, c):
                await host.peers.look_around()
        everybody = {a.origin, b.origin, c.origin}
        for host in (a, b, c):
            assert set(await host.store.peers()) == everybody - {host.origin}
            async with aiohttp.ClientSession() as visitor, visitor.get(f"{host.origin}/peers") as answer:
                assert set((await answer.json())["peers"]) == everybody - {host.origin}
    again = await Store.open(
        tmp_path / "a" / "codius.db", key_path=tmp_path / "a" / "secret.key", restore=manifest.restore
    )
    assert set(await again.peers()) == {b.origin, c.origin}
    await again.aclose()


async def test_what_is_no_host_or_another_one_is_not_remembered(tmp_path: Path) -> None:
    def other(_: web.Request) -> web.Response:
        return web.json_response({"uri": "https://somebody.else.example"})

    def moved(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://169.254.169.254/latest/meta-data/"})

    def huge(_: web.Request) -> web.Response:
        return web.json_response({"uri": "x" * 70_000})

    def true(request: web.Request) -> web.Response:
        return web.json_response({"uri": f"http://{request.host}"})

    async with (
        asyncio.timeout(DEADLINE),
        neighbour(tmp_path / "a") as a,
        stranger(other) as renamed,
        stranger(moved) as redirecting,
        stranger(huge) as talkative,
        stranger(true) as honest,
    ):
        a.peers.suggest([renamed, redirecting, talkative, honest, "http://localhost:1"])
        await a.peers.look_around()
        assert await a.store.peers() == {honest: 0}


async def test_a_host_that_went_away_for_good_is_forgotten_and_a_pause_is_forgiven(tmp_path: Path) -> None:
    def true(request: web.Request) -> web.Response:
        return web.json_response({"uri": f"http://{request.host}"})

    async with asyncio.timeout(DEADLINE), neighbour(tmp_path / "a") as a:
        async with stranger(true) as origin:
            a.peers.suggest([origin])
            await a.peers.look_around()
            assert await a.store.peers() == {origin: 0}
        a.now += timedelta(seconds=2 * peers.CHECK_SECONDS)
        await a.peers.look_around()
        assert await a.store.peers() == {origin: 1}
        for _ in range(peers.MAX_FAILURES - 1):
            a.now += timedelta(days=2)
            await a.peers.look_around()
        assert await a.store.peers() == {}
