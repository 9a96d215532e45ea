"""What the responder counted: a fixed table of numbers, and its text for Prometheus."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from codius_dns.records import Qtype, Rcode

TYPES: Final = (
    Qtype.A,
    Qtype.AAAA,
    Qtype.HTTPS,
    Qtype.NS,
    Qtype.SOA,
    Qtype.TXT,
    Qtype.CAA,
    Qtype.CNAME,
    Qtype.MX,
    Qtype.DS,
    Qtype.DNSKEY,
    Qtype.ANY,
    Qtype.AXFR,
    Qtype.IXFR,
)
"""Counted by name; all others together, so that no stranger can make the table grow."""
COUNTED: Final = frozenset(TYPES)
OTHER: Final = "other"
TRANSPORTS: Final = ("udp", "tcp")
RCODES: Final = tuple(Rcode)


class Drop(IntEnum):
    """Why a packet got no answer, or not the one it asked for."""

    SHORT = 0  # less than a header
    RESPONSE = 1  # an answer itself
    RATE = 2  # over the limit of its network
    SLIP = 3  # the same, and told so by a truncated answer
    UNSENT = 4  # the kernel would not send the answer
    FAULT = 5  # our own mistake: SERVFAIL


_TYPE_ROW: Final = {int(qtype): index for index, qtype in enumerate(TYPES)}
_RCODE_COLUMN: Final = {int(rcode): index for index, rcode in enumerate(RCODES)}
_QUERIES: Final = len(TRANSPORTS) * (len(TYPES) + 1) * len(RCODES)
SIZE: Final = _QUERIES + len(Drop)
"""Numbers in one worker's table."""
_NUMBER: Final = 8  # bytes


def slot_of(transport: str, qtype: int, rcode: int) -> int:
    """Where a query of this kind is counted."""
    row = TRANSPORTS.index(transport) * (len(TYPES) + 1) + _TYPE_ROW.get(qtype, len(TYPES))
    return row * len(RCODES) + _RCODE_COLUMN[rcode]


def slot_of_drop(reason: Drop) -> int:
    return _QUERIES + reason


class Board:
    """The tables of all workers in memory they share, so that any of them can tell the sum.

    Made before the workers are; each writes its own table, about once a second.
    """

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, workers * SIZE * _NUMBER)
        self._workers = workers

    def write(self, worker: int, counts: Iterable[int]) -> None:
        at = worker * SIZE * _NUMBER
        self._memory[at : at + SIZE * _NUMBER] = array("Q", counts).tobytes()

    def sums(self) -> list[int]:
        numbers = array("Q", self._memory[:])
        return [sum(numbers[slot::SIZE]) for slot in range(SIZE)]


def render(counts: list[int], workers: int) -> bytes:
    """The text format, version 0.0.4. Kinds never seen are left out; drops are always there."""
    lines = [
        "# HELP codius_dns_workers Worker processes.",
        "# TYPE codius_dns_workers gauge",
        f"codius_dns_workers {workers}",
        "# HELP codius_dns_queries_total Questions answered, by transport, type and rcode.",
        "# TYPE codius_dns_queries_total counter",
    ]
    slot = 0
    for transport in TRANSPORTS:
        for qtype in (*(qtype.name for qtype in TYPES), OTHER):
            for rcode in RCODES:
                if counts[slot]:
                    labels = f'transport="{transport}",type="{qtype}",rcode="{rcode.name}"'
                    lines.append(f"codius_dns_queries_total{{{labels}}} {counts[slot]}")
                slot += 1
    lines += [
        "# HELP codius_dns_drops_total Packets that got no answer, or a truncated one (slip), by reason.",
        "# TYPE codius_dns_drops_total counter",
    ]
    for reason in Drop:
        value = counts[slot_of_drop(reason)]
        lines.append(f'codius_dns_drops_total{{reason="{reason.name.lower()}"}} {value}')
    return "\n".join(lines).encode() + b"\n"
