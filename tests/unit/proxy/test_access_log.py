"""The access log's lines."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from codius_proxy.access_log import MAX_SHOWN, build_id, render
from codius_proxy.identity import Identity
from codius_proxy.request import RequestHead, parse_request
from codius_proxy.visit import End, Visit

POD = "a" * 52
REQUEST = parse_request(b"GET / HTTP/1.1\r\nHost: host.example")
VISITOR = Identity("192.0.2.1", "https")


def visit(
    *,
    request: RequestHead | None = REQUEST,
    pod: str = POD,
    status: int = 200,
    ended: float = 1_700_000_000.25,
    seconds: float = 0.0125,
    received: int = 100,
    sent: int = 2000,
    number: int = 31,
    reason: str = "",
    end: End = End.ANSWERED,
) -> Visit:
    """A finished request, by clocks that agree."""
    return Visit(VISITOR, request, pod, status, received, sent, ended - seconds, seconds, number, end, reason)


def strange(host: bytes, target: bytes) -> RequestHead:
    """A request worse than the parser lets through."""
    return RequestHead(b"GET", target, 1, host, b"", None, False, True, None, False)


def line_of(found: Visit) -> str:
    return render([found], "c0ffee", 0.0).decode("ascii")


def test_a_line_is_json_with_everything_there_is_to_know() -> None:
    request = parse_request(b'GET /a?b="c" HTTP/1.1\r\nHost: host.example')
    line = line_of(visit(request=request))
    assert line.endswith("\n")
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250000Z",
        "id": build_id("c0ffee", 31),
        "client": "192.0.2.1",
        "scheme": "https",
        "method": "GET",
        "host": "host.example",
        "target": '/a?b="c"',
        "pod": POD,
        "status": 200,
        "received": 100,
        "sent": 2000,
        "seconds": 0.0125,
        "refusal": "",
        "end": "answered",
    }


def test_times_are_those_of_the_wall() -> None:
    line = render([visit(ended=1000.25)], "c0ffee", 1_700_000_000.0)
    assert json.loads(line)["time"] == "2023-11-14T22:30:00.250000Z"


def test_lines_are_in_the_order_of_the_visits_each_with_its_second() -> None:
    found = render([visit(ended=1_700_000_000.5 + number) for number in (0, 0, 1, 0)], "c0ffee", 0.0)
    times = [json.loads(line)["time"][17:] for line in found.splitlines()]
    assert times == ["20.500000Z", "20.500000Z", "21.500000Z", "20.500000Z"]


def test_a_request_that_could_not_be_read_has_a_line() -> None:
    found = json.loads(line_of(visit(request=None, pod="", status=400, reason="malformed", end=End.REFUSED)))
    assert (found["method"], found["host"], found["target"]) == ("", "", "")
    assert (found["status"], found["refusal"], found["end"]) == (400, "malformed", "refused")


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_whatever_a_stranger_writes_stays_one_line_of_json(host: bytes, target: bytes) -> None:
    line = line_of(visit(request=strange(host, target)))
    assert line.count("\n") == 1
    found = json.loads(line)
    assert (found["host"], found["target"]) == (host.decode("latin-1"), target.decode("latin-1"))


def test_a_long_target_is_cut() -> None:
    request = parse_request(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: host.example")
    shown = json.loads(line_of(visit(request=request)))["target"]
    assert shown == "/" + "x" * (MAX_SHOWN - 1) + "..."
