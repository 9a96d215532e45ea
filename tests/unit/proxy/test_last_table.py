"""The routes that outlive a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from codius_proxy.last_table import LastTable
from codius_proxy.routes import Notice, Snapshot, Target, render_add, render_snapshot

POD = "a" * 52
ROUTES = {POD: Target("10.77.0.2", 8080), "b" * 52: Target("10.77.0.6", 80)}


@pytest.fixture
def table() -> Iterator[LastTable]:
    found = LastTable()
    yield found
    found.close()


def test_what_was_saved_last_is_found(table: LastTable) -> None:
    assert table.load() is None
    for routes in (ROUTES, {}, {POD: ROUTES[POD]}):
        table.save(render_snapshot(routes))
        assert table.load() == Snapshot(routes)


def test_who_was_stopped_is_found_too(table: LastTable) -> None:
    stopped = {"c" * 52: Notice(True, "A court said so.")}
    table.save(render_snapshot(ROUTES, stopped))
    assert table.load() == Snapshot(ROUTES, stopped)


def test_another_process_finds_it(table: LastTable) -> None:
    pid = os.fork()
    if pid == 0:
        table.save(render_snapshot(ROUTES))
        os._exit(0)
    os.waitpid(pid, 0)
    assert table.load() == Snapshot(ROUTES)


@pytest.mark.parametrize("torn_at", [4, 12, 40])
def test_half_of_a_table_is_none(torn_at: int, table: LastTable) -> None:
    table.save(render_snapshot(ROUTES))
    os.pwrite(table._file, b"\xff", torn_at)
    assert table.load() is None


def test_only_a_snapshot_counts(table: LastTable) -> None:
    table.save(render_add(POD, ROUTES[POD]))
    assert table.load() is None
