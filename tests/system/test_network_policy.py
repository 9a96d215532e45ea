"""The pods' network in a real kernel: limits, rules changed while packets flow, counters, IPv6, resolvers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import pytest

from codius_netpolicy import ruleset, walls
from codius_netpolicy.addressing import link_name
from codius_netpolicy.kernel import Kernel
from codius_netpolicy.network import PodNetwork
from codius_netpolicy.policy import (
    Egress,
    EgressMode,
    Limits,
    Policy,
    PolicyError,
    TransportPorts,
    parse_range,
)
from codius_netpolicy.probes import Verdict
from codius_netpolicy.ranges import Address
from codius_netpolicy.ruleset import render_removal
from codius_netpolicy.traffic import NO_TRAFFIC, Reason, Traffic, Volume
from codius_netpolicy.walls import TABLE_GONE
from tests.harness.namespaces import (
    FAR_ADDRESS,
    FAR_ADDRESS6,
    HOST_ADDRESS,
    HOST_ADDRESS6,
    HostNetwork,
    Namespace,
    missing_privilege,
)
from tests.system.bare import (
    A6,
    B6,
    BOTH,
    DEFAULT,
    DUAL,
    MARKER_PORT,
    POOL6,
    PORT,
    PRIVATE,
    A,
    B,
    Outcome,
    World,
    answering,
    count_flows,
    family_of,
)

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(missing_privilege() is not None, reason=str(missing_privilege())),
]

DATAGRAM: Final = 1400
"""Bytes of UDP payload that fit a link without being cut."""
FLOOD: Final = 600
"""Datagrams sent at once: 840 kB, three times what a slow link's token bucket takes in."""
SLOW: Final = 1_000_000
"""Bits per second; while the flood is sent, next to nothing."""
BUCKET: Final = 80
"""Datagrams that a token bucket of 128 KiB surely lets through at once."""
BUFFER: Final = 8 * 1024 * 1024
"""Bytes; room for whatever a test sends at once."""
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
"""asm-generic/socket.h; Python has no names for them."""
STEADY: Final = 3000
"""Datagrams of a steady flow that is looked after while the rules change."""
CHUNK: Final = 50
CHANGES: Final = 30
CHOSEN: Final = Egress(EgressMode.LISTED, allowed_ranges=(parse_range(f"{FAR_ADDRESS}/32"),))
ELSEWHERE: Final = IPv4Address("198.51.100.77")
PRIVATE_RESOLVER: Final = IPv4Address("192.168.1.1")


@pytest.fixture
def net(net: HostNetwork) -> HostNetwork:
    net.add_internet_addresses(ELSEWHERE)
    return net


# ---- limits


def flood(where: Namespace, to: Address, receiver: socket.socket) -> int:
    """Sends FLOOD datagrams as fast as they go; how many arrive."""
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    with where.socket(family_of(to), socket.SOCK_DGRAM) as sender:
        # Enough room that the link, not the socket, is what holds them back.
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
        sender.setblocking(False)
        for _ in range(FLOOD):
            with contextlib.suppress(BlockingIOError):
                sender.sendto(bytes(DATAGRAM), (str(to), PORT))
    # The last ones may be on their way still: as many as a bucket holds are waited for, the rest looked for.
    arrived = 0
    while arrived < BUCKET:
        arrived += len(receiver.recv(2 * DATAGRAM)) > 0
    receiver.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while receiver.recv(2 * DATAGRAM):
            arrived += 1
    return arrived


@pytest.mark.parametrize("direction", ["sent", "received"])
async def test_a_link_takes_no_more_than_its_bandwidth(
    make_world: Callable[..., Any], direction: str
) -> None:
    limits = Limits(**{f"{'send' if direction == 'sent' else 'receive'}_rate": SLOW})
    world: World = await make_world(Policy(limits=limits))
    if direction == "sent":
        slow = flood(world.a, FAR_ADDRESS, world.receive(world.net.internet))
    else:
        slow = flood(world.net.host, A, world.receive(world.a))
    assert slow <= FLOOD / 2
    await world.network.aclose()


async def test_without_a_limit_of_bandwidth_nothing_shapes_a_link(make_world: Callable[..., Any]) -> None:
    world: World = await make_world(Policy(limits=Limits(send_rate=0, receive_rate=0)))
    assert "tbf" not in world.a.exec("tc", "qdisc").stdout + world.net.exec("tc", "qdisc").stdout
    await world.network.aclose()


async def test_without_limits_a_pod_begins_as_many_flows_as_it_likes(make_world: Callable[..., Any]) -> None:
    world: World = await make_world(Policy(limits=Limits(connections=0, new_connections=0)))
    receiver = world.receive(world.net.internet)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    with ExitStack() as senders:
        for _ in range(FLOOD):
            sender = senders.enter_context(world.a.socket(kind=socket.SOCK_DGRAM))
            sender.sendto(b"flow", (str(FAR_ADDRESS), PORT))
        for _ in range(FLOOD):
            assert receiver.recv(64) == b"flow"
    assert await world.refused() == 0
    await world.network.aclose()


async def test_new_limits_of_bandwidth_reach_links_that_live_on(world: World) -> None:
    listener = world.listen(world.net.internet)
    connection = world.connect(world.a, FAR_ADDRESS)
    accepted, _ = listener.accept()
    index = world.net.exec("ip", "-o", "link", "show", link_name(A)).stdout.split(":")[0]
    again = PodNetwork(Policy(limits=Limits(send_rate=SLOW, receive_rate=0)), netns=world.net.host.path)
    with accepted:
        assert await again.start(BOTH) == {A, B}, "their visitors are served meanwhile"
        assert await again.links() == frozenset(), "and they are to be attached once more"
        await again.attach(A, world.a.fd)
        assert await again.links() == {A}
        assert "rate 1Mbit" in world.a.exec("tc", "qdisc").stdout
        assert "tbf" not in world.net.exec("tc", "qdisc", "show", "dev", link_name(A)).stdout
        assert world.net.exec("ip", "-o", "link", "show", link_name(A)).stdout.split(":")[0] == index
        accepted.sendall(b"still there")
        assert connection.recv(64) == b"still there"
    await again.aclose()


async def test_a_flow_that_nobody_answers_counts_as_one(make_world: Callable[..., Any]) -> None:
    world: World = await make_world(Policy(limits=Limits(new_connections=1, new_connections_burst=5)))
    await asyncio.to_thread(send_steadily, world, world.receive(world.net.internet))
    assert await world.refused() == 0
    await world.network.aclose()


# ---- rules changed at run time


async def test_listed_mode_leaves_what_is_listed_and_opens_again(world: World) -> None:
    world.listen(world.net.internet)
    assert await world.tcp(world.a, ELSEWHERE) is Outcome.REACHED
    await world.network.change(CHOSEN)
    assert await world.tcp(world.a, FAR_ADDRESS) is Outcome.REACHED
    assert await world.tcp(world.a, ELSEWHERE) is Outcome.REFUSED
    await world.counted(Reason.RANGE)
    assert await world.network.check() == ()
    # With the ruleset gone, the routing holds the same line.
    world.net.host.nft(render_removal(DEFAULT))
    assert await world.tcp(world.a, FAR_ADDRESS) is not Outcome.REFUSED
    assert await world.tcp(world.a, ELSEWHERE) is not Outcome.REACHED
    await world.network.repair()
    await world.network.change(Egress())
    assert await world.tcp(world.a, ELSEWHERE) is Outcome.REACHED


async def test_an_allowed_range_opens_in_both_walls_and_nothing_else_does(world: World) -> None:
    world.listen(world.net.internet)
    await world.network.change(Egress(allowed_ranges=(parse_range("10.1.0.0/16"),)))
    assert await world.tcp(world.a, PRIVATE[0]) is Outcome.REACHED
    for address in PRIVATE[1:]:
        assert await world.tcp(world.a, address) is not Outcome.REACHED, address
    await world.network.change(Egress())
    assert await world.tcp(world.a, PRIVATE[0]) is not Outcome.REACHED


async def test_ports_are_denied_and_allowed_at_run_time(world: World) -> None:
    world.listen(world.net.internet, 25)
    world.listen(world.net.internet)
    ports = tuple(map(TransportPorts.parse, ("tcp/25",)))
    assert await world.tcp(world.a, FAR_ADDRESS, 25) is Outcome.REFUSED
    await world.network.change(
        Egress(allowed_ports=ports, denied_ports=(TransportPorts.parse("tcp/8000-8999"),))
    )
    assert await world.tcp(world.a, FAR_ADDRESS, 25) is Outcome.REACHED
    assert await world.tcp(world.a, FAR_ADDRESS) is Outcome.REFUSED
    await world.counted(Reason.PORT, 1)


async def test_a_change_cuts_what_it_denies_and_nothing_else(world: World) -> None:
    listener = world.listen(world.net.internet)
    kept, cut = world.connect(world.a, FAR_ADDRESS), world.connect(world.a, ELSEWHERE)
    kept_end, _ = listener.accept()
    cut_end, _ = listener.accept()
    visit = world.listen(world.a)
    visitor = world.connect(world.net.host, A)
    visited, _ = visit.accept()
    with kept_end, cut_end, visited:
        assert await world.network.change(CHOSEN) == 1
        kept_end.sendall(b"kept")
        assert kept.recv(64) == b"kept"
        visitor.sendall(b"visit")
        assert visited.recv(64) == b"visit"
        cut.sendall(b"cut")
        await world.counted(Reason.RANGE)
        cut_end.setblocking(False)
        with pytest.raises(BlockingIOError):
            cut_end.recv(64)


async def test_no_packet_is_lost_while_the_rules_change(world: World) -> None:
    receiver = world.receive(world.net.internet)
    sending = asyncio.create_task(asyncio.to_thread(send_steadily, world, receiver))
    changes = 0
    while not sending.done() or changes < CHANGES:
        await world.network.change(CHOSEN if changes % 2 else Egress())
        changes += 1
    await sending
    assert await world.refused() == 0
    assert (await world.network.traffic())[A].sent.packets == STEADY, "and none was forgotten"


def send_steadily(world: World, receiver: socket.socket) -> None:
    """In chunks that no queue on the way is too short for; each datagram is seen to arrive."""
    with world.a.socket(kind=socket.SOCK_DGRAM) as sender:
        sender.connect((str(FAR_ADDRESS), PORT))
        for first in range(0, STEADY, CHUNK):
            chunk = [number.to_bytes(4, "big") for number in range(first, first + CHUNK)]
            for datagram in chunk:
                sender.send(datagram)
            assert [receiver.recv(64) for _ in chunk] == chunk


async def test_a_change_that_fails_leaves_the_old_rules(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.listen(world.net.internet)
    with pytest.raises(ValueError, match=r"10\.77\.0\.3"):
        await world.network.change(Egress(allowed_ranges=(parse_range(f"{B}/32"),)))
    with monkeypatch.context() as patch:
        broken = ruleset.render_change(replace(DEFAULT, egress=CHOSEN)).replace("goto refuse", "goto nowhere")
        patch.setattr(ruleset, "render_change", lambda _: broken)
        with pytest.raises(PolicyError):
            await world.network.change(CHOSEN)
    assert world.network.policy == DEFAULT
    assert await world.network.check() == ()
    assert await world.tcp(world.a, ELSEWHERE) is Outcome.REACHED


@pytest.mark.parametrize("step", ["set_wall", "cut_flows"])
async def test_a_change_that_fails_half_way_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    world.listen(world.net.internet)
    owner = Kernel if step == "set_wall" else walls
    original, failures = getattr(owner, step), iter([PolicyError("no more memory")])

    def fail_once(*arguments: Any, **options: Any) -> Any:
        for failure in failures:
            raise failure
        return original(*arguments, **options)

    monkeypatch.setattr(owner, step, fail_once)
    with pytest.raises(PolicyError, match="no more memory"):
        await world.network.change(CHOSEN)
    assert world.network.policy == DEFAULT
    assert await world.network.check() == ()
    assert await world.tcp(world.a, ELSEWHERE) is Outcome.REACHED


# ---- counters


async def test_what_a_pod_sends_receives_and_is_refused_is_counted(world: World) -> None:
    assert await world.ping(world.a, FAR_ADDRESS) is Outcome.REACHED
    assert await world.tcp(world.a, B) is Outcome.DROPPED
    traffic = await world.network.traffic()
    # The refused packet was sent as well: it was the pod's own.
    assert traffic[A] == Traffic(Volume(34 + 60, 2), Volume(34, 1), {Reason.POD: 1})
    assert traffic[B] == NO_TRAFFIC


async def test_counters_go_on_across_reloads_restarts_and_attaching_anew(world: World) -> None:
    assert await world.ping(world.a, FAR_ADDRESS) is Outcome.REACHED
    before = Traffic(Volume(34, 1), Volume(34, 1), {})
    await world.network.start(BOTH)
    assert (await world.network.traffic())[A] == before
    again = PodNetwork(netns=world.net.host.path)
    await again.start({A: Traffic(Volume(10_000, 10)), B: NO_TRAFFIC})
    known = (await again.traffic())[A]
    assert known == Traffic(Volume(10_000, 10), Volume(34, 1)), (
        "the larger of what was given and what was counted"
    )
    assert await again.detach(A) == known
    assert await again.detach(A) is None
    await again.attach(A, world.a.fd, replace(known, refused={Reason.HOST: 5}))
    assert await world.ping(world.a, FAR_ADDRESS) is Outcome.REACHED
    last = await again.detach(A)
    assert last == Traffic(Volume(10_034, 11), Volume(68, 2), {Reason.HOST: 5})
    await again.aclose()


async def test_counters_survive_somebody_elses_flush_as_of_their_last_reading(world: World) -> None:
    assert await world.ping(world.a, FAR_ADDRESS) is Outcome.REACHED
    before = await world.network.traffic()
    world.net.host.nft("flush ruleset")
    assert await world.network.check() == (TABLE_GONE,)
    assert await world.network.traffic() == before
    await world.network.repair()
    assert await world.network.traffic() == before
    assert await world.ping(world.a, FAR_ADDRESS) is Outcome.REACHED
    assert (await world.network.traffic())[A].sent == Volume(68, 2)


async def test_the_next_pod_with_an_address_begins_at_nothing(world: World) -> None:
    assert await world.tcp(world.a, B) is Outcome.DROPPED
    await world.network.detach(A)
    with world.net.pod("next") as successor:
        await world.network.attach(A, successor.fd)
        assert (await world.network.traffic())[A] == NO_TRAFFIC


# ---- resolvers


@pytest.mark.parametrize("wall", ["both walls", "the routing alone"])
async def test_a_resolver_in_a_private_range_is_reached_for_names_only(
    make_world: Callable[..., Any], wall: str
) -> None:
    policy = Policy(resolvers=(PRIVATE_RESOLVER,))
    world: World = await make_world(policy)
    if wall == "the routing alone":
        world.net.host.nft(render_removal(policy))
        world.net.host.nft(  # without it nothing would come back
            "table ip nat { chain post { type nat hook postrouting priority 100;"
            " ip saddr 10.77.0.0/16 masquerade; }; }"
        )
    names = world.receive(world.net.internet, 53)
    world.listen(world.net.internet, 53)
    world.listen(world.net.internet, 80)
    world.marker = world.receive(world.net.internet, MARKER_PORT)
    assert await world.udp(world.a, PRIVATE_RESOLVER, names, 53) is Outcome.REACHED
    assert await world.tcp(world.a, PRIVATE_RESOLVER, 53) is Outcome.REACHED
    assert await world.tcp(world.a, PRIVATE_RESOLVER, 80) is not Outcome.REACHED
    assert await world.tcp(world.a, IPv4Address("192.168.1.2"), 53) is not Outcome.REACHED
    await world.network.aclose()


# ---- IPv6


@pytest.fixture
def dual_net(net: HostNetwork) -> HostNetwork:
    net.internet.ip(f"route add {POOL6} via {HOST_ADDRESS6} dev wan0")
    return net


async def test_with_ipv6_pods_reach_the_internet_behind_the_hosts_address(
    dual_net: HostNetwork, make_world: Callable[..., Any]
) -> None:
    world: World = await make_world(DUAL)
    listener = world.listen(dual_net.internet, address="::")
    connection = world.connect(world.a, FAR_ADDRESS6)
    accepted, (seen, *_) = listener.accept()
    with accepted:
        accepted.sendall(b"hello")
        assert connection.recv(64) == b"hello"
        assert seen == str(HOST_ADDRESS6)
        world.listen(world.a, address="::")
        assert await world.tcp(dual_net.host, A6) is Outcome.REACHED, "the host reaches the pod"
        assert (await world.network.traffic())[A].sent.packets >= 3
        assert await world.refused() == 0, "a pod at rest does nothing that is refused"
        await world.network.detach(A)
        assert count_flows(dual_net, A6) == 0
    await world.network.aclose()


DUAL_WALLS: Final = {
    "both walls": "",
    "the ruleset alone": "ip -6 rule del priority 77",
    "the routing alone": "nft delete table inet codius",
}


@pytest.mark.parametrize("wall", DUAL_WALLS)
async def test_with_ipv6_pods_reach_neither_each_other_nor_what_is_local(
    dual_net: HostNetwork, make_world: Callable[..., Any], wall: str
) -> None:
    world: World = await make_world(DUAL)
    private, nat64 = (parse_range(text)[0] for text in ("fd00::9", "64:ff9b::a01:203"))  # 10.1.2.3 behind it
    dual_net.add_internet_addresses(private, nat64)
    if command := DUAL_WALLS[wall]:
        dual_net.exec(*command.split())
    world.listen(world.b, address="::")
    receiver = world.receive(world.b, family=socket.AF_INET6)
    world.listen(dual_net.internet, address="::")
    world.marker = world.receive(dual_net.internet, MARKER_PORT)
    outcomes = {
        "pod by TCP": await world.tcp(world.a, B6),
        "pod by UDP": await world.udp(world.a, B6, receiver),
        "unique local": await world.tcp(world.a, private),
        "NAT64": await world.tcp(world.a, nat64),
    }
    assert {name for name, outcome in outcomes.items() if outcome is Outcome.REACHED} == set()
    if wall != "the routing alone":
        world.listen(dual_net.host, address="::")
        assert await world.tcp(world.a, HOST_ADDRESS6) is Outcome.DROPPED
        await world.counted(Reason.HOST)
    await world.network.aclose()


async def test_a_restart_without_ipv6_does_not_adopt_a_link_that_has_it(
    dual_net: HostNetwork, make_world: Callable[..., Any]
) -> None:
    world: World = await make_world(DUAL)
    again = PodNetwork(netns=dual_net.host.path)
    assert await again.start(BOTH) == frozenset()
    assert str(POOL6) not in dual_net.exec("ip", "-6", "rule").stdout
    assert str(POOL6) not in dual_net.exec("ip", "-6", "route").stdout
    await again.attach(A, world.a.fd)
    assert await again.links() == {A}
    await again.stop()
    await again.aclose()
    await world.network.aclose()


async def test_a_host_that_heeds_router_advertisements_goes_on_heeding_them(
    dual_net: HostNetwork, make_world: Callable[..., Any]
) -> None:
    setting = Path("/proc/sys/net/ipv6/conf/wan0/accept_ra")
    assert dual_net.host.call(setting.read_text).strip() == "1"
    world: World = await make_world(DUAL)
    assert dual_net.host.call(setting.read_text).strip() == "2", "1 means: unless forwarding"
    await world.network.aclose()


# ---- probes from inside a live pod


async def test_the_probes_find_nothing_wrong_in_a_pod_as_it_should_be(make_world: Callable[..., Any]) -> None:
    world: World = await make_world(Policy(resolvers=(FAR_ADDRESS,)))
    world.listen(world.net.internet, 53)
    names = world.stack.enter_context(world.net.internet.socket(kind=socket.SOCK_DGRAM))
    names.bind((str(FAR_ADDRESS), 53))
    with answering(names):
        results = await world.network.probe(world.a.fd, [B])
    assert [result for result in results if not result.ok] == []
    assert {result.expected for result in results} == set(Verdict)
    await world.network.aclose()


async def test_the_probes_tell_when_the_walls_are_down(make_world: Callable[..., Any]) -> None:
    world: World = await make_world(Policy(resolvers=(FAR_ADDRESS,)))
    world.net.exec("nft", "delete", "table", "inet", "codius")
    world.net.exec("ip", "rule", "del", "priority", "77")
    results = {result.name: result for result in await world.network.probe(world.a.fd, [B])}
    assert not results[f"the pod {B}, by tcp"].ok
    assert not results[f"the host at {HOST_ADDRESS}"].ok
    await world.network.aclose()
