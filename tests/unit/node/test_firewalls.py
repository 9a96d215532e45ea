"""Which other firewall keeps pods from the internet, and what mends it."""

from __future__ import annotations

import logging
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any

import pytest

from codius_netpolicy.policy import Policy
from codius_node import firewalls
from codius_node.firewalls import LEGACY, Blocker, judge, render_fix
from codius_node.forwarding import Table, parse_iptables, parse_nft

FOUR = Policy()
DUAL = Policy(pool6=IPv6Network("fd77:c0d1:5::/64"))
DOCKER = """
-P FORWARD DROP
-N DOCKER-USER
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
"""
FROM_PODS = "-A DOCKER-USER -m devgroup --src-group 0x4d -j ACCEPT\n"
TO_PODS = "-A DOCKER-USER -m devgroup --dst-group 0x4d -j ACCEPT\n"
UFW = """
-P FORWARD DROP
-N ufw-before-forward
-N ufw-user-forward
-A FORWARD -j ufw-before-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
"""


def filter_table(text: str, family: str = "ip", name: str = "filter") -> Table:
    return parse_iptables(text, family, name)


def native_table(family: str, name: str, *, hook: str = "forward", last: str = "drop") -> Table:
    chain: Any = {"family": family, "table": name, "name": "forward", "hook": hook, "policy": last}
    (table,) = parse_nft({"nftables": [{"chain": chain}]})
    return table


def find_fix(*tables: Table, policy: Policy = FOUR) -> str:
    return render_fix(judge(tables, policy, ["eth0"]))


def test_nobody_else_is_no_blocker() -> None:
    assert judge([], DUAL) == ()
    assert render_fix([]) == ""


@pytest.mark.parametrize(
    "table",
    [
        native_table("inet", "codius"),
        native_table("ip", "filter", hook="input"),
        native_table("ip", "mine", last="accept"),
        native_table("ip6", "mine"),
        filter_table("-P FORWARD ACCEPT"),
        filter_table(DOCKER, "ip6"),
        filter_table(DOCKER + FROM_PODS + TO_PODS),
        filter_table(UFW + "-A ufw-user-forward -s 10.77.0.0/16 -j ACCEPT\n"),
        filter_table("-P FORWARD DROP\n-A FORWARD -i cp+ -o eth0 -j ACCEPT\n-A FORWARD -i eth0 -j ACCEPT"),
    ],
)
def test_who_lets_pods_through_is_no_blocker(table: Table) -> None:
    assert judge([table], FOUR, ["eth0"]) == ()


@pytest.mark.parametrize("mended", ["", FROM_PODS, TO_PODS])
def test_docker_is_told_both_ways_until_both_are_open(mended: str) -> None:
    (blocker,) = judge([filter_table(DOCKER + mended)], FOUR)
    assert blocker.message.startswith("docker (table ip filter) drops what is forwarded")
    assert render_fix([blocker]) == (
        "iptables -I DOCKER-USER -m devgroup --src-group 77 -j ACCEPT;"
        " iptables -I DOCKER-USER -m devgroup --dst-group 77 -j ACCEPT  # again after each boot"
    )


def test_a_fix_names_the_group_and_the_pools_of_the_policy() -> None:
    other = Policy(group=5, pool6=DUAL.pool6)
    assert "--src-group 5 " in find_fix(filter_table(DOCKER), policy=other)
    assert find_fix(filter_table(UFW), filter_table(UFW, "ip6"), policy=other) == (
        "ufw route prepend allow from 10.77.0.0/16; ufw route prepend allow from fd77:c0d1:5::/64"
    )


@pytest.mark.parametrize(
    ("table", "name", "fix"),
    [
        (filter_table("-P FORWARD DROP"), "iptables", "iptables -I FORWARD -m devgroup --src-group 77 "),
        (filter_table(DOCKER, name=LEGACY), "docker", "iptables-legacy -I DOCKER-USER -m devgroup "),
        (filter_table("-P FORWARD DROP", "ip6"), "ip6tables", "ip6tables -I FORWARD -m devgroup "),
        (filter_table("-P FORWARD DROP", "ip6", LEGACY), "ip6tables-legacy", "ip6tables-legacy -I FORWARD "),
        (filter_table(UFW + DOCKER), "ufw", "ufw route prepend allow from "),
        (filter_table(UFW, name=LEGACY), "ufw", "ufw route prepend allow from 10.77.0.0/16"),
        (native_table("inet", "mine"), "nftables", "nft insert rule inet mine forward iifgroup 77 accept; "),
        (native_table("ip", "filter"), "nftables", "nft insert rule ip filter forward iifgroup 77 accept; "),
    ],
)
def test_each_firewall_is_mended_by_its_own_tool(table: Table, name: str, fix: str) -> None:
    blockers = judge([table], DUAL)
    assert [blocker.name for blocker in blockers] == [name]
    assert render_fix(blockers).startswith(fix)


FIREWALLD: list[Any] = [
    {"chain": {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "hook": "forward",
               "policy": "accept"}},
    {"rule": {"family": "inet", "table": "firewalld", "chain": "filter_FORWARD", "expr": [
        {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}},
        {"accept": None}]}},
    {"rule": {"family": "inet", "table": "firewalld", "chain": "filter_FORWARD", "expr": [
        {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                   "right": {"prefix": {"addr": "10.77.0.0", "len": 16}}}},
        {"accept": None}]}},
    {"rule": {"family": "inet", "table": "firewalld", "chain": "filter_FORWARD", "expr": [
        {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]}},
]  # fmt: skip


def test_firewalld_rejects_by_its_last_rule_and_is_told_of_the_pool_it_does_not_know() -> None:
    mended = parse_nft({"nftables": FIREWALLD})
    strict = parse_nft({"nftables": [entry for entry in FIREWALLD if "saddr" not in str(entry)]})
    assert find_fix(*mended) == ""
    add = "firewall-cmd --permanent --zone=trusted --add-source="
    assert find_fix(*strict) == f"{add}10.77.0.0/16; firewall-cmd --reload"
    assert find_fix(*mended, policy=DUAL) == f"{add}fd77:c0d1:5::/64; firewall-cmd --reload"
    both = f"{add}10.77.0.0/16; {add}fd77:c0d1:5::/64; firewall-cmd --reload"
    assert find_fix(*strict, policy=DUAL) == both


def test_several_firewalls_are_mended_in_one_line_each_command_once() -> None:
    docker, other = Blocker("docker", "a", ("one", "two"), "again"), Blocker("ufw", "b", ("two", "three"))
    assert render_fix([docker, other]) == "one; two; three  # again"
    old = "-P FORWARD ACCEPT\n-N FORWARD_ZONES\n-A FORWARD -j FORWARD_ZONES\n-A FORWARD -j REJECT\n"
    add = "firewall-cmd --permanent --zone=trusted --add-source="
    assert find_fix(filter_table(old), filter_table(old, "ip6"), policy=DUAL) == (
        f"{add}10.77.0.0/16; {add}fd77:c0d1:5::/64; firewall-cmd --reload"
    )


def test_uplinks_are_the_links_of_the_default_routes(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/route").write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "wan0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "lan0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "half\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n"
        "short\n"
    )
    assert firewalls._read_uplinks(tmp_path) == {"wan0"}
    assert firewalls._read_uplinks(tmp_path / "nowhere") == frozenset()


def test_a_start_reports_who_blocks_and_survives_not_knowing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(firewalls, "find_blockers", lambda _: (Blocker("ufw", "ip filter", ("mend it",)),))
    with caplog.at_level(logging.WARNING):
        firewalls.report_blockers(FOUR)
    assert "ufw (table ip filter) drops" in caplog.text
    assert "the fix: mend it" in caplog.text
    monkeypatch.undo()
    caplog.clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    firewalls.report_blockers(FOUR)
    assert "could not be looked at" in caplog.text
    (tmp_path / "nft").write_text("#!/bin/sh\necho 'not permitted' >&2\nexit 1\n")
    (tmp_path / "nft").chmod(0o755)
    firewalls.report_blockers(FOUR)
    assert "nft: not permitted" in caplog.text
