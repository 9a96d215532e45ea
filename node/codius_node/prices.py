"""The host's price: that of the settings or one set at run time, and the quotes that still count."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Final, cast

from codius_node.errors import StoreError
from codius_node.model import Json
from codius_node.pricing import Earlier, Prices
from codius_node.store import Store

logger = logging.getLogger(__name__)

PRICE_SETTING: Final = "cost_per_month"
"""The store's key of what was chosen, what was told last, and what was told before."""


class PriceList:
    """The price of a month, changed while the node runs: the store first, then what clients are told."""

    def __init__(self, *, store: Store, own: Decimal, clock: Callable[[], datetime]) -> None:
        """`own` is that of the settings."""
        self._store = store
        self._clock = clock
        self._prices = Prices(own)
        self._chosen: Decimal | None = None
        self._lock = asyncio.Lock()  # one change at a time: none may be lost between store and memory
        self.own = own

    @property
    def told(self) -> Decimal:
        """What clients are told now."""
        return self._prices.told

    @property
    def charged(self) -> Decimal:
        """What whoever pays now is charged: the lowest price told of late."""
        return self._prices.charged(self._clock())

    @property
    def chosen(self) -> bool:
        """Whether it was set at run time."""
        return self._chosen is not None

    @property
    def earlier(self) -> tuple[Earlier, ...]:
        """Lower prices that were told and still count."""
        now = self._clock()
        return tuple(price for price in self._prices.earlier if price.until >= now)

    async def load(self) -> None:
        """Take up what was chosen and told in an earlier run; other settings since then are a change."""
        saved = await self._store.get_setting(PRICE_SETTING)
        if isinstance(saved, str):  # before quotes were kept, only what was chosen was
            self._chosen, last = Decimal(saved), Prices(Decimal(saved))
        elif isinstance(saved, dict):
            self._chosen, last = _read(saved)
        else:
            last = Prices(self.own)
        told = self.own if self._chosen is None else self._chosen
        self._prices = last if told == last.told else last.changed(told, self._clock())
        if self._prices is not last:
            logger.info("the price has changed since the last run, from %s to %s", last.told, told)
        try:
            await self._keep(self._chosen, self._prices)
        except StoreError as error:  # a full disk must not keep the host from starting
            logger.warning("the price is not kept for the next start: %s", error)

    async def set(self, cost: Decimal) -> None:
        """From now on and across restarts."""
        async with self._lock:
            await self._change(cost)
        logger.info("price set to %s per month", cost)

    async def reset(self) -> None:
        """Back to that of the settings."""
        async with self._lock:
            await self._change(None)
        logger.info("price is that of the settings again: %s per month", self.own)

    async def _change(self, chosen: Decimal | None) -> None:
        told = self.own if chosen is None else chosen
        prices = self._prices if told == self._prices.told else self._prices.changed(told, self._clock())
        await self._keep(chosen, prices)
        self._prices, self._chosen = prices, chosen

    async def _keep(self, chosen: Decimal | None, prices: Prices) -> None:
        await self._store.set_setting(PRICE_SETTING, _render(chosen, prices), now=self._clock())


def _render(chosen: Decimal | None, prices: Prices) -> Json:
    return {
        "chosen": None if chosen is None else str(chosen),
        "told": str(prices.told),
        "earlier": [[str(price.cost), price.until.isoformat()] for price in prices.earlier],
    }


def _read(saved: dict[str, Json]) -> tuple[Decimal | None, Prices]:
    earlier = cast("list[list[str]]", saved["earlier"])
    return (
        None if saved["chosen"] is None else Decimal(str(saved["chosen"])),
        Prices(
            Decimal(str(saved["told"])),
            tuple(Earlier(Decimal(cost), datetime.fromisoformat(until)) for cost, until in earlier),
        ),
    )
