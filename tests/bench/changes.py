"""How long a change of the routes takes to be in every worker: `python -m tests.bench.changes`.

From the moment the feed is given the change until visitors of all workers, each asking without a pause on a
connection of its own, have been answered by it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from codius_proxy.routes import Target
from tests.bench.proxy import Verdict
from tests.bench.rivals import ROUTES, pod_hash
from tests.harness.front import OTHER, Raw, name
from tests.harness.origin import closed_port, origin
from tests.harness.processes import Running, one_of_each, running

CHANGES: Final = 50
"""Pods that come, and go again."""
WORKERS: Final = 4
CONNECTIONS: Final = 64
"""Of the load: more than the workers can serve at once."""
TARGET: Final = 100.0
"""Milliseconds."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Milliseconds until the last worker has it, change by change."""

    resting: Sequence[float]
    loaded: Sequence[float]


async def measure(changes: int = CHANGES) -> Measurement:
    async with origin() as pod, running(pod, workers=WORKERS) as proxy:
        for number in range(ROUTES):
            proxy.feed.add(pod_hash(number), Target("127.0.0.1", closed_port()))
        clients = list((await one_of_each(proxy, count=WORKERS)).values())
        target = Target("127.0.0.1", pod.port)
        resting = await _change(proxy, clients, target, changes)
        async with _load(proxy):
            return Measurement(resting, await _change(proxy, clients, target, changes))


async def _change(proxy: Running, clients: Sequence[Raw], target: Target, changes: int) -> list[float]:
    found = []
    for _ in range(changes):
        found.append(await _time(clients, lambda: proxy.feed.add(OTHER, target), 200))
        found.append(await _time(clients, lambda: proxy.feed.remove(OTHER), 404))
    return found


async def _time(clients: Sequence[Raw], change: Callable[[], None], status: int) -> float:
    async def see(client: Raw) -> None:
        while (await client.get(name(OTHER))).status != status:
            pass

    started = perf_counter()
    change()
    await asyncio.gather(*map(see, clients))
    return (perf_counter() - started) * 1000


@asynccontextmanager
async def _load(proxy: Running) -> AsyncIterator[None]:
    command = ["wrk", "--threads=1", f"--connections={CONNECTIONS}", "--duration=600"]
    command += [f"--header=Host: {name()}", f"http://127.0.0.1:{proxy.port}/"]
    load = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        load.kill()
        await load.wait()


def verdict(found: Measurement) -> Verdict:
    worst = max(*found.resting, *found.loaded)
    return Verdict(
        f"a change of the routes in all of {WORKERS} workers: ms, the worst of {2 * len(found.loaded)}",
        worst,
        f"at most {TARGET:.0f}",
        worst <= TARGET,
    )


def render(found: Measurement) -> str:
    lines = ["| | median ms | worst ms |", "|---|---|---|"]
    for what, times in (("at rest", found.resting), (f"under {CONNECTIONS} busy visitors", found.loaded)):
        lines.append(f"| {what} | {statistics.median(times):.1f} | {max(times):.1f} |")
    return "\n".join(lines) + "\n"


def as_document(found: Measurement) -> dict[str, object]:
    return {"milliseconds": {"resting": list(found.resting), "loaded": list(found.loaded)}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.changes", description=__doc__)
    parser.add_argument("--changes", type=int, default=CHANGES)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure(options.changes))
    print(json.dumps(as_document(found), indent=2) if options.json else render(found))


if __name__ == "__main__":
    main()
