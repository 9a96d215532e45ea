"""Whatever a stranger sends to the API: never a 500, never an answer in another shape."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, Final
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.integration.engine_double import serve_api
from tests.integration.test_api import DOCUMENT, FIELDS, HASH, broken

DEADLINE: Final = 10.0
KNOWN: Final = {200, 204, 400, 403, 404, 413, 415, 417, 422}


class Server:
    """The API on a loop in a thread, since a property is called many times and waits for each."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready: Future[Path] = Future()
        self._thread = Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        self.socket = self._ready.result(DEADLINE)

    async def _serve(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with serve_api(Path(directory)) as served:
                self._ready.set_result(served.socket)
                await self._stop.wait()

    def exchange(self, request: bytes, *, half_close: bool = False) -> bytes:
        exchange = self._exchange(request, half_close)
        return asyncio.run_coroutine_threadsafe(exchange, self._loop).result(DEADLINE)

    async def _exchange(self, request: bytes, half_close: bool) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self.socket)
        writer.write(request)
        if half_close:
            writer.write_eof()
        try:
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE)
        self._loop.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def build(method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    lines = [
        method + b" " + target + b" HTTP/1.1",
        b"Host: codius.localhost",
        b"Connection: close",
        b"Content-Length: %d" % len(body),
        *(name + b": " + value for name, value in headers),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def check(answer: bytes, caplog: pytest.LogCaptureFixture) -> int:
    """The answer's status; errors are complete and in the recorded shape, and nothing was a surprise."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    assert status in KNOWN
    if status >= 400 and body:
        document = json.loads(body)
        assert document["statusCode"] == status
        assert document["message"]
        assert set(document) <= {"statusCode", "error", "message", "hint"}
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    return status


OWN: Final = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
METHODS: Final = st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"DELETE", b"PATCH", b"FOO"])
PATHS: Final = st.one_of(
    st.sampled_from(
        [b"/", b"/version", b"/info", b"/memory", b"/peers", b"/pods", b"/pods/x/logs", b"*", b"//"]
    ),
    st.binary(max_size=40).map(lambda raw: b"/" + quote_from_bytes(raw).encode()),
    st.binary(max_size=40).map(lambda raw: b"/pods/" + quote_from_bytes(raw, safe="").encode() + b"/logs"),
)
NAMES: Final = ("duration", "manifestHash", "limit", "follow", "progress", "requestPeers", "DURATION", "")
VALUES: Final = st.one_of(
    st.sampled_from(["60", "-1", "NaN", "1e3", " 60", "true", HASH, HASH.upper(), "9" * 400, "\x00", "٣"]),
    st.text(max_size=60),
)


def targets(path: bytes, *names: str) -> st.SearchStrategy[bytes]:
    """The path with a query of these parameters, given as often and as strangely as it comes."""
    pairs = st.lists(st.tuples(st.sampled_from(names), VALUES), max_size=3)
    return pairs.map(
        lambda pairs: (
            path
            + b"".join(
                (b"&" if index else b"?")
                + name.encode()
                + b"="
                + quote_from_bytes(value.encode("utf-8", "surrogatepass")).encode()
                for index, (name, value) in enumerate(pairs)
            )
        )
    )


ASKED: Final = st.one_of(
    st.tuples(st.just(b"GET"), targets(b"/peers", "limit")),
    st.tuples(st.just(b"GET"), targets(b"/info", "requestPeers")),
    st.tuples(st.just(b"GET"), targets(b"/pods", "manifestHash")),
    st.tuples(st.just(b"GET"), targets(b"/pods/" + HASH.encode() + b"/logs", "follow")),
    st.tuples(st.just(b"PUT"), targets(b"/pods", "manifestHash", "duration")),
    st.tuples(st.just(b"OPTIONS"), targets(b"/pods", "duration")),
    st.tuples(st.just(b"POST"), targets(b"/pods", "duration", "progress")),
    st.tuples(METHODS, PATHS.flatmap(lambda path: targets(path, *NAMES))),
)
JSON_VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
BODIES: Final = st.one_of(
    st.binary(max_size=200),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.just(json.dumps(DOCUMENT).encode()),
    st.tuples(st.sampled_from([path for path, _, _ in FIELDS]), JSON_VALUES).map(
        lambda pair: json.dumps(broken(*pair)).encode()
    ),
)
HEADERS: Final = st.lists(
    st.one_of(
        st.tuples(
            st.just(b"Content-Type"),
            st.sampled_from([b"application/json", b"text/plain", b"x", b"", b"\xff", b"a/b;c=\xe9"]),
        ),
        st.tuples(
            st.just(b"Content-Encoding"), st.sampled_from([b"gzip", b"deflate", b"br", b"zstd", b"x", b""])
        ),
        st.tuples(st.just(b"Pay-Token"), st.sampled_from([b"", b"\xff\xfe", b"a" * 100])),
        st.tuples(st.just(b"Expect"), st.sampled_from([b"x", b""])),
        st.tuples(st.just(b"Accept-Encoding"), st.sampled_from([b"gzip", b"\xff", b"deflate;q=x"])),
        st.tuples(st.just(b"Access-Control-Request-Method"), st.just(b"POST")),
        st.tuples(st.just(b"Cookie"), st.sampled_from([b"=", b"a=b; ;", b"\xff"])),
    ),
    max_size=3,
)


@OWN
@example(asked=(b"GET", b"/%0A"), headers=[(b"Expect", b"x")], body=b"")
@given(asked=ASKED, headers=HEADERS, body=BODIES)
def test_any_request_gets_a_proper_answer(
    server: Server,
    caplog: pytest.LogCaptureFixture,
    asked: tuple[bytes, bytes],
    headers: list[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    method, target = asked
    check(server.exchange(build(method, target, headers, body)), caplog)


@OWN
@given(
    method=st.sampled_from([b"POST", b"OPTIONS"]),
    place=st.sampled_from([path for path, _, _ in FIELDS]),
    value=JSON_VALUES,
    packed=st.booleans(),
)
def test_any_value_in_any_field_is_accepted_or_refused_by_name(
    server: Server, caplog: pytest.LogCaptureFixture, method: bytes, place: str, value: Any, packed: bool
) -> None:
    body = json.dumps(broken(place, value)).encode()
    headers = [(b"Content-Type", b"application/json")]
    if packed:
        body, headers = gzip.compress(body), [*headers, (b"Content-Encoding", b"gzip")]
    assert check(server.exchange(build(method, b"/pods", headers, body)), caplog) in {200, 400, 422}


@OWN
@given(raw=st.binary(min_size=1, max_size=300))
def test_any_bytes_get_an_answer_or_a_closed_door(
    server: Server, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    answer = server.exchange(raw + b"\r\n\r\n", half_close=True)
    if answer:
        check(answer, caplog)
