"""Response rate limiting: how many answers over UDP one network gets, whoever forged its name."""

from __future__ import annotations

import secrets
from enum import Enum
from typing import Final

PREFIX4: Final = 3  # bytes: /24, what one site announces at least
PREFIX6: Final = 7  # bytes: /56, what one site is given
SLOTS: Final = 1 << 16
"""Counters, for all networks together: fixed, so that a flood from everywhere costs no memory. Two networks
may share one; the innocent one then gets truncated answers, and asks again over TCP or with a cookie."""
WINDOW: Final = 1.0  # seconds that are counted together
SLIP: Final = 2
"""Every second answer too many is sent truncated: a resolver whose name was forged can still get through over
TCP, and a truncated answer is no longer than its question, so nothing is amplified."""


def network_of(address: bytes) -> bytes:
    """The part of a packed address that stands for everybody at one site."""
    return address[: PREFIX4 if len(address) == 4 else PREFIX6]


class Verdict(Enum):
    """What becomes of an answer."""

    SEND = "send"
    TRUNCATE = "truncate"
    DROP = "drop"


class RateLimit:
    """Counts answers by network in windows of a second; one per worker."""

    def __init__(self, per_second: int) -> None:
        self._most = int(per_second * WINDOW)
        self._counts = [0] * SLOTS
        self._salt = secrets.token_bytes(8)  # so that nobody outside can aim at a counter
        self._ends = 0.0

    def turn(self, now: float) -> None:
        """Begin a new window when the last one is over."""
        if now >= self._ends:
            self._ends = now + WINDOW
            self._counts = [0] * SLOTS

    def judge(self, network: bytes) -> Verdict:
        """For one more answer to this network (a prefix of an address)."""
        slot = hash(self._salt + network) % SLOTS
        count = self._counts[slot] = self._counts[slot] + 1
        if count <= self._most:
            return Verdict.SEND
        return Verdict.TRUNCATE if count % SLIP == 0 else Verdict.DROP
