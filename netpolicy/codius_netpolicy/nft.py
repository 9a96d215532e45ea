"""The door to nftables: text in, text or counters out. It blocks; one worker thread owns it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from codius_netpolicy.policy import PolicyError

MISSING_LIBRARY_HINT: Final = "install it: apt install python3-nftables"
MAX_ERROR_TEXT: Final = 2_000
"""Characters; libnftables quotes the line at fault, and the line with all pods' elements can be megabytes."""

_PACKETS: Final = re.compile(r"packets ([0-9]+)")
_COUNTER: Final = re.compile(r"packets ([0-9]+) bytes ([0-9]+)")


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set: its key's parts as nftables writes them, and its counter."""

    key: tuple[str, ...]
    bytes: int
    packets: int


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
            # `list table` would fetch every pod's elements even when it does not show them.
            listing = find_table(self._run(f"list ruleset {family}"), family, table)
            if listing is None:
                return None
            with self._full_output():
                return listing + "".join(self._run(f"list set {family} {table} {name}") for name in sets)

    def packets(self, family: str, table: str, counter: str) -> int:
        """Packets of a named counter of the table."""
        with self._lock, self._counters_shown():
            text = self._run(f"list counter {family} {table} {counter}")
        match = _PACKETS.search(text)
        return int(match[1]) if match else 0

    def elements(self, family: str, table: str, name: str) -> Iterator[Element]:
        """What the set holds now."""
        with self._lock, self._full_output(), self._counters_shown():
            text = self._run(f"list set {family} {table} {name}")
        return parse_elements(text)

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
    def _counters_shown(self) -> Iterator[None]:
        self._context.set_stateless_output(False)
        try:
            yield
        finally:
            self._context.set_stateless_output(True)


def find_table(ruleset: str, family: str, table: str) -> str | None:
    """The one table's part of a ruleset's listing: up to the brace that stands alone."""
    _, opening, rest = f"\n{ruleset}".partition(f"\ntable {family} {table} {{\n")
    return opening + rest.partition("\n}\n")[0] if opening else None


def parse_elements(listing: str) -> Iterator[Element]:
    """The elements in a set's listing, `"link" . 02:cd:… . 10.77.0.2 counter packets 3 bytes 180, …`.

    Text, which libnftables makes in half the time of its JSON.
    """
    _, opening, rest = listing.partition("elements = {")
    inside, closing, _ = rest.partition("}")
    if not (opening and closing):
        return
    for element in inside.split(","):
        key, _, counter = element.partition(" counter ")
        match = _COUNTER.match(counter)
        packets, size = (int(match[1]), int(match[2])) if match else (0, 0)
        yield Element(tuple(part.strip().strip('"') for part in key.split(" . ")), size, packets)
