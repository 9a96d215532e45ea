"""A whole host and its operator: the network's rules shown, probed, changed, metered, and put right again."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.harness.namespaces import FAR_ADDRESS
from tests.harness.podman_service import find_missing
from tests.harness.sample import BUSYBOX
from tests.harness.world import World, open_world, until
from tests.system.bare import PRIVATE, answering

MISSING: Final = [*find_missing(), *(name for name in ("nft", "ip") if shutil.which(name) is None)]
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"a whole host needs {', '.join(MISSING)}: sudo make test"),
    pytest.mark.asyncio(loop_scope="module"),
]

NOTICE_SECONDS: Final = 5.0
"""In which a host has to have put its rules right again."""
RESOLVER: Final = PRIVATE[4]
"""Somebody's router, in a private range."""
PORT: Final = 8080


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with open_world(CODIUS_POD_RESOLVERS=f"{RESOLVER},{FAR_ADDRESS}") as world:
        internet = world.network.internet
        world.network.add_internet_addresses(*PRIVATE)
        with ExitStack() as stack:
            for port in (53, PORT):
                stack.enter_context(internet.call(partial(socket.create_server, ("", port), backlog=64)))
            for resolver in (RESOLVER, FAR_ADDRESS):
                names = stack.enter_context(internet.socket(kind=socket.SOCK_DGRAM))
                names.bind((str(resolver), 53))
                stack.enter_context(answering(names))
            yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod(world: World) -> str:
    return await world.run()


def show(world: World) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(world.host.codiusd("policy", "show", "--json").stdout)
    return document


def read_traffic(world: World, hash: str) -> dict[str, Any]:
    pods = json.loads(world.host.codiusd("pods", "--json").stdout)["pods"]
    traffic: dict[str, Any] = next(pod["traffic"] for pod in pods if pod["hash"] == hash)
    return traffic


async def reaches(world: World, hash: str, address: object, port: int = PORT) -> bool:
    """Whether a program in the pod gets a connection."""
    try:
        await world.inside(hash, BUSYBOX, "nc", "-w", "1", str(address), str(port), "-e", "/bin/true")
    except RuntimeError:
        return False
    return True


async def test_a_pod_asks_the_resolvers_the_operator_chose_and_gets_no_further(
    world: World, pod: str
) -> None:
    written = await world.inside(pod, BUSYBOX, "cat", "/etc/resolv.conf")
    assert written == f"nameserver {RESOLVER}\nnameserver {FAR_ADDRESS}\n"
    assert await reaches(world, pod, RESOLVER, 53)
    assert not await reaches(world, pod, RESOLVER, PORT)


async def test_the_probes_find_a_live_pod_as_it_should_be(world: World, pod: str) -> None:
    await world.run()  # somebody it must not reach
    report = json.loads(world.host.codiusd("policy", "probe", pod, "--json").stdout)
    assert [probe for probe in report["probes"] if not probe["ok"]] == []
    names = {probe["name"] for probe in report["probes"]}
    assert f"the resolver {RESOLVER}, by udp" in names
    assert any(name.startswith("the pod ") for name in names)
    assert "WRONG" not in world.host.codiusd("policy", "probe", pod).stdout
    assert world.host.codiusd("policy", "probe", "a" * 52, check=False).returncode == 1


async def test_what_a_pod_does_is_metered_and_outlives_a_killed_node(world: World, pod: str) -> None:
    await world.visitor.get(pod)
    assert not await reaches(world, pod, PRIVATE[0])
    [listed] = [
        p for p in json.loads(world.host.codiusd("pods", "--json").stdout)["pods"] if p["hash"] == pod
    ]
    before = listed["traffic"]
    assert before["sent"]["bytes"] > 0
    assert before["received"]["packets"] > 0
    assert before["refused"]["range"] >= 1
    table = world.host.codiusd("pods").stdout
    assert "SENT" in table
    assert "REFUSED" in table
    world.host.stop()
    # A node that is away loses nothing: the kernel goes on counting.
    world.network.exec("nft", "delete", "table", "inet", "codius")  # and now somebody takes it away
    world.host.start(units=False, **world.settings)
    await world.until_answering(pod)
    [listed] = [
        p for p in json.loads(world.host.codiusd("pods", "--json").stdout)["pods"] if p["hash"] == pod
    ]
    after = listed["traffic"]
    assert after["sent"]["bytes"] >= before["sent"]["bytes"]
    assert after["refused"]["range"] >= before["refused"]["range"]


async def test_rules_change_while_pods_run_and_stay_changed(world: World, pod: str) -> None:
    assert await reaches(world, pod, FAR_ADDRESS)
    told = world.host.codiusd("policy", "set", "--mode", "listed", "--allow-range", "10.1.0.0/16").stdout
    assert "nothing on the internet but what you allowed" in told
    assert await reaches(world, pod, PRIVATE[0])
    assert not await reaches(world, pod, FAR_ADDRESS)
    world.host.stop()
    world.host.start(units=False, **world.settings)
    await world.until_answering(pod)
    assert show(world)["egress"]["mode"] == "listed"
    assert await reaches(world, pod, PRIVATE[0])
    assert not await reaches(world, pod, FAR_ADDRESS)
    refused = world.host.codiusd("policy", "set", "--allow-range", "10.77.0.0/24", check=False)
    assert refused.returncode == 1
    assert "10.77.0.0/24" in refused.stderr
    assert show(world)["egress"]["allowedRanges"] == ["10.1.0.0/16"], "the old rules are in force"
    world.host.codiusd("policy", "reset")
    assert await reaches(world, pod, FAR_ADDRESS)
    assert not await reaches(world, pod, PRIVATE[0])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("nft flush ruleset", "the nftables table is gone"),
        ("nft insert rule inet codius from_pod accept", "the nftables table was changed"),
        ("ip rule del priority 77", "the routing wall was changed"),
    ],
)
async def test_rules_that_somebody_damages_are_restored_counted_and_logged(
    world: World, pod: str, damage: str, problem: str
) -> None:
    before = show(world)["repairs"]["count"]
    other = await world.run()
    world.network.exec(*damage.split())
    # The other wall stands meanwhile.
    assert not await reaches(world, pod, world.address(other)) or "insert rule" in damage
    await until(lambda: show(world)["repairs"]["count"] > before, "nobody noticed", seconds=NOTICE_SECONDS)
    repairs = show(world)["repairs"]
    assert repairs["count"] == before + 1
    assert repairs["last"]["problems"] == [problem]
    assert problem in world.host.log.read_text()
    assert problem in world.host.codiusd("policy", "show").stdout
    assert not await reaches(world, pod, world.address(other))
    assert (await world.visitor.get(pod)).status == 200


async def test_settings_that_cannot_be_are_refused_at_start_with_the_value_named(world: World) -> None:
    for name, value in {
        "CODIUS_POD_DENIED_RANGES": "203.0.113.0/33",
        "CODIUS_POD_ALLOWED_PORTS": "tcp/70000",
        "CODIUS_POD_ALLOWED_RANGES": "10.77.0.0/24",
        "CODIUS_POD_NETWORK_6": "2001:db8::/64",
        "CODIUS_POD_CONNECTIONS": "-1",
    }.items():
        done = world.host.codiusd("doctor", check=False, inside=True, **{name: value})
        assert done.returncode == 1
        assert name in done.stdout, done.stdout
        assert value in done.stdout
