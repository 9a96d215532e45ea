"""The self-test of a whole real host: podman runs the built-in sample, its front door lets visitors in."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import pytest_asyncio

from codius_node import sample_program
from tests.harness.podman_service import find_missing
from tests.harness.world import World, open_world

MISSING: Final = [
    *find_missing(),
    *(name for name in ("nft", "ip", "docker-registry", "setpriv") if shutil.which(name) is None),
    *([] if sample_program.find_architecture() else ["a processor the sample was written for"]),
]
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"a whole host needs {', '.join(MISSING)}: sudo make test"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with open_world(units=True) as world:
        yield world


async def run_selftest(world: World) -> tuple[int, dict[str, Any]]:
    """What `codiusd selftest` prints, and its status."""
    done = await asyncio.to_thread(world.host.codiusd, "selftest", "--json", check=False)
    return done.returncode, json.loads(done.stdout)


async def success(world: World) -> object:
    return (await world.visitor.get(path="/info")).document["selfTestSuccess"]


async def test_a_real_host_passes_with_nothing_from_outside_and_says_so(world: World) -> None:
    assert await success(world) is None
    for _ in range(2):
        status, report = await run_selftest(world)
        verdicts = {step["name"]: step["verdict"] for step in report["steps"]}
        assert set(verdicts.values()) == {"passed"}, (report, world.host.tail())
        assert (status, report["success"]) == (0, True)
        assert await success(world) is True
    images = json.loads(await world.podman.request("GET", "/images/json"))
    names = [name for image in images for name in image.get("Names") or []]
    assert sum(name.startswith("localhost/codius-selftest:") for name in names) == 1


async def test_a_front_door_that_is_down_is_found_out_and_the_node_lives_on(world: World) -> None:
    await asyncio.to_thread(world.host.stop_part, "proxy")
    status, report = await run_selftest(world)
    verdicts = {step["name"]: step["verdict"] for step in report["steps"]}
    assert (status, report["success"]) == (1, False)
    assert (verdicts["front door"], verdicts["upload"], verdicts["sample"]) == (
        "failed",
        "unchecked",
        "passed",
    )
    await asyncio.to_thread(lambda: world.host.start_part("proxy", **world.settings))
    assert await success(world) is False
    status, report = await run_selftest(world)
    assert (status, report["success"]) == (0, True), report
    assert await success(world) is True
