"""The rails money comes in by. Each turns a quote and a token into a receipt, at most once."""

from __future__ import annotations

from typing import Final

from codius_node.model import Currency, Quote, Receipt

FREE_CURRENCY: Final = Currency("DEV", 3)
"""What a free host counts its prices in; nobody is asked for them."""


class FreeRail:
    """The rail of a host that asks for nothing: every claim succeeds and costs 0."""

    name: Final = "free"
    currency: Final = FREE_CURRENCY

    async def authorize(self, quote: Quote, token: str | None) -> None:
        """Nothing to check before the work starts."""

    async def claim(self, quote: Quote, token: str | None) -> Receipt:
        """The token is not kept: nothing was paid with it."""
        return Receipt(rail=self.name, price=0, currency=self.currency, token=None)
