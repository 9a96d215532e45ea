"""What is read from the kernel as text."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_netpolicy.kernel import parse_pod_routes

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
