"""The pods' network in a real kernel: what pods reach, attach and detach, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop

from codius_netpolicy.addressing import host_mac, link_name
from codius_netpolicy.kernel import Kernel
from codius_netpolicy.network import PodNetwork
from codius_netpolicy.policy import Limits, Policy, PolicyError
from codius_netpolicy.ruleset import render_removal
from codius_netpolicy.traffic import NO_TRAFFIC, Reason
from codius_netpolicy.walls import FORWARDING_OFF, TABLE_CHANGED, TABLE_GONE, WALL_CHANGED
from tests.harness.namespaces import (
    FAR_ADDRESS,
    HOST_ADDRESS,
    INTERNET_ADDRESS,
    HostNetwork,
    Namespace,
    missing_privilege,
    snapshot,
)
from tests.system.bare import (
    BOTH,
    DEADLINE,
    GATEWAY,
    MARKER_PORT,
    METADATA,
    PAYMENTS,
    PORT,
    PRIVATE,
    SYN,
    UNUSED,
    A,
    B,
    Outcome,
    World,
    build_udp,
    count_flows,
    first_datagram,
    send_raw,
)

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(missing_privilege() is not None, reason=str(missing_privilege())),
]


# ---- what works


async def test_a_pod_reaches_the_internet_with_the_hosts_address(world: World) -> None:
    listener = world.listen(world.net.internet)
    connection = world.connect(world.a, FAR_ADDRESS)
    accepted, (seen, _) = listener.accept()
    with accepted:
        accepted.sendall(b"hello")
        assert connection.recv(64) == b"hello"
    assert seen == str(HOST_ADDRESS)
    receiver = world.receive(world.net.internet, 53)
    assert await world.udp(world.a, FAR_ADDRESS, receiver, 53) is Outcome.REACHED, "a public resolver"
    assert await world.ping(world.a, FAR_ADDRESS) is Outcome.REACHED
    assert await world.refused() == 0


async def test_the_host_reaches_a_pod(world: World) -> None:
    listener = world.listen(world.a)
    connection = world.connect(world.net.host, A)
    accepted, (seen, _) = listener.accept()
    with accepted:
        accepted.sendall(b"page")
        assert connection.recv(64) == b"page"
    assert seen == str(GATEWAY)
    assert await world.ping(world.net.host, A) is Outcome.REACHED


async def test_a_pod_reaches_the_hosts_services_and_the_gateways_ping(world: World) -> None:
    world.listen(world.net.host, 7768, str(PAYMENTS))
    assert await world.tcp(world.a, PAYMENTS, 7768) is Outcome.REACHED
    assert await world.ping(world.a, GATEWAY) is Outcome.REACHED


# ---- what does not


WALLS: Final = {
    "both walls": (),
    "the ruleset alone": ("ip rule del priority 77",),
    "the routes alone": (render_removal(Policy()),),
}


@pytest.mark.parametrize("wall", WALLS)
async def test_pods_reach_neither_each_other_nor_private_ranges(world: World, wall: str) -> None:
    _take_down(world, *WALLS[wall])
    world.listen(world.b)
    receiver = world.receive(world.b)
    world.listen(world.net.internet)
    world.marker = world.receive(world.net.internet, MARKER_PORT)
    outcomes = {
        "pod by TCP": await world.tcp(world.a, B),
        "pod by UDP": await world.udp(world.a, B, receiver),
        "pod by ping": await world.ping(world.a, B),
        "unused address": await world.tcp(world.a, UNUSED),
        "metadata": await world.tcp(world.a, METADATA),
        **{str(address): await world.tcp(world.a, address) for address in PRIVATE},
    }
    assert {name for name, outcome in outcomes.items() if outcome is Outcome.REACHED} == set()


async def test_without_walls_pods_reach_all_of_that(world: World) -> None:
    """The guard of the test above: its targets are there, and only policy keeps pods from them."""
    _take_down(world, "ip rule del priority 77", render_removal(Policy()))
    world.listen(world.b)
    receiver = world.receive(world.b)
    world.listen(world.net.internet)
    assert await world.tcp(world.a, B) is Outcome.REACHED
    assert await world.udp(world.a, B, receiver) is Outcome.REACHED
    assert await world.ping(world.a, B) is Outcome.REACHED
    for address in (METADATA, *PRIVATE):
        assert await world.tcp(world.a, address) is Outcome.REACHED, address


async def test_a_policy_without_a_range_opens_it_in_both_walls(make_world: Callable[..., Any]) -> None:
    ranges = tuple(r for r in Policy().denied_ranges if r != IPv4Network("10.0.0.0/8"))
    world: World = await make_world(Policy(denied_ranges=ranges))
    world.listen(world.net.internet)
    assert await world.tcp(world.a, IPv4Address("10.1.2.3")) is Outcome.REACHED
    world.marker = world.receive(world.net.internet, MARKER_PORT)
    assert await world.tcp(world.a, METADATA) is not Outcome.REACHED
    assert await world.tcp(world.a, B) is not Outcome.REACHED
    await world.network.aclose()


async def test_pods_are_kept_apart_by_their_links_not_by_their_addresses(
    make_world: Callable[..., Any],
) -> None:
    world: World = await make_world(Policy(denied_ranges=()))
    _take_down(world, *WALLS["the ruleset alone"])
    world.listen(world.b)
    assert await world.tcp(world.a, B) is Outcome.DROPPED
    await world.counted(Reason.POD)
    await world.network.aclose()


def _take_down(world: World, *commands: str) -> None:
    for command in commands:
        if command.startswith("ip "):
            world.net.host.ip(command.removeprefix("ip "))
        else:
            world.net.host.nft(command)


@pytest.mark.parametrize("target", [HOST_ADDRESS, GATEWAY, PAYMENTS], ids=str)
async def test_a_pod_reaches_no_listener_of_the_host(world: World, target: IPv4Address) -> None:
    world.listen(world.net.host)
    receiver = world.receive(world.net.host)
    assert await world.tcp(world.a, target) is Outcome.DROPPED
    assert await world.udp(world.a, target, receiver) is Outcome.DROPPED
    if target != GATEWAY:
        assert await world.ping(world.a, target) is Outcome.DROPPED
    await world.counted(Reason.HOST)
    assert await world.tcp(world.net.host, target) is Outcome.REACHED, "the host itself may"


@pytest.mark.parametrize(("transport", "port"), [("tcp", 25), ("tcp", 5060), ("udp", 5060)])
async def test_a_closed_port_is_refused_anywhere(world: World, transport: str, port: int) -> None:
    if transport == "tcp":
        world.listen(world.net.internet, port)
        assert await world.tcp(world.a, FAR_ADDRESS, port) is not Outcome.REACHED
        assert await world.tcp(world.net.host, FAR_ADDRESS, port) is Outcome.REACHED
    else:
        receiver = world.receive(world.net.internet, port)
        assert await world.udp(world.a, FAR_ADDRESS, receiver, port) is not Outcome.REACHED
        assert await world.udp(world.net.host, FAR_ADDRESS, receiver, port) is Outcome.REACHED
    await world.counted(Reason.PORT)


@pytest.mark.parametrize("source", [B, UNUSED, FAR_ADDRESS, HOST_ADDRESS, GATEWAY], ids=str)
async def test_a_source_that_is_not_the_pods_own_is_dropped(world: World, source: IPv4Address) -> None:
    receiver = world.receive(world.net.internet)
    send_raw(world.a, build_udp(source, FAR_ADDRESS), FAR_ADDRESS)
    await world.counted(Reason.SPOOFED)
    assert first_datagram(receiver, world.net.internet) == b"marker"
    send_raw(world.a, build_udp(A, FAR_ADDRESS), FAR_ADDRESS)
    assert receiver.recv(64) == b"spoof", "its own address passes the same way"


async def test_a_hardware_address_that_is_not_the_pods_own_is_dropped(world: World) -> None:
    world.a.ip(
        "link set eth0 address 06:cd:0a:4d:00:03",
        f"neigh replace {GATEWAY} lladdr {host_mac(A)} dev eth0 nud permanent",
    )
    assert await world.tcp(world.a, FAR_ADDRESS) is Outcome.DROPPED
    await world.counted(Reason.SPOOFED)


async def test_a_stranger_with_a_pods_address_is_dropped(world: World) -> None:
    receiver = world.receive(world.net.host)
    send_raw(world.net.internet, build_udp(A, HOST_ADDRESS), HOST_ADDRESS)
    await world.counted(Reason.SPOOFED)
    assert first_datagram(receiver, world.net.host) == b"marker"


async def test_a_stranger_does_not_reach_a_pod(world: World) -> None:
    world.listen(world.a)
    assert await world.tcp(world.net.internet, A) is Outcome.DROPPED
    assert await world.udp(world.net.internet, A, world.receive(world.a)) is Outcome.DROPPED
    await world.counted(Reason.UNSOLICITED, 1)


@pytest.mark.parametrize("port", [19, 80, 138, 1900, 11211, 33434, 33534])
async def test_an_inbound_udp_port_that_amplifies_is_closed(world: World, port: int) -> None:
    receiver = world.receive(world.a, port)
    assert await world.udp(world.net.host, A, receiver, port) is not Outcome.REACHED
    await world.counted(Reason.PORT)
    assert await world.udp(world.net.host, A, world.receive(world.a, 33535), 33535) is Outcome.REACHED


async def test_ipv6_of_a_pod_is_dropped(world: World) -> None:
    receiver = world.receive(world.net.host, family=socket.AF_INET6)
    assert "inet6" not in world.net.exec("ip", "addr", "show", link_name(A)).stdout
    # The pod's end has it switched off; switched on again, the ruleset must hold alone.
    switch = Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    assert world.a.call(switch.read_text).strip() == "1"
    world.a.call(partial(switch.write_text, "0"))
    world.a.ip("addr add fd77::2/64 dev eth0 nodad")
    world.net.host.ip(f"addr add fd77::1/64 dev {link_name(A)} nodad")
    world.a.ip(f"neigh replace fd77::1 lladdr {host_mac(A)} dev eth0 nud permanent")
    before = (await world.network.counters())[Reason.IPV6]
    with world.a.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"v6", ("fd77::1", PORT))
    await world.counted(Reason.IPV6, before)
    with world.net.host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"marker", ("::1", PORT))
    assert receiver.recv(64) == b"marker"


async def test_a_pod_has_only_so_many_flows(make_world: Callable[..., Any]) -> None:
    world: World = await make_world(Policy(limits=Limits(connections=3)))
    receiver = world.receive(world.net.internet)
    with ExitStack() as senders:
        for _ in range(6):
            sender = senders.enter_context(world.a.socket(kind=socket.SOCK_DGRAM))
            sender.sendto(b"flow", (str(FAR_ADDRESS), PORT))
    await world.counted(Reason.CONNECTIONS, 2)
    for _ in range(3):
        assert receiver.recv(64) == b"flow"
    assert first_datagram(receiver, world.net.internet) == b"marker"
    assert await world.udp(world.b, FAR_ADDRESS, receiver) is Outcome.REACHED, "each pod has its own"
    await world.network.aclose()


async def test_a_pod_begins_only_so_many_flows_a_second(make_world: Callable[..., Any]) -> None:
    limits = Limits(connections=1000, new_connections=1, new_connections_burst=5)
    world: World = await make_world(Policy(limits=limits))
    with ExitStack() as senders:
        for _ in range(50):
            sender = senders.enter_context(world.a.socket(kind=socket.SOCK_DGRAM))
            sender.sendto(b"flow", (str(FAR_ADDRESS), PORT))
    await world.counted(Reason.RATE, 20)
    await world.network.aclose()


async def test_what_a_pod_sends_and_receives_is_counted(world: World) -> None:
    assert await world.ping(world.a, FAR_ADDRESS) is Outcome.REACHED
    for name, address in (("pod_tx", f". {A}"), ("pod_rx", str(A))):
        listing = world.net.exec("nft", "list", "set", "inet", "codius", name).stdout
        assert f"{address} counter packets 1 bytes 34" in " ".join(listing.split()), listing


async def test_a_segment_of_no_connection_goes_nowhere(world: World) -> None:
    """TCP without any flag: a scanner's, and nothing that connection tracking could make sense of."""
    segment = struct.pack("!HHIIBBHHH", 4000, PORT, 1, 0, 5 << 4, 0, 1024, 0, 0)
    for where, to in ((world.net.internet, FAR_ADDRESS), (world.net.host, PAYMENTS)):
        with where.socket(kind=socket.SOCK_RAW, protocol=socket.IPPROTO_TCP) as tap:
            tap.settimeout(DEADLINE)
            port = PORT if to is FAR_ADDRESS else 7768
            with world.a.socket(kind=socket.SOCK_RAW, protocol=socket.IPPROTO_TCP) as raw:
                raw.sendto(segment[:2] + struct.pack("!H", port) + segment[4:], (str(to), 0))
            assert await world.tcp(world.a, to, port) is Outcome.REACHED
            flags = tap.recv(2048)[33]
            assert flags == SYN, "the probe behind it is the first to arrive"


async def test_a_link_without_elements_can_do_nothing(world: World) -> None:
    world.net.host.nft("flush set inet codius pod_tx")
    world.listen(world.net.internet)
    assert await world.tcp(world.a, FAR_ADDRESS) is Outcome.DROPPED
    await world.counted(Reason.SPOOFED)


# ---- attach and detach


async def test_detach_cuts_established_flows_and_forgets_them(world: World) -> None:
    listener = world.listen(world.net.internet)
    world.listen(world.a)
    connection = world.connect(world.a, FAR_ADDRESS)
    world.connect(world.net.host, A)
    accepted, _ = listener.accept()
    with accepted:
        assert count_flows(world.net, A) == 2
        await world.network.detach(A)
        assert count_flows(world.net, A) == 0
        assert await world.network.links() == {B}
        # The next pod with this address is not sent what the last one asked for.
        with world.net.pod("next") as successor:
            await world.network.attach(A, successor.fd)
            with successor.socket(kind=socket.SOCK_RAW, protocol=socket.IPPROTO_TCP) as tap:
                tap.settimeout(DEADLINE)
                with contextlib.suppress(OSError):
                    accepted.sendall(b"late")
                assert await world.tcp(world.net.host, A, 4321) is Outcome.REACHED
                packet = tap.recv(2048)
                assert struct.unpack_from("!H", packet, 22) == (4321,), "the host's probe is the first it saw"
    connection.close()


async def test_detach_of_a_pod_that_is_not_there_changes_nothing(world: World) -> None:
    await world.network.detach(UNUSED)
    await world.network.detach(A)
    await world.network.detach(A)
    assert await world.network.links() == {B}
    assert await world.network.check() == ()


async def test_a_second_attach_disturbs_nothing(world: World) -> None:
    listener = world.listen(world.net.internet)
    connection = world.connect(world.a, FAR_ADDRESS)
    accepted, _ = listener.accept()
    with accepted:
        before = snapshot(world.net.host)
        await world.network.attach(A, world.a.fd)
        assert snapshot(world.net.host) == before
        accepted.sendall(b"still there")
        assert connection.recv(64) == b"still there"


async def test_an_attach_to_another_namespace_replaces_the_link(world: World) -> None:
    world.listen(world.net.internet)
    with world.net.pod("restarted") as again:
        await world.network.attach(A, again.fd)
        assert await world.tcp(again, FAR_ADDRESS) is Outcome.REACHED
        assert "eth0" not in world.a.exec("ip", "-o", "link").stdout


async def test_the_descriptor_may_be_closed_after_attach(world: World) -> None:
    await world.network.detach(A)
    descriptor = os.dup(world.a.fd)
    await world.network.attach(A, descriptor)
    os.close(descriptor)
    assert await world.network.links() == {A, B}


async def test_attach_refuses_what_is_no_pod(world: World) -> None:
    before = snapshot(world.net.host)
    with pytest.raises(PolicyError, match="not in the pods' pool"):
        await world.network.attach(IPv4Address("10.78.0.2"), world.a.fd)
    with pytest.raises(PolicyError, match="host's own"):
        await world.network.attach(UNUSED, world.net.host.fd)
    with Path(os.devnull).open() as no_namespace, pytest.raises(PolicyError):
        await world.network.attach(UNUSED, no_namespace.fileno())
    assert snapshot(world.net.host) == before


async def test_a_cancelled_attach_is_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.network.detach(A)
    half_way, go_on = threading.Event(), threading.Event()
    original = Kernel.add_veth

    def slow(kernel: Kernel, *arguments: Any, **options: Any) -> Any:
        index = original(kernel, *arguments, **options)
        half_way.set()
        assert go_on.wait(DEADLINE)
        return index

    monkeypatch.setattr(Kernel, "add_veth", slow)
    attaching = asyncio.create_task(world.network.attach(A, world.a.fd))
    await asyncio.to_thread(half_way.wait, DEADLINE)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    go_on.set()
    assert await world.network.links() == {B}
    assert link_name(A) not in world.net.exec("ip", "-o", "link").stdout


async def test_a_packet_for_a_pod_that_has_gone_does_not_leave_the_host(world: World) -> None:
    await world.network.detach(A)
    assert await world.tcp(world.net.host, A) is Outcome.REFUSED
    with pytest.raises(OSError, match="No route to host"):
        world.connect(world.net.host, UNUSED)
    assert await world.tcp(world.net.host, B, 1) is Outcome.REACHED


# ---- start and stop


async def test_a_restart_adopts_live_links_and_removes_unknown_ones(world: World) -> None:
    world.listen(world.b)
    listener = world.listen(world.net.internet)
    connection = world.connect(world.a, FAR_ADDRESS)
    accepted, _ = listener.accept()
    # Somebody else's link and table, which only look a little like ours.
    world.net.host.ip("link add cpother type veth peer name cpother2")
    world.net.host.nft("add table inet codius2")
    await world.network.aclose()
    again = PodNetwork(netns=world.net.host.path)
    with accepted:
        assert await again.start({A: NO_TRAFFIC, UNUSED: NO_TRAFFIC}) == {A}
        assert await again.links() == {A}
        accepted.sendall(b"across the restart")
        assert connection.recv(64) == b"across the restart"
    links = world.net.exec("ip", "-o", "link").stdout
    assert "cpother" in links
    assert link_name(B) not in links
    assert "codius2" in world.net.exec("nft", "list", "tables").stdout
    await again.aclose()


async def test_a_restart_with_another_policy_leaves_nothing_of_the_old_one(world: World) -> None:
    policy = Policy(services=(), denied_ranges=(IPv4Network("203.0.113.0/24"),))
    again = PodNetwork(policy, netns=world.net.host.path)
    await again.start(BOTH)
    walled = world.net.exec("ip", "route", "show", "table", "77").stdout
    assert [line.split()[1] for line in walled.splitlines()] == ["10.77.0.0/16", "203.0.113.0/24"]
    assert "169.254.77.68" not in world.net.exec("ip", "addr", "show", "lo").stdout
    assert await world.network.check() == (TABLE_CHANGED, WALL_CHANGED), (
        "the policy is not the first network's"
    )
    await again.aclose()


async def test_a_link_in_another_group_is_not_adopted(world: World) -> None:
    """The rules know pods by their group: a link outside it would be open."""
    world.net.host.ip(f"link set {link_name(A)} group 5")
    assert await world.network.start(BOTH) == {B}
    assert link_name(A) not in world.net.exec("ip", "-o", "link").stdout


async def test_what_others_change_is_noticed_and_repaired(world: World) -> None:
    world.listen(world.net.internet)
    assert await world.network.check() == ()
    await world.network.detach(A)
    assert await world.tcp(world.b, FAR_ADDRESS) is Outcome.REACHED
    await world.network.attach(A, world.a.fd)
    world.net.host.nft("add table inet codius2; add chain inet codius2 theirs")
    assert await world.network.check() == (), "pods, traffic and other tables come and go"
    for change, problem in {
        "nft insert rule inet codius from_pod accept": TABLE_CHANGED,
        "nft delete element inet codius deny { 10.0.0.0/8 }": TABLE_CHANGED,
        "nft flush chain inet codius pod_ingress": TABLE_CHANGED,
        "nft delete table inet codius": TABLE_GONE,
        "nft flush ruleset": TABLE_GONE,
        "ip rule del priority 77": WALL_CHANGED,
        "ip route del prohibit 10.0.0.0/8 table 77": WALL_CHANGED,
        "ip route flush table 77": WALL_CHANGED,
        "sh -c 'echo 0 > /proc/sys/net/ipv4/ip_forward'": FORWARDING_OFF,
    }.items():
        world.net.exec(*shlex.split(change))
        assert await world.network.check() == (problem,), change
        await world.network.repair()
        assert await world.network.check() == (), change
        assert await world.tcp(world.a, FAR_ADDRESS) is Outcome.REACHED, change
        assert await world.tcp(world.a, METADATA) is not Outcome.REACHED, change


async def test_a_change_of_anothers_in_the_same_moment_as_ours_is_not_overlooked(world: World) -> None:
    world.net.host.nft("insert rule inet codius from_pod accept")
    await world.network.detach(A)  # ours: one generation further, but not the only one
    assert await world.network.check() == (TABLE_CHANGED,)


def test_the_network_works_for_any_event_loop(net: HostNetwork) -> None:
    """Under uvloop's policy a loop made by a library is uvloop's, too, and that knows no netlink sockets."""

    async def attach() -> frozenset[IPv4Address]:
        network = PodNetwork(netns=net.host.path)
        await network.start({})
        await network.attach(A, pod.fd)
        links = await network.links()
        await network.aclose()
        return links

    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    try:
        with net.pod() as pod:
            assert asyncio.run(attach()) == {A}
    finally:
        asyncio.set_event_loop_policy(before)


async def test_stop_leaves_nothing(net: HostNetwork) -> None:
    before = snapshot(net.host)
    network = PodNetwork(netns=net.host.path)
    for _ in range(2):
        with net.pod() as pod:
            await network.start({A: NO_TRAFFIC})
            await network.attach(A, pod.fd)
            await network.stop()
            after = snapshot(net.host)
            assert after == before | {"forwarding": "1\n"}  # others may need it by now
    await network.stop()
    assert await network.check() == (TABLE_GONE, WALL_CHANGED)
    assert await network.links() == frozenset()
    await network.aclose()


async def test_a_transaction_that_fails_leaves_the_old_table(world: World) -> None:
    broken = PodNetwork(Policy(table="drop"), netns=world.net.host.path)  # a word of the grammar
    with pytest.raises(PolicyError):
        await broken.start(BOTH)
    await broken.aclose()
    assert await world.network.check() == ()


# ---- the harness itself


def test_what_is_started_in_a_namespace_ends_with_it() -> None:
    with Namespace() as scratch:
        process = scratch.spawn("sleep", "600")
        assert process.poll() is None
    assert process.poll() is not None
    scratch.close()


def test_the_internet_is_one_hop_away(net: HostNetwork) -> None:
    listening = net.internet.call(lambda: socket.create_server((str(FAR_ADDRESS), PORT)))
    with listening as listener, net.host.socket() as connection:
        connection.settimeout(DEADLINE)
        connection.connect((str(FAR_ADDRESS), PORT))
        accepted, (seen, _) = listener.accept()
        accepted.close()
    assert seen == str(HOST_ADDRESS)
    assert str(INTERNET_ADDRESS) in net.exec("ip", "route").stdout
