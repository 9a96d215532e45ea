"""A whole host that starts no containers (CODIUS_HYPER_NOOP), on loopback: no root, no podman, half a second.

With it run the tests of what faces clients: the node and its front door are the real processes.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.host import CODIUSD, HostError, clean_environment, passing
from tests.harness.world import open_directory

READY_SECONDS: Final = 30.0
STOP_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class NoopHost:
    """Where it answers, and the process that does: the node; the front door's are its children."""

    origin: str
    port: int
    pid: int
    directory: Path

    @property
    def log(self) -> Path:
        return self.directory / "codiusd.log"

    @property
    def authority(self) -> str:
        """Its own Host field, for clients whose resolver does not know *.localhost."""
        return self.origin.removeprefix("http://")


@contextmanager
def open_noop_host(
    *arguments: str, command: str = "run", stdin: int = subprocess.DEVNULL, **settings: str
) -> Iterator[NoopHost]:
    """Started, and stopped afterwards; `arguments` are more of the command's. A node alone has no front door.

    HostError with its log when it does not start.
    """
    with open_directory() as directory, socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        log = directory / "codiusd.log"
        environment = clean_environment() | {
            "CODIUS_HYPER_NOOP": "true",
            "CODIUS_PORT": str(port),
            "CODIUS_BIND_IP": "127.0.0.1",
            "CODIUS_DNS_PORT": "0",
            "CODIUS_ROOT": str(directory / "root"),
            "CODIUS_RUN": str(directory / "run"),
            "CODIUS_MAX_MEMORY_FRACTION": "1",
            **settings,
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*passing([listener.fileno()]), *CODIUSD, command, *arguments],
                env=environment,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[listener.fileno()],
            )
        try:
            _wait_ready(process, directory / "run" / "api.sock", log)
            yield NoopHost(f"http://codius.localhost:{port}", port, process.pid, directory)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], api: Path, log: Path) -> None:
    """Its port is open from the start, since we opened it; the API's socket comes when the node is ready."""
    deadline = time.monotonic() + READY_SECONDS
    while not api.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise HostError(f"codiusd run did not start:\n{log.read_text(errors='replace')}")
        time.sleep(POLL_SECONDS)
