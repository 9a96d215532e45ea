"""A connection to a target over a real socket: when it may serve another request."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from codius_proxy.routes import Target
from codius_proxy.turns import Turns
from tests.harness import interpreted
from tests.harness.ears import on_front_loop, until
from tests.harness.origin import ANSWER

if TYPE_CHECKING:
    from codius_proxy import pool, upstream
else:
    _, upstream, pool = interpreted.load("channel", "upstream", "pool")

MIB = 1024 * 1024


class Asking(upstream.Asker):
    """Asks once, and lets go as soon as the answer is complete."""

    def __init__(self, target: upstream.TargetConnection) -> None:
        self.answered = False
        self._target = target

    def response_started(self, head: object, data: bytes, done: bool) -> None:
        assert done
        self.answered = True
        self._target.release()


@pytest.mark.parametrize(("size", "kept"), [(1, True), (32 * MIB, False)], ids=["all of it", "not all of it"])
@on_front_loop
async def test_a_connection_is_kept_when_the_request_it_answered_was_sent(size: int, kept: bool) -> None:
    """A target that answered before it had all may have no mind to read the rest."""
    loop = asyncio.get_running_loop()
    connections = pool.Pool(
        idle_per_target=1, idle_for=1.0, closing_for=1.0, gone_for=1.0, now=0.0, turns=Turns()
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        lane = connections.enter(Target("127.0.0.1", listening.getsockname()[1]), 1)
        assert lane is not None
        target = await connections.connect(lane)
        theirs, _ = await loop.sock_accept(listening)
    with theirs:
        asking = Asking(target)
        target.start(asking, b"x" * size, method=b"POST", upgrade=None, decode=False)
        await loop.sock_sendall(theirs, ANSWER)
        await until(lambda: asking.answered)
        assert (connections.take(lane, unused_for=1.0) is target) is kept
        await connections.aclose()
