"""The route table's way out: a Unix socket that tells every front-door worker what is where."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from codius_node.model import ManifestHash, Target
from codius_proxy import routes

logger = logging.getLogger(__name__)

MAX_UNREAD: Final = 4 * 1024 * 1024
"""Bytes a reader may leave unread before it is cut off; it reconnects and gets a fresh snapshot."""


class Feed:
    """The routes of all running pods, as published to whoever is connected: snapshot, then changes."""

    def __init__(self) -> None:
        self._routes: dict[str, routes.Target] = {}
        self._readers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def routes(self) -> dict[str, routes.Target]:
        """What is published now."""
        return dict(self._routes)

    async def start(self, socket: Path) -> None:
        """Listen; readers that connect get the table as it is."""
        self._server = await asyncio.start_unix_server(self._serve, socket)

    def publish(self, hash: ManifestHash, target: Target) -> None:
        """Send visitors of the pod to the target, from now on; saying it twice changes nothing."""
        route = routes.Target(target.address, target.port)
        if self._routes.get(hash) != route:
            self._routes[hash] = route
            self._tell(routes.render_add(hash, route))
            logger.info("pod %s: route published", hash)

    def unpublish(self, hash: ManifestHash) -> None:
        """Send no visitor there any more."""
        if self._routes.pop(hash, None) is not None:
            self._tell(routes.render_remove(hash))
            logger.info("pod %s: route withdrawn", hash)

    async def aclose(self) -> None:
        """Readers keep their last table."""
        if self._server is not None:
            self._server.close()
            for reader in self._readers:
                reader.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(routes.render_snapshot(self._routes))
        self._readers.add(writer)
        try:
            while await reader.read(1024):
                pass  # a reader has nothing to say; the end of its stream is what we wait for
        except ConnectionError:
            pass
        finally:
            self._readers.discard(writer)
            writer.close()

    def _tell(self, message: bytes) -> None:
        for writer in list(self._readers):
            if writer.transport.get_write_buffer_size() > MAX_UNREAD:
                logger.warning("a reader of the feed does not read: cut off")
                writer.transport.abort()
                self._readers.discard(writer)
            else:
                writer.write(message)
