"""What pods take and manifests have had: the kernel's counters, the ledger and the stops, put together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address

from codius_netpolicy.traffic import NO_TRAFFIC, Traffic
from codius_node.doors import ContainerEngine, Network
from codius_node.errors import EngineError, NetworkError, NotFoundError
from codius_node.model import Consumption, ManifestHash, Pod, PodState
from codius_node.store import LedgerEntry, Store
from codius_node.usage import Account, Usage

logger = logging.getLogger(__name__)


class Meter:
    """Reads what is counted; keeps the kernel's counters from time to time."""

    def __init__(
        self,
        *,
        store: Store,
        network: Network,
        containers: ContainerEngine,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._network = network
        self._containers = containers
        self._clock = clock
        self._banked: Mapping[ManifestHash, Traffic] = {}

    async def traffic(self) -> Mapping[ManifestHash, Traffic]:
        """Of every pod: the kernel's counters, and where it has none (or cannot be asked) the kept ones."""
        pods = await self._store.pods()
        return await self._read_traffic([pod.hash for pod in pods], pods)

    async def bank(self) -> None:
        """Keep the counters that have changed since the last time, so that a crash loses little of them."""
        # Of pods that were there before the kernel was asked and still are: nobody else had their address
        # meanwhile. Pending ones are left out: a stranger's failed uploads must not fill the store.
        before = {_life(pod) for pod in await self._store.pods(PodState.RUNNING)}
        live = await self._network.traffic()
        read = {
            pod.hash: live[pod.address]
            for pod in await self._store.pods()
            if pod.address in live and _life(pod) in before
        }
        changed = {hash: t for hash, t in read.items() if t != self._banked.get(hash, NO_TRAFFIC)}
        if changed:
            await self._store.save_traffic(changed, now=self._clock())
        self._banked = read

    async def usages(self, limit: int, before: int) -> tuple[list[Usage], int | None]:
        """Manifests by their last entry in the ledger below the id `before`, newest first, also those whose
        pods are gone; and what to give as `before` for those after them, None at the end.
        """
        found = await self._store.latest_manifests(limit + 1, before)
        page = found[:limit]
        usages = await self._read([hash for hash, _ in page])
        return usages, page[-1][1] if len(found) > limit else None

    async def usage(self, hash: ManifestHash) -> Usage:
        """Of one manifest; NotFoundError when nothing was ever entered for it."""
        [usage] = await self._read([hash])
        if not usage.account.entries and usage.pod is None:
            raise NotFoundError(
                f"no pod of this hash was ever paid for here. id={hash}",
                hint="`codiusd admin usage` lists those that were.",
            )
        return replace(usage, consumption=await self._read_consumption(usage))

    async def entries(
        self, hash: ManifestHash, limit: int, before: int
    ) -> tuple[Sequence[LedgerEntry], int | None]:
        """A manifest's ledger, newest first, and where it goes on, as for `usages`."""
        found = await self._store.ledger(hash, limit=limit + 1, before=before)
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    async def whole_account(self) -> Account:
        """Of the host's whole life."""
        return await self._store.whole_account()

    async def _read(self, hashes: Sequence[ManifestHash]) -> list[Usage]:
        pods = {pod.hash: pod for pod in await self._store.pods()}
        accounts = await self._store.accounts(hashes)
        stops = await self._store.stops(hashes)
        traffic = await self._read_traffic(hashes, [pods[hash] for hash in hashes if hash in pods])
        return [
            Usage(hash, accounts.get(hash, Account()), traffic[hash], stops.get(hash, ()), pods.get(hash))
            for hash in hashes
        ]

    async def _read_consumption(self, usage: Usage) -> Consumption | None:
        if usage.pod is None or usage.pod.state is not PodState.RUNNING:
            return None
        try:
            return await self._containers.consumption(usage.hash)
        except EngineError as error:
            logger.warning("pod %s: what it takes of the machine is not known: %s", usage.hash, error)
            return None

    async def _read_traffic(
        self, hashes: Sequence[ManifestHash], pods: Sequence[Pod]
    ) -> Mapping[ManifestHash, Traffic]:
        kept = await self._store.traffic(hashes)
        live: Mapping[IPv4Address, Traffic] = {}
        if pods:
            try:
                live = await self._network.traffic()
            except NetworkError as error:
                logger.warning("the pods' traffic is told as it was last kept: %s", error)
        counted = {pod.hash: live[pod.address] for pod in pods if pod.address in live}
        return {hash: counted.get(hash, kept.get(hash, NO_TRAFFIC)) for hash in hashes}


def _life(pod: Pod) -> tuple[ManifestHash, IPv4Address, datetime]:
    """What tells one life of a manifest on this host from the next."""
    return pod.hash, pod.address, pod.created_at
