"""What a whole host takes in memory at rest, process by process: `python -m tests.bench.memory`.

RSS counts the pages a process has mapped, so those that several share (the interpreter, forked workers) are
counted in each. PSS shares them out: the sum of PSS is what the machine would get back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.host import Host
from tests.harness.namespaces import HostNetwork, missing_privilege
from tests.harness.podman_service import PrivatePodman, find_missing, find_processes
from tests.harness.sample import SAMPLE_FILES, SAMPLE_NAME, sample_manifest

TARGET_MIB: Final = 150.0
SETTLE_SECONDS: Final = 3.0
"""After the last request: what is freed a moment later has been freed."""
FETCH_SECONDS: Final = 10.0
PARTS: Final = {"run": "node", "proxy": "proxy", "dns": "dns"}
"""A process's command, and what it is; a child with its parent's command is a worker of it."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the host; MiB."""

    name: str
    rss: float
    pss: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """The host's own processes; podman's service apart, which is there before a host with systemd."""

    processes: tuple[Process, ...]
    podman: Process

    @property
    def rss(self) -> float:
        return sum(process.rss for process in self.processes)

    @property
    def pss(self) -> float:
        return sum(process.pss for process in self.processes)


async def measure() -> Measurement:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codius-bench-")))
        directory.chmod(0o711)  # the front door's unprivileged user has to find its sockets below
        network = stack.enter_context(HostNetwork())
        async with PrivatePodman(netns=network.host.path) as podman:
            image = await podman.make_image(SAMPLE_NAME, files=SAMPLE_FILES)
            host = stack.enter_context(Host(directory, network=network, podman_socket=podman.socket))
            await asyncio.to_thread(host.start)
            await asyncio.to_thread(_use, host, image)
            await asyncio.sleep(SETTLE_SECONDS)
            processes = tuple(_read(pid, name) for pid, name in _find_processes(host.pid()))
            (service,) = (pid for pid in find_processes(str(podman.directory)) if is_podman(pid))
            measured = Measurement(processes, _read(service, "podman system service"))
            await asyncio.to_thread(host.stop)
            return measured


def is_podman(pid: int) -> bool:
    """Whether it is podman itself, and not the monitor it leaves beside each container (conmon)."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "podman"
    except OSError:
        return False


def _use(host: Host, image: str) -> None:
    """A pod with a private variable, and a request of each kind: nothing is left to be loaded."""
    (host.directory / "codius.json").write_text(json.dumps(sample_manifest(image, secret=True)))
    variables = {"GREETING": "hello", "SECRET": "a-private-value"}
    (host.directory / "codiusvars.json").write_text(
        json.dumps(
            {
                "vars": {
                    kind: {name: {"value": variables[name]}}
                    for kind, name in (("public", "GREETING"), ("private", "SECRET"))
                }
            }
        )
    )
    pod = host.command("upload", str(host.directory / "codius.json"), "--duration", "1h")
    _fetch(host, "/", f"{pod['manifestHash']}.codius.localhost:{host.port}")
    for path in ("/", "/info", "/version", "/peers"):
        _fetch(host, path, f"codius.localhost:{host.port}")


def _fetch(host: Host, path: str, authority: str) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{host.port}{path}", headers={"Host": authority})
    with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as answer:
        answer.read()


def _find_processes(pid: int, parent: str = "") -> Iterator[tuple[int, str]]:
    """The process and its descendants, as people would call them."""
    part = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3].decode()
    name = f"{part} worker" if part == parent else PARTS[part]
    yield pid, name
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from _find_processes(int(child), part)


def _read(pid: int, name: str) -> Process:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rss, pss = (int(re.findall(rf"^{key}:\s+(\d+) kB", rollup, re.MULTILINE)[0]) for key in ("Rss", "Pss"))
    return Process(name, rss / 1024, pss / 1024)


def as_document(measurement: Measurement) -> dict[str, object]:
    """For `make bench`."""

    def describe(process: Process) -> dict[str, object]:
        return {"process": process.name, "rss": round(process.rss, 1), "pss": round(process.pss, 1)}

    return {
        "unit": "MiB",
        "rss": round(measurement.rss, 1),
        "pss": round(measurement.pss, 1),
        "target_rss": TARGET_MIB,
        "processes": [describe(process) for process in measurement.processes],
        "podman_service": describe(measurement.podman),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory", description=__doc__)
    parser.parse_args()
    if reason := missing_privilege() or ", ".join(find_missing()):
        print(f"missing: {reason}", file=sys.stderr)
        return 1
    print(json.dumps(as_document(asyncio.run(measure())), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
