"""Prices: the recorded ones, and exactness."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.parameters import MAX_DURATION
from codius_node.pricing import SECONDS_PER_MONTH, price
from tests.unit.node.documents import recorded

RECORDED = [
    (
        step["name"],
        step["request"]["path"].partition("duration=")[2] or "3600",
        json.loads(step["response"]["body"])["price"],
    )
    for step in recorded("golden/quote.json")["steps"]
    if step.get("response", {}).get("status") == 200 and "price" in step["response"]["body"]
]
WHOLE = [(name, int(text), int(price_text)) for name, text, price_text in RECORDED if text.isdecimal()]


@pytest.mark.parametrize(("name", "duration", "expected"), WHOLE, ids=[name for name, _, _ in WHOLE])
def test_every_recorded_price_agrees(name: str, duration: int, expected: int) -> None:
    assert price(duration, cost_per_month=Decimal(10), scale=3) == expected


def test_the_recorded_prices_are_many() -> None:
    assert len(WHOLE) > 40
    assert {expected for _, _, expected in WHOLE} >= {0, 1, 14, 9864, 10_000, 380517504, 38051750380518}


def test_a_price_of_nothing_is_nothing() -> None:
    assert price(3600, cost_per_month=Decimal(0), scale=9) == 0


def test_a_price_beyond_doubles_is_exact() -> None:
    cost = Decimal("0.1234567890123456789")
    assert price(SECONDS_PER_MONTH, cost_per_month=cost, scale=19) == 1234567890123456789
    assert price(SECONDS_PER_MONTH, cost_per_month=cost, scale=18) == 123456789012345679


@pytest.mark.parametrize("cost", ["NaN", "Infinity", "-1"])
def test_a_cost_that_is_no_cost_is_a_mistake_of_the_caller(cost: str) -> None:
    with pytest.raises(ValueError, match="no price for"):
        price(1, cost_per_month=Decimal(cost), scale=0)


COSTS = st.decimals(min_value=0, max_value=10**12, allow_nan=False, allow_infinity=False)
DURATIONS = st.integers(1, MAX_DURATION)


@given(COSTS, DURATIONS, st.integers(0, 18))
def test_a_price_is_never_below_the_exact_one_nor_a_whole_unit_above(
    cost: Decimal, duration: int, scale: int
) -> None:
    exact = Fraction(cost) * 10**scale * duration / SECONDS_PER_MONTH
    assert 0 <= price(duration, cost_per_month=cost, scale=scale) - exact < 1


@given(COSTS, DURATIONS, DURATIONS)
def test_buying_in_two_parts_is_never_cheaper(cost: Decimal, first: int, second: int) -> None:
    parts = [price(duration, cost_per_month=cost, scale=6) for duration in (first, second)]
    assert price(first + second, cost_per_month=cost, scale=6) <= sum(parts)
