"""The host's resolvers for its pods: what only the host itself can reach is left out."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.policy import FALLBACK_RESOLVERS
from codius_node.resolvers import MAX_RESOLVERS, find_host_resolvers, parse_resolv_conf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("nameserver 192.0.2.1\n", ["192.0.2.1"]),
        ("search example.com\nnameserver 10.0.0.53\noptions edns0", ["10.0.0.53"]),
        ("nameserver\t192.0.2.1   # the router\n", ["192.0.2.1"]),
        ("  nameserver 192.0.2.1", ["192.0.2.1"]),
        ("nameserver 192.0.2.1\nnameserver 192.0.2.1", ["192.0.2.1"]),
        ("#nameserver 192.0.2.1\n;nameserver 192.0.2.2", []),
        ("nameserver\nnameserver dns.example\nnameservers 192.0.2.1", []),
        ("nameserver 127.0.0.53\nnameserver 127.1.2.3", []),
        ("nameserver 0.0.0.0\nnameserver 224.0.0.1\nnameserver 255.255.255.255", []),
        ("".join(f"nameserver 192.0.2.{n}\n" for n in range(9)), ["192.0.2.0", "192.0.2.1", "192.0.2.2"]),
    ],
)
def test_nameservers_that_pods_reach_are_found(text: str, expected: list[str]) -> None:
    for ipv6 in (False, True):
        assert [str(address) for address in parse_resolv_conf(text, ipv6=ipv6)] == expected


def test_those_of_ipv6_are_for_pods_with_ipv6_only() -> None:
    text = "nameserver 2001:db8::1\nnameserver fe80::1%eth0\nnameserver ::1\nnameserver 192.0.2.1\n"
    assert parse_resolv_conf(text, ipv6=True) == (ip_address("2001:db8::1"), ip_address("192.0.2.1"))
    assert parse_resolv_conf(text, ipv6=False) == (ip_address("192.0.2.1"),)


@given(st.text(), st.booleans())
def test_any_text_names_few_resolvers_and_none_on_loopback(text: str, ipv6: bool) -> None:
    found = parse_resolv_conf(f"nameserver 127.0.0.1\n{text}", ipv6=ipv6)
    assert len(found) <= MAX_RESOLVERS
    assert not any(address.is_loopback for address in found)


def test_behind_a_stub_on_loopback_are_the_real_ones(tmp_path: Path) -> None:
    paths = (tmp_path / "resolv.conf", tmp_path / "upstream")
    paths[0].write_text("nameserver 127.0.0.53\n")
    paths[1].write_text("nameserver 192.0.2.1\n")
    assert find_host_resolvers(ipv6=False, paths=paths) == (ip_address("192.0.2.1"),)
    paths[0].write_text("nameserver 192.0.2.2\nnameserver 127.0.0.53\n")
    assert find_host_resolvers(ipv6=False, paths=paths) == (ip_address("192.0.2.2"),)


def test_a_host_without_any_says_whom_its_pods_ask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "resolv.conf").write_bytes(b"nameserver \xff\n")
    found = find_host_resolvers(ipv6=False, paths=(tmp_path / "resolv.conf", tmp_path / "missing"))
    assert found == FALLBACK_RESOLVERS
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "9.9.9.9, 1.1.1.1" in record.getMessage()
    assert "CODIUS_POD_RESOLVERS" in record.getMessage()
