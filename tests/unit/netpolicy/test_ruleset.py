"""The text of the table and of one pod's elements; nft itself is the judge of its grammar."""

import subprocess
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from codius_netpolicy.policy import (
    Egress,
    EgressMode,
    Limits,
    Policy,
    PortRange,
    Service,
    Transport,
    TransportPorts,
)
from codius_netpolicy.ruleset import (
    find_pod,
    render_admission,
    render_change,
    render_eviction,
    render_removal,
    render_table,
)
from codius_netpolicy.traffic import NO_TRAFFIC, Reason, Traffic, Volume
from tests.harness.namespaces import Namespace, missing_privilege

POD = IPv4Address("10.77.0.2")
OTHER_POD = IPv4Address("10.77.1.255")
POOL6 = IPv6Network("fd77:c0d1:5::/64")
DUAL = Policy(pool6=POOL6, resolvers=(IPv4Address("192.168.1.1"), IPv6Address("2001:db8::53")))
BARE = Policy(
    services=(),
    denied_ranges=(),
    denied_ports=(),
    denied_in_udp=(),
    limits=Limits(connections=0, new_connections=0),
)
OTHER = Policy(
    pool=IPv4Network("192.168.128.0/20"),
    group=4_000_000_000,
    table="other_1",
    routing_table=500,
    gateway=IPv4Address("169.254.9.9"),
    services=(Service(IPv4Address("169.254.9.10"), Transport.TCP, 443),),
    denied_ranges=(IPv4Network("10.0.0.0/8"), IPv4Network("10.1.0.0/16"), IPv4Network("203.0.113.7/32")),
    denied_ports=(TransportPorts(Transport.UDP, PortRange(65535, 65535)),),
    denied_in_udp=(PortRange(1, 100), PortRange(50, 65535)),
    egress=Egress(EgressMode.LISTED, allowed_ports=(TransportPorts.parse("tcp/443"),)),
    limits=Limits(connections=1, new_connections=1, new_connections_burst=1, echo_requests=1),
)
COUNTED = Traffic(Volume(700, 7), Volume(50, 5), {Reason.POD: 3})


def lines(policy: Policy) -> list[str]:
    return [rule.strip() for rule in render_table(policy, {}).splitlines()]


@pytest.mark.parametrize(
    "line",
    [
        "iifgroup 77 goto pod_ingress",
        'iifname != "lo" ip saddr 10.77.0.0/16 counter name strangers drop',
        "meta nfproto ipv6 meta mark set 2 goto refuse",
        "iifname . ether saddr . ip saddr @pod_tx accept",
        "meta mark set 1 goto refuse",
        "add @refused { iifname . meta mark }",
        "add @conns { ip saddr ct count over 256 } meta mark set 8 goto refuse",
        "update @newrate { ip saddr limit rate over 200/second burst 400 packets }"
        " meta mark set 9 goto refuse",
        "ip daddr 10.77.0.0/16 meta mark set 3 goto refuse",
        "ip daddr . meta l4proto . th dport @svc goto admit",
        "ip daddr @deny meta mark set 5 goto refuse_aloud",
        "meta l4proto . th dport @deny_out meta mark set 6 goto refuse_aloud",
        "ip daddr 169.254.77.1 icmp type echo-request limit rate 50/second accept",
        "meta mark set 4 goto refuse",
        "meta mark set 11 goto refuse_inbound",
        "oifgroup 77 udp dport @deny_in_udp ct state new meta mark set 6 goto refuse_inbound",
        "ip saddr 10.77.0.0/16 oifgroup != 77 masquerade",
    ],
)
def test_the_default_table_has_the_rule(line: str) -> None:
    assert line in lines(Policy())


def test_pods_with_ipv6_have_the_same_rules_for_it() -> None:
    ours = lines(DUAL)
    assert "meta nfproto ipv6 meta mark set 2 goto refuse" not in ours
    for line in (
        "iifname . ether saddr . ip6 saddr @pod_tx6 accept",
        f"ip6 daddr {POOL6} meta mark set 3 goto refuse",
        "ip6 daddr @deny6 meta mark set 5 goto refuse_aloud",
        "add @conns6 { ip6 saddr ct count over 256 } meta mark set 8 goto refuse",
        f"ip6 saddr {POOL6} oifgroup != 77 masquerade",
    ):
        assert line in ours, line


def test_a_limit_that_is_off_has_no_rule() -> None:
    text = render_table(BARE, {})
    assert "ct count" not in text
    assert "@newrate" not in text


def test_the_table_replaces_itself_in_one_transaction() -> None:
    text = render_table(Policy(), {})
    assert text.splitlines()[:2] == ["add table inet codius", "delete table inet codius"]


def test_a_change_keeps_the_table_and_its_pods() -> None:
    text = render_change(Policy())
    assert "delete table" not in text
    assert text.startswith("flush table inet codius\n")
    assert "flush set inet codius pod_tx" not in text
    assert "flush set inet codius deny\n" in text


def test_all_pods_are_part_of_the_table() -> None:
    text = render_table(Policy(), {OTHER_POD: NO_TRAFFIC, POD: COUNTED})
    assert (
        'elements = { "cp0a4d0002" . 06:cd:0a:4d:00:02 . 10.77.0.2 counter packets 7 bytes 700, '
        '"cp0a4d01ff" . 06:cd:0a:4d:01:ff . 10.77.1.255 }'
    ) in text
    assert "elements = { 10.77.0.2 counter packets 5 bytes 50, 10.77.1.255 }" in text
    assert 'elements = { "cp0a4d0002" . 3 counter packets 3 bytes 0 }' in text


def test_the_rules_are_the_same_however_many_pods() -> None:
    pool = Policy().pool
    one, many = (
        render_table(Policy(), {pool[n]: NO_TRAFFIC for n in range(2, 2 + pods)}) for pods in (1, 3000)
    )
    assert len(one.splitlines()) == len(many.splitlines())


def test_an_empty_set_has_no_list() -> None:
    assert "elements" not in render_table(BARE, {})


def test_one_pods_elements() -> None:
    assert render_admission(Policy(), POD) == (
        'add element inet codius pod_tx { "cp0a4d0002" . 06:cd:0a:4d:00:02 . 10.77.0.2 }\n'
        "add element inet codius pod_rx { 10.77.0.2 }\n"
    )
    eviction = render_eviction(Policy(), POD).splitlines()
    assert [line.split()[0] for line in eviction] == ["add"] * 3 + ["delete"] * 3


def test_a_pod_is_found_by_either_of_its_addresses() -> None:
    assert find_pod(DUAL, "10.77.1.255") == OTHER_POD
    assert find_pod(DUAL, "fd77:c0d1:5::1ff") == OTHER_POD
    with pytest.raises(ValueError):
        find_pod(Policy(), "fd77::1")


@pytest.mark.system
@pytest.mark.skipif(missing_privilege() is not None, reason=str(missing_privilege()))
@pytest.mark.parametrize("policy", [Policy(), DUAL, BARE, OTHER], ids=["default", "dual", "bare", "other"])
@pytest.mark.parametrize("pods", [0, 1, 300])
def test_nft_accepts_and_applies_the_table(policy: Policy, pods: int) -> None:
    table = render_table(policy, {policy.pool[2 + number]: COUNTED for number in range(pods)})
    newcomer = policy.pool[pods + 9]
    with Namespace() as scratch:
        judged = scratch.exec("nft", "--check", "--file", "-", stdin=table)
        assert judged.stderr == ""
        assert scratch.exec("nft", "list", "tables").stdout == "", "a dry run changed something"
        for text in (table, table, render_change(policy), render_admission(policy, newcomer, COUNTED)):
            scratch.nft(text)
        if pods:
            listing = scratch.exec("nft", "list", "set", "inet", policy.table, "pod_tx").stdout
            assert listing.count("packets 7 bytes 700") == pods + 1
        for _ in range(2):
            scratch.nft(render_eviction(policy, newcomer))
        for _ in range(2):
            scratch.nft(render_removal(policy))
        assert scratch.exec("nft", "list", "ruleset").stdout == ""


@pytest.mark.system
@pytest.mark.skipif(missing_privilege() is not None, reason=str(missing_privilege()))
def test_nft_refuses_a_broken_table() -> None:
    with Namespace() as scratch:
        broken = render_table(Policy(), {}).replace("goto pod_ingress", "goto nowhere")
        done: subprocess.CompletedProcess[str] = scratch.exec(
            "nft", "-c", "-f", "-", stdin=broken, check=False
        )
        assert done.returncode != 0
