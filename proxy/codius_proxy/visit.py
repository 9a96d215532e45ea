"""What is known about a request when it is over, for those who count and log."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from codius_proxy.identity import Identity
from codius_proxy.request import RequestHead


class End(Enum):
    """How a request ended."""

    ANSWERED = "answered by its target"
    REFUSED = "answered by us"
    UPGRADED = "became a tunnel, and that is over"
    TARGET_LOST = "the target broke off after its answer had begun"
    VISITOR_LOST = "the visitor left, or was too slow"


class Visit:
    """One request and what became of it."""

    __slots__ = (
        "end", "number", "pod", "reason", "received", "request", "seconds", "sent", "started", "status",
        "visitor",
    )  # fmt: skip

    def __init__(
        self,
        visitor: Identity,
        request: RequestHead | None,
        pod: str,
        status: int,
        received: int,
        sent: int,
        started: float,
        seconds: float,
        number: int,
        end: End,
        reason: str,
    ) -> None:
        self.visitor = visitor
        self.request = request  # None: there was no head to be read
        self.pod = pod  # the manifest hash, `api`, or nothing when it led nowhere
        self.status = status  # of the answer that was begun; 0 when there was none
        self.received = received  # bytes of the request's body, or of what came through the tunnel
        self.sent = sent  # bytes of the answer, its head included, and of the tunnel
        self.started = started  # time.monotonic when its head was complete
        self.seconds = seconds
        self.number = number  # of the request in its worker
        self.end = end
        self.reason = reason  # in one word, why it was refused or failed; empty when it was not


class Observer(Protocol):
    """Who hears of every request once, when it is over; on the hot path, so quickly done."""

    def visited(self, visit: Visit) -> None: ...

    def connected(self) -> None:
        """A visitor's connection was accepted."""
        ...

    def turned_away(self, reason: str) -> None:
        """A connection was ended without an answer; `reason` is one word."""
        ...

    def flush(self) -> None:
        """A moment with nothing on the hot path: pass on what was gathered."""
        ...

    async def aclose(self) -> None:
        """Nobody comes any more."""
        ...


class Unobserved:
    """Nobody counts."""

    def visited(self, visit: Visit) -> None:
        pass

    def connected(self) -> None:
        pass

    def turned_away(self, reason: str) -> None:
        pass

    def flush(self) -> None:
        pass

    async def aclose(self) -> None:
        pass
