"""The pods' network in a real kernel: failures and kills between any two steps."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, Final

import pytest

from codius_netpolicy import namespace, wiring
from codius_netpolicy.addressing import link_name
from codius_netpolicy.kernel import Kernel
from codius_netpolicy.network import PodNetwork
from codius_netpolicy.nft import Nft
from codius_netpolicy.policy import Policy
from codius_netpolicy.ruleset import FAMILY
from codius_netpolicy.traffic import NO_TRAFFIC
from codius_netpolicy.wiring import Wiring
from tests.harness.namespaces import (
    FAR_ADDRESS,
    HOST_ADDRESS,
    HostNetwork,
    missing_privilege,
    snapshot,
)
from tests.system.bare import (
    BOTH,
    DEFAULT,
    DUAL,
    PORT,
    PRIVATE,
    A,
    B,
    World,
    count_flows,
    first_datagram,
)

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(missing_privilege() is not None, reason=str(missing_privilege())),
]


STEPS: Final[tuple[tuple[Any, str], ...]] = (
    (Nft, "apply"),
    (Kernel, "add_veth"),
    (Kernel, "shape"),
    (Kernel, "set_alias"),
    (namespace, "write_sysctls"),
    (Kernel, "add_address"),
    (Kernel, "set_up"),
    (Kernel, "add_neighbour"),
    (Kernel, "add_default_route"),
    (Kernel, "add_link_route"),
    (Kernel, "remove_link"),
    (wiring, "forget_flows"),
)


POLICIES: Final = {"IPv4": DEFAULT, "IPv4 and IPv6": DUAL}


class StepFailed(Exception):
    """The failure a test puts after a step."""


class Fault:
    """Calls `strike` after the n-th step of what runs while it is set."""

    def __init__(self, number: int, strike: Callable[[], None]) -> None:
        self.remaining = number
        self.steps = 0
        self._strike = strike

    def set(self, patch: pytest.MonkeyPatch) -> None:
        for owner, name in STEPS:
            patch.setattr(owner, name, self._after(getattr(owner, name)))

    def _after(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            self.steps += 1
            if self.steps == self.remaining:
                self._strike()
            return result

        return step


def _fail() -> None:
    raise StepFailed


def _count_steps(net: HostNetwork, policy: Policy) -> int:
    fault = Fault(0, _fail)
    with net.pod() as pod, pytest.MonkeyPatch.context() as patch:

        def attach() -> None:
            with closing(Wiring(policy)) as fresh:
                fresh.start({})
                fault.set(patch)
                fresh.attach(A, pod.fd, NO_TRAFFIC)

        net.host.call(attach)
    return fault.steps


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
async def test_a_failure_after_any_step_of_attach_leaves_nothing(net: HostNetwork, policy: Policy) -> None:
    steps = _count_steps(net, policy)
    assert steps >= 12, "the steps are not seen any more"
    network = PodNetwork(policy, netns=net.host.path)
    await network.start({})
    before = snapshot(net.host)
    for number in range(1, steps + 1):
        with net.pod() as pod:
            with pytest.MonkeyPatch.context() as patch:
                Fault(number, _fail).set(patch)
                with pytest.raises(StepFailed):
                    await network.attach(A, pod.fd)
            assert snapshot(net.host) == before, f"after step {number}"
            assert _elements(net) == (0, 0), f"after step {number}"
            # And the address can be used again at once.
            await network.attach(A, pod.fd)
            assert await network.links() == {A}
            await network.detach(A)
    await network.aclose()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
async def test_a_kill_after_any_step_of_attach_leaves_nothing_open(
    net: HostNetwork, make_world: Callable[..., Any], policy: Policy
) -> None:
    steps = _count_steps(net, policy)
    world: World = await make_world(policy)
    await world.network.start({B: NO_TRAFFIC})
    receivers = {
        "the host": (world.receive(net.host), net.host, HOST_ADDRESS),
        "the other pod": (world.receive(world.b), world.b, B),
        "a private range": (world.receive(net.internet), net.internet, PRIVATE[0]),
    }
    for number in range(1, steps + 1):
        with net.pod() as pod:
            _die(net, policy, partial(Wiring.attach, address=A, netns_fd=pod.fd, traffic=NO_TRAFFIC), number)
            for name, (receiver, where, address) in receivers.items():
                with pod.socket(kind=socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
                    sender.sendto(b"open", (str(address), PORT))
                assert first_datagram(receiver, where) == b"marker", f"{name} after step {number}"
            # A start that does not know the pod removes it; one that does keeps it only when it is complete.
            complete = number == steps
            assert await world.network.start(BOTH) == ({A, B} if complete else {B}), f"after step {number}"
            assert (link_name(A) in net.exec("ip", "-o", "link").stdout) is complete
            await world.network.attach(A, pod.fd)
            assert await world.network.start({B: NO_TRAFFIC}) == {B}
            assert link_name(A) not in net.exec("ip", "-o", "link").stdout
            assert _elements(net) == (1, 1)
    await world.network.aclose()


async def test_a_kill_after_any_step_of_detach_leaves_nothing_open(world: World) -> None:
    receiver = world.receive(world.net.internet)
    world.listen(world.a)
    for number in (1, 2, 3):
        await world.network.attach(A, world.a.fd)
        world.connect(world.net.host, A)
        _die(world.net, DEFAULT, partial(Wiring.detach, address=A), number)
        with world.a.socket(kind=socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
            sender.sendto(b"open", (str(FAR_ADDRESS), PORT))
        assert first_datagram(receiver, world.net.internet) == b"marker", f"after step {number}"
        # The address may be given to the next pod without a restart in between.
        with world.net.pod("next") as successor:
            await world.network.attach(A, successor.fd)
            assert count_flows(world.net, A) == 0, f"after step {number}"
        await world.network.detach(A)


def _die(net: HostNetwork, policy: Policy, act: Callable[[Wiring], object], number: int) -> None:
    """Acts in a process of its own, which is gone after its n-th step."""
    child = os.fork()
    if child == 0:  # pragma: no cover - the child never comes back
        with pytest.MonkeyPatch.context() as patch:
            try:
                namespace.enter(net.host.fd)
                work = partial(act, Wiring(policy))
                Fault(number, lambda: os._exit(0)).set(patch)
                work()
            finally:
                os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, f"it ended before step {number}"


def _elements(net: HostNetwork) -> tuple[int, int]:
    def count() -> tuple[int, int]:
        nft = Nft()
        senders, receivers = (list(nft.elements(FAMILY, "codius", name)) for name in ("pod_tx", "pod_rx"))
        return len(senders), len(receivers)

    return net.host.call(count)
