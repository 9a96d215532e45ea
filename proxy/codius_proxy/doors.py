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
from codius_proxy.channel import Channel
from codius_proxy.connection import VisitorConnection
from codius_proxy.event_loop import running_poller
from codius_proxy.identity import Entrance
from codius_proxy.poller import READABLE
from codius_proxy.proxy_protocol import ProxyProtocolError
from codius_proxy.secure_channel import SecureChannel, Session
from codius_proxy.site import Site

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT: Final = 10.0  # seconds from a connection to the end of its TLS handshake
MAX_ACCEPTS: Final = 64  # connections taken in a row before the others get their turn
MAX_ARRIVING: Final = 1024  # connections at once whose handshake or PROXY header is not complete
ARRIVING_SHARE: Final = 4  # and no more of them than one part in that many of a worker's visitors
NO_FILES_PAUSE: Final = 0.1  # seconds until accepting is tried again when files or memory are short
_SHORT: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Door:
    """A listening socket: connections are visitors at once, or after their PROXY header and TLS handshake."""

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
        listening.setblocking(False)
        self._listening = listening
        self._entrance = entrance
        self._context = context
        self._proxy_protocol = proxy_protocol
        self._plain = context is None and not proxy_protocol
        self._most = max(1, min(MAX_ARRIVING, site.config.limits.connections // ARRIVING_SHARE))
        self._arriving: dict[asyncio.Task[None], None] = {}  # in the order they came
        self._open = False
        self._closed = False

    def open(self) -> None:
        if not self._closed:
            running_poller().attach(self._listening.fileno(), self._accept, READABLE)
            self._open = True

    async def close(self) -> None:
        """Take nobody any more, and wait for those who have begun to come."""
        self._closed = True
        self._pause()
        self._listening.close()
        if self._arriving:
            await asyncio.wait(self._arriving, timeout=self._site.timeouts.parting)
        late = list(self._arriving)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _pause(self) -> None:
        if self._open:
            running_poller().detach(self._listening.fileno())
            self._open = False

    def _accept(self, _: int) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                connection, address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SHORT:
                    self._pause()
                    asyncio.get_running_loop().call_later(NO_FILES_PAUSE, self.open)
                    return
                continue  # that one has gone already
            try:
                connection.setblocking(False)
                if self._plain:
                    self._admit(connection, address)
                else:
                    self._receive(connection, address)
            except Exception as error:  # noqa: BLE001 - handled like those of a task
                self._lose(connection, error)

    def _admit(
        self,
        connection: socket.socket,
        address: tuple[str, int],
        client: str | None = None,
        session: Session | None = None,
    ) -> None:
        """A visitor from now on, with the client its PROXY header named, and the TLS it has agreed on."""
        visitor = VisitorConnection(self._site, self._entrance, client)
        if session is None:
            Channel(connection, visitor, address)
        else:
            SecureChannel(connection, visitor, address, session)

    def _lose(self, connection: socket.socket, error: BaseException) -> None:
        """Whatever went wrong is the end of this connection only."""
        connection.close()
        logger.error("a connection was lost on its arrival", exc_info=error)

    def _receive(self, connection: socket.socket, address: tuple[str, int]) -> None:
        task = asyncio.create_task(self._arrive(connection, address), name=f"arrival of {address[0]}")
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
            self._lose(connection, error)

    async def _arrive(self, connection: socket.socket, address: tuple[str, int]) -> None:
        site, peer = self._site, address[0]
        client: str | None = None
        session: Session | None = None
        try:
            if self._proxy_protocol and site.trust.identify(peer, self._entrance.scheme).trusted:
                async with asyncio.timeout(site.timeouts.head):
                    client = await _read_preamble(connection)
            if self._context is not None:
                session = Session(self._context)
                async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                    await session.shake_hands(connection)
        except ProxyProtocolError as error:
            connection.close()
            site.turn_away("proxy_header")
            logger.warning("dropped a connection of the trusted proxy %s: %s", peer, error)
        except (OSError, TimeoutError):  # ssl.SSLError is an OSError: a scanner, or one who does not trust us
            connection.close()
            site.turn_away("handshake")
        else:
            self._admit(connection, address, client, session)


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
