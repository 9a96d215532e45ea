"""Known hosts: what is remembered, and what is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node import peers
from codius_node.config import PublicUri, parse_public_uri
from codius_node.peers import Peers, parse_peers

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OWN = parse_public_uri("https://own.example")


class Memory:
    """A store that is a dictionary."""

    def __init__(self) -> None:
        self.added: dict[str, datetime] = {}

    async def add_peers(self, uris: Iterable[str], now: datetime) -> int:
        before = len(self.added)
        for uri in uris:
            self.added.setdefault(uri, now)
        return len(self.added) - before

    async def sample_peers(self, limit: int) -> Sequence[str]:
        return list(self.added)[:limit]

    async def count_peers(self) -> int:
        return len(self.added)


def make_peers(store: Memory, *bootstrap: str, own: PublicUri | None = OWN) -> Peers:
    return Peers(store, bootstrap=bootstrap, own=own, clock=lambda: NOON)


async def test_the_operators_list_is_known_from_the_start() -> None:
    store = Memory()
    known = make_peers(store, "https://a.example", "https://b.example:8443/")
    await known.start()
    await known.start()
    assert store.added == {"https://a.example": NOON, "https://b.example:8443": NOON}
    assert await known.count() == 2


async def test_a_sample_is_as_long_as_asked_and_bounded() -> None:
    store = Memory()
    known = make_peers(store)
    assert await known.add(f"https://h{number}.example" for number in range(1500)) == 1500
    assert len(await known.sample(3)) == 3
    assert len(await known.sample(5000)) == peers.MAX_SAMPLE
    assert len(await known.sample()) == peers.MAX_SAMPLE


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
