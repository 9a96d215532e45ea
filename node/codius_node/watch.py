"""The eye on the pods' network: what others change in it is put right, and its counters are kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from codius_node.doors import Network
from codius_node.errors import CodiusError
from codius_node.policy import Repair, Repairs

logger = logging.getLogger(__name__)

CHECK_SECONDS: Final = 1.0
"""Between two looks at the kernel: the second wall stands meanwhile, and a look is a few netlink messages."""
BANK_SECONDS: Final = 30.0
"""Between two writes of the counters: what a crash of the machine may take of them."""


class NetworkWatch:
    """Two loops of its own, from `start` to `aclose`; no error ends them, and each is logged once."""

    def __init__(
        self,
        *,
        network: Network,
        bank: Callable[[], Awaitable[None]],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        check_seconds: float = CHECK_SECONDS,
        bank_seconds: float = BANK_SECONDS,
    ) -> None:
        """`bank` keeps the counters of every pod."""
        self._network = network
        self._bank = bank
        self._clock = clock
        self._check_seconds = check_seconds
        self._bank_seconds = bank_seconds
        self._repairs = Repairs()
        self._last_problems: tuple[str, ...] = ()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def repairs(self) -> Repairs:
        """Since the node started."""
        return self._repairs

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(
                _repeat(self.check, self._check_seconds, "the pods' network cannot be checked"),
                name="network-check",
            ),
            asyncio.create_task(
                _repeat(self._bank, self._bank_seconds, "the pods' traffic cannot be kept"),
                name="traffic-bank",
            ),
        ]

    async def aclose(self) -> None:
        """Ends the loops, and keeps the counters a last time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._bank()
        except CodiusError as error:
            logger.warning("the pods' traffic since the last look is not kept: %s", error)

    async def check(self) -> None:
        """One look; what is not as we made it is made anew."""
        problems = await self._network.check()
        # What is changed again as soon as it is repaired is told once; the count goes on.
        news, self._last_problems = problems != self._last_problems, problems
        if not problems:
            return
        if news:
            logger.warning("the pods' network was changed by others: %s; repairing it", "; ".join(problems))
        await self._network.repair()
        self._repairs = Repairs(self._repairs.count + 1, Repair(self._clock(), problems))
        if news:
            logger.warning("the pods' network is repaired, number %d since the start", self._repairs.count)


async def _repeat(work: Callable[[], Awaitable[None]], seconds: float, failure: str) -> None:
    """For ever. The same error again is not news."""
    said: str | None = None
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except CodiusError as error:
            if str(error) != said:
                said = str(error)
                logger.warning("%s: %s. %s", failure, error, error.hint or "")
        except Exception as error:  # without this loop nobody would notice open walls
            if repr(error) != said:
                said = repr(error)
                logger.exception("%s", failure)
        else:
            said = None
