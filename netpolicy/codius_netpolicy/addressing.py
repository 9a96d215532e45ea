"""From a pod's address to the names and hardware addresses of its link, and back."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

LINK_PREFIX: Final = "cp"
LINK_NAME: Final = re.compile(r"cp([0-9a-f]{8})")
POD_LINK: Final = "eth0"
"""The link's name inside the pod."""

HOST_MAC_PREFIX: Final = b"\x02\xcd"
POD_MAC_PREFIX: Final = b"\x06\xcd"
"""Locally administered unicast addresses (IEEE 802c: x2, x6, xA, xE); the pod's address fills the rest."""


def link_name(address: IPv4Address) -> str:
    """The host's end of the pod's link: 10 characters, of the 15 the kernel allows."""
    return f"{LINK_PREFIX}{int(address):08x}"


def find_address(link: str) -> IPv4Address | None:
    """The pod's address when `link` is a name of ours."""
    match = LINK_NAME.fullmatch(link)
    return IPv4Address(int(match[1], 16)) if match else None


def address6(address: IPv4Address, pool: IPv4Network, pool6: IPv6Network) -> IPv6Address:
    """The pod's IPv6 address: as far into its pool as the IPv4 one into its own."""
    return pool6.network_address + (int(address) - int(pool.network_address))


def host_mac(address: IPv4Address) -> str:
    """Fixed, so that the pod's neighbour entry for the gateway never has to be learned."""
    return _mac(HOST_MAC_PREFIX, address)


def pod_mac(address: IPv4Address) -> str:
    """Fixed, so that the anti-spoof element exists before the link does."""
    return _mac(POD_MAC_PREFIX, address)


def _mac(prefix: bytes, address: IPv4Address) -> str:
    return (prefix + address.packed).hex(":")
