"""A visitor's connection on the front door's loop, one turn of it after the other."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from codius_proxy.channel import BULK, Channel
from codius_proxy.config import ProxyConfig
from codius_proxy.connection import FEW, LARGE, MAX_AHEAD, VisitorConnection
from codius_proxy.identity import Entrance
from codius_proxy.routes import RouteTable
from codius_proxy.site import Site
from codius_proxy.visit import Observer, Unobserved, Visit
from tests.harness.ears import on_front_loop, take, take_all, tcp_pair, until
from tests.harness.front import ZONE
from tests.harness.origin import DEADLINE

SMALL = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"  # nobody's name: answered at once
LONG = SMALL[:-2] + b"X: " + b"x" * LARGE + b"\r\n\r\n"
TO_API = f"GET / HTTP/1.1\r\nHost: {ZONE}\r\n\r\n".encode()  # which is away: answered a few turns later


class Counting:
    """How many requests are over."""

    def __init__(self) -> None:
        self.visits = 0

    def visited(self, visit: Visit) -> None:
        self.visits += 1

    def connected(self) -> None: ...
    def turned_away(self, reason: str) -> None: ...
    def flush(self) -> None: ...
    async def aclose(self) -> None: ...


def make_site(observer: Observer) -> Site:
    """One that knows no pods, and whose API is away."""
    config = ProxyConfig(ZONE, "127.0.0.1", 0, Path("/nowhere"), Path("/nowhere"))
    return Site(config, RouteTable(), observer, "test")


class Mistaken(Counting):
    """Fails whoever tells it, once."""

    def visited(self, visit: Visit) -> None:
        super().visited(visit)
        if self.visits == 1:
            raise RuntimeError("a mistake")


@pytest.mark.parametrize("first", [b"", TO_API], ids=["at once", "behind another one"])
@pytest.mark.parametrize(("request_", "many"), [(SMALL, 1500), (LONG, 600)], ids=["small", "long"])
@pytest.mark.parametrize("reads", [True, False], ids=["it reads", "it reads late"])
@on_front_loop
async def test_who_sends_many_requests_at_once_has_a_few_begun_in_each_turn_and_all_in_the_end(
    first: bytes, request_: bytes, many: int, reads: bool
) -> None:
    most = FEW + 1  # what need not wait for a turn, and one that had to
    seen = Counting()
    site = make_site(seen)
    ours, theirs = tcp_pair()
    with theirs:
        if not reads:  # the kernel holds little of the answers
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        visitor = VisitorConnection(site, Entrance("http"))
        Channel(ours, visitor, theirs.getsockname())
        sending = asyncio.create_task(
            asyncio.get_running_loop().sock_sendall(theirs, first + request_ * many)
        )
        if not reads:
            await until(lambda: visitor.blocked)
            assert seen.visits < many
        answers = b""
        async with asyncio.timeout(DEADLINE):
            while seen.visits < many + bool(first):
                before = seen.visits
                await asyncio.sleep(0)
                assert seen.visits - before <= most
                held = len(visitor.reader.waiting)
                assert held <= MAX_AHEAD + BULK
                answers += take(theirs)
        await sending
        theirs.shutdown(socket.SHUT_WR)
        answers += await take_all(theirs)
    assert answers.count(b"HTTP/1.1 421 ") == many
    assert await site.emptied(DEADLINE)
    await site.aclose()


@on_front_loop
async def test_what_waits_for_its_turn_when_the_visitor_has_said_all_gets_it() -> None:
    many = 2 * LARGE // len(SMALL)
    site = make_site(Unobserved())
    ours, theirs = tcp_pair()
    with theirs:
        Channel(ours, VisitorConnection(site, Entrance("http")), theirs.getsockname())
        theirs.send(TO_API + SMALL * many)
        theirs.shutdown(socket.SHUT_WR)
        answers = await take_all(theirs)
    assert answers.count(b"HTTP/1.1 421 ") == many
    assert await site.emptied(DEADLINE)
    await site.aclose()


@pytest.mark.parametrize("request_", [SMALL, LONG], ids=["at once", "in its turn"])
@on_front_loop
async def test_a_mistake_of_ours_ends_the_connection_and_is_reported(request_: bytes) -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: reported.append(str(context["exception"]))
    )
    site = make_site(Mistaken())
    ours, theirs = tcp_pair()
    with theirs:
        Channel(ours, VisitorConnection(site, Entrance("http")), theirs.getsockname())
        theirs.send(request_)
        assert (await take_all(theirs)).startswith(b"HTTP/1.1 421 ")
    assert await site.emptied(DEADLINE)
    assert reported == ["a mistake"]
    await site.aclose()
