"""A policy is valid or is refused with the value named."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from codius_netpolicy.policy import (
    Limits,
    Policy,
    PolicyError,
    PortRange,
    Service,
    Transport,
    TransportPort,
)


def test_the_default_policy_is_valid() -> None:
    policy = Policy()
    assert policy.pool == IPv4Network("10.77.0.0/16")
    assert policy.service_addresses == (IPv4Address("169.254.77.53"), IPv4Address("169.254.77.68"))
    assert policy.pool in policy.walled_ranges


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"pool": IPv4Network("10.0.0.0/8")}, "pool's prefix length 8"),
        ({"pool": IPv4Network("10.77.0.0/31")}, "pool's prefix length 31"),
        ({"pool": IPv4Network("8.8.0.0/16")}, "pool 8.8.0.0/16"),
        ({"pool": IPv4Network("127.1.0.0/16")}, "pool 127.1.0.0/16"),
        ({"pool": IPv4Network("169.254.0.0/16")}, "pool 169.254.0.0/16"),
        ({"group": 0}, "group 0"),
        ({"group": 2**32}, "group 4294967296"),
        ({"table": "codius; flush ruleset"}, "table 'codius; flush ruleset'"),
        ({"table": ""}, "table ''"),
        ({"routing_table": 254}, "routing_table 254"),
        ({"routing_table": 32766}, "routing_table 32766"),
        ({"gateway": IPv4Address("10.77.0.1")}, "gateway: 10.77.0.1"),
        ({"gateway": IPv4Address("127.0.0.1")}, "gateway: 127.0.0.1"),
        ({"services": (Service(IPv4Address("10.77.3.4"), Transport.TCP, 80),)}, "services: 10.77.3.4"),
        ({"services": (Service(IPv4Address("169.254.77.1"), Transport.TCP, 80),)}, "services: 169.254.77.1"),
        ({"services": (Service(IPv4Address("169.254.77.9"), Transport.TCP, 0),)}, "services: port 0"),
        ({"resolvers": (IPv4Address("192.168.1.1"),)}, "resolvers: 192.168.1.1 is inside 192.168.0.0/16"),
        ({"resolvers": (IPv4Address("127.0.0.53"),)}, "resolvers: 127.0.0.53"),
        ({"denied_ranges": (IPv4Network("0.0.0.0/0"),)}, "denied_ranges: 0.0.0.0/0"),
        ({"denied_out": (TransportPort(Transport.TCP, 65536),)}, "denied_out: port 65536"),
        ({"denied_in_udp": (PortRange(30, 20),)}, "denied_in_udp: 30-20"),
        ({"denied_in_udp": (PortRange.single(0),)}, "denied_in_udp: port 0"),
    ],
)
def test_a_bad_value_is_named(values: Mapping[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as refusal:
        Policy(**values)
    assert named in str(refusal.value)


@pytest.mark.parametrize("name", ["connections", "new_connections", "new_connections_burst", "echo_requests"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"limits.{name} 0"):
        Limits(**{name: 0})


def test_a_service_of_the_host_may_be_the_resolver() -> None:
    assert Policy(resolvers=(IPv4Address("169.254.77.53"),)).resolvers


def test_policies_that_differ_have_different_fingerprints() -> None:
    assert Policy().fingerprint == Policy().fingerprint
    assert Policy().fingerprint != Policy(denied_ranges=()).fingerprint


def test_an_error_carries_its_hint() -> None:
    assert str(PolicyError("no table", "run as root")) == "no table (run as root)"
    assert str(PolicyError("no table")) == "no table"
