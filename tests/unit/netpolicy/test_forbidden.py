"""Which tracked flows a policy cuts, as a table."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import pytest

from codius_netpolicy.conntrack import Flow
from codius_netpolicy.forbidden import Forbidden
from codius_netpolicy.policy import Egress, EgressMode, Policy, TransportPorts, parse_range

POD = "10.77.0.2"
POD6 = "fd77::2"
TCP, UDP, ICMP, SCTP = 6, 17, 1, 132
RESOLVER = IPv4Address("192.168.1.1")
POLICY = Policy(
    pool6=IPv6Network("fd77::/64"),
    resolvers=(RESOLVER,),
    egress=Egress(
        denied_ranges=(parse_range("203.0.113.0/24"),),
        allowed_ranges=(parse_range("10.1.0.0/16"),),
        denied_ports=(TransportPorts.parse("tcp/6000-6063"),),
    ),
)
LISTED = POLICY.with_egress(
    Egress(
        EgressMode.LISTED,
        allowed_ranges=(parse_range("203.0.113.0/24"), parse_range("2001:db8::/32")),
        allowed_ports=(TransportPorts.parse("tcp/443"),),
    )
)


def is_forbidden(policy: Policy, source: str, destination: str, protocol: int, port: int) -> bool:
    ends = ip_address(source), ip_address(destination)
    return Flow(*ends, protocol, port) in Forbidden(policy, ends[0].version)


@pytest.mark.parametrize(
    ("destination", "protocol", "port", "forbidden"),
    [
        ("198.51.100.10", TCP, 443, False),
        ("198.51.100.10", ICMP, 0, False),
        ("198.51.100.10", SCTP, 0, True),
        ("198.51.100.10", TCP, 25, True),
        ("198.51.100.10", TCP, 6063, True),
        ("198.51.100.10", UDP, 6063, False),
        ("203.0.113.9", TCP, 443, True),
        ("10.1.2.3", TCP, 443, False),  # the operator's exception
        ("10.2.2.3", TCP, 443, True),
        ("10.77.0.3", TCP, 443, True),  # another pod
        ("192.168.1.1", UDP, 53, False),  # the resolver
        ("192.168.1.1", TCP, 80, True),
        ("169.254.77.1", ICMP, 0, False),  # the gateway
        ("169.254.77.68", TCP, 7768, False),  # a service of the host
    ],
)
def test_a_flow_is_judged_as_the_ruleset_would(
    destination: str, protocol: int, port: int, *, forbidden: bool
) -> None:
    assert is_forbidden(POLICY, POD, destination, protocol, port) is forbidden


def test_only_what_is_listed_lives_on_in_listed_mode() -> None:
    assert not is_forbidden(LISTED, POD, "203.0.113.9", TCP, 443)
    assert is_forbidden(LISTED, POD, "203.0.113.9", TCP, 80)
    assert is_forbidden(LISTED, POD, "198.51.100.10", TCP, 443)
    assert not is_forbidden(LISTED, POD, str(RESOLVER), UDP, 53)


def test_the_same_holds_by_ipv6() -> None:
    assert not is_forbidden(LISTED, POD6, "2001:db8::1", TCP, 443)
    assert is_forbidden(POLICY, POD6, "fd00::1", TCP, 443)
    assert is_forbidden(POLICY, POD6, "fd77::3", TCP, 443)
    assert is_forbidden(POLICY, POD6, "64:ff9b::a01:203", TCP, 443)  # 10.1.2.3 by NAT64


def test_flows_of_others_are_nobody_elses_business() -> None:
    assert not is_forbidden(POLICY, "192.0.2.2", "10.2.3.4", TCP, 25)
    flow = Flow(IPv6Address("2001:db8::5"), IPv6Address("fd00::1"), TCP, 25)
    assert flow not in Forbidden(POLICY, 6)
