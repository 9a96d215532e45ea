"""The door to nftables: text in, text or counters out. It blocks; one worker thread owns it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from codius_netpolicy.policy import PolicyError

MISSING_LIBRARY_HINT: Final = "install it: apt install python3-nftables"
MAX_ERROR_TEXT: Final = 2_000
"""Characters; libnftables quotes the line at fault, and the line with all pods' elements can be megabytes."""


class Nft:
    """A kept libnftables context. It belongs to the network namespace of the thread that made it."""

    def __init__(self) -> None:
        try:
            import nftables
        except ImportError as error:
            raise PolicyError(
                "the nftables binding of the distribution is missing", MISSING_LIBRARY_HINT
            ) from error
        try:
            self._context = nftables.Nftables()
        except OSError as error:
            raise PolicyError(f"libnftables cannot be loaded: {error}", MISSING_LIBRARY_HINT) from error
        # A context per command would cost 8-15 ms on deletions, so it is kept; it is not thread-safe.
        self._lock = threading.Lock()
        # Terse and stateless: a listing costs the same however many pods there are, and does not change
        # with traffic. `echo` stays off, it would fetch every element.
        self._context.set_terse_output(True)
        self._context.set_stateless_output(True)

    def apply(self, commands: str) -> None:
        """One transaction: all of it or, with PolicyError, nothing."""
        with self._lock:
            self._run(commands)

    def check(self, commands: str) -> None:
        """Raises PolicyError when the kernel or the parser would refuse the commands; changes nothing."""
        with self._lock, self._dry_run():
            self._run(commands)

    def list_table(self, family: str, table: str, sets: Sequence[str]) -> str | None:
        """The table without run-time elements, then the whole of `sets`; None when there is no such table."""
        with self._lock:
            # Asking for a table that is not there is an error, so the names come first.
            if f"table {family} {table}" not in self._run("list tables").splitlines():
                return None
            listing = self._run(f"list table {family} {table}")
            with self._full_output():
                return listing + "".join(self._run(f"list set {family} {table} {name}") for name in sets)

    def counters(self, family: str, table: str) -> Mapping[str, int]:
        """Packets of each named counter of the table."""
        with self._lock, self._json_output():
            document = json.loads(self._run(f"list counters table {family} {table}"))
        found = (entry["counter"] for entry in document["nftables"] if "counter" in entry)
        return {counter["name"]: counter["packets"] for counter in found if counter["table"] == table}

    def set_elements(self, family: str, table: str, name: str) -> int:
        """How many elements the set holds."""
        with self._lock, self._full_output(), self._json_output():
            document = json.loads(self._run(f"list set {family} {table} {name}"))
        return sum(len(entry["set"].get("elem", ())) for entry in document["nftables"] if "set" in entry)

    def _run(self, commands: str) -> str:
        status, output, error = self._context.cmd(commands)
        if status != 0:
            reason = error.strip()[:MAX_ERROR_TEXT] or f"status {status}"
            hint = "run as root" if "Operation not permitted" in reason else None
            raise PolicyError(f"nftables refused: {reason}", hint)
        return str(output)

    @contextmanager
    def _dry_run(self) -> Iterator[None]:
        self._context.set_dry_run(True)
        try:
            yield
        finally:
            self._context.set_dry_run(False)

    @contextmanager
    def _full_output(self) -> Iterator[None]:
        self._context.set_terse_output(False)
        try:
            yield
        finally:
            self._context.set_terse_output(True)

    @contextmanager
    def _json_output(self) -> Iterator[None]:
        self._context.set_json_output(True)
        # Stateless JSON leaves the packets out of counters.
        self._context.set_stateless_output(False)
        try:
            yield
        finally:
            self._context.set_json_output(False)
            self._context.set_stateless_output(True)
