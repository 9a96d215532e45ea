"""The self-test of a whole host on loopback: the real front door, API, engine and store; the sample's own
program as a process, where podman would run it in a container.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import socket
import ssl
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web

from codius_node import answers, api, manifest, parcels, sample, sample_program, selftest
from codius_node.config import Settings, load
from codius_node.engine import Engine
from codius_node.errors import EngineError, PaymentRequiredError, StoreError
from codius_node.feed import Feed
from codius_node.model import Capacity, Json, ManifestHash, Pod, PodSpec, Quote, Receipt, Target
from codius_node.noop import NoopEngine, NoopNetwork
from codius_node.payments import FreeRail, HouseRail
from codius_node.policy import build_policy
from codius_node.selftest import Report, SelfTest, StepError, Verdict, judge_names
from codius_node.store import Store
from codius_proxy import worker
from codius_proxy.config import ProxyConfig
from tests.harness.certificates import AUTHORITY_FILE, make_contexts
from tests.harness.front import WorkerThread
from tests.harness.origin import Line, Received, origin, websocket_echo
from tests.integration.engine_double import HostDouble, PeersDouble

DEADLINE: Final = 30.0
STEP_SECONDS: Final = 5.0
IMPATIENT: Final = 0.3
"""Seconds for a step that is meant to fail."""
OWN_IMAGE: Final = "registry.example/echo@sha256:" + "1" * 64


class Processes(NoopEngine):
    """Runs the program of an imported image as it was uploaded, but for its port: a process shares ours."""

    def __init__(self) -> None:
        super().__init__()
        self.imported: list[str] = []
        self.error: EngineError | None = None
        self.deaf = False
        """Whether programs are not started at all."""
        self.port = 0
        self._program: Path | None = None
        self._specs: dict[ManifestHash, PodSpec] = {}
        self._running: list[asyncio.subprocess.Process] = []
        self._reserved: list[socket.socket] = []

    def keep_in(self, directory: Path) -> None:
        self._program = directory / "program"

    async def import_image(self, name: str, archive: bytes) -> str:
        if self.error:
            raise self.error
        assert self._program is not None
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            file = tar.extractfile(sample.PROGRAM)
            assert file is not None
            program = file.read()
        # Kept: a port that was only looked up is anybody's until the program is there, as the source of their
        # connections or of our own. Both sides say SO_REUSEADDR, so the program may listen beside us.
        reserved = socket.socket()
        self._reserved.append(reserved)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        self.port = reserved.getsockname()[1]
        usual, own = (number.to_bytes(2, "big") for number in (sample.PORT, self.port))
        assert program.count(usual) == 1
        self._program.unlink(missing_ok=True)  # another test's may be running
        self._program.write_bytes(program.replace(usual, own))
        self._program.chmod(0o755)
        self.imported.append(name)
        return await super().import_image(name, archive)

    async def create(self, spec: PodSpec) -> None:
        self._specs[spec.hash] = spec
        await super().create(spec)

    async def start_members(self, hash: ManifestHash) -> None:
        await super().start_members(hash)
        [container] = self._specs[hash].containers
        if self.deaf or container.command is None:
            return
        process = await asyncio.create_subprocess_exec(str(self._program), *container.command[1:])
        self._running.append(process)
        while True:
            assert process.returncode is None
            with contextlib.suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        for process in self._running:
            process.kill()
            await process.wait()
        for reserved in self._reserved:
            reserved.close()


class Room(HostDouble):
    def free_disk(self) -> int:
        return 100 * 2**30


class Rail(FreeRail):
    """Free, until `paid`."""

    paid = False

    async def authorize(self, quote: Quote, token: str | None) -> None:
        if self.paid:
            raise PaymentRequiredError("pay first")

    async def claim(self, quote: Quote, token: str | None) -> Receipt:
        await self.authorize(quote, token)
        return await super().claim(quote, token)


@dataclass
class Host:
    """A host and its self-test."""

    settings: Settings
    engine: Engine
    containers: Processes
    rail: Rail
    house: HouseRail
    store: Store
    test: SelfTest
    target: Callable[[Pod], Target | None] | None = None

    def retest(
        self,
        settings: Settings | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        **options: float,
    ) -> SelfTest:
        """Another one, with other settings."""
        return SelfTest(
            settings=settings or self.settings,
            engine=self.engine,
            images=self.containers,
            passes=self.house,
            store=self.store,
            clock=clock,
            step_seconds=options.get("step_seconds", STEP_SECONDS),
            first_seconds=options.get("first_seconds", selftest.FIRST_SECONDS),
        )


@asynccontextmanager
async def open_host(
    directory: Path, *, front_door: bool = True, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Host]:
    """With `tls` the world sees it by https, as through a reverse proxy."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = int(listening.getsockname()[1])
    scheme = "http"
    relay: asyncio.Server | None = None
    if tls is not None:
        relay = await asyncio.start_server(partial(pass_on, port), "127.0.0.1", 0, ssl=tls)
        scheme, port = "https", relay.sockets[0].getsockname()[1]
    settings = load(
        {
            "CODIUS_PUBLIC_URI": f"{scheme}://codius.localhost:{port}",
            "CODIUS_ROOT": str(directory),
            "CODIUS_RUN": str(directory),
            "CODIUS_POD_RESOLVERS": "192.0.2.53",
        }
    )
    async with AsyncExitStack() as stack:
        stack.callback(listening.close)
        if relay is not None:
            await stack.enter_async_context(relay)
        containers, rail, feed = Processes(), Rail(), Feed()
        house = HouseRail(rail)
        containers.keep_in(directory)
        stack.push_async_callback(containers.aclose)
        store = await Store.open(settings.database, key_path=settings.key_file, restore=manifest.restore)
        stack.push_async_callback(store.aclose)
        engine = Engine(
            settings=replace(settings, noop=True),  # no pod has an address that could be waited for
            store=store,
            containers=containers,
            network=NoopNetwork(build_policy(settings)),
            rail=house,
            routes=feed,
            host=Room(),
            target_of=lambda pod: (host.target or own_process)(pod),
        )

        def own_process(_: Pod) -> Target:
            return Target("127.0.0.1", containers.port)

        test = SelfTest(
            settings=settings,
            engine=engine,
            images=containers,
            passes=house,
            store=store,
            step_seconds=STEP_SECONDS,
        )
        host = Host(settings, engine, containers, rail, house, store, test)
        await feed.start(settings.feed_socket)
        stack.push_async_callback(feed.aclose)
        app = api.build_app(
            engine=engine,
            peers=PeersDouble(),
            host=Room(),
            selftest=test,
            settings=settings,
            started_at=datetime.now(UTC),
        )
        runner = answers.Runner(app, shutdown_timeout=1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.UnixSite(runner, str(settings.api_socket)).start()
        if front_door:
            await serve_front_door(settings, listening, stack)
        else:
            listening.close()
        yield host


async def pass_on(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A connection, to the same bytes on another port, until either side ends it."""
    inner, outer = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)

    ways = [asyncio.create_task(copy(reader, outer)), asyncio.create_task(copy(inner, writer))]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        way.cancel()
    await asyncio.gather(*ways, return_exceptions=True)
    writer.close()
    outer.close()


async def serve_front_door(settings: Settings, listening: socket.socket, stack: AsyncExitStack) -> None:
    config = ProxyConfig(
        zone=settings.public_uri.host,
        listen_address="127.0.0.1",
        port=int(listening.getsockname()[1]),
        scheme=settings.public_uri.scheme,
        api_socket=settings.api_socket,
        feed_socket=settings.feed_socket,
        public_port=settings.public_uri.port,
    )
    front = WorkerThread(config, worker.Equipment((listening,)))
    await front.start()
    stack.push_async_callback(front.aclose)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    if sample_program.find_architecture() is None:
        pytest.skip("there is no built-in sample for this processor")
    async with asyncio.timeout(DEADLINE), open_host(tmp_path) as host:
        yield host


def verdicts(report: Report) -> dict[str, str]:
    return {step.name: step.verdict.value for step in report.steps}


def message(report: Report, name: str) -> str:
    [step] = [step for step in report.steps if step.name == name]
    return f"{step.message} {step.hint or ''}"


ALL_PASSED: Final = dict.fromkeys(("names", "front door", "sample", "upload", "visit", "websocket"), "passed")


async def test_a_host_in_order_passes_and_says_what_it_cannot_know(host: Host) -> None:
    assert host.retest().success is None
    report = await host.test.run()
    assert verdicts(report) == ALL_PASSED, report
    assert report.success is True
    assert host.test.success is report.success
    assert "127.0.0.1" in message(report, "names")
    assert host.settings.public_uri.origin in message(report, "front door")
    assert report.beyond == selftest.UNCHECKED_OF_LOCALHOST
    [pod] = await host.engine.pods()
    assert pod.hash in message(report, "upload")
    assert (pod.expires_at - pod.created_at).total_seconds() == pytest.approx(selftest.SAMPLE_SECONDS, abs=5)


async def test_every_test_is_a_pod_of_its_own_and_two_at_once_are_one(host: Host) -> None:
    first, second = await asyncio.gather(host.test.run(), host.test.run())
    assert first is second
    assert len(await host.engine.pods()) == 1
    third = host.retest()
    assert (await third.run()).success is True
    assert len({pod.hash for pod in await host.engine.pods()}) == 2


async def test_a_host_that_the_world_sees_by_https_is_tested_by_https(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, trusting = make_contexts(tmp_path, "codius.localhost", "*.codius.localhost")
    async with asyncio.timeout(DEADLINE), open_host(tmp_path, tls=serving) as host:
        report = await host.test.run()
        assert verdicts(report)["front door"] == "failed"
        assert "its certificate is not valid" in message(report, "front door")
        assert verdicts(report)["upload"] == "unchecked"
        monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
        report = await host.retest(step_seconds=IMPATIENT).run()
        assert verdicts(report) == ALL_PASSED | {"visit": "failed", "websocket": "failed"}
        assert "127.0.0.1: its certificate is not valid" in message(report, "visit")
        assert "; ::1: " in message(report, "websocket")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / AUTHORITY_FILE))
        report = await host.test.run()
    assert verdicts(report) == ALL_PASSED, report
    assert f"https://codius.localhost:{host.settings.public_uri.port}" in message(report, "front door")


async def test_a_host_whose_front_door_is_closed_fails_there_and_tries_no_upload(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE), open_host(tmp_path, front_door=False) as host:
        report = await host.test.run()
        assert verdicts(report) == {
            "names": "passed",
            "front door": "failed",
            "sample": "passed",
            "upload": "unchecked",
            "visit": "unchecked",
            "websocket": "unchecked",
        }
        assert "cannot be reached" in message(report, "front door")
        assert "Is the front door running" in message(report, "front door")
        assert "needs front door" in message(report, "upload")
        assert host.test.success is False
        assert list(await host.engine.pods()) == []


async def test_another_host_at_our_name_is_found_out(host: Host) -> None:
    settings = load({"CODIUS_PUBLIC_URI": f"http://other.localhost:{host.settings.public_uri.port}"})
    report = await host.retest(replace(host.settings, chosen_public_uri=settings.public_uri)).run()
    assert verdicts(report)["front door"] == "failed"
    assert "answers 421" in message(report, "front door")
    async with open_host_elsewhere() as port:
        settings = load({"CODIUS_PUBLIC_URI": f"http://codius.localhost:{port}"})
        report = await host.retest(replace(host.settings, chosen_public_uri=settings.public_uri)).run()
        assert verdicts(report)["front door"] == "failed"
        assert "calls itself https://elsewhere.example" in message(report, "front door")


@asynccontextmanager
async def open_host_elsewhere() -> AsyncIterator[int]:
    body = b'{"uri": "https://elsewhere.example"}'
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    async with origin(answer=head.encode() + body) as server:
        yield server.port


async def test_an_upload_that_arrives_at_another_node_is_found_out(host: Host, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with open_host(tmp_path / "other") as other:
        stranger = replace(other, settings=host.settings, containers=host.containers).retest()
        report = await stranger.run()
        assert verdicts(report)["upload"] == "failed"
        assert "this node has not got it" in message(report, "upload")
        host.rail.paid = True
        report = await stranger.run()
    assert verdicts(report)["upload"] == "failed"
    assert "wants money for what is paid for" in message(report, "upload")


async def test_a_pod_that_does_not_answer_fails_the_visit_and_the_websocket(host: Host) -> None:
    host.containers.deaf = True
    report = await host.retest(step_seconds=IMPATIENT).run()
    assert verdicts(report) == ALL_PASSED | {"visit": "failed", "websocket": "failed"}
    assert "503" in message(report, "visit")
    assert "503" in message(report, "websocket")


async def test_something_else_at_the_pods_name_fails_both(host: Host) -> None:
    async with origin() as server, asyncio.timeout(DEADLINE):
        host.target = lambda _: Target("127.0.0.1", server.port)
        report = await host.retest(step_seconds=IMPATIENT).run()
    assert verdicts(report) == ALL_PASSED | {"visit": "failed", "websocket": "failed"}
    assert "is not the pod" in message(report, "visit")


@pytest.mark.parametrize(
    ("read", "echo", "said"),
    [
        (True, b"", "no answer"),
        (True, sample.build_echo("something quite else"), "as another one"),
        (False, sample.build_echo(selftest.MESSAGE), "did not read it"),
    ],
    ids=["silent", "another-message", "another-key"],
)
async def test_a_websocket_that_is_none_fails(host: Host, read: bool, echo: bytes, said: str) -> None:
    async def accept(line: Line) -> None:
        request = Received(await line.read_head())
        if keys := request.all("sec-websocket-key"):
            await line.send(sample.build_switch(keys[0] if read else "another").encode())
            await line.reader.readexactly(len(sample.build_frame(selftest.MESSAGE)))
            await line.send(echo)
        await line.reader.read()

    async with origin(accept) as server:
        host.target = lambda _: Target("127.0.0.1", server.port)
        report = await host.retest(step_seconds=IMPATIENT).run()
    assert verdicts(report)["websocket"] == "failed"
    assert said in message(report, "websocket")


async def test_an_address_that_is_silent_leaves_time_for_the_next(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = IPv4Address("127.0.0.2")
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind((str(silent), host.settings.public_uri.port))
        full.listen(0)
        for _ in range(4):  # its queue is full, and it answers nobody any more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        monkeypatch.setattr(selftest, "CONNECT_SECONDS", 0.1)
        asked: list[str] = []

        async def look_up(name: str) -> list[str]:
            asked.append(name)
            return [str(silent), "127.0.0.1"]

        monkeypatch.setattr(selftest, "_look_up", look_up)
        report = await host.test.run()
    assert verdicts(report) == ALL_PASSED, report
    assert len(asked) == 4


async def test_a_resolver_that_says_nothing_fails_the_names(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(_: str) -> list[str]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(selftest, "_look_up", silent)
    report = await host.retest(step_seconds=IMPATIENT).run()
    assert verdicts(report)["names"] == "failed"
    assert verdicts(report)["front door"] == "unchecked"
    assert "resolver" in message(report, "names")


async def test_an_operators_own_image_need_only_serve_and_echo(host: Host) -> None:
    settings = replace(host.settings, selftest_image=OWN_IMAGE)
    async with websocket_echo() as port:
        # aiohttp answers a plain GET of a WebSocket by 400, and so is no sample for the visit
        host.target = lambda _: Target("127.0.0.1", port)
        report = await host.retest(settings, step_seconds=IMPATIENT).run()
    assert verdicts(report) == ALL_PASSED | {"visit": "failed"}
    assert "400" in message(report, "visit")
    assert host.containers.imported == []
    async with origin() as server:
        host.target = lambda _: Target("127.0.0.1", server.port)
        report = await host.retest(settings, step_seconds=IMPATIENT).run()
    assert verdicts(report)["visit"] == "passed"


@pytest.mark.parametrize(
    ("hinder", "step", "said"),
    [
        (lambda host, patch: patch.setattr(host.engine, "capacity", full), "upload", "full"),
        (
            lambda host, _: setattr(host, "settings", replace(host.settings, noop=True)),
            "sample",
            "CODIUS_HYPER_NOOP",
        ),
        (
            lambda _, patch: patch.setattr(sample_program, "find_architecture", lambda: None),
            "sample",
            "CODIUS_SELFTEST_IMAGE",
        ),
    ],
    ids=["full", "noop", "processor"],
)
async def test_what_cannot_be_tried_is_neither_success_nor_failure(
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
    hinder: Callable[[Host, pytest.MonkeyPatch], None],
    step: str,
    said: str,
) -> None:
    hinder(host, monkeypatch)
    report = await host.retest().run()
    assert verdicts(report)["front door"] == "passed"
    assert verdicts(report)[step] == verdicts(report)["visit"] == "unchecked"
    assert said in message(report, step)
    assert report.success is None


async def test_a_host_that_is_paid_tests_itself_on_the_house_and_gives_nothing_away(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.rail.paid = True
    tokens: list[str] = []
    grant = host.house.grant

    @contextlib.contextmanager
    def watch(hash: ManifestHash, seconds: int) -> Iterator[str]:
        with grant(hash, seconds) as token:
            tokens.append(token)
            yield token

    monkeypatch.setattr(host.house, "grant", watch)
    report = await host.retest(replace(host.settings, payments="interledger")).run()
    assert verdicts(report) == ALL_PASSED, report
    assert report.success is True
    assert report.beyond == (*selftest.UNCHECKED_OF_LOCALHOST, *selftest.UNCHECKED_OF_PAYMENT)
    [pod] = await host.engine.pods()
    [entry] = await host.store.ledger(pod.hash)
    assert (entry.rail, entry.price, entry.token) == (HouseRail.name, 0, None)
    for token in (*tokens, None, "x" * 22):
        with pytest.raises(PaymentRequiredError):
            await host.engine.extend(pod.hash, selftest.SAMPLE_SECONDS, token=token)
    assert [each.expires_at for each in await host.engine.pods()] == [pod.expires_at]


async def test_what_the_last_test_found_is_known_after_a_restart_for_two_days(host: Host) -> None:
    began = (await host.test.run()).began_at.replace(microsecond=0)  # it is kept to the second
    later = began

    async def restarted(settings: Settings | None = None) -> bool | None:
        test = host.retest(settings, clock=lambda: later)
        await test.load()
        return test.success

    assert await restarted() is True
    later += timedelta(days=2)
    assert await restarted() is True
    later += timedelta(seconds=1)
    assert await restarted() is None
    later = began - timedelta(seconds=1)
    assert await restarted() is None
    later = began
    renamed = load({"CODIUS_PUBLIC_URI": "https://another.example"}).public_uri
    assert await restarted(replace(host.settings, chosen_public_uri=renamed)) is None
    host.containers.error = EngineError("podman is away")
    await host.test.run()
    later = datetime.now(UTC)
    assert await restarted() is False


async def test_a_report_that_cannot_be_kept_or_read_stops_nobody(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    origin = host.settings.public_uri.origin
    step: Json = {"name": "visit", "verdict": "splendid", "message": "", "hint": None}
    good: dict[str, Json] = {"beganAt": "2026-11-24T00:00:00Z", "steps": [], "unchecked": []}
    for report in ({}, {**good, "beganAt": "noon"}, {**good, "steps": [step]}, {**good, "steps": None}):
        caplog.clear()
        await host.store.set_setting(
            selftest.REPORT_SETTING, {"uri": origin, "report": report}, now=datetime.now(UTC)
        )
        await host.test.load()
        assert host.test.success is None
        assert "cannot be read" in caplog.text

    async def fail(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(host.store, "set_setting", fail)
    assert (await host.test.run()).success is True
    assert host.test.success is True
    assert "ends with this node: the disk is full" in caplog.text


async def full() -> Capacity:
    return Capacity(full=True, free_memory=0, running=9)


async def test_whatever_breaks_is_a_step_of_the_report(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host.containers.error = EngineError("podman is away", hint="Start it.")
    report = await host.test.run()
    assert (verdicts(report)["sample"], report.success) == ("failed", False)
    assert message(report, "sample") == "podman is away Start it."
    assert "self-test: sample: podman is away" in caplog.text

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("nobody thought of this")

    host.containers.error = None
    with monkeypatch.context() as patch:
        patch.setattr(sample, "build_upload", crash)
        report = await host.test.run()
    assert verdicts(report)["upload"] == "failed"
    assert "nobody thought of this" in message(report, "upload")

    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(parcels, "prepare", hang)
    monkeypatch.setattr(selftest, "TEST_SECONDS", 0.5)
    report = await host.test.run()
    assert verdicts(report) == ALL_PASSED | dict.fromkeys(("upload", "visit", "websocket"), "failed")
    assert "not done within" in message(report, "visit")


async def test_the_daily_test_runs_by_itself_and_ends_with_the_node(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "codius_node.selftest")
    daily = host.retest(first_seconds=0)
    daily.start()
    while daily.success is None:
        await asyncio.sleep(0.01)
    assert daily.success is True
    assert "self-test: passed" in caplog.text
    await daily.aclose()
    assert not {task for task in asyncio.all_tasks() if task.get_name().startswith("selftest")}


async def test_an_operator_can_have_no_daily_test(host: Host) -> None:
    silent = host.retest(replace(host.settings, selftest=False), first_seconds=0)
    silent.start()
    assert not {task for task in asyncio.all_tasks() if task.get_name().startswith("selftest")}
    assert (await silent.run()).success is True
    await silent.aclose()


async def test_a_test_under_way_does_not_keep_the_node_from_stopping(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(parcels, "prepare", hang)
    running = asyncio.create_task(host.test.run())
    await begun.wait()
    await host.test.aclose()
    with pytest.raises(asyncio.CancelledError):
        await running


# ---- what is said -----------------------------------------------------------------------------------

PROBED: Final = f"{selftest.PROBE_LABEL}.host.example"


@pytest.mark.parametrize(
    ("wanted", "found", "said"),
    [
        ([], {"host.example": [], PROBED: ["192.0.2.1"]}, "host.example has no address"),
        ([], {"host.example": ["192.0.2.1"], PROBED: []}, "<hash>.host.example has no address"),
        (["192.0.2.1"], {"host.example": ["192.0.2.9"], PROBED: []}, "is 192.0.2.9, not 192.0.2.1"),
        (
            ["192.0.2.1", "2001:db8::1"],
            {"host.example": ["2001:db8::1"], PROBED: ["192.0.2.9"]},
            "<hash>.host.example is 192.0.2.9",
        ),
    ],
)
def test_names_that_lead_elsewhere_are_told(
    wanted: list[str], found: dict[str, list[str]], said: str
) -> None:
    with pytest.raises(StepError, match=said) as caught:
        judge_names("host.example", [ip_address(address) for address in wanted], found)
    assert caught.value.hint


@pytest.mark.parametrize("wanted", [[], ["192.0.2.1"], ["192.0.2.1", "2001:db8::1"]])
def test_names_that_lead_here_are_told_with_their_addresses(wanted: list[str]) -> None:
    found = {"host.example": ["192.0.2.1", "192.0.2.2"], PROBED: ["192.0.2.1"]}
    said = judge_names("host.example", [ip_address(address) for address in wanted], found)
    assert said == "host.example and the names below it are 192.0.2.1, 192.0.2.2"


@pytest.mark.parametrize("verdict", Verdict)
def test_a_report_is_read_as_it_was_written(verdict: Verdict) -> None:
    step = selftest.Step("visit", verdict, "found", None if verdict is Verdict.PASSED else "do that")
    report = Report(datetime(2026, 11, 24, tzinfo=UTC), (step,), selftest.UNCHECKED_OF_A_ZONE)
    assert Report.from_document(report.as_document()) == report
    assert len(report.beyond) == 2


def test_nothing_tried_is_no_success() -> None:
    assert Report(datetime(2026, 11, 24, tzinfo=UTC), (), ()).success is None
