"""The bare world of the network's tests; modules that have a whole host define a `world` of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import pytest_asyncio

from codius_netpolicy.network import PodNetwork
from codius_netpolicy.policy import Policy
from tests.harness.namespaces import HOST_ADDRESS, HostNetwork, snapshot
from tests.system.bare import BOTH, DEFAULT, METADATA, PRIVATE, A, B, World, started_waiting


@pytest.fixture(autouse=True)
def _fresh_deadlines() -> None:
    started_waiting.clear()


@pytest.fixture(scope="module", autouse=True)
def _main_namespace_stays_as_it_was() -> Iterator[None]:
    before = snapshot()
    yield
    assert snapshot() == before


@pytest.fixture
def net() -> Iterator[HostNetwork]:
    with HostNetwork() as net:
        net.add_internet_addresses(METADATA, *PRIVATE)
        # A neighbour on the host's network who knows the way to the pods: the most a stranger can have.
        net.internet.ip(f"route add 10.77.0.0/16 via {HOST_ADDRESS}")
        yield net


@pytest.fixture
def make_world(net: HostNetwork) -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:

        async def make(policy: Policy = DEFAULT) -> World:
            network = PodNetwork(policy, netns=net.host.path)
            stack.callback(network._worker.shutdown)
            a, b = stack.enter_context(net.pod("pod-a")), stack.enter_context(net.pod("pod-b"))
            world = World(net, network, a, b, stack)
            await network.start(BOTH)
            await network.attach(A, a.fd)
            await network.attach(B, b.fd)
            return world

        yield make


@pytest_asyncio.fixture
async def world(make_world: Callable[..., Any]) -> AsyncIterator[World]:
    world: World = await make_world()
    yield world
    await world.network.aclose()
