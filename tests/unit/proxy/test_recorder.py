"""Workers and recorder: every request is logged and counted once, and neither waits for the other."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import aiohttp
import pytest

from codius_proxy.access_log import MAX_SHOWN
from codius_proxy.identity import Identity
from codius_proxy.log_file import LogFile
from codius_proxy.outbox import BATCH, MAX_KEPT, MAX_LINES, MAX_MESSAGE, POSTED, Outbox, pair
from codius_proxy.recorder import Recorder, serve
from codius_proxy.request import RequestHead, parse_request
from codius_proxy.visit import End, Visit
from tests.harness.origin import DEADLINE
from tests.unit.proxy.test_access_log import strange
from tests.unit.proxy.test_metrics import samples

REQUEST = parse_request(b"GET /path HTTP/1.1\r\nHost: host.example")
NOBODY = Identity("192.0.2.1", "https")


def visit(
    number: int = 1, *, request: RequestHead | None = REQUEST, pod: str = "api", reason: str = ""
) -> Visit:
    return Visit(NOBODY, request, pod, 200, 10, 20, monotonic() - 0.5, 0.5, number, End.ANSWERED, reason)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    found = pair()
    yield found
    for end in found:
        end.close()


def drain(receiving: socket.socket, recorder: Recorder) -> int:
    """Take what is there; how many messages it was."""
    count = 0
    while True:
        try:
            message = receiving.recv(MAX_MESSAGE)
        except BlockingIOError:
            return count
        recorder.take(memoryview(message))
        count += 1


def test_a_finished_request_is_a_line_and_a_count(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    path = tmp_path / "access.log"
    log = LogFile(path, max_bytes=1000)
    recorder = Recorder(log)
    outbox = Outbox(ends[0], "c0ffee")
    outbox.connections = lambda: 3
    outbox.connected()
    outbox.visited(visit(17))
    assert drain(ends[1], recorder) == 0  # nothing is sent on the hot path
    outbox.flush()
    assert drain(ends[1], recorder) == 1
    log.close()
    found = json.loads(path.read_text())
    assert (found["id"], found["host"], found["target"]) == ("c0ffee-11", "host.example", "/path")
    assert (found["seconds"], found["pod"], found["end"]) == (0.5, "api", "answered")
    counted = samples(recorder.metrics, {})
    assert counted['requests_total{pod="api",code="200"}'] == 1
    assert counted["accepted_connections_total"] == 1
    assert f'codius_proxy_connections{{worker="{os.getpid()}"}} 3' in recorder.render_metrics()


def test_some_batches_are_sent_without_waiting_for_a_quiet_moment(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    recorder = Recorder(None)
    outbox = Outbox(ends[0], "c0ffee")
    for number in range(POSTED * BATCH):
        outbox.visited(visit(number))
    assert drain(ends[1], recorder) == 1
    assert samples(recorder.metrics)["request_duration_seconds_count"] == POSTED * BATCH


def test_a_worker_at_rest_sends_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox(ends[0], "c0ffee")
    outbox.flush()
    outbox.visited(visit())
    outbox.flush()
    outbox.flush()
    assert drain(ends[1], Recorder(None)) == 1


def test_a_request_that_could_not_be_read_is_recorded(ends: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder(None)
    outbox = Outbox(ends[0], "c0ffee")
    outbox.visited(visit(request=None))
    outbox.flush()
    drain(ends[1], recorder)
    assert samples(recorder.metrics)["request_duration_seconds_count"] == 1


@pytest.mark.parametrize("byte", [b"x", b"\xff"])
def test_long_targets_go_in_smaller_messages(ends: tuple[socket.socket, socket.socket], byte: bytes) -> None:
    long = strange(byte * 16000, byte * 16000)
    recorder = Recorder(None)
    outbox = Outbox(ends[0], "c0ffee")
    total = POSTED * BATCH
    sent = 0
    for number in range(total):
        outbox.visited(visit(number, request=long))
    for _ in range(total):
        sent += drain(ends[1], recorder)
        outbox.flush()
    assert total * MAX_SHOWN // MAX_LINES < sent < total
    counted = samples(recorder.metrics)
    assert counted["request_duration_seconds_count"] == total
    assert counted["lost_records_total"] == 0


async def test_a_workers_last_words_wait_for_a_recorder_that_is_behind(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    long = parse_request(b"GET /" + b"x" * 2000 + b" HTTP/1.1\r\nHost: h.example")
    recorder = Recorder(None)
    outbox = Outbox(ends[0], "c0ffee")
    total = MAX_KEPT * BATCH
    for number in range(total):
        outbox.visited(visit(number, request=long))
    last_words = asyncio.create_task(outbox.aclose())
    for _ in range(total):
        await asyncio.sleep(0)
        drain(ends[1], recorder)
        if last_words.done():
            break
    await last_words
    drain(ends[1], recorder)
    assert samples(recorder.metrics)["request_duration_seconds_count"] == total


def test_a_recorder_that_does_not_read_costs_records_and_not_memory(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    recorder = Recorder(None)
    outbox = Outbox(ends[0], "c0ffee")
    total = 20 * MAX_KEPT * BATCH
    for number in range(total):
        outbox.visited(visit(number))
    assert len(outbox._batches) <= MAX_KEPT
    assert len(outbox._visits) < BATCH
    for _ in range(100):
        drain(ends[1], recorder)
        outbox.flush()
    counted = samples(recorder.metrics)
    assert counted["lost_records_total"] > 0
    assert counted["request_duration_seconds_count"] + counted["lost_records_total"] == total


def test_many_pods_with_the_longest_names_fit_into_a_message(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """A line is longer than what it adds to the sums."""
    recorder = Recorder(None)
    outbox = Outbox(ends[0], "c0ffee")
    total = POSTED * BATCH
    for number in range(total):
        outbox.visited(visit(number, pod=f"{number:052}", reason=f"reason{number}"))
    assert drain(ends[1], recorder) == 1
    counted = samples(recorder.metrics)
    assert sum(value for name, value in counted.items() if name.startswith("requests_total")) == total


def test_connections_of_a_worker_that_ended_are_not_shown(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    recorder = Recorder(None)
    pid = os.fork()
    if pid == 0:
        outbox = Outbox(ends[0], "c0ffee")
        outbox.connections = lambda: 5
        outbox.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    drain(ends[1], recorder)
    assert f'worker="{pid}"' not in recorder.render_metrics()


async def test_metrics_are_served_to_whoever_asks_properly_and_nothing_else() -> None:
    sending, receiving = pair()
    with sending, receiving, socket.create_server(("127.0.0.1", 0)) as scrapes:
        scrapes.setblocking(False)
        port = scrapes.getsockname()[1]
        recorder, stop = Recorder(None), asyncio.Event()
        serving = asyncio.create_task(serve(recorder, receiving, scrapes, stop))
        outbox = Outbox(sending, "c0ffee")
        outbox.visited(visit())
        outbox.flush()
        async with asyncio.timeout(DEADLINE), aiohttp.ClientSession() as client:
            base = f"http://127.0.0.1:{port}"
            while 'requests_total{pod="api",code="200"} 1' not in await text(client, f"{base}/metrics"):
                pass
            async with client.get(f"{base}/metrics") as answer:
                assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            async with client.get(f"{base}/other") as answer:
                assert answer.status == 404
            async with client.post(f"{base}/metrics") as answer:
                assert answer.status == 405
        outbox.visited(visit())
        outbox.flush()
        stop.set()
        await serving
        assert samples(recorder.metrics)['requests_total{pod="api",code="200"}'] == 2  # the last words


async def text(client: aiohttp.ClientSession, url: str) -> str:
    async with client.get(url) as answer:
        return await answer.text()
