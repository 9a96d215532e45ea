"""Addresses of pods: handed out in turn, refused when all are taken."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from codius_node.addresses import AddressPool
from codius_node.errors import HostFullError

POOL = IPv4Network("10.0.0.0/28")


def test_an_address_is_not_soon_used_again() -> None:
    pool = AddressPool(POOL)
    handed_out = [pool.next_free(set()) for _ in range(14)]
    assert len(set(handed_out)) == 14
    assert pool.next_free(set()) == handed_out[0]


def test_a_full_pool_says_so() -> None:
    with pytest.raises(HostFullError, match="all 14 pod addresses"):
        AddressPool(POOL).next_free(set(POOL.hosts()))


def test_a_restarted_node_goes_on_after_the_newest_pod() -> None:
    pool = AddressPool(POOL)
    pool.go_on_after(IPv4Address("10.0.0.14"))
    assert pool.next_free(set()) == IPv4Address("10.0.0.1")
