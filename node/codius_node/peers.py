"""The other hosts this one knows of: persisted, sampled at random, never fetched from here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from codius_node.config import PublicUri, parse_public_uri

logger = logging.getLogger(__name__)

MAX_PEERS: Final = 10_000
"""Hosts remembered; a stranger who invents names must not fill the disk."""
MAX_SAMPLE: Final = 1000
"""Hosts told in one answer."""


class PeerStore(Protocol):
    """Where peers are kept."""

    async def add_peers(self, uris: Iterable[str], now: datetime) -> int:
        """How many of them are new."""
        ...

    async def sample_peers(self, limit: int) -> Sequence[str]:
        """At most `limit` of them, a fresh random choice every time."""
        ...

    async def count_peers(self) -> int: ...


def parse_peers(uris: Iterable[str], *, own: PublicUri | None = None) -> list[str]:
    """The usable ones as origins (`https://host`), each once, in order; this host itself is no peer."""
    found: dict[str, None] = {}
    for uri in uris:
        try:
            peer = parse_public_uri(uri)
        except ValueError:
            logger.debug("not a peer: %.200r", uri)
            continue
        if own is None or (peer.host, peer.port) != (own.host, own.port):
            found[peer.origin] = None
    return list(found)


class Peers:
    """The known hosts. Discovery will call `add` with what it hears; nothing here goes out to ask."""

    def __init__(
        self,
        store: PeerStore,
        *,
        bootstrap: Iterable[str] = (),
        own: PublicUri | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._bootstrap = tuple(bootstrap)
        self._own = own
        self._clock = clock

    async def start(self) -> None:
        """Take up the operator's list."""
        await self.add(self._bootstrap)

    async def add(self, uris: Iterable[str]) -> int:
        """Remember hosts, as many as there is room for; how many are new."""
        room = max(MAX_PEERS - await self._store.count_peers(), 0)
        peers = parse_peers(uris, own=self._own)[:room]
        return await self._store.add_peers(peers, self._clock()) if peers else 0

    async def sample(self, limit: int = MAX_SAMPLE) -> Sequence[str]:
        """A random choice of at most `limit` (and never more than MAX_SAMPLE)."""
        return await self._store.sample_peers(min(limit, MAX_SAMPLE))

    async def count(self) -> int:
        return await self._store.count_peers()
