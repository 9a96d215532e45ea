"""Who pays, and who is let in on the house."""

from __future__ import annotations

import pytest

from codius_node.config import load
from codius_node.errors import PaymentRequiredError
from codius_node.model import ManifestHash, Quote, Receipt
from codius_node.payments import FREE_CURRENCY, FreeRail, HouseRail, is_free

HASH = ManifestHash("a" * 52)
QUOTE = Quote(HASH, 60, 7)


class PaidRail(FreeRail):
    """One that everybody has to pay."""

    def __init__(self) -> None:
        self.claimed: list[str | None] = []

    async def authorize(self, quote: Quote, token: str | None) -> None:
        if token != "money":
            raise PaymentRequiredError("pay first")

    async def claim(self, quote: Quote, token: str | None) -> Receipt:
        await self.authorize(quote, token)
        self.claimed.append(token)
        return Receipt(rail="paid", price=quote.price, currency=FREE_CURRENCY, token=token)


async def test_a_pass_pays_once_for_what_it_was_given_for() -> None:
    rail = HouseRail(PaidRail())
    with rail.grant(HASH, 60) as token:
        await rail.authorize(QUOTE, token)
        await rail.authorize(QUOTE, token)  # nothing is used up before the work is done
        receipt = await rail.claim(QUOTE, token)
        assert (receipt.rail, receipt.price, receipt.token) == ("house", 0, None)
        for ask in (rail.authorize, rail.claim):
            with pytest.raises(PaymentRequiredError):
                await ask(QUOTE, token)


@pytest.mark.parametrize(
    "quote", [Quote(ManifestHash("b" * 52), 60, 7), Quote(HASH, 61, 7), Quote(HASH, 59, 7)]
)
async def test_a_pass_is_worth_nothing_for_anything_else(quote: Quote) -> None:
    rail = HouseRail(PaidRail())
    with rail.grant(HASH, 60) as token:
        for ask in (rail.authorize, rail.claim):
            with pytest.raises(PaymentRequiredError):
                await ask(quote, token)
        await rail.authorize(QUOTE, token)


async def test_a_pass_is_over_when_its_block_is_left() -> None:
    rail = HouseRail(PaidRail())
    with rail.grant(HASH, 60) as first, rail.grant(HASH, 60) as second:
        assert first != second
        await rail.claim(QUOTE, first)
    for token in (first, second):
        with pytest.raises(PaymentRequiredError):
            await rail.authorize(QUOTE, token)


async def test_all_others_pay_as_if_there_were_no_passes() -> None:
    paid = PaidRail()
    rail = HouseRail(paid)
    with rail.grant(HASH, 60):
        for token in (None, "", "x" * 22):
            with pytest.raises(PaymentRequiredError):
                await rail.authorize(QUOTE, token)
        await rail.authorize(QUOTE, "money")
        assert (await rail.claim(QUOTE, "money")).price == 7
    assert paid.claimed == ["money"]
    assert rail.currency == FREE_CURRENCY


@pytest.mark.parametrize("payments", ["", "free"])
def test_a_host_without_a_way_to_pay_is_free(payments: str) -> None:
    assert is_free(load({"CODIUS_PAYMENTS": payments}))
