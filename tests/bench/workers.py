"""What a second worker of the front door brings: `python -m tests.bench.workers`.

Twice the work in the same time takes a core for each worker, and one each for who asks and who answers. Where
there are fewer, requests per second show the machine and not the front door, so CPU time per request is
judged: two workers that use no more of it than one do twice the work, where they have the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import rivals
from tests.bench.proxy import SETTLE_SECONDS, Verdict, ask, free_port, running
from tests.bench.rivals import LOAD_CORE, PROXY_CORE, Place, Server

ROUNDS: Final = 7
SECONDS: Final = 2
TARGET: Final = 1.8
"""Times the work of one worker that two do, each on a core of its own."""
NEEDED_CORES: Final = 4
"""Two for the workers, one for the load and one for the origin."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """CPU microseconds per request and requests per second, by number of workers, round by round."""

    cost: Mapping[int, Sequence[float]]
    rate: Mapping[int, Sequence[float]]
    cores: int
    """Of this machine."""

    @property
    def by_cost(self) -> float:
        """Times the work of one that two do with a core for each: twice, less what a request costs more."""
        return 2 * statistics.median(one / two for one, two in zip(self.cost[1], self.cost[2], strict=True))

    @property
    def by_rate(self) -> float:
        """Times the requests per second on this machine, whatever else its cores have to do meanwhile."""
        return statistics.median(two / one for one, two in zip(self.rate[1], self.rate[2], strict=True))

    @property
    def allowed(self) -> bool:
        """Whether this machine has the cores for two workers and for those who keep them busy."""
        return self.cores >= NEEDED_CORES


def measure(rounds: int = ROUNDS, seconds: int = SECONDS) -> Scaling:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codius-bench-")))
        for name in ("origin", "1", "2"):
            (directory / name).mkdir()
        origin = stack.enter_context(running(rivals.origin(Place(directory / "origin", free_port(), 0))))

        def door(workers: int) -> Server:
            place = Place(directory / str(workers), free_port(), origin.place.port)
            # Both may use both cores: what two cost more by running at the same time is to be seen.
            return rivals.codius(place, workers=workers, cores=(PROXY_CORE, LOAD_CORE))

        doors = {workers: stack.enter_context(running(door(workers))) for workers in (1, 2)}
        cost: dict[int, list[float]] = {1: [], 2: []}
        rate: dict[int, list[float]] = {1: [], 2: []}
        load = ask("/small", seconds)
        for number in range(rounds + 1):
            for workers, server in doors.items():
                before = server.cpu()
                count = load(server)
                time.sleep(SETTLE_SECONDS)
                if number:  # the first one fills caches and pools
                    cost[workers].append((server.cpu() - before) / count * 1e6)
                    rate[workers].append(count / seconds)
        return Scaling(cost, rate, len(os.sched_getaffinity(0)))


def verdict(found: Scaling) -> Verdict:
    """By requests per second where the machine has the cores, else by what they cost."""
    if found.allowed:
        what, measured = "two workers: requests per second, times those of one", found.by_rate
    else:
        what = "two workers with a core for each, by CPU per request: times the work of one"
        measured = found.by_cost
    return Verdict(what, measured, f"at least {TARGET}", measured >= TARGET)


def render(found: Scaling) -> str:
    lines = ["| workers | CPU µs per request | requests per second here |", "|---|---|---|"]
    for workers, cost in found.cost.items():
        rate = statistics.median(found.rate[workers])
        lines.append(f"| {workers} | {statistics.median(cost):.1f} | {rate:.0f} |")
    said = (
        f"This machine has {found.cores} cores, where two workers, load and origin want {NEEDED_CORES}: two"
        f" workers answer {found.by_rate:.2f} times as much here, which is what the machine allows. A request"
        f" costs {2 / found.by_cost:.2f} times what it costs one worker, so two with a core for each would do"
        f" {found.by_cost:.2f} times the work."
        if not found.allowed
        else f"Two workers answer {found.by_rate:.2f} times as much as one."
    )
    return "\n".join((*lines, "", said)) + "\n"


def as_document(found: Scaling) -> dict[str, object]:
    return {
        "microseconds": {str(workers): list(cost) for workers, cost in found.cost.items()},
        "requests_per_second": {str(workers): list(rate) for workers, rate in found.rate.items()},
        "by_cost": found.by_cost,
        "by_rate": found.by_rate,
        "cores": found.cores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.workers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.rounds)
    print(json.dumps(as_document(found), indent=2) if options.json else render(found))


if __name__ == "__main__":
    main()
