"""The operator's books over a real database: stops, denials, sums, pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from codius_node import books
from codius_node.books import DenylistFullError
from codius_node.errors import NotFoundError
from codius_node.model import Currency, PodState
from codius_node.store import LATEST, EntryKind, PodChangedError, Store
from codius_node.takedown import Denial, DenialKind, Stop, Terms
from codius_node.usage import Account
from tests.unit.node.test_store import HOUR, NOW, XRP, add_running, make_entry, make_pod, opened

CREDITED, KEPT = Terms("why", public=True), Terms("why", legal=True, credit=False)
ONE = make_pod("one").hash


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as store:
        yield store


async def start_again(store: Store, name: str, *, seconds: int = 60) -> timedelta:
    """The next life of a manifest; how much longer than paid for it is given."""
    await store.remove_pod(make_pod(name).hash)
    pod = make_pod(name)
    await store.add_pod(pod, {})
    until = NOW + timedelta(seconds=seconds)
    pod = await store.start_pod(pod.hash, expires_at=until, entry=make_entry(pod, seconds=seconds))
    return pod.expires_at - until


async def test_a_stop_is_written_with_the_pods_state_and_comes_back_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await add_running(store, "one")
        stop = await store.stop_pod(ONE, KEPT, NOW + timedelta(minutes=10))
        assert stop == Stop(ONE, KEPT, 3000, NOW + timedelta(minutes=10))
        assert [pod.state for pod in await store.pods()] == [PodState.STOPPING]
    async with opened(tmp_path) as store:
        assert await store.open_stops(10) == [stop]
        assert await store.stops([ONE]) == {ONE: [stop]}


async def test_only_a_running_pod_is_stopped_and_once(store: Store) -> None:
    with pytest.raises(NotFoundError):
        await store.stop_pod(ONE, CREDITED, NOW)
    await store.add_pod(make_pod("one"), {})
    with pytest.raises(PodChangedError):
        await store.stop_pod(ONE, CREDITED, NOW)
    await store.start_pod(ONE, expires_at=NOW + HOUR, entry=make_entry(make_pod("one")))
    await store.stop_pod(ONE, CREDITED, NOW)
    with pytest.raises(PodChangedError):
        await store.stop_pod(ONE, CREDITED, NOW)
    assert len((await store.stops([ONE]))[ONE]) == 1


@pytest.mark.parametrize(
    ("terms", "at", "given"),
    [
        (CREDITED, timedelta(0), 3600),
        (CREDITED, timedelta(seconds=3599.5), 1),
        (CREDITED, timedelta(hours=2), 0),
        (KEPT, timedelta(0), 0),
    ],
)
async def test_credited_time_is_given_to_the_next_life_once(
    store: Store, terms: Terms, at: timedelta, given: int
) -> None:
    await add_running(store, "one")
    await store.stop_pod(ONE, terms, NOW + at)
    assert await start_again(store, "one") == timedelta(seconds=given)
    credits = [entry for entry in await store.ledger(ONE) if entry.kind is EntryKind.CREDIT]
    assert [(entry.seconds, entry.price, entry.rail) for entry in credits] == (
        [(given, 0, "takedown")] if given else []
    )
    [stop] = (await store.stops([ONE]))[ONE]
    assert (stop.ended_at, stop.held) == (NOW, 0)
    assert await store.open_stops(10) == []
    assert await start_again(store, "one") == timedelta(0)


async def test_a_start_that_is_refused_spends_no_credit(store: Store) -> None:
    await add_running(store, "one", token="t")
    await store.stop_pod(ONE, CREDITED, NOW)
    await store.remove_pod(ONE)
    pod = make_pod("one")
    await store.add_pod(pod, {})
    with pytest.raises(Exception, match="spent already"):
        await store.start_pod(ONE, expires_at=NOW + HOUR, entry=make_entry(pod, "t"))
    [stop] = await store.open_stops(10)
    assert stop.held == 3600


async def test_the_terms_of_a_stop_are_amended_until_it_is_over(store: Store) -> None:
    assert await store.amend_stop(ONE, KEPT) is None
    await add_running(store, "one")
    assert await store.amend_stop(ONE, KEPT) is None
    stop = await store.stop_pod(ONE, CREDITED, NOW)
    assert await store.amend_stop(ONE, KEPT) == replace(stop, terms=KEPT)
    assert await store.open_stops(10) == [replace(stop, terms=KEPT)]
    assert await start_again(store, "one") == timedelta(0)
    assert await store.amend_stop(ONE, CREDITED) is None


async def test_a_credit_never_leads_past_the_calendar(store: Store) -> None:
    await add_running(store, "one")
    await store._rows("UPDATE pods SET expires_at = ?", LATEST)
    await store.stop_pod(ONE, CREDITED, NOW)
    await start_again(store, "one")
    [row] = await store._rows("SELECT expires_at FROM pods")
    assert row["expires_at"] == LATEST


async def test_open_stops_are_the_newest_oldest_first(store: Store) -> None:
    for number in range(4):
        await add_running(store, f"{number}", f"10.0.0.{number + 1}")
        await store.stop_pod(make_pod(f"{number}").hash, CREDITED, NOW)
    assert [stop.hash for stop in await store.open_stops(2)] == [make_pod(f"{n}").hash for n in (2, 3)]


def denial(value: str, **change: object) -> Denial:
    plain = Denial(DenialKind.REGISTRY, value, CREDITED, takedown=True, created_at=NOW)
    return replace(plain, **change)  # type: ignore[arg-type]


async def test_denials_come_back_in_order_and_one_name_has_one(tmp_path: Path) -> None:
    changed = denial("b.example", terms=KEPT, takedown=False, created_at=NOW + HOUR)
    async with opened(tmp_path) as store:
        for entry in (denial("b.example"), denial("a.example"), changed):
            await store.put_denial(entry)
    async with opened(tmp_path) as store:
        assert await store.denials() == [changed, denial("a.example")]
        assert await store.remove_denial(DenialKind.REGISTRY, "b.example")
        assert not await store.remove_denial(DenialKind.REGISTRY, "b.example")
        assert not await store.remove_denial(DenialKind.IMAGE, "a.example")
        assert await store.denials() == [denial("a.example")]


async def test_a_full_denylist_takes_changes_and_no_more_entries(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "MAX_DENIALS", 2)
    for name in ("a.example", "b.example", "a.example"):
        await store.put_denial(denial(name))
    with pytest.raises(DenylistFullError):
        await store.put_denial(denial("c.example"))
    assert len(await store.denials()) == 2


async def test_accounts_are_the_sums_of_the_ledger(store: Store) -> None:
    pod = await add_running(store, "one")
    large, dev = 10**30 + 7, Currency("DEV", 3)
    for seconds, price, currency in ((10, large, XRP), (20, large, XRP), (30, 5, dev)):
        entry = make_entry(pod, seconds=seconds, price=price, currency=currency, kind=EntryKind.EXTENSION)
        await store.extend_pod(ONE, seconds=seconds, entry=replace(entry, created_at=NOW + HOUR))
    outage = make_entry(pod, seconds=5, price=0, kind=EntryKind.CREDIT, rail="outage")
    expiry = (await store.pods())[0].expires_at
    await store.move_expiry(ONE, expiry + timedelta(seconds=5), expected=expiry, entry=outage)
    await store.stop_pod(ONE, CREDITED, NOW)
    await start_again(store, "one")
    await add_running(store, "two", "10.0.0.2")
    accounts = await store.accounts([ONE, make_pod("none").hash])
    assert accounts == {
        ONE: Account(
            paid=3600 + 60 + 60,
            restored=3665,
            outage=5,
            entries=7,
            prices={XRP: 14 + 2 * large + 14, dev: 5},
            first=NOW,
            last=NOW + HOUR,
        )
    }
    whole = await store.whole_account()
    assert (whole.paid, whole.entries) == (3720 + 3600, 8)
    assert whole.prices == {XRP: 14 + 2 * large + 14 + 14, dev: 5}


async def test_an_empty_ledger_has_an_empty_account(store: Store) -> None:
    assert await store.whole_account() == Account()
    assert await store.latest_manifests(10) == []


async def test_manifests_and_entries_come_in_pages(store: Store) -> None:
    names = ["a", "b", "c", "d"]
    for number, name in enumerate(names):
        await add_running(store, name, f"10.0.0.{number + 1}")
    pod = make_pod("a")
    await store.extend_pod(pod.hash, seconds=3600, entry=make_entry(pod, kind=EntryKind.EXTENSION))
    expected = [(make_pod(name).hash, id) for name, id in (("a", 5), ("d", 4), ("c", 3), ("b", 2))]
    assert await store.latest_manifests(10) == expected
    assert await store.latest_manifests(2) == expected[:2]
    assert await store.latest_manifests(2, before=4) == expected[2:]
    assert [entry.id for entry in await store.ledger(pod.hash, limit=1)] == [5]
    assert [entry.id for entry in await store.ledger(pod.hash, before=5)] == [1]
