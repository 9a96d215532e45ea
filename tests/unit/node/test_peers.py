"""Known hosts: who is asked when, what is believed, what is remembered, and what is not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node import peers
from codius_node.errors import CodiusError, RequestError
from codius_node.model import Json
from codius_node.peers import PeerError, Peers, check_identity, parse_discovery, parse_peers
from codius_node.replies import Discovery, render
from codius_node.schema import MAX_PEER_LIST, MAX_URI
from codius_node.uri import PublicUri, parse_public_uri

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OWN = parse_public_uri("https://own.example")
CHECK = timedelta(seconds=peers.CHECK_SECONDS)
A, B, C = "https://a.example", "https://b.example", "https://c.example"


class Memory:
    """A store that is a dictionary."""

    def __init__(self) -> None:
        self.added: dict[str, datetime] = {}
        self.failures: dict[str, int] = {}
        self.seen: dict[str, datetime] = {}

    async def add_peers(self, uris: Iterable[str], now: datetime) -> int:
        before = len(self.added)
        for uri in uris:
            self.added.setdefault(uri, now)
        return len(self.added) - before

    async def peers(self) -> Mapping[str, int]:
        return {uri: self.failures.get(uri, 0) for uri in self.added}

    async def note_peer(self, uri: str, ok: bool, now: datetime) -> None:
        self.failures[uri] = 0 if ok else self.failures.get(uri, 0) + 1
        if ok:
            self.seen[uri] = now

    async def remove_peer(self, uri: str) -> None:
        del self.added[uri]
        self.failures.pop(uri, None)

    async def sample_peers(self, limit: int) -> Sequence[str]:
        return list(self.added)[:limit]

    async def count_peers(self) -> int:
        return len(self.added)


class Web:
    """All other hosts. `knows` is whom each tells, `away` those that do not answer."""

    def __init__(self) -> None:
        self.knows: dict[str, list[str]] = {}
        self.away: set[str] = set()
        self.names: dict[str, Json] = {}
        """What a host calls itself, where that is not what it is asked by."""
        self.asked: list[tuple[str, str, str]] = []
        self.told: list[Json] = []
        self.at_once = self.most_at_once = 0

    def accepts(self, target: PublicUri) -> bool:
        return target.scheme == "https"

    async def ask(self, method: str, target: PublicUri, path: str, document: Json = None) -> Json:
        uri = target.origin
        self.asked.append((method, uri, path))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if uri in self.away:
            raise CodiusError(f"{uri} did not answer")
        if path == "/info":
            return {"uri": self.names.get(uri, uri), "fullMem": False}
        self.told.append(document)
        if uri not in self.knows:
            raise CodiusError(f"{uri} answered 404")
        return render(Discovery("Codiusd (Python)", "2", tuple(self.knows[uri])))

    @property
    def looked_at(self) -> list[str]:
        return [uri for method, uri, _ in self.asked if method == "GET"]


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def make_peers(
    store: Memory,
    *bootstrap: str,
    own: PublicUri | None = OWN,
    web: Web | None = None,
    clock: Clock | None = None,
) -> Peers:
    return Peers(
        store,
        web or Web(),
        bootstrap=bootstrap,
        own=own,
        clock=clock or Clock(),
        chance=random.Random(7),
        round_seconds=1e6,  # rounds only when a test asks for one
    )


async def test_the_operators_list_is_known_from_the_start() -> None:
    store = Memory()
    known = make_peers(store, "https://a.example", "https://b.example:8443/")
    await known.start()
    await known.aclose()
    await known.start()
    await known.aclose()
    assert store.added == {"https://a.example": NOON, "https://b.example:8443": NOON}
    assert await known.count() == 2


async def test_a_sample_is_as_long_as_asked_and_bounded() -> None:
    store = Memory()
    known = make_peers(store)
    assert await known.add(f"https://h{number}.example" for number in range(1500)) == 1500
    assert len(await known.sample(3)) == 3
    assert len(await known.sample(5000)) == MAX_PEER_LIST
    assert len(await known.sample()) == MAX_PEER_LIST


async def test_no_more_hosts_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MAX_PEERS", 3)
    store = Memory()
    known = make_peers(store)
    assert await known.add(["https://a.example", "https://b.example"]) == 2
    assert await known.add(["https://c.example", "https://d.example"]) == 1
    assert await known.add(["https://e.example"]) == 0
    assert await known.count() == 3


@pytest.mark.parametrize(
    ("uri", "peer"),
    [
        ("https://A.Example/", ["https://a.example"]),
        ("http://a.example:3000", ["http://a.example:3000"]),
        ("https://own.example", []),
        ("https://own.example:8443", ["https://own.example:8443"]),
        ("http://127.0.0.1", []),
        ("http://[::1]/", []),
        ("https://a.example/path", []),
        ("https://a.example?x", []),
        ("https://user@a.example", []),
        ("https://user:word@a.example", []),
        ("https://@a.example", []),
        (r"https://a.example\@b.example", []),
        ("https://a.example.", []),
        ("https://localhost.", []),
        ("https://a.example:65536", []),
        ("https://a.example:0", []),
        ("https://a.example:", ["https://a.example"]),
        ("https://a.example:-1", []),
        ("https://a..example", []),
        ("https://a.example%00", []),
        ("https://a_b.example", []),
        ("https://169.254.169.254", []),
        ("https://169.254.169.254.", []),
        ("https://2852039166", []),
        ("https://0251.0376.0251.0376", []),
        ("https://025177524776", []),
        ("https://169.254.43518", []),
        ("https://127.1", []),
        ("https://0", []),
        ("https://1\u3002example\u30021", []),
        ("https://\u2460\u2461\u2466.0.0.1", []),
        ("https://[fe80::1%25eth0]", []),
        ("https://[::ffff:169.254.169.254]", []),
        ("https://[64:ff9b::a9fe:a9fe]", []),
        ("file:///etc/passwd", []),
        ("javascript:alert(1)", []),
        ("https://a.example:99999", []),
        ("", []),
        ("nonsense", []),
    ],
)
def test_only_plain_origins_with_a_name_are_peers(uri: str, peer: list[str]) -> None:
    assert parse_peers([uri], own=OWN) == peer


@given(uris=st.lists(st.text(max_size=40) | st.sampled_from(["https://a.example", "http://[", "http://:x"])))
def test_no_text_breaks_the_list(uris: list[str]) -> None:
    found = parse_peers(uris, own=OWN)
    assert len(set(found)) == len(found)
    assert parse_peers(found, own=OWN) == found


# ---- looking around ---------------------------------------------------------------------------------


async def test_the_operators_hosts_are_looked_at_in_the_first_round_and_asked_whom_they_know() -> None:
    store, web = Memory(), Web()
    web.knows = {A: [B, "https://own.example", "nonsense"], B: [A, C]}
    known = make_peers(store, A, web=web)
    await known.start()
    await known.look_around()
    assert web.asked == [("GET", A, "/info"), ("POST", A, "/peers/discover")]
    assert web.told == [{"peers": [A, "https://own.example"]}]
    assert list(store.added) == [A]  # heard of B, and not seen it yet
    await known.look_around()
    assert set(store.added) == {A, B}
    await known.look_around()
    assert set(store.added) == {A, B, C}
    assert web.looked_at == [A, B, C]
    await known.aclose()


async def test_a_name_somebody_tells_is_no_peer_until_it_answers_as_one() -> None:
    store, web = Memory(), Web()
    web.away = {B}
    web.names = {C: "https://another.example"}
    known = make_peers(store, web=web)
    known.suggest(
        [A, B, C, "http://plain.example", "https://own.example/", "https://10.0.0.1", "https://x/y"]
    )
    assert store.added == {}
    assert web.asked == []
    await known.look_around()
    assert sorted(web.looked_at) == [A, B, C]
    assert set(store.added) == {A}


async def test_a_host_is_forgotten_after_many_failures_and_not_after_one() -> None:
    store, web, clock = Memory(), Web(), Clock()
    known = make_peers(store, A, B, web=web, clock=clock)
    await known.start()
    await known.look_around()
    web.away = {A}
    counts = []
    while A in store.added:
        clock.now += CHECK / 4
        await known.look_around()
        counts.append(store.failures.get(A))
        assert clock.now < NOON + 60 * CHECK
    assert sorted({count for count in counts if count}) == list(range(1, peers.MAX_FAILURES))
    assert timedelta(hours=24) < clock.now - NOON < timedelta(hours=48)
    assert (set(store.added), store.failures[B]) == ({B}, 0)
    await known.aclose()


async def test_one_answer_makes_up_for_all_failures() -> None:
    store, web, clock = Memory(), Web(), Clock()
    known = make_peers(store, web=web, clock=clock)
    store.added, store.failures = {A: NOON}, {A: peers.MAX_FAILURES - 1}
    await known.look_around()
    assert web.asked == []
    clock.now += CHECK
    await known.look_around()
    assert (store.failures, store.seen) == ({A: 0}, {A: clock.now})


async def test_an_operators_host_that_was_forgotten_is_asked_again_and_comes_back() -> None:
    store, web, clock = Memory(), Web(), Clock()
    web.away = {A}
    known = make_peers(store, A, web=web, clock=clock)
    await known.start()
    store.failures = {A: peers.MAX_FAILURES - 1}
    await known.look_around()
    assert store.added == {}
    clock.now += timedelta(days=1)
    await known.look_around()
    assert store.added == {}
    web.away = set()
    clock.now += timedelta(days=2)
    await known.look_around()
    assert set(store.added) == {A}
    await known.aclose()


async def test_an_operators_host_that_cannot_be_asked_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    store = Memory()
    known = make_peers(store, A, "http://plain.example")
    await known.start()
    await known.aclose()
    assert set(store.added) == {A}
    assert "http://plain.example" in caplog.text


async def test_known_hosts_are_looked_at_spread_over_the_time_of_a_check() -> None:
    store, web, clock = Memory(), Web(), Clock()
    store.added = {f"https://h{number}.example": NOON for number in range(200)}
    known = make_peers(store, web=web, clock=clock)
    each_round = []
    for _ in range(61):
        before = len(web.looked_at)
        await known.look_around()
        each_round.append(len(web.looked_at) - before)
        clock.now += CHECK / 60
    assert sorted(set(web.looked_at)) == sorted(store.added)
    assert max(each_round) <= peers.LOOKS_A_ROUND
    assert sum(1 for looks in each_round if looks) > 30
    assert web.most_at_once <= peers.LOOKS_AT_ONCE


async def test_strangers_cannot_make_us_ask_more_than_so_many_hosts_a_round() -> None:
    store, web = Memory(), Web()
    known = make_peers(store, web=web)
    for batch in range(20):
        known.suggest(f"https://h{batch}-{number}.example" for number in range(500))
    await known.look_around()
    assert len(web.looked_at) == peers.LOOKS_A_ROUND
    assert web.most_at_once == peers.LOOKS_AT_ONCE
    for _ in range(40):
        await known.look_around()
    assert len(web.looked_at) == len(set(web.looked_at)) == peers.MAX_CANDIDATES


async def test_no_more_hosts_are_looked_at_in_a_round_however_many_are_due() -> None:
    store, web, clock = Memory(), Web(), Clock()
    store.added = {f"https://h{number}.example": NOON for number in range(3 * peers.LOOKS_A_ROUND)}
    known = make_peers(store, web=web, clock=clock)
    await known.look_around()
    clock.now += CHECK
    for rounds in range(1, 4):
        await known.look_around()
        assert len(set(web.looked_at)) == len(web.looked_at) == rounds * peers.LOOKS_A_ROUND


async def test_hosts_that_were_looked_at_together_are_not_looked_at_together_again() -> None:
    store, web, clock = Memory(), Web(), Clock()
    known = make_peers(store, *(f"https://h{number}.example" for number in range(20)), web=web, clock=clock)
    await known.start()
    await known.look_around()
    assert len(web.looked_at) == 20
    clock.now += CHECK
    await known.look_around()
    assert 20 < len(web.looked_at) < 40
    await known.aclose()


async def test_the_time_between_two_rounds_is_left_to_chance() -> None:
    class Hasty(random.Random):
        def uniform(self, a: float, b: float) -> float:
            assert a < 1 < b
            return 1e-9

    class Waiting(Memory):
        rounds = 0
        again = asyncio.Event()

        async def peers(self) -> Mapping[str, int]:
            self.rounds += 1
            if self.rounds == 3:
                self.again.set()
            return {}

    store = Waiting()
    known = Peers(store, Web(), chance=Hasty(), round_seconds=1e6)
    await known.start()
    async with asyncio.timeout(10):
        await store.again.wait()
    await known.aclose()


async def test_whoever_tells_the_most_does_not_keep_all_others_out() -> None:
    store, web = Memory(), Web()
    known = make_peers(store, web=web)
    known.suggest(f"https://loud{number}.example" for number in range(peers.MAX_CANDIDATES))
    known.suggest(f"https://late{number}.example" for number in range(50))
    for _ in range(peers.MAX_CANDIDATES // peers.LOOKS_A_ROUND + 1):
        await known.look_around()
    late = [uri for uri in web.looked_at if "late" in uri]
    assert 0 < len(late) <= 50
    assert len(web.looked_at) == peers.MAX_CANDIDATES


async def test_a_host_that_tells_nonsense_stays_known_and_nothing_of_it_is_believed() -> None:
    store, web = Memory(), Web()
    web.knows = {A: [f"https://h{number}.example" for number in range(MAX_PEER_LIST + 1)]}
    known = make_peers(store, A, web=web)
    await known.start()
    await known.look_around()
    await known.look_around()
    assert (web.looked_at, set(store.added), store.failures) == ([A], {A}, {A: 0})
    await known.aclose()


async def test_a_host_that_nobody_can_reach_does_not_announce_itself() -> None:
    store, web = Memory(), Web()
    web.knows = {A: []}
    known = make_peers(store, A, web=web, own=parse_public_uri("http://codius.localhost:3000"))
    await known.start()
    await known.look_around()
    assert web.told == [{"peers": [A]}]
    await known.aclose()


async def test_rounds_go_on_after_one_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    rounds = 0
    again = asyncio.Event()

    class Broken(Memory):
        async def peers(self) -> Mapping[str, int]:
            nonlocal rounds
            rounds += 1
            if rounds == 3:
                again.set()
            raise CodiusError("the disk is full")

    known = Peers(Broken(), Web(), round_seconds=0.001)
    await known.start()
    async with asyncio.timeout(10):
        await again.wait()
    await known.aclose()
    assert caplog.text.count("the peers could not be looked at") == 1


# ---- what is said -----------------------------------------------------------------------------------


def test_what_one_host_says_another_reads() -> None:
    said = Discovery("Codiusd (Python)", "2.0.0", (A, B))
    assert parse_discovery(render(said)) == said
    assert parse_discovery({**render(said), "later": 1}) == said


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {"name": "x", "version": "1"},
        {"peers": []},
        {"name": "x", "version": "1", "peers": "https://a.example"},
        {"name": "x", "version": "1", "peers": [1]},
        {"name": "x", "version": "1", "peers": ["x" * (MAX_URI + 1)]},
        {"name": "x", "version": "1", "peers": [A] * (MAX_PEER_LIST + 1)},
        {"name": "x" * 300, "version": "1", "peers": []},
        {"name": 1, "version": "1", "peers": []},
    ],
)
def test_an_answer_of_another_shape_is_none(document: Json) -> None:
    with pytest.raises(RequestError):
        parse_discovery(document)


@pytest.mark.parametrize("uri", [A, "https://a.example/", "https://A.example:443"])
def test_a_host_is_who_it_says_it_is(uri: str) -> None:
    check_identity({"uri": uri}, parse_public_uri(A))


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"uri": None},
        {"uri": 1},
        {"uri": ""},
        {"uri": "https://a.example/x"},
        {"uri": B},
        {"uri": "http://a.example"},
        {"uri": "https://a.example:8443"},
        {"uri": "https://b.a.example"},
    ],
)
def test_a_host_that_names_itself_differently_is_not_the_one_that_was_asked(document: Json) -> None:
    with pytest.raises(PeerError, match=r"https://a\.example"):
        check_identity(document, parse_public_uri(A))


def test_the_longest_list_fits_into_what_is_read_of_an_answer() -> None:
    longest = f"https://{'a' * 63}.{'b' * 63}.{'c' * 62}:65535"
    assert parse_peers([longest]) == [longest]
    assert len(longest) <= MAX_URI
    document = render(Discovery("n" * 64, "v" * 64, (longest,) * peers.MAX_EXCHANGED))
    assert len(str(document)) < peers.MAX_LIST_BODY
