"""The host's page: everything told, everything escaped, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node import pages
from codius_node.model import Currency, Isolation
from codius_node.pages import HostPage, render, render_amount, render_size, render_span

PAGE = HostPage(
    uri="https://codius.example.com",
    version="2.0.0",
    refusal=None,
    cost_per_month=Decimal(10),
    currency=Currency("XRP", 9),
    free_of_charge=False,
    peers=12,
    some_peers=("https://a.example", "https://b.example"),
    isolation=Isolation.GVISOR,
    free_memory=17 * 2**30,
    pods=7,
    uptime=5 * 86400 + 3600,
    service_uptime=125,
)
VOID = {"meta", "link", "br", "img"}


class Outline(HTMLParser):
    """Tags in order of nesting, and the text a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text.append(data)


def read(page: HostPage) -> tuple[Outline, str]:
    outline = Outline()
    outline.feed(render(page))
    outline.close()
    assert outline.open == []
    return outline, re.sub(r"\s+", " ", " ".join(outline.text))


def test_the_page_tells_what_a_visitor_wants_to_know() -> None:
    _, text = read(PAGE)
    for told in (
        "codius.example.com",
        "Accepting uploads",
        "10 XRP a month",
        "0.0137 XRP an hour",
        "0.00000381 XRP a second",
        "Isolation gVisor each pod has a kernel in user space",
        "17.0 GiB",
        "a pod has 512 MiB and one CPU",
        "Pods running 7",
        "Host up for 2 min",
        "Machine up for 5 days 1 h",
        "Known peers 12",
        "codiusd upload",
        "curl",
        "2.0.0",
    ):
        assert told in text


def test_every_class_of_isolation_has_words_and_an_unknown_one_is_not_mentioned() -> None:
    for isolation in Isolation:
        _, text = read(replace(PAGE, isolation=isolation))
        assert all(told in text for told in pages.ISOLATIONS[isolation])
    _, text = read(replace(PAGE, isolation=None))
    assert "Isolation" not in text


def test_other_hosts_are_linked_and_without_any_there_is_no_heading_for_them() -> None:
    outline, text = read(PAGE)
    links = {attributes["href"]: attributes["rel"] for tag, attributes in outline.tags if "rel" in attributes}
    assert links.items() >= dict.fromkeys(PAGE.some_peers, "nofollow noreferrer").items()
    assert "Other hosts" in text
    assert "Other hosts" not in read(replace(PAGE, some_peers=()))[1]


def test_a_refusal_says_why() -> None:
    _, text = read(replace(PAGE, refusal="full, for the moment"))
    assert "Not accepting uploads: full, for the moment" in text
    assert "Accepting uploads" not in text


def test_a_free_host_says_that_nobody_pays() -> None:
    _, text = read(replace(PAGE, free_of_charge=True))
    assert "Free" in text
    assert "charged to nobody" in text


def test_what_the_operator_keeps_private_is_not_there() -> None:
    _, text = read(replace(PAGE, free_memory=None, pods=None, uptime=None, service_uptime=None))
    for kept in ("Free memory", "Pods running", "up for"):
        assert kept not in text


def test_the_page_can_be_read_by_a_screen_reader_and_on_a_phone() -> None:
    outline, _ = read(PAGE)
    tags = dict(outline.tags)
    assert tags["html"]["lang"] == "en"
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in outline.tags
    names = [tag for tag, _ in outline.tags]
    assert names.count("h1") == 1
    assert names.count("main") == 1
    ids = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    for tag, attributes in outline.tags:
        if tag == "section":
            assert attributes["aria-labelledby"] in ids
    assert "prefers-color-scheme: dark" in pages.STYLE


def test_the_page_links_to_its_neighbours_and_loads_nothing() -> None:
    outline, _ = read(PAGE)
    links = [a["href"] for tag, a in outline.tags if tag == "a" and a["href"] not in PAGE.some_peers]
    assert links == ["/openapi.json", "/llms.txt", "/info", "/peers", "/version"]
    assert not [attributes for _, attributes in outline.tags if "src" in attributes]
    assert "url(" not in pages.STYLE
    assert "@import" not in pages.STYLE


def test_the_policy_names_the_style_and_the_script_that_are_in_the_page() -> None:
    document = render(PAGE)
    for tag in ("style", "script"):
        inner = re.search(rf"<{tag}>(.*?)</{tag}>", document, re.DOTALL)
        assert inner is not None
        digest = base64.b64encode(hashlib.sha256(inner[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in pages.POLICY


@given(text=st.text() | st.sampled_from(["<script>alert(1)</script>", '"onclick="x', "&lt;", "'"]))
def test_no_value_can_become_markup(text: str) -> None:
    plain = [tag for tag, _ in read(PAGE)[0].tags]
    outline, _ = read(replace(PAGE, uri=text, version=text, currency=Currency(text, 3)))
    assert [tag for tag, _ in outline.tags] == plain
    refused, _ = read(replace(PAGE, refusal=text, some_peers=(text, text)))
    assert [tag for tag, _ in refused.tags] == plain


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("10", "10"),
        ("0", "0"),
        ("0E+3", "0"),
        ("10.50", "10.5"),
        ("0.013698630136986", "0.0137"),
        ("0.0000001234", "0.000000123"),
        ("1E+6", "1000000"),
        ("1234567.891", "1234567.89"),
        ("100", "100"),
    ],
)
def test_amounts(amount: str, text: str) -> None:
    assert render_amount(Decimal(amount)) == text


def test_sizes_and_spans() -> None:
    space = "\N{NO-BREAK SPACE}"
    assert render_size(0) == f"0{space}MiB"
    assert render_size(512 * 2**20) == f"512{space}MiB"
    assert render_size(int(17.65 * 2**30)) == f"17.6{space}GiB"
    assert render_size(32 * 2**40) == f"32.0{space}TiB"
    assert render_span(0) == "less than a minute"
    assert render_span(60) == "1 min"
    assert render_span(3600) == "1 h 0 min"
    assert render_span(86400) == "1 day 0 h"
    assert render_span(3 * 86400 + 7200) == "3 days 2 h"
