"""What a list of ranges denies; a plain search for the most specific one is the judge."""

import itertools
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from codius_netpolicy.ranges import (
    DeniedNumbers,
    Ruling,
    Span,
    deny_addresses,
    paint,
    render_addresses,
    settle,
)

BASE = int(IPv4Address("203.0.113.0"))
"""A /26 of addresses to rule over: few enough to ask about each."""
SIZE = 64


@st.composite
def rulings(draw: st.DrawFn) -> Ruling:
    prefix = draw(st.integers(26, 32))
    step = 2 ** (32 - prefix)
    first = BASE + draw(st.integers(0, SIZE // step - 1)) * step
    return Ruling(IPv4Network((first, prefix)), draw(st.booleans()), draw(st.integers(0, 2)))


def search(heard: Sequence[Ruling], number: int) -> bool:
    """Longest prefix, then highest rank, then the last one said."""
    best = None
    for ruling in heard:
        if IPv4Address(number) in ruling.network:
            key = (ruling.network.prefixlen, ruling.rank)
            if best is None or key >= best[0]:
                best = (key, ruling.denied)
    return best is not None and best[1]


@given(st.lists(rulings(), max_size=12))
def test_the_most_specific_ruling_decides_about_each_address(heard: list[Ruling]) -> None:
    denied = deny_addresses(settle(heard))
    for number in range(BASE - 1, BASE + SIZE + 1):
        assert (number in denied) is search(heard, number), IPv4Address(number)


@given(st.lists(rulings(), max_size=12))
def test_spans_are_in_order_and_never_touch(heard: list[Ruling]) -> None:
    spans = deny_addresses(settle(heard)).spans
    assert all(span.first <= span.last for span in spans)
    assert all(one.last + 1 < two.first for one, two in itertools.pairwise(spans))


def test_later_spans_paint_over_earlier_ones() -> None:
    assert paint([Span(0, 100), Span(10, 20, denied=False), Span(15, 16)]) == DeniedNumbers(
        (Span(0, 9), Span(15, 16), Span(21, 100))
    )
    assert 9 in paint([Span(0, 9)])
    assert 10 not in paint([Span(0, 9)])
    assert 5 not in DeniedNumbers(())


def test_spans_are_written_as_nftables_reads_them() -> None:
    spans = [Span(int(IPv4Address("10.0.0.0")), int(IPv4Address("10.0.0.9"))), Span(1, 1)]
    assert render_addresses(spans, 4) == ["10.0.0.0-10.0.0.9", "0.0.0.1"]
    assert render_addresses([Span(1, 2)], 6) == ["::1-::2"]
