"""What language models are told of a host."""

from __future__ import annotations

from decimal import Decimal

from codius_node import llms, operations
from codius_node.jsontext import decode_json
from codius_node.model import Currency
from codius_node.schema import upload_problems


def text(*, free: bool = False) -> str:
    return llms.render(
        [operations.INFO, operations.UPLOAD, operations.LOGS],
        uri="https://codius.example.com",
        cost_per_month=Decimal(10),
        currency=Currency("XRP", 9),
        free_of_charge=free,
    )


def test_it_has_the_form_that_readers_of_llms_txt_expect() -> None:
    lines = text().splitlines()
    assert lines[0] == "# Codius host https://codius.example.com"
    assert lines[2].startswith("> ")
    assert [line for line in lines if line.startswith("## ")] == ["## Use", "## Requests"]


def test_what_it_costs_is_said_and_that_nobody_pays_on_a_free_host() -> None:
    assert "It costs 0.00000381 XRP a second, 0.0137 XRP an hour, 10 XRP a month." in text()
    assert "charged to nobody" in text(free=True)


def test_requests_are_listed_and_those_that_can_be_opened_are_links() -> None:
    assert "- [GET /info?requestPeers=…](https://codius.example.com/info): " in text()
    assert "- POST /pods?duration=…&progress=…: " in text()
    assert "- GET /pods/{hash}/logs?follow=…: " in text()


def test_the_example_is_an_upload_once_its_digest_is_filled_in() -> None:
    document = llms.EXAMPLE.replace("<64 hex digits>", "0" * 64)
    assert upload_problems(decode_json(document.encode(), limit=10_000)) == []
