"""Who may stay: connections counted per worker and per address, the idlest let go when it gets crowded."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import Final, Protocol

SPARED: Final = 16  # of the connections, one part is let go at once when a worker is full
PREFIX: Final = 64  # bits of an IPv6 address that are one customer's


class Visitor(Protocol):
    """A visitor's connection, as far as the site looks after it."""

    deadline: float

    @property
    def resting(self) -> bool:
        """Between two requests: nobody is let down when it ends."""
        ...

    def expired(self) -> None: ...
    def drain(self) -> None: ...
    def abort(self) -> None: ...


def origin_of(address: str) -> str:
    """Whom an address is counted for: itself, or its IPv6 network, of which one customer has 2**64."""
    if ":" not in address:
        return address
    found = ip_address(address)
    if not isinstance(found, IPv6Address):
        return address
    return str(IPv6Address(int(found) >> (128 - PREFIX) << (128 - PREFIX)))


class Admission:
    """The visitors of one worker."""

    def __init__(self, *, connections: int, per_client: int) -> None:
        self._connections = connections
        self._per_client = per_client
        self._by_origin: dict[str, int] = {}
        self.visitors: set[Visitor] = set()

    @property
    def full(self) -> bool:
        return len(self.visitors) >= self._connections

    @property
    def crowded(self) -> bool:
        """So many that even refusing one politely is too much."""
        return len(self.visitors) > self._connections * 5 // 4 + 16

    def enter(self, origin: str) -> bool:
        """Count one connection for `origin`; False, and not counted, when it has its share already."""
        count = self._by_origin.get(origin, 0)
        if count >= self._per_client:
            return False
        self._by_origin[origin] = count + 1
        return True

    def leave(self, origin: str) -> None:
        count = self._by_origin[origin] - 1
        if count:
            self._by_origin[origin] = count
        else:
            del self._by_origin[origin]

    def make_room(self) -> bool:
        """Let those go that have rested longest: a newcomer may have a request, they have none."""
        resting = sorted(
            (visitor for visitor in self.visitors if visitor.resting), key=lambda visitor: visitor.deadline
        )
        for visitor in resting[: max(1, self._connections // SPARED)]:
            visitor.drain()
        return bool(resting)
