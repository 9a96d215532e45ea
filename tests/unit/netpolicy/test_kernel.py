"""What is read from the kernel as text."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_netpolicy.kernel import parse_local_addresses, parse_pod_routes

HEADER = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def row(link: str, destination: str, mask: str = "FFFFFFFF") -> str:
    return f"{link}\t{destination}\t00000000\t0005\t0\t0\t0\t{mask}\t0\t0\t0\n"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((), []),
        ((row("cp0a4d0002", "02004D0A"),), ["10.77.0.2"]),
        ((row("cp0a4d0002", "02004D0A"), row("cp0a4d01ff", "FF014D0A")), ["10.77.0.2", "10.77.1.255"]),
        ((row("cp0a4d0002", "03004D0A"),), []),  # another pod's address on this link
        ((row("wan0", "02004D0A"),), []),
        ((row("cp0a4d0002", "02004D0A", mask="00FFFFFF"),), []),
    ],
)
def test_only_an_address_on_its_own_link_is_a_pods_route(rows: tuple[str, ...], expected: list[str]) -> None:
    assert parse_pod_routes(HEADER + "".join(rows)) == frozenset(map(IPv4Address, expected))


@given(st.text())
def test_a_strange_routing_table_is_no_pods_route(text: str) -> None:
    assert parse_pod_routes(HEADER + text) == frozenset()


TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.2
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
Local:
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 192.0.2.2
        /32 host LOCAL
     |-- 169.254.77.1
        /32 host LOCAL
"""


def test_the_hosts_own_addresses_are_found_once_each() -> None:
    assert parse_local_addresses(TRIE) == (IPv4Address("169.254.77.1"), IPv4Address("192.0.2.2"))


@given(st.text())
def test_a_strange_trie_is_no_error(text: str) -> None:
    parse_local_addresses(text)
