"""The self-test's sample: its program as it runs, its image, its manifest, its half of RFC 6455."""

from __future__ import annotations

import asyncio
import io
import platform
import shutil
import socket
import struct
import subprocess
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import pytest
from aiohttp import WSMsgType

from codius_node import manifest, sample, sample_program
from codius_node.sample_program import ARCHITECTURES

DEADLINE: Final = 20.0
POLL_SECONDS: Final = 0.02
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
"""The example of RFC 6455 section 1.3, as is the next."""
ACCEPT: Final = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
DIGEST: Final = "sha256:" + "0" * 64


def find_runner(name: str) -> list[str] | None:
    """How this machine runs a program for that processor: by itself, or by emulation."""
    if name == platform.machine():
        return []
    emulator = shutil.which(f"qemu-{name}") or shutil.which(f"qemu-{name}-static")
    return None if emulator is None else [emulator]


@asynccontextmanager
async def running(name: str, directory: Path, answer: str, switch: str) -> AsyncIterator[int]:
    """The program as a process; its port."""
    runner = find_runner(name)
    if runner is None:
        pytest.skip(f"no qemu-{name} here to run it")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    program = directory / "sample"
    program.write_bytes(sample_program.build_program(ARCHITECTURES[name], port))
    program.chmod(0o755)
    process = subprocess.Popen([*runner, str(program), answer, switch])
    try:
        async with asyncio.timeout(DEADLINE):
            while True:
                assert process.poll() is None, "it ended"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    await asyncio.sleep(POLL_SECONDS)
                    continue
                writer.close()  # as the engine does when it looks whether a pod listens
                break
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ARCHITECTURES)
async def test_the_program_answers_visitors_one_after_the_other(name: str, tmp_path: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        running(name, tmp_path, sample.build_answer("hello"), "unused") as port,
        aiohttp.ClientSession() as visitor,
    ):
        for path in ("/", "/x", "/favicon.ico"):
            async with visitor.get(f"http://127.0.0.1:{port}{path}") as answer:
                assert (answer.status, await answer.text()) == (200, "hello")
        async with visitor.post(f"http://127.0.0.1:{port}/", data=b"x" * 300_000) as answer:
            assert await answer.text() == "hello"


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("text", ["x", "codius self-test", "y" * sample.MAX_TEXT])
async def test_the_program_sends_a_websockets_message_back(name: str, text: str, tmp_path: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        running(name, tmp_path, "unused", sample.build_switch(KEY)) as port,
    ):
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {sample.WEBSOCKET_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert await reader.readuntil(b"\r\n\r\n") == sample.build_switch(KEY).encode()
            writer.write(sample.build_frame(text))
            assert await reader.read() == sample.build_echo(text)
            writer.close()


@pytest.mark.parametrize("name", ARCHITECTURES)
async def test_the_program_outlives_visitors_that_leave(name: str, tmp_path: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        running(name, tmp_path, sample.build_answer("z" * 100_000), sample.build_switch(KEY)) as port,
    ):
        for path in ("/", sample.WEBSOCKET_PATH):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            await writer.drain()
            reset = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            writer.transport.abort()
        async with (
            aiohttp.ClientSession() as visitor,
            visitor.get(f"http://127.0.0.1:{port}/") as answer,
        ):
            assert len(await answer.read()) == 100_000


async def test_aiohttp_takes_our_half_of_the_handshake_for_a_servers() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
        writer.write(sample.build_switch(key.partition(":")[2].strip()).encode() + sample.build_echo("hi"))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.timeout(DEADLINE), server, aiohttp.ClientSession() as visitor:
        line = await visitor.ws_connect(f"http://127.0.0.1:{port}/", autoclose=False)
        message = await line.receive()
        assert (message.type, message.data) == (WSMsgType.TEXT, "hi")


async def test_aiohttp_takes_our_frame_for_a_clients_message() -> None:
    from tests.harness.origin import websocket_echo

    async with asyncio.timeout(DEADLINE), websocket_echo() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n".encode()
        )
        assert f"Sec-WebSocket-Accept: {ACCEPT}".encode() in await reader.readuntil(b"\r\n\r\n")
        writer.write(sample.build_frame("hello"))
        assert await reader.readexactly(len(sample.build_echo("hello"))) == sample.build_echo("hello")
        writer.close()


def test_the_key_is_answered_as_in_the_rfc() -> None:
    assert sample.build_accept(KEY) == ACCEPT


def test_a_message_that_needs_a_longer_header_is_refused() -> None:
    with pytest.raises(ValueError, match="126"):
        sample.build_frame("x" * 126)


def test_the_image_is_one_file_and_the_same_each_time() -> None:
    name, archive = sample.build_image(b"program")
    assert (name, archive) == sample.build_image(b"program")
    assert name.startswith("localhost/codius-selftest:")
    assert name != sample.build_image(b"another")[0]
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        [entry] = tar.getmembers()
        assert (entry.name, entry.mode, entry.uid, entry.mtime) == (sample.PROGRAM, 0o755, 0, 0)
        file = tar.extractfile(entry)
        assert file is not None
        assert file.read() == b"program"


@pytest.mark.parametrize("built_in", [True, False])
def test_the_manifest_is_one_that_this_host_accepts(built_in: bool) -> None:
    image = f"{sample.REPOSITORY}@{DIGEST}"
    uploads = [
        manifest.parse(sample.build_upload(image, nonce=nonce, key=KEY, built_in=built_in))
        for nonce in ("one", "two")
    ]
    [container] = uploads[0].manifest.containers
    assert (uploads[0].manifest.port, container.image) == (sample.PORT, image)
    assert (container.command is not None) is built_in
    assert uploads[0].manifest.hash != uploads[1].manifest.hash
