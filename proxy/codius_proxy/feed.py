"""The feed's reader: keeps the route table as the node wants it, and the last one while the node is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from codius_proxy.last_table import LastTable
from codius_proxy.routes import (
    MAX_LINE,
    Destination,
    FeedError,
    RouteTable,
    Snapshot,
    parse,
    render_snapshot,
)

logger = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.05  # seconds before the first try to reconnect: a restart is quick
KEEP_AFTER: Final = 1.0  # seconds from a change, which is noted at once, until all routes are kept again
LONGEST_PAUSE: Final = 0.25  # seconds; an upload after an outage should not wait for us


class FeedReader:
    """Follows the node's feed for as long as `run` runs."""

    def __init__(
        self,
        path: Path,
        table: RouteTable,
        *,
        on_gone: Callable[[Destination], None],
        last_table: LastTable | None = None,
    ) -> None:
        """`on_gone` hears of every target that no route leads to any more."""
        self.ready = asyncio.Event()  # the first snapshot is in the table
        self._path = path
        self._table = table
        self._on_gone = on_gone
        self._last_table = last_table
        self._followed = False  # this connection's snapshot has come
        self._keeping: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Connect, apply, reconnect; ends only when cancelled."""
        try:
            await self._run()
        finally:
            if self._keeping is not None:
                self._keeping.cancel()

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        complained = False
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path), limit=MAX_LINE)
            except OSError as error:
                if not complained:  # once per outage, not once per try
                    logger.warning("the feed at %s is away: %s; routes stay as they are", self._path, error)
                complained = True
                self.recall()
            else:
                try:
                    await self._follow(reader)
                    logger.info("the feed at %s ended; routes stay as they are", self._path)
                except (FeedError, OSError, ValueError, asyncio.IncompleteReadError) as error:
                    logger.error("left the feed at %s: %s; routes stay as they are", self._path, error)
                finally:
                    writer.transport.abort()
                if self._followed:
                    pause = FIRST_PAUSE
                    self._keep()
                complained = False
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def recall(self) -> None:
        """Go on with what another worker knew, when the node says nothing and this one knows nothing."""
        if self._last_table is None or self._table.known:
            return
        snapshot = self._last_table.load()
        if snapshot is not None:
            self._table.apply(snapshot)
            logger.info("the feed at %s is away: %d routes from before", self._path, len(self._table))
            self.ready.set()

    def _keep(self) -> None:
        """Who is started when the node is away can learn the routes from us only."""
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        if self._last_table is not None:
            snapshot = self._table.snapshot
            self._last_table.save(render_snapshot(snapshot.routes, snapshot.stopped))

    def _keep_soon(self) -> None:
        if self._keeping is None:
            self._keeping = asyncio.get_running_loop().call_later(KEEP_AFTER, self._keep)

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        """Apply messages until the feed ends."""
        self._followed = False
        while line := await reader.readline():
            if not line.endswith(b"\n"):
                raise FeedError("the feed ended in the middle of a message")
            message = parse(line)
            if not self._followed and not isinstance(message, Snapshot):
                raise FeedError("the feed did not begin with a snapshot")
            for target in self._table.apply(message):
                self._on_gone(target)
            if not self._followed:
                self._followed = True
                self._keep()
                logger.info("the feed at %s: %d routes", self._path, len(self._table))
                self.ready.set()
            else:
                if self._last_table is not None:
                    self._last_table.note(line)
                self._keep_soon()
