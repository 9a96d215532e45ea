"""From an upload to its first page, beside `podman run` of the same image: `python -m tests.bench.upload`.

A whole host in namespaces of its own, the image present. One round is one pod and one `podman run` of each
kind, so that all meet the machine in the same mood: read their ratio, not the times.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.memory import is_podman
from tests.harness.host import Host, clean_environment
from tests.harness.namespaces import HOST_ADDRESS, HostNetwork, missing_privilege
from tests.harness.podman_service import PrivatePodman, find_missing, find_processes
from tests.harness.sample import SAMPLE_FILES, SAMPLE_NAME, SAMPLE_PORT, sample_manifest

ROUNDS: Final = 15
AT_ONCE: Final = 20
"""Uploads that are sent at the same moment."""
PHASE_ROUNDS: Final = 9
TARGET_RATIO: Final = 1.3
PUBLISHED_PORT: Final = 8081
PUBLISHED: Final = (f"--publish={PUBLISHED_PORT}:{SAMPLE_PORT}",)
"""As a person would run it: podman makes a network namespace, a bridge and the port's rules, as we do."""
BARE: Final = ("--network=host",)
"""The least podman can do: the container has the host's own network, and nothing is made for it."""
POLL_SECONDS: Final = 0.001
"""Between two looks at a port or a page that is not there yet."""
RUN_NAME: Final = "beside"
SAMPLE_COMMAND: Final = ("/bin/busybox", "sh", "/start")
CALM_SECONDS: Final = 0.02
"""Between two looks whether podman is still busy."""
WARMING: Final = 1
"""Rounds that are not counted: what is loaded at the first use is loaded then."""
DEADLINE_SECONDS: Final = 120.0
DURATION: Final = 3600
"""Seconds each pod is paid for: longer than the measurement, so that none expires in it."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Milliseconds; rounds of three kinds, interleaved."""

    uploads: tuple[float, ...]
    published: tuple[float, ...]
    """`podman run --publish`; empty where podman has no network of its own (no CNI, no netavark)."""
    bare: tuple[float, ...]
    """`podman run --network=host`."""
    at_once: tuple[float, ...]
    """Until each of the uploads of the same moment answered."""
    phases: Mapping[str, float]
    """Medians, in the order they happen."""

    @property
    def upload(self) -> float:
        return statistics.median(self.uploads)

    @property
    def run(self) -> float:
        """The `podman run` that does the most of what an upload does."""
        return statistics.median(self.published or self.bare)

    @property
    def ratio(self) -> float:
        return self.upload / self.run

    @property
    def bare_ratio(self) -> float:
        return self.upload / statistics.median(self.bare)


async def measure(rounds: int = ROUNDS, at_once: int = AT_ONCE) -> Measurement:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codius-bench-")))
        directory.chmod(0o711)  # the front door's unprivileged user has to find its sockets below
        network = stack.enter_context(HostNetwork())
        async with PrivatePodman(netns=network.host.path) as podman:
            image = await podman.make_image(SAMPLE_NAME, files=SAMPLE_FILES)
            with Host(directory, network=network, podman_socket=podman.socket) as host:
                await asyncio.to_thread(host.start)
                uploads, published, bare = [], [], []
                publishes = await _can_publish(podman, image)
                for number in range(WARMING + rounds):
                    await _calm(podman)
                    uploads.append(await asyncio.to_thread(_time_upload, host.port, image, f"pod-{number}"))
                    if publishes:
                        published.append(await _time_run(podman, network, image, PUBLISHED, PUBLISHED_PORT))
                    bare.append(await _time_run(podman, network, image, BARE, SAMPLE_PORT))
                await _calm(podman)
                together = await _upload_at_once(host.port, image, at_once)
                await asyncio.to_thread(host.stop)
            await podman.cli("pod", "rm", "--all", "--force", "--time=0")
            await _calm(podman)
            phases = await _measure_phases(podman, network, image, directory / "phases")
        return Measurement(
            uploads=tuple(uploads[WARMING:]),
            published=tuple(published[WARMING:]),
            bare=tuple(bare[WARMING:]),
            at_once=tuple(together),
            phases=phases,
        )


def _time_upload(port: int, image: str, name: str) -> float:
    """Milliseconds from the request to the pod's first page; both through the front door.

    The page is asked for while the upload is under way: an answer before the upload's own counts.
    """
    body = json.dumps(sample_manifest(image, name=name))
    api = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    visitor = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    try:
        # connections are there before: a client and a visitor that came earlier
        hash = json.loads(_ask(api, "OPTIONS", f"/pods?duration={DURATION}", body))["manifestHash"]
        visitor.connect()
        with ThreadPoolExecutor(1) as background:
            began = time.perf_counter()
            upload = background.submit(_ask, api, "POST", f"/pods?duration={DURATION}", body)
            while not _answers(visitor, f"{hash}.codius.localhost:{port}"):
                if upload.done():
                    upload.result()
                if time.perf_counter() - began > DEADLINE_SECONDS:
                    raise RuntimeError(f"pod {hash} does not answer")
                time.sleep(POLL_SECONDS)
            took = time.perf_counter() - began
            upload.result()
        return 1000 * took
    finally:
        api.close()
        visitor.close()


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: str) -> str:
    headers = {"Content-Type": "application/json", "Host": f"codius.localhost:{connection.port}"}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status != http.client.OK:
        raise RuntimeError(f"{method} {path}: {answer.status} {text}")
    return text


def _answers(visitor: http.client.HTTPConnection, authority: str) -> bool:
    """Whether the page is there; the connection is kept for the next time."""
    try:
        visitor.request("GET", "/", headers={"Host": authority})
        answer = visitor.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        visitor.close()
        return False
    return answer.status == http.client.OK


async def _calm(podman: PrivatePodman) -> None:
    """Until podman has cleaned up after the containers removed before: it goes on behind their backs."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while len([pid for pid in find_processes(str(podman.directory)) if is_podman(pid)]) > 1:
            await asyncio.sleep(CALM_SECONDS)


async def _can_publish(podman: PrivatePodman, image: str) -> bool:
    try:
        await podman.cli("run", "--detach", f"--name={RUN_NAME}", *PUBLISHED, image, *SAMPLE_COMMAND)
    except RuntimeError:
        return False
    finally:
        await podman.cli("rm", "--force", "--ignore", "--time=0", RUN_NAME)
    return True


async def _time_run(
    podman: PrivatePodman, network: HostNetwork, image: str, options: Sequence[str], port: int
) -> float:
    """Milliseconds from the start of `podman run` to the container's first page; it is removed again."""
    command = podman.service.command(
        "run", "--detach", f"--name={RUN_NAME}", "--env=GREETING=hello", *options, image, *SAMPLE_COMMAND
    )

    def time_it() -> float:
        began = time.perf_counter()
        with subprocess.Popen(
            command,
            env=podman.service.environment,
            cwd=podman.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            # in a thread inside: the port is the host's, as for a client beside it
            answered = network.host.call(lambda: _wait_answer(str(HOST_ADDRESS), port, process, began))
            process.communicate()
        return 1000 * (answered - began)

    await _calm(podman)
    try:
        return await asyncio.to_thread(time_it)
    finally:
        await podman.cli("rm", "--force", "--ignore", "--time=0", RUN_NAME)


def _wait_answer(address: str, port: int, process: subprocess.Popen[bytes], began: float) -> float:
    """When the first page came."""
    while True:
        visitor = http.client.HTTPConnection(address, port, timeout=DEADLINE_SECONDS)
        try:
            if _answers(visitor, f"{address}:{port}"):
                return time.perf_counter()
        finally:
            visitor.close()
        if process.poll() or time.perf_counter() - began > DEADLINE_SECONDS:
            raise RuntimeError(f"{subprocess.list2cmdline(process.args)} has no page")  # type: ignore[arg-type]
        time.sleep(POLL_SECONDS)


async def _upload_at_once(port: int, image: str, number: int) -> list[float]:
    def upload(index: int) -> float:
        return _time_upload(port, image, f"together-{index}")

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(number) as clients:
        return list(
            await asyncio.gather(*(loop.run_in_executor(clients, upload, index) for index in range(number)))
        )


async def _measure_phases(
    podman: PrivatePodman, network: HostNetwork, image: str, directory: Path
) -> dict[str, float]:
    directory.mkdir()
    process = await asyncio.create_subprocess_exec(
        *("nsenter", f"--net={network.host.path}", sys.executable, "-m", "tests.bench.phases"),
        *(str(podman.socket), image, str(directory), str(PHASE_ROUNDS)),
        env=clean_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError("the instrumented run failed; its own message is above")
    phases: dict[str, float] = json.loads(out)["phases"]
    return phases


def as_document(measurement: Measurement) -> dict[str, object]:
    """For `make bench`."""
    return {
        "unit": "ms",
        "rounds": len(measurement.uploads),
        "upload_p50": round(measurement.upload, 1),
        "podman_run": "published" if measurement.published else "bare",
        "podman_run_p50": round(measurement.run, 1),
        "ratio": round(measurement.ratio, 2),
        "target_ratio": TARGET_RATIO,
        "podman_run_bare_p50": round(statistics.median(measurement.bare), 1),
        "bare_ratio": round(measurement.bare_ratio, 2),
        "at_once": {
            "uploads": len(measurement.at_once),
            "first": round(min(measurement.at_once), 1),
            "median": round(statistics.median(measurement.at_once), 1),
            "all": round(max(measurement.at_once), 1),
        },
        "phases_p50": {name: round(time, 1) for name, time in measurement.phases.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.upload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if reason := missing_privilege() or ", ".join(find_missing()):
        print(f"missing: {reason}", file=sys.stderr)
        return 1
    print(json.dumps(as_document(asyncio.run(measure(options.rounds))), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
