from __future__ import annotations

import re
import sqlite3

import pytest

from codius_node import migrations
from codius_node.errors import StoreError
from codius_node.migrations import MIGRATIONS, Migration, find_pending

HASH = "a" * 52


@pytest.fixture
def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    for step in MIGRATIONS:
        for statement in step.statements:
            connection.execute(statement)
    connection.execute("INSERT INTO manifests VALUES (?, '{}', NULL, 1)", (HASH,))
    return connection


def test_versions_count_from_one_without_gaps() -> None:
    assert [step.version for step in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


def test_no_step_begins_or_ends_a_transaction() -> None:
    for step in MIGRATIONS:
        assert step.statements
        for statement in step.statements:
            assert not re.match(
                r"\s*(BEGIN|COMMIT|END|ROLLBACK|SAVEPOINT|VACUUM)\b", statement, re.IGNORECASE
            )


def test_a_new_database_lacks_every_step_and_a_current_one_none() -> None:
    assert list(find_pending(0)) == list(MIGRATIONS)
    assert list(find_pending(MIGRATIONS[-1].version)) == []


def test_a_database_in_between_lacks_the_later_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    later = tuple(Migration(number, "", ("SELECT 1",)) for number in (2, 3))
    monkeypatch.setattr(migrations, "MIGRATIONS", (MIGRATIONS[0], *later))
    assert list(find_pending(1)) == list(later)


@pytest.mark.parametrize("version", [-1, MIGRATIONS[-1].version + 1, 2**31 - 1])
def test_an_unknown_schema_is_refused_with_a_hint(version: int) -> None:
    with pytest.raises(StoreError, match=f"schema {version},") as caught:
        find_pending(version)
    assert caught.value.hint


def test_every_table_is_strict(database: sqlite3.Connection) -> None:
    tables = {
        name: strict
        for _, name, kind, _, _, strict in database.execute("PRAGMA table_list")
        if kind == "table" and not name.startswith("sqlite_")
    }
    assert tables == dict.fromkeys(
        (
            *("manifests", "pods", "ledger", "peers", "settings", "traffic", "refusals"),
            *("stops", "denials"),
        ),
        1,
    )


POD = f"INSERT INTO pods VALUES ('{HASH}', 'running', 5, 9, '10.0.0.1')"
ENTRY = (
    "INSERT INTO ledger (manifest_hash, kind, seconds, price, currency, scale, rail, token, created_at)"
    f" VALUES ('{HASH}', 'upload', 60, '12', 'XRP', 9, 'free', 't', 5)"
)
PEER = "INSERT INTO peers VALUES ('https://a.example', 5, NULL, 0)"
SETTING = "INSERT INTO settings VALUES ('k', '1', 5)"
TRAFFIC = f"INSERT INTO traffic VALUES ('{HASH}', 1000, 10, 2000, 20, 5)"
REFUSAL = f"INSERT INTO refusals VALUES ('{HASH}', 'host', 3)"
STOP = (
    "INSERT INTO stops (manifest_hash, seconds, reason, public, legal, credit, created_at, ended_at)"
    f" VALUES ('{HASH}', 60, 'why', 0, 1, 1, 5, NULL)"
)
DENIAL = "INSERT INTO denials VALUES ('image', 'docker.io/library/x', 'why', 0, 1, 1, 0, 5)"


@pytest.mark.parametrize("good", [POD, ENTRY, PEER, SETTING, TRAFFIC, STOP, DENIAL])
def test_good_rows_are_taken(database: sqlite3.Connection, good: str) -> None:
    database.execute(good)


@pytest.mark.parametrize(
    ("good", "old", "new"),
    [
        (POD, "'running'", "'asleep'"),
        (POD, "'running'", "NULL"),
        (POD, "5, 9", "9, 5"),
        (POD, "5, 9", "-5, 9"),
        (POD, "5, 9", "5, 'tomorrow'"),
        (POD, "5, 9", "5, 253402300800000000"),
        (POD, "'10.0.0.1'", "NULL"),
        (POD, "'10.0.0.1'", "''"),
        (POD, HASH, "b" * 52),
        (POD, HASH, "short"),
        (ENTRY, "'upload'", "'gift'"),
        (ENTRY, "60", "0"),
        (ENTRY, "60", "-60"),
        (ENTRY, "60", "1.5"),
        (ENTRY, "'12'", "'-12'"),
        (ENTRY, "'12'", "'1.2'"),
        (ENTRY, "'12'", "''"),
        (ENTRY, "9,", "-1,"),
        (ENTRY, "'free'", "''"),
        (ENTRY, "'t'", "''"),
        (PEER, "'https://a.example'", "''"),
        (PEER, "NULL, 0", "NULL, -1"),
        (SETTING, "'1'", "''"),
        (TRAFFIC, "1000", "-1"),
        (TRAFFIC, "10,", "-1,"),
        (TRAFFIC, "2000", "-1"),
        (TRAFFIC, "20,", "-1,"),
        (TRAFFIC, "2000", "'many'"),
        (TRAFFIC, HASH, "short"),
        (STOP, HASH, "short"),
        (STOP, "60", "-60"),
        (STOP, "'why'", "''"),
        (STOP, "0, 1, 1", "2, 1, 1"),
        (STOP, "0, 1, 1", "0, NULL, 1"),
        (STOP, "0, 1, 1", "0, 1, 'yes'"),
        (STOP, "5, NULL", "-5, NULL"),
        (STOP, "5, NULL", "5, -1"),
        (DENIAL, "'image'", "'host'"),
        (DENIAL, "'docker.io/library/x'", "''"),
        (DENIAL, "'why'", "''"),
        (DENIAL, "0, 1, 1, 0", "0, 1, 1, 2"),
    ],
)
def test_bad_rows_are_refused(database: sqlite3.Connection, good: str, old: str, new: str) -> None:
    bad = good.replace(old, new)
    assert bad != good
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(bad)


@pytest.mark.parametrize(("old", "new"), [("'host'", "''"), ("3", "-3"), (HASH, "b" * 52)])
def test_a_refusal_has_a_reason_and_belongs_to_somebodys_traffic(
    database: sqlite3.Connection, old: str, new: str
) -> None:
    database.execute(TRAFFIC)
    database.execute(REFUSAL)
    database.execute("DELETE FROM refusals")
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(REFUSAL.replace(old, new))


def test_traffic_outlives_its_pod(database: sqlite3.Connection) -> None:
    for statement in (POD, TRAFFIC, REFUSAL, "DELETE FROM pods", "DELETE FROM manifests"):
        database.execute(statement)
    assert database.execute("SELECT sent_bytes FROM traffic").fetchall() == [(1000,)]
    assert database.execute("SELECT packets FROM refusals").fetchall() == [(3,)]


@pytest.mark.parametrize("hash", ["a" * 51, "a" * 53, "A" * 52, "1" * 52, "-" * 52])
def test_a_manifest_is_named_by_a_hash(database: sqlite3.Connection, hash: str) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        database.execute("INSERT INTO manifests VALUES (?, '{}', NULL, 1)", (hash,))


def test_two_pods_never_share_an_address(database: sqlite3.Connection) -> None:
    database.execute(POD)
    database.execute("INSERT INTO manifests VALUES (?, '{}', NULL, 1)", ("b" * 52,))
    with pytest.raises(sqlite3.IntegrityError, match=r"pods\.address"):
        database.execute(POD.replace(HASH, "b" * 52))


def test_a_manifest_stays_while_its_pod_does(database: sqlite3.Connection) -> None:
    database.execute(POD)
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        database.execute("DELETE FROM manifests")


def test_a_token_is_in_the_ledger_once_and_no_token_any_number_of_times(database: sqlite3.Connection) -> None:
    database.execute(ENTRY)
    with pytest.raises(sqlite3.IntegrityError, match=r"ledger\.token"):
        database.execute(ENTRY)
    for _ in range(3):
        database.execute(ENTRY.replace("'t'", "NULL"))


@pytest.mark.parametrize("change", ["UPDATE ledger SET price = '0'", "DELETE FROM ledger"])
def test_the_ledger_only_grows(database: sqlite3.Connection, change: str) -> None:
    database.execute(ENTRY)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        database.execute(change)
    assert database.execute("SELECT price FROM ledger").fetchall() == [("12",)]


def test_a_name_is_denied_once(database: sqlite3.Connection) -> None:
    database.execute(DENIAL)
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(DENIAL)
