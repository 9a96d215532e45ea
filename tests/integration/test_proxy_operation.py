"""Operating the front door under load: nobody notices a reload, a stop or a dead node."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from codius_proxy import routes
from codius_proxy.config import Timeouts
from codius_proxy.routes import Notice, Target
from tests.harness.certificates import Authority
from tests.harness.front import OTHER, POD, ZONE, name
from tests.harness.origin import ANSWER, DEADLINE, Line, closed_port, origin, websocket_echo
from tests.harness.processes import Load, alive, node, one_of_each, running, until, worker_of
from tests.unit.proxy.test_metrics import SAMPLE

ROUNDS = 3
SOME = 200  # answers between two disturbances


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_a_reload_replaces_all_workers_and_no_request_fails(tls: bool, tmp_path: Path) -> None:
    authority = Authority()
    authority.issue(tmp_path / "host", ZONE, f"*.{ZONE}")
    async with (
        origin() as pod,
        running(pod, certificates=tmp_path if tls else None, scheme="https" if tls else "http") as proxy,
        Load(proxy, name(), tls=authority.trust() if tls else None) as load,
    ):
        for _ in range(ROUNDS):
            authority.issue(tmp_path / "host", ZONE, f"*.{ZONE}")
            before = set(proxy.children())
            proxy.process.send_signal(signal.SIGHUP)
            await until(lambda: not any(map(alive, before)))  # noqa: B023 - awaited here
            assert len(proxy.children()) == 2
            await load.more(SOME)
        await load.aclose()
        assert load.failures == []
        assert not load.refused
        assert await proxy.end() == 0
        assert "Traceback" not in proxy.log.read_text()


async def test_a_reload_leaves_tunnels_and_begun_answers_alone() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
        begun.set()
        await go.wait()
        await line.send(b"llo")

    # A worker that is to end would cut everybody at once; one that retires has all the time it needs.
    async with (
        origin(script) as pod,
        websocket_echo() as echo,
        running(pod, timeouts=Timeouts(drain=0.0)) as proxy,
    ):
        proxy.feed.add(OTHER, Target("127.0.0.1", echo))
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        await begun.wait()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{proxy.port}/", headers={"Host": name(OTHER)}) as socket_,
        ):
            before = set(proxy.children())
            proxy.process.send_signal(signal.SIGHUP)
            await until(lambda: len(set(proxy.children()) - before) == 2)
            await until(lambda: "retiring" in proxy.log.read_text())
            go.set()
            assert (await client.answer()).body == b"hello"
            for text in ("still", "there"):
                await socket_.send_str(text)
                assert await socket_.receive_str() == text
        await until(lambda: not any(map(alive, before)))


async def test_new_workers_take_nobody_before_they_know_the_routes() -> None:
    async with (
        origin() as pod,
        running(pod, timeouts=Timeouts(routes=2 * DEADLINE)) as proxy,
        Load(proxy, name()) as load,
    ):
        before = set(proxy.children())
        proxy.feed.silent = True
        proxy.process.send_signal(signal.SIGHUP)
        await until(lambda: proxy.feed.readers == 4)
        await load.more(SOME)
        proxy.feed.silent = False
        proxy.feed.say(routes.render_snapshot(proxy.feed.table))
        await until(lambda: not any(map(alive, before)))
        await load.more(SOME)
        await load.aclose()
        assert load.failures == []


async def test_a_reload_that_cannot_be_served_changes_nothing(tmp_path: Path) -> None:
    authority = Authority()
    authority.issue(tmp_path / "host", ZONE, f"*.{ZONE}")
    async with (
        origin() as pod,
        running(pod, certificates=tmp_path, scheme="https") as proxy,
        Load(proxy, name(), tls=authority.trust()) as load,
    ):
        before = proxy.children()
        (tmp_path / "host" / "privkey.pem").write_text("no key")
        proxy.process.send_signal(signal.SIGHUP)
        await until(lambda: "the workers stay as they are" in proxy.log.read_text())
        await load.more(SOME)
        assert proxy.children() == before
        await load.aclose()
        assert load.failures == []


async def test_a_reload_takes_new_settings_and_no_request_fails() -> None:
    async with origin() as pod, running(pod) as proxy, Load(proxy, name()) as load:
        for workers, contact in ((4, "first@host.example"), (1, "second@host.example")):
            before = set(proxy.children())
            proxy.change(workers=workers, contact=contact)
            proxy.process.send_signal(signal.SIGHUP)
            await until(lambda: not any(map(alive, before)))  # noqa: B023 - awaited here
            assert len(proxy.children()) == workers
            await load.more(SOME)
            assert contact.encode() in await proxy.get(name(OTHER))
        os.kill(proxy.children()[0], signal.SIGKILL)  # who replaces it has the new ones, too
        await load.aclose()
        await until(lambda: len(proxy.children()) == 1)
        assert b"second@host.example" in await proxy.get(name(OTHER))
        assert not load.refused
        assert await proxy.end() == 0
        assert "Traceback" not in proxy.log.read_text()


async def test_a_reload_begins_moves_and_ends_the_access_log(tmp_path: Path) -> None:
    async def see(host: str, log: Path) -> None:
        """Ask until there is a line about this pod: a worker tells the recorder within a second."""
        async with asyncio.timeout(DEADLINE):
            while not (log.exists() and host.partition(".")[0] in log.read_text()):
                await proxy.get(host)

    async with origin() as pod, running(pod) as proxy:
        for log in (tmp_path / "first", tmp_path / "second", None):
            before = set(proxy.children())
            proxy.change(access_log=log)
            proxy.process.send_signal(signal.SIGHUP)
            await until(lambda: not any(map(alive, before)))  # noqa: B023 - awaited here
            if log is not None:
                await see(name(OTHER), log)
        size = (tmp_path / "second").stat().st_size
        await proxy.get(name(OTHER))
        assert await proxy.end() == 0
        assert (tmp_path / "second").stat().st_size == size


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"port": 1}, "which takes a restart"),
        ({"listen_address": "::1"}, "which takes a restart"),
        ({"metrics": ("127.0.0.1", 1)}, "which takes a restart"),
        ({"access_log": Path("/nowhere/access.log")}, "cannot write the access log"),
        ({"certificates": Path("/nowhere")}, "the certificates in /nowhere"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_a_setting_that_cannot_be_taken_up_changes_nothing_and_is_told(
    settings: dict[str, Any], said: str
) -> None:
    async with origin() as pod, running(pod) as proxy, Load(proxy, name()) as load:
        before = proxy.children()
        proxy.change(**settings, contact="nobody@host.example")
        proxy.process.send_signal(signal.SIGHUP)
        await until(lambda: "the workers stay as they are" in proxy.log.read_text())
        assert said in proxy.log.read_text()
        await load.more(SOME)
        os.kill(before[0], signal.SIGKILL)  # who replaces it has the old settings
        await load.aclose()
        await until(lambda: len(set(proxy.children()) - set(before)) == 1)
        for client in (await one_of_each(proxy)).values():
            assert b"nobody@" not in (await client.get(name(OTHER))).body


async def test_new_workers_that_cannot_live_change_nothing() -> None:
    async with origin() as pod, running(pod) as proxy, Load(proxy, name()) as load:
        before = proxy.children()
        broken = Timeouts(
            idle=cast(float, "a minute")
        )  # no value that settings let through: a mistake of ours
        proxy.change(timeouts=broken, contact="nobody@host.example")
        proxy.process.send_signal(signal.SIGHUP)
        await until(lambda: "the old ones stay" in proxy.log.read_text())
        await until(lambda: proxy.children() == before)
        await load.more(SOME)
        os.kill(before[0], signal.SIGKILL)  # who replaces it has the settings that work
        await load.aclose()
        await until(lambda: len(set(proxy.children()) - set(before)) == 1)
        for client in (await one_of_each(proxy)).values():
            assert b"nobody@" not in (await client.get(name(OTHER))).body


async def test_a_machine_that_lets_nobody_fork_keeps_the_workers_it_has() -> None:
    async with origin() as pod, running(pod) as proxy, Load(proxy, name()) as load:
        before = proxy.children()
        proxy.full.touch()
        proxy.process.send_signal(signal.SIGHUP)
        await until(lambda: "the old ones stay" in proxy.log.read_text())
        assert proxy.children() == before
        await load.more(SOME)
        await load.aclose()
        assert load.failures == []
        os.kill(before[0], signal.SIGKILL)
        await until(
            lambda: f"worker 0 cannot be started: {os.strerror(errno.EAGAIN)}" in proxy.log.read_text()
        )
        visitors = [
            asyncio.create_task(proxy.get(ZONE)) for _ in range(8)
        ]  # some of them wait for its successor
        proxy.full.unlink()
        assert await asyncio.gather(*visitors) == [b"api  "] * 8
        assert len(proxy.children()) == len(before)
        assert await proxy.end() == 0


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_a_stop_answers_every_request_that_was_sent(tls: bool, tmp_path: Path) -> None:
    authority = Authority()
    authority.issue(tmp_path / "host", ZONE, f"*.{ZONE}")
    for _ in range(ROUNDS):
        async with (
            origin() as pod,
            running(pod, certificates=tmp_path if tls else None, scheme="https" if tls else "http") as proxy,
            Load(proxy, name(), tls=authority.trust() if tls else None) as load,
        ):
            proxy.process.send_signal(signal.SIGTERM)
            await load.all_refused()
            assert load.failures == []
            assert load.refused
            assert await proxy.ended() == 0


async def test_a_stop_answers_those_who_wait_in_the_queue() -> None:
    async with origin() as pod, running(pod) as proxy:
        for client in (await one_of_each(proxy)).values():
            await client.aclose()
        workers = proxy.children()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        waiting = [await proxy.client() for _ in range(8)]
        for client in waiting:
            await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        proxy.process.send_signal(signal.SIGTERM)
        await until(lambda: "draining" in proxy.log.read_text())
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        for client in waiting:
            assert (await client.answer()).body == b"hello"
        assert await proxy.ended() == 0


async def test_a_killed_node_costs_no_request_and_comes_back_with_new_routes(tmp_path: Path) -> None:
    path = tmp_path / "feed"
    async with origin() as pod, origin(answer=ANSWER.replace(b"hello", b"other")) as other:
        known = {POD: ("127.0.0.1", pod.port)}
        async with (
            node(path, known) as first,
            running(pod, own_feed=False, feed_socket=path) as proxy,
            Load(proxy, name()) as load,
        ):
            first.kill()
            await first.wait()
            await load.more(SOME)
            async with node(path, {**known, OTHER: ("127.0.0.1", other.port)}):
                async with asyncio.timeout(DEADLINE):
                    while await proxy.get(name(OTHER)) != b"other":
                        pass
                await load.more(SOME)
            await load.aclose()
            assert load.failures == []
            assert not load.refused


async def test_workers_that_start_while_the_node_is_away_know_the_routes(tmp_path: Path) -> None:
    path = tmp_path / "feed"
    async with (
        origin() as pod,
        node(path, {POD: ("127.0.0.1", pod.port)}, stopped={OTHER: "Malware."}) as publisher,
        running(pod, own_feed=False, feed_socket=path) as proxy,
    ):
        for client in (await one_of_each(proxy)).values():
            assert (await client.get(name())).body == b"hello"
            assert (await client.get(name(OTHER))).status == 410
            await client.aclose()
        publisher.kill()
        await publisher.wait()
        await until(lambda: proxy.log.read_text().count("is away") >= 2)  # both workers have seen it
        before = proxy.children()
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: len(set(proxy.children()) - set(before)) == 1)
        proxy.process.send_signal(signal.SIGHUP)
        await until(lambda: not any(map(alive, before)))
        for client in (await one_of_each(proxy)).values():
            assert (await client.get(name())).body == b"hello"
            assert b"Reason: Malware." in (await client.get(name(OTHER))).body


async def test_workers_that_start_while_the_node_says_nothing_know_the_routes() -> None:
    async with (
        origin() as pod,
        running(pod, timeouts=Timeouts(routes=0.3)) as proxy,
    ):
        for client in (await one_of_each(proxy)).values():
            assert (await client.get(name())).body == b"hello"
            await client.aclose()
        proxy.feed.silent = True
        before = proxy.children()
        proxy.process.send_signal(signal.SIGHUP)
        await until(lambda: not any(map(alive, before)))
        for client in (await one_of_each(proxy)).values():
            assert (await client.get(name())).body == b"hello"


async def test_a_route_that_is_gone_does_not_come_back_in_workers_started_when_the_node_hangs() -> None:
    async with (
        origin() as pod,
        running(pod, timeouts=Timeouts(routes=0.3)) as proxy,
    ):
        proxy.feed.add(OTHER, Target("127.0.0.1", pod.port))
        clients = (await one_of_each(proxy)).values()
        for client in clients:
            async with asyncio.timeout(DEADLINE):
                while (await client.get(name(OTHER))).status != 200:
                    pass
        proxy.feed.silent = True
        proxy.feed.remove(OTHER)
        for client in clients:
            async with asyncio.timeout(DEADLINE):
                while (await client.get(name(OTHER))).status != 404:
                    pass
        before = proxy.children()
        for pid in before:  # all at once: none of them is left to keep the routes in its own time
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(set(proxy.children()) - set(before)) == 2)
        for client in (await one_of_each(proxy)).values():
            assert (await client.get(name(OTHER))).status == 404
            assert (await client.get(name())).body == b"hello"


async def test_a_route_change_reaches_every_worker() -> None:
    async with (
        origin() as pod,
        origin(answer=ANSWER.replace(b"hello", b"other")) as other,
        running(pod) as proxy,
    ):
        clients = (await one_of_each(proxy)).values()
        proxy.feed.add(OTHER, Target("127.0.0.1", other.port))
        for client in clients:
            async with asyncio.timeout(DEADLINE):
                while (await client.get(name(OTHER))).body != b"other":
                    pass
        proxy.feed.remove(OTHER)
        for client in clients:
            async with asyncio.timeout(DEADLINE):
                while (answer := await client.get(name(OTHER))).status != 404:
                    pass
            assert b"was on this host until a while ago" in answer.body


async def test_a_stopped_pod_is_gone_in_every_worker_and_says_so_until_it_is_back() -> None:
    async with origin() as pod, running(pod) as proxy:
        clients = (await one_of_each(proxy)).values()
        proxy.feed.stop(POD, Notice(True, "A court said so."))
        for client in clients:
            async with asyncio.timeout(DEADLINE):
                while (answer := await client.get(name())).status != 451:
                    assert answer.body == b"hello"
            assert b"A court said so." in answer.body
            assert answer.one("link") == f'<{proxy.config.url()}>; rel="blocked-by"'
        proxy.feed.add(POD, Target("127.0.0.1", pod.port))
        for client in clients:
            async with asyncio.timeout(DEADLINE):
                while (await client.get(name())).status != 200:
                    pass


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_tls_session_is_resumed_by_whichever_worker(version: ssl.TLSVersion, tmp_path: Path) -> None:
    authority = Authority()
    authority.issue(tmp_path / "host", ZONE, f"*.{ZONE}")
    context = authority.trust()
    context.minimum_version = context.maximum_version = version

    def visit(port: int, session: ssl.SSLSession | None) -> tuple[str, bool | None, ssl.SSLSession | None]:
        """The worker, whether it resumed the session, and the session to go on with."""
        with (
            socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as plain,
            context.wrap_socket(plain, server_hostname=ZONE, session=session) as secure,
        ):
            secure.sendall(f"HEAD / HTTP/1.1\r\nHost: {name('z' * 52)}\r\nConnection: close\r\n\r\n".encode())
            head = b""
            while piece := secure.recv(65536):
                head += piece
            found = head.lower().partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
            return worker_of(found), secure.session_reused, secure.session

    async with origin() as pod, running(pod, certificates=tmp_path, scheme="https") as proxy:
        workers: set[str] = set()
        worker, reused, session = await asyncio.to_thread(visit, proxy.port, None)
        assert not reused
        async with asyncio.timeout(DEADLINE):
            while len(workers) < 2:
                worker, reused, session = await asyncio.to_thread(visit, proxy.port, session)
                assert reused
                workers.add(worker)


async def test_a_hang_up_for_every_process_takes_no_sum_with_it(tmp_path: Path) -> None:
    """As `pkill -HUP` sends it: the recorder has nothing to take up, and its counters only grow."""
    async with origin() as pod, running(pod, access_log=tmp_path / "access.log") as proxy:
        recorder, *workers = proxy.children()
        for pid in (recorder, *workers, proxy.process.pid):
            os.kill(pid, signal.SIGHUP)
        await until(lambda: not any(map(alive, workers)))
        assert await proxy.get(name()) == b"hello"
        assert proxy.children()[0] == recorder
        assert await proxy.end() == 0


async def test_every_request_is_one_line_and_one_count_whichever_worker_served_it(tmp_path: Path) -> None:
    log, port = tmp_path / "access.log", closed_port()
    async with (
        origin() as pod,
        running(pod, access_log=log, metrics=("127.0.0.1", port)) as proxy,
        aiohttp.ClientSession() as session,
    ):
        async with Load(proxy, name()) as load:
            await load.more(SOME)
            recorder, *workers = proxy.children()
            os.kill(recorder, signal.SIGKILL)  # a new one takes over, and what it was sent meanwhile
            await until(lambda: len(set(proxy.children()) - {recorder, *workers}) == 1)
            await load.more(SOME)
            proxy.process.send_signal(signal.SIGHUP)
            await until(lambda: not any(map(alive, workers)))
        assert load.failures == []
        refused = json.loads(await proxy.get(name(OTHER)))

        async def counted() -> dict[str, float]:
            async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                text = await answer.text()
            samples = map(SAMPLE.fullmatch, text.splitlines())
            return {f"{match[1]}{{{match[2]}}}": float(match[3]) for match in samples if match is not None}

        async with asyncio.timeout(DEADLINE):
            while not (found := await counted()).get('codius_proxy_refusals_total{reason="no_pod"}'):
                await asyncio.sleep(0.05)
        assert found[f'codius_proxy_requests_total{{pod="{POD}",code="200"}}'] > SOME
        assert found['codius_proxy_requests_total{pod="",code="404"}'] == 1
        assert found["codius_proxy_accepted_connections_total{None}"] > 1
        assert await proxy.end() == 0
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert len(lines) == len({line["id"] for line in lines}) == load.answered + 1
        assert {worker_of(line["id"]) for line in lines if line["pod"] == POD} > set()
        assert [(line["refusal"], line["id"]) for line in lines if line["status"] == 404] == [
            ("no_pod", refused["requestId"])
        ]
        assert all(line["client"] == "127.0.0.1" for line in lines)


async def test_what_does_not_drain_in_time_is_cut_and_told() -> None:
    begun = asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        begun.set()
        await asyncio.Event().wait()

    async with origin(script) as pod, running(pod, timeouts=Timeouts(drain=0.3)) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        await begun.wait()
        assert await proxy.end() == 0
        assert await client.rest() == b""
        assert "cutting 1 visitors" in proxy.log.read_text()
