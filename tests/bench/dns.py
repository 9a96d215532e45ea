"""The DNS responder beside Knot: CPU per answer, lost answers, memory, floods: `python -m tests.bench.dns`.

Both serve on one core, one after the other in each round, asked by dnsperf on another core; the ratio of a
round is Knot's CPU time per answer by ours, so above 1 we are the cheaper one. Rate limits are off in both,
EDNS is on. Both have the same zone; Knot's has a wildcard where ours knows the form of a hash, and a second
zone without one for the names that do not exist.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness import knot

ROUNDS: Final = 7
SECONDS: Final = 2  # of load per side and round
OUTSTANDING: Final = 200  # questions under way at once
QUESTIONS: Final = 100_000  # different ones in a file
DIFFERENT: Final = 1_000_000  # hash names asked to see what is remembered of them
MALFORMED: Final = 10  # of a hundred packets of the mixed flood
SEED: Final = 1987
BASE32: Final = b"abcdefghijklmnopqrstuvwxyz234567"

TARGET_HASHES: Final = 0.9
TARGET_UNKNOWN: Final = 0.8
TARGET_MIXED: Final = 0.8
MOST_GROWTH: Final = 1.0  # MiB after the million: a page table here or there, and not a name

ORIGIN: Final = "pods.example"
ORIGIN_FOR_UNKNOWN: Final = "none.example"  # Knot's, of the same length
RECORDS: Final = """\
$ORIGIN {origin}.
$TTL 300
@ 3600 SOA ns1 hostmaster 1 3600 600 1209600 60
@ 3600 NS ns1
@ A 192.0.2.17
@ AAAA 2001:db8::17
ns1 A 192.0.2.17
ns1 AAAA 2001:db8::17
"""
WILDCARD: Final = "* A 192.0.2.17\n* AAAA 2001:db8::17\n"

PROGRAM: Final = """
import sys
from ipaddress import ip_address
from codius_dns.server import DnsConfig, run
from codius_dns.zone import Zone
zone = Zone(sys.argv[1], ipv4=(ip_address("192.0.2.17"),), ipv6=(ip_address("2001:db8::17"),))
config = DnsConfig(zones=(zone,), port=int(sys.argv[2]))
sys.exit(run(config, drop_privileges=lambda: print("open", flush=True)))
"""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of dnsperf against one server."""

    completed: int
    lost: int
    rate: float  # answers per second
    cpu: float  # microseconds of the server for one packet


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rounds of ours and Knot's in turn."""

    ours: tuple[Load, ...]
    knots: tuple[Load, ...]

    @property
    def ratio(self) -> float:
        return statistics.median(k.cpu / o.cpu for o, k in zip(self.ours, self.knots, strict=True))


@dataclass(frozen=True, slots=True)
class Measurement:
    """All of it."""

    hashes: Comparison
    unknown: Comparison
    mixed: float  # CPU per packet of a clean flood by that of a mixed one: above 1 the mixed one is cheaper
    growth: float  # MiB from before a million different hash names to after
    lost: int  # at half the rate that was possible
    sent: int


def find_missing() -> list[str]:
    """What has to be installed first."""
    found = {"dnsperf": shutil.which("dnsperf"), "knot": knot.KNOTD, "taskset": shutil.which("taskset")}
    return [name for name, path in found.items() if path is None]


def measure(rounds: int = ROUNDS) -> Measurement:
    """About two minutes with seven rounds."""
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as name, servers(Path(name)) as (ours, knots):
        directory = Path(name)
        hashes = write(directory / "hashes", (f"{label(rng, 52)}.{ORIGIN} {kind}" for kind in kinds()))
        compared = compare(ours, knots, hashes, hashes, rounds)
        labels = [label(rng, rng.randint(4, 30)) for _ in range(QUESTIONS)]
        unknown, for_knot = (
            write(directory / origin, (f"{each}.{origin} A" for each in labels))
            for origin in (ORIGIN, ORIGIN_FOR_UNKNOWN)
        )
        denied = compare(ours, knots, unknown, for_knot, rounds)
        mixed = compare_floods(ours, directory, rng, rounds)
        growth = grow(ours, directory, rng)
        half = ours.load(hashes, "-l", str(SECONDS), "-Q", str(int(middle_rate(compared.ours) / 2)))
        return Measurement(compared, denied, mixed, growth, half.lost, half.completed + half.lost)


@dataclass(frozen=True, slots=True)
class Server:
    """A running process that answers on a port of loopback."""

    pid: int
    port: int

    def load(self, questions: Path, *options: str) -> Load:
        """Ask what is in the file, for as long as the options say."""
        before = cpu_seconds(self.pid)
        command = ["dnsperf", "-s", "127.0.0.1", "-p", str(self.port), "-d", str(questions), *options]
        if "-q" not in options:
            command += ["-q", str(OUTSTANDING)]
        done = subprocess.run(
            [*pin(-1), *command, *(() if "-B" in options else ("-e",))],
            capture_output=True,
            text=True,
            check=True,
        )
        spent = cpu_seconds(self.pid) - before

        def number(what: str) -> float:
            match = re.search(rf"{what}:\s+([0-9.]+)", done.stdout)
            if match is None:
                raise RuntimeError(f"dnsperf said nothing of {what}: {done.stdout}{done.stderr}")
            return float(match[1])

        completed, lost = int(number("Queries completed")), int(number("Queries lost"))
        return Load(
            completed, lost, number("Queries per second"), 1e6 * spent / max(1, number("Queries sent"))
        )


@contextmanager
def servers(directory: Path) -> Iterator[tuple[Server, Server]]:
    """Ours and Knot, on one core."""
    zones = {
        ORIGIN: RECORDS.format(origin=ORIGIN) + WILDCARD,
        ORIGIN_FOR_UNKNOWN: RECORDS.format(origin=ORIGIN_FOR_UNKNOWN),
    }
    port, knots_port = free_port(), free_port()
    command = [*pin(0), sys.executable, "-c", PROGRAM, ORIGIN, str(port)]
    with (
        knot.running(zones, directory, knots_port, prefix=pin(0)) as knots,
        subprocess.Popen(command, stdout=subprocess.PIPE) as ours,
    ):
        try:
            assert ours.stdout is not None
            if ours.stdout.readline() != b"open\n":
                raise RuntimeError("the responder did not start")
            yield Server(ours.pid, port), Server(knots.pid, knots_port)
        finally:
            ours.terminate()


def compare(ours: Server, knots: Server, for_us: Path, for_knot: Path, rounds: int) -> Comparison:
    seconds = ("-l", str(SECONDS))
    ours.load(for_us, "-l", "1")
    knots.load(for_knot, "-l", "1")
    taken = [(ours.load(for_us, *seconds), knots.load(for_knot, *seconds)) for _ in range(rounds)]
    return Comparison(tuple(each for each, _ in taken), tuple(each for _, each in taken))


def compare_floods(ours: Server, directory: Path, rng: random.Random, rounds: int) -> float:
    """Clean packets, and the same with some that are malformed; many of these get no answer to wait for."""
    clean = [question(rng) for _ in range(QUESTIONS)]
    mixed = [spoil(rng, packet) if rng.randrange(100) < MALFORMED else packet for packet in clean]
    files = []
    for name, packets in (("clean", clean), ("mixed", mixed)):
        path = directory / name
        path.write_bytes(b"".join(len(packet).to_bytes(2) + packet for packet in packets))
        files.append(path)
    options = ("-B", "-l", str(SECONDS), "-q", "3000", "-t", "0.1")
    pairs = [[ours.load(path, *options).cpu for path in files] for _ in range(rounds)]
    return statistics.median(plain / spoilt for plain, spoilt in pairs)


def grow(ours: Server, directory: Path, rng: random.Random) -> float:
    """How much more memory the process has after a million hash names, all different."""
    path = write(directory / "million", (f"{label(rng, 52)}.{ORIGIN} A" for _ in range(DIFFERENT)))
    ours.load(path, "-l", "1")  # what a first flood allocates is there then
    before = rss(ours.pid)
    asked = ours.load(path, "-n", "1")
    if asked.completed < 0.99 * DIFFERENT:
        raise RuntimeError(f"only {asked.completed} of {DIFFERENT} names were answered")
    return rss(ours.pid) - before


def question(rng: random.Random) -> bytes:
    name = bytes((52,)) + label(rng, 52).encode() + b"\4pods\7example\0"
    header = struct.pack("!HHHHHH", 0, 0x0100, 1, 0, 0, 1)
    return (
        header + name + struct.pack("!HH", rng.choice((1, 28)), 1) + bytes.fromhex("00002904d0000000000000")
    )


SPOILERS: Final[Sequence[Callable[[random.Random, bytes], bytes]]] = (
    lambda rng, packet: packet[: rng.randrange(13, len(packet) - 1)],
    lambda rng, packet: packet + b"\0",
    lambda rng, packet: packet[:2] + bytes((packet[2] | 0x80,)) + packet[3:],  # an answer
    lambda rng, packet: packet[:12] + b"\xc0\x0c" + packet[-15:],  # a pointer to itself
    lambda rng, packet: packet[:12] + rng.randbytes(60),
    lambda rng, packet: packet[:5] + b"\2" + packet[6:],  # two questions
)


def spoil(rng: random.Random, packet: bytes) -> bytes:
    return rng.choice(SPOILERS)(rng, packet)


def kinds() -> Iterator[str]:
    for number in range(QUESTIONS):
        yield ("A", "AAAA")[number % 2]


def label(rng: random.Random, size: int) -> str:
    return bytes(rng.choices(BASE32, k=size)).decode()


def write(path: Path, lines: Iterator[str]) -> Path:
    with path.open("w") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def pin(core: int) -> list[str]:
    """The start of a command that is to stay on one core: servers on the first, load on the last."""
    return ["taskset", "--cpu-list", str(sorted(os.sched_getaffinity(0))[core])]


def cpu_seconds(pid: int) -> float:
    """Time on a processor of all the threads of a process, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def rss(pid: int) -> float:
    match = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def middle_rate(loads: Sequence[Load]) -> float:
    return statistics.median(load.rate for load in loads)


def middle_cpu(loads: Sequence[Load]) -> float:
    return statistics.median(load.cpu for load in loads)


def as_document(measured: Measurement) -> dict[str, object]:
    """For `make bench`: the numbers by name."""
    return {
        "unit": "microseconds of CPU per packet, medians",
        "rounds": len(measured.hashes.ours),
        **{
            name: {
                "ours": round(middle_cpu(each.ours), 2),
                "knot": round(middle_cpu(each.knots), 2),
                "ratio": round(each.ratio, 2),
                "rate": round(middle_rate(each.ours)),
            }
            for name, each in (("hashes", measured.hashes), ("unknown", measured.unknown))
        },
        "mixed": round(measured.mixed, 2),
        "growth_mib": round(measured.growth, 2),
        "lost": measured.lost,
        "sent": measured.sent,
    }


def rows(measured: Measurement) -> list[tuple[str, str, str, bool]]:
    """What was measured, and what the targets say."""
    return [
        (
            "DNS, hash names: Knot's CPU per answer by ours",
            f"{measured.hashes.ratio:.2f}",
            f"at least {TARGET_HASHES}",
            measured.hashes.ratio >= TARGET_HASHES,
        ),
        (
            "DNS, names that do not exist: the same",
            f"{measured.unknown.ratio:.2f}",
            f"at least {TARGET_UNKNOWN}",
            measured.unknown.ratio >= TARGET_UNKNOWN,
        ),
        (
            f"DNS, a flood with {MALFORMED} % malformed packets: the clean flood's CPU per packet by its own",
            f"{measured.mixed:.2f}",
            f"at least {TARGET_MIXED}",
            measured.mixed >= TARGET_MIXED,
        ),
        (
            f"DNS, {DIFFERENT} different hash names: growth of the process",
            f"{measured.growth:.1f} MiB",
            f"at most {MOST_GROWTH:.0f} MiB",
            measured.growth <= MOST_GROWTH,
        ),
        (
            f"DNS, {measured.sent} questions at half the highest rate: lost",
            f"{measured.lost}",
            "none",
            measured.lost == 0,
        ),
    ]


def render(measured: Measurement) -> str:
    """The section of docs/benchmarks.md."""
    lines = [
        "",
        "## DNS",
        "",
        "Our responder and Knot in turn on one core, asked by dnsperf on another; rate limits off, EDNS on.",
        "The CPU time per packet is the kernel's account of all threads. Alone: `python -m tests.bench.dns`.",
        "",
        "| questions | ours us | Knot us | Knot's by ours | answers/s |",
        "|---|---|---|---|---|",
    ]
    for name, each in (
        ("hash names, A and AAAA", measured.hashes),
        ("names that do not exist", measured.unknown),
    ):
        ours, knots = middle_cpu(each.ours), middle_cpu(each.knots)
        lines.append(
            f"| {name} | {ours:.2f} | {knots:.2f} | {each.ratio:.2f} | {middle_rate(each.ours):.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit status 0 when every target is met."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.dns", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if missing := find_missing():
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
        return 1
    measured = measure(options.rounds)
    print(json.dumps(as_document(measured), indent=2))
    return int(not all(good for *_, good in rows(measured)))


if __name__ == "__main__":
    sys.exit(main())
