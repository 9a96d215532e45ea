"""The policy in words: what is in force is said, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv6Network, ip_address

import pytest

from codius_netpolicy.policy import Egress, EgressMode, Limits, Policy, TransportPorts, parse_range
from codius_netpolicy.traffic import Reason
from codius_node.policy import Origin, PolicyReport, Repair, Repairs, build_report
from codius_node.sentences import REFUSALS, describe

POLICY = Policy(resolvers=(ip_address("192.0.2.53"), ip_address("192.0.2.54")))
RANGE = (parse_range("203.0.113.0/24"),)
OTHER = (parse_range("203.0.113.7"),)
PORT = (TransportPorts.parse("tcp/6667"),)


def report(egress: Egress = Egress(), policy: Policy = POLICY) -> PolicyReport:  # noqa: B008 - frozen
    return build_report(policy.with_egress(egress), Origin.SETTINGS, refused={}, repairs=Repairs())


def test_the_default_policy_in_full() -> None:
    assert describe(report()) == [
        "Pods reach the internet, except:",
        "  private and reserved ranges: 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16,"
        " 172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4",
        "  ports that are abused: tcp/25, tcp/5060, udp/5060",
        "They look up names at 192.0.2.53 and 192.0.2.54, on port 53 and no other.",
        "They never reach each other, and nothing of this host but its services: 169.254.77.68 tcp/7768.",
        "Nothing reaches them but visitors by this host's front door, and answers to what they asked.",
        "Their UDP ports 19, 22, 80, 111, 137-139, 389, 520, 1900, 5093, 5353, 11211, 33434-33534 are closed"
        " even to this host.",
        "Each may have 256 connections at once, begin 200 in a second, send 100 Mbit/s and"
        " receive 100 Mbit/s.",
        "Their addresses are in 10.77.0.0/16, translated on the way out; they have no IPv6.",
        "These rules are those of the settings.",
        "Refused to the pods that run now, in packets: none.",
        "Nobody has changed these rules in the kernel since the node started.",
    ]


@pytest.mark.parametrize(
    ("egress", "said"),
    [
        (
            Egress(denied_ranges=RANGE, denied_ports=PORT),
            ["  ranges you denied: 203.0.113.0/24", "  ports you denied: tcp/6667"],
        ),
        (
            Egress(allowed_ranges=RANGE, allowed_ports=PORT),
            [
                "They reach all the same, because you allowed it:",
                "  ranges: 203.0.113.0/24",
                "  ports: tcp/6667",
            ],
        ),
        (
            Egress(allowed_ranges=RANGE),
            ["They reach all the same, because you allowed it:", "  ranges: 203.0.113.0/24"],
        ),
    ],
)
def test_the_operators_rules_are_told_beside_the_built_in_ones(egress: Egress, said: list[str]) -> None:
    plain, told = describe(report()), describe(report(egress))
    assert [line for line in told if line not in plain] == said
    assert [line for line in plain if line not in told] == []


@pytest.mark.parametrize(
    ("egress", "said"),
    [
        (Egress(mode=EgressMode.LISTED), ["Pods reach nothing on the internet: no range is allowed."]),
        (
            Egress(mode=EgressMode.LISTED, allowed_ranges=RANGE),
            [
                "Pods reach nothing on the internet but what you allowed:",
                "  ranges: 203.0.113.0/24",
                "  ports except: tcp/25, tcp/5060, udp/5060",
            ],
        ),
        (
            Egress(EgressMode.LISTED, denied_ranges=OTHER, allowed_ranges=RANGE, allowed_ports=PORT),
            [
                "Pods reach nothing on the internet but what you allowed:",
                "  ranges: 203.0.113.0/24",
                "  except in: 203.0.113.7/32",
                "  ports: tcp/6667",
            ],
        ),
    ],
)
def test_a_list_of_what_is_allowed_is_told_as_one(egress: Egress, said: list[str]) -> None:
    assert describe(report(egress))[: len(said)] == said
    assert describe(report(egress))[len(said)].startswith("They look up names")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(connections=0, new_connections=0, send_rate=0, receive_rate=0), "No pod is limited in"),
        (Limits(new_connections=0, send_rate=0, receive_rate=0), "Each may have 256 connections at once."),
        (
            Limits(connections=0, receive_rate=5_000_000),
            "Each may begin 200 in a second, send 100 Mbit/s and receive 5 Mbit/s.",
        ),
    ],
)
def test_a_limit_that_is_off_is_not_told(limits: Limits, said: str) -> None:
    told = describe(report(policy=replace(POLICY, limits=limits)))
    assert any(line.startswith(said) for line in told)


def test_with_ipv6_both_pools_are_told() -> None:
    told = describe(report(policy=replace(POLICY, pool6=IPv6Network("fd77::/112"))))
    assert "Their addresses are in 10.77.0.0/16 and fd77::/112, translated on the way out." in told


def test_every_reason_has_its_words() -> None:
    assert set(REFUSALS) == set(Reason)


def test_where_rules_come_from_what_was_refused_and_repaired_is_told() -> None:
    at = datetime(2026, 1, 1, 12, tzinfo=UTC)
    told = describe(
        replace(
            report(),
            origin=Origin.RUN_TIME,
            refused={Reason.HOST: 2, Reason.PORT: 30, Reason.RATE: 0},
            repairs=Repairs(1, Repair(at, ("the table is gone", "forwarding is off"))),
        )
    )
    assert (
        "These rules were set at run time; `codiusd admin policy reset` goes back to the settings'." in told
    )
    assert "Refused to the pods that run now, in packets: 30 to denied ports, 2 to this host." in told
    assert told[-1].startswith("Others changed these rules in the kernel once since the node started")
    assert told[-1].endswith("the table is gone; forwarding is off.")
