"""An attacker with raw sockets in a real pod reaches nobody it must not; what must work works."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio

from tests.harness.namespaces import snapshot
from tests.harness.podman_service import find_missing
from tests.system.isolation.arena import Arena, open_arena
from tests.system.isolation.judgement import (
    find_limit_faults,
    find_meter_faults,
    find_volley_faults,
)
from tests.system.isolation.layers import find_layers
from tests.system.isolation.page import COMMAND, MODES, NOWHERE, PAGE, Layer, read, tell
from tests.system.isolation.probes import build_probes

MISSING: Final = [
    *find_missing(),
    *(name for name in ("nft", "ip", "conntrack", "docker-registry") if shutil.which(name) is None),
]
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"a whole host needs {', '.join(MISSING)}: sudo make test"),
    pytest.mark.asyncio(loop_scope="module"),
]
VOLLEYS: Final = 3
"""Each pings the gateway, and five pings at once are the most that it answers."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=MODES, ids=["without-ipv6", "with-ipv6"])
async def arena(request: pytest.FixtureRequest) -> AsyncIterator[Arena]:
    before = snapshot()
    async with open_arena(ip6=request.param) as arena:
        yield arena
    assert snapshot() == before


async def test_every_probe_ends_as_it_must_and_every_refusal_is_counted_once(arena: Arena) -> None:
    # More than once: what one volley leaves behind must not open anything to the next.
    for _ in range(VOLLEYS):
        arena.forget_flows()
        arena.table.forget_limits()
        assert list(find_volley_faults(arena, build_probes(ip6=arena.ip6))) == []


async def test_a_flood_meets_the_limits_and_leaves_flows_in_progress_alone(arena: Arena) -> None:
    assert list(find_limit_faults(arena)) == []


async def test_the_front_door_reaches_the_pods_all_the_while(arena: Arena) -> None:
    for hash in arena.hashes:
        assert (await arena.world.visitor.get(hash)).status == 200


async def test_what_goes_in_and_out_is_metered_to_the_packet(arena: Arena) -> None:
    arena.world.host.stop()
    assert list(find_meter_faults(arena)) == []


async def test_the_page_tells_what_each_wall_does(arena: Arena) -> None:
    """Last, because the walls do not stand any more afterwards."""
    found = find_layers(arena)
    told = {name: layers for (ip6, name), layers in read(PAGE.read_text()).items() if ip6 is arena.ip6}
    differences = {name: layers for name, layers in found.items() if told.get(name) != layers}
    assert differences == {}, f"{PAGE.name} is out of date: run `{COMMAND}`"
    probes = {probe.name: probe for probe in build_probes(ip6=arena.ip6)}
    assert told.keys() == probes.keys()
    assert len(probes) == len(build_probes(ip6=arena.ip6)), "a name is there twice"
    # The walls have something to stand between: without them most of the forbidden is there to be reached.
    refused = [name for name, probe in probes.items() if not probe.expect(arena.ip6).arrives]
    reached = Counter(found[name][Layer.NONE] != NOWHERE for name in refused)
    assert reached[True] > reached[False]
    for name, probe in probes.items():
        assert found[name][Layer.BOTH] == tell(probe.expect(arena.ip6).arrives, probe.sender)
