"""The feed's messages and the table they keep."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_proxy import routes
from codius_proxy.routes import (
    MAX_REASON,
    MAX_STOPPED,
    Add,
    FeedError,
    Notice,
    Remove,
    Route,
    RouteTable,
    Snapshot,
    Stop,
    Target,
    parse,
)

A, B = "a" * 52, "b" * 52
ONE, TWO = Target("10.88.0.2", 8080), Target("fd00::2", 80)

_hashes = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"), min_size=52, max_size=52)
_targets = st.builds(
    Target, st.ip_addresses().map(str).filter(lambda text: "%" not in text), st.integers(1, 65535)
)
_notices = st.builds(Notice, st.booleans(), st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["type", "hash", "target", "routes", "x"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(_hashes, _targets, max_size=5), st.dictionaries(_hashes, _notices, max_size=5))
def test_a_snapshot_arrives_as_it_was_sent(table: dict[str, Target], stopped: dict[str, Notice]) -> None:
    line = routes.render_snapshot(table, stopped)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert parse(line) == Snapshot(table, stopped)


def test_a_snapshot_without_stops_is_what_it_was_before_there_were_any() -> None:
    assert b"stopped" not in routes.render_snapshot({A: ONE})


@given(_hashes, _targets, _notices)
def test_a_change_arrives_as_it_was_sent(pod_hash: str, target: Target, notice: Notice) -> None:
    assert parse(routes.render_stop(pod_hash, notice)) == Stop(pod_hash, notice)
    assert parse(routes.render_add(pod_hash, target)) == Add(pod_hash, target)
    assert parse(routes.render_remove(pod_hash)) == Remove(pod_hash)


def test_a_snapshot_of_the_most_pods_fits_into_one_message() -> None:
    digits = "abcdefghijklmnop"
    longest = Target("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535)
    table = {"".join(prefix) + "a" * 48: longest for prefix in itertools.product(digits, repeat=4)}
    assert len(table) == routes.MAX_PODS
    longest_reason = Notice(False, "\x01" * MAX_REASON)
    stopped = dict.fromkeys(list(table)[:MAX_STOPPED], longest_reason)
    line = routes.render_snapshot(table, stopped)
    assert len(line) <= routes.MAX_LINE
    assert parse(line) == Snapshot(table, stopped)
    with pytest.raises(FeedError):
        routes.render_snapshot({**table, "7" * 52: longest})


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\n", b"[]", b"{}", b"null", b"\xff", b"{", b"[" * 100_000, b"1" * 5000,
        b'{"type":"snapshot"}',
        b'{"type":"snapshot","routes":[]}',
        b'{"type":"snapshot","routes":{"short":["10.0.0.1",80]}}',
        b'{"type":"snapshot","routes":{},"more":1}',
        b'{"type":"snapshot","type":"snapshot","routes":{}}',
        json.dumps({"type": "add", "hash": A}).encode(),
        json.dumps({"type": "add", "hash": A, "target": ["10.0.0.1"]}).encode(),
        json.dumps({"type": "add", "hash": A, "target": ["10.0.0.1", 0]}).encode(),
        json.dumps({"type": "add", "hash": A, "target": ["10.0.0.1", 65536]}).encode(),
        json.dumps({"type": "add", "hash": A, "target": ["10.0.0.1", True]}).encode(),
        json.dumps({"type": "add", "hash": A, "target": ["10.0.0.1", 80.0]}).encode(),
        json.dumps({"type": "add", "hash": A, "target": ["10.0.0.1", "80"]}).encode(),
        json.dumps({"type": "add", "hash": A, "target": ["pod.example", 80]}).encode(),
        json.dumps({"type": "add", "hash": A, "target": ["10.0.0.1\x00", 80]}).encode(),
        json.dumps({"type": "add", "hash": A.upper(), "target": ["10.0.0.1", 80]}).encode(),
        json.dumps({"type": "remove", "hash": A, "target": ["10.0.0.1", 80]}).encode(),
        json.dumps({"type": "remove", "hash": 7}).encode(),
        json.dumps({"type": "rename", "hash": A}).encode(),
        json.dumps({"type": "stop", "hash": A}).encode(),
        json.dumps({"type": "stop", "hash": A, "notice": [True]}).encode(),
        json.dumps({"type": "stop", "hash": A, "notice": [1, "x"]}).encode(),
        json.dumps({"type": "stop", "hash": A, "notice": [True, 5]}).encode(),
        json.dumps({"type": "stop", "hash": A, "notice": [True, "x" * 201]}).encode(),
        json.dumps({"type": "stop", "hash": A, "notice": [True, "\u20ac" * 67]}).encode(),
        b'{"type":"stop","hash":"' + A.encode() + b'","notice":[true,"\\ud83d"]}',
        json.dumps({"type": "stop", "hash": A, "notice": [True, ""], "more": 1}).encode(),
        b'{"type":"snapshot","routes":{},"stopped":[]}',
        json.dumps({"type": "snapshot", "routes": {}, "stopped": {"short": [True, ""]}}).encode(),
        json.dumps({"type": "snapshot", "routes": {}, "stopped": {A: None}}).encode(),
        b" " * (routes.MAX_LINE + 1),
    ],
)  # fmt: skip
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(FeedError):
        parse(line)


@given(st.binary(max_size=200) | _json.map(lambda value: json.dumps(value).encode()))
def test_no_line_escapes_the_parser(line: bytes) -> None:
    try:
        message = parse(line)
    except FeedError:
        return
    RouteTable().apply(message)


def test_the_table_follows_the_messages() -> None:
    table = RouteTable()
    assert (table.known, len(table)) == (False, 0)
    assert table.apply(Snapshot({A: ONE})) == frozenset()
    assert table.find(A) == Route(A, ONE)
    assert table.apply(Add(B, TWO)) == frozenset()
    assert table.apply(Add(B, TWO)) == frozenset()
    assert (table.find(B), len(table)) == (Route(B, TWO), 2)
    assert table.apply(Remove(A)) == {ONE}
    assert table.apply(Remove(A)) == frozenset()
    assert table.find(A) is None
    assert table.apply(Snapshot({A: ONE})) == {TWO}
    assert table.find(B) is None


def test_a_target_two_hashes_share_is_gone_only_with_the_last() -> None:
    table = RouteTable()
    table.apply(Snapshot({A: ONE, B: ONE}))
    assert table.apply(Add(A, TWO)) == frozenset()
    assert table.apply(Remove(B)) == {ONE}


# ---- pods that the operator stopped ----------------------------------------------------------------

WHY, LEGAL = Notice(False, "Malware."), Notice(True, "")


def test_a_stop_takes_the_route_and_leaves_a_notice_until_the_pod_is_back() -> None:
    table = RouteTable()
    table.apply(Snapshot({A: ONE}))
    assert table.apply(Stop(A, WHY)) == {ONE}
    assert table.apply(Stop(A, WHY)) == frozenset()
    assert (table.find(A), table.find_notice(A)) == (None, WHY)
    assert table.apply(Stop(A, LEGAL)) == frozenset()
    assert table.find_notice(A) == LEGAL
    table.apply(Add(A, TWO))
    assert (table.find(A), table.find_notice(A)) == (Route(A, TWO), None)


@pytest.mark.parametrize("over", [Remove(A), Snapshot({}), Snapshot({A: ONE}), Add(A, ONE)])
def test_a_notice_is_over_when_the_node_says_so(over: routes.Message) -> None:
    table = RouteTable()
    table.apply(Snapshot({}, {A: WHY}))
    assert table.find_notice(A) == WHY
    table.apply(over)
    assert table.find_notice(A) is None


def test_the_newest_notices_are_kept() -> None:
    table = RouteTable()
    numbers = ["".join(digits) + "a" * 48 for digits in itertools.product("abcdefghijklmnop", repeat=4)]
    for pod in numbers[: MAX_STOPPED + 2]:
        table.apply(Stop(pod, WHY))
    assert [table.find_notice(pod) for pod in numbers[:3]] == [None, None, WHY]
    table.apply(Stop(numbers[2], WHY))  # told again, it is the newest
    table.apply(Stop(numbers[-1], WHY))
    assert [table.find_notice(pod) for pod in numbers[2:4]] == [WHY, None]
    with pytest.raises(FeedError):
        parse(routes.render_snapshot({}, dict.fromkeys(numbers[: MAX_STOPPED + 1], WHY)))


def test_a_table_tells_all_that_another_one_needs() -> None:
    table = RouteTable()
    for message in (Snapshot({A: ONE}), Stop(B, WHY)):
        table.apply(message)
    assert table.snapshot == Snapshot({A: ONE}, {B: WHY})
