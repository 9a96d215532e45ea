"""The operator's books in the database: stops, the denylist, and what each manifest was given."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from codius_node.database import Row
from codius_node.errors import CodiusError
from codius_node.model import Currency, ManifestHash
from codius_node.session import Session, reading, to_micros, to_moment, transaction
from codius_node.takedown import MAX_DENIALS, Denial, DenialKind, Stop, Terms
from codius_node.usage import TAKEDOWN_RAIL, Account

LAST_ID: Final = 2**63 - 1
"""SQLite's largest rowid: before it is everything."""


class DenylistFullError(CodiusError):
    """The denylist has as many entries as it may."""

    status = 409


class Books(Session):
    """Stops, denials and sums of the ledger."""

    # ---- stops: written together with the pod's state, by the store -------------------------------

    async def _add_stop(self, stop: Stop) -> None:
        await self._rows(
            "INSERT INTO stops (manifest_hash, seconds, reason, public, legal, credit, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            stop.hash,
            stop.seconds,
            stop.terms.reason,
            stop.terms.public,
            stop.terms.legal,
            stop.terms.credit,
            to_micros(stop.created_at),
        )

    async def _end_stops(self, hash: ManifestHash, now: datetime) -> int:
        """The manifest runs again: nothing is told of its stop any more; the seconds it has back."""
        ended = await self._rows(
            "UPDATE stops SET ended_at = ? WHERE manifest_hash = ? AND ended_at IS NULL"
            " RETURNING seconds * credit AS held",
            to_micros(now),
            hash,
        )
        return sum(row["held"] for row in ended)

    @transaction
    async def amend_stop(self, hash: ManifestHash, terms: Terms) -> Stop | None:
        """Other terms for the stop that is not over; None when there is none."""
        rows = await self._rows(
            "UPDATE stops SET reason = ?, public = ?, legal = ?, credit = ?"
            " WHERE manifest_hash = ? AND ended_at IS NULL RETURNING *",
            terms.reason,
            terms.public,
            terms.legal,
            terms.credit,
            hash,
        )
        return _parse_stop(rows[0]) if rows else None

    @reading
    async def open_stops(self, limit: int) -> list[Stop]:
        """Those that are not over, the newest, oldest first."""
        rows = await self._rows(
            "SELECT * FROM stops WHERE ended_at IS NULL ORDER BY id DESC LIMIT ?", max(0, limit)
        )
        return [_parse_stop(row) for row in reversed(rows)]

    @reading
    async def stops(self, hashes: Iterable[ManifestHash]) -> dict[ManifestHash, list[Stop]]:
        """All of these manifests', newest first."""
        found: defaultdict[ManifestHash, list[Stop]] = defaultdict(list)
        for row in await self._rows(
            "SELECT * FROM stops WHERE manifest_hash IN (SELECT value FROM json_each(?)) ORDER BY id DESC",
            json.dumps(list(hashes)),
        ):
            found[ManifestHash(row["manifest_hash"])].append(_parse_stop(row))
        return found

    # ---- the denylist -----------------------------------------------------------------------------

    @reading
    async def denials(self) -> list[Denial]:
        """In the order in which they were put there."""
        return [_parse_denial(row) for row in await self._rows("SELECT * FROM denials ORDER BY rowid")]

    @transaction
    async def put_denial(self, denial: Denial) -> None:
        """Add it, or replace the terms of the one of the same name."""
        [others] = await self._rows(
            "SELECT count(*) AS number FROM denials WHERE kind != ? OR value != ?", denial.kind, denial.value
        )
        if others["number"] >= MAX_DENIALS:
            raise DenylistFullError(
                f"the denylist has {MAX_DENIALS} entries, which is all it takes",
                hint="Deny a whole registry, or remove entries nobody needs: `codiusd admin deny list`.",
            )
        await self._rows(
            "INSERT INTO denials (kind, value, reason, public, legal, credit, takedown, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET reason = excluded.reason,"
            " public = excluded.public, legal = excluded.legal, credit = excluded.credit,"
            " takedown = excluded.takedown, created_at = excluded.created_at",
            denial.kind,
            denial.value,
            denial.terms.reason,
            denial.terms.public,
            denial.terms.legal,
            denial.terms.credit,
            denial.takedown,
            to_micros(denial.created_at),
        )

    @transaction
    async def remove_denial(self, kind: DenialKind, value: str) -> bool:
        """Whether it was there."""
        return bool(
            await self._rows("DELETE FROM denials WHERE kind = ? AND value = ? RETURNING kind", kind, value)
        )

    # ---- what each manifest was given -------------------------------------------------------------

    @reading
    async def latest_manifests(self, limit: int, before: int = LAST_ID) -> list[tuple[ManifestHash, int]]:
        """Manifests by their last entry in the ledger, the newest first, each with that entry's id."""
        rows = await self._rows(
            "SELECT manifest_hash, id FROM ledger WHERE id < ? AND NOT EXISTS"
            " (SELECT 1 FROM ledger AS later WHERE later.manifest_hash = ledger.manifest_hash"
            " AND later.id > ledger.id) ORDER BY id DESC LIMIT ?",
            before,
            max(0, limit),
        )
        return [(ManifestHash(row["manifest_hash"]), row["id"]) for row in rows]

    @reading
    async def accounts(self, hashes: Iterable[ManifestHash]) -> dict[ManifestHash, Account]:
        """The sums of these manifests' ledgers; those without an entry are left out."""
        grouped: defaultdict[ManifestHash, list[Row]] = defaultdict(list)
        # Prices do not fit into SQLite's integers: equal ones are counted, and multiplied afterwards.
        for row in await self._rows(
            "SELECT manifest_hash, kind, rail, currency, scale, price, count(*) AS entries,"
            " sum(seconds) AS seconds, min(created_at) AS first, max(created_at) AS last FROM ledger"
            " WHERE manifest_hash IN (SELECT value FROM json_each(?))"
            " GROUP BY manifest_hash, kind, rail, currency, scale, price",
            json.dumps(list(hashes)),
        ):
            grouped[ManifestHash(row["manifest_hash"])].append(row)
        return {hash: _sum(rows) for hash, rows in grouped.items()}

    @reading
    async def whole_account(self) -> Account:
        """Of all manifests together, over the host's whole life."""
        return _sum(
            await self._rows(
                "SELECT kind, rail, currency, scale, price, count(*) AS entries, sum(seconds) AS seconds,"
                " min(created_at) AS first, max(created_at) AS last FROM ledger"
                " GROUP BY kind, rail, currency, scale, price"
            )
        )


def _sum(rows: Iterable[Row]) -> Account:
    rows = list(rows)
    if not rows:
        return Account()
    prices: defaultdict[Currency, int] = defaultdict(int)
    seconds: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        if row["kind"] != "credit":
            prices[Currency(row["currency"], row["scale"])] += int(row["price"]) * row["entries"]
            seconds["paid"] += row["seconds"]
        else:
            seconds["restored" if row["rail"] == TAKEDOWN_RAIL else "outage"] += row["seconds"]
    return Account(
        paid=seconds["paid"],
        restored=seconds["restored"],
        outage=seconds["outage"],
        entries=sum(row["entries"] for row in rows),
        prices=dict(prices),
        first=to_moment(min(row["first"] for row in rows)),
        last=to_moment(max(row["last"] for row in rows)),
    )


def _parse_terms(row: Row) -> Terms:
    return Terms(row["reason"], bool(row["public"]), bool(row["legal"]), bool(row["credit"]))


def _parse_stop(row: Row) -> Stop:
    return Stop(
        hash=ManifestHash(row["manifest_hash"]),
        terms=_parse_terms(row),
        seconds=row["seconds"],
        created_at=to_moment(row["created_at"]),
        ended_at=None if row["ended_at"] is None else to_moment(row["ended_at"]),
    )


def _parse_denial(row: Row) -> Denial:
    return Denial(
        kind=DenialKind(row["kind"]),
        value=row["value"],
        terms=_parse_terms(row),
        takedown=bool(row["takedown"]),
        created_at=to_moment(row["created_at"]),
    )
