"""A visit: from a name to a pod and back, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import aiohttp
import pytest

from codius_proxy.config import Limits, Timeouts
from codius_proxy.routes import Target
from tests.harness.front import OTHER, POD, ZONE, Answer, front, name
from tests.harness.origin import ANSWER, DEADLINE, Line, closed_port, origin, websocket_echo

MIB = 1024 * 1024
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def check_refusal(answer: Answer, status: int) -> dict[str, object]:
    """A complete, honest answer of our own."""
    assert answer.status == status
    assert answer.one("content-type") == "application/json; charset=utf-8"
    assert answer.one("cache-control") == "no-cache"
    assert len(answer.body) == int(answer.one("content-length"))
    document = json.loads(answer.body)
    assert document["statusCode"] == status
    assert set(document) == {"statusCode", "error", "message", "hint", "requestId"}
    assert document["requestId"] == answer.one("x-request-id")
    assert isinstance(document, dict)
    return document


# Names.


async def test_each_name_leads_to_its_own_pod_and_the_hosts_name_to_the_api() -> None:
    async with (
        origin(answer=ANSWER.replace(b"hello", b"first")) as first,
        origin(answer=ANSWER.replace(b"hello", b"other")) as other,
        front({POD: first.port, OTHER: other.port}) as proxy,
    ):
        client = await proxy.client()
        assert (await client.get(name(POD))).body == b"first"
        assert (await client.get(name(OTHER))).body == b"other"
        assert (await client.get(name(OTHER).upper())).body == b"other"
        assert (await client.get(f"{name(POD)}:{proxy.port}")).body == b"first"
        for own in (ZONE, f"{ZONE}.:80", "localhost", f"127.0.0.1:{proxy.port}", "[::1]"):
            assert (await client.get(own, "/version")).body == b"api"
    assert [found.line for found in proxy.api.requests] == ["GET /version HTTP/1.1"] * 5


async def test_the_pod_sees_the_visitors_host_and_who_the_visitor_is() -> None:
    async with origin() as pod, front({POD: pod.port}, scheme="https") as proxy:
        claims = "X-Forwarded-For: 6.6.6.6\r\nx-forwarded-host: evil\r\nForwarded: for=6.6.6.6\r\n"
        await proxy.get(f"{name().upper()}:81", extra=claims + "X-Mine: 1\r\n")
    (request,) = pod.requests
    assert request.one("host") == f"{name().upper()}:81"
    assert request.one("x-forwarded-host") == f"{name().upper()}:81"
    assert request.one("x-forwarded-for") == "127.0.0.1"
    assert request.one("x-forwarded-proto") == "https"
    assert request.one("x-mine") == "1"
    assert request.one("via") == "1.1 codius"
    assert request.one("forwarded") == f'for=127.0.0.1;proto=https;host="{name().upper()}:81"'


async def test_a_hash_without_a_pod_gets_404() -> None:
    async with front() as proxy:
        document = check_refusal(await proxy.get(name(OTHER)), 404)
    assert OTHER in str(document["message"])


async def test_a_strangers_name_gets_421_that_says_what_is_served() -> None:
    async with front() as proxy:
        for host in (f"{POD}.elsewhere.example", f"x.{name()}", "elsewhere.example", f"www.{ZONE}"):
            document = check_refusal(await proxy.get(host), 421)
            assert ZONE in str(document["message"])


async def test_a_person_gets_a_page_and_a_websocket_client_a_complete_refusal() -> None:
    async with front() as proxy:
        page = await proxy.get(name(), extra="Accept: text/html,*/*\r\n")
        assert (page.status, page.one("content-type")) == (404, "text/html; charset=utf-8")
        assert b"</html>" in page.body
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n"
        check_refusal(await proxy.get(name(), extra=upgrade), 404)
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(f"http://127.0.0.1:{proxy.port}/", headers={"Host": name()})
            assert caught.value.status == 404


# Faults.


async def test_a_pod_that_refuses_gets_its_visitor_503_and_the_connection_goes_on() -> None:
    async with front({POD: closed_port()}) as proxy:
        client = await proxy.client()
        check_refusal(await client.get(name()), 503)
        check_refusal(await client.get(name()), 503)
        assert (await client.get(ZONE)).body == b"api"
        head = await client.get(name(), method="HEAD")
        assert (head.status, int(head.one("content-length")) > 0) == (503, True)
        assert (await client.get(ZONE)).body == b"api"


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\nX: a\rb\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17,
    ],
    ids=lambda value: repr(value)[:50],
)
async def test_a_pod_that_answers_garbage_gets_its_visitor_502(garbage: bytes) -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(garbage)
        await line.reader.read()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        answer = await client.get(name())
        while answer.status == 103:
            answer = await client.answer()
        check_refusal(answer, 502)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\nContent-Type: text/plain\nContent-Length: 7\n\n",
        b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\n\n",  # busybox httpd, then its CGI program
        b"HTTP/1.0 200 OK\nContent-Type: text/plain\r\n\n",
    ],
)
async def test_a_pod_may_end_the_lines_of_its_head_with_lf_alone(head: bytes) -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(head + b"a\r\n\r\nb\n")

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        for _ in range(2):
            answer = await client.get(name())
            assert (answer.status, answer.body) == (200, b"a\r\n\r\nb\n"[:7])
            assert answer.one("content-type") == "text/plain"
            assert answer.head.count(b"\n") == answer.head.count(b"\r\n")
        assert pod.connections == 2  # one answer each


@pytest.mark.parametrize("end", ["reset", "shut"])
async def test_a_pod_that_ends_without_an_answer_gets_its_visitor_502(end: str) -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        getattr(line, end)()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        check_refusal(await proxy.get(name()), 502)
        assert pod.connections == 1  # a fresh connection is not tried again


async def test_a_pod_that_says_nothing_gets_its_visitor_504() -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.reader.read()

    async with origin(script) as pod, front({POD: pod.port}, timeouts=Timeouts(first_byte=0.1)) as proxy:
        check_refusal(await proxy.get(name()), 504)


async def test_a_pod_that_takes_no_connection_in_time_gets_its_visitor_504() -> None:
    import socket

    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]  # a full queue: the kernel drops what comes next
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        try:
            async with front({POD: port}, timeouts=Timeouts(connect=0.2)) as proxy:
                check_refusal(await proxy.get(name()), 504)
        finally:
            for filler in fillers:
                filler.close()


async def test_an_api_that_is_away_is_a_503_and_pods_go_on() -> None:
    async with origin() as pod, front({POD: pod.port}, api=False) as proxy:
        answer = await proxy.get(ZONE)
        check_refusal(answer, 503)
        assert answer.has("retry-after")
        assert (await proxy.get(name())).body == b"hello"


async def test_too_many_requests_at_once_to_one_pod_get_503_and_others_go_on() -> None:
    go, asked = asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        asked.set()
        await go.wait()
        await line.send(ANSWER)

    async with (
        origin(script) as pod,
        origin() as other,
        front({POD: pod.port, OTHER: other.port}, limits=Limits(per_target=1)) as proxy,
    ):
        first = asyncio.create_task(proxy.get(name()))
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
        check_refusal(await proxy.get(name()), 503)
        assert (await proxy.get(name(OTHER))).status == 200
        go.set()
        assert (await first).body == b"hello"


async def test_a_visitor_too_many_gets_503() -> None:
    async with front(limits=Limits(connections=1)) as proxy:
        first = await proxy.client()
        await first.send(f"GET / HTTP/1.1\r\nHost: {ZONE}\r\n\r\nGET".encode())  # has begun a second one
        assert (await first.answer()).body == b"api"
        second = await proxy.client()
        answer = await second.answer()
        check_refusal(answer, 503)
        assert answer.one("connection") == "close"
        assert await second.rest() == b""


async def test_a_visitor_that_rests_makes_room_for_a_newcomer() -> None:
    async with front(limits=Limits(connections=1)) as proxy:
        first = await proxy.client()
        assert (await first.get(ZONE)).body == b"api"
        assert (await proxy.get(ZONE)).body == b"api"
        assert await first.rest() == b""


async def test_one_address_gets_its_share_of_the_connections_and_no_more() -> None:
    async with front(limits=Limits(per_client=2)) as proxy:
        first, second = await proxy.client(), await proxy.client()
        assert (await first.get(ZONE)).body == b"api"
        assert (await second.get(ZONE)).body == b"api"
        third = await proxy.client()
        check_refusal(await third.get(ZONE), 429)
        await first.aclose()
        await proxy.until(ZONE, 200)


async def test_who_may_not_stay_is_told_in_the_form_he_asks_for() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        begun.set()
        await go.wait()

    page = "Accept: text/html\r\n"
    async with (
        origin(script) as pod,
        front({POD: pod.port}, limits=Limits(connections=1, per_client=2)) as proxy,
    ):
        busy = await proxy.client()
        await busy.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        await begun.wait()
        answer = await proxy.get(name(), extra=page)
        assert (answer.status, answer.one("content-type")) == (503, "text/html; charset=utf-8")
        answer = await proxy.get(name())
        assert (answer.status, answer.one("content-type")) == (503, "application/json; charset=utf-8")
        assert answer.one("connection") == "close"
        go.set()


async def test_who_may_not_stay_and_says_nothing_is_told_so_and_let_go() -> None:
    """And not waited for as long as others are: a slow head would keep what there is too little of."""
    timeouts = Timeouts(idle=3600.0, head=3600.0, linger=0.05)
    async with front(timeouts=timeouts, limits=Limits(per_client=1)) as proxy:
        kept = await proxy.client()
        assert (await kept.get(ZONE)).body == b"api"
        for begin in (b"", b"GET / HT"):
            client = await proxy.client()
            await client.send(begin)
            answer = await client.answer()
            assert (answer.status, answer.one("content-type")) == (429, "application/json; charset=utf-8")
            assert await client.rest() == b""
        assert (await kept.get(ZONE)).body == b"api"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", Line.reset),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", Line.shut),
        (CHUNKED + b"4\r\nhalf\r\n", Line.reset),
        (CHUNKED + b"4\r\nhalf\r\n", Line.shut),
        (b"HTTP/1.1 200 OK\r\n\r\nhalf", Line.reset),
    ],
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_answer_that_breaks_off_never_looks_complete(
    start: bytes, version: str, end: Callable[[Line], None]
) -> None:
    go = asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(start)
        await go.wait()
        end(line)

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/{version}\r\nHost: {name()}\r\n\r\n".encode())
        head = await client.head()
        assert head.status == 200
        async with asyncio.timeout(DEADLINE):
            await client.reader.readuntil(b"half")
        go.set()
        if head.has("content-length") or head.has("transfer-encoding"):
            assert b"0\r\n\r\n" not in await client.rest()
        else:  # only a reset tells
            with pytest.raises(ConnectionResetError):
                await client.rest()


async def test_a_broken_chunk_of_an_answer_ends_the_connection() -> None:
    go = asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(CHUNKED + b"4\r\nhalf\r\n")
        await go.wait()
        await line.send(b"oops\r\n0\r\n\r\n")
        await line.reader.read()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            await client.reader.readuntil(b"half\r\n")
        go.set()
        assert b"0\r\n\r\n" not in await client.rest()


# Framing.


@pytest.mark.parametrize(
    ("pod_says", "body"),
    [
        (ANSWER, b"hello"),
        (CHUNKED + b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n", None),
        (CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", b"hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\n\r\n", b""),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_every_way_to_end_an_answer_arrives_and_the_connection_goes_on(
    pod_says: bytes, body: bytes | None
) -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(pod_says)

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        if body is None:
            await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
            await client.head()
            assert await client.reader.readexactly(30) == b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 1"
            assert await client.reader.readexactly(4) == b"\r\n\r\n"
        else:
            assert (await client.get(name())).body == body
        assert (await client.get(ZONE)).body == b"api"


@pytest.mark.parametrize(
    "pod_says", [ANSWER, CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello"]
)
async def test_an_http_1_0_visitor_gets_plain_content_and_the_end(pod_says: bytes) -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + pod_says)

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.0\r\nHost: {name()}\r\nConnection: keep-alive\r\n\r\n".encode())
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"chunked" not in head
        assert b"Connection: close" in head
        assert body == b"hello"


async def test_the_answer_to_head_has_no_body_whatever_it_declares() -> None:
    async with (
        origin(answer=b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n") as sized,
        origin(answer=CHUNKED) as chunked,
        front({POD: sized.port, OTHER: chunked.port}) as proxy,
    ):
        client = await proxy.client()
        assert (await client.get(name(POD), method="HEAD")).one("content-length") == "5"
        assert (await client.get(name(OTHER), method="HEAD")).status == 200
        assert (await client.get(ZONE)).body == b"api"


async def test_a_body_reaches_the_pod_as_it_was_framed() -> None:
    async with origin() as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.get(name(), method="POST", extra="Content-Length: 0\r\n")
        await client.send(f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: 4\r\n\r\nab".encode())
        await client.send(b"cd")
        await client.answer()
        await client.send(
            f"PUT / HTTP/1.1\r\nHost: {name()}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab".encode()
        )
        await client.send(b"\r\n0\r\nX-Sum: 1\r\n\r\n")
        await client.answer()
    empty, sized, chunked = pod.requests
    assert (empty.one("content-length"), empty.body) == ("0", b"")
    assert (sized.one("content-length"), sized.body) == ("4", b"abcd")
    assert (chunked.one("transfer-encoding"), chunked.body) == (
        "chunked",
        b"2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n",
    )


async def test_an_aiohttp_client_posts_streams_and_reads_back() -> None:
    async def script(line: Line) -> None:
        while (request := await line.read_request()) is not None:
            await line.send(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(request.body), request.body)
            )

    async def pieces() -> object:
        for _ in range(3):
            yield b"x" * 100_000

    async with (
        origin(script) as pod,
        front({POD: pod.port}) as proxy,
        aiohttp.ClientSession(headers={"Host": name()}) as session,
    ):
        url = f"http://127.0.0.1:{proxy.port}/"
        async with session.post(url, data=b"y" * MIB) as response:
            assert await response.read() == b"y" * MIB
        async with session.post(url, data=pieces()) as response:
            assert (await response.read()).count(b"x") == 300_000
        async with session.post(url, data=b"z" * 10, expect100=False) as response:
            assert await response.read() == b"z" * 10


# Connections.


async def test_visitors_share_a_kept_alive_connection_to_the_pod() -> None:
    async with origin() as pod, front({POD: pod.port}) as proxy:
        for _ in range(5):
            assert (await proxy.get(name())).body == b"hello"
        client = await proxy.client()
        for _ in range(5):
            assert (await client.get(name())).body == b"hello"
        assert pod.connections == 1


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_a_kept_alive_connection_that_turns_out_dead_is_tried_again_once(method: str) -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(ANSWER)
        if line.number == 1:
            await line.read_head()
            line.reset()  # as if it had timed out in the moment of the second request
        else:
            await line.reader.read()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        assert (await proxy.get(name())).body == b"hello"
        assert (await proxy.get(name(), method=method)).body == b"hello"
        assert pod.connections == 2


@pytest.mark.parametrize(
    ("method", "body"),
    [("POST", ""), ("POST", "x"), ("PATCH", ""), ("PUT", "x"), ("GET", "x"), ("UNHEARD", "")],
)
async def test_what_may_not_be_repeated_is_never_sent_twice(method: str, body: str) -> None:
    """What its method forbids, and what its body, which is gone."""

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(ANSWER)
        await line.read_head()
        line.reset()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        assert (await proxy.get(name())).body == b"hello"
        client = await proxy.client()
        head = f"{method} / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: {len(body)}\r\n\r\n"
        await client.send(f"{head}{body}".encode())
        check_refusal(await client.answer(), 502)
        assert pod.connections == 1


@pytest.mark.parametrize(
    "excess",
    [ANSWER + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", ANSWER + b"x", CHUNKED + b"0\r\n\r\nx"],
)
async def test_bytes_after_an_answer_never_become_the_next_one(excess: bytes) -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(excess if line.number == 1 else ANSWER)
        await line.reader.read()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.get(name())
        assert (await client.get(name())).body == b"hello"
        assert pod.connections == 2


async def test_bytes_nobody_asked_for_end_an_idle_connection() -> None:
    go, ended = asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(ANSWER)
        if line.number == 1:
            await go.wait()
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        try:
            await line.reader.read()
        finally:
            ended.set()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.get(name())
        go.set()
        async with asyncio.timeout(DEADLINE):
            await ended.wait()
        assert (await client.get(name())).body == b"hello"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def script(line: Line) -> None:
        while (request := await line.read_request()) is not None:
            path = request.line.split(" ")[1].encode()
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        hosts = [name(), name(OTHER), ZONE, name()] * 10
        await client.send(
            "".join(f"GET /{n} HTTP/1.1\r\nHost: {host}\r\n\r\n" for n, host in enumerate(hosts)).encode()
        )
        for number, host in enumerate(hosts):
            answer = await client.answer()
            if host == name():
                assert answer.body == f"/{number}".encode()
            else:
                assert answer.status == (404 if host == name(OTHER) else 200)


async def test_what_is_pipelined_behind_a_slow_answer_is_bounded() -> None:
    go = asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        await go.wait()
        await line.send(ANSWER)
        await line.reader.read()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        request = f"GET /x HTTP/1.1\r\nHost: {name(OTHER)}\r\n\r\n".encode()
        client.writer.write(request * (32 * MIB // len(request)))
        with pytest.raises(TimeoutError):  # the proxy stops reading: this never drains
            await asyncio.wait_for(client.writer.drain(), 0.3)
        go.set()
        assert (await client.answer()).body == b"hello"
        for _ in range(100):
            assert (await client.answer()).status == 404


async def test_a_visitor_that_shuts_its_side_still_gets_the_answer() -> None:
    async with origin() as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode() * 2)
        client.writer.write_eof()
        assert (await client.rest()).count(b"hello") == 2


async def test_a_visitor_that_leaves_ends_the_pods_work() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        asked.set()
        await line.reader.read()
        left.set()

    async with origin(script) as pod, front({POD: pod.port}, timeouts=Timeouts(half_close=0.1)) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
            await client.aclose()
            await left.wait()


async def test_a_visitor_that_leaves_in_the_middle_of_its_body_ends_the_pods_work() -> None:
    got: list[bytes] = []
    asked, left = asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        asked.set()
        got.append(await line.reader.read())
        left.set()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: 10\r\n\r\nabc".encode())
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
            client.writer.write_eof()
            await left.wait()
        assert got[0] in (b"", b"abc")


async def test_visitors_that_leave_while_the_pod_is_being_connected_leave_nothing_behind() -> None:
    async with origin() as pod, front({POD: pod.port}) as proxy:
        for number in range(100):
            client = await proxy.client()
            await client.send(f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: 9\r\n\r\n".encode())
            for _ in range(number % 7):  # at different moments of the connect
                await asyncio.sleep(0)
            await client.aclose()
        assert (await proxy.get(name())).body == b"hello"
        proxy.stop()
        await proxy.stopped()  # waits for every connection to a pod


# Streams.


async def test_the_first_piece_of_an_answer_arrives_before_the_pod_sends_the_second() -> None:
    go = asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(CHUNKED + b"5\r\nfirst\r\n")
        await go.wait()
        await line.send(b"4\r\nlast\r\n0\r\n\r\n")

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        await client.head()
        async with asyncio.timeout(DEADLINE):
            assert await client.reader.readexactly(10) == b"5\r\nfirst\r\n"
            go.set()
            assert await client.reader.readexactly(14) == b"4\r\nlast\r\n0\r\n\r\n"


async def test_the_first_piece_of_a_body_arrives_before_the_visitor_sends_the_second() -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(line: Line) -> None:
        await line.read_head()
        await got.put(await line.reader.readexactly(5))
        await got.put(await line.reader.readexactly(4))
        await line.send(ANSWER)

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: 9\r\n\r\nfirst".encode())
        async with asyncio.timeout(DEADLINE):
            assert await got.get() == b"first"
            await client.send(b"last")
            assert await got.get() == b"last"
        assert (await client.answer()).body == b"hello"


async def test_a_slow_visitor_slows_the_pod_down() -> None:
    size = 64 * MIB
    sent = 0

    async def script(line: Line) -> None:
        nonlocal sent
        await line.read_head()
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            await line.send(b"x" * MIB)
            sent += MIB

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        await client.head()
        before = -1
        while before != sent:  # until the pod is stuck
            before = sent
            await asyncio.sleep(0.2)
        assert sent < size // 2
        async with asyncio.timeout(DEADLINE):
            left = size
            while left:
                data = await client.reader.read(MIB)
                assert data, f"cut with {left} bytes left"
                left -= len(data)
        assert (await client.get(ZONE)).body == b"api"


async def test_a_slow_pod_slows_the_visitor_down() -> None:
    size = 64 * MIB
    go = asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        await go.wait()
        left = size
        while left:
            data = await line.reader.read(MIB)
            assert data, f"cut with {left} bytes left"
            left -= len(data)
        await line.send(ANSWER)

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        client.writer.write(f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: {size}\r\n\r\n".encode())
        client.writer.write(b"x" * size)
        transport = client.writer.transport
        before = -1
        while before != transport.get_write_buffer_size():
            before = transport.get_write_buffer_size()
            await asyncio.sleep(0.2)
        assert before > size // 2
        go.set()
        assert (await client.answer()).body == b"hello"


# Interim answers and early ones.


async def test_a_visitor_that_expects_100_gets_it_from_the_pod() -> None:
    async def script(line: Line) -> None:
        while head := await line.read_head():
            assert b"Expect: 100-continue" in head
            await line.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert await line.reader.readexactly(4) == b"body"
            await line.send(ANSWER)

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        head = f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        await client.send(head.encode())
        assert (await client.head()).status == 100
        await client.send(b"body")
        assert (await client.answer()).body == b"hello"
        assert (await client.get(ZONE)).body == b"api"
        async with aiohttp.ClientSession(headers={"Host": name()}) as session:
            url = f"http://127.0.0.1:{proxy.port}/"
            async with session.post(url, data=b"body", expect100=True) as response:
                assert await response.read() == b"hello"


@pytest.mark.parametrize("known", [True, False])
async def test_a_no_to_a_visitor_that_expects_100_ends_the_connection(known: bool) -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await line.reader.read()

    async with origin(script) as pod, front({POD: pod.port} if known else {}) as proxy:
        client = await proxy.client()
        head = f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        await client.send(head.encode())
        answer = await client.answer()
        assert answer.status == (413 if known else 404)
        assert answer.one("connection") == "close"
        assert await client.rest() == b""


async def test_early_hints_are_passed_on() -> None:
    async with (
        origin(answer=b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ANSWER) as pod,
        front({POD: pod.port}) as proxy,
    ):
        client = await proxy.client()
        hints = await client.get(name())
        assert (hints.status, hints.one("link")) == (103, "</x>")
        assert (await client.answer()).body == b"hello"


async def test_the_rest_of_a_body_answered_early_never_becomes_a_request() -> None:
    smuggled = f"GET /smuggled HTTP/1.1\r\nHost: {name(OTHER)}\r\n\r\n".encode()

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(ANSWER)  # without reading the body
        await line.reader.read()

    async with origin(script) as pod, origin() as other, front({POD: pod.port, OTHER: other.port}) as proxy:
        client = await proxy.client()
        await client.send(
            f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: {len(smuggled)}\r\n\r\n".encode()
        )
        assert (await client.answer()).body == b"hello"
        await client.send(smuggled)
        assert (await client.get(ZONE)).body == b"api"  # the short rest was drained
        assert not other.requests

        for framing in (f"Content-Length: {MIB}", "Transfer-Encoding: chunked"):
            client = await proxy.client()
            await client.send(f"POST / HTTP/1.1\r\nHost: {name()}\r\n{framing}\r\n\r\n".encode())
            answer = await client.answer()
            assert (answer.body, answer.one("connection")) == (b"hello", "close")
            await client.send(smuggled)
            assert await client.rest() == b""
            await client.aclose()
        assert not other.requests


async def test_a_refusal_reaches_a_visitor_that_is_still_sending() -> None:
    async with front() as proxy:
        client = await proxy.client()
        await client.send(f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: {MIB}\r\n\r\n".encode())
        await client.send(b"x" * (MIB // 2))
        answer = await client.answer()
        check_refusal(answer, 404)
        assert answer.one("connection") == "close"
        assert await client.rest() == b""


# Time-outs.


async def test_a_head_that_does_not_come_in_time_is_refused() -> None:
    async with front(timeouts=Timeouts(head=0.1)) as proxy:
        client = await proxy.client()
        await client.send(b"GET / HTTP/1.1\r\n")
        answer = await client.answer()
        check_refusal(answer, 408)
        assert await client.rest() == b""


async def test_a_body_that_stops_coming_is_refused() -> None:
    async with front(timeouts=Timeouts(body=0.1)) as proxy:
        client = await proxy.client()
        await client.send(f"POST / HTTP/1.1\r\nHost: {ZONE}\r\nContent-Length: 10\r\n\r\nabc".encode())
        check_refusal(await client.answer(), 408)
        assert await client.rest() == b""


async def test_an_idle_visitor_is_let_go_without_a_word() -> None:
    async with front(timeouts=Timeouts(idle=0.1)) as proxy:
        client = await proxy.client()
        assert await client.rest() == b""
        client = await proxy.client()
        assert (await client.get(ZONE)).body == b"api"
        assert await client.rest() == b""


async def test_a_visitor_that_does_not_read_is_cut() -> None:
    ended = asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        try:
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
            await line.send(b"x" * 64 * MIB)
        finally:
            ended.set()

    async with origin(script) as pod, front({POD: pod.port}, timeouts=Timeouts(body=0.2)) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            await ended.wait()


# Tunnels.


async def test_a_websocket_goes_through() -> None:
    async with (
        websocket_echo() as port,
        front({POD: port}) as proxy,
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"http://127.0.0.1:{proxy.port}/chat", headers={"Host": name()}, max_msg_size=0
        ) as ws,
    ):
        await ws.send_str("hello")
        assert await ws.receive_str() == "hello"
        await ws.send_bytes(b"x" * 3 * MIB)
        assert await ws.receive_bytes() == b"x" * 3 * MIB
        await ws.close()
        assert ws.close_code == 1000


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
OFFER = "Connection: Upgrade\r\nUpgrade: echo\r\n"


async def test_a_tunnel_keeps_bytes_sent_ahead_and_lets_each_side_end_alone() -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(SWITCH + b"hi ")
        got = await line.reader.read()  # until the visitor shuts its side
        await line.send(got.upper())
        line.writer.write_eof()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n{OFFER}\r\nahead ".encode())
        assert (await client.head()).one("upgrade") == "echo"
        await client.send(b"after")
        client.writer.write_eof()
        assert await client.rest() == b"hi AHEAD AFTER"


async def test_a_tunnel_takes_up_reading_where_it_was_held_back() -> None:
    """More than is held of what a visitor sends ahead, and a pod that takes its time to agree."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        asked.set()
        await go.wait()
        await line.send(SWITCH)
        await line.send(b"%d" % len(await line.reader.readexactly(MIB)))
        await line.reader.read()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n{OFFER}\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
        client.writer.write(b"x" * MIB)
        while client.writer.transport.get_write_buffer_size() == MIB:
            await asyncio.sleep(0)
        go.set()
        await client.head()
        async with asyncio.timeout(DEADLINE):
            assert await client.reader.readexactly(7) == b"1048576"


async def test_a_pod_may_end_its_side_of_a_tunnel_first() -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(SWITCH + b"bye")
        line.writer.write_eof()
        await got.put(await line.reader.read())

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n{OFFER}\r\n".encode())
        await client.head()
        assert await client.rest() == b"bye"
        await client.send(b"still here")
        client.writer.write_eof()
        async with asyncio.timeout(DEADLINE):
            assert await got.get() == b"still here"


async def test_a_pod_that_declines_to_upgrade_answers_as_usual() -> None:
    async with origin() as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        pipelined = f"GET /next HTTP/1.1\r\nHost: {name()}\r\n\r\n"
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n{OFFER}\r\n{pipelined}".encode())
        assert (await client.answer()).body == b"hello"
        assert (await client.answer()).body == b"hello"
    assert [request.line for request in pod.requests] == ["GET / HTTP/1.1", "GET /next HTTP/1.1"]


# Refused; known ways to smuggle are in test_http_smuggling.py.


async def test_a_chunk_that_breaks_later_never_completes_at_the_pod() -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        asked.set()
        got.append(await line.reader.read())
        ended.set()

    got: list[bytes] = []
    asked, ended = asyncio.Event(), asyncio.Event()
    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(
            f"POST / HTTP/1.1\r\nHost: {name()}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n".encode()
        )
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
        await client.send(b"zz\r\n0\r\n\r\nGET / HTTP/1.1\r\n")
        check_refusal(await client.answer(), 400)
        async with asyncio.timeout(DEADLINE):
            await ended.wait()
        assert got[0] in (b"", b"2\r\nab\r\n")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /" + b"x" * 40_000, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, 431),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n", 501),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999999999999999\r\n\r\n", 413),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_what_is_too_much_has_its_own_status(raw: bytes, status: int) -> None:
    async with front() as proxy:
        client = await proxy.client()
        await client.send(raw)
        check_refusal(await client.answer(), status)
        assert await client.rest() == b""


async def test_one_empty_line_before_a_request_is_allowed() -> None:
    async with front() as proxy:
        client = await proxy.client()
        await client.send(b"\r")
        await client.send(f"\nGET / HTTP/1.1\r\nHost: {ZONE}\r\n\r\n".encode())
        assert (await client.answer()).body == b"api"
        await client.send(f"\r\nGET / HTTP/1.1\r\nHost: {ZONE}\r\n\r\n".encode())
        assert (await client.answer()).body == b"api"


async def test_a_head_may_come_byte_by_byte() -> None:
    async with front() as proxy:
        client = await proxy.client()
        for byte in f"GET / HTTP/1.1\r\nHost: {ZONE}\r\n\r\n".encode():
            await client.send(bytes((byte,)))
        assert (await client.answer()).body == b"api"


# The feed.


async def test_a_route_appears_moves_and_goes_with_the_feed() -> None:
    async with (
        origin() as first,
        origin(answer=ANSWER.replace(b"hello", b"moved")) as second,
        front() as proxy,
    ):
        check_refusal(await proxy.get(name()), 404)
        proxy.feed.add(POD, Target("127.0.0.1", first.port))
        assert (await proxy.until(name(), 200)).body == b"hello"
        proxy.feed.add(POD, Target("127.0.0.1", second.port))
        async with asyncio.timeout(DEADLINE):
            while (await proxy.get(name())).body != b"moved":
                pass
        proxy.feed.remove(POD)
        await proxy.until(name(), 404)


async def test_routes_stay_while_the_node_is_away_and_are_fresh_when_it_is_back() -> None:
    async with origin() as pod, front({POD: pod.port}) as proxy:
        await proxy.feed.aclose()
        assert (await proxy.get(name())).body == b"hello"
        proxy.feed.table = {OTHER: Target("127.0.0.1", pod.port)}
        assert (await proxy.get(name())).body == b"hello"
        await proxy.feed.start()
        await proxy.until(name(), 404)
        assert (await proxy.get(name(OTHER))).body == b"hello"


async def test_nonsense_on_the_feed_changes_nothing_and_the_feed_is_read_afresh() -> None:
    async with origin() as pod, front({POD: pod.port}) as proxy:
        readers = proxy.feed.readers
        proxy.feed.say(b'{"type":"nonsense"}\n')
        async with asyncio.timeout(DEADLINE):
            while proxy.feed.readers == readers:
                assert (await proxy.get(name())).body == b"hello"


async def test_before_the_first_snapshot_nobody_is_told_that_a_pod_does_not_exist() -> None:
    async with origin() as pod, front({POD: pod.port}, snapshot=False) as proxy:
        check_refusal(await proxy.get(name()), 503)
        assert (await proxy.get(ZONE)).body == b"api"
        await proxy.feed.start()
        assert (await proxy.until(name(), 200)).body == b"hello"


async def test_a_route_that_goes_takes_its_kept_alive_connections_along() -> None:
    ended = asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(ANSWER)
        try:
            await line.reader.read()
        finally:
            ended.set()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        await proxy.get(name())
        assert not ended.is_set()
        proxy.feed.remove(POD)
        async with asyncio.timeout(DEADLINE):
            await ended.wait()


async def test_a_route_that_goes_ends_the_answers_its_pod_began() -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n")
        await line.reader.read()  # and no more: its link is cut without a word

    async with origin(script) as pod, front({POD: pod.port}, timeouts=Timeouts(gone=0.1)) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        assert (await client.head()).status == 200
        proxy.feed.remove(POD)
        async with asyncio.timeout(DEADLINE):
            rest = await client.reader.read()
        assert not rest.endswith(b"0\r\n\r\n")  # an end that nobody takes for the answer's


async def test_an_upload_may_take_longer_than_a_pods_answer() -> None:
    pulled = asyncio.Event()

    async def slow(line: Line) -> None:
        await line.read_head()
        await pulled.wait()
        await line.send(ANSWER)

    async def silent(line: Line) -> None:
        await line.read_head()
        await line.reader.read()

    async with origin(silent) as pod, front({POD: pod.port}, timeouts=Timeouts(first_byte=0.1)) as proxy:
        proxy.api.script = slow
        upload = asyncio.create_task(proxy.get(ZONE))
        check_refusal(await proxy.get(name()), 504)
        check_refusal(await proxy.get(name()), 504)
        assert not upload.done()
        pulled.set()
        assert (await upload).status == 200


# Draining.


async def test_a_worker_that_stops_finishes_what_it_began_and_takes_nothing_new() -> None:
    go, asked = asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        asked.set()
        await go.wait()
        await line.send(ANSWER)
        await line.reader.read()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        idle, busy = await proxy.client(), await proxy.client()
        assert (await idle.get(ZONE)).body == b"api"
        await busy.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
        proxy.stop()
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await proxy.client()
        go.set()
        answer = await busy.answer()
        assert (answer.body, answer.one("connection")) == (b"hello", "close")
        assert await busy.rest() == b""
        await busy.aclose()
        await proxy.stopped()


async def test_what_does_not_finish_in_time_is_cut() -> None:
    asked = asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        asked.set()
        await line.reader.read()

    async with origin(script) as pod, front({POD: pod.port}, timeouts=Timeouts(drain=0.1)) as proxy:
        client = await proxy.client()
        await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
        proxy.stop()
        await proxy.stopped()
        assert await client.rest() == b""
