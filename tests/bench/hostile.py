"""How much longer others wait while somebody attacks: `python -m tests.bench.hostile`.

The front door has one core, and goes before what else runs there. The attackers have the other one when the
visitor who is timed and the pod leave it to them: these are not under attack. Rounds with and without
an attack are taken in turn, and the ratio of their 99th percentiles is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import rivals
from tests.bench.attackers import IDLE, TOGETHER
from tests.bench.proxy import Verdict, free_port, running
from tests.bench.rivals import LOAD_CORE, Place, Server, host_names

ROUNDS: Final = 7
REQUESTS: Final = 5000
"""Of one round, on one connection, one after the other."""
TARGET: Final = 2.0
PRIORITY: Final = 1
"""Of real time, the lowest."""
MOST_MEMORY: Final = 512.0
"""MiB of all processes of the front door, under whatever attack."""
ATTACKED: Final = slice(1, 9)
"""Names of pods that are attacked; the timed visitor asks another one."""
NAMES: Final[Mapping[str, str]] = {
    "idle": f"{IDLE} idle connections",
    "slow-heads": f"{TOGETHER} heads, a byte a second",
    "slow-bodies": f"{TOGETHER} bodies, a byte a second",
    "slow-reading": f"{TOGETHER} that read a byte a second of 1 MiB",
    "connections": "a flood of connections from one address",
    "large-heads": "a flood of heads of 120 new lines",
    "pipelining": "pipelined small requests to a name nobody has",
    "tiny-chunks": "bodies of chunks of one byte",
}


@dataclass(frozen=True, slots=True)
class Result:
    attack: str
    quiet: Sequence[float]
    """Milliseconds, the 99th percentile of each round."""
    attacked: Sequence[float]
    resident: float
    """MiB of the front door's processes during the attack, at most."""

    @property
    def ratio(self) -> float:
        pairs = zip(self.quiet, self.attacked, strict=True)
        return statistics.median(attacked / quiet for quiet, attacked in pairs)


def measure(
    rounds: int = ROUNDS, kinds: Sequence[str] = tuple(NAMES), door_name: str = "codius"
) -> list[Result]:
    """Of another front door than ours, to compare, where `door_name` says so (`rivals.START`)."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codius-bench-")))
        for name in ("origin", "codius"):
            (directory / name).mkdir()
        origin = stack.enter_context(running(rivals.origin(Place(directory / "origin", free_port(), 0))))
        place = Place(directory / "codius", free_port(), origin.place.port)
        door = stack.enter_context(running(rivals.START[door_name](place)))
        for server in (origin, door):
            server.go_first(PRIORITY)
        stack.enter_context(_going_first())
        _percentile(place.port)  # fills caches and pools
        return [_rounds(kind, door, rounds) for kind in kinds]


def _rounds(kind: str, door: Server, rounds: int) -> Result:
    port = door.place.port
    quiet, attacked, resident = [], [], 0.0
    for _ in range(rounds):
        quiet.append(_percentile(port))
        with _attack(kind, port):
            attacked.append(_percentile(port))
            resident = max(resident, door.resident())
    return Result(NAMES[kind], quiet, attacked, resident)


def _percentile(port: int) -> float:
    """Milliseconds in which 99 of 100 requests are answered."""
    request = f"GET /small HTTP/1.1\r\nHost: {host_names()[0]}\r\n\r\n".encode()
    times = []
    with socket.create_connection(("127.0.0.1", port), source_address=("127.0.2.1", 0)) as client:
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
def _attack(kind: str, port: int) -> Iterator[None]:
    """From when all its connections are there, until none is."""
    program = [sys.executable, "-m", "tests.bench.attackers", kind, str(port), *host_names()[ATTACKED]]
    ordinary = ["chrt", "--other", "0"] if os.sched_getscheduler(0) == os.SCHED_RR else []
    process = subprocess.Popen(
        ["taskset", "--cpu-list", str(LOAD_CORE), *ordinary, *program], stdout=subprocess.PIPE
    )
    try:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the attack {kind} did not begin; its own message is above")
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _going_first() -> Iterator[None]:
    """We are the visitor: on the core of the load, before those who attack."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LOAD_CORE})
    with suppress(PermissionError):  # without it the times are what the rest of the machine makes of them
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    target = f"at most {TARGET}"
    judged = [Verdict(f"others' p99 under {r.attack}", r.ratio, target, r.ratio <= TARGET) for r in results]
    most = max(result.resident for result in results)
    what = "its memory under the worst of these attacks, MiB"
    return [*judged, Verdict(what, most, f"at most {MOST_MEMORY:.0f}", most <= MOST_MEMORY)]


def render(results: Sequence[Result]) -> str:
    lines = ["| attack | others' p99 | without it | ratio | front door's memory |", "|---|---|---|---|---|"]
    for found in results:
        attacked, quiet = statistics.median(found.attacked), statistics.median(found.quiet)
        lines.append(
            f"| {found.attack} | {attacked:.2f} ms | {quiet:.2f} ms | {found.ratio:.2f} |"
            f" {found.resident:.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def as_document(results: Sequence[Result]) -> dict[str, object]:
    return {
        result.attack: {
            "unit": "ms",
            "quiet": list(result.quiet),
            "attacked": list(result.attacked),
            "ratio": result.ratio,
            "resident_mib": result.resident,
        }
        for result in results
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hostile", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--door", default="codius", choices=list(rivals.START))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = measure(options.rounds, options.only, options.door)
    print(json.dumps(as_document(results), indent=2) if options.json else render(results))


if __name__ == "__main__":
    main()
