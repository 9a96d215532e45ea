"""Where the time of an upload goes: a node in this process, its doors' calls timed one by one.

    nsenter --net=HOST python -m tests.bench.phases PODMAN_SOCKET IMAGE DIRECTORY ROUNDS

It prints JSON. `tests.bench.upload` runs it in the host's namespace, while no other node is there.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from codius_node import config, manifest
from codius_node.daemon import open_node
from codius_node.model import Upload
from tests.harness.sample import sample_manifest

DURATION: Final = 3600
"""Seconds of each pod: longer than the measurement."""
PHASES: Final = (
    ("_store", "add_pod", "store: the intent"),
    ("_store", "private", "store: private variables"),
    ("_containers", "pull", "is the image here"),
    ("_containers", "create", "create pod and container"),
    ("_containers", "start_infra", "start the infra container"),
    ("_containers", "prepare_members", "prepare the container"),
    ("_containers", "open_netns", "meanwhile: open its network namespace"),
    ("_network", "attach", "meanwhile: attach its network"),
    ("_containers", "start_members", "start its program"),
    ("_launcher", "_settle", "wait for its port, check it runs"),
    ("_store", "start_pod", "store: paid and running"),
)
"""Door, method, what it is for people; in the order they happen."""


async def measure(podman: Path, image: str, directory: Path, rounds: int) -> dict[str, object]:
    settings = config.load(
        {
            "CODIUS_ROOT": str(directory / "root"),
            "CODIUS_RUN": str(directory / "run"),
            "CODIUS_ENGINE_SOCKET": str(podman),
            "CODIUS_PAYMENTS": "free",
        }
    )
    spent: defaultdict[str, list[float]] = defaultdict(list)
    async with open_node(settings) as node:
        for door, method, name in PHASES:
            _time(getattr(node.engine, door), method, spent[name])
        whole: list[float] = []
        for number in range(rounds + 1):
            upload = _make_upload(image, number)
            began = time.perf_counter()
            await node.engine.upload(upload, DURATION, token=None)
            whole.append(time.perf_counter() - began)
        # the first one warms what is loaded lazily
        phases = {name: 1000 * statistics.median(times[1:]) for name, times in spent.items()}
        total = 1000 * statistics.median(whole[1:])
        return {"total": total, "phases": phases}


def _make_upload(image: str, number: int) -> Upload:
    document: Any = sample_manifest(image, name=f"phases-{number}")
    return manifest.parse(document)


def _time(owner: Any, method: str, times: list[float]) -> None:
    """Replace the method by one that notes how long each call took."""
    inner = getattr(owner, method)

    async def timed(*arguments: object, **named: object) -> object:
        began = time.perf_counter()
        try:
            return await inner(*arguments, **named)
        finally:
            times.append(time.perf_counter() - began)

    async def timed_steps(*arguments: object) -> AsyncIterator[object]:
        began = time.perf_counter()
        async for step in inner(*arguments):
            yield step
        times.append(time.perf_counter() - began)

    setattr(owner, method, timed_steps if method == "pull" else timed)


def main() -> int:
    podman, image, directory, rounds = sys.argv[1:]
    print(json.dumps(asyncio.run(measure(Path(podman), image, Path(directory), int(rounds)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
