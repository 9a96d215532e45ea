"""Polling the API through the front door, beside a bare aiohttp handler: `python -m tests.bench.api`.

A round asks one after the other, so that both meet the machine in the same mood. The bare handler answers the
same bytes from memory, on a port of its own: what a Python server can do here with no host behind it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final

from aiohttp import web

from tests.bench.proxy import CONNECTIONS, free_port, run_wrk
from tests.harness.noop import open_noop_host
from tests.harness.serving import wait_for_port

ROUNDS: Final = 7
SECONDS: Final = 2
TARGET: Final = 1000
"""Polls a second."""
UPLOAD: Final = {
    "manifest": {
        "name": "polled",
        "version": "1.0.0",
        "port": "8080",
        "containers": [{"id": "web", "image": f"registry.example/web@sha256:{'0' * 64}"}],
    }
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """Answers a second, round by round."""

    host: Sequence[float]
    bare: Sequence[float]

    @property
    def rate(self) -> float:
        return statistics.median(self.host)

    @property
    def ratio(self) -> float:
        """The host's rate by the bare handler's: the median of the rounds."""
        return statistics.median(ours / bare for ours, bare in zip(self.host, self.bare, strict=True))


def measure(*, rounds: int = ROUNDS, seconds: int = SECONDS) -> Measurement:
    """Both in turn; RuntimeError when anything but 2xx is answered."""
    with open_noop_host() as host:
        origin = f"http://127.0.0.1:{host.port}"
        fields = {"Host": host.authority, "Content-Type": "application/json"}
        body = json.dumps(UPLOAD).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{origin}/pods", body, fields)) as answer:
            hash = json.load(answer)["manifestHash"]
        target = f"{origin}/pods?manifestHash={hash}"
        with urllib.request.urlopen(urllib.request.Request(target, headers=fields)) as answer:
            text = answer.read().decode()
        with _serve_bare(text) as port:
            found: dict[str, list[float]] = {"host": [], "bare": []}
            for number in range(rounds + 1):
                for name, url in (("host", target), ("bare", f"http://127.0.0.1:{port}/pods")):
                    count, _ = run_wrk([f"--header=Host: {host.authority}", url], CONNECTIONS, seconds)
                    if number:  # the first one fills caches and pools
                        found[name].append(count / seconds)
    return Measurement(**found)


@contextmanager
def _serve_bare(text: str) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.api", "serve", str(port), text])
    try:
        wait_for_port(port)
        yield port
    finally:
        process.kill()
        process.wait()


def _serve(port: int, text: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type="application/json")

    app = web.Application()
    app.router.add_get("/pods", answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


def as_document(measurement: Measurement) -> dict[str, object]:
    return {**asdict(measurement), "rate": measurement.rate, "ratio": measurement.ratio}


def main() -> None:
    match sys.argv[1:]:
        case ["serve", port, text]:
            _serve(int(port), text)
        case _:
            print(json.dumps(as_document(measure())))


if __name__ == "__main__":
    main()
