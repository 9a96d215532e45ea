"""How much longer others wait while somebody attacks: `python -m tests.bench.hostile`.

The front door has one core, the attackers and the visitor who is timed share another. Rounds with and without
an attack are taken in turn, and the ratio of their 99th percentiles is the median of the rounds.
"""

from __future__ import annotations

import argparse
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import rivals
from tests.bench.proxy import free_port, running
from tests.bench.rivals import LOAD_CORE, Place, host_names

ROUNDS: Final = 7
REQUESTS: Final = 3000
"""Of one round, on one connection, one after the other."""
IDLE: Final = 10_000
PER_SOURCE: Final = 500
"""Idle connections from one address: fewer than are allowed."""
TARGET: Final = 2.0
TOGETHER: Final = 1000
"""Connections of the slow attackers."""


@dataclass(frozen=True, slots=True)
class Result:
    attack: str
    quiet: Sequence[float]
    """Milliseconds, the 99th percentile of each round."""
    attacked: Sequence[float]
    resident: float
    """MiB of the front door's processes at the end of the attack."""

    @property
    def ratio(self) -> float:
        pairs = zip(self.quiet, self.attacked, strict=True)
        return statistics.median(attacked / quiet for quiet, attacked in pairs)


def measure(rounds: int = ROUNDS) -> list[Result]:
    _raise_file_limit()
    attacks: Mapping[str, Callable[[int], AbstractContextManager[None]]] = {
        f"{IDLE} idle connections": _idle,
        "slow heads": lambda port: _slowhttptest(port, "-H", "-i", "2"),
        "slow bodies": lambda port: _slowhttptest(port, "-B", "-i", "2"),
        "slow reading": lambda port: _slowhttptest(port, "-X", "-n", "2"),
        "a flood of connections from one address": lambda port: _script(_FLOOD, port),
        "a flood of large heads": lambda port: _script(_HEADS, port),
    }
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codius-bench-")))
        for name in ("origin", "codius"):
            (directory / name).mkdir()
        origin = stack.enter_context(running(rivals.origin(Place(directory / "origin", free_port(), 0))))
        place = Place(directory / "codius", free_port(), origin.place.port)
        door = stack.enter_context(running(rivals.codius(place)))
        _percentile(place.port)  # fills caches and pools
        results = []
        for name, attack in attacks.items():
            quiet, attacked, resident = [], [], 0.0
            for _ in range(rounds):
                quiet.append(_percentile(place.port))
                with attack(place.port):
                    attacked.append(_percentile(place.port))
                    resident = max(resident, door.resident())
            results.append(Result(name, quiet, attacked, resident))
        return results


def _percentile(port: int) -> float:
    """Milliseconds in which 99 of 100 requests are answered."""
    request = f"GET /small HTTP/1.1\r\nHost: {host_names()[7]}\r\n\r\n".encode()
    times = []
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(REQUESTS):
            begun = time.perf_counter()
            client.sendall(request)
            answer = client.recv(65536)
            times.append((time.perf_counter() - begun) * 1000)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"not served: {answer[:200]!r}")
    return statistics.quantiles(times, n=100)[98]


@contextmanager
def _idle(port: int) -> Iterator[None]:
    clients = []
    try:
        for number in range(IDLE):
            client = socket.socket()
            clients.append(client)
            client.bind((f"127.0.1.{number // PER_SOURCE + 1}", 0))
            client.connect(("127.0.0.1", port))
        yield
    finally:
        for client in clients:
            client.close()


@contextmanager
def _slowhttptest(port: int, *attack: str) -> Iterator[None]:
    command = ["slowhttptest", *attack, "-c", str(TOGETHER), "-r", str(TOGETHER), "-l", "60"]
    with _process([*command, "-u", f"http://127.0.0.1:{port}/"]):
        time.sleep(1.5)  # until its connections are there
        yield


_FLOOD: Final = """
import socket, sys
while True:
    for _ in range(50):
        try:
            socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1).close()
        except OSError:
            pass
"""
_HEADS: Final = """
import socket, sys
head = b"GET / HTTP/1.1\\r\\nHost: %s.host.example\\r\\n" % (b"b" * 52)
number = 0
while True:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1) as client:
        number += 1
        lines = (b"X-%d-%d: %s\\r\\n" % (number, n, b"x" * 200) for n in range(120))
        client.sendall(head + b"".join(lines) + b"\\r\\n")
        client.recv(65536)
"""


@contextmanager
def _script(program: str, port: int) -> Iterator[None]:
    with _process([sys.executable, "-c", program, str(port)]):
        time.sleep(0.3)
        yield


@contextmanager
def _process(command: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen(
        ["taskset", "--cpu-list", str(LOAD_CORE), "nice", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def render(results: Sequence[Result]) -> str:
    lines = ["| attack | others' p99 | without it | ratio | front door's memory |", "|---|---|---|---|---|"]
    for found in results:
        attacked, quiet = statistics.median(found.attacked), statistics.median(found.quiet)
        lines.append(
            f"| {found.attack} | {attacked:.2f} ms | {quiet:.2f} ms | {found.ratio:.2f} |"
            f" {found.resident:.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hostile", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    print(render(measure(parser.parse_args().rounds)))


if __name__ == "__main__":
    main()
