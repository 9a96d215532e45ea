"""The pods' network for an event loop: one worker thread does the blocking work, one call after another."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from codius_netpolicy.namespace import enter_path
from codius_netpolicy.policy import Policy
from codius_netpolicy.wiring import Wiring

T = TypeVar("T")


class PodNetwork:
    """Links, routes and rules of all pods of a host.

    Every method may be called again after it failed or was cancelled; calls run in the order they were made.
    """

    def __init__(self, policy: Policy = Policy(), *, netns: Path | None = None) -> None:  # noqa: B008 - frozen
        """`netns` is another network namespace than the process's own, to be the host's."""
        self.policy = policy
        self._netns = netns
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="codius-network")
        self._wiring: Wiring | None = None
        self._closed = False

    async def start(self, addresses: Collection[IPv4Address]) -> frozenset[IPv4Address]:
        """Raises both walls with the elements of all pods in one transaction, and removes unknown links.

        The answer is the addresses whose links are live; the others need `attach`.
        """
        known = frozenset(addresses)
        return await self._call(lambda wiring: wiring.start(known))

    async def attach(self, address: IPv4Address, netns_fd: int) -> None:
        """Connects the pod whose network namespace the descriptor is; the caller may close it afterwards."""
        # A copy: a caller that is cancelled closes its own while the worker may still need it.
        own_fd = os.dup(netns_fd)

        def work(wiring: Wiring) -> bool:
            return wiring.attach(address, own_fd)

        job = self._submit(work)
        job.add_done_callback(lambda _: os.close(own_fd))
        try:
            await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            # A job that runs cannot be stopped. This one runs after it and before any later call.
            if not job.cancelled():
                self._submit(lambda wiring: _take_back(wiring, address, job))
            raise

    async def detach(self, address: IPv4Address) -> None:
        """Cuts the pod off at once, flows in progress too, and removes its link."""
        await self._call(lambda wiring: wiring.detach(address))

    async def links(self) -> frozenset[IPv4Address]:
        """The addresses whose links are complete."""
        return await self._call(lambda wiring: wiring.links())

    async def present(self) -> bool:
        """Whether our table is in the kernel as it was made: no rule or configured range changed."""
        return await self._call(lambda wiring: wiring.present())

    async def counters(self) -> Mapping[str, int]:
        """Packets refused since the table was made, by reason."""
        return await self._call(lambda wiring: wiring.counters())

    async def stop(self) -> None:
        """Removes everything of ours from the kernel: pods lose their network."""
        await self._call(lambda wiring: wiring.stop())

    async def aclose(self) -> None:
        """Ends the worker; the pods keep their network. A second time is fine."""
        if self._closed:
            return
        self._closed = True

        def close() -> None:
            self._wiring = None

        await asyncio.wrap_future(self._worker.submit(close))
        self._worker.shutdown(wait=False)

    async def _call(self, work: Callable[[Wiring], T]) -> T:
        return await asyncio.wrap_future(self._submit(work))

    def _submit(self, work: Callable[[Wiring], T]) -> Future[T]:
        return self._worker.submit(lambda: work(self._get_wiring()))

    def _get_wiring(self) -> Wiring:
        # Made in the worker: its sockets belong to the namespace of the thread that opens them.
        if self._wiring is None:
            if self._netns is not None:
                enter_path(self._netns)
            self._wiring = Wiring(self.policy)
        return self._wiring


def _take_back(wiring: Wiring, address: IPv4Address, job: Future[bool]) -> None:
    """Undoes an attach nobody waited for; one that failed has undone itself."""
    if job.exception() is None and job.result():
        wiring.detach(address)
