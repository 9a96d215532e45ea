"""Which addresses a stranger may send us to, and which names are asked at all."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.outbound import Outbound, is_public
from codius_node.uri import parse_public_uri

PRIVATE = {
    "this network": "0.0.0.0",
    "private, ten": "10.1.2.3",
    "private, 172": "172.31.255.254",
    "private, 192": "192.168.0.1",
    "carrier-grade NAT": "100.64.0.1",
    "loopback": "127.0.0.1",
    "loopback, another": "127.255.255.254",
    "link-local": "169.254.1.1",
    "metadata": "169.254.169.254",
    "metadata, in a range of carriers": "100.100.100.200",
    "metadata, at a public address": "168.63.129.16",
    "protocol assignments": "192.0.0.1",
    "documentation": "192.0.2.1",
    "documentation, second": "198.51.100.1",
    "documentation, third": "203.0.113.1",
    "benchmarks": "198.19.0.1",
    "6to4 relay": "192.88.99.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "unspecified, six": "::",
    "loopback, six": "::1",
    "mapped private": "::ffff:10.0.0.1",
    "translated private": "::ffff:0:10.0.0.1",
    "NAT64 of private": "64:ff9b::10.0.0.1",
    "6to4 of private": "2002:a00:1::1",
    "this network, another": "0.1.2.3",
    "carrier-grade NAT, the end": "100.127.255.255",
    "mapped loopback": "::ffff:127.0.0.1",
    "mapped metadata": "::ffff:a9fe:a9fe",
    "mapped, public": "::ffff:9.9.9.9",
    "compatible": "::127.0.0.1",
    "NAT64 of metadata": "64:ff9b::a9fe:a9fe",
    "NAT64, local": "64:ff9b:1::1",
    "discard": "100::1",
    "Teredo": "2001:0:1::1",
    "ORCHID": "2001:20::1",
    "documentation, six": "2001:db8::1",
    "documentation, new": "3fff::1",
    "6to4 of loopback": "2002:7f00:1::1",
    "unique local": "fd00::1",
    "metadata, six": "fd00:ec2::254",
    "link-local, six": "fe80::1",
    "link-local with a zone": "fe80::1%eth0",
    "site-local": "fec0::1",
    "multicast, six": "ff02::1",
    "segment routing": "5f00::1",
}


@pytest.mark.parametrize("address", PRIVATE.values(), ids=PRIVATE.keys())
def test_nobody_sends_us_into_a_network_of_our_own(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["9.9.9.9", "172.32.0.1", "100.128.0.1", "2620:fe::fe", "2a00:1450::1"])
def test_the_public_internet_may_be_asked(address: str) -> None:
    assert is_public(ip_address(address))


@given(address=st.ip_addresses())
def test_whatever_the_standard_library_knows_to_be_private_is_refused(
    address: IPv4Address | IPv6Address,
) -> None:
    special = (
        address.is_private,
        address.is_loopback,
        address.is_link_local,
        address.is_multicast,
        address.is_reserved,
        address.is_unspecified,
    )
    assert not (any(special) and is_public(address))


@pytest.mark.parametrize(
    ("uri", "strangers", "development"),
    [
        ("https://a.example", True, True),
        ("https://a.example:8443", True, True),
        ("http://a.example", False, False),
        ("http://localhost:3000", False, True),
        ("http://codius.localhost:3000", False, True),
        ("https://codius.localhost", False, True),
        ("http://localhost.example", False, False),
        ("http://notlocalhost", False, False),
    ],
)
async def test_hosts_are_asked_by_https_and_this_machine_only_in_development(
    uri: str, strangers: bool, development: bool
) -> None:
    target = parse_public_uri(uri)
    assert Outbound().accepts(target) is strangers
    assert Outbound(development=True).accepts(target) is development
