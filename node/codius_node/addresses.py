"""Which address the next pod gets."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network

from codius_node.errors import HostFullError


class AddressPool:
    """Hands out pod addresses round-robin, so that one is not soon used again by another pod."""

    def __init__(self, network: IPv4Network) -> None:
        self._first = int(network.network_address) + 1
        self._count = network.num_addresses - 2
        self._cursor = 0

    def go_on_after(self, address: IPv4Address) -> None:
        """As if it had just been handed out."""
        self._cursor = (int(address) - self._first + 1) % self._count

    def next_free(self, taken: Collection[IPv4Address]) -> IPv4Address:
        """HostFullError when every address is taken."""
        for _ in range(self._count):
            candidate = IPv4Address(self._first + self._cursor)
            self._cursor = (self._cursor + 1) % self._count
            if candidate not in taken:
                return candidate
        raise HostFullError(
            f"all {self._count} pod addresses of this host are in use", hint="Try another host: GET /peers."
        )
