"""One worker: its doors, the feed's reader and the visitors between them, in the current event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import resource
import secrets
import socket
import ssl
from collections.abc import Sequence
from typing import Final

from codius_proxy.config import ProxyConfig
from codius_proxy.doors import Door
from codius_proxy.feed import FeedReader
from codius_proxy.identity import Entrance
from codius_proxy.last_table import LastTable
from codius_proxy.outbox import Outbox
from codius_proxy.routes import RouteTable
from codius_proxy.site import Site
from codius_proxy.visit import Unobserved

logger = logging.getLogger(__name__)

SPARE_FILES: Final = 64  # files for everything that is no visitor or pod: sockets, logs, the feed


@dataclasses.dataclass(frozen=True, slots=True)
class Equipment:
    """What the parent process made for its workers."""

    main: Sequence[socket.socket]
    redirect: Sequence[socket.socket] = ()
    context: ssl.SSLContext | None = None  # with it the main sockets speak TLS
    recorder: socket.socket | None = None  # where finished requests are posted
    last_table: LastTable | None = None


async def serve(
    config: ProxyConfig,
    equipment: Equipment,
    ready: asyncio.Event | None,
    stop: asyncio.Event,
    retire: asyncio.Event | None = None,
) -> None:
    """Serve visitors until `stop`, then let the begun requests finish (at most `timeouts.drain`).

    `ready` is set when visitors are accepted: with routes, or after `timeouts.routes` without, when pods
    are answered for with 503. `retire`: others take the new visitors from now on, the old ones may stay
    for `timeouts.retire`. The sockets are closed at the end.
    """
    config = _fit_to_files(config)
    name = secrets.token_hex(3)
    table = RouteTable()
    outbox = Outbox(equipment.recorder, name) if equipment.recorder is not None else None
    site = Site(config, table, outbox or Unobserved(), name)
    if outbox is not None:
        outbox.connections = lambda: len(site.admission.visitors)
    feed = FeedReader(config.feed_socket, table, on_gone=site.pool.forget, last_table=equipment.last_table)
    doors = _doors(config, equipment, site)
    following = asyncio.create_task(feed.run(), name="feed")
    retire = retire or asyncio.Event()
    try:
        try:
            async with asyncio.timeout(config.timeouts.routes):
                await _first(following, feed.ready, stop, retire)
        except TimeoutError:
            feed.recall()
        for door in doors:
            door.open()
        if ready is not None:
            ready.set()
        await _first(following, stop, retire)
    finally:
        for door in doors:
            await door.close()
        if not stop.is_set() and retire.is_set():
            site.draining = True
            logger.info("retiring with %d visitors", len(site.admission.visitors))
            await _retire(site, stop)
        await site.drain()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await site.aclose()


def _doors(config: ProxyConfig, equipment: Equipment, site: Site) -> list[Door]:
    context = equipment.context
    policy = b""
    if config.hsts and config.scheme == "https":
        policy = b"\r\nStrict-Transport-Security: max-age=%d" % config.hsts
    ways = [(sock, Entrance(config.scheme, policy=policy), context) for sock in equipment.main]
    ways += [(sock, Entrance("http", redirects=True), None) for sock in equipment.redirect]
    return [
        Door(site, sock, entrance, context=tls, proxy_protocol=config.proxy_protocol)
        for sock, entrance, tls in ways
    ]


async def _retire(site: Site, stop: asyncio.Event) -> None:
    """Until the last visitor has left by itself, or time or patience is over."""
    tasks = [
        asyncio.create_task(site.emptied(site.config.timeouts.retire), name="retire"),
        asyncio.create_task(stop.wait(), name="stop"),
    ]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _first(following: asyncio.Task[None], *events: asyncio.Event) -> None:
    """Wait for one of the events; a feed reader that fails ends the worker, so that it is started afresh."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait((following, *waiting), return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


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
