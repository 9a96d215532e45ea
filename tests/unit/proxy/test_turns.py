"""Work that waits for its turn."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from codius_proxy.turns import Turns


async def test_between_two_pieces_of_work_everybody_else_gets_a_turn() -> None:
    loop = asyncio.get_running_loop()
    seen: list[str] = []
    done = asyncio.Event()
    turns = Turns()

    def work(number: int) -> None:
        seen.append(f"work {number}")
        loop.call_soon(seen.append, f"others after {number}")
        if number == 2:
            turns.wait(partial(work, 3))
        if number == 3:
            loop.call_soon(done.set)

    for number in range(3):
        turns.wait(partial(work, number))
    assert seen == []
    await done.wait()
    assert seen == [f"{what} {number}" for number in range(4) for what in ("work", "others after")]


async def test_a_piece_that_fails_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    done = asyncio.Event()
    turns = Turns()

    def fail() -> None:
        raise ValueError("broken")

    turns.wait(fail)
    turns.wait(done.set)
    async with asyncio.timeout(10):
        await done.wait()
    assert "ValueError" in caplog.text
