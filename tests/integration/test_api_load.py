"""Many clients at once, through the front door: nobody is turned away, and memory stays where it was."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from codius_node.model import LogLine, ManifestHash
from codius_node.noop import NoopEngine
from tests.integration.recorded_host import RecordedHost, open_recorded_host
from tests.integration.test_api import DEBUG_DOCUMENT, DOCUMENT

UPLOADS: Final = 500
AT_ONCE: Final = 50
FOLLOWERS: Final = 100
POLLS: Final = 1000
LINES: Final = 20
"""What each follower is told, beginning when all of them are there."""
PAD: Final = "x" * 50_000
"""In every manifest: one that is kept in memory shows in the sum."""
MAX_GROWTH: Final = 16 * 2**20
"""Bytes that all of it may add to the process, clients included; the manifests alone have 25 million."""


class Talking(NoopEngine):
    """Containers that write when they are told to, to all that listen."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners = 0
        self.all_there = asyncio.Event()

    async def logs(self, hash: ManifestHash, *, follow: bool) -> AsyncIterator[LogLine]:
        self.listeners += 1
        if self.listeners == FOLLOWERS:
            self.all_there.set()
        yield LogLine("app", "stdout", "listening")
        await self.all_there.wait()
        for number in range(LINES):
            yield LogLine("app", "stdout", f"line {number}")


def build_document(number: int) -> dict[str, Any]:
    environment = {"PAD": PAD, "NUMBER": str(number)}
    [container] = DOCUMENT["manifest"]["containers"]
    containers = [{**container, "environment": environment}]
    return {"manifest": {**DOCUMENT["manifest"], "containers": containers}}


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def all_of(tasks: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*tasks)


@asynccontextmanager
async def open_client(host: RecordedHost) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        f"http://{host.address}:{host.port}",
        headers={"Host": host.authority},
        connector=aiohttp.TCPConnector(limit=0),
    ) as client:
        yield client


def limited(ask: Callable[[int], Awaitable[None]]) -> Callable[[int], Awaitable[None]]:
    """So many at once and no more."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def wait_and_ask(number: int) -> None:
        async with slots:
            await ask(number)

    return wait_and_ask


async def meet(directory: Path) -> int:
    """All clients, each getting what it asked for; the bytes that this process has grown by."""
    containers = Talking()
    async with (
        open_recorded_host(directory, containers) as host,
        open_client(host) as client,
        AsyncExitStack() as stack,
    ):
        hashes: list[str] = []

        async def upload(number: int) -> None:
            async with client.post("/pods?duration=600", json=build_document(number)) as answer:
                assert answer.status == 200, await answer.text()
                hashes.append((await answer.json())["manifestHash"])

        async def poll(number: int) -> None:
            hash = hashes[number % len(hashes)]
            async with client.get(f"/pods?manifestHash={hash}") as answer:
                assert answer.status == 200, await answer.text()
                assert (await answer.json())["manifestHash"] == hash

        async with client.post("/pods", json=DEBUG_DOCUMENT) as answer:
            talking = (await answer.json())["manifestHash"]
        await all_of(map(limited(upload), range(-AT_ONCE, 0)))  # what is made once is made now
        await all_of(map(limited(poll), range(AT_ONCE)))
        before = resident()

        logs = [
            await stack.enter_async_context(client.get(f"/pods/{talking}/logs?follow=true"))
            for _ in range(FOLLOWERS)
        ]
        assert {log.status for log in logs} == {200}
        await asyncio.gather(
            all_of(map(limited(upload), range(UPLOADS))), all_of(map(limited(poll), range(POLLS)))
        )
        told = [(await log.text()).splitlines() for log in logs]
        async with client.get("/info") as answer:
            info = await answer.json()
        growth = resident() - before

    wanted = ["app stdout listening", *(f"app stdout line {number}" for number in range(LINES))]
    assert [lines for lines in told if lines != wanted] == []
    assert len(set(hashes)) == UPLOADS + AT_ONCE
    assert info["runningContracts"] == UPLOADS + AT_ONCE + 1
    return growth


def run(directory: Path) -> int:
    return asyncio.run(meet(directory))


@pytest.mark.timeout(300)
def test_uploads_followers_and_polls_all_at_once_meet_no_error_and_leave_no_memory_behind(
    tmp_path: Path,
) -> None:
    # in a process of its own: the holes other tests have left in ours would be filled first, or not
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as processes:
        growth = processes.submit(run, tmp_path).result()
    assert growth < MAX_GROWTH, f"{growth / 2**20:.1f} MiB"
