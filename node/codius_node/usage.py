"""What a manifest has paid for and had: sums over its ledger, its stops and its traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final

from codius_netpolicy.traffic import Traffic
from codius_node.model import Consumption, Currency, ManifestHash, Pod
from codius_node.takedown import Stop

TAKEDOWN_RAIL: Final = "takedown"
"""By which a ledger's credit came that gives a stopped pod's time back; an outage's comes by `outage`."""


@dataclass(frozen=True, slots=True)
class Account:
    """A manifest's ledger in sums, all in seconds: time `paid` for, `restored` after a takedown, and given
    back for an `outage`. `prices` are base units by currency.
    """

    paid: int = 0
    restored: int = 0
    outage: int = 0
    entries: int = 0
    prices: Mapping[Currency, int] = field(default_factory=dict)
    first: datetime | None = None
    last: datetime | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """All that is known of one manifest on this host; `pod` is None when it does not run."""

    hash: ManifestHash
    account: Account
    traffic: Traffic
    stops: Sequence[Stop]
    pod: Pod | None = None
    consumption: Consumption | None = None

    def left(self, now: datetime) -> int:
        """Whole seconds of paid time that are still to come."""
        return 0 if self.pod is None else max(int((self.pod.expires_at - now).total_seconds()), 0)

    def used(self, now: datetime) -> int:
        """Seconds it was there for: not those to come, not those a takedown cut off, not those of outages."""
        cut = sum(stop.seconds for stop in self.stops)
        return max(self.account.paid + self.account.restored - self.left(now) - cut, 0)

    @property
    def state(self) -> str:
        """That of its pod; without one `stopped`, while the operator's stop is not over, or `gone`."""
        if self.pod is not None:
            return self.pod.state.value
        return "stopped" if any(stop.ended_at is None for stop in self.stops) else "gone"

    @property
    def held(self) -> int:
        """Seconds that the next upload gets on top."""
        return sum(stop.held for stop in self.stops)


def render_exactly(amount: Decimal) -> str:
    """In plain digits, without zeros that say nothing: what books hold is not rounded."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
