"""Fires every probe with each of the walls, prints what was found, and writes docs/isolation.md."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from tests.system.isolation.arena import open_arena
from tests.system.isolation.layers import find_layers
from tests.system.isolation.page import MODES, NOWHERE, PAGE, Layer, render, tell
from tests.system.isolation.probes import build_probes


async def main() -> int:
    """1 when a probe did not end as it must."""
    found: dict[tuple[bool, str], Mapping[Layer, str]] = {}
    wrong = 0
    for ip6, title in MODES.items():
        async with open_arena(ip6=ip6) as arena:
            layers = find_layers(arena)
        found |= {(ip6, name): told for name, told in layers.items()}
        wrong += _print(title, ip6, layers)
    if wrong:
        print(f"{wrong} probes did not end as they must; {PAGE.name} is as it was")
        return 1
    PAGE.write_text(render(found))
    print(f"written: {PAGE}")
    return 0


def _print(title: str, ip6: bool, found: Mapping[str, Mapping[Layer, str]]) -> int:
    """How many probes are wrong with both walls."""
    table = Table("", "probe", "must reach", *Layer, "counted as", title=title)
    wrong = 0
    for probe in build_probes(ip6=ip6):
        expected = probe.expect(ip6)
        must = tell(expected.arrives, probe.sender)
        right = found[probe.name][Layer.BOTH] == must
        wrong += not right
        table.add_row(
            "[green]ok[/]" if right else "[red]WRONG[/]",
            probe.name,
            must,
            *(found[probe.name].get(layer, NOWHERE) for layer in Layer),
            expected.reason or "",
        )
    Console(width=200).print(table)
    return wrong


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
