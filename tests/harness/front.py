"""The proxy as tests run it: a worker in this loop, a feed in place of the node, raw clients as judges."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

from codius_proxy import listeners, routes, worker
from codius_proxy.config import Limits, ProxyConfig, Timeouts
from codius_proxy.event_loop import FrontLoop
from codius_proxy.routes import Notice, Target
from codius_proxy.tls import Certificates
from tests.harness.origin import DEADLINE, Origin

ZONE: Final = "host.example"
POD: Final = "a" * 52
OTHER: Final = "b" * 51 + "7"


class Feed:
    """The node's side of the feed."""

    def __init__(self, path: Path, table: Mapping[str, Target] | None = None) -> None:
        self.path = path
        self.table = dict(table or {})
        self.readers = 0
        self.silent = False  # new readers are told nothing
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accepted, str(self.path))
        return self

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for _ in range(3):  # what was accepted a moment ago gets its transport, and so its end
            await asyncio.sleep(0)
        for writer in self._writers:
            if not writer.is_closing():
                writer.transport.abort()
        self._writers.clear()
        await asyncio.sleep(0)
        self.path.unlink(missing_ok=True)

    def add(self, pod_hash: str, target: Target) -> None:
        self.table[pod_hash] = target
        self.say(routes.render_add(pod_hash, target))

    def remove(self, pod_hash: str) -> None:
        self.table.pop(pod_hash, None)
        self.say(routes.render_remove(pod_hash))

    def stop(self, pod_hash: str, notice: Notice) -> None:
        self.table.pop(pod_hash, None)
        self.say(routes.render_stop(pod_hash, notice))

    def say(self, line: bytes) -> None:
        for writer in self._writers:
            writer.write(line)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.readers += 1
        self._writers.add(writer)
        if not self.silent:
            writer.write(routes.render_snapshot(self.table))


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A response as a raw client read it."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes
    head: bytes

    def one(self, name: str) -> str:
        values = [value for found, value in self.fields if found == name]
        assert len(values) == 1, f"{name}: {values} in {self.head!r}"
        return values[0]

    def has(self, name: str) -> bool:
        return any(found == name for found, _ in self.fields)


class Raw:
    """A client that sends exactly what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def get(self, host: str, path: str = "/", *, extra: str = "", method: str = "GET") -> Answer:
        await self.send(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n".encode())
        return await self.answer(method=method)

    async def head(self) -> Answer:
        """The next head, interim or final, without its body."""
        async with asyncio.timeout(DEADLINE):
            head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head[:-4].decode("latin-1").split("\r\n")
        fields = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])
        ]
        return Answer(int(lines[0].split(" ")[1]), fields, b"", head)

    async def answer(self, *, method: str = "GET") -> Answer:
        """The next head with its complete body; asyncio.IncompleteReadError when that is cut short."""
        found = await self.head()
        if method == "HEAD" or found.status in (204, 304) or found.status < 200:
            return found
        async with asyncio.timeout(DEADLINE):
            if found.has("transfer-encoding"):
                assert found.one("transfer-encoding") == "chunked"
                assert not found.has("content-length")
                body = await self.chunks()
            elif found.has("content-length"):
                body = await self.reader.readexactly(int(found.one("content-length")))
            else:
                body = await self.reader.read()
        return dataclasses.replace(found, body=body)

    async def chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readexactly(2) == b"\r\n"
        return body

    async def rest(self) -> bytes:
        """Everything until the proxy ends the connection."""
        async with asyncio.timeout(DEADLINE):
            return await self.reader.read()

    async def aclose(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class WorkerThread:
    """A worker with a thread and an event loop of its own, as it has a process of its own in earnest.

    Whatever the test's own loop does, clients and origins are strangers to it.
    """

    def __init__(self, config: ProxyConfig, equipment: worker.Equipment) -> None:
        self.config = config
        self._equipment = equipment
        self._served: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        up = asyncio.Event()
        served: asyncio.Future[None] = loop.create_future()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            ready = asyncio.Event()
            serving = asyncio.create_task(worker.serve(self.config, self._equipment, ready, self._stop))
            await ready.wait()
            loop.call_soon_threadsafe(up.set)
            await serving

        def work() -> None:
            try:
                with asyncio.Runner(loop_factory=FrontLoop) as runner:
                    runner.run(serve())
            except Exception as error:  # noqa: BLE001 - raised by `stopped`
                loop.call_soon_threadsafe(served.set_exception, error)
            else:
                loop.call_soon_threadsafe(served.set_result, None)

        self._served = served
        # A daemon: a worker that hangs fails its test, not the whole run.
        threading.Thread(target=work, name="worker", daemon=True).start()
        async with asyncio.timeout(DEADLINE):
            await up.wait()

    async def aclose(self) -> None:
        self.stop()
        await self.stopped()

    def stop(self) -> None:
        assert self._loop is not None
        assert self._stop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """It does nothing within the block, and then finds everything that happened there at once."""
        assert self._loop is not None
        loop, holding, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def hold() -> None:
            loop.call_soon_threadsafe(holding.set)
            go.wait(DEADLINE)

        self._loop.call_soon_threadsafe(hold)
        async with asyncio.timeout(DEADLINE):
            await holding.wait()
        try:
            yield
        finally:
            go.set()

    async def stopped(self) -> None:
        assert self._served is not None
        async with asyncio.timeout(DEADLINE):
            await asyncio.shield(self._served)


class Front(WorkerThread):
    """A running worker with everything around it."""

    def __init__(self, config: ProxyConfig, feed: Feed, api: Origin, equipment: worker.Equipment) -> None:
        super().__init__(config, equipment)
        self.feed = feed
        self.api = api
        self._clients: list[Raw] = []

    @property
    def port(self) -> int:
        return self.config.port

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()
        await super().aclose()

    async def client(
        self, *, port: int | None = None, tls: ssl.SSLContext | None = None, server_name: str | None = None
    ) -> Raw:
        """A new connection, to the main port unless told otherwise."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port or self.port, ssl=tls, server_hostname=(server_name or ZONE) if tls else None
        )
        client = Raw(reader, writer)
        self._clients.append(client)
        return client

    async def get(self, host: str, path: str = "/", *, extra: str = "", method: str = "GET") -> Answer:
        """One request on a connection of its own."""
        client = await self.client()
        answer = await client.get(host, path, extra=extra, method=method)
        await client.aclose()
        return answer

    async def until(self, host: str, status: int) -> Answer:
        """Ask until the answer has this status: the feed's messages take their time."""
        async with asyncio.timeout(DEADLINE):
            while True:
                answer = await self.get(host)
                if answer.status == status:
                    return answer


def name(pod_hash: str = POD) -> str:
    return f"{pod_hash}.{ZONE}"


@contextlib.asynccontextmanager
async def front(
    table: Mapping[str, int | Target] | None = None,
    *,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
    scheme: str = "http",
    snapshot: bool = True,
    api: bool = True,
    redirect: bool = False,
    recorder: socket.socket | None = None,
    **settings: Any,
) -> AsyncIterator[Front]:
    """A proxy that knows these pods (a number is a port on 127.0.0.1), an API and a feed.

    `redirect` opens the port that leads to https; `settings` are more of ProxyConfig's.
    """
    targets = {
        pod_hash: Target("127.0.0.1", found) if isinstance(found, int) else found
        for pod_hash, found in (table or {}).items()
    }
    # Not tmp_path: a Unix socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="front-") as directory:
        [sock] = listeners.bind("127.0.0.1", 0, 1)
        others = listeners.bind("127.0.0.1", 0, 1) if redirect else []
        config = ProxyConfig(
            zone=ZONE,
            listen_address="127.0.0.1",
            port=sock.getsockname()[1],
            api_socket=Path(directory, "api.sock"),
            feed_socket=Path(directory, "feed.sock"),
            scheme=scheme,
            redirect_port=others[0].getsockname()[1] if others else None,
            timeouts=dataclasses.replace(timeouts or Timeouts(), routes=DEADLINE if snapshot else 0.0),
            limits=limits or Limits(),
            **settings,
        )
        certificates = Certificates(config.certificates) if config.certificates is not None else None
        context = certificates.context if certificates is not None else None
        equipment = worker.Equipment((sock,), others, context, recorder)
        feed = Feed(config.feed_socket, targets)
        if snapshot:
            await feed.start()
        served = Origin(answer=b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\napi")
        if api:
            await served.start(config.api_socket)
        running = Front(config, feed, served, equipment)
        try:
            await running.start()
            yield running
        finally:
            await running.aclose()
            await served.aclose()
            await feed.aclose()
