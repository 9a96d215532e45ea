"""Pods that answer early, hang up, lie about their answers or do not read: what their visitors get."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import h11
import pytest

from codius_proxy.config import Timeouts
from tests.harness.front import OTHER, POD, ZONE, front, name
from tests.harness.origin import ANSWER, DEADLINE, Line, origin

KIB = 1024
MIB = 1024 * KIB
SMUGGLED = f"GET /smuggled HTTP/1.1\r\nHost: {name(OTHER)}\r\n\r\n".encode()
LAST = f"GET /last HTTP/1.1\r\nHost: {ZONE}\r\nConnection: close\r\n\r\n".encode()
STEP = 0.02
"""Seconds between two bytes of a slow pod: its pace, not a wait for anything."""
STEPS = 200
QUIET = 0.2
"""Seconds after which what has not moved is stuck."""
TEXT = b"no, and " * 5 * KIB  # more than is read at once, and less than a kernel takes unread
TOO_LARGE = b"HTTP/1.1 413 Too Large\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[socket.socket]:
    """A visitor without a library, which would not read any more when a write has failed."""
    with socket.socket() as visitor:
        visitor.setblocking(False)
        await asyncio.get_running_loop().sock_connect(visitor, ("127.0.0.1", port))
        yield visitor


async def converse(visitor: socket.socket, data: bytes) -> tuple[bytes, bool]:
    """Send and receive at once: everything that came, and whether a proper end did."""
    loop = asyncio.get_running_loop()

    async def send() -> bool:
        try:
            await loop.sock_sendall(visitor, data)
        except ConnectionError as error:  # the kernel tells of a reset once, whoever asks first
            return isinstance(error, BrokenPipeError)
        return True

    async def receive() -> bool:
        try:
            while data := await loop.sock_recv(visitor, MIB):
                got.append(data)
        except ConnectionResetError:
            return False
        return True

    got: list[bytes] = []
    async with asyncio.timeout(DEADLINE):
        ends = await asyncio.gather(send(), receive())
    return b"".join(got), all(ends)


def judge(got: bytes, *, ended: bool) -> tuple[int, bytes, bytes]:
    """The first answer as h11 reads it: its status, its content, what came after it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    client.send(h11.EndOfMessage())
    client.receive_data(got)
    if ended:
        client.receive_data(b"")
    status, content = 0, b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            raise h11.RemoteProtocolError(f"the answer is not complete: {got[-200:]!r}")
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            content += event.data
    return status, content, client.trailing_data[0]


def frame(body: bytes, *, chunked: bool) -> tuple[str, bytes]:
    """The header line of a body, and the body."""
    if chunked:
        return "Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return f"Content-Length: {len(body)}", body


# Answers before the request's end.


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize(
    "answer",
    [
        b"Content-Length: %d\r\n\r\n%b" % (len(TEXT), TEXT),
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(TEXT), TEXT),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(TEXT), TEXT),
        b"\r\n" + TEXT,
    ],
    ids=["keep-alive", "close", "chunked", "until the end"],
)
@pytest.mark.parametrize("size", [20 * KIB, 8 * MIB], ids=["small", "large"])
@pytest.mark.parametrize(
    ("version", "chunked"),
    [("1.1", False), ("1.1", True), ("1.0", False)],
    ids=["a length", "chunks", "HTTP/1.0"],
)
async def test_the_answer_of_a_pod_that_did_not_wait_for_the_body_and_hung_up_arrives(
    version: str, chunked: bool, size: int, answer: bytes, how: str
) -> None:
    """Whoever serves the visitor finds out when it cannot send the body on."""
    framing, body = frame(SMUGGLED * (size // len(SMUGGLED)), chunked=chunked)
    asked, go, hung_up = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        if line.number > 1:
            while await line.read_head():
                await line.send(ANSWER)
            return
        await line.read_head()
        asked.set()
        await go.wait()
        await line.send(TOO_LARGE + answer)
        if how == "closes":
            line.writer.write_eof()
            line.shut()
        else:
            line.reset()
        await line.gone()
        hung_up.set()

    async with (
        origin(script) as pod,
        origin() as other,
        front({POD: pod.port, OTHER: other.port}) as proxy,
        connected(proxy.port) as visitor,
    ):
        head = f"POST / HTTP/{version}\r\nHost: {name()}\r\n{framing}\r\n\r\n".encode()
        await asyncio.get_running_loop().sock_sendall(visitor, head + body[:KIB])
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
        async with proxy.held():
            conversation = asyncio.create_task(converse(visitor, body[KIB:] + LAST))
            await asyncio.sleep(0)
            go.set()
            async with asyncio.timeout(DEADLINE):
                await hung_up.wait()
        got, ended = await conversation
        whole = how == "closes" or answer[:2] != b"\r\n"
        if whole:
            status, content, after = judge(got, ended=ended)
            assert (status, content) == (413, TEXT)
            drained = version == "1.1" and not chunked and size < MIB
            assert after.endswith(b"api") is drained
        else:  # its end was none
            with pytest.raises(h11.RemoteProtocolError):
                judge(got, ended=ended)
        assert not other.requests
        assert (await proxy.get(name())).body == b"hello"
        assert pod.connections == 2


@pytest.mark.parametrize("known", [True, False], ids=["a pod's answer", "our own"])
async def test_a_visitor_that_reads_when_it_has_sent_all_gets_the_answer_that_came_early(known: bool) -> None:
    """As simple clients do. A connection that was closed meanwhile would be reset, and the answer gone."""

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(TOO_LARGE + b"Content-Length: 2\r\n\r\nno")
        line.reset()

    async with (
        origin(script) as pod,
        front({POD: pod.port} if known else {}) as proxy,
        connected(proxy.port) as visitor,
    ):
        head = f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: {8 * MIB}\r\n\r\n".encode()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE):
            await loop.sock_sendall(visitor, head + b"x" * 8 * MIB)
        got, ended = await converse(visitor, b"")
        assert judge(got, ended=ended)[0] == (413 if known else 404)
        assert ended


async def test_a_connection_that_took_no_more_serves_no_second_request_even_of_the_same_visitor() -> None:
    """The rest of a body, and a request that may not be sent twice behind it, come with the reset."""
    asked, go, hung_up = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        if line.number == 1:
            asked.set()
            await go.wait()
        await line.send(ANSWER)
        if line.number == 1:
            line.reset()
            await line.gone()
            hung_up.set()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        head = f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: "
        await client.send(f"{head}6\r\n\r\none".encode())
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
        async with proxy.held():
            await client.send(f"two{head}0\r\n\r\n".encode())
            go.set()
            async with asyncio.timeout(DEADLINE):
                await hung_up.wait()
        assert (await client.answer()).body == b"hello"
        assert (await client.answer()).body == b"hello"
        assert pod.connections == 2


async def test_what_a_kept_alive_connection_said_unasked_before_it_broke_answers_nothing() -> None:
    """The request and the break come at once, and the request is seen first."""

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(ANSWER)
        if line.number == 1:
            await go.wait()
            await line.send(ANSWER.replace(b"hello", b"wrong"))
            line.reset()
            await line.gone()
            hung_up.set()

    go, hung_up = asyncio.Event(), asyncio.Event()
    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        assert (await client.get(name())).body == b"hello"
        async with proxy.held():
            await client.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
            go.set()
            async with asyncio.timeout(DEADLINE):
                await hung_up.wait()
        assert (await client.answer()).body == b"hello"
        assert pod.connections == 2


async def test_the_api_may_answer_before_the_bodys_end_and_hang_up_too() -> None:
    """By a Unix socket, which tells of the same things in another order."""
    asked, go, hung_up = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        asked.set()
        await go.wait()
        await line.send(TOO_LARGE + b"Content-Length: %d\r\n\r\n%b" % (len(TEXT), TEXT))
        line.shut()
        await line.gone()
        hung_up.set()

    async with front() as proxy, connected(proxy.port) as visitor:
        proxy.api.script = script
        head = f"POST / HTTP/1.1\r\nHost: {ZONE}\r\nContent-Length: {8 * MIB}\r\n\r\n".encode()
        await asyncio.get_running_loop().sock_sendall(visitor, head)
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
        async with proxy.held():
            conversation = asyncio.create_task(converse(visitor, b"x" * 8 * MIB))
            await asyncio.sleep(0)
            go.set()
            async with asyncio.timeout(DEADLINE):
                await hung_up.wait()
        got, ended = await conversation
        assert judge(got, ended=ended)[:2] == (413, TEXT)


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize("whose", ["pod's", "visitor's"])
async def test_last_words_pass_a_tunnel_though_whoever_said_them_reads_no_more(how: str, whose: str) -> None:
    """Both speak at once, and one of them hangs up."""

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        pods.set_result(line)
        await asyncio.Event().wait()

    pods: asyncio.Future[Line] = asyncio.get_running_loop().create_future()
    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        head = f"GET / HTTP/1.1\r\nHost: {name()}\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
        await client.send(head.encode())
        assert (await client.head()).status == 101
        theirs = await pods
        ours = Line(client.reader, client.writer, 0)
        speaker, listener = (theirs, ours) if whose == "pod's" else (ours, theirs)
        async with proxy.held():
            await listener.send(b"x")
            await speaker.send(TEXT)
            if how == "closes":
                speaker.writer.write_eof()
                speaker.shut()
            else:
                speaker.reset()
            await speaker.gone()
        async with asyncio.timeout(DEADLINE):
            assert await listener.reader.readexactly(len(TEXT)) == TEXT
            if how == "closes":
                assert await listener.reader.read() == b""


# Answers without an end, and answers that are none.


@pytest.mark.parametrize(
    ("start", "again"),
    [
        (b"HTTP/1.1 200 ", b"OK"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"HTTP/1.1 200 OK\n", b"X: y\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
        (CHUNKED + b"1", b"0"),
        (CHUNKED + b"1;x=", b"y"),
        (CHUNKED + b"0\r\n", b"X: y\r\n"),
        (CHUNKED + b"0\r\nX: ", b"y"),
    ],
    ids=[
        "reason", "fields", "a field", "fields with bare LF", "100", "103", "chunk size", "chunk extension",
        "trailer", "a trailer field",
    ],
)  # fmt: skip
async def test_what_has_no_end_is_ended(start: bytes, again: bytes) -> None:
    ended = asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        try:
            await line.send(start)
            while True:
                await line.send(again * (16 * KIB // len(again)))
        finally:
            ended.set()

    async with origin(script) as pod, front({POD: pod.port}) as proxy, connected(proxy.port) as visitor:
        head = f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi"
        got, _ = await converse(visitor, head.encode() + LAST)
        async with asyncio.timeout(DEADLINE):
            await ended.wait()
        if got.startswith(b"HTTP/1.1 200 "):  # the answer began before its fault was seen
            with pytest.raises(h11.RemoteProtocolError):
                judge(got, ended=True)
        else:
            assert judge(got, ended=True)[0] == 502
            assert got.endswith(b"api")
        assert len(got) < 8 * KIB


async def test_a_pod_that_shuts_its_side_without_an_answer_is_not_waited_for() -> None:
    """Whatever it has still to read: no answer can come."""
    stuck = asyncio.Event()

    async def script(line: Line) -> None:
        if line.number > 1:
            await stuck.wait()
        line.writer.write_eof()
        await asyncio.Event().wait()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        assert (await proxy.get(name())).status == 502
        client = await proxy.client()
        client.writer.write(
            f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: {64 * MIB}\r\n\r\n".encode()
        )
        client.writer.write(b"x" * 64 * MIB)
        before = -1
        while before != (before := client.writer.transport.get_write_buffer_size()):
            await asyncio.sleep(QUIET)
        assert before > 32 * MIB
        stuck.set()
        assert (await client.answer()).status == 502


async def test_a_pod_that_does_not_read_gets_its_visitor_504() -> None:
    async def script(_: Line) -> None:
        await asyncio.Event().wait()

    async with (
        origin(script) as pod,
        front({POD: pod.port}, timeouts=Timeouts(body=0.3)) as proxy,
        connected(proxy.port) as visitor,
    ):
        head = f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: {32 * MIB}\r\n\r\n".encode()
        got, _ = await converse(visitor, head + b"x" * 32 * MIB)
        status, page, _ = judge(got, ended=True)
        assert status == 504
        assert b"It took no more of the request" in page
        assert b"Connection: close" in got


async def test_a_pod_that_reads_byte_by_byte_gets_its_visitor_504() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        table, timeouts = {POD: listening.getsockname()[1]}, Timeouts(body=10 * STEP)
        async with front(table, timeouts=timeouts) as proxy, connected(proxy.port) as visitor:
            head = f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: {32 * MIB}\r\n\r\n".encode()
            conversation = asyncio.create_task(converse(visitor, head + b"x" * 32 * MIB))
            pod, _ = await loop.sock_accept(listening)
            with pod:
                for _ in range(STEPS):
                    with contextlib.suppress(ConnectionError):
                        await loop.sock_recv(pod, 1)
                    await asyncio.wait((conversation,), timeout=STEP)
                    if conversation.done():
                        break
                else:
                    pytest.fail(f"{STEPS} bytes were taken, one by one")
            got, _ = await conversation
            assert judge(got, ended=True)[0] == 504


async def test_a_pod_whose_head_trickles_gets_its_visitor_504() -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            await line.send(b"y")
            await asyncio.sleep(STEP)

    async with origin(script) as pod, front({POD: pod.port}, timeouts=Timeouts(first_byte=0.2)) as proxy:
        assert (await proxy.get(name())).status == 504


@pytest.mark.parametrize(
    "first", [b"SSH-2.0-OpenSSH_9.2\r\n", b"220 mail ESMTP\r\n", b"\x00\x00\x06\x04\x00"]
)
async def test_a_pod_that_speaks_first_and_no_http_gets_its_visitor_502(first: bytes) -> None:
    async def script(line: Line) -> None:
        await line.send(first)
        await line.reader.read()

    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        for number in range(2):
            assert (await client.get(name())).status == 502
            assert pod.connections == number + 1
        assert (await client.get(ZONE)).body == b"api"
