"""A whole real host whose parts are killed, stopped and taken away: visitors hardly notice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import aiohttp
import pytest

from codius_node import manifest
from tests.harness.namespaces import Namespace
from tests.harness.sample import BUSYBOX
from tests.harness.world import DEADLINE_SECONDS, Visitor, World, open_world, until
from tests.system.test_host import MISSING, command, find_processes

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"a whole host needs {', '.join(MISSING)}: sudo make test"),
]

SWEEP: Final = timedelta(seconds=30)
"""How long after the last comparison an outage may seem to have begun."""
KILL: Final = signal.SIGKILL
TERM: Final = signal.SIGTERM


async def stop(world: World, number: signal.Signals = KILL, part: str = "node") -> None:
    await asyncio.to_thread(world.host.stop_part, part, number)


async def start(world: World, part: str = "node") -> None:
    await asyncio.to_thread(world.host.start_part, part, **world.settings)


class Crowd:
    """Visitors who come one after the other, on fresh and on kept connections, and what they met."""

    def __init__(self) -> None:
        self.served = 0
        self.failed: list[str] = []

    async def visit(self, visitor: Visitor, hash: str) -> None:
        while True:
            try:
                async with asyncio.timeout(5):
                    answer = await visitor.get(hash)
                if answer.status == 200 and hash.encode() in answer.body:
                    self.served += 1
                else:
                    self.failed.append(repr(answer))
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failed.append(repr(error))
            await asyncio.sleep(0.005)

    async def more(self, count: int = 20) -> None:
        """Until so many more have been served."""
        goal = self.served + count
        await until(lambda: self.served >= goal or self.failed, "nobody is served")


@asynccontextmanager
async def visited(world: World, hash: str) -> AsyncIterator[Crowd]:
    """Somebody fetches the pod's page all the time; at the end nobody may have failed to get it."""
    crowd = Crowd()
    async with Visitor(world.host.port) as kept, Visitor(world.host.port, keep_alive=False) as fresh:
        tasks = [asyncio.create_task(crowd.visit(visitor, hash)) for visitor in (kept, fresh)]
        try:
            await crowd.more()
            yield crowd
            await crowd.more()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert crowd.failed == []


@pytest.mark.parametrize("number", [KILL, TERM])
async def test_a_node_that_ends_and_comes_back_costs_no_visitor_anything(number: signal.Signals) -> None:
    async with open_world(units=True) as world:
        hashes = [await world.run() for _ in range(3)]
        expiries = [await world.expiry(hash) for hash in hashes]
        before = await world.inventory()
        before.check(*hashes)
        async with visited(world, hashes[0]) as crowd:
            await stop(world, number)
            await crowd.more()
            away = await world.visitor.get(path="/info")
            assert away.status == 503
            await start(world)
            await crowd.more()
            assert (await world.visitor.get(path="/info")).status == 200
            # and once more: what a restart leaves is as good as what it found
            await stop(world, number)
            await start(world)
        assert await world.inventory() == before
        assert [await world.expiry(hash) for hash in hashes] == expiries
        assert [(await world.visitor.get(hash)).status for hash in hashes] == [200] * 3
        assert [world.ledger(hash) for hash in hashes] == [["upload"]] * 3


async def test_a_worker_of_the_front_door_that_dies_is_replaced() -> None:
    async with open_world(units=True) as world:
        hash = await world.run()
        parent = world.host.pid("proxy")
        workers = [found for found in find_processes(parent, command("proxy")) if found != parent]
        assert workers
        for worker in workers:
            os.kill(worker, KILL)

        async def answers() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                return (await world.visitor.get(hash)).status == 200
            return False

        await until(answers, "the front door stays closed")


@pytest.mark.parametrize("stage", ["created", "wired"])
async def test_an_upload_cut_short_by_a_kill_leaves_nothing(stage: str) -> None:
    async with open_world(units=True) as world:
        bystander = await world.run()
        document: Any = world.manifest()
        hash = manifest.hash_manifest(document["manifest"])
        reached: Callable[[], bool] = {
            "created": lambda: (world.host.root / "pods" / hash).exists(),
            "wired": lambda: len(pod_links(world.network.host)) == 2,
        }[stage]
        upload = asyncio.create_task(world.visitor.upload(document))
        await asyncio.to_thread(spin, reached)
        await stop(world)
        answer = await upload
        assert answer.status == 503, answer
        assert world.host.query("SELECT state FROM pods WHERE hash = ?", hash) == [("pending",)]
        await start(world)
        (await world.inventory()).check(bystander)
        assert world.ledger(hash) == []
        assert (await world.visitor.get(hash)).status == 404
        assert (await world.visitor.get(bystander)).status == 200
        assert await world.run(document) == hash
        await world.until_answering(hash)
        (await world.inventory()).check(bystander, hash)


def spin(reached: Callable[[], bool]) -> None:
    """Without a pause between two looks: what is waited for lasts milliseconds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, "the upload does not get that far"


def pod_links(host: Namespace) -> list[str]:
    """The names of the pods' links."""
    return host.call(lambda: [name for _, name in socket.if_nameindex() if name.startswith("cp")])


async def test_a_node_told_to_stop_ends_the_upload_first() -> None:
    async with open_world(units=True) as world:
        document: Any = world.manifest()
        hash = manifest.hash_manifest(document["manifest"])
        upload = asyncio.create_task(world.visitor.upload(document))
        await until((world.host.root / "pods" / hash).exists, "the upload does not begin")
        await stop(world, TERM)
        answer = await upload
        assert answer.status == 200, answer
        assert (await world.visitor.get(hash)).status == 200
        await start(world)
        (await world.inventory()).check(hash)
        assert world.ledger(hash) == ["upload"]


async def test_pods_that_expired_while_the_node_was_away_are_gone() -> None:
    async with open_world(units=True) as world:
        stays, goes = await world.run(), await world.run(duration=2)
        over, address = datetime.fromisoformat(await world.expiry(goes)), world.address(goes)
        await stop(world)
        await until(lambda: datetime.now().astimezone() > over, "time stands still")
        await start(world)
        (await world.inventory()).check(stays)
        # The front door asks for the new routes within seconds. Whom it still sends to the old address must
        # not come to somebody else's pod.
        after = await world.run()
        assert world.address(after) not in {address, world.address(stays)}

        async def forgotten() -> bool:
            answer = await world.visitor.get(goes)
            assert answer.status in {404, 502, 503}, answer
            return answer.status == 404

        await until(forgotten, "the front door never hears of it")
        assert (await world.visitor.get(stays)).status == 200
        assert world.ledger(goes) == ["upload"]


async def test_pods_stay_when_podman_ends_and_comes_back() -> None:
    async with open_world(units=True) as world:
        hash = await world.run()
        expiry = await world.expiry(hash)
        before = await world.inventory()
        async with visited(world, hash) as crowd:
            await world.podman.service.stop()
            # a node that starts without it shows what it has all the same
            await stop(world)
            await start(world)
            await crowd.more()
            assert (await world.visitor.get(path="/info")).status == 200
            await world.podman.service.start()
            await crowd.more()
        assert await world.inventory() == before
        assert await world.expiry(hash) == expiry
        assert world.ledger(hash) == ["upload"]
        await world.run()


async def test_a_pod_removed_behind_our_back_is_made_again_and_its_outage_given_back() -> None:
    async with open_world(units=True) as world:
        hash, other = await world.run(), await world.run()
        expiry = datetime.fromisoformat(await world.expiry(hash))
        address = world.address(hash)
        removed = datetime.now().astimezone()
        await world.podman.cli("pod", "rm", "--force", "--time=0", f"codius-{hash}")
        assert (await world.visitor.get(hash)).status in {502, 503, 504}
        async with visited(world, other):
            await stop(world)
            await start(world)
        assert (await world.visitor.get(hash)).status == 200
        outage = datetime.now().astimezone() - removed
        given_back = datetime.fromisoformat(await world.expiry(hash)) - expiry
        assert timedelta(0) < given_back <= outage + SWEEP
        # the time without it, and the time its restart took
        assert world.ledger(hash) == ["upload", "credit", "credit"]
        assert world.ledger(other) == ["upload"]
        assert world.address(hash) == address
        (await world.inventory()).check(hash, other)


async def test_after_a_reboot_every_pod_answers_again() -> None:
    async with open_world(units=True) as world:
        hashes = [await world.run() for _ in range(3)]
        expiries = [datetime.fromisoformat(await world.expiry(hash)) for hash in hashes]
        world.host.stop(KILL)
        await world.podman.cli("pod", "stop", "--all", "--time=0")
        await world.podman.service.stop()
        forget_network(world)
        await world.podman.service.start()
        await asyncio.to_thread(world.host.start, units=True, **world.settings)
        assert [(await world.visitor.get(hash)).status for hash in hashes] == [200] * 3
        later = [datetime.fromisoformat(await world.expiry(hash)) for hash in hashes]
        assert all(new > old for new, old in zip(later, expiries, strict=True))
        assert [world.ledger(hash) for hash in hashes] == [["upload", "credit", "credit"]] * 3
        (await world.inventory()).check(*hashes)
        # their walls stand again, too
        with pytest.raises(RuntimeError):
            await world.inside(hashes[0], BUSYBOX, "nc", "-w", "1", "192.0.2.2", str(world.host.port))


def forget_network(world: World) -> None:
    """As the kernel does over a reboot: no table of ours, no link, no rule, no address."""
    host = world.network.host
    host.nft("delete table inet codius")
    for name in pod_links(host):
        host.ip(f"link delete {name}")
    host.exec("ip", "rule", "delete", "priority", "77")
    host.exec("ip", "route", "flush", "table", "77")
    host.exec("ip", "address", "flush", "dev", "lo", "label", "lo:codius")


async def test_podman_killed_in_the_middle_of_an_upload_leaves_nothing_and_the_next_one_works() -> None:
    async with open_world(units=True) as world:
        document: Any = world.manifest()
        hash = manifest.hash_manifest(document["manifest"])
        upload = asyncio.create_task(world.visitor.upload(document))
        await asyncio.to_thread(spin, lambda: len(pod_links(world.network.host)) == 1)
        os.kill(find_podman(world), KILL)
        answer = await upload
        assert answer.status == 503, answer
        await world.podman.service.stop()
        assert world.ledger(hash) == []
        assert (await world.visitor.get(hash)).status == 404
        await world.podman.service.start()
        assert await world.run(document) == hash
        assert (await world.visitor.get(hash)).status == 200
        (await world.inventory()).check(hash)
        assert world.ledger(hash) == ["upload"]


def find_podman(world: World) -> int:
    """The process of the podman service."""
    mark = f"unix://{world.podman.socket}".encode()
    (pid,) = find_processes(os.getpid(), mark + b"\0")
    return pid
