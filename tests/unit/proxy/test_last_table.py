"""The routes that outlive a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from codius_proxy.last_table import LastTable
from codius_proxy.routes import (
    Notice,
    Snapshot,
    Target,
    render_add,
    render_remove,
    render_snapshot,
    render_stop,
)

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


def test_what_was_noted_since_counts_in_its_order(table: LastTable) -> None:
    table.note(render_remove(POD))
    assert table.load() is None
    table.save(render_snapshot(ROUTES))
    table.note(render_remove(POD))
    assert table.load() == Snapshot({"b" * 52: ROUTES["b" * 52]})
    moved = Target("10.77.0.9", 1)
    for message in (render_add(POD, ROUTES[POD]), render_add(POD, moved), render_add(POD, moved)):
        table.note(message)
    assert table.load() == Snapshot({**ROUTES, POD: moved})
    table.save(render_snapshot({}))
    assert table.load() == Snapshot({})


def test_a_stop_that_was_noted_counts_too(table: LastTable) -> None:
    notice = Notice(False, "A reason.")
    table.save(render_snapshot(ROUTES))
    table.note(render_stop(POD, notice))
    assert table.load() == Snapshot({"b" * 52: ROUTES["b" * 52]}, {POD: notice})


def test_half_of_a_note_takes_no_other_with_it(table: LastTable) -> None:
    table.save(render_snapshot(ROUTES))
    table.note(render_remove(POD))
    table.note(render_remove("b" * 52)[:20])
    assert table.load() == Snapshot({"b" * 52: ROUTES["b" * 52]})


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
