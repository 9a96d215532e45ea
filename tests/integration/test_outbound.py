"""The way out to strangers' addresses, against real servers on loopback that misbehave each in its way."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import ssl
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from codius_node import outbound
from codius_node.outbound import Address, AnswerError, Outbound, TargetError
from codius_node.uri import PublicUri
from tests.harness.certificates import make_contexts
from tests.harness.origin import Line, Origin, origin

DEADLINE: Final = 10.0
PUBLIC: Final = IPv4Address("127.0.0.2")
"""Taken for an address of the public internet where a test says so."""
PRIVATE: Final = IPv4Address("127.0.0.3")
NAME: Final = "peer.example"


def answer(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def local(port: int) -> PublicUri:
    return PublicUri("http", "localhost", port)


async def ask(
    server: Origin, path: str = "/info", *, seconds: float = outbound.SECONDS, method: str = "GET"
) -> object:
    async with asyncio.timeout(DEADLINE):
        return await Outbound(development=True, seconds=seconds).ask(method, local(server.port), path)


# ---- the plain case -------------------------------------------------------------------------------


async def test_an_answer_is_its_json_and_the_question_says_what_it_takes() -> None:
    async with origin(answer=answer(b'{"peers": ["https://a.example"]}')) as server:
        async with asyncio.timeout(DEADLINE):
            document = await Outbound(development=True).ask(
                "POST", local(server.port), "/peers/discover", {"peers": []}
            )
        [request] = server.requests
    assert document == {"peers": ["https://a.example"]}
    assert request.line == "POST /peers/discover HTTP/1.1"
    assert request.body == b'{"peers":[]}'
    assert request.one("accept-encoding") == "identity"
    assert request.one("user-agent") == "codius-host"
    assert request.all("cookie") == []


async def test_an_answer_of_exactly_the_limit_is_read() -> None:
    body = json.dumps("x" * (outbound.MAX_ANSWER - 2)).encode()
    async with origin(answer=answer(body)) as server:
        assert await ask(server) == "x" * (outbound.MAX_ANSWER - 2)


# ---- where to -------------------------------------------------------------------------------------


async def test_a_redirect_to_the_metadata_service_is_not_followed() -> None:
    async with origin() as inner:
        moved = answer(b"", f"Location: http://localhost:{inner.port}/latest/meta-data/", status="302 Found")
        async with origin(answer=moved) as server:
            with pytest.raises(AnswerError, match="sends us elsewhere"):
                await ask(server)
        assert inner.requests == []
        assert inner.connections == 0


@contextlib.asynccontextmanager
async def named_servers(directory: Path) -> AsyncIterator[tuple[int, ssl.SSLContext, dict[Address, int]]]:
    """An https server for NAME on PUBLIC and another on PRIVATE, one port: how often each was asked."""
    serving, trusting = make_contexts(directory, NAME)
    asked: dict[Address, int] = {PUBLIC: 0, PRIVATE: 0}
    async with contextlib.AsyncExitStack() as stack:
        port = 0
        for address in asked:

            def handler(address: Address) -> Callable[[web.Request], object]:
                async def tell(request: web.Request) -> web.Response:
                    asked[address] += 1
                    return web.json_response({"uri": f"https://{request.host}"})

                return tell

            app = web.Application()
            app.router.add_get("/info", handler(address))  # type: ignore[arg-type]
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, str(address), port, ssl_context=serving).start()
            port = runner.addresses[0][1]
        yield port, trusting, asked


class Resolver:
    """A name whose addresses are another list each time; the last one stays."""

    def __init__(self, *answers: Sequence[Address]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def look_up(self, host: str) -> Sequence[Address]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


async def test_a_name_that_turns_private_on_the_second_look_up_has_no_second_look_up(tmp_path: Path) -> None:
    resolver = Resolver([PUBLIC], [PRIVATE])
    async with named_servers(tmp_path) as (port, tls, asked):
        out = Outbound(look_up=resolver.look_up, allows=lambda address: address == PUBLIC, tls=tls)
        peer = PublicUri("https", NAME, port)
        async with asyncio.timeout(DEADLINE):
            assert await out.ask("GET", peer, "/info") == {"uri": f"https://{NAME}:{port}"}
            assert (asked, resolver.asked) == ({PUBLIC: 1, PRIVATE: 0}, [NAME])
            # asked anew it is looked up anew, and its new address is judged like the first one
            with pytest.raises(TargetError, match=str(PRIVATE)):
                await out.ask("GET", peer, "/info")
        assert asked == {PUBLIC: 1, PRIVATE: 0}


async def test_one_private_address_among_public_ones_spoils_the_name(tmp_path: Path) -> None:
    resolver = Resolver([PUBLIC, PRIVATE])
    async with named_servers(tmp_path) as (port, tls, asked):
        out = Outbound(look_up=resolver.look_up, allows=lambda address: address == PUBLIC, tls=tls)
        with pytest.raises(TargetError, match=str(PRIVATE)):
            await out.ask("GET", PublicUri("https", NAME, port), "/info")
        assert asked == {PUBLIC: 0, PRIVATE: 0}


async def test_a_certificate_of_another_name_is_no_peers(tmp_path: Path) -> None:
    resolver = Resolver([PUBLIC])
    async with named_servers(tmp_path) as (port, tls, asked):
        out = Outbound(look_up=resolver.look_up, allows=lambda _: True, tls=tls)
        with pytest.raises(AnswerError, match=r"other\.example"):
            await out.ask("GET", PublicUri("https", "other.example", port), "/info")
        assert asked == {PUBLIC: 0, PRIVATE: 0}


@pytest.mark.parametrize("host", ["localhost", "codius.localhost"])
async def test_loopback_is_never_asked_outside_of_development(host: str) -> None:
    async with origin(answer=answer(b"{}")) as server:
        for scheme in ("http", "https"):
            with pytest.raises(TargetError):
                await Outbound().ask("GET", PublicUri(scheme, host, server.port), "/info")
        assert server.connections == 0


@pytest.mark.parametrize("addresses", [[], [IPv4Address(2**31 + n) for n in range(9)]])
async def test_a_name_without_addresses_or_with_too_many_is_not_asked(addresses: list[Address]) -> None:
    out = Outbound(look_up=Resolver(addresses).look_up)
    with pytest.raises(AnswerError, match=f"has {len(addresses)} addresses"):
        await out.ask("GET", PublicUri("https", NAME, 443), "/info")


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("127.0.0.0x1", "127.0.0.1"),
        ("0x7f.0.0.0x1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0xa9fea9fe", "169.254.169.254"),
        ("0xA9.254.0xa9fe", "169.254.169.254"),
        ("2852039166", "169.254.169.254"),
        ("0251.0376.0251.0376", "169.254.169.254"),
        ("169.254.43518", "169.254.169.254"),
        ("127.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
    ],
)
async def test_an_address_in_disguise_is_found_out(name: str, address: str) -> None:
    # The C library takes these for addresses, whatever a parser of ours makes of them.
    with pytest.raises(TargetError, match=rf" is {re.escape(address)}, "):
        await Outbound().ask("GET", PublicUri("https", name, 9), "/")


async def test_a_proxy_in_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with origin() as proxy, origin(answer=answer(b"{}")) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
        assert await ask(server) == {}
        assert (proxy.connections, len(server.requests)) == (0, 1)


# ---- how long -------------------------------------------------------------------------------------


async def test_a_body_that_drips_is_given_up() -> None:
    closed = asyncio.Event()

    async def drip(line: Line) -> None:
        await line.read_request()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
        ended = asyncio.create_task(line.reader.read())
        while not ended.done():
            await line.send(b" ")
            await asyncio.wait({ended}, timeout=0.05)
        closed.set()

    async with origin(drip) as server:
        with pytest.raises(AnswerError, match="did not answer within"):
            await ask(server, seconds=0.3)
        async with asyncio.timeout(DEADLINE):
            await closed.wait()


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async def silent(line: Line) -> None:
        await line.reader.read()

    async with origin(silent) as server:
        with pytest.raises(AnswerError, match="did not answer within"):
            await ask(server, seconds=0.1)


async def test_a_resolver_that_says_nothing_is_given_up() -> None:
    async def silent(_: str) -> Sequence[Address]:
        await asyncio.Event().wait()
        return ()

    with pytest.raises(AnswerError, match="did not answer within"):
        await Outbound(look_up=silent, seconds=0.05).ask("GET", PublicUri("https", NAME, 443), "/info")


async def test_slow_names_hold_few_threads_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Event()
    full = threading.Event()
    inside = [0]
    most = [0]
    counting = threading.Lock()

    def slow(*_: object, **__: object) -> list[object]:
        with counting:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            if inside[0] == outbound.LOOK_UPS_AT_ONCE:
                full.set()
        gone.wait(DEADLINE)
        with counting:
            inside[0] -= 1
        return []

    monkeypatch.setattr("socket.getaddrinfo", slow)
    out = Outbound(seconds=0.2)
    asked = [out.ask("GET", PublicUri("https", f"h{number}.example", 443), "/info") for number in range(30)]
    async with asyncio.timeout(DEADLINE):
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, AnswerError) for answer in answers)
        assert full.is_set()
        assert await asyncio.to_thread(lambda: "others work on") == "others work on"
        gone.set()
        with pytest.raises(AnswerError, match="has 0 addresses"):  # and the threads come back
            await out.ask("GET", PublicUri("https", "again.example", 443), "/info")
    assert most == [outbound.LOOK_UPS_AT_ONCE]


# ---- how much -------------------------------------------------------------------------------------


async def test_a_gzip_bomb_is_refused_before_it_is_read() -> None:
    bomb = gzip.compress(b"[" + b" " * 20_000_000 + b"]")
    assert len(bomb) < outbound.MAX_ANSWER
    async with origin(answer=answer(bomb, "Content-Encoding: gzip")) as server:
        tracemalloc.start()
        try:
            with pytest.raises(AnswerError, match="coding that was not asked for"):
                await ask(server)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 2**20  # and nobody unpacked it before it was refused


@pytest.mark.parametrize("coding", ["br", "deflate", "identity, gzip", "zstd", "x-gzip"])
async def test_every_coding_is_refused(coding: str) -> None:
    async with origin(answer=answer(zlib.compress(b"{}"), f"Content-Encoding: {coding}")) as server:
        with pytest.raises(AnswerError):
            await ask(server)


async def test_a_gzip_bomb_that_does_not_say_so_is_only_nonsense() -> None:
    async with origin(answer=answer(gzip.compress(b"[" + b" " * 20_000_000 + b"]"))) as server:
        with pytest.raises(AnswerError, match=r"not UTF-8|not JSON"):
            await ask(server)


async def test_a_body_announced_as_too_large_is_not_read() -> None:
    async def announce(line: Line) -> None:
        await line.read_request()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        await line.reader.read()

    async with origin(announce) as server:
        with pytest.raises(AnswerError, match="more than 65536 bytes"):
            await ask(server)


@contextlib.asynccontextmanager
async def flooding(head: bytes, piece: bytes) -> AsyncIterator[tuple[Origin, list[int]]]:
    """A server that sends pieces for as long as somebody takes them, and how many bytes it got rid of."""
    sent = [0]

    async def flood(line: Line) -> None:
        await line.read_request()
        await line.send(head)
        while True:
            await line.send(piece)
            sent[0] += len(piece)

    async with origin(flood) as server:
        yield server, sent


LEFT_IN_SOCKETS: Final = 16 * 2**20
"""Bytes that the kernel's buffers may hold of what nobody reads."""


async def test_an_endless_list_is_cut_at_the_limit() -> None:
    entry = b'"https://a.example",' * 400
    chunk = f"{len(entry):x}\r\n".encode() + entry + b"\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n"
    async with flooding(head, chunk) as (server, sent):
        with pytest.raises(AnswerError, match="more than 65536 bytes"):
            await ask(server)
    assert sent[0] < LEFT_IN_SOCKETS


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 1000),
        (b"HTTP/1.1 200 OK\r\n", b"X-Many: y\r\n" * 100),
        (b"HTTP/1.1 200 ", b"O" * 1000),
        (b"HTTP/1.1 200 OK\r\n", b"x" * 1000),
        (b"", b"y" * 1000),
    ],
    ids=["value", "fields", "reason", "name", "no-http"],
)
async def test_a_head_that_never_ends_is_cut_off(head: bytes, piece: bytes) -> None:
    async with flooding(head, piece) as (server, sent):
        with pytest.raises(AnswerError, match="cannot be asked"):
            await ask(server)
    assert sent[0] < LEFT_IN_SOCKETS


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ([f"X-{number}: y" for number in range(outbound.MAX_FIELDS - 2)], True),
        ([f"X-{number}: y" for number in range(outbound.MAX_FIELDS)], False),
        (["X-Long: " + "y" * (outbound.MAX_FIELD - 10)], True),
        (["X-Long: " + "y" * (outbound.MAX_FIELD + 1)], False),
    ],
    ids=["many", "too-many", "long", "too-long"],
)
async def test_a_head_may_be_so_long_and_no_longer(fields: list[str], taken: bool) -> None:
    async with origin(answer=answer(b"{}", *fields)) as server:
        if taken:
            assert await ask(server) == {}
        else:
            with pytest.raises(AnswerError, match="cannot be asked"):
                await ask(server)


CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
        (CHUNKED + b"1", b";extension=x" * 80),
        (CHUNKED, b"0" * 1000),
        (CHUNKED + b"0\r\n", b"X-Trailer: y\r\n" * 80),
    ],
    ids=["interim", "extension", "chunk-size", "trailers"],
)
async def test_framing_that_never_ends_costs_time_and_no_memory(head: bytes, piece: bytes) -> None:
    async with flooding(head, piece) as (server, sent):
        tracemalloc.start()
        try:
            with pytest.raises(AnswerError):
                await ask(server, seconds=0.3)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert sent[0] > 0
    assert most < 8 * 2**20  # the sender's own buffers among it


# ---- what -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (answer(b"{}", status="404 Not Found"), "answered 404"),
        (answer(b"{}", status="500 Oops"), "answered 500"),
        (answer(b"", status="204 No Content"), "answered 204"),
        (answer(b""), "answer is empty"),
        (answer(b"<html>"), "not JSON"),
        (answer(b'{"a": 1, "a": 2}'), "twice"),
        (answer(b"[" * 30_000), "nested too deeply|not JSON"),
        (answer(b"NaN"), "finite"),
        (answer(b"\xff"), "not UTF-8"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "cannot be asked"),
        (b"", "cannot be asked"),
    ],
)
async def test_anything_but_json_is_refused_in_words(reply: bytes, said: str) -> None:
    async def once(line: Line) -> None:
        await line.read_request()
        await line.send(reply)

    async with origin(once) as server:
        with pytest.raises(AnswerError, match=said):
            await ask(server)


PIECES: Final = st.sampled_from(
    [
        *(
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 301 Moved\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/9.9 200\r\n",
        ),
        *(b"Content-Length: 2\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Content-Encoding: \xff\r\n"),
        *(
            b"Location: http://169.254.169.254/\r\n",
            b"Location: \r\n",
            b"Set-Cookie: a=b\r\n",
            b"X: \x00\r\n",
        ),
        *(
            b"\r\n",
            b"{}",
            b"2\r\n{}\r\n",
            b"0\r\n\r\n",
            b"ffffffffffffffff\r\n",
            b"[",
            b'"\\ud800"',
            b"1e999",
        ),
    ]
)


@given(reply=st.lists(PIECES | st.binary(max_size=20), max_size=8).map(b"".join))
@settings(max_examples=100, deadline=None)
def test_whatever_bytes_come_back_are_json_or_an_error_of_ours(reply: bytes) -> None:
    async def once(line: Line) -> None:
        await line.read_request()
        await line.send(reply)

    async def try_it() -> None:
        async with origin(once) as server:
            with contextlib.suppress(AnswerError):
                json.dumps(await ask(server))

    asyncio.run(try_it())
