"""The proxy as it runs in earnest: bound once, forked, watched, drained, and gone with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from codius_proxy.config import ProxyConfig, SetupError
from codius_proxy.listeners import Listeners, bind, inherited, open_all
from codius_proxy.routes import Target
from tests.harness.front import POD, ZONE, Feed, Raw, name
from tests.harness.origin import ANSWER, DEADLINE, Line, Origin, closed_port, origin

# What `codiusd proxy` does, with a mark where privileges would be dropped.
PROGRAM = """
import json, logging, os, sys
from pathlib import Path
from codius_proxy.config import ProxyConfig, Timeouts
from codius_proxy.server import run
logging.basicConfig(level="INFO")
given = json.loads(sys.argv[1])
def drop():
    Path(given["mark"]).write_text(str(os.getpid()))
if given["listen_fd"]:
    os.dup2(given["listen_fd"], 3)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
run(ProxyConfig(zone=given["zone"], listen_address=given["address"], port=given["port"],
    api_socket=Path(given["api"]), feed_socket=Path(given["feed"]), workers=2,
    timeouts=Timeouts(drain=given["drain"])),
    drop_privileges=drop, on_ready=lambda: print("ready", flush=True))
"""


@dataclass(slots=True)
class Running:
    """A proxy of two workers, and what it was given."""

    process: asyncio.subprocess.Process
    address: str
    port: int
    mark: Path
    log: Path
    clients: list[Raw] = field(default_factory=list)

    async def client(self) -> Raw:
        client = Raw(*await asyncio.open_connection(self.address, self.port))
        self.clients.append(client)
        return client

    async def get(self, host: str) -> bytes:
        client = await self.client()
        try:
            return (await client.get(host)).body
        finally:
            await client.aclose()

    def workers(self) -> list[int]:
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(DEADLINE):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def running(
    pod: Origin, *, address: str = "127.0.0.1", listen_fd: int = 0, drain: float = 5.0
) -> AsyncIterator[Running]:
    with tempfile.TemporaryDirectory(prefix="front-") as directory:
        place = Path(directory)
        feed = await Feed(place / "feed", {POD: Target("127.0.0.1", pod.port)}).start()
        api = await Origin(answer=ANSWER.replace(b"hello", b"api  ")).start(place / "api")
        port = closed_port()
        given = {
            "zone": ZONE,
            "address": address,
            "port": port,
            "api": str(place / "api"),
            "feed": str(place / "feed"),
            "mark": str(place / "mark"),
            "listen_fd": listen_fd,
            "drain": drain,
        }
        with (place / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROGRAM, json.dumps(given),
                stdout=asyncio.subprocess.PIPE, stderr=log, pass_fds=(listen_fd,) if listen_fd else (),
            )  # fmt: skip
        found = Running(process, address, port, place / "mark", place / "log")
        try:
            assert process.stdout is not None
            async with asyncio.timeout(DEADLINE):
                assert await process.stdout.readline() == b"ready\n", (place / "log").read_text()
            yield found
        finally:
            await found.end(signal.SIGKILL)
            for client in found.clients:
                await client.aclose()
            await api.aclose()
            await feed.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether it still runs: an ended one that nobody collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_two_workers_serve_pods_and_the_api_and_privileges_were_dropped_first() -> None:
    async with origin() as pod, running(pod) as proxy:
        assert proxy.mark.read_text() == str(proxy.process.pid)
        assert len(proxy.workers()) == 2
        async with asyncio.timeout(DEADLINE):
            while await proxy.get(name()) != b"hello":  # a worker may not have its snapshot yet
                pass
        assert await proxy.get(ZONE) == b"api  "
        assert await proxy.end() == 0
        assert "Traceback" not in proxy.log.read_text()


async def test_a_stop_signal_lets_a_begun_request_finish_and_nothing_new_in() -> None:
    go, asked = asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        asked.set()
        await go.wait()
        await line.send(ANSWER)

    async with origin(script) as pod, running(pod) as proxy:
        client = await proxy.client()
        begun = asyncio.create_task(asked.wait())
        while True:
            await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
            answered = asyncio.create_task(client.answer())
            await asyncio.wait((begun, answered), return_when=asyncio.FIRST_COMPLETED)
            if begun.done():
                break
            assert (await answered).status == 503  # no snapshot yet
        proxy.process.send_signal(signal.SIGTERM)

        async def refused() -> bool:
            try:
                await (await proxy.client()).aclose()
            except ConnectionError:
                return True
            return False

        async with asyncio.timeout(DEADLINE):
            while not await refused():
                pass
        go.set()
        answer = await answered
        assert (answer.body, answer.one("connection")) == (b"hello", "close")
        await client.aclose()
        assert await proxy.ended() == 0


async def test_what_does_not_finish_in_time_does_not_hold_up_the_stop() -> None:
    async with origin() as pod, running(pod, drain=0.2) as proxy:
        client = await proxy.client()
        await client.send(f"POST / HTTP/1.1\r\nHost: {ZONE}\r\nContent-Length: 5\r\n\r\n".encode())
        assert await proxy.end() == 0
        await client.aclose()


async def test_a_worker_that_dies_is_replaced() -> None:
    async with origin() as pod, running(pod) as proxy:
        before = proxy.workers()
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: len(set(proxy.workers()) - set(before)) == 1)
        assert before[1] in proxy.workers()
        for _ in range(8):  # whichever worker gets it
            assert await proxy.get(ZONE) == b"api  "


async def test_workers_end_with_their_parent() -> None:
    async with origin() as pod, running(pod, drain=0.2) as proxy:
        workers = proxy.workers()
        await proxy.end(signal.SIGKILL)
        await until(lambda: not any(map(alive, workers)))


async def test_ctrl_c_stops_it_as_well() -> None:
    async with origin() as pod, running(pod) as proxy:
        for pid in [proxy.process.pid, *proxy.workers()]:
            os.kill(pid, signal.SIGINT)
        assert await proxy.ended() == 0
        assert "Traceback" not in proxy.log.read_text()


async def test_sockets_that_systemd_opened_are_used() -> None:
    with socket.socket() as handed:
        handed.bind(("127.0.0.1", 0))
        handed.listen(16)
        os.set_inheritable(handed.fileno(), True)
        async with origin() as pod, running(pod, listen_fd=handed.fileno()) as proxy:
            proxy.port = handed.getsockname()[1]
            for _ in range(4):
                assert await proxy.get(ZONE) == b"api  "


def config(port: int, *, workers: int = 2, redirect_port: int | None = None) -> ProxyConfig:
    return ProxyConfig(
        zone=ZONE,
        listen_address="127.0.0.1",
        port=port,
        api_socket=Path("/nowhere"),
        feed_socket=Path("/nowhere"),
        workers=workers,
        redirect_port=redirect_port,
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_workers_share_one_port(address: str) -> None:
    sockets = bind(address, 0, 2)
    try:
        assert len({found.getsockname()[1] for found in sockets}) == 1
        assert all(found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for found in sockets)
    finally:
        for found in sockets:
            found.close()


@pytest.mark.parametrize("which", ["port", "redirect_port"])
def test_an_address_that_is_taken_is_named(which: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        given = config(port) if which == "port" else config(0, redirect_port=port)
        with pytest.raises(SetupError, match=rf"cannot listen on 127\.0\.0\.1 port {port}"):
            open_all(given)


@pytest.mark.parametrize(
    ("pid", "count"), [("1", "1"), ("self", "0"), ("self", "x"), ("self", "9999"), ("", "1")]
)
def test_sockets_meant_for_somebody_else_are_left_alone(
    pid: str, count: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "self" else pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    assert inherited() == Listeners(())
