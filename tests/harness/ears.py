"""What tests of channels need: an endpoint that remembers, sockets in pairs, a loop that comes to rest."""

from __future__ import annotations

import asyncio
import functools
import select
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, ParamSpec

from codius_proxy.event_loop import FrontLoop, running_poller
from tests.harness import interpreted
from tests.harness.origin import DEADLINE

if TYPE_CHECKING:
    from codius_proxy import channel, secure_channel
else:
    channel, secure_channel = interpreted.load("channel", "secure_channel")

__all__ = ("channel", "secure_channel")  # as interpreted; the rest is defined here

Given = ParamSpec("Given")
MAX_TURNS = 1000  # of the loop until nothing happens any more; a dozen is much


def on_front_loop(test: Callable[Given, Coroutine[None, None, None]]) -> Callable[Given, None]:
    """Run a test on the front door's loop."""

    @functools.wraps(test)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> None:
        with asyncio.Runner(loop_factory=FrontLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


class Ear(channel.Endpoint):
    """Hears, remembers in order, and does what the test wants done at that moment."""

    def __init__(
        self,
        then: Mapping[str, Callable[[channel.Channel], object]] | None = None,
        *,
        keeps_open: bool = False,
        reads_on: bool = False,
    ) -> None:
        """`then`: what is to be done when the endpoint's method of that name is called."""
        self.then = dict(then or {})
        self.channel: channel.Channel
        self.heard: list[str] = []
        self.data = b""
        self.error: Exception | None = None
        self._keeps_open = keeps_open
        self._reads_on = reads_on

    @property
    def lost(self) -> bool:
        return "connection_lost" in self.heard

    def connection_made(self, found: channel.Channel) -> None:
        self.channel = found
        self._hear("connection_made")

    def data_received(self, data: bytes) -> None:
        assert data
        self.data += data
        self._hear("data_received")

    def eof_received(self) -> bool:
        self._hear("eof_received")
        return self._keeps_open

    def connection_lost(self, error: Exception | None) -> None:
        self.error = error
        self._hear("connection_lost")

    def pause_writing(self) -> None:
        self._hear("pause_writing")

    def resume_writing(self) -> None:
        self._hear("resume_writing")

    def writing_failed(self) -> bool:
        self._hear("writing_failed")
        return self._reads_on

    def _hear(self, what: str) -> None:
        assert not self.lost, f"{what} after the end"
        self.heard.append(what)
        if what in self.then:
            self.then[what](self.channel)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection that do not block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    for end in (ours, theirs):
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def unix_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    return ours, theirs


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0)


async def rest() -> None:
    """Until the kernel has nothing to say: with level-triggered events, whoever ignores one never rests."""
    kernel = running_poller()._epoll
    for _ in range(MAX_TURNS):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not select.select([kernel.fileno()], [], [], 0)[0]:
            return
    raise AssertionError("the loop is told the same again and again")


def fill(found: channel.Channel) -> int:
    """Write until the kernel takes no more and some of it waits; how many bytes that were."""
    written = 0
    while not found.waiting:
        found.write(b"f" * 4096)
        written += 4096
    return written


def take(end: socket.socket) -> bytes:
    """What has come, and no end."""
    found = b""
    while True:
        try:
            data = end.recv(1 << 20)
        except BlockingIOError:
            return found
        assert data, "the end"
        found += data


async def take_all(end: socket.socket) -> bytes:
    """Everything up to the end."""
    found = []
    async with asyncio.timeout(DEADLINE):
        while data := await asyncio.get_running_loop().sock_recv(end, 1 << 20):
            found.append(data)
    return b"".join(found)
