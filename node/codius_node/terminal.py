"""What people and scripts read: text of strangers made harmless, colours, tables, JSON, lengths and sizes."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TextIO

from codius_node.model import Json

if TYPE_CHECKING:
    from rich.status import Status  # imported where a terminal is there to show it

COLOUR: Final = re.compile(r"\x1b\[[0-9;]{0,16}m")
SIZE_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Teller:
    """Steps on stderr: with a spinner on a terminal, as lines elsewhere, not at all when `quiet`."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        self._quiet = quiet
        self._title = title
        self._status: Status | None = None

    def __enter__(self) -> Teller:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.text import Text

            self._status = Console(stderr=True).status(Text(self._title))
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def tell(self, sentence: str) -> None:
        """Say one step."""
        if self._quiet:
            return
        line = clean(sentence)
        if self._status is None:
            print(line, file=sys.stderr, flush=True)
            return
        from rich.text import Text

        self._status.console.print(Text(f"  {line}", style="dim"))
        self._status.update(Text(line))


def render_length(seconds: int) -> str:
    """A length of time for people: its two largest units."""
    parts = []
    rest = max(seconds, 0)
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def render_size(count: int) -> str:
    """Bytes for people, in powers of a thousand as network people count: three digits at most."""
    size, units = float(count), iter(SIZE_UNITS)
    unit = next(units)
    while size >= 999.5 and unit != SIZE_UNITS[-1]:
        size, unit = size / 1000, next(units)
    return f"{size:.1f} {unit}" if unit != "B" and size < 99.95 else f"{size:.0f} {unit}"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first row is their titles."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def clean(text: str, *, colours: bool = False) -> str:
    """Text of strangers, without what a terminal would obey; `colours` may stay."""
    if not colours:
        return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    kept = COLOUR.findall(text)
    plain = [CONTROL.sub("\N{REPLACEMENT CHARACTER}", part) for part in COLOUR.split(text)]
    return "".join(part for pair in zip(plain, [*kept, ""], strict=True) for part in pair) + (
        "\x1b[0m" if kept else ""
    )


def paint(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if has_colours(sys.stdout) else text


def has_colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_json(document: Json) -> None:
    print(json.dumps(document, ensure_ascii=False), flush=True)


def say_error(message: str, hint: str | None) -> None:
    """One line, in red on a terminal: what happened, and what to do next."""
    text = clean(" ".join(message.split()))
    if has_colours(sys.stderr):
        text = f"\x1b[31m{text}\x1b[0m"
    print(f"codiusd: {text}" + (f" -- {clean(hint)}" if hint else ""), file=sys.stderr)
