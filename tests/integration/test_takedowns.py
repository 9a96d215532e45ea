"""Stops and the denylist: route first, time given back once, nothing comes back, whatever is killed when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from codius_node.errors import CodiusError, DeniedError, EngineError, NotFoundError, StoreError
from codius_node.model import Notice, Pod, PodState, PullProgress, Receipt
from codius_node.model import Quote as PriceQuote
from codius_node.store import EntryKind, PodChangedError
from codius_node.takedown import Denial, DenialKind, Enforcement, Stop, Terms, normalize
from tests.harness.engine import IMAGE, NOON, World, make_upload, open_world

LOUD: Final = Terms("Malware.", public=True)
QUIET: Final = Terms("Malware.", credit=False)
UPLOAD: Final = make_upload()
HASH: Final = UPLOAD.manifest.hash


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


def deny(
    kind: DenialKind = DenialKind.MANIFEST, value: str = HASH, *, takedown: bool = True, terms: Terms = LOUD
) -> Denial:
    return Denial(kind, normalize(kind, value), terms, takedown, NOON)


async def run(world: World, *, seconds: int = 600) -> Pod:
    pod = await world.engine.upload(UPLOAD, seconds, token=None)
    world.diary.take()
    return pod


async def seconds_given(world: World) -> dict[EntryKind, int]:
    given: dict[EntryKind, int] = {}
    for entry in await world.store.ledger(HASH):
        given[entry.kind] = given.get(entry.kind, 0) + entry.seconds
    return given


async def find_stop(world: World) -> Stop | None:
    """The one that is not over."""
    stops = (await world.store.stops([HASH])).get(HASH, [])
    return next((stop for stop in stops if stop.ended_at is None), None)


async def reconcile(world: World) -> None:
    await world.reconciler.reconcile()
    await world.reconciler.settle()


async def is_taken_down(world: World, notice: Notice = LOUD.notice) -> None:
    """Nothing of it is left but its books and its notice."""
    assert await world.store.pods() == []
    assert await world.containers.find_pods() == []
    assert await world.network.links() == frozenset()
    assert (world.routes.table, world.routes.notices) == ({}, {HASH: notice})


# ---- stops ----------------------------------------------------------------------------------------


async def test_a_stop_withdraws_the_route_first_and_waits_for_nobody(world: World) -> None:
    await run(world)
    world.clock.forward(seconds=100)
    stop = await world.engine.stop(HASH, LOUD)
    assert world.diary.take() == ["stop", "detach", "remove"]
    assert (stop.seconds, stop.held, stop.terms) == (500, 500, LOUD)
    await is_taken_down(world)
    with pytest.raises(NotFoundError):
        await world.engine.extend(HASH, 60, token=None)


@pytest.mark.parametrize(("terms", "more"), [(LOUD, 500), (QUIET, 0)])
async def test_the_rest_of_the_time_is_the_next_uploads_or_nobodys(
    world: World, terms: Terms, more: int
) -> None:
    await run(world)
    world.clock.forward(seconds=100)
    await world.engine.stop(HASH, terms)
    world.clock.forward(days=3)
    pod = await run(world, seconds=60)
    assert pod.expires_at == world.clock.now + timedelta(seconds=60 + more)
    assert (await world.store.ledger(HASH))[0].rail == ("takedown" if more else "free")
    assert (await seconds_given(world)).get(EntryKind.CREDIT, 0) == more
    assert world.routes.notices == {}
    world.clock.forward(seconds=60 + more)
    await reconcile(world)
    pod = await run(world, seconds=60)  # what was given back is not given again
    assert pod.expires_at == world.clock.now + timedelta(seconds=60)


async def test_what_is_left_is_counted_in_the_clients_favour(world: World) -> None:
    await run(world)
    world.clock.forward(seconds=99.5)
    assert (await world.engine.stop(HASH, LOUD)).seconds == 501


async def test_a_stop_done_twice_is_done_once(world: World) -> None:
    await run(world)
    first, second = await asyncio.gather(world.engine.stop(HASH, LOUD), world.engine.stop(HASH, LOUD))
    world.clock.forward(days=1)
    assert first == second == await world.engine.stop(HASH, LOUD)
    assert (await world.store.stops([HASH]))[HASH] == [first]
    assert world.diary.take().count("stop") == 1


async def test_the_terms_of_a_stop_can_be_changed_until_the_pod_is_back(world: World) -> None:
    await run(world)
    stop = await world.engine.stop(HASH, LOUD)
    world.clock.forward(days=1)
    changed = await world.engine.stop(HASH, QUIET)
    assert (changed.seconds, changed.created_at, changed.terms) == (stop.seconds, stop.created_at, QUIET)
    assert world.routes.notices == {HASH: QUIET.notice}
    pod = await run(world, seconds=60)
    assert pod.expires_at == world.clock.now + timedelta(seconds=60), "it is not credited any more"


async def test_what_does_not_run_is_not_stopped(world: World) -> None:
    with pytest.raises(NotFoundError):
        await world.engine.stop(HASH, LOUD)
    await run(world, seconds=10)
    world.clock.forward(seconds=10)
    with pytest.raises(NotFoundError):
        await world.engine.stop(HASH, LOUD)
    assert await find_stop(world) is None


async def test_a_pod_that_is_only_being_started_is_not_waited_for(world: World) -> None:
    pulling, pulled = hold_pull(world)
    upload = asyncio.create_task(world.engine.upload(UPLOAD, 600, token=None))
    await pulling.wait()
    with pytest.raises(PodChangedError, match="only being started"):
        await world.engine.stop(HASH, LOUD)
    pulled.set()
    await upload


async def test_a_stop_the_disk_refuses_leaves_the_pod_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise StoreError("the disk is full")

    pod = await run(world)
    monkeypatch.setattr(world.store, "stop_pod", full)
    with pytest.raises(StoreError):
        await world.engine.stop(HASH, LOUD)
    assert set(world.routes.table) == {HASH}
    assert await world.engine.get(HASH) == pod


async def test_a_stop_with_podman_away_holds_and_is_ended_later(world: World) -> None:
    await run(world)
    world.diary.fails["remove"] = EngineError("podman is away")
    stop = await world.engine.stop(HASH, LOUD)
    assert world.routes.table == {}
    assert [pod.state for pod in await world.store.pods()] == [PodState.STOPPING]
    assert await world.engine.stop(HASH, LOUD) == stop
    await reconcile(world)
    await is_taken_down(world)


async def test_a_pod_without_a_port_is_stopped_and_comes_back_without_a_notice(world: World) -> None:
    quiet = make_upload("quiet", port=None)
    await world.engine.upload(quiet, 600, token=None)
    await world.engine.stop(quiet.manifest.hash, LOUD)
    assert world.routes.notices == {quiet.manifest.hash: LOUD.notice}
    await world.engine.upload(quiet, 600, token=None)
    assert world.routes.notices == {}


async def test_the_traffic_of_a_stopped_pod_is_kept(world: World) -> None:
    from codius_netpolicy.traffic import Traffic, Volume

    pod = await run(world)
    sent = Traffic(Volume(1000, 1), Volume())
    world.network.count(pod.address, sent)
    await world.engine.stop(HASH, LOUD)
    assert await world.store.traffic([HASH]) == {HASH: sent}


# ---- the denylist ---------------------------------------------------------------------------------

NAMES: Final = [
    (DenialKind.MANIFEST, HASH),
    (DenialKind.IMAGE, "example.com/app"),
    (DenialKind.IMAGE, IMAGE.partition("@")[2]),
    (DenialKind.REGISTRY, "Example.com:443"),
]


@pytest.mark.parametrize(("kind", "value"), NAMES)
async def test_what_is_denied_is_neither_quoted_nor_started_nor_charged(
    world: World, kind: DenialKind, value: str
) -> None:
    assert (await world.engine.deny(deny(kind, value))).stopped == []
    with pytest.raises(DeniedError, match=r"Malware\."):
        await world.engine.upload(UPLOAD, 600, token="t")
    with pytest.raises(DeniedError):
        await world.engine.quote(UPLOAD, 600)
    assert world.diary.take() == []
    assert (await world.store.pods(), await world.store.ledger()) == ([], [])


@pytest.mark.parametrize(("kind", "value"), NAMES)
async def test_what_runs_already_is_taken_down_and_only_that(
    world: World, kind: DenialKind, value: str
) -> None:
    await run(world)
    assert (await world.engine.deny(deny(kind, value))).stopped == [HASH]
    assert world.diary.take() == ["stop", "detach", "remove"]
    await is_taken_down(world)
    assert (await find_stop(world)) is not None
    assert (await world.engine.deny(deny(kind, value))).stopped == []


async def test_others_run_on(world: World) -> None:
    await run(world)
    other = await world.engine.upload(make_upload("other"), 600, token=None)
    await world.engine.deny(deny())
    assert set(world.routes.table) == {other.hash}
    assert await world.engine.get(other.hash) == other


async def test_every_route_is_gone_before_the_first_pod_is_taken_down(world: World) -> None:
    for number in range(6):
        await world.engine.upload(make_upload(f"app-{number}"), 600, token=None)
    world.diary.take()
    found = await world.engine.deny(deny(DenialKind.REGISTRY, "example.com"))
    assert len(found.stopped) == 6
    assert world.diary.take()[:6] == ["stop"] * 6
    assert await world.store.pods() == []


async def test_what_runs_stays_where_the_operator_says_so_and_is_not_extended(world: World) -> None:
    pod = await run(world)
    assert (await world.engine.deny(deny(takedown=False))).stopped == []
    assert await world.engine.get(HASH) == pod
    for change in (world.engine.extend(HASH, 60, token=None), world.engine.upload(UPLOAD, 60, token=None)):
        with pytest.raises(DeniedError):
            await change
    assert (await world.engine.get(HASH)).expires_at == pod.expires_at
    world.containers.lose(HASH)
    await reconcile(world)
    assert set(world.routes.table) == {HASH}, "its time is paid for"
    assert (await world.engine.deny(deny(takedown=True))).stopped == [HASH]
    await is_taken_down(world)


async def test_what_is_admitted_again_can_be_uploaded_again_with_its_credit(world: World) -> None:
    await run(world)
    await world.engine.deny(deny())
    await world.engine.denials.remove(DenialKind.MANIFEST, HASH)
    with pytest.raises(NotFoundError):
        await world.engine.denials.remove(DenialKind.MANIFEST, HASH)
    assert (await run(world, seconds=1)).expires_at == NOON + timedelta(seconds=601)


def hold_pull(world: World) -> tuple[asyncio.Event, asyncio.Event]:
    """Pulls begin, and end when the second event is set."""
    pulling, pulled = asyncio.Event(), asyncio.Event()

    async def pull(image: str) -> AsyncGenerator[PullProgress, None]:
        pulling.set()
        await pulled.wait()
        yield PullProgress(image, "here")

    world.containers.pull = pull  # type: ignore[method-assign]
    return pulling, pulled


async def test_what_is_denied_while_it_is_uploaded_is_undone_and_not_charged(world: World) -> None:
    pulling, pulled = hold_pull(world)
    upload = asyncio.create_task(world.engine.upload(UPLOAD, 600, token=None))
    await pulling.wait()
    assert (await world.engine.deny(deny(takedown=False))).stopped == []
    pulled.set()
    with pytest.raises(DeniedError):
        await upload
    assert "claim" not in world.diary.take()
    assert (await world.store.pods(), await world.store.ledger()) == ([], [])
    assert await world.containers.find_pods() == []
    assert (world.routes.table, world.routes.notices) == ({}, {})


@pytest.mark.parametrize("takedown", [True, False])
async def test_what_is_denied_while_its_payment_is_claimed_is_stopped_like_what_runs(
    world: World, takedown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = world.rail.claim

    async def slowly(quote: PriceQuote, token: str | None) -> Receipt:
        await world.engine.deny(deny(takedown=takedown))
        return await claim(quote, token)

    monkeypatch.setattr(world.rail, "claim", slowly)
    upload = world.engine.upload(UPLOAD, 600, token=None)
    if takedown:
        with pytest.raises(DeniedError):
            await upload
        assert "publish" not in world.diary.take()
        await is_taken_down(world)
        stop = await find_stop(world)
        assert stop is not None
        assert stop.held == 600, "it was paid, and had nothing"
    else:
        await upload
        assert set(world.routes.table) == {HASH}


async def test_the_reconciler_takes_down_what_a_failing_host_left(world: World) -> None:
    await run(world)
    stop_pod = world.store.stop_pod

    async def full(*_: object) -> None:
        world.store.stop_pod = stop_pod  # type: ignore[method-assign]
        raise StoreError("the disk is full")

    world.store.stop_pod = full  # type: ignore[method-assign, assignment]
    assert await world.engine.deny(deny()) == Enforcement(stopped=[], waiting=[HASH])
    assert world.routes.table == {}, "it is not reached meanwhile"
    assert [pod.state for pod in await world.store.pods()] == [PodState.RUNNING]
    await reconcile(world)
    await is_taken_down(world)


# ---- over restarts --------------------------------------------------------------------------------


async def test_notices_and_denials_come_back_after_a_restart_and_pods_do_not(tmp_path: Path) -> None:
    async with open_world(tmp_path) as before:
        await run(before)
        await before.engine.deny(deny())
    async with open_world(tmp_path, clock=before.clock, remains=before) as after:
        await after.reconciler.recover()
        await is_taken_down(after)
        assert list(after.engine.denials.all()) == [deny()]
        with pytest.raises(DeniedError):
            await after.engine.upload(UPLOAD, 600, token=None)


async def test_a_notice_that_was_over_does_not_come_back(tmp_path: Path) -> None:
    async with open_world(tmp_path) as before:
        await run(before)
        await before.engine.stop(HASH, LOUD)
        await run(before)
    async with open_world(tmp_path, clock=before.clock, remains=before) as after:
        await after.reconciler.recover()
        assert (set(after.routes.table), after.routes.notices) == ({HASH}, {})
        after.clock.forward(days=1)
        await reconcile(after)
        assert (after.routes.table, after.routes.notices) == ({}, {}), "its time was simply over"


@pytest.mark.parametrize("lost", [False, True], ids=["running", "after a power cut"])
async def test_a_denied_pod_a_crash_left_is_taken_down_at_the_start_and_never_served(
    tmp_path: Path, lost: bool
) -> None:
    async with open_world(tmp_path) as before:
        await run(before)
        await reconcile(before)
        await before.store.put_denial(deny())  # and killed before anything else was done
    clock = before.clock
    clock.forward(seconds=1000 if lost else 100)
    async with open_world(tmp_path, clock=clock, remains=None if lost else before) as after:
        await after.reconciler.recover()
        assert "publish" not in after.diary.take()
        await is_taken_down(after)
        stop = await find_stop(after)
        assert stop is not None
        assert stop.held == (600 if lost else 500), "an outage is nobody's fault but the host's"


class Killed(BaseException):
    """The process is gone: no handler of ours runs."""


Kill = tuple[str, str, str]
STEPS: Final = [
    ("store", "stop_pod"),
    ("network", "detach"),
    ("containers", "remove"),
    ("store", "remove_pod"),
]
"""What a takedown does, in order."""


def kill(world: World, where: Kill) -> None:
    """At this point everything ends: what a handler or an undo would still do fails."""
    part, name, when = where
    door: Any = getattr(world, part)
    method: Callable[..., Awaitable[object]] = getattr(door, name)

    async def dead(*_: Any, **__: Any) -> None:
        raise Killed

    async def dying(*arguments: Any, **options: Any) -> None:
        if when == "after":
            await method(*arguments, **options)
        for other, effect in (("store", "_rows"), ("network", "detach"), ("containers", "remove")):
            setattr(getattr(world, other), effect, dead)
        raise Killed

    setattr(door, name, dying)


def points(*steps: tuple[str, str]) -> list[Kill]:
    return [(part, name, when) for part, name in steps for when in ("before", "after")]


async def ended(work: Awaitable[object]) -> None:
    """Killed, or told that somebody was."""
    try:
        await work
    except (Killed, CodiusError):
        return


@pytest.mark.parametrize("where", points(*STEPS), ids=" ".join)
async def test_a_stop_that_is_killed_anywhere_happened_wholly_or_not_at_all(
    tmp_path: Path, where: Kill
) -> None:
    async with open_world(tmp_path) as before:
        pod = await run(before)
        before.clock.forward(seconds=100)
        kill(before, where)
        with pytest.raises(Killed):
            await before.engine.stop(HASH, LOUD)
    async with open_world(tmp_path, clock=before.clock, remains=before) as after:
        await after.reconciler.recover()
        if where == ("store", "stop_pod", "before"):
            assert (set(after.routes.table), after.routes.notices) == ({HASH}, {})
            assert await after.engine.get(HASH) == pod
            assert await after.store.stops([HASH]) == {}
            await after.engine.stop(HASH, LOUD)
        await is_taken_down(after)
        [stop] = (await after.store.stops([HASH]))[HASH]
        assert (stop.seconds, stop.held) == (500, 500)
        assert await after.engine.stop(HASH, LOUD) == stop
        assert await seconds_given(after) == {EntryKind.UPLOAD: 600}
        again = await run(after, seconds=60)
        assert again.expires_at == after.clock.now + timedelta(seconds=560)


@pytest.mark.parametrize("where", points(("store", "put_denial"), *STEPS), ids=" ".join)
async def test_a_denial_that_is_killed_anywhere_is_in_force_wholly_or_not_at_all(
    tmp_path: Path, where: Kill
) -> None:
    async with open_world(tmp_path) as before:
        await run(before)
        before.clock.forward(seconds=100)
        kill(before, where)
        await ended(before.engine.deny(deny()))
    async with open_world(tmp_path, clock=before.clock, remains=before) as after:
        await after.reconciler.recover()
        if where == ("store", "put_denial", "before"):
            assert (set(after.routes.table), after.routes.notices) == ({HASH}, {})
            assert (await after.engine.deny(deny())).stopped == [HASH]
        await is_taken_down(after)
        [stop] = (await after.store.stops([HASH]))[HASH]
        assert stop.held == 500
        with pytest.raises(DeniedError):
            await after.engine.upload(UPLOAD, 60, token=None)
        assert (await after.engine.deny(deny())).stopped == []
        assert len((await after.store.stops([HASH]))[HASH]) == 1


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_credit_is_given_once_whenever_the_upload_that_has_it_is_killed(
    tmp_path: Path, when: str
) -> None:
    async with open_world(tmp_path) as before:
        await run(before)
        await before.engine.stop(HASH, LOUD)
        kill(before, ("store", "start_pod", when))
        kill(before, ("containers", "remove", "before"))
        with pytest.raises(Killed):
            await before.engine.upload(UPLOAD, 60, token=None)
    async with open_world(tmp_path, clock=before.clock, remains=before) as after:
        await after.reconciler.recover()
        pod = await after.store.find_pod(HASH)
        if when == "before":
            assert pod is None
            await is_taken_down(after)
            pod = await run(after, seconds=60)
        assert pod is not None
        assert pod.expires_at == NOON + timedelta(seconds=660)
        assert await seconds_given(after) == {EntryKind.UPLOAD: 660, EntryKind.CREDIT: 600}
        assert set(after.routes.table) == {HASH}
