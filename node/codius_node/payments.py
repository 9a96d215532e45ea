"""The rails money comes in by. Each turns a quote and a token into a receipt, at most once."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from codius_node.config import Settings
from codius_node.doors import Rail
from codius_node.model import Currency, ManifestHash, Quote, Receipt

FREE_CURRENCY: Final = Currency("DEV", 3)
"""What a free host counts its prices in; nobody is asked for them."""
PASS_BYTES: Final = 16
"""Random bytes of a pass: as long as any Pay-Token."""


def is_free(settings: Settings) -> bool:
    """Whether this host asks nobody for anything."""
    return settings.payments in {"", FreeRail.name}


class FreeRail:
    """The rail of a host that asks for nothing: every claim succeeds and costs 0."""

    name: Final = "free"
    currency: Final = FREE_CURRENCY

    async def authorize(self, quote: Quote, token: str | None) -> None:
        """Nothing to check before the work starts."""

    async def claim(self, quote: Quote, token: str | None) -> Receipt:
        """The token is not kept: nothing was paid with it."""
        return Receipt(rail=self.name, price=0, currency=self.currency, token=None)


class HouseRail:
    """Another rail, and beside it passes on the house: the host's test of itself cannot pay.

    A pass is good for so many seconds of one manifest, once, and only while the test is uploading it; it is
    in memory. It crosses the network as the test does, and is worth nothing there: who reads it could have
    the same minute of the same sample.
    """

    name: Final = "house"

    def __init__(self, rail: Rail) -> None:
        self._rail = rail
        self._passes: dict[str, tuple[ManifestHash, int]] = {}

    @property
    def currency(self) -> Currency:
        """The other rail's."""
        return self._rail.currency

    @contextmanager
    def grant(self, hash: ManifestHash, seconds: int) -> Iterator[str]:
        """A pass, good until the block is left."""
        token = secrets.token_urlsafe(PASS_BYTES)
        self._passes[token] = hash, seconds
        try:
            yield token
        finally:
            self._passes.pop(token, None)

    async def authorize(self, quote: Quote, token: str | None) -> None:
        """PaymentRequiredError where neither a pass nor the other rail lets it happen."""
        if not self._covers(quote, token):
            await self._rail.authorize(quote, token)

    async def claim(self, quote: Quote, token: str | None) -> Receipt:
        """A pass is used up; everything else is the other rail's."""
        if token is None or not self._covers(quote, token):
            return await self._rail.claim(quote, token)
        del self._passes[token]
        return Receipt(rail=self.name, price=0, currency=self.currency, token=None)

    def _covers(self, quote: Quote, token: str | None) -> bool:
        return token is not None and self._passes.get(token) == (quote.hash, quote.duration)
