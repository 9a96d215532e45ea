"""What is wanted, in SQLite: pods, manifests, ledger, traffic, peers and settings."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, cast

from codius_netpolicy.traffic import Reason, Traffic, Volume
from codius_node import database
from codius_node.books import LAST_ID, Books
from codius_node.cipher import Cipher, create_key, find_key
from codius_node.database import Connection, Row, damaged, query, reported
from codius_node.errors import CodiusError, NotFoundError, RequestError, StoreError
from codius_node.lifecycle import TRANSITIONS
from codius_node.model import Currency, Json, Manifest, ManifestHash, Pod, PodState, PrivateVariable
from codius_node.session import SECOND, reading, to_micros, to_moment, transaction
from codius_node.takedown import Stop, Terms
from codius_node.usage import TAKEDOWN_RAIL

logger = logging.getLogger(__name__)

DOCUMENT_KEPT: Final = 16 * 1024
"""Characters of a manifest that stays restored in memory; the reconciler asks for all pods every second, and
500 such manifests are still only a few megabytes. A larger one is restored from its row each time."""
LEDGER_PAGE: Final = 100
"""Entries of the ledger in one answer, unless the caller says otherwise."""
LATEST: Final = 253_402_300_799_999_999
"""Microseconds: the end of the year 9999, the last time a datetime can hold."""

REASONS: Final[Mapping[str, Reason]] = {reason.value: reason for reason in Reason}
"""By name. A reason that another version of codiusd counted stays in its row, unread."""


class PodChangedError(StoreError):
    """The pod is not in the state the caller last saw: somebody was faster. Nothing was written."""

    status = 409


class AddressTakenError(StoreError):
    """Another pod has this address. Nothing was written."""


class TokenSpentError(StoreError):
    """The payment token has paid for something already: one claim per token. Nothing was written."""

    status = 402


class EntryKind(StrEnum):
    """Why time was added to a pod."""

    UPLOAD = "upload"
    EXTENSION = "extension"
    CREDIT = "credit"


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """Time that a pod was given: `seconds` for `price` base units of `currency`, paid over `rail`.

    `token` is the payment's own and can be spent once. `id` is the store's, None until it is written.
    """

    manifest_hash: ManifestHash
    kind: EntryKind
    seconds: int
    price: int
    currency: Currency
    rail: str
    created_at: datetime
    token: str | None = field(default=None, repr=False)
    id: int | None = None


class Store(Books):
    """The node's memory: what is wanted. One connection, one transaction at a time.

    Commits reach the disk before they return (`synchronous = FULL`): with less, a power cut takes back the
    last claims, and their tokens could be spent again. Missing pods are NotFoundError; everything the disk
    or SQLite refuses is StoreError, and then nothing was written.
    """

    def __init__(
        self,
        connection: Connection,
        cipher: Cipher,
        restore: Callable[[Mapping[str, Json]], Manifest],
        path: Path,
    ) -> None:
        super().__init__(connection, path)
        self._cipher = cipher
        self._restore = restore
        self._manifests: dict[ManifestHash, Manifest] = {}

    @classmethod
    async def open(
        cls, path: Path, *, key_path: Path, restore: Callable[[Mapping[str, Json]], Manifest]
    ) -> Store:
        """The store in this file, made and migrated as needed. `restore` makes a manifest of its document."""
        key = await asyncio.to_thread(_prepare_files, path, key_path)
        with reported(path):
            connection = await database.connect(path)
            try:
                if key is None:
                    await _check_nothing_locked(connection, path, key_path)
                    key = await asyncio.to_thread(create_key, key_path)
                    logger.info("created the key file %s", key_path)
                return cls(connection, Cipher(key), restore, path)
            except BaseException:
                await connection.close()
                raise

    async def add_pod(self, pod: Pod, private: Mapping[str, PrivateVariable]) -> None:
        """Record the intent: a pending pod, its manifest and its private values."""
        if pod.state is not PodState.PENDING:
            raise ValueError("a pod is added as pending")
        # In a thread: the first call imports the library, and a large upload takes milliseconds.
        locked = await asyncio.to_thread(self._cipher.encrypt, pod.hash, private) if private else None
        await self._add_pod(pod, locked)

    @transaction
    async def _add_pod(self, pod: Pod, locked: bytes | None) -> None:
        if await self._rows("SELECT 1 FROM pods WHERE hash = ?", pod.hash):
            raise PodChangedError(f"pod {pod.hash} is here already", hint="Extend it instead.")
        if await self._rows("SELECT 1 FROM pods WHERE address = ?", str(pod.address)):
            raise AddressTakenError(f"the address {pod.address} has a pod already", hint="Choose a free one.")
        created_at = to_micros(pod.created_at)
        await self._rows(
            "INSERT INTO manifests (hash, document, private, created_at) VALUES (?, ?, ?, ?)",
            pod.hash,
            json.dumps(dict(pod.manifest.document), separators=(",", ":")),
            locked,
            created_at,
        )
        await self._rows(
            "INSERT INTO pods (hash, state, created_at, expires_at, address) VALUES (?, ?, ?, ?, ?)",
            pod.hash,
            pod.state,
            created_at,
            to_micros(pod.expires_at),
            str(pod.address),
        )

    @transaction
    async def start_pod(self, hash: ManifestHash, *, expires_at: datetime, entry: LedgerEntry) -> Pod:
        """Pending to running, and the claim of its payment: both or neither.

        Time that was credited to the manifest when it was taken down is given to it on top.
        """
        await self._get_row(hash, PodState.PENDING)
        await self._add_entry(hash, entry)
        until = to_micros(expires_at)
        if held := await self._end_stops(hash, entry.created_at):
            await self._add_entry(
                hash,
                replace(entry, kind=EntryKind.CREDIT, seconds=held, price=0, rail=TAKEDOWN_RAIL, token=None),
            )
            until = min(until + held * SECOND, LATEST)
        return await self._update_pod(hash, PodState.RUNNING, until)

    @transaction
    async def stop_pod(self, hash: ManifestHash, terms: Terms, now: datetime) -> Stop:
        """Running to stopping at the operator's word, with what is left of its time: both or neither.

        Of two who stop a pod, one gets a PodChangedError.
        """
        row = await self._get_row(hash, PodState.RUNNING)
        left = max(row["expires_at"] - to_micros(now), 0)
        stop = Stop(hash, terms, -(-left // SECOND), now)  # begun seconds count for the client
        await self._add_stop(stop)
        await self._rows("UPDATE pods SET state = ? WHERE hash = ?", PodState.STOPPING, hash)
        return stop

    @transaction
    async def extend_pod(self, hash: ManifestHash, *, seconds: int, entry: LedgerEntry) -> Pod:
        """Seconds more for a running pod, counted from its old expiry, and the claim of their payment."""
        if seconds <= 0 or entry.seconds != seconds:
            raise ValueError("an extension is longer than nothing, and its entry says how long")
        row = await self._get_row(hash, PodState.RUNNING)
        expires_at = row["expires_at"] + seconds * SECOND
        if expires_at > LATEST:
            raise RequestError(
                f"pod {hash} would run past the year 9999", hint="Ask for a shorter extension."
            )
        await self._add_entry(hash, entry)
        return await self._update_pod(hash, PodState.RUNNING, expires_at)

    @transaction
    async def move_expiry(
        self, hash: ManifestHash, expires_at: datetime, *, expected: datetime, entry: LedgerEntry
    ) -> Pod:
        """Give an outage back: from the `expected` expiry to a later one, with its credit in the ledger.

        Done twice it is done once. A pod extended since it was `expected` is a PodChangedError: its new time
        would be lost, so plan again.
        """
        before, after = to_micros(expected), to_micros(expires_at)
        if after <= before or entry.kind is not EntryKind.CREDIT:
            raise ValueError("an outage is given back as a credit, and makes a pod's time longer")
        row = await self._get_row(hash, PodState.RUNNING)
        if row["expires_at"] == after:
            return await self._get_pod(row)
        if row["expires_at"] != before:
            raise PodChangedError(
                f"the expiry of pod {hash} has moved meanwhile", hint="Look at the pod again."
            )
        await self._add_entry(hash, entry)
        return await self._update_pod(hash, PodState.RUNNING, after)

    @transaction
    async def set_state(self, hash: ManifestHash, state: PodState, *, expected: PodState) -> None:
        """Compare and set: of two callers with the same expectation one gets a PodChangedError."""
        if state is PodState.RUNNING:
            raise ValueError("a pod gets to running by start_pod, together with its ledger entry")
        if state not in TRANSITIONS[expected]:
            raise ValueError(f"no pod goes from {expected} to {state}")
        await self._get_row(hash, expected)
        await self._rows("UPDATE pods SET state = ? WHERE hash = ?", state, hash)

    async def remove_pod(self, hash: ManifestHash) -> None:
        """Pod, manifest and private values are gone, also from the files; the ledger stays. May run twice."""
        if await self._remove_pod(hash):
            await self._scrub()

    @transaction
    async def _remove_pod(self, hash: ManifestHash) -> bool:
        """Whether there was something private in it."""
        await self._rows("DELETE FROM pods WHERE hash = ?", hash)
        gone = await self._rows(
            "DELETE FROM manifests WHERE hash = ? RETURNING private IS NOT NULL AS locked", hash
        )
        self._manifests.pop(hash, None)
        return any(row["locked"] for row in gone)

    @reading
    async def _scrub(self) -> None:
        # secure_delete has zeroed the row's pages; the log still has their older copies until it is cut.
        [done] = await self._rows("PRAGMA wal_checkpoint(TRUNCATE)")
        if done["busy"]:
            logger.warning("another program reads %s: removed rows stay in its log for now", self._path)

    @reading
    async def find_pod(self, hash: ManifestHash) -> Pod | None:
        rows = await self._rows("SELECT * FROM pods WHERE hash = ?", hash)
        return await self._get_pod(rows[0]) if rows else None

    @reading
    async def pods(self, *states: PodState) -> list[Pod]:
        """Those in one of these states, or all of them; the oldest first."""
        rows = await self._rows("SELECT * FROM pods ORDER BY created_at, hash")
        return [await self._get_pod(row) for row in rows if not states or row["state"] in states]

    async def private(self, hash: ManifestHash) -> Mapping[str, PrivateVariable]:
        locked = await self._get_locked(hash)
        return {} if locked is None else await asyncio.to_thread(self._cipher.decrypt, hash, locked)

    @reading
    async def _get_locked(self, hash: ManifestHash) -> bytes | None:
        rows = await self._rows("SELECT private FROM manifests WHERE hash = ?", hash)
        if not rows:
            raise _missing(hash)
        return cast("bytes | None", rows[0]["private"])

    @reading
    async def addresses(self) -> set[IPv4Address]:
        """Those in use, whatever the state of their pods."""
        return {IPv4Address(row["address"]) for row in await self._rows("SELECT address FROM pods")}

    @reading
    async def ledger(
        self, hash: ManifestHash | None = None, limit: int = LEDGER_PAGE, before: int = LAST_ID
    ) -> list[LedgerEntry]:
        """The newest entries below the id `before`, newest first: of one manifest, or of all."""
        if hash is None:
            rows = await self._rows(
                "SELECT * FROM ledger WHERE id < ? ORDER BY id DESC LIMIT ?", before, max(0, limit)
            )
        else:
            rows = await self._rows(
                "SELECT * FROM ledger WHERE manifest_hash = ? AND id < ? ORDER BY id DESC LIMIT ?",
                hash,
                before,
                max(0, limit),
            )
        return [_parse_entry(row) for row in rows]

    @reading
    async def find_entry(self, token: str) -> LedgerEntry | None:
        """What this token has paid for."""
        rows = await self._rows("SELECT * FROM ledger WHERE token = ?", token)
        return _parse_entry(rows[0]) if rows else None

    @transaction
    async def save_traffic(self, traffic: Mapping[ManifestHash, Traffic], now: datetime) -> None:
        """Counters as they stand, never lower than they were; saved twice they are saved once."""
        volumes = [
            (hash, t.sent.bytes, t.sent.packets, t.received.bytes, t.received.packets)
            for hash, t in traffic.items()
        ]
        refusals = [(hash, reason, n) for hash, t in traffic.items() for reason, n in t.refused.items()]
        # One statement each, however many pods there are. `WHERE true` keeps SQLite's grammar from reading
        # ON CONFLICT as a join's (https://sqlite.org/lang_upsert.html, 2.2).
        await self._rows(
            "INSERT INTO traffic (manifest_hash, sent_bytes, sent_packets, received_bytes, received_packets,"
            " changed_at) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, ?"
            " FROM json_each(?) WHERE true ON CONFLICT DO UPDATE SET"
            " sent_bytes = max(sent_bytes, excluded.sent_bytes),"
            " sent_packets = max(sent_packets, excluded.sent_packets),"
            " received_bytes = max(received_bytes, excluded.received_bytes),"
            " received_packets = max(received_packets, excluded.received_packets),"
            " changed_at = excluded.changed_at",
            to_micros(now),
            json.dumps(volumes),
        )
        await self._rows(
            "INSERT INTO refusals (manifest_hash, reason, packets)"
            " SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true"
            " ON CONFLICT DO UPDATE SET packets = max(packets, excluded.packets)",
            json.dumps(refusals),
        )

    @reading
    async def traffic(self, hashes: Iterable[ManifestHash]) -> dict[ManifestHash, Traffic]:
        """What was saved of these manifests, over all their lives on this host; the others are left out."""
        asked = json.dumps(list(hashes))
        refused: defaultdict[str, dict[Reason, int]] = defaultdict(dict)
        for row in await self._rows(
            "SELECT * FROM refusals WHERE manifest_hash IN (SELECT value FROM json_each(?))", asked
        ):
            if (reason := REASONS.get(row["reason"])) is not None:
                refused[row["manifest_hash"]][reason] = row["packets"]
        rows = await self._rows(
            "SELECT * FROM traffic WHERE manifest_hash IN (SELECT value FROM json_each(?))", asked
        )
        return {
            ManifestHash(row["manifest_hash"]): Traffic(
                sent=Volume(row["sent_bytes"], row["sent_packets"]),
                received=Volume(row["received_bytes"], row["received_packets"]),
                refused=refused[row["manifest_hash"]],
            )
            for row in rows
        }

    @transaction
    async def add_peers(self, uris: Iterable[str], now: datetime) -> int:
        """How many of them are new. The caller has checked what they say and how many there may be."""
        known = 0
        for uri in uris:
            known += len(
                await self._rows(
                    "INSERT INTO peers (uri, added_at) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING uri",
                    uri,
                    to_micros(now),
                )
            )
        return known

    @reading
    async def peers(self) -> dict[str, int]:
        """All of them, with their failures in a row."""
        rows = await self._rows("SELECT uri, failures FROM peers")
        return {row["uri"]: row["failures"] for row in rows}

    @reading
    async def sample_peers(self, limit: int) -> list[str]:
        """Some peers by chance."""
        rows = await self._rows("SELECT uri FROM peers ORDER BY random() LIMIT ?", max(0, limit))
        return [row["uri"] for row in rows]

    @reading
    async def count_peers(self) -> int:
        [row] = await self._rows("SELECT count(*) AS number FROM peers")
        return cast(int, row["number"])

    @transaction
    async def note_peer(self, uri: str, ok: bool, now: datetime) -> None:
        """It answered: seen now, failures forgotten. It did not: one failure more."""
        if ok:
            await self._rows(
                "UPDATE peers SET last_seen_at = ?, failures = 0 WHERE uri = ?", to_micros(now), uri
            )
        else:
            await self._rows("UPDATE peers SET failures = failures + 1 WHERE uri = ?", uri)

    @transaction
    async def remove_peer(self, uri: str) -> None:
        """As if it had never been heard of."""
        await self._rows("DELETE FROM peers WHERE uri = ?", uri)

    @reading
    async def get_setting(self, key: str) -> Json:
        """None when it was never set."""
        rows = await self._rows("SELECT value FROM settings WHERE key = ?", key)
        return cast(Json, json.loads(rows[0]["value"])) if rows else None

    @transaction
    async def set_setting(self, key: str, value: Json, now: datetime) -> None:
        await self._rows(
            "INSERT INTO settings (key, value, changed_at) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET value = excluded.value, changed_at = excluded.changed_at",
            key,
            json.dumps(value, allow_nan=False),
            to_micros(now),
        )

    @transaction
    async def remove_setting(self, key: str) -> None:
        """As if it had never been set."""
        await self._rows("DELETE FROM settings WHERE key = ?", key)

    async def _get_row(self, hash: ManifestHash, expected: PodState) -> Row:
        rows = await self._rows("SELECT * FROM pods WHERE hash = ?", hash)
        if not rows:
            raise _missing(hash)
        if rows[0]["state"] != expected:
            raise PodChangedError(
                f"pod {hash} is {rows[0]['state']}, not {expected}", hint="Look at the pod again."
            )
        return rows[0]

    async def _update_pod(self, hash: ManifestHash, state: PodState, expires_at: int) -> Pod:
        [row] = await self._rows(
            "UPDATE pods SET state = ?, expires_at = ? WHERE hash = ? RETURNING *", state, expires_at, hash
        )
        return await self._get_pod(row)

    async def _add_entry(self, hash: ManifestHash, entry: LedgerEntry) -> None:
        if entry.manifest_hash != hash:
            raise ValueError("a ledger entry belongs to the pod it was paid for")
        if entry.token is not None and await self._rows("SELECT 1 FROM ledger WHERE token = ?", entry.token):
            raise TokenSpentError("this payment token has been spent already", hint="Pay with a fresh token.")
        await self._rows(
            "INSERT INTO ledger"
            " (manifest_hash, kind, seconds, price, currency, scale, rail, token, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            entry.manifest_hash,
            entry.kind,
            entry.seconds,
            str(entry.price),
            entry.currency.code,
            entry.currency.scale,
            entry.rail,
            entry.token,
            to_micros(entry.created_at),
        )

    async def _get_pod(self, row: Row) -> Pod:
        hash = ManifestHash(row["hash"])
        return Pod(
            manifest=await self._get_manifest(hash),
            state=PodState(row["state"]),
            created_at=to_moment(row["created_at"]),
            expires_at=to_moment(row["expires_at"]),
            address=IPv4Address(row["address"]),
        )

    async def _get_manifest(self, hash: ManifestHash) -> Manifest:
        kept = self._manifests.get(hash)
        if kept is not None:
            return kept
        [row] = await self._rows("SELECT document FROM manifests WHERE hash = ?", hash)
        try:
            manifest = self._restore(json.loads(row["document"]))
        except CodiusError as error:
            raise damaged(self._path, f"the manifest of pod {hash} is not valid: {error.message}") from error
        if manifest.hash != hash:
            raise damaged(self._path, f"the manifest of pod {hash} has the hash {manifest.hash}")
        if len(row["document"]) <= DOCUMENT_KEPT:
            self._manifests[hash] = manifest
        return manifest


def _prepare_files(path: Path, key_path: Path) -> bytes | None:
    """Make the folders (0700) and the database (0600, as its log will be); the key when there is one."""
    try:
        for folder in (path.parent, key_path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only when it is missing: closing a file of a database gives up the locks this process has on it.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(
            f"the database {path} cannot be created: {error.strerror}",
            hint=f"Check the free space and who may write to {path.parent}.",
        ) from error
    return find_key(key_path)


async def _check_nothing_locked(connection: Connection, path: Path, key_path: Path) -> None:
    if await query(connection, "SELECT 1 FROM manifests WHERE private IS NOT NULL LIMIT 1"):
        raise StoreError(
            f"the key file {key_path} is missing, and {path} has private variables locked with it",
            hint="Restore the key file from a backup: a new key could not open them.",
        )


def _missing(hash: ManifestHash) -> NotFoundError:
    return NotFoundError(f"there is no pod {hash} on this host", hint="Check the manifest hash.")


def _parse_entry(row: Row) -> LedgerEntry:
    return LedgerEntry(
        manifest_hash=ManifestHash(row["manifest_hash"]),
        kind=EntryKind(row["kind"]),
        seconds=row["seconds"],
        price=int(row["price"]),
        currency=Currency(row["currency"], row["scale"]),
        rail=row["rail"],
        created_at=to_moment(row["created_at"]),
        token=row["token"],
        id=row["id"],
    )
