"""A policy is valid or is refused with the value named."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any

import pytest

from codius_netpolicy.policy import (
    MAX_RULES,
    Egress,
    EgressMode,
    Limits,
    Policy,
    PolicyError,
    PortRange,
    Service,
    Transport,
    TransportPorts,
    parse_range,
)

POOL6 = IPv6Network("fd77:c0d1:5::/64")
PRIVATE = IPv4Network("10.1.0.0/16")


def number(address: str) -> int:
    return int(IPv4Address(address))


def test_the_default_policy_is_valid() -> None:
    policy = Policy()
    assert policy.pool == IPv4Network("10.77.0.0/16")
    assert policy.service_addresses == (IPv4Address("169.254.77.68"),)
    [wall] = policy.walls()
    assert wall.networks[policy.pool]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"pool": IPv4Network("10.0.0.0/8")}, "pool's prefix length 8"),
        ({"pool": IPv4Network("10.77.0.0/31")}, "pool's prefix length 31"),
        ({"pool": IPv4Network("8.8.0.0/16")}, "pool 8.8.0.0/16"),
        ({"pool": IPv4Network("127.1.0.0/16")}, "pool 127.1.0.0/16"),
        ({"pool": IPv4Network("169.254.0.0/16")}, "pool 169.254.0.0/16"),
        ({"pool6": IPv6Network("2001:db8::/64")}, "pool6 2001:db8::/64"),
        ({"pool6": IPv6Network("fd77::/120")}, "pool6's prefix length 120"),
        ({"group": 0}, "group 0"),
        ({"group": 2**32}, "group 4294967296"),
        ({"table": "codius; flush ruleset"}, "table 'codius; flush ruleset'"),
        ({"table": ""}, "table ''"),
        ({"routing_table": 254}, "routing_table 254"),
        ({"routing_table": 1}, "routing_table 1"),
        ({"routing_table": 32766}, "routing_table 32766"),
        ({"gateway": IPv4Address("10.77.0.1")}, "gateway: 10.77.0.1"),
        ({"gateway": IPv4Address("127.0.0.1")}, "gateway: 127.0.0.1"),
        ({"services": (Service(IPv4Address("10.77.3.4"), Transport.TCP, 80),)}, "services: 10.77.3.4"),
        ({"services": (Service(IPv4Address("169.254.77.1"), Transport.TCP, 80),)}, "services: 169.254.77.1"),
        ({"services": (Service(IPv4Address("169.254.77.9"), Transport.TCP, 0),)}, "services: port 0"),
        ({"resolvers": (IPv4Address("127.0.0.53"),)}, "resolvers: 127.0.0.53"),
        ({"resolvers": (IPv4Address("10.77.0.9"),)}, "resolvers: 10.77.0.9"),
        ({"denied_ranges": (IPv4Network("0.0.0.0/0"),)}, "denied_ranges: 0.0.0.0/0"),
        ({"denied_in_udp": (PortRange(30, 20),)}, "denied_in_udp: 30-20"),
        ({"denied_in_udp": (PortRange.single(0),)}, "denied_in_udp: port 0"),
        ({"egress": Egress(allowed_ranges=(IPv4Network("10.77.0.5/32"),))}, "allowed_ranges: 10.77.0.5/32"),
        ({"egress": Egress(allowed_ranges=(IPv4Network("10.77.0.0/16"),))}, "allowed_ranges: 10.77.0.0/16"),
    ],
)
def test_a_bad_value_is_named(values: Mapping[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as refusal:
        Policy(**values)
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"connections": -1}, "limits.connections -1"),
        ({"new_connections": 1_000_001}, "limits.new_connections 1000001"),
        ({"new_connections_burst": 0}, "limits.new_connections_burst 0"),
        ({"echo_requests": 0}, "limits.echo_requests 0"),
        ({"send_rate": 1000}, "limits.send_rate 1000"),
        ({"receive_rate": 10**12}, "limits.receive_rate 1000000000000"),
    ],
)
def test_a_bad_limit_is_named(values: Mapping[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Limits(**values)


def test_limits_can_be_switched_off() -> None:
    assert Limits(connections=0, new_connections=0, send_rate=0, receive_rate=0)


# ---- the operator's rules


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("25", "'25'"),
        ("tcp/0", "port 0"),
        ("tcp/65536", "port 65536"),
        ("tcp/30-20", "runs backwards"),
        ("sctp/5", "'sctp/5'"),
        ("tcp/1-2-3", "'tcp/1-2-3'"),
        ("tcp/+5", "tcp"),
    ],
)
def test_what_is_no_port_is_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TransportPorts.parse(text)


@pytest.mark.parametrize("text", ["tcp/25", "udp/6000-6063"])
def test_a_port_is_written_as_it_is_read(text: str) -> None:
    assert str(TransportPorts.parse(text)) == text


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "example.com", "", "::1/129"])
def test_what_is_no_range_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=repr(text)):
        parse_range(text)


def test_rules_survive_the_way_to_json_and_back() -> None:
    egress = Egress(
        EgressMode.LISTED,
        denied_ranges=(PRIVATE,),
        allowed_ranges=(parse_range("2001:db8::/32"),),
        denied_ports=(TransportPorts.parse("tcp/1-99"),),
        allowed_ports=(TransportPorts.parse("udp/443"),),
    )
    assert Egress.from_document(egress.as_document()) == egress
    assert Egress.from_document({}) == Egress()


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"mode": "closed"}, "'closed'"),
        ({"mode": []}, "mode"),
        ({"deniedRanges": "10.0.0.0/8"}, "deniedRanges"),
        ({"deniedRanges": [1]}, "deniedRanges"),
        ({"allowedRanges": ["10.0.0.1/8"]}, "10.0.0.1/8"),
        ({"deniedPorts": ["25"]}, "'25'"),
        ({"rules": []}, "'rules'"),
        ({"deniedRanges": ["0.0.0.0/0"]}, "0.0.0.0/0"),
        ({"deniedPorts": ["tcp/25"] * (MAX_RULES + 1)}, "257 entries"),
    ],
)
def test_rules_that_cannot_be_used_are_named(document: Mapping[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Egress.from_document(document)


def test_the_more_specific_range_wins_and_the_denied_one_on_a_tie() -> None:
    egress = Egress(
        allowed_ranges=(PRIVATE, IPv4Network("192.168.0.0/16"), IPv4Network("203.0.113.0/24")),
        denied_ranges=(IPv4Network("10.1.2.0/24"), IPv4Network("203.0.113.0/24")),
    )
    denied = Policy(egress=egress).denied_addresses(4)
    for address, expected in {
        "10.0.0.1": True,
        "10.1.0.1": False,
        "10.1.2.1": True,
        "192.168.3.4": False,
        "203.0.113.4": True,
        "198.51.100.1": False,
    }.items():
        assert (number(address) in denied) is expected, address


def test_only_what_is_listed_is_open_in_listed_mode() -> None:
    egress = Egress(EgressMode.LISTED, allowed_ranges=(IPv4Network("203.0.113.0/24"),))
    policy = Policy(egress=egress)
    denied = policy.denied_addresses(4)
    assert number("203.0.113.4") not in denied
    assert number("198.51.100.1") in denied
    assert 443 not in policy.denied_port_numbers(Transport.TCP)
    assert 25 in policy.denied_port_numbers(Transport.TCP)


def test_listed_ports_close_all_others_and_a_denied_one_wins() -> None:
    ports = tuple(map(TransportPorts.parse, ("tcp/25", "tcp/443-445")))
    egress = Egress(EgressMode.LISTED, allowed_ports=ports, denied_ports=(TransportPorts.parse("tcp/444"),))
    policy = Policy(egress=egress)
    open_ports = {p for p in range(65536) if p not in policy.denied_port_numbers(Transport.TCP)}
    assert open_ports == {25, 443, 445}
    assert all(p in policy.denied_port_numbers(Transport.UDP) for p in (0, 53, 65535))


def test_a_range_around_the_pool_does_not_open_the_pool() -> None:
    [wall] = Policy(egress=Egress(allowed_ranges=(IPv4Network("10.0.0.0/8"),))).walls()
    assert wall.networks[IPv4Network("10.77.0.0/16")]
    assert not wall.networks[IPv4Network("10.0.0.0/8")]


def test_a_resolver_is_open_wherever_it_is_and_for_names_only() -> None:
    policy = Policy(resolvers=(IPv4Address("192.168.1.1"),))
    assert Service(IPv4Address("192.168.1.1"), Transport.UDP, 53) in policy.openings
    assert number("192.168.1.1") in policy.denied_addresses(4)
    [wall] = policy.walls()
    assert wall.resolvers == (IPv4Address("192.168.1.1"),)


def test_there_is_a_wall_for_each_ip_version_of_the_pods() -> None:
    assert [wall.pool for wall in Policy(pool6=POOL6).walls()] == [IPv4Network("10.77.0.0/16"), POOL6]


def test_an_error_carries_its_hint() -> None:
    assert str(PolicyError("no table", "run as root")) == "no table (run as root)"
    assert str(PolicyError("no table")) == "no table"
