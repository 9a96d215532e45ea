"""Bodies of tiny chunks on the front door's loop, one turn of it after the other: who waits, and for what."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from codius_proxy.channel import BULK, Channel
from codius_proxy.chunked import LAST_CHUNK, MAX_LINES
from codius_proxy.connection import VisitorConnection
from codius_proxy.identity import Entrance
from codius_proxy.routes import Add, Target
from codius_proxy.visit import End, Observer, Visit
from tests.harness.ears import on_front_loop, take, take_all, tcp_pair, until
from tests.harness.front import POD, name
from tests.harness.origin import ANSWER, DEADLINE
from tests.integration.test_connection import SMALL, Counting, Mistaken, make_site

TINY = b"1\r\na\r\n"
MANY = 20_000  # chunks, and less than a kernel takes of somebody who is not listened to
SOME = 2000  # chunks: some turns, and all of them are read at once
BODY = TINY * MANY + LAST_CHUNK
PIECE = MAX_LINES // 2 * len(TINY)  # bytes of one turn
MAX_HEAD = 1024  # bytes of those in these tests
IN_A_TURN = 2 * PIECE  # what had to wait for it, and what came in the same one
POST = f"POST / HTTP/1.1\r\nHost: {name()}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
GET = f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode()
OLD_GET = f"GET / HTTP/1.0\r\nHost: {name()}\r\n\r\n".encode()
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Seeing(Counting):
    """How the requests ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[End] = []

    def visited(self, visit: Visit) -> None:
        super().visited(visit)
        self.ends.append(visit.end)


@dataclass(frozen=True, slots=True)
class Stage:
    """A visitor's end, a pod's door, and what is between them."""

    theirs: socket.socket
    listening: socket.socket
    visitor: VisitorConnection
    reported: list[str]

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.theirs, data)

    @contextlib.asynccontextmanager
    async def pod(self) -> AsyncIterator[socket.socket]:
        """Its end of the connection that it gets."""
        async with asyncio.timeout(DEADLINE):
            pod, _ = await asyncio.get_running_loop().sock_accept(self.listening)
        with pod:
            pod.setblocking(False)
            yield pod


@contextlib.asynccontextmanager
async def stage(observer: Observer, *, holds: int | None = None) -> AsyncIterator[Stage]:
    """`holds`: so many bytes are kept by the kernel for a visitor that does not read."""
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: reported.append(str(context.get("exception", context["message"])))
    )
    site = make_site(observer)
    ours, theirs = tcp_pair()
    if holds is not None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, holds)
    with theirs, socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        site.table.apply(Add(POD, Target("127.0.0.1", listening.getsockname()[1])))
        visitor = VisitorConnection(site, Entrance("http"))
        Channel(ours, visitor, theirs.getsockname())
        yield Stage(theirs, listening, visitor, reported)
        theirs.close()
        assert await site.emptied(DEADLINE)
    await site.aclose()


class Turns:
    """Those of the loop, from now on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.number = 0
        self._count()

    def _count(self) -> None:
        self.number += 1
        self._loop.call_soon(self._count)

    async def watch(self, end: socket.socket, over: Callable[[bytes], bool]) -> bytes:
        """What comes until it is over; never more than is passed on in the turns that there were."""
        found = b""
        async with asyncio.timeout(DEADLINE):
            while not over(found):
                await asyncio.sleep(0)
                found += take(end)
                assert len(found) <= MAX_HEAD + self.number * IN_A_TURN
        return found


@pytest.mark.parametrize("ended", [False, True], ids=["it listens on", "it has said all"])
@pytest.mark.parametrize(
    "first", [b"", SMALL, GET], ids=["at once", "behind a refused one", "behind another"]
)
@on_front_loop
async def test_of_a_request_of_tiny_chunks_a_piece_is_passed_on_in_each_turn_and_all_in_the_end(
    first: bytes, ended: bool
) -> None:
    seen = Seeing()
    async with stage(seen) as on:
        turns = Turns()
        await on.say(first + POST + BODY + SMALL)
        if ended:
            on.theirs.shutdown(socket.SHUT_WR)
        async with on.pod() as pod:
            if first == GET:
                await until(lambda: take(pod))
                pod.send(ANSWER)
            got = await turns.watch(pod, lambda found: found.endswith(b"\r\n" + LAST_CHUNK))
            assert got.partition(b"\r\n\r\n")[2] == BODY
            assert on.visitor.reader.waiting == SMALL
            pod.send(ANSWER)
            answers = b""
            async with asyncio.timeout(DEADLINE):
                while seen.visits < 2 + bool(first):
                    await asyncio.sleep(0)
                    answers += take(on.theirs)
        assert answers.count(b"HTTP/1.1 200 ") == 1 + (first == GET)
        assert answers.count(b"HTTP/1.1 421 ") == 1 + (first == SMALL)
        assert not on.reported


@on_front_loop
async def test_nothing_is_read_of_a_visitor_whose_chunks_wait_for_their_turn() -> None:
    async with stage(Seeing()) as on, asyncio.TaskGroup() as tasks:
        tasks.create_task(on.say(POST + BODY * 10))
        async with on.pod() as pod:
            reader = on.visitor.reader
            most = 0
            while not reader.body_done:
                await asyncio.sleep(0)
                most = max(most, len(reader.waiting))
                take(pod)
            assert PIECE < most <= BULK


@on_front_loop
async def test_a_visitor_whose_chunks_waited_gets_its_full_time_again() -> None:
    far = 1e12
    async with stage(Seeing()) as on:
        await on.say(POST + BODY)
        async with on.pod() as pod:
            await until(lambda: take(pod))
            on.visitor.deadline = far
            await until(lambda: take(pod))
            assert on.visitor.deadline < far


@on_front_loop
async def test_chunks_that_wait_when_the_visitor_has_said_all_get_their_turns() -> None:
    seen = Seeing()
    async with stage(seen) as on:
        await on.say(GET + POST + TINY * SOME + LAST_CHUNK)
        on.theirs.shutdown(socket.SHUT_WR)
        async with on.pod() as pod:
            await until(lambda: take(pod) and on.visitor.eof)
            pod.send(ANSWER)
            got = b""
            async with asyncio.timeout(DEADLINE):
                while not got.endswith(b"\r\n" + LAST_CHUNK):
                    got += await asyncio.get_running_loop().sock_recv(pod, BULK)
            pod.send(ANSWER)
            assert (await take_all(on.theirs)).count(b"HTTP/1.1 200 ") == 2
    assert seen.ends == [End.ANSWERED, End.ANSWERED]


@on_front_loop
async def test_a_body_that_cannot_become_complete_is_not_waited_for() -> None:
    """The visitor has said all, and that was before its chunks got their turns."""
    seen = Seeing()
    async with stage(seen) as on:
        await on.say(GET + POST + TINY * SOME)
        on.theirs.shutdown(socket.SHUT_WR)
        async with on.pod() as pod:
            await until(lambda: take(pod) and on.visitor.eof)
            pod.send(ANSWER)
            got = b""
            async with asyncio.timeout(DEADLINE):
                while got.count(b"\r\na\r\n") < SOME:
                    await asyncio.sleep(0)
                    got += take(pod)
            assert seen.visits == 2  # as soon as that
    assert seen.ends == [End.ANSWERED, End.VISITOR_LOST]


@pytest.mark.parametrize("started", [False, True], ids=["before its answer", "within its answer"])
@on_front_loop
async def test_a_mistake_among_chunks_that_waited_is_one(started: bool) -> None:
    seen = Seeing()
    async with stage(seen) as on:
        await on.say(POST + TINY * SOME + b"x" + BODY)
        async with on.pod() as pod:
            if started:
                await until(lambda: take(pod))
                pod.send(HEAD)
                await until(lambda: take(on.theirs))
            got, end = b"", None
            with contextlib.suppress(ConnectionResetError):
                while end != b"":
                    end = await asyncio.get_running_loop().sock_recv(pod, BULK)
                    got += end
            assert b"x" not in got.partition(b"\r\n\r\n")[2]
        if not started:
            assert (await take_all(on.theirs)).startswith(b"HTTP/1.1 400 ")
        await until(lambda: seen.visits)
        assert seen.ends == [End.VISITOR_LOST if started else End.REFUSED]
        assert not on.reported


@on_front_loop
async def test_a_mistake_of_a_pod_among_chunks_that_waited_is_one() -> None:
    seen = Seeing()
    async with stage(seen) as on:
        await on.say(GET)
        async with on.pod() as pod:
            pod.send(HEAD + TINY * SOME + b"x" + BODY)
            got = b""
            with contextlib.suppress(ConnectionResetError):
                while data := await asyncio.get_running_loop().sock_recv(on.theirs, BULK):
                    got += data
            await until(lambda: seen.visits)
            assert TINY in got
            assert LAST_CHUNK not in got
        assert seen.ends == [End.TARGET_LOST]
        assert not on.reported


@pytest.mark.parametrize("who", ["the visitor", "the pod"])
@on_front_loop
async def test_who_goes_while_chunks_wait_for_their_turn_leaves_nothing_behind(who: str) -> None:
    seen = Seeing()
    async with stage(seen) as on:
        await on.say(GET if who == "the visitor" else POST + BODY)
        async with on.pod() as pod:
            if who == "the visitor":
                pod.send(HEAD + BODY)
                await until(lambda: take(on.theirs))
                on.theirs.close()
            else:
                await until(lambda: take(pod))
                pod.close()
            await until(lambda: seen.visits)
        assert seen.ends == [End.VISITOR_LOST if who == "the visitor" else End.REFUSED]
        assert not on.reported


@pytest.mark.parametrize("many", [SOME, MANY], ids=["few", "many"])
@pytest.mark.parametrize("behind", [False, True], ids=["with the head", "behind the head"])
@pytest.mark.parametrize("old", [False, True], ids=["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("closes", [False, True], ids=["keeps", "closes"])
@on_front_loop
async def test_of_an_answer_of_tiny_chunks_a_piece_is_passed_on_in_each_turn_and_all_in_the_end(
    closes: bool, old: bool, behind: bool, many: int
) -> None:
    seen = Seeing()
    async with stage(seen) as on:
        await on.say(OLD_GET if old else GET)
        async with on.pod() as pod:
            head, body = b"", TINY * many + LAST_CHUNK
            if behind:
                pod.send(HEAD)
                await until(lambda: select.select([on.theirs], [], [], 0)[0])
                head = take(on.theirs)
            turns = Turns()
            pod.send(body if behind else HEAD + body)
            if closes:
                pod.shutdown(socket.SHUT_WR)
            size = many if old else len(body)
            got = await turns.watch(
                on.theirs, lambda found: len((head + found).partition(b"\r\n\r\n")[2]) >= size
            )
            assert (head + got).partition(b"\r\n\r\n")[2] == (b"a" * many if old else body)
            await until(lambda: seen.visits)
            if not (closes or old):  # the same connection serves the next one
                take(pod)
                await on.say(GET)
                await until(lambda: take(pod))
                pod.send(ANSWER)
                await until(lambda: seen.visits == 2)
        assert set(seen.ends) == {End.ANSWERED}
        assert not on.reported


@on_front_loop
async def test_a_visitor_that_reads_late_gets_all_of_an_answer_of_tiny_chunks() -> None:
    """Two hold up its pod then: the visitor, and what waits for its turn."""
    seen = Seeing()
    async with stage(seen, holds=4096) as on, asyncio.TaskGroup() as tasks:
        await on.say(GET)
        async with on.pod() as pod:
            tasks.create_task(
                asyncio.get_running_loop().sock_sendall(pod, HEAD + BODY[:-5] * 10 + LAST_CHUNK)
            )
            await until(lambda: on.visitor.blocked)
            got = b""
            async with asyncio.timeout(DEADLINE):
                while not seen.visits or not got.endswith(b"\r\n" + LAST_CHUNK):
                    got += await asyncio.get_running_loop().sock_recv(on.theirs, BULK)
            assert got.partition(b"\r\n\r\n")[2] == BODY[:-5] * 10 + LAST_CHUNK


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in its turn"])
@on_front_loop
async def test_a_mistake_of_ours_ends_the_pods_connection_and_is_reported(at_once: bool) -> None:
    async with stage(Mistaken()) as on:
        await on.say(GET)
        async with on.pod() as pod:
            pod.send(ANSWER if at_once else HEAD + BODY)
            await until(lambda: on.reported)
            await take_all(pod)
        assert on.reported == ["a mistake"]
