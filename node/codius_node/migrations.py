"""The database's schema as numbered steps: data, run by the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from codius_node.errors import StoreError

APPLICATION_ID: Final = 0x436F6469
"""SQLite's mark of the file's owner, "Codi": a database of another program is never migrated."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema: the `PRAGMA user_version` it leads to, and its statements in order.

    A step that was released is never edited; a change is a new step. A step does not open or end a
    transaction: the store runs all of its statements in one.
    """

    version: int
    purpose: str
    statements: tuple[str, ...]


# Times are integer microseconds since 1970 in UTC; 253402300799999999 is the last one a datetime can hold.
# A price is text: at 18 decimal places a month's price does not fit into SQLite's 64 bits.
_BEGINNING: Final = Migration(
    version=1,
    purpose="manifests, pods, ledger, peers and settings",
    statements=(
        f"PRAGMA application_id = {APPLICATION_ID}",
        """
        CREATE TABLE manifests (
            hash TEXT NOT NULL PRIMARY KEY CHECK (length(hash) = 52 AND hash NOT GLOB '*[^a-z2-7]*'),
            document TEXT NOT NULL CHECK (length(document) > 0),
            private BLOB CHECK (length(private) > 0),
            created_at INTEGER NOT NULL CHECK (created_at >= 0)
        ) STRICT
        """,
        """
        CREATE TABLE pods (
            hash TEXT NOT NULL PRIMARY KEY REFERENCES manifests (hash),
            state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'stopping')),
            created_at INTEGER NOT NULL CHECK (created_at >= 0),
            expires_at INTEGER NOT NULL,
            address TEXT NOT NULL UNIQUE CHECK (length(address) BETWEEN 7 AND 15),
            CHECK (expires_at BETWEEN created_at AND 253402300799999999)
        ) STRICT
        """,
        # No reference to manifests: the ledger outlives its pods.
        """
        CREATE TABLE ledger (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            manifest_hash TEXT NOT NULL CHECK (length(manifest_hash) = 52),
            kind TEXT NOT NULL CHECK (kind IN ('upload', 'extension', 'credit')),
            seconds INTEGER NOT NULL CHECK (seconds > 0),
            price TEXT NOT NULL CHECK (length(price) > 0 AND price NOT GLOB '*[^0-9]*'),
            currency TEXT NOT NULL,
            scale INTEGER NOT NULL CHECK (scale >= 0),
            rail TEXT NOT NULL CHECK (length(rail) > 0),
            token TEXT UNIQUE CHECK (length(token) > 0),
            created_at INTEGER NOT NULL CHECK (created_at >= 0)
        ) STRICT
        """,
        "CREATE INDEX ledger_by_manifest ON ledger (manifest_hash, id)",
        """
        CREATE TRIGGER ledger_keeps_entries BEFORE DELETE ON ledger
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END
        """,
        """
        CREATE TRIGGER ledger_keeps_values BEFORE UPDATE ON ledger
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END
        """,
        """
        CREATE TABLE peers (
            uri TEXT NOT NULL PRIMARY KEY CHECK (length(uri) > 0),
            added_at INTEGER NOT NULL CHECK (added_at >= 0),
            last_seen_at INTEGER CHECK (last_seen_at >= 0),
            failures INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0)
        ) STRICT
        """,
        """
        CREATE TABLE settings (
            key TEXT NOT NULL PRIMARY KEY CHECK (length(key) > 0),
            value TEXT NOT NULL CHECK (length(value) > 0),
            changed_at INTEGER NOT NULL CHECK (changed_at >= 0)
        ) STRICT
        """,
    ),
)

# No reference to manifests: like the ledger, it outlives the pods. SQLite's integers hold 9 exabytes.
_TRAFFIC: Final = Migration(
    version=2,
    purpose="traffic of each manifest",
    statements=(
        """
        CREATE TABLE traffic (
            manifest_hash TEXT NOT NULL PRIMARY KEY CHECK (length(manifest_hash) = 52),
            sent_bytes INTEGER NOT NULL CHECK (sent_bytes >= 0),
            sent_packets INTEGER NOT NULL CHECK (sent_packets >= 0),
            received_bytes INTEGER NOT NULL CHECK (received_bytes >= 0),
            received_packets INTEGER NOT NULL CHECK (received_packets >= 0),
            changed_at INTEGER NOT NULL CHECK (changed_at >= 0)
        ) STRICT
        """,
        """
        CREATE TABLE refusals (
            manifest_hash TEXT NOT NULL REFERENCES traffic (manifest_hash),
            reason TEXT NOT NULL CHECK (length(reason) > 0),
            packets INTEGER NOT NULL CHECK (packets >= 0),
            PRIMARY KEY (manifest_hash, reason)
        ) STRICT
        """,
    ),
)

# No reference to manifests: a stop outlives its pod, and what is denied may never have been here.
_TAKEDOWNS: Final = Migration(
    version=3,
    purpose="stops and the denylist",
    statements=(
        """
        CREATE TABLE stops (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            manifest_hash TEXT NOT NULL CHECK (length(manifest_hash) = 52),
            seconds INTEGER NOT NULL CHECK (seconds >= 0),
            reason TEXT NOT NULL CHECK (length(reason) > 0),
            public INTEGER NOT NULL CHECK (public IN (0, 1)),
            legal INTEGER NOT NULL CHECK (legal IN (0, 1)),
            credit INTEGER NOT NULL CHECK (credit IN (0, 1)),
            created_at INTEGER NOT NULL CHECK (created_at >= 0),
            ended_at INTEGER CHECK (ended_at >= 0)
        ) STRICT
        """,
        "CREATE INDEX stops_by_manifest ON stops (manifest_hash, id)",
        "CREATE INDEX open_stops ON stops (id) WHERE ended_at IS NULL",
        """
        CREATE TABLE denials (
            kind TEXT NOT NULL CHECK (kind IN ('manifest', 'image', 'registry')),
            value TEXT NOT NULL CHECK (length(value) > 0),
            reason TEXT NOT NULL CHECK (length(reason) > 0),
            public INTEGER NOT NULL CHECK (public IN (0, 1)),
            legal INTEGER NOT NULL CHECK (legal IN (0, 1)),
            credit INTEGER NOT NULL CHECK (credit IN (0, 1)),
            takedown INTEGER NOT NULL CHECK (takedown IN (0, 1)),
            created_at INTEGER NOT NULL CHECK (created_at >= 0),
            PRIMARY KEY (kind, value)
        ) STRICT
        """,
    ),
)

MIGRATIONS: tuple[Migration, ...] = (_BEGINNING, _TRAFFIC, _TAKEDOWNS)


def find_pending(version: int) -> Sequence[Migration]:
    """The steps a database at `version` still lacks; StoreError when a newer codiusd wrote it."""
    newest = MIGRATIONS[-1].version
    if not 0 <= version <= newest:
        raise StoreError(
            f"the database has schema {version}, and this codiusd knows schemas up to {newest}",
            hint="Start the codiusd that wrote it, or restore a backup made before the upgrade.",
        )
    return [step for step in MIGRATIONS if step.version > version]
