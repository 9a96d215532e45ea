"""What a pod costs, exactly."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Final

SECONDS_PER_MONTH: Final = 2_628_000
"""A twelfth of 365 days: the month in which hosts state their price."""


def price(duration: int, *, cost_per_month: Decimal, scale: int) -> int:
    """Base units (10^-scale of the asset) for `duration` seconds, rounded up so that none is free."""
    if duration < 0 or scale < 0 or not cost_per_month.is_finite() or cost_per_month < 0:
        raise ValueError(f"no price for {duration} s at {cost_per_month} a month, scale {scale}")
    return math.ceil(Fraction(cost_per_month) * Fraction(10) ** scale * duration / SECONDS_PER_MONTH)
