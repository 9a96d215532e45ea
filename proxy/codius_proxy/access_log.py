"""The access log's lines: what is known of finished requests, as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from codius_proxy.authority import MAX_AUTHORITY
from codius_proxy.visit import End, Visit

MICRO: Final = 1_000_000
MAX_SHOWN: Final = 2048  # bytes of a request target in a line
SHARED: Final = 4096  # combinations of visitor, method, host and pod whose text is remembered: 2 MiB

_quote = json.encoder.encode_basestring_ascii


def build_id(worker: str, number: int) -> str:
    """A request's id, as error pages and log lines show it."""
    return f"{worker}-{number:x}"


def render(visits: Iterable[Visit], worker: str, offset: float) -> bytes:
    """A line for each; `offset` is what the wall's clock is ahead of the monotonic one, in seconds.

    One loop with its names at hand: this is most of what a request costs behind its answer.
    """
    quote, shared, gmtime, strftime = _quote, _shared, time.gmtime, time.strftime
    template = _LINE.replace("WORKER", worker)
    at, clock = -1, ""
    lines: list[str] = []
    for visit in visits:
        seconds = visit.seconds
        ended, took = int((visit.started + seconds + offset) * MICRO), int(seconds * MICRO)
        second = ended // MICRO
        if second != at:
            at, clock = second, strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        visitor, request, end, reason = visit.visitor, visit.request, visit.end, visit.reason
        if request is None:
            method = host = target = b""
        else:
            method, host, target = request.method, request.host, request.target
            if len(target) > MAX_SHOWN:
                target = target[:MAX_SHOWN] + b"..."
        before, behind = shared(visitor.address, visitor.scheme, method, host[: MAX_AUTHORITY + 1], visit.pod)
        values: object = (
            clock, str(ended)[-6:], visit.number, before, quote(target.decode("latin-1")), behind,
            visit.status, visit.received, visit.sent, took // MICRO, str(MICRO + took % MICRO)[1:],
            _PLAIN if end is _ANSWERED and not reason else _END % (reason, end.name.lower()),
        )  # fmt: skip
        lines.append(template % values)
    return "".join(lines).encode("ascii")


_LINE: Final = '{"time":"%s.%sZ","id":"WORKER-%x"%s%s%s%d,"received":%d,"sent":%d,"seconds":%d.%s%s}\n'
_END: Final = ',"refusal":"%s","end":"%s"'
_ANSWERED: Final = End.ANSWERED
_PLAIN: Final = _END % ("", "answered")  # nearly always; and an enum's name takes its time


@lru_cache(maxsize=SHARED)
def _shared(address: str, scheme: str, method: bytes, host: bytes, pod: str) -> tuple[str, str]:
    """What is the same in many lines: before the target, and behind it up to the status."""
    return (
        f',"client":"{address}","scheme":"{scheme}","method":"{method.decode()}"'
        f',"host":{_quote(host.decode("latin-1"))},"target":',
        f',"pod":"{pod}","status":',
    )
