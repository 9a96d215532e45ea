from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import IPv4Address
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codius_netpolicy.traffic import NO_TRAFFIC, Reason, Traffic, Volume, larger
from codius_node import database, migrations
from codius_node.errors import ManifestError, NotFoundError, RequestError, StoreError
from codius_node.lifecycle import TRANSITIONS
from codius_node.migrations import MIGRATIONS, Migration
from codius_node.model import (
    Currency,
    Json,
    Machine,
    Manifest,
    ManifestHash,
    Pod,
    PodState,
    PrivateVariable,
)
from codius_node.session import transaction
from codius_node.store import (
    AddressTakenError,
    EntryKind,
    LedgerEntry,
    PodChangedError,
    Store,
    TokenSpentError,
)
from codius_node.takedown import Terms

NOW = datetime(2025, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
XRP = Currency("XRP", 9)
SECRET = "correct-horse-battery-staple"
NEXT = MIGRATIONS[-1].version + 1
PRIVATE = {"PASSWORD": PrivateVariable(nonce="nonce-0987654321", value=SECRET)}


def name_hash(name: str) -> ManifestHash:
    return ManifestHash(base64.b32encode(hashlib.sha256(name.encode()).digest()).decode().lower().rstrip("="))


def restore(document: Mapping[str, Json]) -> Manifest:
    """Stands for manifest.restore: the name decides the hash."""
    return Manifest(
        hash=name_hash(str(document["name"])),
        name=str(document["name"]),
        version="1.0.0",
        machine=Machine.SMALL,
        port=8080,
        containers=(),
        variables={},
        debug=False,
        document=document,
    )


def make_pod(name: str, address: str = "10.0.0.1", **document: Json) -> Pod:
    manifest = restore({"name": name, "version": "1.0.0", **document})
    return Pod(manifest, PodState.PENDING, NOW, NOW + HOUR, IPv4Address(address))


def make_entry(pod: Pod, token: str | None = None, *, seconds: int = 3600, **values: object) -> LedgerEntry:
    entry = LedgerEntry(pod.hash, EntryKind.UPLOAD, seconds, 14, XRP, "free", NOW, token)
    return replace(entry, **values)  # type: ignore[arg-type]


def make_credit(pod: Pod) -> LedgerEntry:
    return make_entry(pod, kind=EntryKind.CREDIT, price=0, rail="outage")


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Store]:
    store = await Store.open(folder / "codius.db", key_path=folder / "key", restore=restore)
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as store:
        yield store


async def add_running(store: Store, name: str, address: str = "10.0.0.1", token: str | None = None) -> Pod:
    pod = make_pod(name, address)
    await store.add_pod(pod, {})
    return await store.start_pod(pod.hash, expires_at=NOW + HOUR, entry=make_entry(pod, token))


def read(folder: Path, sql: str) -> list[tuple[object, ...]]:
    """What another program sees in the file."""
    connection = sqlite3.connect(folder / "codius.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "key")


# ---- traffic ----------------------------------------------------------------------------------------

ONE, TWO = name_hash("one"), name_hash("two")
MORE = Traffic(Volume(2**62, 2), Volume(30, 3), {Reason.HOST: 4, Reason.RATE: 1})


async def test_traffic_comes_back_as_it_was_saved_also_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.save_traffic({ONE: MORE, TWO: NO_TRAFFIC}, NOW)
    async with opened(tmp_path) as store:
        assert await store.traffic([ONE, TWO, name_hash("three")]) == {ONE: MORE, TWO: NO_TRAFFIC}
        assert await store.traffic([TWO]) == {TWO: NO_TRAFFIC}
        assert await store.traffic([]) == {}


async def test_traffic_outlives_its_pod_in_the_store(store: Store) -> None:
    pod = await add_running(store, "one")
    await store.save_traffic({pod.hash: MORE}, NOW)
    await store.remove_pod(pod.hash)
    assert await store.traffic([pod.hash]) == {pod.hash: MORE}


counts = st.integers(0, 2**63 - 1)
volumes = st.builds(Volume, counts, counts)
traffics = st.builds(
    Traffic, volumes, volumes, st.dictionaries(st.sampled_from(Reason), st.integers(1, 2**63 - 1))
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(readings=st.lists(traffics, min_size=1, max_size=4))
async def test_saved_traffic_never_goes_down_and_is_saved_once(store: Store, readings: list[Traffic]) -> None:
    hash = name_hash(repr(readings))
    expected = NO_TRAFFIC
    for reading in (*readings, *readings):
        await store.save_traffic({hash: reading}, NOW)
        expected = larger(expected, reading)
        assert await store.traffic([hash]) == {hash: expected}


async def test_a_reason_of_another_version_is_kept_and_not_read(store: Store, tmp_path: Path) -> None:
    await store.save_traffic({ONE: MORE}, NOW)
    await store._rows("UPDATE refusals SET reason = 'bad weather' WHERE reason = 'host'")
    assert (await store.traffic([ONE]))[ONE].refused == {Reason.RATE: 1}
    assert (4,) in read(tmp_path, "SELECT packets FROM refusals")


async def test_traffic_that_cannot_be_saved_changes_nothing(store: Store) -> None:
    await store.save_traffic({ONE: MORE}, NOW)
    too_much = Traffic(Volume(2**63, 1), Volume(99, 99), {})
    with pytest.raises(StoreError):
        await store.save_traffic({TWO: MORE, ONE: too_much}, NOW)
    assert await store.traffic([ONE, TWO]) == {ONE: MORE}


# ---- pods -------------------------------------------------------------------------------------------


async def test_a_pod_comes_back_as_it_was_added_also_after_a_restart(tmp_path: Path) -> None:
    pod = make_pod("one", weird={"z": [1, 2.5, None, True], "a": "\U0001f600 \u2028 \ud800"})
    async with opened(tmp_path) as store:
        await store.add_pod(pod, PRIVATE)
        assert await store.find_pod(pod.hash) == pod
    async with opened(tmp_path) as store:
        found = await store.find_pod(pod.hash)
        assert found == pod
        assert found is not None
        assert json.dumps(found.manifest.document) == json.dumps(pod.manifest.document)
        assert await store.pods() == [pod]
        assert await store.private(pod.hash) == PRIVATE
        assert await store.addresses() == {pod.address}


async def test_an_unknown_pod_is_not_found(store: Store) -> None:
    nobody = make_pod("nobody")
    assert await store.find_pod(nobody.hash) is None
    assert await store.pods() == []
    entry = make_entry(nobody)
    with pytest.raises(NotFoundError, match=nobody.hash):
        await store.private(nobody.hash)
    with pytest.raises(NotFoundError):
        await store.start_pod(nobody.hash, expires_at=NOW, entry=entry)
    with pytest.raises(NotFoundError):
        await store.extend_pod(nobody.hash, seconds=3600, entry=entry)
    with pytest.raises(NotFoundError):
        await store.move_expiry(nobody.hash, NOW + HOUR, expected=NOW, entry=make_credit(nobody))
    with pytest.raises(NotFoundError):
        await store.set_state(nobody.hash, PodState.STOPPING, expected=PodState.RUNNING)
    assert await store.ledger() == []


async def test_a_manifest_is_here_once(store: Store) -> None:
    await store.add_pod(make_pod("one"), PRIVATE)
    with pytest.raises(PodChangedError, match="here already") as caught:
        await store.add_pod(make_pod("one", "10.0.0.2"), {})
    assert caught.value.status == 409
    assert await store.private(name_hash("one")) == PRIVATE


async def test_an_address_has_one_pod_and_the_refused_one_leaves_nothing(
    store: Store, tmp_path: Path
) -> None:
    await store.add_pod(make_pod("one"), {})
    with pytest.raises(AddressTakenError, match=r"10\.0\.0\.1"):
        await store.add_pod(make_pod("two"), PRIVATE)
    assert read(tmp_path, "SELECT count(*) FROM manifests") == [(1,)]
    await store.remove_pod(name_hash("one"))
    await store.add_pod(make_pod("two"), {})


async def test_a_pod_is_added_as_pending_only(store: Store) -> None:
    with pytest.raises(ValueError, match="pending"):
        await store.add_pod(replace(make_pod("one"), state=PodState.RUNNING), {})


async def test_pods_come_oldest_first_and_by_state(store: Store) -> None:
    late = replace(make_pod("late"), created_at=NOW + timedelta(seconds=1))
    early = replace(make_pod("early", "10.0.0.2"), created_at=NOW - timedelta(seconds=1))
    for pod in (late, early):
        await store.add_pod(pod, {})
    await store.start_pod(late.hash, expires_at=NOW + HOUR, entry=make_entry(late))
    assert [pod.manifest.name for pod in await store.pods()] == ["early", "late"]
    assert [pod.manifest.name for pod in await store.pods(PodState.PENDING)] == ["early"]
    assert len(await store.pods(PodState.PENDING, PodState.RUNNING)) == 2
    assert await store.pods(PodState.STOPPING) == []


async def test_a_large_manifest_is_restored_from_its_row_each_time(store: Store) -> None:
    pod = make_pod("large", filler="x" * 100_000)
    await store.add_pod(pod, {})
    first, second = await store.find_pod(pod.hash), await store.find_pod(pod.hash)
    assert first is not None
    assert second is not None
    assert first == second == pod
    assert first.manifest is not second.manifest


async def test_a_small_manifest_is_restored_once_and_forgotten_with_its_pod(tmp_path: Path) -> None:
    calls = []

    def counted(document: Mapping[str, Json]) -> Manifest:
        calls.append(document["name"])
        return restore(document)

    store = await Store.open(tmp_path / "db", key_path=tmp_path / "key", restore=counted)
    await store.add_pod(make_pod("one", note="first"), {})
    for _ in range(3):
        assert len(await store.pods()) == 1
    assert calls == ["one"]
    await store.remove_pod(name_hash("one"))
    await store.add_pod(make_pod("one", note="second"), {})
    [pod] = await store.pods()
    assert pod.manifest.document["note"] == "second"
    await store.aclose()


async def test_times_are_kept_to_the_microsecond_and_given_back_in_utc(store: Store) -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    pod = replace(
        make_pod("one"), created_at=NOW.astimezone(east), expires_at=datetime.max.replace(tzinfo=UTC)
    )
    await store.add_pod(pod, {})
    found = await store.find_pod(pod.hash)
    assert found == pod
    assert found is not None
    assert found.created_at.tzinfo is UTC


async def test_a_time_without_its_zone_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="zone"):
        await store.add_pod(replace(make_pod("one"), created_at=datetime(2025, 1, 1)), {})
    assert await store.pods() == []


# ---- money ------------------------------------------------------------------------------------------


async def test_a_pod_starts_together_with_its_ledger_entry(store: Store) -> None:
    pod = make_pod("one")
    await store.add_pod(pod, {})
    entry = make_entry(pod, "token-1", price=10**30)
    started = await store.start_pod(pod.hash, expires_at=NOW + 2 * HOUR, entry=entry)
    assert started == replace(pod, state=PodState.RUNNING, expires_at=NOW + 2 * HOUR)
    assert await store.find_pod(pod.hash) == started
    assert await store.ledger() == [replace(entry, id=1)]
    assert await store.find_entry("token-1") == replace(entry, id=1)
    assert await store.find_entry("token-2") is None


async def test_a_spent_token_starts_nothing(store: Store) -> None:
    await add_running(store, "one", token="token-1")
    pod = make_pod("two", "10.0.0.2")
    await store.add_pod(pod, {})
    with pytest.raises(TokenSpentError) as caught:
        await store.start_pod(pod.hash, expires_at=NOW + HOUR, entry=make_entry(pod, "token-1"))
    assert caught.value.status == 402
    assert caught.value.hint
    assert "token-1" not in str(caught.value)
    found = await store.find_pod(pod.hash)
    assert found == pod
    assert len(await store.ledger()) == 1


async def test_a_spent_token_extends_nothing(store: Store) -> None:
    pod = await add_running(store, "one", token="token-1")
    with pytest.raises(TokenSpentError):
        await store.extend_pod(pod.hash, seconds=3600, entry=make_entry(pod, "token-1"))
    assert await store.find_pod(pod.hash) == pod


async def test_a_token_stays_spent_after_its_pod_is_gone(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await add_running(store, "one", token="token-1")
        await store.remove_pod(name_hash("one"))
    async with opened(tmp_path) as store:
        assert [entry.token for entry in await store.ledger(name_hash("one"))] == ["token-1"]
        with pytest.raises(TokenSpentError):
            await add_running(store, "one", token="token-1")


async def test_free_pods_have_no_token_to_spend(store: Store) -> None:
    await add_running(store, "one")
    await add_running(store, "two", "10.0.0.2")
    assert [entry.token for entry in await store.ledger()] == [None, None]


async def test_a_pod_starts_once(store: Store) -> None:
    pod = await add_running(store, "one", token="token-1")
    with pytest.raises(PodChangedError, match="is running, not pending"):
        await store.start_pod(pod.hash, expires_at=NOW + 9 * HOUR, entry=make_entry(pod, "token-2"))
    assert await store.find_pod(pod.hash) == pod
    assert len(await store.ledger()) == 1


async def test_an_extension_counts_from_the_old_expiry(store: Store) -> None:
    pod = await add_running(store, "one")
    entry = make_entry(pod, "token-1", kind=EntryKind.EXTENSION, seconds=60)
    extended = await store.extend_pod(pod.hash, seconds=60, entry=entry)
    assert extended == replace(pod, expires_at=pod.expires_at + timedelta(seconds=60))
    assert [entry.kind for entry in await store.ledger(pod.hash)] == [EntryKind.EXTENSION, EntryKind.UPLOAD]


@pytest.mark.parametrize("state", [PodState.PENDING, PodState.STOPPING])
async def test_only_a_running_pod_is_extended(store: Store, state: PodState) -> None:
    pod = make_pod("one")
    await store.add_pod(pod, {})
    if state is PodState.STOPPING:
        await store.set_state(pod.hash, state, expected=PodState.PENDING)
    with pytest.raises(PodChangedError, match=state):
        await store.extend_pod(pod.hash, seconds=3600, entry=make_entry(pod, "token-1"))
    assert await store.find_entry("token-1") is None


@pytest.mark.parametrize("seconds", [0, -1, -3600])
async def test_an_extension_never_shortens(store: Store, seconds: int) -> None:
    pod = await add_running(store, "one")
    with pytest.raises(ValueError, match="longer"):
        await store.extend_pod(pod.hash, seconds=seconds, entry=make_entry(pod, seconds=seconds))
    assert await store.find_pod(pod.hash) == pod


@pytest.mark.parametrize("seconds", [10**12, 10**30])
async def test_an_extension_past_the_calendar_is_refused_before_it_is_paid(
    store: Store, seconds: int
) -> None:
    pod = await add_running(store, "one")
    with pytest.raises(RequestError, match="9999"):
        await store.extend_pod(pod.hash, seconds=seconds, entry=make_entry(pod, "token-1", seconds=seconds))
    assert await store.find_entry("token-1") is None


async def test_an_entry_belongs_to_its_pod_and_says_how_long(store: Store) -> None:
    pod = await add_running(store, "one")
    other = make_pod("two")
    with pytest.raises(ValueError, match="belongs"):
        await store.extend_pod(pod.hash, seconds=3600, entry=make_entry(other))
    with pytest.raises(ValueError, match="how long"):
        await store.extend_pod(pod.hash, seconds=60, entry=make_entry(pod, seconds=61))
    assert len(await store.ledger()) == 1


async def test_an_outage_is_given_back_once(store: Store) -> None:
    pod = await add_running(store, "one")
    later = pod.expires_at + timedelta(seconds=90)
    for _ in range(2):
        moved = await store.move_expiry(pod.hash, later, expected=pod.expires_at, entry=make_credit(pod))
        assert moved.expires_at == later
    assert [entry.kind for entry in await store.ledger()] == [EntryKind.CREDIT, EntryKind.UPLOAD]


async def test_an_extension_meanwhile_is_not_lost_to_a_credit(store: Store) -> None:
    pod = await add_running(store, "one")
    extended = await store.extend_pod(pod.hash, seconds=60, entry=make_entry(pod, seconds=60))
    with pytest.raises(PodChangedError, match="moved meanwhile"):
        await store.move_expiry(
            pod.hash, pod.expires_at + 2 * HOUR, expected=pod.expires_at, entry=make_credit(pod)
        )
    assert await store.find_pod(pod.hash) == extended


async def test_a_credit_never_shortens(store: Store) -> None:
    pod = await add_running(store, "one")
    with pytest.raises(ValueError, match="longer"):
        await store.move_expiry(pod.hash, NOW, expected=pod.expires_at, entry=make_credit(pod))


async def test_the_ledger_is_newest_first_and_bounded(store: Store) -> None:
    one, two = await add_running(store, "one"), await add_running(store, "two", "10.0.0.2")
    for _ in range(3):
        await store.extend_pod(one.hash, seconds=60, entry=make_entry(one, seconds=60))
    assert [entry.id for entry in await store.ledger()] == [5, 4, 3, 2, 1]
    assert [entry.id for entry in await store.ledger(limit=2)] == [5, 4]
    assert [entry.id for entry in await store.ledger(two.hash)] == [2]
    assert await store.ledger(limit=-1) == []


# ---- states and removal -----------------------------------------------------------------------------


async def test_of_two_who_stop_a_pod_one_is_told_so(store: Store) -> None:
    pod = await add_running(store, "one")
    results = await asyncio.gather(
        *(store.set_state(pod.hash, PodState.STOPPING, expected=PodState.RUNNING) for _ in range(2)),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "PodChangedError"]


async def test_nothing_gets_to_running_around_the_ledger(store: Store) -> None:
    await store.add_pod(make_pod("one"), {})
    with pytest.raises(ValueError, match="start_pod"):
        await store.set_state(name_hash("one"), PodState.RUNNING, expected=PodState.PENDING)


@pytest.mark.parametrize("old", list(PodState))
async def test_only_transitions_of_the_table_are_made(store: Store, old: PodState) -> None:
    for new in set(PodState) - TRANSITIONS[old] - {PodState.RUNNING}:
        with pytest.raises(ValueError, match=f"no pod goes from {old} to {new}"):
            await store.set_state(name_hash("one"), new, expected=old)


async def test_removal_leaves_the_ledger_only_and_may_run_twice(store: Store, tmp_path: Path) -> None:
    pod = make_pod("one")
    await store.add_pod(pod, PRIVATE)
    await store.start_pod(pod.hash, expires_at=NOW + HOUR, entry=make_entry(pod))
    for _ in range(2):
        await store.remove_pod(pod.hash)
    assert await store.find_pod(pod.hash) is None
    assert await store.addresses() == set()
    assert read(tmp_path, "SELECT count(*) FROM manifests") == [(0,)]
    assert len(await store.ledger(pod.hash)) == 1
    with pytest.raises(NotFoundError):
        await store.private(pod.hash)


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_removed_private_value_is_gone_from_the_files_even_as_ciphertext(
    store: Store, tmp_path: Path, size: int
) -> None:
    pod = make_pod("one")
    await store.add_pod(pod, {"BIG": PrivateVariable("n", "v" * size)})
    [(locked,)] = read(tmp_path, "SELECT private FROM manifests")
    traces = [
        cast(bytes, locked)[start : start + 24] for start in range(0, len(cast(bytes, locked)) - 24, 997)
    ]
    assert any(trace in all_bytes(tmp_path) for trace in traces)
    await store.remove_pod(pod.hash)
    assert not any(trace in all_bytes(tmp_path) for trace in traces)


async def test_a_reader_who_holds_the_log_delays_the_scrubbing_and_not_the_removal(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.add_pod(make_pod("one"), PRIVATE)
    await store._rows("PRAGMA busy_timeout = 1")
    reader = sqlite3.connect(tmp_path / "codius.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM pods").fetchall()
    await store.remove_pod(name_hash("one"))
    reader.close()
    assert await store.pods() == []
    assert "removed rows stay in its log" in caplog.text


# ---- secrets ----------------------------------------------------------------------------------------


async def test_private_values_are_in_no_file_no_log_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    forbidden = (SECRET, "nonce-0987654321", "token-very-secret")
    pod = make_pod("one")
    async with opened(tmp_path) as store:
        await store.add_pod(pod, PRIVATE)
        entry = make_entry(pod, "token-very-secret")
        started = await store.start_pod(pod.hash, expires_at=NOW + HOUR, entry=entry)
        private = await store.private(pod.hash)
        assert private == PRIVATE
        errors = []
        for attempt in (
            store.add_pod(pod, PRIVATE),
            store.extend_pod(pod.hash, seconds=3600, entry=entry),
        ):
            with pytest.raises(StoreError) as caught:
                await attempt
            errors.append(repr(caught.value) + str(caught.value.__cause__) + str(caught.value.hint))
        await store._rows("UPDATE manifests SET private = ?", b"\x01" + bytes(60))
        with pytest.raises(StoreError, match="cannot be decrypted") as refused:
            await store.private(pod.hash)
        shown = [repr(store), repr(entry), repr(started), repr(private), caplog.text, repr(refused.value)]
        assert (tmp_path / "codius.db-wal").stat().st_size > 0
        while_open = all_bytes(tmp_path)
    for word in forbidden[:2]:
        assert word.encode() not in while_open
        assert word.encode() not in all_bytes(tmp_path)
        assert base64.b64encode(word.encode()) not in while_open
    for word in forbidden:
        assert word not in "".join(shown + errors)


async def test_a_pod_without_private_values_has_none_and_needs_no_cipher(
    store: Store, tmp_path: Path
) -> None:
    await store.add_pod(make_pod("one"), {})
    assert await store.private(name_hash("one")) == {}
    assert read(tmp_path, "SELECT private FROM manifests") == [(None,)]


async def test_the_files_are_for_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "var" / "codius"
    old = os.umask(0o022)
    try:
        async with opened(folder) as store:
            await store.add_pod(make_pod("one"), PRIVATE)
            modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    finally:
        os.umask(old)
    assert set(modes) == {"codius.db", "codius.db-wal", "codius.db-shm", "key"}
    assert set(modes.values()) == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


async def test_a_missing_key_is_not_replaced_while_something_is_locked_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add_pod(make_pod("one"), PRIVATE)
    (tmp_path / "key").unlink()
    with pytest.raises(StoreError, match="is missing") as caught:
        async with opened(tmp_path):
            pass
    assert caught.value.hint
    assert not (tmp_path / "key").exists()


async def test_a_missing_key_is_made_anew_when_nothing_is_locked(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add_pod(make_pod("one"), {})
    (tmp_path / "key").unlink()
    async with opened(tmp_path) as store:
        await store.add_pod(make_pod("two", "10.0.0.2"), PRIVATE)
        assert await store.private(name_hash("two")) == PRIVATE


async def test_a_key_open_to_others_stops_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(StoreError, match="open to others"):
        async with opened(tmp_path):
            pass


# ---- peers and settings -----------------------------------------------------------------------------


async def test_peers_are_counted_once_and_sampled(store: Store) -> None:
    uris = [f"https://host{number}.example" for number in range(10)]
    assert await store.add_peers(uris, NOW) == 10
    assert await store.add_peers([*uris[:3], "https://new.example"], NOW) == 1
    assert await store.add_peers([], NOW) == 0
    assert await store.count_peers() == 11
    sample = await store.sample_peers(4)
    assert len(set(sample)) == 4
    assert set(sample) <= {*uris, "https://new.example"}
    assert len(await store.sample_peers(100)) == 11
    assert await store.sample_peers(-1) == []


async def test_samples_differ(store: Store) -> None:
    await store.add_peers([f"https://host{number}.example" for number in range(50)], NOW)
    samples = {tuple(await store.sample_peers(10)) for _ in range(5)}
    assert len(samples) > 1


async def test_all_peers_are_told_with_their_failures_and_can_be_forgotten(store: Store) -> None:
    await store.add_peers(["https://a.example", "https://b.example"], NOW)
    await store.note_peer("https://a.example", ok=False, now=NOW)
    assert await store.peers() == {"https://a.example": 1, "https://b.example": 0}
    await store.remove_peer("https://a.example")
    await store.remove_peer("https://unknown.example")
    assert await store.peers() == {"https://b.example": 0}
    await store.add_peers(["https://a.example"], NOW)
    assert (await store.peers())["https://a.example"] == 0


async def test_a_peers_failures_are_counted_until_it_answers(store: Store, tmp_path: Path) -> None:
    await store.add_peers(["https://a.example"], NOW)
    await store.note_peer("https://a.example", False, NOW)
    await store.note_peer("https://a.example", False, NOW)
    assert read(tmp_path, "SELECT failures, last_seen_at FROM peers") == [(2, None)]
    await store.note_peer("https://a.example", True, NOW)
    [(failures, seen)] = read(tmp_path, "SELECT failures, last_seen_at FROM peers")
    assert failures == 0
    assert seen == int(NOW.timestamp()) * 1_000_000 + 123456
    await store.note_peer("https://unknown.example", True, NOW)
    assert await store.count_peers() == 1


@pytest.mark.parametrize("value", [10, "10.5", {"a": [1, None, {"b": "\u2028"}]}, True, [], None])
async def test_a_setting_survives_a_restart(tmp_path: Path, value: Json) -> None:
    async with opened(tmp_path) as store:
        assert await store.get_setting("price") is None
        await store.set_setting("price", "first", NOW)
        await store.set_setting("price", value, NOW)
    async with opened(tmp_path) as store:
        assert await store.get_setting("price") == value
        for _twice in range(2):
            await store.remove_setting("price")
            assert await store.get_setting("price") is None


# ---- many at once -----------------------------------------------------------------------------------


async def test_many_coroutines_at_once_do_not_get_into_each_others_transactions(store: Store) -> None:
    async def live(number: int) -> None:
        pod = make_pod(f"pod {number}", f"10.0.{number // 200}.{number % 200 + 1}")
        await store.add_pod(pod, PRIVATE if number % 5 == 0 else {})
        await store.start_pod(pod.hash, expires_at=NOW + HOUR, entry=make_entry(pod, f"token {number}"))
        with pytest.raises(TokenSpentError):  # a rollback among the others' statements
            await store.extend_pod(pod.hash, seconds=3600, entry=make_entry(pod, f"token {number}"))
        for _ in range(3):
            await store.extend_pod(pod.hash, seconds=3600, entry=make_entry(pod))
            await store.find_pod(pod.hash)
        if number % 2:
            await store.remove_pod(pod.hash)

    await asyncio.gather(*(live(number) for number in range(40)))
    pods = await store.pods(PodState.RUNNING)
    assert len(pods) == 20
    assert {pod.expires_at for pod in pods} == {NOW + 4 * HOUR}
    assert len(await store.ledger(limit=1000)) == 160


async def test_one_token_used_by_many_at_once_is_claimed_once(store: Store) -> None:
    pod = await add_running(store, "one")
    results = await asyncio.gather(
        *(store.extend_pod(pod.hash, seconds=3600, entry=make_entry(pod, "token")) for _ in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Pod) for result in results) == 1
    assert sum(isinstance(result, TokenSpentError) for result in results) == 19
    found = await store.find_pod(pod.hash)
    assert found is not None
    assert found.expires_at == pod.expires_at + HOUR


async def test_nobody_reads_or_writes_in_the_middle_of_a_transaction(store: Store) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    @transaction
    async def change_and_regret(store: Store) -> None:
        await store._rows("INSERT INTO settings VALUES ('price', '10', 1)")
        reached.set()
        await go_on.wait()
        raise StoreError("regretted")

    regretter = asyncio.create_task(change_and_regret(store))
    await reached.wait()
    reader = asyncio.create_task(store.get_setting("price"))
    writer = asyncio.create_task(store.set_setting("other", 1, NOW))
    early, _ = await asyncio.wait({reader, writer}, timeout=0.05)
    go_on.set()
    with pytest.raises(StoreError, match="regretted"):
        await regretter
    assert await reader is None
    await writer
    assert early == set()
    assert await store.get_setting("other") == 1


@pytest.mark.parametrize("cancels", [1, 2, 3])
async def test_a_cancelled_caller_leaves_all_or_nothing(store: Store, cancels: int) -> None:
    pod = await add_running(store, "one")
    for turns in range(60):
        task = asyncio.create_task(store.extend_pod(pod.hash, seconds=3600, entry=make_entry(pod)))
        for _ in range(turns):
            await asyncio.sleep(0)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0)
        # Whoever comes next finds no transaction open, and time and ledger agree.
        extended = await store.extend_pod(pod.hash, seconds=3600, entry=make_entry(pod))
        await asyncio.wait([task])
        assert extended.expires_at == NOW + len(await store.ledger(limit=1000)) * HOUR


async def test_a_caller_cancelled_while_waiting_in_line_has_changed_nothing(store: Store) -> None:
    pod = await add_running(store, "one")
    tasks = [
        asyncio.create_task(store.extend_pod(pod.hash, seconds=3600, entry=make_entry(pod, f"token {n}")))
        for n in range(5)
    ]
    await asyncio.sleep(0)
    tasks[3].cancel()
    await asyncio.wait(tasks)
    assert await store.find_entry("token 3") is None
    assert await store.find_entry("token 4") is not None


async def test_closing_waits_for_the_transaction_under_way(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        pod = await add_running(store, "one")
        task = asyncio.create_task(store.extend_pod(pod.hash, seconds=3600, entry=make_entry(pod)))
        await asyncio.sleep(0)
        await store.aclose()
        assert (await task).expires_at == NOW + 2 * HOUR
    assert read(tmp_path, "SELECT count(*) FROM ledger") == [(2,)]


async def test_a_closed_store_says_so_and_closes_twice(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.aclose()
        with pytest.raises(StoreError, match="closed"):
            await store.pods()
        with pytest.raises(StoreError, match="closed"):
            await store.set_setting("a", 1, NOW)
    assert {path.name for path in tmp_path.iterdir()} == {"codius.db", "key"}


# ---- the file ---------------------------------------------------------------------------------------


async def test_commits_are_durable_and_references_are_checked(store: Store) -> None:
    async def ask(pragma: str) -> object:
        [row] = await store._rows(f"PRAGMA {pragma}")
        return row[pragma]

    assert await ask("journal_mode") == "wal"
    assert await ask("synchronous") == 2
    assert await ask("foreign_keys") == 1
    assert await ask("secure_delete") == 1


async def test_an_older_database_is_migrated_and_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with opened(tmp_path) as store:
        await add_running(store, "one")
    step = Migration(NEXT, "a note for each peer", ("ALTER TABLE peers ADD COLUMN note TEXT",))
    monkeypatch.setattr(migrations, "MIGRATIONS", (*MIGRATIONS, step))
    async with opened(tmp_path) as store:
        assert len(await store.pods()) == 1
    assert read(tmp_path, "PRAGMA user_version") == [(NEXT,)]
    assert read(tmp_path, "SELECT note FROM peers") == []
    assert "a note for each peer" in caplog.text


async def test_a_migration_that_fails_in_the_middle_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:
        await add_running(store, "one")
    broken = Migration(
        NEXT, "broken", ("CREATE TABLE half (a TEXT) STRICT", "INSERT INTO nowhere VALUES (1)")
    )
    monkeypatch.setattr(migrations, "MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises(StoreError, match="nowhere"):
        async with opened(tmp_path):
            pass
    monkeypatch.undo()
    assert read(tmp_path, "PRAGMA user_version") == [(NEXT - 1,)]
    assert read(tmp_path, "SELECT name FROM sqlite_schema WHERE name = 'half'") == []
    async with opened(tmp_path) as store:
        assert len(await store.pods()) == 1


async def test_two_nodes_that_open_a_new_database_at_once_migrate_it_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as first, opened(tmp_path) as second:
        await add_running(first, "one")
        assert len(await second.pods()) == 1
    stores = await asyncio.gather(
        *(Store.open(tmp_path / "new.db", key_path=tmp_path / "new.key", restore=restore) for _ in range(4))
    )
    for store in stores:
        await store.aclose()


async def test_a_new_database_that_another_node_has_in_hand_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[str] = []
    other = sqlite3.connect(tmp_path / "codius.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def asked(connection: database.Connection, sql: str, *values: str | bytes | int | None) -> object:
        try:
            return await query(connection, sql, *values)
        except sqlite3.OperationalError:
            busy.append(sql)
            other.execute("COMMIT")
            raise

    query = database.query
    monkeypatch.setattr(database, "query", asked)
    async with opened(tmp_path) as store:
        assert await store.pods() == []
    other.close()
    assert busy == ["PRAGMA journal_mode = WAL"]


async def test_a_new_database_that_another_program_keeps_is_given_up_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT", 0.05)
    other = sqlite3.connect(tmp_path / "codius.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another program holds the database"):
        async with opened(tmp_path):
            pass
    other.close()


async def test_a_newer_database_is_refused_untouched(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store._rows("PRAGMA user_version = 99")
    before = (tmp_path / "codius.db").read_bytes()
    with pytest.raises(StoreError, match="schema 99") as caught:
        async with opened(tmp_path):
            pass
    assert caught.value.hint
    assert (tmp_path / "codius.db").read_bytes() == before


async def test_a_database_of_another_program_is_refused_untouched(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "codius.db")
    connection.execute("CREATE TABLE bookmarks (uri TEXT)")
    connection.close()
    before = (tmp_path / "codius.db").read_bytes()
    with pytest.raises(StoreError, match="another program"):
        async with opened(tmp_path):
            pass
    assert (tmp_path / "codius.db").read_bytes() == before
    assert not (tmp_path / "key").exists()


async def test_a_file_that_is_no_database_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "codius.db").write_bytes(b"this is not a database, and long enough to be sure" * 100)
    with pytest.raises(StoreError, match="damaged") as caught:
        async with opened(tmp_path):
            pass
    assert caught.value.hint is not None
    assert "backup" in caught.value.hint


async def test_damaged_pages_are_found_at_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number in range(40):
            await store.add_pod(make_pod(f"pod {number}", f"10.0.0.{number + 1}", filler="x" * 2000), {})
    path = tmp_path / "codius.db"
    content = bytearray(path.read_bytes())
    for page in range(8, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match="damaged"):
        async with opened(tmp_path):
            pass


async def test_damage_while_running_is_a_store_error_with_a_hint(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add_pod(make_pod("one"), {})
        await store._rows('UPDATE manifests SET document = \'{"name": "another"}\'')
        with pytest.raises(StoreError, match="is damaged") as caught:
            await store.pods()
        assert caught.value.hint


async def test_a_manifest_that_cannot_be_restored_is_a_store_error(tmp_path: Path) -> None:
    def refuse(document: Mapping[str, Json]) -> Manifest:
        raise ManifestError("no such machine")

    store = await Store.open(tmp_path / "db", key_path=tmp_path / "key", restore=refuse)
    await store.add_pod(make_pod("one"), {})
    with pytest.raises(StoreError, match="no such machine") as caught:
        await store.pods()
    assert caught.value.status == 503
    await store.aclose()


async def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be created") as caught:
        async with opened(tmp_path / "file" / "codius"):
            pass
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="cannot be created"):
            async with opened(tmp_path):
                pass
    finally:
        tmp_path.chmod(0o700)


async def test_a_folder_in_the_place_of_the_database_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "codius.db").mkdir()
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        async with opened(tmp_path):
            pass
    assert caught.value.hint


async def test_a_full_disk_is_a_store_error_undoes_everything_and_passes(store: Store) -> None:
    await store.add_pod(make_pod("one"), {})
    [row] = await store._rows("PRAGMA page_count")
    # SQLite's own limit fails in the same place and with the same code as a disk without space.
    await store._rows(f"PRAGMA max_page_count = {row['page_count']}")
    large = make_pod("two", "10.0.0.2", filler="x" * 100_000)
    with pytest.raises(StoreError, match=r"disk of .* is full") as caught:
        await store.add_pod(large, PRIVATE)
    assert caught.value.hint is not None
    assert "df -h" in caught.value.hint
    assert len(await store.pods()) == 1
    await store._rows("PRAGMA max_page_count = 1000000")
    await store.add_pod(large, PRIVATE)


async def test_a_read_only_database_is_a_store_error(store: Store) -> None:
    await store._rows("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="cannot be written") as caught:
        await store.set_setting("a", 1, NOW)
    assert caught.value.hint


async def test_another_program_that_holds_the_database_is_named_and_goes_away(
    store: Store, tmp_path: Path
) -> None:
    await store._rows("PRAGMA busy_timeout = 1")
    shell = sqlite3.connect(tmp_path / "codius.db", isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another program holds"):
        await store.set_setting("a", 1, NOW)
    shell.execute("ROLLBACK")
    shell.close()
    await store.set_setting("a", 1, NOW)


async def test_values_that_no_database_takes_are_a_store_error_without_the_value(store: Store) -> None:
    with pytest.raises(StoreError, match="does not fit") as caught:
        await store.find_entry("\ud800 from a stranger")
    assert caught.value.__cause__ is None
    with pytest.raises(StoreError, match="does not fit"):
        await store.sample_peers(2**70)


# ---- properties -------------------------------------------------------------------------------------

NAMES = ("one", "two", "three")
ADDRESSES = ("10.0.0.1", "10.0.0.2")
TOKENS = (None, "t1", "t2", "t3", "t4")
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(NAMES), st.sampled_from(ADDRESSES)),
        st.tuples(st.just("start"), st.sampled_from(NAMES), st.sampled_from(TOKENS)),
        st.tuples(
            st.just("extend"), st.sampled_from(NAMES), st.sampled_from(TOKENS), st.integers(-10, 10**13)
        ),
        st.tuples(st.just("credit"), st.sampled_from(NAMES), st.integers(-(10**6), 10**6)),
        st.tuples(st.just("stop"), st.sampled_from(NAMES)),
        st.tuples(st.just("take down"), st.sampled_from(NAMES), st.booleans()),
        st.tuples(st.just("remove"), st.sampled_from(NAMES)),
        st.tuples(st.just("reopen")),
    ),
    max_size=25,
)


async def perform(store: Store, operation: tuple[object, ...]) -> None:
    kind, name, *rest = operation
    pod = make_pod(str(name))
    match kind:
        case "add":
            await store.add_pod(make_pod(str(name), str(rest[0])), PRIVATE)
        case "start":
            entry = make_entry(pod, cast("str | None", rest[0]))
            await store.start_pod(pod.hash, expires_at=NOW + HOUR, entry=entry)
        case "extend":
            token, seconds = cast("tuple[str | None, int]", rest)
            await store.extend_pod(pod.hash, seconds=seconds, entry=make_entry(pod, token, seconds=seconds))
        case "credit":
            found = await store.find_pod(pod.hash)
            expected = NOW + HOUR if found is None else found.expires_at
            later = expected + timedelta(seconds=cast(int, rest[0]))
            await store.move_expiry(pod.hash, later, expected=expected, entry=make_credit(pod))
        case "stop":
            await store.set_state(pod.hash, PodState.STOPPING, expected=PodState.RUNNING)
        case "take down":
            await store.stop_pod(pod.hash, Terms("why", credit=cast(bool, rest[0])), NOW)
        case "remove":
            await store.remove_pod(pod.hash)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=OPERATIONS)
def test_whatever_is_done_the_books_stay_right(operations: list[tuple[object, ...]]) -> None:
    async def scenario(folder: Path) -> None:
        store = await Store.open(folder / "db", key_path=folder / "key", restore=restore)
        try:
            ledger: list[LedgerEntry] = []
            pods: dict[ManifestHash, Pod] = {}
            for operation in operations:
                refused = False
                if operation[0] == "reopen":
                    await store.aclose()
                    store = await Store.open(folder / "db", key_path=folder / "key", restore=restore)
                else:
                    try:
                        await perform(store, operation)
                    except (StoreError, NotFoundError, RequestError, ValueError, OverflowError):
                        refused = True
                now_ledger = list(reversed(await store.ledger(limit=1000)))
                now_pods = {pod.hash: pod for pod in await store.pods()}
                # The ledger only grows, by one entry and a held credit at most, and never for a refusal.
                assert now_ledger[: len(ledger)] == ledger
                new = [entry.kind for entry in now_ledger[len(ledger) :]]
                assert new in (
                    [],
                    [EntryKind.UPLOAD],
                    [EntryKind.CREDIT],
                    [EntryKind.UPLOAD, EntryKind.CREDIT],
                )
                assert not (refused and new)
                tokens = [entry.token for entry in now_ledger if entry.token is not None]
                assert len(tokens) == len(set(tokens))
                # A refusal and a restart change nothing; nothing makes a running pod's time shorter.
                if refused or operation[0] == "reopen":
                    assert now_pods == pods
                for hash, pod in now_pods.items():
                    before = pods.get(hash)
                    if before is not None and before.state is PodState.RUNNING:
                        assert pod.expires_at >= before.expires_at
                        assert pod.state is not PodState.PENDING
                    assert await store.private(hash) == PRIVATE
                assert len({pod.address for pod in now_pods.values()}) == len(now_pods)
                assert await store.addresses() == {pod.address for pod in now_pods.values()}
                ledger, pods = now_ledger, now_pods
        finally:
            await store.aclose()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))


# ---- crashes ----------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from pathlib import Path
from tests.unit.node import test_store

asyncio.run(test_store.write_for_ever(Path(sys.argv[1]), lanes=3))
"""

DYING_WRITERS = """
import asyncio, os, signal, sys
from pathlib import Path
from codius_node.store import Store
from tests.unit.node import test_store

rows = Store._rows

def die_before(number):
    left = number
    async def counted(self, sql, *values):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return await rows(self, sql, *values)
    return counted

for number in range(1, int(sys.argv[2]) + 1):
    child = os.fork()
    if child == 0:
        folder = Path(sys.argv[1]) / str(number)
        folder.mkdir()
        Store._rows = die_before(number)
        asyncio.run(test_store.write_for_ever(folder, lanes=1))
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


async def write_for_ever(folder: Path, lanes: int) -> None:
    """Lanes of pods that come, are extended and sometimes go; each line is a promise kept."""

    async def live(store: Store, lane: int) -> None:
        for number in range(1_000_000):
            pod = make_pod(f"{lane}-{number}", f"10.{lane}.{number // 200 % 200}.{number % 200 + 1}")
            await store.add_pod(pod, PRIVATE)
            entry = make_entry(pod, f"{lane}/{number}")
            await store.start_pod(pod.hash, expires_at=NOW + HOUR, entry=entry)
            await store.extend_pod(pod.hash, seconds=3600, entry=make_entry(pod))
            print(pod.hash, flush=True)
            if number % 3 == 0:
                await store.remove_pod(pod.hash)

    async with opened(folder) as store:
        await asyncio.gather(*(live(store, lane) for lane in range(lanes)))


def start_writer(code: str, *args: object) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
    )


async def check_books(folder: Path, promised: list[str]) -> None:
    async with opened(folder) as store:
        assert [tuple(row) for row in await store._rows("PRAGMA integrity_check")] == [("ok",)]
        assert await store._rows("PRAGMA foreign_key_check") == []
        hours = Counter(entry.manifest_hash for entry in await store.ledger(limit=10**6))
        for hash in promised:
            assert hours[ManifestHash(hash)] == 2
        for pod in await store.pods():
            assert await store.private(pod.hash) == PRIVATE
            if pod.state is PodState.PENDING:
                assert hours[pod.hash] == 0
            else:
                assert pod.expires_at == NOW + hours[pod.hash] * HOUR
        # And it goes on from there.
        await add_running(store, "after the crash", "10.9.9.9")


@pytest.mark.parametrize("lines", [1, 40])
async def test_a_killed_writer_has_kept_every_promise(tmp_path: Path, lines: int) -> None:
    with start_writer(WRITER, tmp_path) as process:
        assert process.stdout is not None
        try:
            promised = [process.stdout.readline().strip() for _ in range(lines)]
        finally:
            process.send_signal(signal.SIGKILL)
        promised += [line.strip() for line in process.stdout if line.endswith("\n")]
    assert process.returncode == -signal.SIGKILL
    assert all(promised)
    await check_books(tmp_path, promised)


async def test_a_writer_killed_before_any_statement_leaves_whole_transactions(tmp_path: Path) -> None:
    statements = 27  # add, start, extend and remove one pod, and into the next
    with start_writer(DYING_WRITERS, tmp_path, statements) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    for number in range(1, statements + 1):
        await check_books(tmp_path / str(number), [])
