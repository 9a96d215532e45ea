"""Which numbers a list of ranges denies: addresses, where the most specific range decides, and ports."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Span:
    """Whole numbers from `first` to `last`, both included; `denied` or let through."""

    first: int
    last: int
    denied: bool = True


@dataclass(frozen=True, slots=True)
class Ruling:
    """What one list says of a network. `rank` decides between rulings on the very same network."""

    network: Network
    denied: bool
    rank: int


@dataclass(frozen=True, slots=True)
class DeniedNumbers:
    """Disjoint spans in order, none touching the next: what is denied once every ruling was heard."""

    spans: tuple[Span, ...]

    def __contains__(self, number: int) -> bool:
        position = bisect_right(self.spans, number, key=_first) - 1
        return position >= 0 and number <= self.spans[position].last


def paint(spans: Iterable[Span]) -> DeniedNumbers:
    """Later spans paint over earlier ones."""
    denied: list[Span] = []
    for span in spans:
        kept = [piece for old in denied for piece in _cut(old, span)]
        denied = [*kept, span] if span.denied else kept
    merged: list[Span] = []
    for span in sorted(denied, key=_first):
        if merged and span.first <= merged[-1].last + 1:
            merged[-1] = Span(merged[-1].first, max(merged[-1].last, span.last))
        else:
            merged.append(span)
    return DeniedNumbers(tuple(merged))


def settle(rulings: Iterable[Ruling]) -> dict[Network, bool]:
    """Whether each network is denied, by its ruling of the highest rank; least specific ones first."""
    ordered = sorted(rulings, key=lambda ruling: (ruling.network.prefixlen, ruling.rank))
    return {ruling.network: ruling.denied for ruling in ordered}


def deny_addresses(settled: dict[Network, bool]) -> DeniedNumbers:
    """The addresses whose most specific network is a denied one (RFC 1812 5.2.4.3: longest match)."""
    return paint(
        Span(int(network.network_address), int(network.broadcast_address), denied)
        for network, denied in settled.items()
    )


def render_addresses(spans: Sequence[Span], version: int) -> list[str]:
    """`10.0.0.0-10.255.255.255`, as nftables reads it."""
    kind = IPv4Address if version == 4 else IPv6Address
    return [
        str(kind(span.first)) if span.first == span.last else f"{kind(span.first)}-{kind(span.last)}"
        for span in spans
    ]


def _cut(old: Span, hole: Span) -> Iterable[Span]:
    """What is left of a span."""
    if hole.last < old.first or old.last < hole.first:
        yield old
        return
    if old.first < hole.first:
        yield Span(old.first, hole.first - 1)
    if hole.last < old.last:
        yield Span(hole.last + 1, old.last)


def _first(span: Span) -> int:
    return span.first
