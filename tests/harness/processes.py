"""The front door as it runs in earnest, a parent and its workers, and visitors that let no failure pass."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import pickle
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from codius_proxy.config import ProxyConfig
from codius_proxy.routes import Target
from tests.harness.front import POD, ZONE, Feed, Raw, name
from tests.harness.origin import ANSWER, DEADLINE, Origin, closed_port

# What `codiusd proxy` does, with a mark where privileges would be dropped.
_PROGRAM: Final = """
import base64, errno, logging, os, pickle, sys
from pathlib import Path
from codius_proxy.server import run
logging.basicConfig(level="INFO")
config, mark, listen_fd = pickle.loads(base64.b64decode(sys.argv[1]))
changed = mark.with_name("changed")
fork, full = os.fork, mark.with_name("full")
def fork_or_not():
    if full.exists():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = fork_or_not
def drop():
    mark.write_text(str(os.getpid()))
def reread():
    return pickle.loads(changed.read_bytes()) if changed.exists() else config
if listen_fd:
    os.dup2(listen_fd, 3)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
run(config, drop_privileges=drop, on_ready=lambda: print("ready", flush=True), reread=reread)
"""

# The node's side of the feed, by the node's own code.
_NODE: Final = """
import asyncio, json, sys
from pathlib import Path
from codius_node.feed import Feed
from codius_node.model import ManifestHash, Notice, Target
async def main():
    feed = Feed()
    for pod, (address, port) in json.loads(sys.argv[2]).items():
        feed.publish(ManifestHash(pod), Target(address, port))
    for pod, reason in json.loads(sys.argv[3]).items():
        feed.stop(ManifestHash(pod), Notice(False, reason))
    await feed.start(Path(sys.argv[1]))
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@dataclass(slots=True)
class Running:
    """A front door of several processes, and what it was given."""

    process: asyncio.subprocess.Process
    config: ProxyConfig
    port: int
    feed: Feed
    mark: Path
    log: Path
    clients: list[Raw] = field(default_factory=list)

    async def client(self, *, tls: ssl.SSLContext | None = None) -> Raw:
        client = Raw(
            *await asyncio.open_connection(
                self.config.listen_address, self.port, ssl=tls, server_hostname=ZONE if tls else None
            )
        )
        self.clients.append(client)
        return client

    async def get(self, host: str) -> bytes:
        client = await self.client()
        try:
            return (await client.get(host)).body
        finally:
            await client.aclose()

    def change(self, **settings: Any) -> None:
        """What it is to find when it reads its settings again; `settings` are ProxyConfig's."""
        self.mark.with_name("changed").write_bytes(pickle.dumps(replace(self.config, **settings)))

    @property
    def full(self) -> Path:
        """While this file exists the machine lets nobody fork."""
        return self.mark.with_name("full")

    def children(self) -> list[int]:
        """Its workers, and the recorder before them where there is one."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [pid for pid in map(int, text.split()) if alive(pid)]

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(2 * DEADLINE):
            return await self.process.wait()


def worker_of(request_id: str) -> str:
    return request_id.partition("-")[0]


async def one_of_each(proxy: Running, *, count: int = 2) -> dict[str, Raw]:
    """A kept-alive connection to each worker, by the worker's name."""
    found: dict[str, Raw] = {}
    async with asyncio.timeout(DEADLINE):
        while len(found) < count:
            client = await proxy.client()
            answer = await client.get(name("z" * 52))  # no such hash can be: the answer says whose it is
            if found.setdefault(worker_of(answer.one("x-request-id")), client) is not client:
                await client.aclose()  # a worker that is to retire would wait for it
    return found


@contextlib.asynccontextmanager
async def running(
    pod: Origin, *, listen_fd: int = 0, own_feed: bool = True, **settings: Any
) -> AsyncIterator[Running]:
    """A front door of two workers that knows one pod; `settings` are ProxyConfig's.

    Without `own_feed` the feed is somebody else's, at `config.feed_socket`.
    """
    with tempfile.TemporaryDirectory(prefix="front-") as directory:
        place = Path(directory)
        feed = Feed(place / "feed", {POD: Target("127.0.0.1", pod.port)})
        if own_feed:
            await feed.start()
        api = await Origin(answer=ANSWER.replace(b"hello", b"api  ")).start(place / "api")
        config = ProxyConfig(
            zone=ZONE,
            listen_address="127.0.0.1",
            port=closed_port(),
            api_socket=place / "api",
            feed_socket=place / "feed",
            workers=2,
        )
        config = replace(config, **settings)
        given = base64.b64encode(pickle.dumps((config, place / "mark", listen_fd))).decode()
        with (place / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _PROGRAM, given,
                stdout=asyncio.subprocess.PIPE, stderr=log, pass_fds=(listen_fd,) if listen_fd else (),
            )  # fmt: skip
        found = Running(process, config, config.port, feed, place / "mark", place / "log")
        try:
            await _ready(process, place / "log")
            yield found
        finally:
            await found.end(signal.SIGKILL)
            for client in found.clients:
                await client.aclose()
            await api.aclose()
            await feed.aclose()


@contextlib.asynccontextmanager
async def node(
    path: Path, routes: Mapping[str, tuple[str, int]], *, stopped: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that publishes these routes as the node does, and why the others are `stopped`."""
    path.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _NODE, str(path), json.dumps(routes), json.dumps(stopped or {})),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        await _ready(process, None)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ready(process: asyncio.subprocess.Process, log: Path | None) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        line = await process.stdout.readline()
    assert line == b"ready\n", log.read_text() if log is not None else line


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2 * DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether it still runs: an ended one that nobody collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second when it goes between open and read
        return False


class Load:
    """Visitors that ask one request after the other, half of them on a new connection each time.

    A request that was sent and not answered with 200 in full is a failure, whatever the reason: also a
    kept-alive connection that ends just as it is used. A connection that is refused is one only while
    the front door is meant to be open.
    """

    def __init__(
        self, proxy: Running, host: str, *, visitors: int = 8, tls: ssl.SSLContext | None = None
    ) -> None:
        self.failures: list[str] = []
        self.answered = 0
        self.refused = 0
        self._proxy = proxy
        self._host = host
        self._tls = tls
        self._visitors = visitors
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._visit(keep_alive=number % 2 == 0), name=f"visitor {number}")
            for number in range(self._visitors)
        ]
        await self.more(2 * self._visitors)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let every visitor have its answer, then no more."""
        self._stopping = True
        async with asyncio.timeout(2 * DEADLINE):
            await asyncio.gather(*self._tasks)

    async def more(self, count: int) -> None:
        """Wait until that many more were answered."""
        wanted = self.answered + count
        await until(lambda: self.answered >= wanted or bool(self.failures))

    async def all_refused(self) -> None:
        async with asyncio.timeout(2 * DEADLINE):
            await asyncio.wait(self._tasks)

    async def _visit(self, *, keep_alive: bool) -> None:
        while not self._stopping:
            try:
                client = await self._connect()
            except ConnectionRefusedError:
                self.refused += 1
                return
            try:
                await self._ask(client, keep_alive=keep_alive)
            finally:
                client.writer.close()
                with contextlib.suppress(OSError):
                    await client.writer.wait_closed()

    async def _connect(self) -> Raw:
        async with asyncio.timeout(DEADLINE):
            return Raw(
                *await asyncio.open_connection(
                    "127.0.0.1", self._proxy.port, ssl=self._tls, server_hostname=ZONE if self._tls else None
                )
            )

    async def _ask(self, client: Raw, *, keep_alive: bool) -> None:
        while not self._stopping:
            try:
                answer = await client.get(self._host, extra="" if keep_alive else "Connection: close\r\n")
            except (OSError, EOFError) as error:
                self.failures.append(repr(error))
                return
            if (answer.status, answer.body) != (200, b"hello"):
                self.failures.append(f"{answer.status} {answer.body!r}")
                return
            self.answered += 1
            if answer.has("connection"):
                return
