"""Sums over a manifest's books."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from codius_netpolicy.traffic import NO_TRAFFIC
from codius_node.model import Currency, ManifestHash
from codius_node.takedown import Stop, Terms
from codius_node.usage import Account, Usage, render_exactly
from tests.unit.node.test_lifecycle import NOW, pod

HASH = ManifestHash("a" * 52)


def stop(seconds: int, *, credit: bool = True, over: bool = False) -> Stop:
    return Stop(HASH, Terms("x", credit=credit), seconds, NOW, NOW + timedelta(1) if over else None)


@pytest.mark.parametrize(
    ("account", "stops", "left", "used", "held", "state"),
    [
        (Account(), [], None, 0, 0, "gone"),
        (Account(paid=3600), [], None, 3600, 0, "gone"),
        (Account(paid=3600), [], 600, 3000, 0, "running"),
        (Account(paid=3600, outage=500), [], 600, 3000, 0, "running"),
        (Account(paid=3600), [stop(600)], None, 3000, 600, "stopped"),
        (Account(paid=3600), [stop(600, credit=False)], None, 3000, 0, "stopped"),
        (Account(paid=3660, restored=600), [stop(600, over=True)], 660, 3000, 0, "running"),
        (Account(paid=3660, restored=600), [stop(600, over=True)], None, 3660, 0, "gone"),
        (Account(paid=3660), [stop(600, credit=False, over=True)], 60, 3000, 0, "running"),
        (Account(paid=10), [stop(11)], None, 0, 11, "stopped"),  # begun seconds are the client's
    ],
)
def test_what_was_used_is_what_was_given_and_neither_cut_off_nor_to_come(
    account: Account, stops: list[Stop], left: int | None, used: int, held: int, state: str
) -> None:
    usage = Usage(HASH, account, NO_TRAFFIC, stops, None if left is None else pod(expires=left))
    assert (usage.used(NOW), usage.left(NOW), usage.held, usage.state) == (used, left or 0, held, state)


@pytest.mark.parametrize(
    ("amount", "scale", "text"),
    [
        (0, 9, "0"), (14, 3, "0.014"), (10_000, 3, "10"), (12_500, 3, "12.5"), (7, 0, "7"), (700, 0, "700"),
        (10**40 + 1, 18, "10000000000000000000000.000000000000000001"),
    ],
)  # fmt: skip
def test_amounts_are_exact(amount: int, scale: int, text: str) -> None:
    assert render_exactly(Currency("X", scale).units(amount)) == text


def test_no_amount_has_an_exponent() -> None:
    assert render_exactly(Decimal("1E+3")) == "1000"
