"""One worker: a listener, the feed's reader and the visitors between them, in the current event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import resource
import socket
from collections.abc import Sequence
from typing import Final

from codius_proxy.config import ProxyConfig
from codius_proxy.connection import VisitorConnection
from codius_proxy.feed import FeedReader
from codius_proxy.routes import RouteTable
from codius_proxy.site import Site
from codius_proxy.visit import Unobserved

logger = logging.getLogger(__name__)

BACKLOG: Final = 1024  # connections the kernel holds while the worker is busy
SPARE_FILES: Final = 64  # files for everything that is no visitor or pod: sockets, logs, the feed


async def serve(
    config: ProxyConfig,
    sock: socket.socket | Sequence[socket.socket],
    ready: asyncio.Event | None,
    stop: asyncio.Event,
) -> None:
    """Serve visitors on `sock` until `stop`, then let the begun requests finish (at most `timeouts.drain`).

    `ready` is set when visitors are accepted; routes may still be on their way, and until the first
    snapshot pods are answered for with 503. The sockets are closed at the end.
    """
    config = _fit_to_files(config)
    sockets = [sock] if isinstance(sock, socket.socket) else list(sock)
    loop = asyncio.get_running_loop()
    table = RouteTable()
    site = Site(config, table, Unobserved())
    feed = FeedReader(config.feed_socket, table, on_gone=site.pool.forget)
    servers: list[asyncio.Server] = []
    following = asyncio.create_task(feed.run(), name="feed")
    try:
        for listening in sockets:
            servers.append(
                await loop.create_server(lambda: VisitorConnection(site), sock=listening, backlog=BACKLOG)
            )
        if ready is not None:
            ready.set()
        await _first(stop, following)
    finally:
        for server in servers:
            server.close()
        await site.drain()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await site.aclose()


async def _first(stop: asyncio.Event, following: asyncio.Task[None]) -> None:
    """Wait for `stop`; a feed reader that fails ends the worker as well, so that it is started afresh."""
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait((stopping, following), return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        stopping.cancel()
        following.result()


def _fit_to_files(config: ProxyConfig) -> ProxyConfig:
    """Never accept more visitors than there are files for them and their pods."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return config
    most = max(1, (files - SPARE_FILES) // 2)
    if most >= config.limits.connections:
        return config
    logger.info("%d open files allow %d visitors at once", files, most)
    return dataclasses.replace(config, limits=dataclasses.replace(config.limits, connections=most))
