"""Slow and hostile visitors: let go in time, at little cost in memory, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from codius_proxy import outbox
from codius_proxy.config import Limits, Timeouts
from codius_proxy.worker import SPARE_FILES
from tests.harness.front import POD, ZONE, front, name
from tests.harness.origin import DEADLINE, Line, origin
from tests.harness.processes import Running, running, until

MIB = 1024**2
GIB = 1024**3
STEP = 0.02
"""Seconds between two bytes, or reads, of a slow visitor: its pace, not a wait for anything."""
STEPS = 100
QUIET = 0.3
"""Seconds, several ticks of a worker's: what has not finished by then does not without its visitor."""
SLOW_READERS = 200
PER_READER = 1.5
"""MiB a visitor that does not read may cost: two buffers of the event loop's, and what they are made of."""
IDLE = 2000
"""Connections at rest that fill a worker."""
MOST_IDLE = 10_000
PER_IDLE = 0.02
"""MiB a visitor at rest may cost."""
OTHERS = 20


def resident(pids: Sequence[int]) -> float:
    """MiB of these processes together."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * 4096 / 2**20


async def ask(proxy: Running, host: str) -> None:
    assert await proxy.get(host) in (b"hello", b"api  ")


@contextlib.asynccontextmanager
async def many(port: int, count: int) -> AsyncIterator[list[socket.socket]]:
    """So many connections, with a kernel that holds little for them."""
    loop = asyncio.get_running_loop()
    found: list[socket.socket] = []
    try:
        for _ in range(count):
            client = socket.socket()
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            found.append(client)
            await loop.sock_connect(client, ("127.0.0.1", port))
        yield found
    finally:
        for client in found:
            client.close()


async def test_two_hundred_that_do_not_read_ten_gibibytes_cost_little_and_always_the_same() -> None:
    async def script(line: Line) -> None:
        head = await line.read_head()
        if b"GET /large" not in head:
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            return
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (10 * GIB))
        piece = b"x" * 65536
        while True:
            await line.send(piece)

    async with origin(script) as pod, running(pod, workers=1) as proxy:
        while await proxy.get(name()) != b"hello":
            pass
        workers = proxy.children()
        before = resident(workers)
        request = f"GET /large HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode()
        loop = asyncio.get_running_loop()
        async with many(proxy.port, SLOW_READERS) as clients:
            for client in clients:
                await loop.sock_sendall(client, request)
            taken = 0
            grown = []
            for _ in range(4):  # each time everybody reads a little more, and memory stays where it was
                for client in clients:
                    taken += len(await loop.sock_recv(client, 4096))
                await ask(proxy, name())
                grown.append(resident(workers) - before)
            assert taken > SLOW_READERS * 4096
            assert max(grown) < SLOW_READERS * PER_READER, grown
            assert grown[-1] < grown[0] + SLOW_READERS * PER_READER / 4, grown


@pytest.mark.parametrize(
    "start",
    [b"GET / HTTP/1.1\r\nHost: ", b"GET / HTTP/1.1\r\nHost: x.example\r\nContent-Length: 100000\r\n\r\n"],
    ids=["head", "body"],
)
async def test_what_trickles_in_is_let_go_in_time(start: bytes) -> None:
    """Each byte is progress, and not enough of it."""
    start = start.replace(b"x.example", name().encode())
    async with (
        origin() as pod,
        front({POD: pod.port}, timeouts=Timeouts(head=0.3, body=0.3)) as proxy,
    ):
        client = await proxy.client()
        await client.send(start)
        answered = asyncio.create_task(client.answer())
        for _ in range(STEPS):
            client.writer.write(b"x")
            await asyncio.wait((answered,), timeout=STEP)
            if answered.done():
                break
        else:
            answered.cancel()
            pytest.fail(f"{STEPS} bytes were taken, one by one")
        assert (await answered).status == 408


async def test_a_body_that_moves_enough_is_not_let_go() -> None:
    """The same bytes at the same pace, and fewer are enough."""
    async with (
        origin() as pod,
        front({POD: pod.port}, timeouts=Timeouts(body=10 * STEP), limits=Limits(progress=2)) as proxy,
    ):
        client = await proxy.client()
        await client.send(f"POST / HTTP/1.1\r\nHost: {name()}\r\nContent-Length: {STEPS}\r\n\r\n".encode())
        for _ in range(STEPS):
            client.writer.write(b"x")
            await asyncio.sleep(STEP)
        assert (await client.answer()).body == b"hello"


async def reset_follows(reader: socket.socket) -> None:
    """What waited in the kernel is thrown away, and not kept for somebody who does not read it."""

    async def read_on() -> None:
        while await asyncio.get_running_loop().sock_recv(reader, 4096):
            pass

    async with asyncio.timeout(DEADLINE):
        with pytest.raises(ConnectionResetError):
            await read_on()


PACES = pytest.mark.parametrize(
    ("progress", "kept"), [(512, True), (MIB, False)], ids=["enough", "not enough"]
)
"""Of somebody who reads some thousand bytes in the time that is looked at."""
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIB


async def sip(reader: socket.socket, ended: asyncio.Event) -> bool:
    """Read a little again and again, for ten time-outs; False as soon as it ended elsewhere."""
    loop = asyncio.get_running_loop()
    for _ in range(STEPS):
        if ended.is_set():
            return False
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE):
                await loop.sock_recv(reader, 512)
        await asyncio.sleep(STEP)
    return True


@PACES
@pytest.mark.parametrize("answer", [LARGE, SWITCHING], ids=["answer", "tunnel"])
async def test_a_visitor_that_reads_slowly_is_kept_and_one_that_hardly_reads_is_not(
    answer: bytes, progress: int, kept: bool
) -> None:
    ended = asyncio.Event()  # of the pod's connection, with the visitor's

    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(answer)
        try:
            while True:
                await line.send(b"x" * 65536)
        finally:
            ended.set()

    timeouts, limits = Timeouts(body=STEPS * STEP / 10), Limits(progress=progress)
    async with (
        origin(script) as pod,
        front({POD: pod.port}, timeouts=timeouts, limits=limits) as proxy,
        many(proxy.port, 1) as [client],
    ):
        fields = "Connection: Upgrade\r\nUpgrade: x\r\n" if answer is SWITCHING else ""
        request = f"GET / HTTP/1.1\r\nHost: {name()}\r\n{fields}\r\n".encode()
        await asyncio.get_running_loop().sock_sendall(client, request)
        assert await sip(client, ended) is kept
        if not kept:
            await reset_follows(client)


async def test_who_hangs_up_on_an_answer_it_does_not_read_is_let_go() -> None:
    """Whatever part of the answer is left: all of it in the kernel, some of it ours, or too much for us."""
    loop = asyncio.get_running_loop()
    sizes = range(64 * 1024, 4 * MIB, 48 * 1024)  # one of them leaves us less than makes us wait

    async def script(line: Line) -> None:
        head = await line.read_head()
        size = int(head.split(b" ")[1].removeprefix(b"/"))
        with contextlib.suppress(ConnectionError):  # nobody reads all of it
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
            assert not await line.read_head()

    sending, receiving = outbox.pair()
    with sending, receiving:
        async with (
            origin(script) as pod,
            front(
                {POD: pod.port}, timeouts=Timeouts(idle=1.0, body=1.0, linger=0.5), recorder=sending
            ) as proxy,
            many(proxy.port, len(sizes)) as clients,
        ):
            for client, size in zip(clients, sizes, strict=True):
                await loop.sock_sendall(client, f"GET /{size} HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())

            async def hear() -> outbox.Message:
                return outbox.unpack(memoryview(await loop.sock_recv(receiving, MIB)))[0]

            finished = left = 0
            with contextlib.suppress(TimeoutError):  # some never are: nobody reads them
                while True:
                    async with asyncio.timeout(QUIET if finished else DEADLINE):
                        message = await hear()
                    finished, left = finished + message.requests, message.connections
            assert left
            for client in clients:
                with contextlib.suppress(OSError):  # it was not awaited any longer
                    client.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(DEADLINE):
                while left:
                    left = (await hear()).connections


@PACES
async def test_a_pod_that_reads_slowly_from_a_tunnel_is_kept_and_one_that_hardly_reads_is_not(
    progress: int, kept: bool
) -> None:
    loop = asyncio.get_running_loop()
    timeouts, limits = Timeouts(body=STEPS * STEP / 10), Limits(progress=progress)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        async with front({POD: listening.getsockname()[1]}, timeouts=timeouts, limits=limits) as proxy:
            client = await proxy.client()
            head = f"GET / HTTP/1.1\r\nHost: {name()}\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
            await client.send(head.encode())
            pod, _ = await loop.sock_accept(listening)
            with pod:
                pod.setblocking(False)
                await loop.sock_recv(pod, 4096)
                await loop.sock_sendall(pod, SWITCHING)
                assert (await client.head()).status == 101
                client.writer.write(b"x" * 16 * MIB)
                ended = asyncio.Event()
                watching = asyncio.create_task(client.reader.read())
                watching.add_done_callback(lambda _: ended.set())
                assert await sip(pod, ended) is kept
                if not kept:
                    await reset_follows(pod)
                await client.aclose()
                with contextlib.suppress(ConnectionError):
                    await watching


async def test_many_that_send_half_a_head_are_let_go_and_others_are_served_meanwhile() -> None:
    async with front(timeouts=Timeouts(head=0.5)) as proxy, many(proxy.port, 500) as clients:
        loop = asyncio.get_running_loop()
        for client in clients:
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\n")
        assert (await proxy.get(ZONE)).body == b"api"
        async with asyncio.timeout(DEADLINE):
            for client in clients:
                assert (await loop.sock_recv(client, 64)).startswith(b"HTTP/1.1 408 ")
        assert (await proxy.get(ZONE)).body == b"api"


async def test_connections_at_rest_cost_little_and_the_idlest_make_room() -> None:
    async with (
        origin() as pod,
        running(pod, workers=1, limits=Limits(connections=IDLE, per_client=10**6)) as proxy,
    ):
        workers = proxy.children()
        before = resident(workers)
        async with many(proxy.port, IDLE) as clients:
            await ask(proxy, ZONE)
            assert resident(workers) - before < IDLE * PER_IDLE
            await until(lambda: any(map(ended, clients)))
            await ask(proxy, ZONE)
            assert sum(map(ended, clients)) < IDLE / 4


async def test_who_sends_large_heads_waits_for_those_who_do_not() -> None:
    """All are there when the worker looks; the small one came last, and is served first."""
    large = "".join(f"X-{number}: {'x' * 100}\r\n" for number in range(60))
    async with origin() as pod, running(pod, workers=1) as proxy:
        clients = [await proxy.client() for _ in range(5)]
        for client in clients:
            assert (await client.get(name())).body == b"hello"
        before = len(pod.requests)
        [worker] = proxy.children()
        os.kill(worker, signal.SIGSTOP)
        state = Path(f"/proc/{worker}/stat")
        await until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        for number, client in enumerate(clients):
            fields = large if number < 4 else ""
            await client.send(f"GET /{number} HTTP/1.1\r\nHost: {name()}\r\n{fields}\r\n".encode())
        os.kill(worker, signal.SIGCONT)
        for client in clients:
            assert (await client.answer()).body == b"hello"
        order = [request.line.split(" ")[1] for request in pod.requests[before:]]
    assert order[0] == "/4"
    assert sorted(order) == ["/0", "/1", "/2", "/3", "/4"]


def ended(client: socket.socket) -> bool:
    return peek(client) == b""


def peek(client: socket.socket) -> bytes | None:
    """What waits to be read; None where nothing does, b"" at the end."""
    try:
        return client.recv(64, socket.MSG_PEEK)
    except BlockingIOError:
        return None


async def test_ten_thousand_at_rest_are_held_and_others_are_served_meanwhile() -> None:
    """Or as many as the limit of open files allows: each visitor may need two in the worker."""
    before_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before_limit[1], before_limit[1]))
    count = min(MOST_IDLE, before_limit[1] // 2 - SPARE_FILES - OTHERS)
    try:
        async with (
            origin() as pod,
            running(pod, workers=1, limits=Limits(per_client=10**6)) as proxy,
        ):
            workers = proxy.children()
            before = resident(workers)
            async with many(proxy.port, count) as clients:
                for _ in range(OTHERS):
                    await ask(proxy, ZONE)
                    await ask(proxy, name())
                assert not any(map(ended, clients))
                assert resident(workers) - before < count * PER_IDLE
                # They are visitors still: the first and the last are answered on these connections.
                for client in (clients[0], clients[-1]):
                    loop = asyncio.get_running_loop()
                    await loop.sock_sendall(client, f"GET / HTTP/1.1\r\nHost: {ZONE}\r\n\r\n".encode())
                    async with asyncio.timeout(DEADLINE):
                        assert (await loop.sock_recv(client, 64)).startswith(b"HTTP/1.1 200 ")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before_limit)


async def test_a_flood_from_one_address_leaves_room_for_the_others() -> None:
    async with (
        front(limits=Limits(connections=1000, per_client=50)) as proxy,
        many(proxy.port, 300) as clients,
    ):
        await until(
            lambda: sum((peek(client) or b"").startswith(b"HTTP/1.1 429") for client in clients) >= 250
        )
        assert sum(peek(client) is None for client in clients) <= 50
        loop = asyncio.get_running_loop()
        with socket.socket() as other:
            other.setblocking(False)
            other.bind(("127.0.0.2", 0))
            await loop.sock_connect(other, ("127.0.0.1", proxy.port))
            request = f"GET / HTTP/1.1\r\nHost: {ZONE}\r\nConnection: close\r\n\r\n"
            await loop.sock_sendall(other, request.encode())
            async with asyncio.timeout(DEADLINE):
                assert (await loop.sock_recv(other, 64)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.skipif(shutil.which("slowhttptest") is None, reason="needs Debian's slowhttptest")
@pytest.mark.parametrize(
    "attack",
    [
        ["-H", "-i", "1", "-x", "8"],
        ["-B", "-i", "1", "-s", "100000", "-x", "8"],
        ["-X", "-n", "1", "-w", "1", "-y", "16", "-z", "4", "-k", "3"],
        ["-R", "-a", "1", "-b", "3000"],
    ],
    ids=["slow heads", "slow bodies", "slow reading", "ranges"],
)
async def test_slowhttptest_does_not_keep_others_out(attack: list[str]) -> None:
    async with origin(answer=b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000) as pod:
        limits = Limits(per_client=600)
        timeouts = Timeouts(head=2.0, body=2.0)
        async with running(pod, workers=1, limits=limits, timeouts=timeouts) as proxy:
            url = f"http://{name()}:{proxy.port}/"
            command = ["slowhttptest", "-c", "400", "-r", "400", "-l", "6", "-p", "3", *attack, "-u", url]
            # The name resolves by itself nowhere: its traffic goes to the front door as to a proxy.
            command += ["-d", f"127.0.0.1:{proxy.port}"] if attack[0] in ("-H", "-B") else []
            if "-d" not in command:
                command[-1] = f"http://127.0.0.1:{proxy.port}/"
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            assert process.stdout is not None
            served = 0
            output = b""
            reading = asyncio.create_task(process.stdout.read())
            while not reading.done():
                await ask(proxy, ZONE)
                served += 1
                await asyncio.wait((reading,), timeout=0.05)
            output = await reading
            await process.wait()
            assert served > 20
            seen = re.findall(rb"service available:[^A-Z]*(YES|NO)", output)
            assert seen, output[-600:]
            assert b"NO" not in seen
            assert await proxy.get(ZONE) == b"api  "
