"""The other hosts this one knows of: found by asking those it knows, looked at again and again, forgotten."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, cast

from codius_node import schema, shapes
from codius_node.errors import CodiusError
from codius_node.model import Json
from codius_node.replies import Discovery
from codius_node.schema import MAX_PEER_LIST
from codius_node.uri import PublicUri, parse_public_uri

logger = logging.getLogger(__name__)

MAX_PEERS: Final = 10_000
"""Hosts remembered; a stranger who invents names must not fill the disk."""
MAX_EXCHANGED: Final = 200
"""Hosts that two hosts tell each other at once: with names of any length, within the 64 KB of an answer."""
MAX_CANDIDATES: Final = 1000
"""Names that were heard and not yet looked at; when there are more, chance decides which are kept."""
MAX_LIST_BODY: Final = 320 * 1024
"""Bytes of a list that somebody sends: as many addresses as it may have, each as long as it may be."""


ROUND_SECONDS: Final = 60.0
"""Between two rounds on average; chance makes it half as long or half as long again."""
LOOKS_A_ROUND: Final = 32
"""Known hosts looked at in one round, and as many candidates: what strangers can make us ask in a minute."""
LOOKS_AT_ONCE: Final = 4
"""Hosts being asked at the same moment."""
CHECK_SECONDS: Final = 3600.0
"""Between two looks at a host; doubled with every failure in a row after the first."""
MAX_FAILURES: Final = 6
"""Failures in a row after which a host is forgotten: it has been away for 31 hours by then."""


class PeerError(CodiusError):
    """What answered there is not the host that was asked for."""


class PeerStore(Protocol):
    """Where peers are kept."""

    async def add_peers(self, uris: Iterable[str], now: datetime) -> int:
        """How many of them are new."""
        ...

    async def peers(self) -> Mapping[str, int]:
        """All of them, with their failures in a row."""
        ...

    async def note_peer(self, uri: str, ok: bool, now: datetime) -> None: ...
    async def remove_peer(self, uri: str) -> None: ...
    async def sample_peers(self, limit: int) -> Sequence[str]:
        """At most `limit` of them, a fresh random choice every time."""
        ...

    async def count_peers(self) -> int: ...


class Outbound(Protocol):
    """The way out; it goes nowhere that a stranger should not send us."""

    def accepts(self, target: PublicUri) -> bool: ...
    async def ask(self, method: str, target: PublicUri, path: str, document: Json = None) -> Json:
        """The JSON of the answer; CodiusError when there is none."""
        ...


_LABEL: Final = shapes.Text(f"a string of at most {schema.MAX_LABEL} bytes", schema.MAX_LABEL)
_DISCOVERY: Final = shapes.Record(
    "a JSON object with name, version and peers",
    {"name": _LABEL, "version": _LABEL, "peers": schema.PEER_URIS},
)


def parse_peer_list(document: Json) -> list[str]:
    """The names in the body of a `POST /peers/discover`; RequestError when it is none."""
    shapes.check(schema.PEER_LIST, document)
    return cast("dict[str, list[str]]", document)["peers"]


def parse_discovery(document: Json) -> Discovery:
    """Another host's answer to it, whatever else it may hold; RequestError when it is none."""
    if isinstance(document, dict):
        document = {key: value for key, value in document.items() if key in _DISCOVERY.fields}
    shapes.check(_DISCOVERY, document)
    found = cast("dict[str, str]", document)
    return Discovery(found["name"], found["version"], tuple(cast("dict[str, list[str]]", document)["peers"]))


def check_identity(document: Json, asked: PublicUri) -> None:
    """PeerError unless this `/info` is of a host that has the very name it was asked by."""
    uri = document.get("uri") if isinstance(document, dict) else None
    try:
        named = parse_public_uri(uri) if isinstance(uri, str) else None
    except ValueError:
        named = None
    if named is None:
        raise PeerError(f"what answers at {asked} is no host: its /info has no uri")
    if named != asked:
        raise PeerError(f"what answers at {asked} calls itself {named}")


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
    """The known hosts. A name that somebody tells is a candidate, and a peer once it was looked at and is
    what it says; the operator's own are peers from the start.

    In the background, from `start` to `aclose`: rounds in which some are asked who they are and whom they
    know. Their failures are counted in the store; when each is due is not, so that a node which is restarted
    again and again forgets nobody sooner.
    """

    def __init__(
        self,
        store: PeerStore,
        outbound: Outbound,
        *,
        bootstrap: Iterable[str] = (),
        own: PublicUri | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: random.Random | None = None,
        round_seconds: float = ROUND_SECONDS,
    ) -> None:
        self._store = store
        self._outbound = outbound
        self._bootstrap = tuple(parse_peers(bootstrap, own=own))
        self._own = own
        self._clock = clock
        self._chance = chance or random.SystemRandom()
        self._round_seconds = round_seconds
        self._candidates: list[str] = []
        self._due: dict[str, datetime] = {}
        self._rounds: asyncio.Task[None] | None = None

    # ---- what the API asks ------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up the operator's list, and begin to look around."""
        usable = [uri for uri in self._bootstrap if self._accepts(uri)]
        for uri in set(self._bootstrap) - set(usable):
            logger.warning("CODIUS_BOOTSTRAP_PEERS: %s is left out: hosts are asked by https", uri)
        self._bootstrap = tuple(usable)
        await self.add(self._bootstrap)
        self._due = dict.fromkeys(self._bootstrap, self._clock())
        self._rounds = asyncio.create_task(self._go_round(), name="peers")

    async def aclose(self) -> None:
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.gather(self._rounds, return_exceptions=True)
            self._rounds = None

    def suggest(self, uris: Iterable[str]) -> None:
        """Names somebody told, to be looked at when there is time."""
        known = {*self._due, *self._candidates}
        for uri in parse_peers(uris, own=self._own):
            if uri in known or not self._accepts(uri):
                continue
            if len(self._candidates) < MAX_CANDIDATES:
                self._candidates.append(uri)
            else:  # whoever tells the most must not keep all others out
                self._candidates[self._chance.randrange(MAX_CANDIDATES)] = uri

    async def add(self, uris: Iterable[str]) -> int:
        """Remember hosts, as many as there is room for; how many are new."""
        room = max(MAX_PEERS - await self._store.count_peers(), 0)
        peers = parse_peers(uris, own=self._own)[:room]
        return await self._store.add_peers(peers, self._clock()) if peers else 0

    async def sample(self, limit: int = MAX_PEER_LIST) -> Sequence[str]:
        """A random choice of at most `limit` (and never more than MAX_PEER_LIST)."""
        return await self._store.sample_peers(min(limit, MAX_PEER_LIST))

    async def count(self) -> int:
        return await self._store.count_peers()

    # ---- looking around ---------------------------------------------------------------------------

    async def _go_round(self) -> None:
        """For ever. The same trouble again is not news."""
        said: str | None = None
        while True:
            await asyncio.sleep(self._round_seconds * self._chance.uniform(0.5, 1.5))
            try:
                await self.look_around()
            except Exception as error:  # a round that failed must not be the last
                if repr(error) != said:
                    said = repr(error)
                    logger.exception("the peers could not be looked at")
            else:
                said = None

    async def look_around(self) -> None:
        """One round: the known hosts that are due, and some of the candidates."""
        known = await self._store.peers()
        chosen = self._choose(known)
        turn = asyncio.Semaphore(LOOKS_AT_ONCE)

        async def look(uri: str) -> None:
            async with turn:
                await self._look_at(uri, known.get(uri))

        async with asyncio.TaskGroup() as group:
            for uri in chosen:
                group.create_task(look(uri), name=f"peer {uri}")

    def _choose(self, known: Mapping[str, int]) -> list[str]:
        """Who is looked at now. Known hosts without a time yet get one by chance, within a check's time."""
        now = self._clock()
        kept = {*known, *self._bootstrap}
        self._due = {uri: due for uri, due in self._due.items() if uri in kept}
        for uri in kept - self._due.keys():
            self._due[uri] = now + timedelta(seconds=CHECK_SECONDS * self._chance.random())
        due = sorted((uri for uri in kept if self._due[uri] <= now), key=lambda uri: self._due[uri])
        heard = [uri for uri in self._candidates if uri not in kept]
        self._candidates = heard[LOOKS_A_ROUND:]
        return [*due[:LOOKS_A_ROUND], *heard[:LOOKS_A_ROUND]]

    async def _look_at(self, uri: str, failures: int | None) -> None:
        """`failures` is None for a host that is not known (any more)."""
        peer = parse_public_uri(uri)
        try:
            check_identity(await self._outbound.ask("GET", peer, "/info"), peer)
        except CodiusError as error:
            logger.debug("peer %s: %s", uri, error)
            await self._note_failure(uri, failures)
            return
        if failures is None:
            if not await self.add([uri]):
                return  # no room
            logger.info("peer %s: found", uri)
        await self._store.note_peer(uri, True, self._clock())
        self._plan_next(uri, failures=0)
        try:
            self.suggest(await self._exchange(peer))
        except CodiusError as error:  # it is a host all the same; old ones may not know how
            logger.debug("peer %s tells nobody: %s", uri, error)

    async def _exchange(self, peer: PublicUri) -> Sequence[str]:
        """Whom it knows, told whom we know."""
        told = list(await self.sample(MAX_EXCHANGED - 1))
        if self._own is not None and self._outbound.accepts(self._own):
            told.append(self._own.origin)
        document = await self._outbound.ask("POST", peer, "/peers/discover", {"peers": cast(Json, told)})
        return parse_discovery(document).peers

    async def _note_failure(self, uri: str, failures: int | None) -> None:
        if failures is None and uri not in self._bootstrap:
            return  # a candidate that is none: nobody will remember it
        failures = (failures or 0) + 1
        self._plan_next(uri, failures=failures)
        if failures >= MAX_FAILURES:
            logger.info("peer %s: forgotten, it failed %d times in a row", uri, failures)
            await self._store.remove_peer(uri)
        else:
            await self._store.note_peer(uri, False, self._clock())

    def _plan_next(self, uri: str, *, failures: int) -> None:
        seconds = CHECK_SECONDS * 2 ** max(failures - 1, 0) * self._chance.uniform(0.9, 1.1)
        self._due[uri] = self._clock() + timedelta(seconds=seconds)

    def _accepts(self, uri: str) -> bool:
        return self._outbound.accepts(parse_public_uri(uri))
