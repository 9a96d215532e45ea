"""Whoever attacks the front door while others are timed: `python -m tests.bench.attackers KIND PORT HOST...`

Says `ready` when all its connections are there, and goes on until it is ended. HOSTs are names of pods.
"""

from __future__ import annotations

import asyncio
import itertools
import resource
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Final

_FILES: Final = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
IDLE: Final = 10_000 if _FILES == resource.RLIM_INFINITY else min(10_000, _FILES // 2 - 128)
"""As many as the front door takes with its two files for each, and some are left for others."""
PER_SOURCE: Final = 500
"""Connections from one address: fewer than one may have."""
TOGETHER: Final = 1000
"""Connections of those who are slow."""
EVERY: Final = 1.0
"""Seconds between two bytes of theirs: a thousand a second of all of them together."""
SMALL_BUFFER: Final = 4096
"""Bytes the kernel holds for somebody who hardly reads."""
LINES: Final = 120
"""Header lines of a large head: fewer than are allowed."""
AT_ONCE: Final = 16
"""Connections of a flood that are open at a time."""
PIPELINED: Final = 100
"""Requests sent at once: fewer bytes than have to wait for their turn."""
CHUNKS: Final = 100_000
"""Chunks of one byte in a body."""
RESPITE: Final = 0.05
"""Seconds, when the front door takes no more."""

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Attack = Callable[[int, Sequence[str]], Coroutine[None, None, None]]


def sources() -> Iterator[str]:
    """Addresses of the loopback, each for a few hundred connections."""
    for number in itertools.count():
        yield f"127.0.1.{number // PER_SOURCE % 250 + 1}"


async def idle(port: int, _: Sequence[str]) -> None:
    """Connections that never send a byte."""
    kept = []
    for source in itertools.islice(sources(), IDLE):
        client = socket.socket()
        client.bind((source, 0))
        client.connect(("127.0.0.1", port))
        kept.append(client)
    say_ready()
    await asyncio.Event().wait()


def slow(begin: Callable[[str], bytes], *, read: bool = False) -> Attack:
    """A thousand that send, or read, a byte at a time; who is let go comes again."""

    async def visit(port: int, source: str, host: str, there: asyncio.Semaphore) -> None:
        while True:
            client = socket.socket()
            client.setblocking(False)
            client.bind((source, 0))
            if read:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            loop = asyncio.get_running_loop()
            try:
                await loop.sock_connect(client, ("127.0.0.1", port))
                await loop.sock_sendall(client, begin(host))
                there.release()
                while True:
                    await asyncio.sleep(EVERY)
                    if read:
                        if not await loop.sock_recv(client, 1):
                            break
                    else:
                        await loop.sock_sendall(client, b"x")
            except OSError:
                await asyncio.sleep(RESPITE)
            finally:
                client.close()

    async def attack(port: int, hosts: Sequence[str]) -> None:
        there = asyncio.Semaphore(0)
        places = zip(sources(), itertools.cycle(hosts), strict=False)
        async with asyncio.TaskGroup() as tasks:
            for source, host in itertools.islice(places, TOGETHER):
                tasks.create_task(visit(port, source, host, there), name="slow visitor")
            for _ in range(TOGETHER):
                await there.acquire()
            say_ready()

    return attack


def flood(once: Callable[[Connection, str, int], Awaitable[None]]) -> Attack:
    """Connection after connection from one address, as fast as they go."""

    async def visit(port: int, host: str, numbers: Iterator[int]) -> None:
        while True:
            try:
                connection = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(RESPITE)
                continue
            try:
                await once(connection, host, next(numbers))
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                connection[1].transport.abort()

    async def attack(port: int, hosts: Sequence[str]) -> None:
        numbers = itertools.count()
        async with asyncio.TaskGroup() as tasks:
            for host in itertools.islice(itertools.cycle(hosts), AT_ONCE):
                tasks.create_task(visit(port, host, numbers), name="flood")
            say_ready()

    return attack


async def leave(*_: object) -> None:
    """Without a word."""


async def send_large_heads(connection: Connection, host: str, number: int) -> None:
    """On one connection, for as long as they are answered; no line comes twice."""
    reader, writer = connection
    for again in itertools.count():
        lines = "".join(f"X-{number}-{again}-{line}: {'x' * 100}\r\n" for line in range(LINES))
        writer.write(f"GET /small HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())
        if not await reader.read(65536):
            return


async def send_without_waiting(connection: Connection, *_: object) -> None:
    """Requests behind one another to a name that nobody has, for as long as they are taken."""
    reader, writer = connection
    requests = b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n" * PIPELINED

    async def send() -> None:
        while True:
            writer.write(requests)
            await writer.drain()

    sending = asyncio.create_task(send(), name="pipelining")
    try:
        while await reader.read(65536):
            pass
    finally:
        sending.cancel()


async def send_tiny_chunks(connection: Connection, host: str, _: int) -> None:
    """Bodies to a pod that reads them, of chunks of one byte."""
    reader, writer = connection
    head = f"POST /upload HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    request = head + b"1\r\na\r\n" * CHUNKS + b"0\r\n\r\n"
    while True:
        writer.write(request)
        await writer.drain()
        if not await reader.read(65536):
            return


def say_ready() -> None:
    print("ready", flush=True)


ATTACKS: Final[Mapping[str, Attack]] = {
    "idle": idle,
    "slow-heads": slow(lambda host: f"GET / HTTP/1.1\r\nHost: {host}\r\nX: ".encode()),
    "slow-bodies": slow(
        lambda host: f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999\r\n\r\n".encode()
    ),
    "slow-reading": slow(lambda host: f"GET /large HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), read=True),
    "connections": flood(leave),
    "large-heads": flood(send_large_heads),
    "pipelining": flood(send_without_waiting),
    "tiny-chunks": flood(send_tiny_chunks),
}


def main() -> None:
    kind, port, *hosts = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(ATTACKS[kind](int(port), hosts))


if __name__ == "__main__":
    main()
