"""The loop that makes what is found into what is wanted: expiry and recovery are one function."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from codius_netpolicy.traffic import NO_TRAFFIC
from codius_node import lifecycle
from codius_node.doors import ContainerEngine, Network
from codius_node.engine import Engine
from codius_node.errors import CodiusError
from codius_node.model import ManifestHash
from codius_node.store import Store

logger = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 30.0
"""Between two full comparisons when nothing is due: what dies unasked stays dead no longer."""
RETRY_SECONDS: Final = 5.0
"""After a comparison that could not be made: podman or the disk may be back soon."""
RECOVERY_SECONDS: Final = 60.0
"""How long a start waits for its pods; an image that is slow to come must not keep the host away."""
MIN_PAUSE_SECONDS: Final = 0.25
"""Between two comparisons, however much is due: expiry stays exact to well within a second."""
LAST_ALIVE_SETTING: Final = "last_alive"


class Reconciler:
    """Compares, plans and has the engine act; at start, at every expiry, and now and then."""

    def __init__(
        self,
        *,
        engine: Engine,
        store: Store,
        containers: ContainerEngine,
        network: Network,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine = engine
        self._store = store
        self._containers = containers
        self._network = network
        self._clock = clock
        self._under_way: dict[ManifestHash, asyncio.Task[None]] = {}  # one step a pod at a time

    async def recover(self) -> None:
        """After a start: the network of every pod in one transaction, then the first comparison.

        Pods that are still wired are running, so their routes are published before podman is asked:
        visitors lose nothing when it is away.
        """
        pods = await self._store.pods()
        traffic = await self._store.traffic(pod.hash for pod in pods)
        live = await self._network.start({pod.address: traffic.get(pod.hash, NO_TRAFFIC) for pod in pods})
        logger.info("network up: %d of %d pods still wired", len(live), len(pods))
        self._engine.publish_wired(pods, live)
        try:
            await self.reconcile()
            with suppress(TimeoutError):
                async with asyncio.timeout(RECOVERY_SECONDS):
                    await self.settle()
        except CodiusError as error:
            logger.warning("pods cannot be looked after yet: %s. %s", error, error.hint or "")

    async def reconcile(self) -> None:
        """One comparison; its steps are begun, and none waits for another pod's (a restart may pull).

        Errors of single pods are logged and tried again next time.
        """
        in_flight = self._engine.in_flight
        # Wanted before found: a pod that comes up in between is then found without a row, and a step that
        # removes it looks at the store again. The other way round it would seem to have vanished.
        wanted = await self._store.pods()
        self._engine.retire_routes(wanted)
        found = await self._containers.find_pods()
        linked = await self._network.links()
        now = self._clock()
        steps = lifecycle.plan(
            wanted,
            found,
            now=now,
            last_alive=await self._last_alive(),
            linked=linked,
            in_flight=in_flight | self._engine.in_flight | self._under_way.keys(),
            denied={pod.hash for pod, _ in self._engine.denials.find_denied(wanted)},
        )
        # Given back before the sign of life is written: what it is counted from must not be lost between.
        for step in steps:
            if isinstance(step, lifecycle.Restart | lifecycle.TakeDown):
                await self._engine.give_back(step)
        await self._store.set_setting(LAST_ALIVE_SETTING, now.isoformat(), now=now)
        for step in steps:
            name = f"{type(step).__name__.lower()}-{step.hash}"
            self._under_way[step.hash] = asyncio.create_task(self._apply(step), name=name)

    async def settle(self) -> None:
        """Until no step is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way.values())

    async def aclose(self) -> None:
        """Steps under way are cut short; the next start ends them."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self) -> None:
        """For ever: wait until something is due, compare, act."""
        while True:
            try:
                await self._wait(SWEEP_SECONDS)
                await self.reconcile()
            except CodiusError as error:
                logger.warning("cannot compare: %s. Next try in %.0f s.", error, RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:  # without this loop no pod would ever expire
                logger.exception("cannot compare. Next try in %.0f s.", RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)

    async def _wait(self, sweep: float) -> None:
        """Until the sweep or the next expiry, whichever is first; a changed expiry is looked at again."""
        loop = asyncio.get_running_loop()
        end = loop.time() + sweep
        while (left := end - loop.time()) > 0:
            self._engine.changed.clear()
            due = lifecycle.next_deadline(await self._store.pods(), self._clock())
            if due is not None:
                left = min(left, (due - self._clock()).total_seconds())
            try:
                async with asyncio.timeout(max(left, MIN_PAUSE_SECONDS)):
                    await self._engine.changed.wait()
            except TimeoutError:
                return

    async def _apply(self, step: lifecycle.Step) -> None:
        try:
            await self._engine.apply(step)
        except CodiusError as error:
            logger.warning("pod %s: %s failed: %s", step.hash, type(step).__name__.lower(), error)
        except Exception:  # one pod's surprise must not end the care for all others
            logger.exception("pod %s: %s failed", step.hash, type(step).__name__.lower())
        finally:
            del self._under_way[step.hash]

    async def _last_alive(self) -> datetime | None:
        saved = await self._store.get_setting(LAST_ALIVE_SETTING)
        return datetime.fromisoformat(saved) if isinstance(saved, str) else None
