"""The front door alone, as the measurements run it: log and metrics on, its own feed.

`python -m tests.bench.front_door DIRECTORY PORT ORIGIN CERTIFICATE WORKERS`; CERTIFICATE may be empty.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

from codius_proxy import server
from codius_proxy.config import Limits, ProxyConfig
from codius_proxy.routes import Target
from tests.bench.rivals import ROUTES, ZONE, pod_hash
from tests.harness.front import Feed


def main() -> None:
    directory, port, origin, certificate, workers = Path(sys.argv[1]), *sys.argv[2:]
    feed_socket = directory / "feed.sock"
    config = ProxyConfig(
        zone=ZONE,
        listen_address="127.0.0.1",
        port=int(port),
        scheme="https" if certificate else "http",
        api_socket=directory / "api.sock",
        feed_socket=feed_socket,
        workers=int(workers),
        certificates=_unpack(directory, Path(certificate)) if certificate else None,
        access_log=directory / "access.log",
        metrics=("127.0.0.1", 0),
        # What may go to a pod at once is counted by address. All pods have one here, and the share of all.
        limits=Limits(per_target=Limits().per_target * ROUTES),
    )
    table = {pod_hash(number): Target("127.0.0.1", int(origin)) for number in range(ROUTES)}
    up = threading.Event()

    async def feed() -> None:
        await Feed(feed_socket, table).start()
        up.set()
        await asyncio.Event().wait()

    # It only ever sends one snapshot: its thread costs the measurement nothing.
    threading.Thread(target=asyncio.run, args=(feed(),), daemon=True).start()
    up.wait()
    server.run(config)


def _unpack(directory: Path, both: Path) -> Path:
    """A certificate and its key, in one file, as the front door wants them: a folder with two."""
    folder = directory / "certificates" / ZONE
    folder.mkdir(parents=True)
    text = both.read_text()
    border = text.index("-----BEGIN PRIVATE KEY")
    (folder / "fullchain.pem").write_text(text[:border])
    (folder / "privkey.pem").write_text(text[border:])
    return folder.parent


if __name__ == "__main__":
    main()
