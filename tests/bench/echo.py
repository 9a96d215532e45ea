"""Small messages through an upgraded connection, said back by the target.

`python -m tests.bench.echo serve PORT` is the target; `python -m tests.bench.echo load PORT HOST SECONDS
CONNECTIONS` sends, waits for each message to come back, and prints how many did. After the handshake the
bytes are opaque to a proxy, so they are here as well: 64 of them, the size of a small frame.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final, cast

import uvloop

MESSAGE: Final = b"\x82\x3e" + b"m" * 62
HANDSHAKE: Final = (
    "GET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ACCEPT: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


class Echo(asyncio.Protocol):
    def __init__(self) -> None:
        self._open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._open:
            self._transport.write(data)
        elif data.endswith(b"\r\n\r\n"):
            self._open = True
            self._transport.write(ACCEPT)


class Talker(asyncio.Protocol):
    def __init__(self, host: str) -> None:
        self._host = host
        self._got = 0
        self._open = False
        self.messages = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(HANDSHAKE.format(host=self._host).encode())

    def data_received(self, data: bytes) -> None:
        if not self._open:
            if not data.startswith(b"HTTP/1.1 101"):
                raise RuntimeError(f"not upgraded: {data[:80]!r}")
            self._open = True
        else:
            self._got += len(data)
            if self._got < len(MESSAGE):
                return
            self._got = 0
            self.messages += 1
        self._transport.write(MESSAGE)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


async def load(port: int, host: str, seconds: float, connections: int) -> int:
    loop = asyncio.get_running_loop()
    talkers = []
    for _ in range(connections):
        _, talker = await loop.create_connection(lambda: Talker(host), "127.0.0.1", port)
        talkers.append(talker)
    await asyncio.sleep(seconds)
    return sum(talker.messages for talker in talkers)


def main() -> None:
    match sys.argv[1:]:
        case ["serve", port]:
            uvloop.run(serve(int(port)))
        case ["load", port, host, seconds, connections]:
            print(uvloop.run(load(int(port), host, float(seconds), int(connections))))


if __name__ == "__main__":
    main()
