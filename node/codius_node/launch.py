"""How a pod comes up: images, containers, network, programs, in this order and each with its undo."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from datetime import datetime
from typing import Final

from codius_netpolicy.traffic import NO_TRAFFIC
from codius_node import podspec
from codius_node.config import Settings
from codius_node.doors import ContainerEngine, Network
from codius_node.errors import CodiusError, StoreError
from codius_node.model import ManifestHash, Pod, Target
from codius_node.store import Store

logger = logging.getLogger(__name__)

STARTS_AT_ONCE: Final = 4
"""Pods being started at the same moment; more only makes each of them slower, podman locks inside."""
SETTLE_SECONDS: Final = 0.3
"""How long a pod without an answering port is watched before its containers are called started."""
PORT_POLL_SECONDS: Final = 0.002
"""Between two looks at a starting pod's port: a refused connection costs 0.1 ms."""

Progress = Callable[[str], None]


class Launcher:
    """Pods on containers and network; whether they may come up, and who visits them, is the engine's."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        containers: ContainerEngine,
        network: Network,
        clock: Callable[[], datetime],
        target_of: Callable[[Pod], Target | None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._containers = containers
        self._network = network
        self._clock = clock
        self._target_of = target_of
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self.half_undone: set[ManifestHash] = set()
        """Pods of which an undo has left something, since their last upload."""

    async def start(self, pod: Pod, undo: AsyncExitStack, progress: Progress) -> None:
        """From nothing to running containers behind a wired network; each effect with its undo."""
        hash = pod.hash
        spec = podspec.build(
            pod, await self._store.private(hash), public_uri=self._settings.public_uri.origin
        )
        for image in dict.fromkeys(container.image for container in spec.containers):
            async with aclosing(self._containers.pull(image)) as steps:
                async for step in steps:
                    progress(f"{step.image}: {step.message}")
        async with self._starts:
            progress("creating the pod")
            undo.push_async_callback(self.undo, hash, "containers", self._containers.remove)
            await self._containers.create(spec)
            await self._containers.start_infra(hash)
            progress("wiring its network")
            undo.push_async_callback(self.undo, hash, "network", lambda _: self._network.detach(pod.address))
            await _both(self.wire(pod), self._containers.prepare_members(hash))
            progress(f"starting {len(spec.containers)} container{'s' if len(spec.containers) > 1 else ''}")
            await self._containers.start_members(hash)
            await self._settle(pod)

    async def wire(self, pod: Pod) -> None:
        """Onto the network; its counters go on from what is kept."""
        traffic = (await self._store.traffic([pod.hash])).get(pod.hash, NO_TRAFFIC)
        netns = await self._containers.open_netns(pod.hash)
        try:
            await self._network.attach(pod.address, netns, traffic)
        finally:
            os.close(netns)

    async def detach(self, pod: Pod) -> None:
        """Off the network; what its counters came to is kept."""
        last = await self._network.detach(pod.address)
        if last is None or last == NO_TRAFFIC:
            return
        try:
            await self._store.save_traffic({pod.hash: last}, now=self._clock())
        except StoreError as error:  # a full disk: going on is what frees it
            logger.warning("pod %s: its traffic since the last look is not kept: %s", pod.hash, error)

    async def _settle(self, pod: Pod) -> None:
        """Return when the pod's port answers, or when nothing has exited for a while (PodStartError)."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (0 if self._settings.noop else SETTLE_SECONDS)
        target = self._target_of(pod)
        while (left := deadline - loop.time()) > 0:
            if target is None:
                await asyncio.sleep(left)
            elif await _answers(target, left):
                break
            else:
                await asyncio.sleep(PORT_POLL_SECONDS)
        await self._containers.check_members(pod.hash)

    async def undo(
        self, hash: ManifestHash, what: str, effect: Callable[[ManifestHash], Awaitable[object]]
    ) -> None:
        """One undo; a failing one is left to the reconciler, which finds what is left by its label."""
        try:
            await effect(hash)
        except CodiusError as error:
            self.half_undone.add(hash)
            logger.warning("pod %s: its %s could not be taken back yet: %s", hash, what, error)


async def _both(first: Awaitable[None], second: Awaitable[None]) -> None:
    """Side by side, and both over before a failure of either is raised: its undo must meet neither."""
    for result in await asyncio.gather(first, second, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def _answers(target: Target, seconds: float) -> bool:
    """Whether something accepts a connection at the target within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(target.address, target.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
