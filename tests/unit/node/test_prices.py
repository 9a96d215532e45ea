"""The price over changes and restarts, with a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from codius_node.errors import StoreError
from codius_node.prices import PriceList
from codius_node.store import Store
from tests.harness.engine import Clock
from tests.unit.node.test_store import opened


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as store:
        yield store


def tell(prices: PriceList) -> tuple[str, str, bool]:
    """What is told, what is charged, and whether it was set at run time."""
    return str(prices.told), str(prices.charged), prices.chosen


async def load(store: Store, own: int, clock: Clock) -> PriceList:
    prices = PriceList(store=store, own=Decimal(own), clock=clock)
    await prices.load()
    return prices


async def test_what_was_set_is_there_after_a_restart_until_it_is_reset(store: Store) -> None:
    clock = Clock()
    prices = await load(store, 10, clock)
    assert (tell(prices), prices.earlier) == (("10", "10", False), ())
    await prices.set(Decimal("20.5"))
    again = await load(store, 10, clock)
    assert tell(again) == ("20.5", "10", True)
    await again.reset()
    clock.forward(minutes=11)
    last = await load(store, 10, clock)
    assert (tell(last), last.earlier) == (("10", "10", False), ())


async def test_other_settings_since_the_last_run_are_a_change_like_any_other(store: Store) -> None:
    clock = Clock()
    await load(store, 10, clock)
    dearer = await load(store, 30, clock)
    assert tell(dearer) == ("30", "10", False)
    clock.forward(minutes=5)
    assert (await load(store, 30, clock)).charged == 10
    clock.forward(minutes=6)
    assert (await load(store, 30, clock)).charged == 30


async def test_a_price_that_was_set_outlives_other_settings(store: Store) -> None:
    clock = Clock()
    await (await load(store, 10, clock)).set(Decimal(10))
    prices = await load(store, 30, clock)
    assert tell(prices) == ("10", "10", True)


async def test_a_change_the_disk_refuses_is_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = await load(store, 10, Clock())

    async def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "set_setting", full)
    with pytest.raises(StoreError):
        await prices.set(Decimal(20))
    assert tell(prices) == ("10", "10", False)


async def test_a_full_disk_keeps_no_host_from_starting(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    await load(store, 10, Clock())
    monkeypatch.setattr(store, "set_setting", full)
    assert (await load(store, 20, Clock())).charged == 10
    assert "the disk is full" in caplog.text
