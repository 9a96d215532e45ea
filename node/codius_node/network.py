"""The pods' network: codius_netpolicy, its errors turned into the node's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address

from codius_netpolicy.network import PodNetwork
from codius_netpolicy.policy import Egress, Policy, PolicyError
from codius_netpolicy.probes import Result
from codius_netpolicy.traffic import Reason, Traffic
from codius_node.errors import NetworkError


class KernelNetwork:
    """Links, routes and rules in the network namespace of this process."""

    def __init__(self, policy: Policy) -> None:
        self._network = PodNetwork(policy)

    @property
    def policy(self) -> Policy:
        """The one in force."""
        return self._network.policy

    async def start(self, pods: Mapping[IPv4Address, Traffic]) -> frozenset[IPv4Address]:
        """Walls first; the addresses whose links outlived the daemon. NetworkError, here and below."""
        with _reported():
            return await self._network.start(pods)

    async def attach(self, address: IPv4Address, netns_fd: int, traffic: Traffic) -> None:
        with _reported():
            await self._network.attach(address, netns_fd, traffic)

    async def detach(self, address: IPv4Address) -> Traffic | None:
        with _reported():
            return await self._network.detach(address)

    async def links(self) -> frozenset[IPv4Address]:
        with _reported():
            return await self._network.links()

    async def traffic(self) -> Mapping[IPv4Address, Traffic]:
        with _reported():
            return await self._network.traffic()

    async def counters(self) -> Mapping[Reason, int]:
        with _reported():
            return await self._network.counters()

    async def change(self, egress: Egress) -> int:
        with _reported():
            return await self._network.change(egress)

    async def check(self) -> tuple[str, ...]:
        with _reported():
            return await self._network.check()

    async def repair(self) -> None:
        with _reported():
            await self._network.repair()

    async def probe(self, netns_fd: int, others: Sequence[IPv4Address]) -> tuple[Result, ...]:
        with _reported():
            return await self._network.probe(netns_fd, others)

    async def aclose(self) -> None:
        """Pods keep their network."""
        await self._network.aclose()


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except PolicyError as error:
        raise NetworkError(error.message, hint=error.hint) from error
