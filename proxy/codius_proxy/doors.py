"""The doors: how a connection becomes a visitor's, by TCP alone, by TLS, and behind a PROXY header."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from functools import partial
from typing import Final

from codius_proxy import proxy_protocol
from codius_proxy.connection import VisitorConnection
from codius_proxy.identity import Entrance
from codius_proxy.listeners import BACKLOG
from codius_proxy.proxy_protocol import ProxyProtocolError
from codius_proxy.site import Site

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT: Final = 10.0  # seconds from a connection to the end of its TLS handshake
SHUTDOWN_TIMEOUT: Final = 2.0  # seconds for a visitor's close_notify
MAX_ACCEPTS: Final = 64  # connections taken in a row before the others get their turn
MAX_ARRIVING: Final = 1024  # connections at once whose handshake or PROXY header is not complete
ARRIVING_SHARE: Final = 4  # and no more of them than one part in that many of a worker's visitors
NO_FILES_PAUSE: Final = 0.1  # seconds until accepting is tried again when files or memory are short
_SHORT: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class PlainDoor:
    """Connections that begin with HTTP: the event loop makes visitors of them by itself."""

    def __init__(self, site: Site, listening: socket.socket, entrance: Entrance) -> None:
        self._site = site
        self._listening = listening
        self._entrance = entrance
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: VisitorConnection(self._site, self._entrance), sock=self._listening, backlog=BACKLOG
        )

    async def close(self) -> None:
        """Take nobody any more; those who came are the site's."""
        if self._server is not None:
            self._server.close()


class GuardedDoor:
    """Connections that begin with something else: accepted here, and visitors only after that."""

    def __init__(
        self,
        site: Site,
        listening: socket.socket,
        entrance: Entrance,
        *,
        context: ssl.SSLContext | None,
        proxy_protocol: bool,
    ) -> None:
        """`proxy_protocol`: connections of trusted peers begin with a PROXY header."""
        self._site = site
        self._listening = listening
        self._entrance = entrance
        self._context = context
        self._proxy_protocol = proxy_protocol
        self._most = max(1, min(MAX_ARRIVING, site.config.limits.connections // ARRIVING_SHARE))
        self._arriving: dict[asyncio.Task[None], None] = {}  # in the order they came
        self._closed = False

    async def open(self) -> None:
        self._listen()

    async def close(self) -> None:
        """Take nobody any more, and wait for those who have begun to come."""
        self._closed = True
        asyncio.get_running_loop().remove_reader(self._listening)
        self._listening.close()
        if self._arriving:
            await asyncio.wait(self._arriving, timeout=self._site.config.timeouts.parting)
        late = list(self._arriving)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _listen(self) -> None:
        if not self._closed:
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                connection, peer = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SHORT:
                    loop = asyncio.get_running_loop()
                    loop.remove_reader(self._listening)
                    loop.call_later(NO_FILES_PAUSE, self._listen)
                    return
                continue  # that one has gone already
            connection.setblocking(False)
            task = asyncio.create_task(self._arrive(connection, peer[0]), name=f"arrival of {peer[0]}")
            self._arriving[task] = None
            task.add_done_callback(partial(self._arrived, connection))
            if len(self._arriving) > self._most:
                # Whoever means it needs a moment only: the one who has taken longest has to go.
                oldest = next(iter(self._arriving))
                del self._arriving[oldest]
                oldest.cancel()
                self._site.turn_away("slow_arrival")

    def _arrived(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._arriving.pop(task, None)
        if task.cancelled():  # perhaps before it had begun
            connection.close()
        elif (error := task.exception()) is not None:
            logger.error("a connection was lost on its arrival", exc_info=error)

    async def _arrive(self, connection: socket.socket, peer: str) -> None:
        site, client = self._site, None
        try:
            if self._proxy_protocol and site.trust.identify(peer, self._entrance.scheme).trusted:
                async with asyncio.timeout(site.config.timeouts.head):
                    client = await _read_preamble(connection)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: VisitorConnection(site, self._entrance, client),
                connection,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT if self._context is not None else None,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT if self._context is not None else None,
            )
        except ProxyProtocolError as error:
            connection.close()
            site.turn_away("proxy_header")
            logger.warning("dropped a connection of the trusted proxy %s: %s", peer, error)
        except (OSError, TimeoutError):  # ssl.SSLError is an OSError: a scanner, or one who does not trust us
            connection.close()
            site.turn_away("handshake")


async def _read_preamble(connection: socket.socket) -> str | None:
    """The client a PROXY header names, None for the balancer itself; not one byte behind it is taken."""
    seen = 0
    while True:
        await _readable(connection)
        data = connection.recv(proxy_protocol.MAX_HEADER, socket.MSG_PEEK)
        if len(data) <= seen:
            raise ProxyProtocolError("the connection ended within its PROXY header")
        preamble = proxy_protocol.parse(data)
        if preamble is not None:
            connection.recv(preamble.length)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return None if preamble.client is None else str(preamble.client)
        seen = len(data)
        # What was only looked at keeps the socket readable: wake up for more than that.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
