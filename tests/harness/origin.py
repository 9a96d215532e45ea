"""A target server under a test's control: records what it gets, answers as told, misbehaves on request."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from aiohttp import WSMsgType, web

DEADLINE: Final = 10.0  # seconds after which a test that waits has failed
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived, byte for byte."""

    head: bytes
    body: bytes = b""

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Lower-case names and values, in order."""
        pairs = []
        for line in self.head.split(b"\r\n")[1:]:
            if line:
                name, _, value = line.decode("latin-1").partition(":")
                pairs.append((name.lower(), value.strip()))
        return pairs

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.fields if found == name]

    def one(self, name: str) -> str:
        values = self.all(name)
        assert len(values) == 1, f"{name}: {values} in {self.head!r}"
        return values[0]


@dataclass(slots=True)
class Line:
    """One accepted connection, in the hands of a script."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    pieces: list[bytes] = field(default_factory=list)

    async def read_head(self) -> bytes:
        """A request's head with its blank line; b"" when the proxy ended the connection."""
        try:
            return await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise AssertionError(f"the proxy sent half a head: {error.partial!r}") from error
            return b""

    async def read_request(self) -> Received | None:
        head = await self.read_head()
        if not head:
            return None
        request = Received(head)
        lengths, codings = request.all("content-length"), request.all("transfer-encoding")
        body = b""
        if codings == ["chunked"]:
            while True:
                size_line = await self.reader.readuntil(b"\r\n")
                body += size_line
                size = int(size_line.split(b";")[0], 16)
                if not size:
                    break
                body += await self.reader.readexactly(size + 2)
            while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
                body += line
            body += b"\r\n"
        elif lengths:
            body = await self.reader.readexactly(int(lengths[0]))
        return Received(head, body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """End with a TCP reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def shut(self) -> None:
        """End at once without a reset of our own making."""
        self.writer.close()

    async def gone(self) -> None:
        """Wait until the kernel knows of the end."""
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


Script = Callable[[Line], Awaitable[None]]


class Origin:
    """A listener whose connections run a script; without one, every request gets `answer`."""

    def __init__(self, script: Script | None = None, *, answer: bytes = ANSWER) -> None:
        self.answer = answer
        self.requests: list[Received] = []
        self.connections = 0
        self.errors: list[BaseException] = []
        self.script = script or self._serve
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, path: Path | None = None) -> Self:
        """Listen on 127.0.0.1, or on a Unix socket."""
        if path is None:
            self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        else:
            self._server = await asyncio.start_unix_server(self._accepted, str(path))
        return self

    @property
    def port(self) -> int:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        assert isinstance(port, int)
        return port

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
        for _ in range(3):  # what was accepted a moment ago gets its transport, and so its end
            await asyncio.sleep(0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            # asyncio 3.11 cannot abort a transport that has closed by itself.
            if not writer.is_closing() or writer.transport.get_write_buffer_size():
                writer.transport.abort()
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors[0]

    def record(self, request: Received) -> None:
        self.requests.append(request)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.create_task(self._run(Line(reader, writer, self.connections)), name="origin")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, line: Line) -> None:
        try:
            await self.script(line)
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        except Exception as error:  # noqa: BLE001 - shown by aclose
            self.errors.append(error)
        finally:
            line.writer.close()  # after the last bytes; aclose cuts it if they do not go

    async def _serve(self, line: Line) -> None:
        while (request := await line.read_request()) is not None:
            self.record(request)
            await line.send(self.answer)


@contextlib.asynccontextmanager
async def origin(
    script: Script | None = None, *, answer: bytes = ANSWER, path: Path | None = None
) -> AsyncIterator[Origin]:
    """An `Origin` that listens as long as the block runs."""
    server = await Origin(script, answer=answer).start(path)
    try:
        yield server
    finally:
        await server.aclose()


def closed_port() -> int:
    """A port of 127.0.0.1 that refuses connections."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    assert isinstance(port, int)
    return port


@contextlib.asynccontextmanager
async def websocket_echo() -> AsyncIterator[int]:
    """A WebSocket server by aiohttp that says everything back; its port."""

    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket_ = web.WebSocketResponse()
        await socket_.prepare(request)
        async for message in socket_:
            if message.type is WSMsgType.TEXT:
                await socket_.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket_.send_bytes(message.data)
        return socket_

    app = web.Application()
    app.router.add_get("/{tail:.*}", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        yield port
    finally:
        await runner.cleanup()
