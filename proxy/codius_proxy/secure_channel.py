"""A channel under TLS: the endpoint has the content, the socket the records."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Final

from codius_proxy.channel import Channel, Endpoint, Peer
from codius_proxy.poller import READABLE

RECORD: Final = 16 * 1024  # bytes of content in one record, RFC 8446 section 5.1
PIECE: Final = 4 * RECORD  # bytes encrypted at once, and taken: a buffer of OpenSSL's never shrinks again
MAX_OWED: Final = 16 * 1024  # bytes of TLS's own, as answers to KeyUpdate, for a peer that does not read them
HANDSHAKE_READ: Final = 16 * 1024  # bytes taken at once; a client's flight has a few hundred


class Session:
    """TLS between two buffers of bytes."""

    __slots__ = ("incoming", "outgoing", "tls")

    def __init__(self, context: ssl.SSLContext) -> None:
        """The server's side of a new one."""
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    async def shake_hands(self, connection: socket.socket) -> None:
        """Not one byte behind the handshake is lost. OSError (ssl.SSLError is one) when it fails."""
        loop = asyncio.get_running_loop()
        done = False
        while not done:
            try:
                self.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            finally:
                if self.outgoing.pending:  # also the alert that says what is wrong
                    await loop.sock_sendall(connection, self.outgoing.read())
            if not done:
                data = await loop.sock_recv(connection, HANDSHAKE_READ)
                if not data:
                    raise ConnectionResetError("the connection ended within its TLS handshake")
                self.incoming.write(data)


class SecureChannel(Channel):
    """A channel whose handshake is over."""

    __slots__ = (
        "_decrypt",
        "_drain",
        "_encrypt",
        "_feed",
        "_incoming",
        "_outgoing",
        "_owed",
        "_parting",
        "_tls",
    )

    def __init__(self, connection: socket.socket, endpoint: Endpoint, peer: Peer, session: Session) -> None:
        self._tls = session.tls
        self._decrypt = session.tls.read
        self._encrypt = session.tls.write
        self._incoming = session.incoming
        self._outgoing = session.outgoing
        self._feed = session.incoming.write
        self._drain = session.outgoing.read
        self._owed = 0  # bytes of TLS's own that had to wait
        self._parting = False  # we have said good-bye; what still comes is thrown away
        super().__init__(connection, endpoint, peer, bulk=PIECE)
        if self._incoming.pending:  # what came together with the end of the handshake
            self._loop.call_soon(self._begin)

    @property
    def half_closable(self) -> bool:
        """Too many programs take the end of one direction for the end of both."""
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("a TLS connection ends as a whole")

    def write(self, data: bytes) -> None:
        if self._closing or not data:
            return
        if len(data) <= PIECE:
            self._seal(data)
        else:
            whole = memoryview(data)
            for start in range(0, len(data), PIECE):
                self._seal(whole[start : start + PIECE])

    def close(self) -> None:
        if self._closing:
            return
        with suppress(ssl.SSLError):  # the other side's good-bye is missing: for that there is `_part`
            self._tls.unwrap()
        self._reply()
        Channel.close(self)

    def resume_reading(self) -> None:
        Channel.resume_reading(self)
        if self._incoming.pending:  # nothing more need come for it
            self._loop.call_soon(self._begin)

    def _seal(self, data: bytes | memoryview) -> None:
        self._encrypt(data)
        Channel.write(self, self._drain())

    def _begin(self) -> None:
        if self._hearing and not self._closing:
            try:
                self._open_records(RECORD)
            except Exception as error:  # noqa: BLE001 - as in `_handle`
                self._fail(error)

    def _read(self) -> None:
        data = self._take()
        if data is None:
            return
        if not data:
            if self._parting:
                self._lose(None)
            else:
                self._end()
        elif not self._parting:
            self._feed(data)
            self._open_records(len(data))

    def _open_records(self, size: int) -> None:
        """Hand over the content of the records that are complete; most likely it is one, of `size` bytes."""
        size = min(size, RECORD)
        data = self._open_record(size)
        if data:
            if self._incoming.pending or len(data) == size:
                parts = [data]
                while data := self._open_record(RECORD):
                    parts.append(data)
                self._endpoint.data_received(b"".join(parts))
            else:  # that was all: what a record hides is shorter than the record
                self._endpoint.data_received(data)
                return
        if data is not None and not self._closing:
            self._end()

    def _open_record(self, size: int) -> bytes | None:
        """Content of the next one; nothing when it is a good-bye, None when there is none (any more)."""
        data: bytes | None = None
        try:
            data = self._decrypt(size)
        except ssl.SSLWantReadError:
            data = None
        except ssl.SSLError as error:
            self._reply()
            self._lose(error)
        if self._outgoing.pending:
            self._reply()
        return data

    def _reply(self) -> None:
        """Send what TLS itself has to say."""
        data = self._drain()
        Channel.write(self, data)
        if self._waiting:
            self._owed += len(data)
            if self._owed > MAX_OWED:
                self._lose(ConnectionAbortedError("it makes TLS speak and does not listen"))

    def _part(self) -> None:
        """A close with bytes still coming would reset the connection, and with it what we said last."""
        if self._ended:  # nothing more comes, and whoever has said good-bye need not hang up at all
            self._lose(None)
            return
        self._parting = True
        self._shut_down()
        if not self._lost:
            self._hearing = True
            self._watch(READABLE)
