"""An aiohttp application on a loopback port, in a thread of its own: for tests of what blocks."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

START_SECONDS = 10.0
POLL_SECONDS = 0.02


def wait_for_port(port: int) -> None:
    """Until another process accepts connections there; OSError when it does not within START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), START_SECONDS).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


@contextmanager
def serving(
    app: web.Application, *, path: Path | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Its port; 0 when it listens on the Unix socket `path`."""
    ready = threading.Event()
    port = 0
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event

    async def serve() -> None:
        nonlocal port, loop, stop
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        if path is None:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            port = runner.addresses[0][1]
        else:
            await web.UnixSite(runner, str(path)).start()
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="double")
    thread.start()
    try:
        assert ready.wait(START_SECONDS)
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
