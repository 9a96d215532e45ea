"""The front door beside other reverse proxies: `python -m tests.bench.proxy`.

CPU time per request, not requests per second: the load generator shares the machine. Every round measures
all of them one after the other, so that they meet the machine in the same mood; a ratio is taken within its
round, and the median of the rounds counts. Above 1 the front door uses less CPU than the other.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from tests.bench import rivals
from tests.bench.rivals import LOAD_CORE, Place, Server, host_names

ROUNDS: Final = 7
SECONDS: Final = 2
"""Of one load on one server."""
CONNECTIONS: Final = 64
PEER: Final = "nginx"
ORIGINAL: Final = "node http-proxy"
ORIGINAL_TARGET: Final = 5.0
LATENCY_TARGET: Final = 1.1
SETTLE_SECONDS: Final = 0.3
"""For what a server still does after the load, such as writing its log."""

# What a browser sends, more or less.
FIELDS: Final = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br",
    "Cookie": "session=0123456789abcdef0123456789abcdef",
}
CHANGING: Final = """
local hosts = {}
for host in io.lines("%s") do hosts[#hosts + 1] = host end
local n = 0
request = function()
  n = n + 1
  return wrk.format("GET", "/changing?" .. n, {
    ["Host"] = hosts[n %% #hosts + 1],
    ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:" .. n .. ") Gecko/20100101 Firefox/128.0",
    ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0." .. n,
    ["Accept-Language"] = "en-US,en;q=0." .. n,
    ["Accept-Encoding"] = "gzip, deflate, br;q=0." .. n,
    ["Cookie"] = "session=0123456789abcdef0123456789abcdef" .. n,
  })
end
"""


class Kind(Enum):
    """What the servers of a load are started for."""

    PLAIN = "http to the origin"
    TLS = "https to the origin"
    ECHO = "http to a target that echoes"


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of work; `run` applies it to a server and says how many requests or messages it was."""

    name: str
    target: float
    run: Callable[[Server], int]
    kind: Kind = Kind.PLAIN
    rivals: Sequence[str] = tuple(rivals.START)


@dataclass(frozen=True, slots=True)
class Result:
    """CPU microseconds per request, by server, round by round."""

    load: str
    target: float
    cost: Mapping[str, Sequence[float]]

    def ratio(self, rival: str) -> float:
        """How much more CPU `rival` needs than we do: the median of the rounds."""
        ours = self.cost["codius"]
        return statistics.median(theirs / our for theirs, our in zip(self.cost[rival], ours, strict=True))


@dataclass(frozen=True, slots=True)
class Latency:
    """Median microseconds of a request on one connection with nothing else to do, round by round."""

    direct: Sequence[float]
    ours: Sequence[float]
    peer: Sequence[float]

    @property
    def added(self) -> float:
        """What we add to a request, as a multiple of what the peer adds."""
        pairs = zip(self.direct, self.ours, self.peer, strict=True)
        return statistics.median((ours - direct) / (peer - direct) for direct, ours, peer in pairs)


@dataclass(frozen=True, slots=True)
class Measurement:
    results: Sequence[Result]
    latency: Latency | None
    """None when the peer was not measured."""
    absent: Sequence[str]
    """Rivals this machine lacks the programs for."""


def measure(
    *, rounds: int = ROUNDS, seconds: int = SECONDS, names: Sequence[str] = tuple(rivals.START)
) -> Measurement:
    absent = [name for name in names if rivals.missing(name)]
    compiled = ("codius", "nginx", "haproxy", "caddy")
    loads = [
        Load("small GET, keep-alive", 0.8, ask("/small", seconds)),
        Load("the same, every header different", 0.65, _wrk_changing(seconds)),
        Load("1 MiB body", 1.0, ask("/large", seconds), rivals=compiled),
        Load("WebSocket echo", 0.75, _echo(seconds), Kind.ECHO, compiled[:3]),
        Load("TLS, small GET, keep-alive", 0.9, ask("/small", seconds), Kind.TLS, compiled[:3]),
    ]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codius-bench-")))
        certificate = _make_certificate(directory)
        (directory / "hosts").write_text("\n".join(host_names()) + "\n")

        def place(name: str, origin: int, kind: Kind = Kind.PLAIN) -> Place:
            (directory / name).mkdir()
            return Place(directory / name, free_port(), origin, certificate if kind is Kind.TLS else None)

        origin = stack.enter_context(running(rivals.origin(place("origin", 0))))
        echo = stack.enter_context(_echo_target(free_port()))
        results = []
        latency = None
        for kind in Kind:
            target = echo if kind is Kind.ECHO else origin.place.port
            of_kind = [load for load in loads if load.kind is kind]
            wanted = {name for load in of_kind for name in load.rivals}.intersection(names).difference(absent)
            with ExitStack() as started:
                servers = {
                    name: started.enter_context(running(start(place(f"{name}-{kind.name}", target, kind))))
                    for name, start in rivals.START.items()
                    if name in wanted
                }
                for load in of_kind:
                    results.append(
                        _rounds(load, {n: s for n, s in servers.items() if n in load.rivals}, rounds)
                    )
                if kind is Kind.PLAIN and PEER in servers:
                    latency = _latency(origin, servers["codius"], servers[PEER], rounds)
        return Measurement(results, latency, absent)


def _rounds(load: Load, servers: Mapping[str, Server], rounds: int) -> Result:
    cost: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(rounds + 1):
        for name, server in servers.items():
            before = server.cpu()
            count = load.run(server)
            time.sleep(SETTLE_SECONDS)
            if number:  # the first one fills caches and pools
                cost[name].append((server.cpu() - before) / count * 1e6)
    return Result(load.name, load.target, cost)


def ask(path: str, seconds: int) -> Callable[[Server], int]:
    headers = [f"--header={name}: {value}" for name, value in {"Host": host_names()[7], **FIELDS}.items()]

    def run(server: Server) -> int:
        place = server.place
        scheme = "https" if place.certificate else "http"
        return run_wrk([*headers, f"{scheme}://127.0.0.1:{place.port}{path}"], CONNECTIONS, seconds)[0]

    return run


def _wrk_changing(seconds: int) -> Callable[[Server], int]:
    def run(server: Server) -> int:
        place = server.place
        script = place.write("changing.lua", CHANGING % (place.directory.parent / "hosts"))
        url = f"http://127.0.0.1:{place.port}/small"
        return run_wrk([f"--script={script}", url], CONNECTIONS, seconds)[0]

    return run


def run_wrk(arguments: Sequence[str], connections: int, seconds: int) -> tuple[int, float]:
    """Requests answered, and their median latency in microseconds; nothing but 2xx will do."""
    command = ["taskset", "--cpu-list", str(LOAD_CORE), "wrk", "--threads=1", "--latency"]
    command += [f"--connections={connections}", f"--duration={seconds}s", *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count = re.search(r"(\d+) requests in", output)
    half = re.search(r"50%\s+([\d.]+)(us|ms|s)", output)
    if "Non-2xx" in output or "Socket errors" in output or count is None or half is None:
        raise RuntimeError(f"the load did not go through: {output}")
    return int(count[1]), float(half[1]) * {"us": 1.0, "ms": 1e3, "s": 1e6}[half[2]]


def _echo(seconds: int) -> Callable[[Server], int]:
    def run(server: Server) -> int:
        place = server.place
        arguments = ["load", str(place.port), host_names()[7], str(seconds), str(CONNECTIONS)]
        command = [
            "taskset",
            "--cpu-list",
            str(LOAD_CORE),
            sys.executable,
            "-m",
            "tests.bench.echo",
            *arguments,
        ]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return run


@contextmanager
def _echo_target(port: int) -> Iterator[int]:
    process = subprocess.Popen(
        [
            "taskset",
            "--cpu-list",
            str(LOAD_CORE),
            sys.executable,
            "-m",
            "tests.bench.echo",
            "serve",
            str(port),
        ]
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def _latency(origin: Server, ours: Server, peer: Server, rounds: int) -> Latency:
    found: dict[str, list[float]] = {"direct": [], "ours": [], "peer": []}
    for _ in range(rounds):
        for name, server in (("direct", origin), ("ours", ours), ("peer", peer)):
            url = f"http://127.0.0.1:{server.place.port}/small"
            found[name].append(run_wrk([f"--header=Host: {host_names()[7]}", url], 1, 1)[1])
    return Latency(**found)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _make_certificate(directory: Path) -> Path:
    key, certificate, both = (directory / name for name in ("key.pem", "certificate.pem", "both.pem"))
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", f"/CN={rivals.ZONE}", "-addext", f"subjectAltName=DNS:*.{rivals.ZONE}",
            "-keyout", str(key), "-out", str(certificate),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_text(certificate.read_text() + key.read_text())
    return both


@dataclass(frozen=True, slots=True)
class Verdict:
    """One number that has a target."""

    what: str
    measured: float
    target: str
    good: bool


def verdicts(measurement: Measurement) -> list[Verdict]:
    found = []
    for result in measurement.results:
        if PEER in result.cost:
            ratio = result.ratio(PEER)
            what = f"{result.load}: CPU beside {PEER}"
            found.append(Verdict(what, ratio, f"at least {result.target}", ratio >= result.target))
    first = measurement.results[0]
    if ORIGINAL in first.cost:
        ratio = first.ratio(ORIGINAL)
        what = f"{first.load}: CPU beside {ORIGINAL}, which the original used"
        found.append(Verdict(what, ratio, f"at least {ORIGINAL_TARGET}", ratio >= ORIGINAL_TARGET))
    if measurement.latency is not None:
        added = measurement.latency.added
        what = f"p50 added to a request on one connection, beside {PEER}"
        found.append(Verdict(what, added, f"at most {LATENCY_TARGET}", added <= LATENCY_TARGET))
    return found


def render(measurement: Measurement) -> str:
    """Microseconds of CPU per request, and in brackets how many times ours that is."""
    names = [name for name in rivals.START if name not in measurement.absent]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for result in measurement.results:
        cells = []
        for name in names:
            cost = result.cost.get(name)
            cells.append("" if cost is None else f"{statistics.median(cost):.1f} ({result.ratio(name):.2f})")
        lines.append(f"| {result.load} | " + " | ".join(cells) + " |")
    lines += ["", *(f"Not on this machine: {name}." for name in measurement.absent)]
    return "\n".join(lines)


def as_document(measurement: Measurement) -> dict[str, object]:
    return {
        "loads": {
            result.load: {
                "target": result.target,
                "microseconds": {name: list(cost) for name, cost in result.cost.items()},
                "ratios": {name: result.ratio(name) for name in result.cost},
            }
            for result in measurement.results
        },
        "verdicts": [asdict(verdict) for verdict in verdicts(measurement)],
        "absent": list(measurement.absent),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.proxy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--only", nargs="+", default=list(rivals.START), choices=list(rivals.START))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measurement = measure(rounds=options.rounds, seconds=options.seconds, names=options.only)
    if options.json:
        print(json.dumps(as_document(measurement), indent=2))
        return
    print(render(measurement))
    for verdict in verdicts(measurement):
        mark = "met" if verdict.good else "missed"
        print(f"{verdict.what}: {verdict.measured:.2f}, {verdict.target}: {mark}")


if __name__ == "__main__":
    main()
