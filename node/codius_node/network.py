"""The pods' network: codius_netpolicy, its errors turned into the node's own."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network

from codius_netpolicy import PodNetwork, Policy
from codius_netpolicy.policy import PolicyError
from codius_node.errors import NetworkError


class KernelNetwork:
    """Links, routes and rules in the network namespace of this process."""

    def __init__(self, pool: IPv4Network) -> None:
        self._network = PodNetwork(Policy(pool=pool))

    async def start(self, addresses: Collection[IPv4Address]) -> frozenset[IPv4Address]:
        """Walls first; the addresses whose links outlived the daemon. NetworkError, here and below."""
        with _reported():
            return await self._network.start(addresses)

    async def attach(self, address: IPv4Address, netns_fd: int) -> None:
        with _reported():
            await self._network.attach(address, netns_fd)

    async def detach(self, address: IPv4Address) -> None:
        with _reported():
            await self._network.detach(address)

    async def links(self) -> frozenset[IPv4Address]:
        with _reported():
            return await self._network.links()

    async def aclose(self) -> None:
        """Pods keep their network."""
        await self._network.aclose()


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except PolicyError as error:
        raise NetworkError(error.message, hint=error.hint) from error
