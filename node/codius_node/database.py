"""The SQLite file: opened, checked, migrated; what SQLite refuses is explained. The door for aiosqlite."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import aiosqlite

from codius_node import migrations
from codius_node.errors import StoreError

logger = logging.getLogger(__name__)

BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another program that holds the database: a backup or a shell, never for long."""
BUSY_PAUSE: Final = 0.01
"""Seconds between two attempts where SQLite itself does not wait: a migration takes about as long."""
WAL_KEPT: Final = 4 * 1024 * 1024
"""Bytes the write-ahead log keeps on disk after a checkpoint: SQLite's own checkpoint size (1000 pages)."""

Connection = aiosqlite.Connection
# A row's values have the types the schema checks; sqlite3 itself gives them none.
Row = Mapping[str, Any]


async def connect(path: Path) -> Connection:
    """A connection to the existing file, which is ours, sound and of the newest schema afterwards.

    Raises sqlite3's errors: use it within `reported`.
    """
    # aiosqlite prints every statement's values at DEBUG, and tokens are among them.
    logging.getLogger("aiosqlite").setLevel(logging.INFO)
    connection = await aiosqlite.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        await _check_owner(connection, path)
        await _configure(connection, path)
        await _migrate(connection, path)
        await _check_pages(connection, path)
    except BaseException:
        await connection.close()
        raise
    return connection


async def query(connection: Connection, sql: str, *values: str | bytes | int | None) -> Sequence[Row]:
    # A sqlite3.Row reads like a mapping of its columns; it only does not call itself one.
    return cast("Sequence[Row]", await connection.execute_fetchall(sql, values))


async def _check_owner(connection: Connection, path: Path) -> None:
    """Before anything is changed: this file is ours and not from the future."""
    [tables] = await query(connection, "SELECT count(*) AS number FROM sqlite_schema")
    [owner] = await query(connection, "PRAGMA application_id")
    if tables["number"] and owner["application_id"] != migrations.APPLICATION_ID:
        raise StoreError(
            f"{path} is the database of another program", hint="Move it away, or set another CODIUS_ROOT."
        )
    migrations.find_pending(await _get_version(connection))


async def _configure(connection: Connection, path: Path) -> None:
    if await _ask_for_log(connection) != "wal":
        raise StoreError(
            f"the file system of {path} cannot hold a database with a write-ahead log",
            hint="Put CODIUS_ROOT on a local disk.",
        )
    for pragma in (
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
        "PRAGMA secure_delete = ON",
        "PRAGMA trusted_schema = OFF",
        "PRAGMA temp_store = MEMORY",
        f"PRAGMA journal_size_limit = {WAL_KEPT}",
    ):
        await query(connection, pragma)


async def _ask_for_log(connection: Connection) -> str:
    """The file's journal mode after asking for a write-ahead log.

    SQLite reads the file first and then wants it alone. For the second lock it never waits, as two who both
    have the first would wait for each other; so two nodes that begin with the same new file meet here.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BUSY_TIMEOUT
    while True:
        try:
            [journal] = await query(connection, "PRAGMA journal_mode = WAL")
        except sqlite3.Error as error:
            if _kind(error) != sqlite3.SQLITE_BUSY or loop.time() >= deadline:
                raise
            await asyncio.sleep(BUSY_PAUSE)
        else:
            return cast(str, journal["journal_mode"])


async def _migrate(connection: Connection, path: Path) -> None:
    for step in migrations.find_pending(await _get_version(connection)):
        logger.info("migrating %s to schema %d: %s", path, step.version, step.purpose)
        try:
            await query(connection, "BEGIN IMMEDIATE")
            # Asked again under the lock: another process may have done this step meanwhile.
            if await _get_version(connection) < step.version:
                for statement in step.statements:
                    await query(connection, statement)
                await query(connection, f"PRAGMA user_version = {step.version}")
            await query(connection, "COMMIT")
        except BaseException:
            await connection.rollback()
            raise
        logger.info("migrated %s to schema %d", path, step.version)


async def _get_version(connection: Connection) -> int:
    [row] = await query(connection, "PRAGMA user_version")
    return cast(int, row["user_version"])


async def _check_pages(connection: Connection, path: Path) -> None:
    """Damage is found now and not in the middle of a payment."""
    [verdict] = await query(connection, "PRAGMA quick_check(1)")
    if verdict["quick_check"] != "ok":
        raise damaged(path, verdict["quick_check"])


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """What SQLite refuses, as StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(error, path) from error
    except (OverflowError, UnicodeEncodeError):
        # Without the cause: it carries the value.
        raise StoreError(f"a value does not fit into the database {path}") from None


_MEANINGS: Final[Mapping[int, tuple[str, str]]] = {
    sqlite3.SQLITE_FULL: ("the disk of {path} is full", "Free some space there: df -h {folder}"),
    sqlite3.SQLITE_IOERR: (
        "the disk of {path} cannot be read or written",
        "Check its free space (df -h {folder}) and the kernel's messages (dmesg).",
    ),
    sqlite3.SQLITE_READONLY: (
        "the database {path} cannot be written",
        "Check who may write to it and to its folder: ls -la {folder}",
    ),
    sqlite3.SQLITE_PERM: ("the database {path} may not be used", "Check who may: ls -la {folder}"),
    sqlite3.SQLITE_CANTOPEN: (
        "the database {path} cannot be opened",
        "Check that it is a file and who may write to its folder: ls -la {folder}",
    ),
    sqlite3.SQLITE_BUSY: (
        "another program holds the database {path}",
        "Close it (a shell, a backup, a second node) and try again.",
    ),
    sqlite3.SQLITE_CONSTRAINT: (
        "the database {path} refused a value",
        "This is a mistake of codiusd: please report it.",
    ),
}


def _explain(error: sqlite3.Error, path: Path) -> StoreError:
    kind = _kind(error)
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, str(error))
    sentence, hint = _MEANINGS.get(
        kind, ("the database {path} did not do what it was asked", "See the node's log.")
    )
    words = {"path": path, "folder": path.parent}
    return StoreError(f"{sentence.format_map(words)}: {error}", hint=hint.format_map(words))


def _kind(error: sqlite3.Error) -> int:
    # The low byte is the kind, the rest its details. An error of the module itself has no code.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def damaged(path: Path, detail: str) -> StoreError:
    return StoreError(
        f"the database {path} is damaged: {detail}",
        hint=f"Stop the node and restore {path} from a backup, or move it away to start with an empty one.",
    )
