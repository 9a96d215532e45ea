"""A whole host and its operator: a pod is taken down in front of its visitors, and kept out."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.harness.sample import sample_manifest
from tests.harness.world import World, open_world, until
from tests.system.test_host import MISSING, check_error

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"a whole host needs {', '.join(MISSING)}: sudo make test"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with open_world() as world:
        yield world


async def admin(world: World, *words: str) -> Any:
    done = await asyncio.to_thread(world.host.codiusd, "admin", *words, "--json")
    return json.loads(done.stdout)


async def restart(world: World, number: signal.Signals = signal.SIGTERM) -> None:
    await asyncio.to_thread(world.host.stop, number)
    await asyncio.to_thread(lambda: world.host.start(units=False, **world.settings))


async def until_told(world: World, hash: str, status: int) -> None:
    """Until every visitor is, on connections of their own: each worker has heard of it."""

    async def told() -> bool:
        answers = await asyncio.gather(*(world.visitor.get(hash) for _ in range(8)))
        return {answer.status for answer in answers} == {status}

    await until(told, f"visitors of {hash} are not told {status}")


async def test_a_pod_taken_down_is_gone_at_once_says_so_and_does_not_come_back(world: World) -> None:
    document: Any = world.manifest()
    hash = await world.run(document)
    neighbour = await world.run()
    assert (await world.visitor.get(hash)).status == 200
    answer = await admin(world, "stop", hash, "--reason", "It sent spam.", "--public")
    assert (answer["hash"], answer["credit"], 3590 <= answer["seconds"] <= 3600) == (hash, True, True)
    await until_told(world, hash, 410)
    page = await world.visitor.get(hash)
    assert "It sent spam." in check_error(page, 410)
    async with world.visitor.session.get(world.visitor.url(hash), headers={"Accept": "text/html"}) as html:
        text = await html.text()
    assert (html.status, html.content_type) == (410, "text/html")
    assert "This pod was taken down" in text
    assert "It sent spam." in text
    await world.until_gone(hash)
    assert hash not in await world.podman.cli("ps", "--all", "--no-trunc", "--format", "{{.Names}}")
    (await world.inventory()).check(neighbour)
    assert (await world.visitor.get(neighbour)).status == 200

    denied = await admin(world, "deny", "add", "manifest", hash, "--reason", "Spam.", "--legal")
    assert denied["stopped"] == []
    for _ in range(2):
        message = check_error(await world.visitor.upload(document), 403)
        assert "does not run this manifest" in message
        assert "Spam." not in message, "it is not public"
        assert world.ledger(hash) == ["upload"]
        (await world.inventory()).check(neighbour)
        await restart(world)
        await world.until_answering(neighbour)
        await until_told(world, hash, 410)

    await admin(world, "deny", "remove", "manifest", hash)
    again = await world.visitor.upload(document, duration=60)
    assert again.status == 200
    assert world.ledger(hash) == ["upload", "upload", "credit"]
    await until_told(world, hash, 200)


async def test_a_denied_registry_takes_all_of_its_pods_down_and_nobody_elses(world: World) -> None:
    image = await world.podman.make_image("denied", files={"/start": b"exec httpd -f -p 8080 -h /etc"})
    pinned = await world.registry.push(world.podman, image)
    hashes = [await world.run(sample_manifest(pinned, name=f"denied-{number}")) for number in range(3)]
    neighbour = await world.run()
    registry = world.registry.address
    answer = await admin(
        world, *("deny", "add", "registry", registry.upper(), "--reason", "A court said so.", "--legal")
    )
    assert (answer["denial"]["value"], sorted(answer["stopped"])) == (registry, sorted(hashes))
    for hash in hashes:
        await until_told(world, hash, 451)
        blocked = await world.visitor.get(hash)
        assert "on a legal demand" in check_error(blocked, 451)
        assert blocked.headers["Link"] == f'<{world.host.origin}/>; rel="blocked-by"'
        await world.until_gone(hash)
    assert (await world.visitor.get(neighbour)).status == 200
    check_error(await world.visitor.upload(sample_manifest(pinned, name="another")), 403)
    await restart(world, signal.SIGKILL)
    await world.until_answering(neighbour)
    found = await world.inventory()
    assert not {*hashes} & {*found.rows, *found.pods, *found.files, *found.manifests}
    await until_told(world, hashes[0], 451)


async def test_usage_tells_what_a_real_pod_had(world: World) -> None:
    hash = await world.run()
    assert (await world.visitor.get(hash)).status == 200
    usage = await admin(world, "usage", hash)
    assert (usage["state"], usage["secondsPaid"], usage["ledger"][0]["kind"]) == ("running", 3600, "upload")
    assert usage["traffic"]["received"]["bytes"] > 0
    assert usage["traffic"]["sent"]["bytes"] > 0
    assert 100_000 < usage["memory"] < 512 * 1024 * 1024
    assert usage["cpuSeconds"] > 0
    before = usage["traffic"]["sent"]["bytes"]
    await admin(world, "stop", hash, "--reason", "x", "--no-credit")
    await world.until_gone(hash)
    usage = await admin(world, "usage", hash)
    assert (usage["state"], usage["secondsHeld"], "memory" in usage) == ("stopped", 0, False)
    assert usage["traffic"]["sent"]["bytes"] >= before, "it outlives the pod"
