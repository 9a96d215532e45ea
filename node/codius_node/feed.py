"""What the node tells the processes that face the internet: routes to the front door, TXT values to the DNS
responder, each over a Unix socket of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from codius_dns.nodes import parse_texts
from codius_dns.texts import Texts, render_texts
from codius_node.model import ManifestHash, Notice, Target
from codius_proxy import routes

logger = logging.getLogger(__name__)

MAX_UNREAD: Final = 4 * 1024 * 1024
"""Bytes a reader may leave unread before it is cut off; it reconnects and gets a fresh snapshot."""


class Publisher:
    """A Unix socket that tells whoever connects how things are, and then what changes."""

    def __init__(self, snapshot: Callable[[], bytes]) -> None:
        self._snapshot = snapshot
        self._readers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self, socket: Path) -> None:
        """Listen; readers that connect get everything as it is."""
        self._server = await asyncio.start_unix_server(self._serve, socket)

    async def aclose(self) -> None:
        """Readers keep what they were told last."""
        if self._server is not None:
            self._server.close()
            for reader in self._readers:
                reader.close()
            await self._server.wait_closed()

    def tell(self, message: bytes) -> None:
        """Send a change to all readers."""
        for writer in list(self._readers):
            if writer.transport.get_write_buffer_size() > MAX_UNREAD:
                logger.warning("a reader of the feed does not read: cut off")
                writer.transport.abort()
                self._readers.discard(writer)
            else:
                writer.write(message)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._snapshot())
        self._readers.add(writer)
        try:
            while await reader.read(1024):
                pass  # a reader has nothing to say; the end of its stream is what we wait for
        except ConnectionError:
            pass
        finally:
            self._readers.discard(writer)
            writer.close()


class Feed:
    """The routes of all running pods, as published to whoever is connected: snapshot, then changes."""

    def __init__(self) -> None:
        self._routes: dict[str, routes.Target] = {}
        self._stopped: dict[str, routes.Notice] = {}
        self._publisher = Publisher(lambda: routes.render_snapshot(self._routes, self._stopped))

    @property
    def routes(self) -> dict[str, routes.Target]:
        """What is published now."""
        return dict(self._routes)

    async def start(self, socket: Path) -> None:
        """Listen; readers that connect get the table as it is."""
        await self._publisher.start(socket)

    async def aclose(self) -> None:
        """Readers keep their last table."""
        await self._publisher.aclose()

    def publish(self, hash: ManifestHash, target: Target) -> None:
        """Send visitors of the pod to the target, from now on; saying it twice changes nothing."""
        route = routes.Target(target.address, target.port)
        self._stopped.pop(hash, None)
        if self._routes.get(hash) != route:
            self._routes[hash] = route
            self._publisher.tell(routes.render_add(hash, route))
            logger.info("pod %s: route published", hash)

    def unpublish(self, hash: ManifestHash) -> None:
        """Send no visitor there any more."""
        if self._routes.pop(hash, None) is not None:
            self._publisher.tell(routes.render_remove(hash))
            logger.info("pod %s: route withdrawn", hash)

    def stop(self, hash: ManifestHash, notice: Notice) -> None:
        """Send no visitor there any more, and tell those who come that the operator took it down."""
        told = routes.Notice(notice.legal, notice.reason)
        withdrawn = self._routes.pop(hash, None) is not None
        if withdrawn or self._stopped.get(hash) != told:
            routes.keep_notice(self._stopped, hash, told)
            self._publisher.tell(routes.render_stop(hash, told))
            logger.info("pod %s: visitors are told that it was stopped", hash)

    def readmit(self, hash: ManifestHash) -> None:
        """Tell nobody any more that it was stopped."""
        if self._stopped.pop(hash, None) is not None:
            self._publisher.tell(routes.render_remove(hash))


class TextFeed:
    """The TXT values of running challenges, such as `_acme-challenge` of the host's name."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._texts = Texts(serial=int(clock()))
        self._publisher = Publisher(lambda: render_texts(self._texts))

    async def start(self, socket: Path) -> None:
        """Listen; readers that connect get the values as they are."""
        await self._publisher.start(socket)

    async def aclose(self) -> None:
        """Readers keep the last values."""
        await self._publisher.aclose()

    def publish(self, name: str, values: Sequence[str]) -> None:
        """Have DNS say these values at the name, and no others; none: have it say nothing.

        ZoneError for what no zone could say. All workers of the responder hear of it at once.
        """
        texts = {name: tuple(value.encode("ascii") for value in values)}
        parse_texts(texts)
        kept = {other: found for other, found in self._texts.values.items() if other != name}
        new = kept | {name: found for name, found in texts.items() if found}
        if new == self._texts.values:
            return
        # The zones' serial rises with it, also when the clock does not.
        self._texts = Texts(max(int(self._clock()), self._texts.serial + 1), new)
        self._publisher.tell(render_texts(self._texts))
        logger.info("TXT values of %s: %d", name, len(values))
