"""The pods' network for an event loop: one worker thread does the blocking work, one call after another."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from codius_netpolicy import probes
from codius_netpolicy.kernel import read_local_addresses
from codius_netpolicy.namespace import call_inside, enter_path
from codius_netpolicy.policy import Egress, Policy
from codius_netpolicy.probes import Result
from codius_netpolicy.traffic import NO_TRAFFIC, Reason, Traffic
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

    async def start(self, pods: Mapping[IPv4Address, Traffic]) -> frozenset[IPv4Address]:
        """Raises both walls with the elements of all pods in one transaction, and removes unknown links.

        The answer is the addresses whose links are live; the others need `attach`. Each pod's counters go
        on from the traffic given, or from what the kernel has counted where that is more.
        """
        known = dict(pods)
        return await self._call(lambda wiring: wiring.start(known))

    async def attach(self, address: IPv4Address, netns_fd: int, traffic: Traffic = NO_TRAFFIC) -> None:
        """Connects the pod whose network namespace the descriptor is; the caller may close it afterwards."""
        # A copy: a caller that is cancelled closes its own while the worker may still need it.
        own_fd = os.dup(netns_fd)

        def work(wiring: Wiring) -> bool:
            return wiring.attach(address, own_fd, traffic)

        job = self._submit(work)
        job.add_done_callback(lambda _: os.close(own_fd))
        try:
            await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            # A job that runs cannot be stopped. This one runs after it and before any later call.
            if not job.cancelled():
                self._submit(lambda wiring: _take_back(wiring, address, job))
            raise

    async def detach(self, address: IPv4Address) -> Traffic | None:
        """Cuts the pod off at once, flows in progress too, and removes its link; its last counters."""
        return await self._call(lambda wiring: wiring.detach(address))

    async def links(self) -> frozenset[IPv4Address]:
        """The addresses whose links are complete."""
        return await self._call(lambda wiring: wiring.links())

    async def change(self, egress: Egress) -> int:
        """Puts other rules of the operator's in force without losing a packet; how many flows were cut.

        ValueError or PolicyError: the old ones stay in force.
        """
        changed = self.policy.with_egress(egress)
        cut = await self._call(lambda wiring: wiring.walls.change(changed))
        self.policy = changed
        return cut

    async def check(self) -> tuple[str, ...]:
        """What of ours in the kernel is missing or was changed by somebody else, as sentences."""
        return await self._call(lambda wiring: wiring.walls.check())

    async def repair(self) -> None:
        """Raises both walls again for all pods."""
        await self._call(lambda wiring: wiring.walls.repair())

    async def traffic(self) -> Mapping[IPv4Address, Traffic]:
        """What every attached pod sent, received and was refused."""
        return await self._call(lambda wiring: wiring.walls.traffic())

    async def counters(self) -> Mapping[Reason, int]:
        """Packets refused by reason, all pods together."""
        return await self._call(lambda wiring: wiring.walls.counters())

    async def probe(self, netns_fd: int, others: Sequence[IPv4Address]) -> tuple[Result, ...]:
        """What a pod can reach, tried from inside its network namespace; `others` it must not reach.

        Waits for answers, beside the other calls.
        """
        host = await self._call(lambda _: read_local_addresses())
        planned = probes.plan(self.policy, others, host)
        return await asyncio.to_thread(call_inside, netns_fd, lambda: probes.run(planned))

    async def stop(self) -> None:
        """Removes everything of ours from the kernel: pods lose their network."""
        await self._call(lambda wiring: wiring.stop())

    async def aclose(self) -> None:
        """Ends the worker; the pods keep their network. A second time is fine."""
        if self._closed:
            return
        self._closed = True

        def close() -> None:
            if self._wiring is not None:
                self._wiring.close()
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
