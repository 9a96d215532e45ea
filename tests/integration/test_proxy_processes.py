"""The proxy as it runs in earnest: bound once, forked, watched, drained, and gone with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from codius_proxy.config import AddressError, ProxyConfig, Timeouts
from codius_proxy.listeners import Listeners, bind, inherited, open_all, refuse_new
from codius_proxy.routes import Target
from tests.harness.certificates import Authority
from tests.harness.front import POD, ZONE, Feed, Raw, name
from tests.harness.origin import ANSWER, DEADLINE, Line, closed_port, origin
from tests.harness.processes import alive, running, until


async def test_two_workers_serve_pods_and_the_api_and_privileges_were_dropped_first() -> None:
    async with origin() as pod, running(pod) as proxy:
        assert proxy.mark.read_text() == str(proxy.process.pid)
        assert len(proxy.children()) == 2
        async with asyncio.timeout(DEADLINE):
            while await proxy.get(name()) != b"hello":  # a worker may not have its snapshot yet
                pass
        assert await proxy.get(ZONE) == b"api  "
        assert await proxy.end() == 0
        assert "Traceback" not in proxy.log.read_text()


async def test_a_name_in_a_handshake_that_is_none_ends_it_without_a_word_in_the_log(tmp_path: Path) -> None:
    authority = Authority()
    authority.issue(tmp_path / "host", ZONE, f"*.{ZONE}")
    outgoing = ssl.MemoryBIO()
    hello = authority.trust().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=f"zz.{ZONE}")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    strange = outgoing.read().replace(b"zz." + ZONE.encode(), b"\xff\xfe." + ZONE.encode())
    async with origin() as pod, running(pod, scheme="https", certificates=tmp_path) as proxy:
        for _ in range(3):
            stranger = await proxy.client()
            await stranger.send(strange)
            assert (await stranger.rest())[:1] == b"\x15"  # an alert
        client = await proxy.client(tls=authority.trust())
        assert (await client.get(ZONE)).body == b"api  "
        await proxy.end()
        told = proxy.log.read_text()
        assert "UnicodeDecodeError" not in told
        assert "Traceback" not in told


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
    async with origin() as pod, running(pod, timeouts=Timeouts(drain=0.2)) as proxy:
        client = await proxy.client()
        await client.send(f"POST / HTTP/1.1\r\nHost: {ZONE}\r\nContent-Length: 5\r\n\r\n".encode())
        assert await proxy.end() == 0
        await client.aclose()


async def test_a_worker_that_dies_is_replaced() -> None:
    async with origin() as pod, running(pod) as proxy:
        before = proxy.children()
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: len(set(proxy.children()) - set(before)) == 1)
        assert before[1] in proxy.children()
        for _ in range(8):  # whichever worker gets it
            assert await proxy.get(ZONE) == b"api  "


async def test_workers_end_with_their_parent() -> None:
    async with origin() as pod, running(pod, timeouts=Timeouts(drain=0.2)) as proxy:
        workers = proxy.children()
        await proxy.end(signal.SIGKILL)
        await until(lambda: not any(map(alive, workers)))


async def test_ctrl_c_stops_it_as_well() -> None:
    async with origin() as pod, running(pod) as proxy:
        for pid in [proxy.process.pid, *proxy.children()]:
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


async def test_the_command_serves_https_as_the_operators_settings_say() -> None:
    authority = Authority()
    port, redirect, metrics = closed_port(), closed_port(), closed_port()
    async with origin() as pod:
        # Not tmp_path: run as root, the front door becomes somebody who may not look into it.
        with tempfile.TemporaryDirectory(prefix="front-") as directory:
            place = Path(directory)
            place.chmod(0o755)
            authority.issue(place / "certificates" / "host", ZONE, f"*.{ZONE}")
            (place / "log").mkdir()
            (place / "log").chmod(0o777)
            feed = await Feed(place / "feed.sock", {POD: Target("127.0.0.1", pod.port)}).start()
            (place / "feed.sock").chmod(0o777)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "codius_node", "proxy",
                env={
                    **os.environ,
                    "CODIUS_PUBLIC_URI": f"https://{ZONE}:{port}",
                    "CODIUS_PORT": str(port),
                    "CODIUS_RUN": directory,
                    "CODIUS_TLS_CERTIFICATES": str(place / "certificates"),
                    "CODIUS_REDIRECT_PORT": str(redirect),
                    "CODIUS_HSTS": "60",
                    "CODIUS_ACCESS_LOG": str(place / "log" / "access.log"),
                    "CODIUS_METRICS": f"127.0.0.1:{metrics}",
                },
            )  # fmt: skip
            try:
                async with asyncio.timeout(DEADLINE):
                    while not (place / "log" / "access.log").exists():
                        await asyncio.sleep(0.02)
                    reader, writer = await asyncio.open_connection(
                        "127.0.0.1", port, ssl=authority.trust(), server_hostname=name()
                    )
                    answer = await Raw(reader, writer).get(name())
                    assert answer.body == b"hello"
                    assert answer.one("strict-transport-security") == "max-age=60"
                    writer.close()
                    await writer.wait_closed()
                    plain = Raw(*await asyncio.open_connection("127.0.0.1", redirect))
                    assert (await plain.get(name(), "/x")).one("location") == f"https://{name()}:{port}/x"
                    await plain.aclose()
                    scraper = Raw(*await asyncio.open_connection("127.0.0.1", metrics))
                    assert b"codius_proxy_requests_total" in (await scraper.get("metrics", "/metrics")).body
                    await scraper.aclose()
                process.terminate()
                async with asyncio.timeout(2 * DEADLINE):
                    assert await process.wait() == 0
                assert len((place / "log" / "access.log").read_text().splitlines()) == 2
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                await feed.aclose()


async def test_the_command_reads_its_settings_again_and_keeps_the_old_ones_where_a_new_one_is_bad() -> None:
    port = closed_port()
    # Not tmp_path: run as root, the front door becomes somebody who may not look into it.
    with tempfile.TemporaryDirectory(prefix="front-") as directory:
        place = Path(directory)
        place.chmod(0o755)
        settings = place / "codius.env"

        def write(**values: str) -> None:
            given = {"CODIUS_PORT": str(port), "CODIUS_RUN": directory, **values}
            settings.write_text("".join(f"{key}={value}\n" for key, value in given.items()))

        write(CODIUS_CONTACT="first@host.example")
        with (place / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "codius_node", "proxy", "--env-file", str(settings),
                env={name: value for name, value in os.environ.items() if not name.startswith("CODIUS_")},
                stderr=log,
            )  # fmt: skip

        async def contact() -> bytes:
            try:
                client = Raw(*await asyncio.open_connection("127.0.0.1", port))
            except ConnectionError:
                return b""
            answer = await client.get("x.example")
            await client.aclose()
            found: bytes = json.loads(answer.body)["contact"].encode()
            return found

        async def until_contact(expected: bytes) -> None:
            async with asyncio.timeout(DEADLINE):
                while await contact() != expected:
                    await asyncio.sleep(0.02)

        try:
            await until_contact(b"first@host.example")
            write(CODIUS_CONTACT="second@host.example")
            process.send_signal(signal.SIGHUP)
            await until_contact(b"second@host.example")
            write(CODIUS_CONTACT="third@host.example", CODIUS_PROXY_IDLE_TIMEOUT="never")
            process.send_signal(signal.SIGHUP)
            await until(lambda: "the workers stay as they are" in (place / "log").read_text())
            assert "CODIUS_PROXY_IDLE_TIMEOUT='never' cannot be used" in (place / "log").read_text()
            assert await contact() == b"second@host.example"
        finally:
            process.terminate()
            async with asyncio.timeout(2 * DEADLINE):
                assert await process.wait() == 0


NAMES = """
import fcntl, os, sys
from codius_proxy.listeners import inherited
given = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:]]
for number, copy in enumerate(given, 3):
    os.dup2(copy, number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="https:redirect")
found = inherited()
print([s.getsockname()[1] for s in found.main], [s.getsockname()[1] for s in found.redirect])
"""


def test_sockets_from_systemd_are_known_by_their_names() -> None:
    with socket.create_server(("127.0.0.1", 0)) as http, socket.create_server(("127.0.0.1", 0)) as https:
        given = (https.fileno(), http.fileno())
        done = subprocess.run(
            [sys.executable, "-c", NAMES, *map(str, given)],
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE,
            pass_fds=given,
        )
        assert done.stdout == f"[{https.getsockname()[1]}] [{http.getsockname()[1]}]\n"


def state_of(connection: socket.socket) -> int:
    """The kernel's TCP state: 1 is ESTABLISHED, 2 is SYN_SENT."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_listener_that_refuses_newcomers_still_has_those_who_came_before(address: str) -> None:
    [listening] = bind(address, 0, 1)
    with listening, contextlib.ExitStack() as stack:
        before, after = (stack.enter_context(socket.socket(listening.family)) for _ in range(2))
        before.connect(listening.getsockname())
        refuse_new([listening])
        after.setblocking(False)
        after.connect_ex(listening.getsockname())
        assert (state_of(before), state_of(after)) == (1, 2)
        accepted, _ = listening.accept()
        with accepted:
            before.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
            before.close()
            assert accepted.recv(5) == b""  # its FIN passes as well


@pytest.mark.parametrize("which", ["port", "redirect_port"])
def test_an_address_that_is_taken_is_named(which: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        given = config(port) if which == "port" else config(0, redirect_port=port)
        with pytest.raises(AddressError, match=rf"cannot listen on 127\.0\.0\.1 port {port}"):
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
