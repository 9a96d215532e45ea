"""Prices: the recorded ones, and exactness."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.parameters import MAX_DURATION
from codius_node.pricing import HONOURED, MAX_EARLIER, SECONDS_PER_MONTH, Earlier, Prices, price
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


# ---- quotes that were given ------------------------------------------------------------------------

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def minute(number: float) -> datetime:
    return NOON + timedelta(minutes=number)


def follow(first: int, *changes: tuple[float, int]) -> Prices:
    prices = Prices(Decimal(first))
    for at, cost in changes:
        prices = prices.changed(Decimal(cost), minute(at))
    return prices


@pytest.mark.parametrize(
    ("changes", "at", "charged"),
    [
        ((), 0, 10),
        (((0, 20),), 0, 10),
        (((0, 20),), 9.99, 10),
        (((0, 20),), 10, 10),
        (((0, 20),), 10.01, 20),
        (((0, 5),), 0, 5),  # a lower price counts at once
        (((0, 5),), 9, 5),
        (((0, 20), (5, 30)), 5, 10),
        (((0, 20), (5, 30)), 10.01, 20),
        (((0, 20), (5, 30)), 15.01, 30),
        (((0, 20), (5, 8)), 6, 8),
        (((0, 20), (5, 8), (6, 30)), 9, 8),
        (((0, 20), (5, 8), (6, 30)), 16.01, 30),
        (((0, 20), (5, 10)), 12, 10),
        (((0, 0), (5, 10)), 14, 0),  # nothing is a price, too
        (((5, 20), (0, 30)), 4, 10),  # a clock that went back takes no quote away
    ],
)
def test_what_is_charged_is_the_lowest_price_of_the_last_ten_minutes(
    changes: tuple[tuple[float, int], ...], at: float, charged: int
) -> None:
    assert follow(10, *changes).charged(minute(at)) == charged


def test_only_what_can_still_be_the_lowest_is_kept() -> None:
    assert follow(10, (0, 20), (1, 5)).earlier == ()
    assert follow(10, (0, 20), (20, 30)).earlier == (Earlier(Decimal(20), minute(30)),)
    assert follow(10, (0, 10)).earlier == ()


_CHANGES = st.lists(st.tuples(st.floats(0, 4, allow_nan=False), st.integers(0, 20)), max_size=40)


@given(st.integers(0, 20), _CHANGES, st.floats(0, 30, allow_nan=False))
def test_nobody_pays_more_than_they_were_told_and_nobody_less_than_was_ever_asked_of_late(
    first: int, steps: list[tuple[float, int]], later: float
) -> None:
    prices, at = Prices(Decimal(first)), 0.0
    history = [(0.0, first)]
    for pause, cost in steps:
        at += pause
        prices = prices.changed(Decimal(cost), minute(at))
        history.append((at, cost))
    paid_at = at + later
    ends = [begin for begin, _ in history[1:]] + [paid_at]
    counting = [
        cost
        for (_, cost), end in zip(history, ends, strict=True)
        if minute(end) + HONOURED >= minute(paid_at)
    ]
    charged = prices.charged(minute(paid_at))
    assert charged <= min(counting)
    assert len(prices.earlier) <= MAX_EARLIER
    if len(steps) <= MAX_EARLIER:
        assert charged == min(counting)
    if later > HONOURED.total_seconds() / 60 + 0.01:
        assert charged == prices.told
