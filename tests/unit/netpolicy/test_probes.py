"""Which probes a policy asks for; what becomes of them is for the system tests."""

from ipaddress import IPv4Address, IPv6Network

from codius_netpolicy.policy import Egress, Policy, parse_range
from codius_netpolicy.probes import MAX_OTHERS, Verdict, plan

OTHERS = [IPv4Address(f"10.77.0.{number}") for number in range(3, 9)]
HOST = [IPv4Address("192.0.2.2"), IPv4Address("169.254.77.68")]


def names(policy: Policy) -> dict[str, Verdict]:
    return {probe.name: probe.expected for probe in plan(policy, OTHERS, HOST)}


def test_what_must_work_and_what_must_not_are_both_tried() -> None:
    found = names(Policy(resolvers=(IPv4Address("9.9.9.9"),)))
    assert found["the gateway, by ping"] is Verdict.REACHED
    assert found["the resolver 9.9.9.9, by udp"] is Verdict.REACHED
    assert found["the pod 10.77.0.3, by tcp"] is Verdict.STOPPED
    assert found["the host at 192.0.2.2"] is Verdict.STOPPED
    assert found["cloud metadata"] is Verdict.STOPPED
    assert found["the range 192.168.0.0/16"] is Verdict.STOPPED
    assert found["mail to anybody"] is Verdict.STOPPED
    assert found["IPv6"] is Verdict.STOPPED
    assert "the host at 169.254.77.68" not in found, "a service of the host is open on purpose"
    assert "the range 127.0.0.0/8" not in found, "a pod's loopback is its own"


def test_what_the_operator_allows_is_not_expected_to_be_stopped() -> None:
    allowed = Egress(allowed_ranges=(parse_range("192.168.0.0/16"),))
    assert "the range 192.168.0.0/16" not in names(Policy(egress=allowed))


def test_a_private_resolver_opens_nothing_but_dns() -> None:
    found = names(Policy(resolvers=(IPv4Address("192.168.1.1"),)))
    assert found["another port of the resolver 192.168.1.1"] is Verdict.STOPPED


def test_pods_with_ipv6_are_not_expected_to_lack_it() -> None:
    assert "IPv6" not in names(Policy(pool6=IPv6Network("fd77::/64")))


def test_only_a_few_other_pods_are_tried() -> None:
    assert sum(name.startswith("the pod ") for name in names(Policy())) == 2 * MAX_OTHERS
