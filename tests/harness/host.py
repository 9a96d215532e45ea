"""A whole real host in network namespaces of its own: podman, node, front door, responder.

The demo, the system tests and the benchmarks all run this one. The front door's socket is opened on the
loopback of the namespace we are in and handed over, so that clients and browsers reach it from here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.harness.namespaces import HostNetwork

READY_SECONDS: Final = 60.0
"""For a host that has pods to adopt or to start again."""
STOP_SECONDS: Final = 90.0
POLL_SECONDS: Final = 0.02
COMMAND_SECONDS: Final = 120.0
CODIUSD: Final = (sys.executable, "-m", "codius_node")


class HostError(Exception):
    """The host did not start, or a command failed; the message ends with what it said."""


class Host:
    """One host. `start` and `stop` or `kill` may alternate: the pods, the database and the names stay.

    By `codiusd run`, or with `units=True` as systemd would start it: node, proxy and dns apart.
    """

    def __init__(self, directory: Path, *, network: HostNetwork, podman_socket: Path) -> None:
        self.directory = directory
        self.network = network
        self._podman_socket = podman_socket
        here = socket.create_server(("127.0.0.1", 0))
        self.port: int = here.getsockname()[1]
        there = network.host.call(lambda: socket.create_server(("0.0.0.0", self.port)))
        self._listeners = (here, there)
        self.origin = f"http://codius.localhost:{self.port}"
        self.log = directory / "codiusd.log"
        self._parts: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def root(self) -> Path:
        """CODIUS_ROOT."""
        return self.directory / "root"

    @property
    def run(self) -> Path:
        """CODIUS_RUN."""
        return self.directory / "run"

    def environment(self, **more: str) -> dict[str, str]:
        """What the host is started with, and its operator's commands."""
        own = {
            "CODIUS_PORT": str(self.port),
            "CODIUS_BIND_IP": "0.0.0.0",
            "CODIUS_PAYMENTS": "free",
            "CODIUS_ROOT": str(self.root),
            "CODIUS_RUN": str(self.run),
            "CODIUS_ENGINE_SOCKET": str(self._podman_socket),
            "CODIUS_DNS_PORT": "5300",
            "CODIUS_PUBLIC_ADDRESSES": "192.0.2.2",
            "CODIUS_SELFTEST": "false",  # a pod more, at a time that no test has chosen
        }
        return clean_environment() | own | more

    def start(self, *, units: bool = False, **settings: str) -> None:
        """HostError with the end of its log when it is not ready in time."""
        for part in ("node", "proxy", "dns") if units else ("run",):
            self.start_part(part, **settings)

    def start_part(self, part: str, **settings: str) -> None:
        """One `codiusd` process, until it says READY=1 as to systemd, or its port answers."""
        notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notifications.settimeout(POLL_SECONDS)
        notifications.bind(str(self.directory / f"notify-{part}"))
        (self.directory / f"notify-{part}").chmod(0o777)  # systemd's is open, too: some have dropped root
        environment = self.environment(**settings)
        environment["NOTIFY_SOCKET"] = str(self.directory / f"notify-{part}")
        passed = [listener.fileno() for listener in self._listeners] if part in {"run", "proxy"} else []
        enter = ("nsenter", f"--net={self.network.host.path}")
        with self.log.open("ab") as log:
            self._parts[part] = subprocess.Popen(
                [*passing(passed), *enter, *CODIUSD, part],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=passed,
            )
        try:
            self._wait_ready(part, notifications)
        finally:
            notifications.close()
            (self.directory / f"notify-{part}").unlink()

    def _wait_ready(self, part: str, notifications: socket.socket) -> None:
        deadline = time.monotonic() + READY_SECONDS
        process = self._parts[part]
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if b"READY=1" in notifications.recv(4096):
                    return
            except TimeoutError:
                continue
        raise HostError(f"codiusd {part} did not start:\n{self.tail()}")

    def pid(self, part: str = "run") -> int:
        """The process itself: nsenter and the shell have executed it in their own place."""
        return self._parts[part].pid

    def stop_part(self, part: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        process = self._parts.pop(part)
        process.send_signal(number)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise HostError(f"codiusd {part} did not stop:\n{self.tail()}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """All parts, last started first; pods stay up."""
        for part in reversed(list(self._parts)):
            self.stop_part(part, number)

    def codiusd(
        self, *arguments: str, check: bool = True, inside: bool = False, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """A client's or operator's command, run where we are, as a person would; or `inside` the host."""
        enter = ("nsenter", f"--net={self.network.host.path}") if inside else ()
        done = subprocess.run(
            [*enter, *CODIUSD, *arguments],
            env=self.environment(CODIUS_HOST_URI=self.origin, COLUMNS="120", **settings),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
        if check and done.returncode != 0:
            raise HostError(f"codiusd {' '.join(arguments)} failed:\n{done.stderr}{done.stdout}")
        return done

    def command(self, *arguments: str) -> dict[str, object]:
        """The JSON object a client's command prints."""
        answer: dict[str, object] = json.loads(self.codiusd(*arguments, "--json").stdout)
        return answer

    def query(self, sql: str, *values: str | int) -> list[tuple[object, ...]]:
        """Rows of the host's database, read beside the node."""
        with closing(sqlite3.connect(f"file:{self.root}/codius.db?mode=ro", uri=True)) as database:
            return database.execute(sql, values).fetchall()

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        if not self.log.exists():
            return "(it wrote nothing)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """Stop what runs; the sockets are closed."""
        self.stop()
        for listener in self._listeners:
            listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def clean_environment() -> dict[str, str]:
    """Ours, without what would change a host under test."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("CODIUS_", "LISTEN_", "NOTIFY_"))}


def passing(descriptors: list[int]) -> list[str]:
    """A prefix that hands listening sockets over as systemd does: from 3 on, LISTEN_PID naming their owner.

    The process executes what follows in its own place, so it knows the owner's pid (sd_listen_fds(3)).
    """
    if not descriptors:
        return []
    program = (
        f"import os, sys; high = [os.dup2(fd, 100 + i, False) for i, fd in enumerate({descriptors})];"
        " [os.dup2(fd, 3 + i) for i, fd in enumerate(high)];"
        f" os.environ.update(LISTEN_FDS='{len(descriptors)}', LISTEN_PID=str(os.getpid()));"
        " os.execvp(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", program]
