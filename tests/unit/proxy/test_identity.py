"""Whom pods are told about: never what a stranger claims, always what a trusted proxy says."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_proxy.fields import Field, Kind
from codius_proxy.identity import MAX_HOPS, Identity, Trust, build_fields, normalize
from codius_proxy.request import parse_request

TRUST = Trust([ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48")])
PEER = TRUST.identify("10.0.0.1", "http")


def claims(*lines: str) -> tuple[Field, ...]:
    block = "\r\n".join(["GET / HTTP/1.1", "Host: a.example", *lines]).encode()
    return parse_request(block).claims


@pytest.mark.parametrize(
    ("peer", "address", "trusted"),
    [
        ("192.0.2.1", "192.0.2.1", False),
        ("10.255.0.1", "10.255.0.1", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:192.0.2.1", "192.0.2.1", False),
        ("2001:db8:1::9", "2001:db8:1::9", True),
        ("2001:db8:2::9", "2001:db8:2::9", False),
        ("fe80::1%eth0", "fe80::1", False),
        ("", "unknown", False),
    ],
)
def test_a_peer_is_known_by_its_address(peer: str, address: str, trusted: bool) -> None:
    assert TRUST.identify(peer, "https") == Identity(address, "https", trusted)


def test_without_a_list_nobody_is_trusted() -> None:
    assert not Trust([]).identify("127.0.0.1", "http").trusted


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((), ("10.0.0.1", "http")),
        (("X-Forwarded-For: 192.0.2.1",), ("192.0.2.1", "http")),
        (("x-forwarded-for:192.0.2.1",), ("192.0.2.1", "http")),
        (("X-Forwarded-For: 192.0.2.1:4711",), ("192.0.2.1", "http")),
        (("X-Forwarded-For: [2001:db8::1]:4711",), ("2001:db8::1", "http")),
        (("X-Forwarded-For: 2001:db8::1",), ("2001:db8::1", "http")),
        # what the client forged stands on the left
        (("X-Forwarded-For: 203.0.113.9, 192.0.2.1",), ("192.0.2.1", "http")),
        (("X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 192.0.2.1"), ("192.0.2.1", "http")),
        # a second trusted proxy in between
        (("X-Forwarded-For: 203.0.113.9, 192.0.2.1, 10.1.1.1",), ("192.0.2.1", "http")),
        (("X-Forwarded-For: 10.2.2.2, 10.1.1.1",), ("10.2.2.2", "http")),
        (("X-Forwarded-For: 192.0.2.1, garbage",), ("10.0.0.1", "http")),
        (("X-Forwarded-For: 192.0.2.1, garbage, 10.1.1.1",), ("10.1.1.1", "http")),
        (("X-Forwarded-For: ",), ("10.0.0.1", "http")),
        (("X-Forwarded-For: unknown",), ("10.0.0.1", "http")),
        (("X-Forwarded-Proto: https",), ("10.0.0.1", "https")),
        (("X-Forwarded-Proto: HTTPS",), ("10.0.0.1", "https")),
        (("X-Forwarded-Proto: http, https",), ("10.0.0.1", "https")),
        (("X-Forwarded-Proto: gopher",), ("10.0.0.1", "http")),
        # passed on by a proxy that does not know it: the client's own words
        (("Forwarded: for=203.0.113.9;proto=https",), ("10.0.0.1", "http")),
        (("X-Forwarded-Fo: 192.0.2.1", "X_Forwarded_For: 192.0.2.1"), ("10.0.0.1", "http")),
        (("A: b X-Forwarded-For: 192.0.2.1",), ("10.0.0.1", "http")),
    ],
)
def test_a_trusted_proxy_is_believed_about_its_client_only(
    fields: tuple[str, ...], expected: tuple[str, str]
) -> None:
    assert TRUST.believe(PEER, claims(*fields)) == Identity(*expected)


@given(st.lists(st.ip_addresses(), max_size=2 * MAX_HOPS), st.ip_addresses())
def test_whatever_stands_left_of_the_client_changes_nothing(forged: list[object], client: object) -> None:
    address = normalize(str(client))
    assert address is not None
    believed = TRUST.believe(PEER, claims("X-Forwarded-For: " + ", ".join(map(str, [*forged, client]))))
    if not TRUST.covers(address):
        assert believed.address == str(address)


@given(
    st.lists(st.tuples(st.sampled_from([b"x-forwarded-for", b"x-forwarded-proto"]), st.binary(max_size=60)))
)
def test_any_claims_give_an_address_literal_and_a_scheme(noise: list[tuple[bytes, bytes]]) -> None:
    believed = TRUST.believe(PEER, [Field(Kind.CLAIM, name, value) for name, value in noise])
    assert str(ip_address(believed.address)) == believed.address
    assert believed.scheme in {"http", "https"}


@pytest.mark.parametrize(
    ("address", "node"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", '"[2001:db8::1]"'), ("unknown", "unknown")],
)
def test_a_pod_is_told_in_both_dialects(address: str, node: str) -> None:
    lines = build_fields(Identity(address, "https").render(), b"a.example:8443").decode().split("\r\n")
    assert lines == [
        f"X-Forwarded-For: {address}",
        "X-Forwarded-Proto: https",
        f'Forwarded: for={node};proto=https;host="a.example:8443"',  # RFC 7239 section 4
        "X-Forwarded-Host: a.example:8443",
        "",
    ]
