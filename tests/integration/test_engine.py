"""Uploads, extensions, expiry and recovery: effects in order, undone when they fail, safe to repeat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from codius_netpolicy.probes import Result, Verdict
from codius_netpolicy.traffic import NO_TRAFFIC, Reason, Traffic, Volume
from codius_node import lifecycle
from codius_node.engine import UPLOADS_AT_ONCE
from codius_node.errors import (
    CodiusError,
    EngineError,
    ForbiddenError,
    HostFullError,
    ImageError,
    NetworkError,
    NotFoundError,
    PaymentRequiredError,
    PodStartError,
    StoreError,
)
from codius_node.model import FoundPod, ManifestHash, PodState, PullProgress
from codius_node.store import EntryKind
from tests.harness.engine import GIB, NOON, World, make_upload, open_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


async def nothing_is_left(world: World) -> None:
    assert await world.store.pods() == []
    assert await world.containers.find_pods() == []
    assert await world.network.links() == frozenset()
    assert world.routes.table == {}
    assert await world.store.ledger() == []


# ---- upload ---------------------------------------------------------------------------------------


async def test_an_upload_publishes_its_route_last(world: World) -> None:
    upload = make_upload()
    pod = await world.engine.upload(upload, 600, token=None)
    assert world.diary.take() == [
        *("authorize", "pull", "create", "start infra", "attach", "start members", "check members"),
        *("claim", "publish"),
    ]
    assert pod.state is PodState.RUNNING
    assert pod.expires_at == NOON + timedelta(seconds=600)
    assert world.routes.table[pod.hash].port == 8080
    assert world.routes.table[pod.hash].address == str(pod.address)
    [entry] = await world.store.ledger()
    assert (entry.kind, entry.seconds, entry.price) == (EntryKind.UPLOAD, 600, 0)


EFFECTS = [
    ("authorize", PaymentRequiredError("pay first")),
    ("pull", ImageError("no such image")),
    ("create", EngineError("podman is away")),
    ("start infra", EngineError("podman is away")),
    ("attach", NetworkError("no link")),
    ("start members", PodStartError("exited at once")),
    ("check members", PodStartError("exited at once")),
    ("claim", PaymentRequiredError("not paid")),
]


@pytest.mark.parametrize(("effect", "error"), EFFECTS, ids=[effect for effect, _ in EFFECTS])
async def test_whatever_fails_everything_is_undone_and_nothing_charged(
    world: World, effect: str, error: CodiusError
) -> None:
    world.diary.fails[effect] = error
    with pytest.raises(type(error)):
        await world.engine.upload(make_upload(), 600, token=None)
    await nothing_is_left(world)
    assert "publish" not in world.diary.take()
    await world.engine.upload(make_upload(), 600, token=None)  # the next upload works
    assert len(world.routes.table) == 1


async def test_what_cannot_be_undone_yet_is_found_by_the_reconciler(world: World) -> None:
    world.diary.fails = {"claim": PaymentRequiredError("no"), "remove": EngineError("podman is away")}
    with pytest.raises(PaymentRequiredError):
        await world.engine.upload(make_upload(), 600, token=None)
    assert len(await world.containers.find_pods()) == 1
    await world.reconciler.reconcile()
    await world.reconciler.settle()
    await nothing_is_left(world)


async def test_a_cancelled_upload_is_undone(world: World) -> None:
    stuck = asyncio.Event()

    async def hang(_: object) -> None:
        stuck.set()
        await asyncio.Event().wait()

    world.containers.start_infra = hang  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(world.engine.upload(make_upload(), 600, token=None))
    await stuck.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await nothing_is_left(world)


@pytest.mark.parametrize("failing", ["attach", "prepare_members"])
async def test_what_runs_side_by_side_is_over_before_it_is_undone(world: World, failing: str) -> None:
    """The network is wired while the containers are prepared: an undo must not meet the one still at work."""
    begun = asyncio.Event()
    entries = world.diary.entries

    async def fail(*_: object) -> None:
        await begun.wait()
        raise PodStartError("not today")

    async def take_long(*_: object) -> None:
        begun.set()
        for _turn in range(50):
            await asyncio.sleep(0)
        entries.append("over")

    for name, door in (("attach", world.network), ("prepare_members", world.containers)):
        setattr(door, name, fail if name == failing else take_long)
    with pytest.raises(PodStartError):
        await world.engine.upload(make_upload(), 600, token=None)
    assert entries[-3:] == ["over", "detach", "remove"]
    await nothing_is_left(world)


async def test_the_same_manifest_again_extends_from_the_old_expiry(world: World) -> None:
    await world.engine.upload(make_upload(), 600, token=None)
    world.clock.forward(seconds=100)
    world.diary.take()
    pod = await world.engine.upload(make_upload(), 50, token=None)
    assert pod.expires_at == NOON + timedelta(seconds=650)
    assert world.diary.take() == ["authorize", "claim"]


async def test_two_uploads_of_one_manifest_at_once_make_one_pod(world: World) -> None:
    both = (world.engine.upload(make_upload(), 600, token=None) for _ in range(2))
    pods = await asyncio.gather(*both)
    assert max(pod.expires_at for pod in pods) == NOON + timedelta(seconds=1200)
    assert world.diary.take().count("create") == 1


async def test_twenty_uploads_at_once_get_twenty_addresses(world: World) -> None:
    pods = await asyncio.gather(
        *(world.engine.upload(make_upload(f"app-{n}"), 600, token=None) for n in range(20))
    )
    assert len({pod.address for pod in pods}) == 20
    assert len(world.routes.table) == 20


async def test_a_pod_without_a_port_has_no_route(world: World) -> None:
    await world.engine.upload(make_upload(port=None), 600, token=None)
    assert world.routes.table == {}


async def test_a_full_host_refuses_before_anything_is_made(world: World) -> None:
    world.machine.available = 6 * GIB
    with pytest.raises(HostFullError, match="memory"):
        await world.engine.upload(make_upload(), 600, token=None)
    await nothing_is_left(world)
    assert (await world.engine.capacity()).full


async def test_a_full_disk_refuses_before_anything_is_made(world: World) -> None:
    world.machine.disk = 1
    with pytest.raises(HostFullError, match="disk"):
        await world.engine.upload(make_upload(), 600, token=None)
    await nothing_is_left(world)


async def test_uploads_under_way_count_as_used_memory(world: World) -> None:
    world.machine.available = int(24 * GIB * 0.25) + GIB  # room for two small pods
    results = await asyncio.gather(
        *(world.engine.upload(make_upload(f"app-{n}"), 600, token=None) for n in range(5)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, HostFullError) for result in results) == 3


async def test_more_uploads_at_once_than_the_bound_are_asked_to_come_back(world: World) -> None:
    world.machine.available = world.machine.total = 1000 * GIB
    results = await asyncio.gather(
        *(world.engine.upload(make_upload(f"app-{n}"), 600, token=None) for n in range(UPLOADS_AT_ONCE + 3)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, HostFullError) for result in results) == 3


# ---- extension, reading ---------------------------------------------------------------------------


async def test_an_extension_counts_from_the_old_expiry_and_is_in_the_ledger(world: World) -> None:
    pod = await world.engine.upload(make_upload(), 600, token=None)
    world.clock.forward(seconds=500)
    pod = await world.engine.extend(pod.hash, 60, token=None)
    assert pod.expires_at == NOON + timedelta(seconds=660)
    assert {entry.kind for entry in await world.store.ledger()} == {EntryKind.UPLOAD, EntryKind.EXTENSION}


async def test_an_unpaid_extension_changes_nothing(world: World) -> None:
    pod = await world.engine.upload(make_upload(), 600, token=None)
    world.diary.fails["claim"] = PaymentRequiredError("no")
    with pytest.raises(PaymentRequiredError):
        await world.engine.extend(pod.hash, 60, token=None)
    assert (await world.engine.get(pod.hash)).expires_at == pod.expires_at


async def test_an_expired_pod_is_not_found_even_before_the_reconciler_comes(world: World) -> None:
    pod = await world.engine.upload(make_upload(), 600, token=None)
    world.clock.forward(seconds=600)
    with pytest.raises(NotFoundError):
        await world.engine.get(pod.hash)
    with pytest.raises(NotFoundError):
        await world.engine.extend(pod.hash, 60, token=None)


async def test_an_expired_manifest_uploaded_again_at_once_is_a_new_pod(world: World) -> None:
    await world.engine.upload(make_upload(), 600, token=None)
    world.clock.forward(seconds=601)
    pod = await world.engine.upload(make_upload(), 60, token=None)
    assert pod.expires_at == world.clock.now + timedelta(seconds=60)
    assert world.diary.take().count("create") == 2


async def test_logs_are_for_debug_manifests_only(world: World) -> None:
    secret = await world.engine.upload(make_upload("secret"), 600, token=None)
    with pytest.raises(ForbiddenError):
        await world.engine.logs(secret.hash, follow=False)
    loud = await world.engine.upload(make_upload("loud", debug=True), 600, token=None)
    assert [line async for line in await world.engine.logs(loud.hash, follow=False)] == []


async def test_a_price_set_at_run_time_survives_a_restart(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.engine.prices.set(Decimal("2.5"))
    async with open_world(tmp_path) as world:
        assert world.engine.cost_per_month == Decimal("2.5")
        assert (await world.engine.quote(make_upload(), 2628000)).price == 2500


# ---- expiry and recovery --------------------------------------------------------------------------


async def test_expiry_withdraws_the_route_first_and_the_row_last(world: World) -> None:
    await world.engine.upload(make_upload(), 600, token=None)
    world.diary.take()
    world.clock.forward(seconds=600)
    await world.reconciler.reconcile()
    await world.reconciler.settle()
    assert world.diary.take() == ["unpublish", "detach", "remove"]
    assert await world.store.pods() == []


async def test_a_route_is_withdrawn_on_time_when_podman_is_away(world: World) -> None:
    await world.engine.upload(make_upload(), 600, token=None)
    world.clock.forward(seconds=600)
    world.diary.fails["find pods"] = EngineError("podman is away")
    with pytest.raises(EngineError):
        await world.reconciler.reconcile()
    assert world.routes.table == {}


async def test_a_pod_extended_between_plan_and_step_stays(world: World) -> None:
    pod = await world.engine.upload(make_upload(), 600, token=None)
    world.clock.forward(seconds=599)
    await world.engine.extend(pod.hash, 60, token=None)
    world.clock.forward(seconds=2)
    await world.reconciler.reconcile()
    await world.reconciler.settle()
    assert pod.hash in world.routes.table


async def test_an_expiry_that_fails_half_way_is_ended_next_time(world: World) -> None:
    await world.engine.upload(make_upload(), 600, token=None)
    world.clock.forward(seconds=600)
    world.diary.fails["remove"] = EngineError("podman is away")
    await world.reconciler.reconcile()
    await world.reconciler.settle()
    assert [pod.state for pod in await world.store.pods()] == [PodState.STOPPING]
    await world.reconciler.reconcile()
    await world.reconciler.settle()
    assert await world.store.pods() == []
    assert await world.containers.find_pods() == []


async def test_a_pod_that_comes_up_while_podman_is_asked_is_left_alone(world: World) -> None:
    find_pods = world.containers.find_pods

    async def slow() -> list[FoundPod]:
        found = await find_pods()
        await world.engine.upload(make_upload(), 600, token=None)
        return found

    world.containers.find_pods = slow  # type: ignore[method-assign]
    await world.reconciler.reconcile()
    await world.reconciler.settle()
    assert world.diary.take().count("create") == 1
    assert len(world.routes.table) == 1


async def test_a_step_planned_for_an_earlier_pod_of_the_same_name_does_nothing(world: World) -> None:
    old = await world.engine.upload(make_upload(), 600, token=None)
    world.clock.forward(seconds=601)
    await world.engine.upload(make_upload(), 600, token=None)
    world.diary.take()
    await world.engine.apply(lifecycle.Restart(old, old.expires_at))
    await world.engine.apply(lifecycle.Expire(old))
    assert world.diary.take() == []


async def test_a_surprise_with_one_pod_does_not_end_the_care_for_others(world: World) -> None:
    pods = [await world.engine.upload(make_upload(f"app-{n}"), 600, token=None) for n in range(2)]
    world.clock.forward(seconds=600)
    remove = world.containers.remove

    async def surprise(hash: ManifestHash) -> None:
        if hash == pods[0].hash:
            raise RuntimeError("a bug")
        await remove(hash)

    world.containers.remove = surprise  # type: ignore[method-assign]
    await world.reconciler.reconcile()
    await world.reconciler.settle()
    assert [pod.hash for pod in await world.store.pods()] == [pods[0].hash]


async def test_a_restarted_node_adopts_what_runs(tmp_path: Path) -> None:
    async with open_world(tmp_path) as before:
        pod = await before.engine.upload(make_upload(), 600, token=None)
    async with open_world(tmp_path, remains=before) as after:
        await after.reconciler.recover()
        assert after.routes.table == before.routes.table
        assert after.diary.take() == ["network start", "publish", "publish"]
        assert (await after.engine.get(pod.hash)).expires_at == pod.expires_at


async def test_pods_keep_their_routes_when_podman_is_away_at_the_start(tmp_path: Path) -> None:
    async with open_world(tmp_path) as before:
        await before.engine.upload(make_upload(), 600, token=None)
    async with open_world(tmp_path, remains=before) as after:
        after.diary.fails["find pods"] = EngineError("podman is away")
        await after.reconciler.recover()
        assert after.routes.table == before.routes.table


async def test_after_a_power_cut_pods_are_made_again_and_the_outage_is_given_back(tmp_path: Path) -> None:
    async with open_world(tmp_path) as before:
        pod = await before.engine.upload(make_upload(), 600, token=None)
        await before.reconciler.reconcile()  # the last sign of life
        await before.reconciler.settle()
        clock = before.clock
    clock.forward(seconds=1000)
    async with open_world(tmp_path, clock=clock) as after:
        await after.reconciler.recover()
        assert after.diary.take() == [
            *("network start", "detach", "remove", "pull", "create", "start infra", "attach"),
            *("start members", "check members", "publish"),
        ]
        again = await after.engine.get(pod.hash)
        assert again.expires_at == pod.expires_at + timedelta(seconds=1000)
        assert {entry.kind for entry in await after.store.ledger()} == {EntryKind.UPLOAD, EntryKind.CREDIT}


async def test_a_pod_that_cannot_be_started_again_loses_no_time(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        pod = await world.engine.upload(make_upload(), 600, token=None)
        await world.reconciler.reconcile()
        await world.reconciler.settle()
        world.containers.lose(pod.hash)
        for _ in range(3):
            world.clock.forward(seconds=400)
            world.diary.fails["pull"] = ImageError("the registry is away")
            await world.reconciler.reconcile()
            await world.reconciler.settle()
            assert world.routes.table == {}
        world.clock.forward(seconds=1)
        await world.reconciler.reconcile()
        await world.reconciler.settle()
        assert (await world.engine.get(pod.hash)).expires_at == pod.expires_at + timedelta(seconds=1201)
        assert pod.hash in world.routes.table


async def test_a_restart_that_takes_long_holds_nobody_up_and_is_given_back(world: World) -> None:
    slow = await world.engine.upload(make_upload("slow"), 600, token=None)
    other = await world.engine.upload(make_upload("other"), 60, token=None)
    await world.reconciler.reconcile()
    world.containers.lose(slow.hash)
    pulling, pulled = asyncio.Event(), asyncio.Event()

    async def pull(image: str) -> AsyncGenerator[PullProgress, None]:
        pulling.set()
        await pulled.wait()
        yield PullProgress(image, "here at last")

    world.containers.pull = pull  # type: ignore[method-assign]
    await world.reconciler.reconcile()
    await pulling.wait()
    world.clock.forward(seconds=100)
    await world.reconciler.reconcile()
    async with asyncio.timeout(5):
        while await world.store.find_pod(other.hash) is not None:
            await asyncio.sleep(0)
    pulled.set()
    await world.reconciler.settle()
    assert (await world.engine.get(slow.hash)).expires_at == slow.expires_at + timedelta(seconds=100)
    assert set(world.routes.table) == {slow.hash}


async def test_a_node_that_stops_in_the_middle_of_a_restart_cuts_it_short(world: World) -> None:
    pod = await world.engine.upload(make_upload(), 600, token=None)
    world.containers.lose(pod.hash)
    pulling = asyncio.Event()

    async def pull(image: str) -> AsyncGenerator[PullProgress, None]:
        pulling.set()
        await asyncio.Event().wait()
        yield PullProgress(image, "never")

    world.containers.pull = pull  # type: ignore[method-assign]
    await world.reconciler.reconcile()
    await pulling.wait()
    await world.reconciler.aclose()
    assert [row.state for row in await world.store.pods()] == [PodState.RUNNING]
    assert await world.containers.find_pods() == []


async def test_what_a_killed_upload_left_is_removed(tmp_path: Path) -> None:
    async with open_world(tmp_path) as before:
        stuck = asyncio.Event()

        async def hang(_: object) -> None:
            stuck.set()
            await asyncio.Event().wait()

        before.containers.start_members = hang  # type: ignore[method-assign, assignment]
        task = asyncio.create_task(before.engine.upload(make_upload(), 600, token=None))
        await stuck.wait()
        async with open_world(tmp_path, remains=before) as after:  # as if killed: nothing was undone
            assert len(await after.store.pods()) == 1
            await after.reconciler.recover()
            await nothing_is_left(after)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, StoreError)):
            await task


async def test_a_pod_nobody_wants_is_removed(tmp_path: Path) -> None:
    async with open_world(tmp_path / "a") as other:
        await other.engine.upload(make_upload(), 600, token=None)
        async with open_world(tmp_path / "b", remains=other) as world:
            await world.reconciler.recover()
            assert await world.containers.find_pods() == []


async def test_the_loop_expires_a_pod_when_its_time_comes(world: World) -> None:
    loop = asyncio.create_task(world.reconciler.run())
    try:
        await world.engine.upload(make_upload(), 600, token=None)
        world.clock.forward(seconds=600)
        world.engine.changed.set()  # the settable clock moves by itself; the loop looks again
        async with asyncio.timeout(10):
            while await world.store.pods():
                await asyncio.sleep(0)
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


# ---- traffic --------------------------------------------------------------------------------------


def traffic(sent: int, **refused: int) -> Traffic:
    return Traffic(Volume(sent, 1), Volume(), {Reason(name): packets for name, packets in refused.items()})


async def test_a_pods_counters_are_kept_when_it_ends_and_go_on_in_its_next_life(world: World) -> None:
    pod = await world.engine.upload(make_upload(), 600, token=None)
    world.network.count(pod.address, traffic(1000, host=2))
    world.clock.forward(seconds=600)
    await world.reconciler.reconcile()
    await world.reconciler.settle()
    assert await world.store.find_pod(pod.hash) is None
    assert await world.store.traffic([pod.hash]) == {pod.hash: traffic(1000, host=2)}
    pod = await world.engine.upload(make_upload(), 600, token=None)
    assert await world.network.traffic() == {pod.address: traffic(1000, host=2)}


async def test_counters_go_on_when_containers_are_made_again(world: World) -> None:
    pod = await world.engine.upload(make_upload(), 600, token=None)
    world.network.count(pod.address, traffic(1000))
    world.containers.lose(pod.hash)
    await world.reconciler.reconcile()
    await world.reconciler.settle()
    assert await world.network.traffic() == {pod.address: traffic(1000)}


async def test_counters_go_on_after_a_restart_of_the_node(tmp_path: Path) -> None:
    async with open_world(tmp_path) as before:
        pod = await before.engine.upload(make_upload(), 600, token=None)
        before.network.count(pod.address, traffic(1000))
        await before.meter.bank()
        before.network.count(pod.address, NO_TRAFFIC)  # as when somebody flushed the rules meanwhile
    async with open_world(tmp_path, clock=before.clock, remains=before) as world:
        await world.reconciler.recover()
        assert await world.network.traffic() == {pod.address: traffic(1000)}


async def test_a_full_disk_costs_a_pods_last_counters_and_not_its_end(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    pod = await world.engine.upload(make_upload(), 600, token=None)
    world.network.count(pod.address, traffic(1000))
    monkeypatch.setattr(world.store, "save_traffic", full)
    world.clock.forward(seconds=600)
    await world.reconciler.reconcile()
    await world.reconciler.settle()
    assert await world.store.pods() == []
    assert "the disk is full" in caplog.text


async def test_only_what_changed_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Mapping[ManifestHash, Traffic]] = []
    save = world.store.save_traffic

    async def note(traffic: Mapping[ManifestHash, Traffic], now: datetime) -> None:
        saved.append(traffic)
        await save(traffic, now)

    monkeypatch.setattr(world.store, "save_traffic", note)
    one = await world.engine.upload(make_upload("one"), 600, token=None)
    two = await world.engine.upload(make_upload("two"), 600, token=None)
    await world.meter.bank()
    assert saved == []  # neither has sent anything
    world.network.count(one.address, traffic(1))
    world.network.count(two.address, traffic(2))
    await world.meter.bank()
    world.network.count(two.address, traffic(3))
    await world.meter.bank()
    await world.meter.bank()
    assert saved == [{one.hash: traffic(1), two.hash: traffic(2)}, {two.hash: traffic(3)}]


async def test_counters_that_could_not_be_kept_are_kept_next_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    pod = await world.engine.upload(make_upload(), 600, token=None)
    world.network.count(pod.address, traffic(1))
    with monkeypatch.context() as patched:
        patched.setattr(world.store, "save_traffic", full)
        with pytest.raises(StoreError):
            await world.meter.bank()
    await world.meter.bank()
    assert await world.store.traffic([pod.hash]) == {pod.hash: traffic(1)}


async def test_an_address_that_changes_hands_while_the_kernel_is_asked_counts_for_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await world.engine.upload(make_upload("old"), 600, token=None)
    ask = world.network.traffic

    async def ask_slowly() -> Mapping[IPv4Address, Traffic]:
        monkeypatch.setattr(world.network, "traffic", ask)
        await world.store.remove_pod(old.hash)
        world.engine._addresses.go_on_after(IPv4Address(int(old.address) - 1))
        new = await world.engine.upload(make_upload("new"), 600, token=None)
        assert new.address == old.address
        world.network.count(new.address, traffic(7))
        return await ask()

    monkeypatch.setattr(world.network, "traffic", ask_slowly)
    await world.meter.bank()
    new = make_upload("new").manifest.hash
    assert await world.store.traffic([old.hash, new]) == {}
    await world.meter.bank()
    assert await world.store.traffic([old.hash, new]) == {new: traffic(7)}


async def test_failed_uploads_leave_no_counters(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = make_upload()

    async def count_and_fail(hash: ManifestHash) -> None:
        [link] = await world.network.links()
        world.network.count(link, traffic(9))
        await world.meter.bank()
        raise PodStartError("exited at once")

    monkeypatch.setattr(world.containers, "check_members", count_and_fail)
    with pytest.raises(PodStartError):
        await world.engine.upload(upload, 600, token=None)
    assert await world.store.traffic([upload.manifest.hash]) == {}


async def test_the_listed_traffic_is_the_kernels_and_else_the_kept_one(world: World) -> None:
    one = await world.engine.upload(make_upload("one"), 600, token=None)
    two = await world.engine.upload(make_upload("two"), 600, token=None)
    three = await world.engine.upload(make_upload("three"), 600, token=None)
    world.network.count(one.address, traffic(1))
    world.network.count(two.address, traffic(2))
    await world.meter.bank()
    world.network.count(one.address, traffic(10))
    await world.network.detach(two.address)
    assert await world.meter.traffic() == {
        one.hash: traffic(10),
        two.hash: traffic(2),
        three.hash: NO_TRAFFIC,
    }
    world.diary.fails["traffic"] = NetworkError("netlink is busy")
    assert (await world.meter.traffic())[one.hash] == traffic(1)


# ---- probes ---------------------------------------------------------------------------------------


async def test_a_pod_is_probed_beside_its_neighbours(world: World) -> None:
    pods = [await world.engine.upload(make_upload(name), 600, token=None) for name in ("a", "b")]
    world.network.results = (Result("metadata", Verdict.STOPPED, Verdict.STOPPED, "no answer"),)
    assert await world.engine.probe(pods[0].hash) == world.network.results
    assert world.network.neighbours == [pods[1].address]


async def test_a_pod_whose_time_is_over_is_not_probed(world: World) -> None:
    pod = await world.engine.upload(make_upload(), 600, token=None)
    world.clock.forward(seconds=600)
    with pytest.raises(NotFoundError):
        await world.engine.probe(pod.hash)
