"""The text of the table and of one pod's elements; nft itself is the judge of its grammar."""

import subprocess
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network

import pytest

from codius_netpolicy.policy import Limits, Policy, PortRange, Service, Transport, TransportPort
from codius_netpolicy.ruleset import (
    COUNTERS,
    render_admission,
    render_eviction,
    render_removal,
    render_table,
)
from tests.harness.namespaces import Namespace, missing_privilege

POD = IPv4Address("10.77.0.2")
OTHER_POD = IPv4Address("10.77.1.255")
BARE = Policy(services=(), denied_ranges=(), denied_out=(), denied_in_udp=())
OTHER = Policy(
    pool=IPv4Network("192.168.128.0/20"),
    group=4_000_000_000,
    table="other_1",
    routing_table=500,
    gateway=IPv4Address("169.254.9.9"),
    services=(Service(IPv4Address("169.254.9.10"), Transport.TCP, 443),),
    resolvers=(),
    denied_ranges=(IPv4Network("10.0.0.0/8"), IPv4Network("10.1.0.0/16"), IPv4Network("203.0.113.7/32")),
    denied_out=(TransportPort(Transport.UDP, 65535),),
    denied_in_udp=(PortRange(1, 100), PortRange(50, 65535)),
    limits=Limits(connections=1, new_connections=1, new_connections_burst=1, echo_requests=1),
)


@pytest.mark.parametrize(
    "line",
    [
        "iifgroup 77 goto pod_ingress",
        'iifname != "lo" ip saddr 10.77.0.0/16 counter name spoofed drop',
        "meta nfproto ipv6 counter name v6 drop",
        "iifname . ether saddr . ip saddr @pod_tx accept",
        "add @conns { ip saddr ct count over 256 } counter name limited drop",
        "update @newrate { ip saddr limit rate over 200/second burst 400 packets } counter name limited drop",
        "ip daddr . meta l4proto . th dport @svc goto admit",
        "ip daddr 169.254.77.1 icmp type echo-request limit rate 50/second accept",
        "counter name pod2host drop",
        "oifgroup 77 counter name pod2pod drop",
        "ip daddr @deny4 counter name denied4 drop",
        "meta l4proto . th dport @deny_out counter name denied_port reject with icmp admin-prohibited",
        "udp dport @deny_in_udp counter name denied_port drop",
        "counter name unsolicited drop",
        "oifgroup 77 udp dport @deny_in_udp ct state new counter name denied_port drop",
        "ip saddr 10.77.0.0/16 oifgroup != 77 masquerade",
    ],
)
def test_the_default_table_has_the_rule(line: str) -> None:
    assert line in [rule.strip() for rule in render_table(Policy()).splitlines()]


def test_the_table_replaces_itself_in_one_transaction() -> None:
    assert render_table(Policy()).splitlines()[:2] == ["add table inet codius", "delete table inet codius"]


def test_every_counter_is_declared_once_and_used() -> None:
    text = render_table(Policy())
    for name in COUNTERS:
        assert text.count(f"  counter {name} {{ }}\n") == 1
        assert f"counter name {name} " in text


def test_all_pods_are_part_of_the_table() -> None:
    text = render_table(Policy(), [OTHER_POD, POD])
    assert (
        'elements = { "cp0a4d0002" . 06:cd:0a:4d:00:02 . 10.77.0.2, '
        '"cp0a4d01ff" . 06:cd:0a:4d:01:ff . 10.77.1.255 }'
    ) in text
    assert "elements = { 10.77.0.2, 10.77.1.255 }" in text


def test_the_rules_are_the_same_however_many_pods() -> None:
    pool = Policy().pool
    one, many = (render_table(Policy(), [pool[n] for n in range(2, 2 + pods)]) for pods in (1, 3000))
    assert len(one.splitlines()) == len(many.splitlines())


def test_an_empty_set_has_no_list() -> None:
    assert "elements" not in render_table(BARE)


def test_one_pods_elements() -> None:
    assert render_admission(Policy(), POD) == (
        'add element inet codius pod_tx { "cp0a4d0002" . 06:cd:0a:4d:00:02 . 10.77.0.2 }\n'
        "add element inet codius pod_rx { 10.77.0.2 }\n"
    )
    assert render_eviction(Policy(), POD).startswith(render_admission(Policy(), POD))


@pytest.mark.system
@pytest.mark.skipif(missing_privilege() is not None, reason=str(missing_privilege()))
@pytest.mark.parametrize("policy", [Policy(), BARE, OTHER], ids=["default", "bare", "other"])
@pytest.mark.parametrize("pods", [(), (2,), range(2, 302)], ids=["none", "one", "many"])
def test_nft_accepts_and_applies_the_table(policy: Policy, pods: Collection[int]) -> None:
    addresses = [policy.pool[number] for number in pods]
    table = render_table(policy, addresses)
    with Namespace() as scratch:
        judged = scratch.exec("nft", "--check", "--file", "-", stdin=table)
        assert judged.stderr == ""
        assert scratch.exec("nft", "list", "tables").stdout == "", "a dry run changed something"
        for text in (table, table, render_admission(policy, policy.pool[9])):
            scratch.nft(text)
        for _ in range(2):
            scratch.nft(render_eviction(policy, policy.pool[9]))
        for _ in range(2):
            scratch.nft(render_removal(policy))
        assert scratch.exec("nft", "list", "ruleset").stdout == ""


@pytest.mark.system
@pytest.mark.skipif(missing_privilege() is not None, reason=str(missing_privilege()))
def test_nft_refuses_a_broken_table() -> None:
    with Namespace() as scratch:
        broken = render_table(Policy()).replace("goto pod_ingress", "goto nowhere")
        done: subprocess.CompletedProcess[str] = scratch.exec(
            "nft", "-c", "-f", "-", stdin=broken, check=False
        )
        assert done.returncode != 0
