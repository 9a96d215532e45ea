"""What a pod costs, exactly, and how long a price that was told counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final

SECONDS_PER_MONTH: Final = 2_628_000
"""A twelfth of 365 days: the month in which hosts state their price."""
MAX_COST: Final = 10**12
"""Currency units a month that an operator may set, as for CODIUS_COST_PER_MONTH."""
HONOURED: Final = timedelta(minutes=10)
"""How long a quote counts: nobody is charged more than they were told so long ago or less."""
MAX_EARLIER: Final = 16
"""Earlier prices kept at once. More changes than that within `HONOURED` make some count a little longer."""


def price(duration: int, *, cost_per_month: Decimal, scale: int) -> int:
    """Base units (10^-scale of the asset) for `duration` seconds, rounded up so that none is free."""
    if duration < 0 or scale < 0 or not cost_per_month.is_finite() or cost_per_month < 0:
        raise ValueError(f"no price for {duration} s at {cost_per_month} a month, scale {scale}")
    return math.ceil(Fraction(cost_per_month) * Fraction(10) ** scale * duration / SECONDS_PER_MONTH)


@dataclass(frozen=True, slots=True)
class Earlier:
    """A price that was told until a moment ago, and counts until `until`."""

    cost: Decimal
    until: datetime


@dataclass(frozen=True, slots=True)
class Prices:
    """The price of a month that is told now, and those told before that still count.

    Quotes are given to people without a name, so nobody knows who was told what. Whoever pays while a lower
    price still counts pays that one: then nobody pays more than any quote of the last `HONOURED` said.
    """

    told: Decimal
    earlier: tuple[Earlier, ...] = ()

    def charged(self, now: datetime) -> Decimal:
        """What a month costs whoever pays now."""
        return min((self.told, *(price.cost for price in self.earlier if price.until >= now)))

    def changed(self, cost: Decimal, now: datetime) -> Prices:
        """The prices from now on; only those are kept that can still be the lowest."""
        until = now + HONOURED
        kept = [price for price in (*self.earlier, Earlier(self.told, until)) if price.until >= now]
        # From the one that counts longest: an earlier end counts only where the price is lower.
        useful: list[Earlier] = []
        for price in sorted(kept, key=lambda price: price.until, reverse=True):
            if price.cost < min((cost, *(other.cost for other in useful))):
                useful.append(price)
        while len(useful) > MAX_EARLIER:
            # The two lowest become one, which counts as long as either: in the clients' favour.
            lowest = useful.pop()
            useful[-1] = Earlier(lowest.cost, useful[-1].until)
        return Prices(cost, tuple(reversed(useful)))
