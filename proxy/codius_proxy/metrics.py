"""What the front door counts, summed over its workers, in Prometheus's text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Final, TypeAlias

from codius_proxy.access_log import MICRO
from codius_proxy.visit import Visit

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS: Final[Sequence[float]] = (  # seconds
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_BOUNDS: Final = [int(bound * MICRO) for bound in BUCKETS]
MAX_PODS: Final = 2048  # pods with series of their own; those without a request for longest become `other`
OTHER: Final = "other"
SWITCHING: Final = 101  # a tunnel's length says nothing of how quick anybody is

_CODES: Final = frozenset(code.value for code in HTTPStatus)  # those that are known
_PREFIX: Final = "codius_proxy_"


Sums: TypeAlias = tuple[
    dict[str, tuple[int, int, int, dict[int, int]]],  # by pod: what `_Traffic.pack` gives
    dict[str, int],  # refusals by reason
    list[int],  # durations by bucket
    int,  # all of them together, in microseconds
]
"""What a worker has counted in some requests, the way it travels to the recorder."""


class _Traffic:
    """The requests to one pod."""

    __slots__ = ("by_status", "last", "received", "sent")

    def __init__(self) -> None:
        self.last = 0  # when one ended, microseconds since the epoch
        self.received = 0
        self.sent = 0
        self.by_status: dict[int, int] = {}

    def add(self, last: int, received: int, sent: int, by_status: Mapping[int, int]) -> None:
        self.last = max(self.last, last)
        self.received += received
        self.sent += sent
        for status, count in by_status.items():
            # RFC 9110 section 15; and no pod can make as many series as there are numbers.
            code = status if status in _CODES else status // 100 * 100
            self.by_status[code] = self.by_status.get(code, 0) + count

    def pack(self) -> tuple[int, int, int, dict[int, int]]:
        """What `add` takes."""
        return self.last, self.received, self.sent, self.by_status


def sum_up(visits: Iterable[Visit], offset: float) -> Sums:
    """Finished requests; `offset` is what the wall's clock is ahead of the monotonic one, in seconds."""
    by_pod: dict[str, _Traffic] = {}
    refusals: dict[str, int] = {}
    buckets = [0] * (len(BUCKETS) + 1)
    duration = 0
    for visit in visits:
        seconds, pod, status, reason = visit.seconds, visit.pod, visit.status, visit.reason
        traffic = by_pod.get(pod)
        if traffic is None:
            traffic = by_pod[pod] = _Traffic()
        traffic.last = int((visit.started + seconds + offset) * MICRO)
        traffic.received += visit.received
        traffic.sent += visit.sent
        by_status = traffic.by_status
        by_status[status] = by_status.get(status, 0) + 1
        if reason:
            refusals[reason] = refusals.get(reason, 0) + 1
        if status != SWITCHING:
            took = int(seconds * MICRO)
            buckets[bisect_left(_BOUNDS, took)] += 1
            duration += took
    return {pod: traffic.pack() for pod, traffic in by_pod.items()}, refusals, buckets, duration


class Metrics:
    """All counters. They only grow: what a pod or a worker that ended has counted stays in the sums."""

    def __init__(self) -> None:
        self._traffic: dict[str, _Traffic] = {}
        self._refusals: dict[str, int] = {}
        self._turned_away: dict[str, int] = {}
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._duration = 0  # microseconds
        self._accepted = 0
        self._lost = 0

    def add(self, sums: Sums) -> None:
        """Finished requests, of any worker."""
        by_pod, refusals, buckets, duration = sums
        for pod, counted in by_pod.items():
            traffic = self._traffic.get(pod)
            if traffic is None:
                traffic = self._add_pod(pod)
            traffic.add(*counted)
        _add(self._refusals, refusals)
        for number, count in enumerate(buckets):
            self._buckets[number] += count
        self._duration += duration

    def count_accepted(self, connections: int) -> None:
        self._accepted += connections

    def count_turned_away(self, by_reason: Mapping[str, int]) -> None:
        """Connections that were ended without an answer."""
        _add(self._turned_away, by_reason)

    def count_lost(self, records: int) -> None:
        """Records that are in none of the other counters, nor in the access log."""
        self._lost += records

    def render(self, connections: Mapping[int, int]) -> str:
        """The exposition; `connections` are those open now, by process id of the worker."""
        return "".join(self._lines(connections))

    def _add_pod(self, pod: str) -> _Traffic:
        if len(self._traffic) >= MAX_PODS and pod != OTHER:
            oldest = min(
                (name for name in self._traffic if name != OTHER), key=lambda n: self._traffic[n].last
            )
            self._traffic.setdefault(OTHER, _Traffic()).add(*self._traffic.pop(oldest).pack())
        traffic = self._traffic[pod] = _Traffic()
        return traffic

    def _lines(self, connections: Mapping[int, int]) -> Iterator[str]:
        yield from _family("requests_total", "counter", "Finished requests by pod and status code.", [
            ((("pod", pod), ("code", str(status))), count)
            for pod, traffic in self._traffic.items()
            for status, count in traffic.by_status.items()
        ])  # fmt: skip
        yield from _family(
            "received_bytes_total", "counter", "Bytes of requests' bodies by pod.",
            [((("pod", pod),), traffic.received) for pod, traffic in self._traffic.items()],
        )  # fmt: skip
        yield from _family(
            "sent_bytes_total", "counter", "Bytes of answers by pod, with their heads.",
            [((("pod", pod),), traffic.sent) for pod, traffic in self._traffic.items()],
        )  # fmt: skip
        yield from _family(
            "refusals_total", "counter", "Requests the front door answered itself, by reason.",
            [((("reason", reason),), count) for reason, count in self._refusals.items()],
        )  # fmt: skip
        yield from _family(
            "turned_away_connections_total", "counter", "Connections ended without an answer, by reason.",
            [((("reason", reason),), count) for reason, count in self._turned_away.items()],
        )  # fmt: skip
        name = f"{_PREFIX}request_duration_seconds"
        yield f"# HELP {name} Time from a request's head to the end of its answer, tunnels left out.\n"
        yield f"# TYPE {name} histogram\n"
        total = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self._buckets, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}\n'
        yield f"{name}_sum {self._duration / MICRO:.6f}\n{name}_count {total}\n"
        yield from _family(
            "connections", "gauge", "Open connections of visitors by worker.",
            [((("worker", str(pid)),), count) for pid, count in connections.items()],
        )  # fmt: skip
        yield from _family(
            "accepted_connections_total", "counter", "Connections of visitors ever accepted.",
            [((), self._accepted)],
        )  # fmt: skip
        yield from _family(
            "lost_records_total", "counter", "Requests left out of log and counters: too many at once.",
            [((), self._lost)],
        )  # fmt: skip


def _add(sums: dict[str, int], counts: Mapping[str, int]) -> None:
    for reason, count in counts.items():
        sums[reason] = sums.get(reason, 0) + count


def _family(
    name: str, kind: str, text: str, samples: Iterable[tuple[tuple[tuple[str, str], ...], int]]
) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {text}\n# TYPE {_PREFIX}{name} {kind}\n"
    for labels, value in samples:
        shown = ",".join(f'{label}="{found}"' for label, found in labels)
        yield f"{_PREFIX}{name}{{{shown}}} {value}\n" if shown else f"{_PREFIX}{name} {value}\n"
