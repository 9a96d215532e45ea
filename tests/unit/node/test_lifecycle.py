"""Plans: tables of what is done when, and properties over whole worlds of pods."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.lifecycle import (
    ORDER,
    TRANSITIONS,
    Adopt,
    Discard,
    Expire,
    Finish,
    RemoveOrphan,
    Restart,
    Rewire,
    Step,
    TakeDown,
    next_deadline,
    plan,
)
from codius_node.manifest import parse
from codius_node.model import FoundPod, FoundState, ManifestHash, Pod, PodState
from tests.unit.node.documents import upload

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MANIFEST = parse(upload()).manifest
LONG_AGO = NOW - timedelta(days=30)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def name(number: int) -> ManifestHash:
    return ManifestHash("abcdefghijklmnopqrstuvwxyz"[number] * 52)


def address(number: int) -> IPv4Address:
    return IPv4Address("10.213.0.0") + number


def pod(
    number: int = 0, state: PodState = PodState.RUNNING, *, expires: float = 60, created: datetime = LONG_AGO
) -> Pod:
    return Pod(replace(MANIFEST, hash=name(number)), state, created, at(expires), address(number))


def planned(
    *wanted: Pod,
    found: dict[int, FoundState] | None = None,
    last_alive: datetime | None = None,
    linked: set[int] | None = None,
    in_flight: set[int] | None = None,
    denied: set[int] | None = None,
    now: datetime = NOW,
) -> list[Step]:
    return plan(
        wanted,
        [FoundPod(name(number), state) for number, state in (found or {}).items()],
        now=now,
        last_alive=last_alive,
        linked={address(number) for number in linked or ()},
        in_flight={name(number) for number in in_flight or ()},
        denied={name(number) for number in denied or ()},
    )


RUNNING, DEGRADED, STOPPED = FoundState.RUNNING, FoundState.DEGRADED, FoundState.STOPPED


def test_an_empty_host_has_nothing_to_do() -> None:
    assert planned() == []


@pytest.mark.parametrize("state", [RUNNING, DEGRADED])
def test_a_pod_that_runs_and_is_wired_is_adopted(state: FoundState) -> None:
    assert planned(pod(), found={0: state}, linked={0}) == [Adopt(pod())]


@pytest.mark.parametrize("state", [RUNNING, DEGRADED])
def test_a_pod_that_runs_without_its_network_is_rewired(state: FoundState) -> None:
    assert planned(pod(), found={0: state}, linked={1}) == [Rewire(pod())]


@pytest.mark.parametrize("found", [{}, {0: STOPPED}])
def test_a_pod_that_does_not_run_is_restarted(found: dict[int, FoundState]) -> None:
    assert planned(pod(), found=found, linked={0}) == [Restart(pod(), at(60))]


@pytest.mark.parametrize("found", [{}, {0: RUNNING}, {0: DEGRADED}, {0: STOPPED}])
@pytest.mark.parametrize("expires", [0, -1, -100_000])
def test_a_pod_whose_time_is_over_expires(found: dict[int, FoundState], expires: float) -> None:
    assert planned(pod(expires=expires), found=found, linked={0}) == [Expire(pod(expires=expires))]


def test_a_pod_lives_until_its_last_moment() -> None:
    last = pod(expires=0.000001)
    assert planned(last, found={0: RUNNING}, linked={0}) == [Adopt(last)]


def test_the_time_of_an_outage_is_given_back() -> None:
    assert planned(pod(), last_alive=at(-1000)) == [Restart(pod(), at(1060))]


def test_a_pod_that_would_have_expired_during_the_outage_is_restarted() -> None:
    expired = pod(expires=-400)
    assert planned(expired, found={0: STOPPED}, last_alive=at(-1000)) == [Restart(expired, at(600))]


@pytest.mark.parametrize("expires", [-1000, -1001])
def test_a_pod_that_had_expired_before_the_outage_stays_expired(expires: float) -> None:
    expired = pod(expires=expires)
    assert planned(expired, last_alive=at(-1000)) == [Expire(expired)]


def test_a_pod_that_ran_through_the_outage_of_the_node_gets_nothing_back() -> None:
    expired = pod(expires=-400)
    assert planned(expired, found={0: RUNNING}, last_alive=at(-1000), linked={0}) == [Expire(expired)]


def test_a_pod_made_after_the_last_sign_of_life_gets_back_only_its_own_outage() -> None:
    young = pod(created=at(-300))
    assert planned(young, last_alive=at(-1000)) == [Restart(young, at(360))]


def test_a_clock_that_went_back_takes_no_time_away() -> None:
    assert planned(pod(), last_alive=at(5000)) == [Restart(pod(), at(60))]
    assert planned(pod(created=at(9000)), last_alive=at(-5000)) == [Restart(pod(created=at(9000)), at(60))]


@pytest.mark.parametrize("found", [{}, {0: RUNNING}, {0: STOPPED}])
def test_an_upload_cut_short_by_a_crash_is_undone(found: dict[int, FoundState]) -> None:
    pending = pod(state=PodState.PENDING)
    assert planned(pending, found=found, linked={0}, last_alive=at(-5)) == [Discard(pending)]


@pytest.mark.parametrize("found", [{}, {0: RUNNING}])
def test_a_removal_that_was_begun_is_ended(found: dict[int, FoundState]) -> None:
    stopping = pod(state=PodState.STOPPING)
    assert planned(stopping, found=found, linked={0}) == [Finish(stopping)]


@pytest.mark.parametrize(
    ("row", "found", "linked", "step"),
    [
        (pod(), RUNNING, {0}, TakeDown(pod(), at(60))),
        (pod(), DEGRADED, set(), TakeDown(pod(), at(60))),
        (pod(), STOPPED, {0}, TakeDown(pod(), at(1060))),  # the outage is given back, and then credited
        (pod(), None, set(), TakeDown(pod(), at(1060))),
        (pod(expires=-1), RUNNING, {0}, Expire(pod(expires=-1))),
        (pod(expires=-2000), None, set(), Expire(pod(expires=-2000))),
        (pod(state=PodState.PENDING), RUNNING, {0}, Discard(pod(state=PodState.PENDING))),
        (pod(state=PodState.STOPPING), RUNNING, {0}, Finish(pod(state=PodState.STOPPING))),
    ],
)
def test_a_denied_pod_goes_whatever_is_found_of_it(
    row: Pod, found: FoundState | None, linked: set[int], step: Step
) -> None:
    states = {} if found is None else {0: found}
    assert planned(row, found=states, linked=linked, last_alive=at(-1000), denied={0, 5}) == [step]


def test_a_denied_upload_in_flight_is_left_to_whoever_carries_it_out() -> None:
    assert planned(pod(), found={0: RUNNING}, denied={0}, in_flight={0}) == []


@pytest.mark.parametrize("state", FoundState)
def test_a_pod_that_no_row_wants_is_removed(state: FoundState) -> None:
    assert planned(found={0: state}) == [RemoveOrphan(name(0))]


@pytest.mark.parametrize("state", PodState)
def test_what_is_in_flight_is_left_alone(state: PodState) -> None:
    assert planned(pod(state=state, expires=-5), found={1: RUNNING}, in_flight={0, 1}) == []


def test_what_goes_comes_first_and_restarts_last() -> None:
    pods = [
        pod(0),
        pod(1),
        pod(2),
        pod(3, PodState.PENDING),
        pod(4, PodState.STOPPING),
        pod(5, expires=-1),
        pod(6, expires=-2),
    ]
    pods.append(pod(7))
    steps = planned(*pods, found={1: RUNNING, 2: RUNNING, 9: RUNNING}, linked={2}, denied={7})
    assert [type(step) for step in steps] == [
        TakeDown,
        Expire,
        Expire,
        Finish,
        Discard,
        RemoveOrphan,
        Adopt,
        Rewire,
        Restart,
    ]
    assert [step.hash for step in steps[1:3]] == [name(6), name(5)]


def test_the_transitions_are_a_table_over_all_states() -> None:
    assert set(TRANSITIONS) == set(PodState)
    assert PodState.RUNNING not in TRANSITIONS[PodState.STOPPING]
    assert TRANSITIONS[PodState.PENDING] == {PodState.RUNNING, PodState.STOPPING}
    assert TRANSITIONS[PodState.RUNNING] == {PodState.STOPPING}


def test_the_next_deadline_is_the_first_expiry_of_a_running_pod() -> None:
    assert next_deadline([], NOW) is None
    assert next_deadline([pod(expires=50), pod(1, expires=40)], NOW) == at(40)
    assert next_deadline([pod(state=PodState.PENDING), pod(1, PodState.STOPPING, expires=5)], NOW) is None


def test_a_deadline_that_is_past_is_now() -> None:
    assert next_deadline([pod(expires=-50), pod(1)], NOW) == NOW


# --- whole worlds -------------------------------------------------------------------------------------


@dataclass
class World:
    """A host as a plan sees it, and what the steps do to it."""

    rows: dict[ManifestHash, Pod]
    engine: dict[ManifestHash, FoundState]
    linked: set[IPv4Address]
    last_alive: datetime | None
    in_flight: set[ManifestHash]
    denied: set[ManifestHash] = field(default_factory=set)

    def plan(self, now: datetime = NOW) -> list[Step]:
        found = [FoundPod(key, state) for key, state in self.engine.items()]
        return plan(
            self.rows.values(),
            found,
            now=now,
            last_alive=self.last_alive,
            linked=self.linked,
            in_flight=self.in_flight,
            denied=self.denied,
        )

    def apply(self, step: Step) -> None:
        match step:
            case RemoveOrphan():
                del self.engine[step.hash]
            case TakeDown() | Expire() | Finish() | Discard():
                self.engine.pop(step.hash, None)
                self.linked.discard(step.pod.address)
                del self.rows[step.hash]
            case Rewire():
                self.linked.add(step.pod.address)
            case Restart():
                self.engine[step.hash] = FoundState.RUNNING
                self.linked.add(step.pod.address)
                self.rows[step.hash] = replace(step.pod, expires_at=step.expires_at)
            case Adopt():
                pass


SECONDS = st.integers(-2000, 2000)
NUMBERS = st.integers(0, 9)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    numbers = draw(st.sets(NUMBERS))
    rows = {
        name(number): pod(
            number,
            draw(st.sampled_from(PodState)),
            expires=draw(SECONDS),
            created=at(draw(st.integers(-3000, 0))),
        )
        for number in numbers
    }
    engine = {
        name(number): state
        for number, state in draw(st.dictionaries(NUMBERS, st.sampled_from(FoundState))).items()
    }
    last_alive = draw(st.none() | SECONDS.map(at))
    in_flight = {name(number) for number in draw(st.sets(NUMBERS, max_size=3))}
    return World(rows, engine, {address(number) for number in draw(st.sets(NUMBERS))}, last_alive, in_flight)


@given(worlds())
def test_a_plan_carried_out_leaves_nothing_to_do(world: World) -> None:
    for step in world.plan():
        world.apply(step)
    assert all(isinstance(step, Adopt) for step in world.plan())


@given(worlds(), st.integers(0, 20))
def test_a_plan_broken_off_anywhere_is_finished_by_the_next(world: World, done: int) -> None:
    for step in world.plan()[:done]:
        world.apply(step)
    for step in world.plan():
        world.apply(step)
    assert all(isinstance(step, Adopt) for step in world.plan())


@given(worlds(), st.sets(NUMBERS))
def test_of_what_is_denied_nothing_is_left_or_brought_back(world: World, denied: set[int]) -> None:
    world.denied = {name(number) for number in denied}
    for step in world.plan():
        if step.hash in world.denied:
            assert not isinstance(step, Adopt | Rewire | Restart)
        world.apply(step)
    assert not (world.denied - world.in_flight) & (set(world.rows) | set(world.engine))
    assert all(isinstance(step, Adopt) for step in world.plan())


@given(worlds())
def test_every_pod_has_one_step_and_what_is_in_flight_none(world: World) -> None:
    steps = world.plan()
    known = (set(world.rows) | set(world.engine)) - world.in_flight
    assert sorted(step.hash for step in steps) == sorted(known)
    assert [ORDER.index(type(step)) for step in steps] == sorted(ORDER.index(type(step)) for step in steps)


@given(worlds())
def test_a_plan_does_not_depend_on_the_order_of_its_inputs(world: World) -> None:
    backwards = replace(
        world,
        rows=dict(reversed(world.rows.items())),
        engine=dict(reversed(world.engine.items())),
    )
    assert world.plan() == backwards.plan()


@given(worlds())
def test_no_paid_pod_is_ended_early_and_none_outlives_its_time(world: World) -> None:
    before = dict(world.rows)
    for step in world.plan():
        if isinstance(step, Expire):
            assert step.pod.state is PodState.RUNNING
            assert step.pod.expires_at <= NOW
            if world.engine.get(step.hash) in {None, STOPPED} and world.last_alive is not None:
                # it stood still: its time was over before that
                assert step.pod.expires_at <= max(world.last_alive, step.pod.created_at) or (
                    world.last_alive > NOW
                )
        if isinstance(step, Restart):
            outage = step.expires_at - step.pod.expires_at
            assert timedelta(0) <= outage
            assert outage <= NOW - min(world.last_alive or NOW, NOW)
        world.apply(step)
    for key, after in world.rows.items():
        if key in world.in_flight:
            continue
        assert after.state is PodState.RUNNING
        assert after.expires_at > NOW  # nothing that is over is left
        assert after.expires_at >= before[key].expires_at
    survivors = set(world.rows)
    paid = {key for key, row in before.items() if row.state is PodState.RUNNING and row.expires_at > NOW}
    assert paid <= survivors


@given(worlds())
def test_the_next_deadline_is_when_the_plan_next_expires_a_pod(world: World) -> None:
    world.in_flight.clear()
    for step in world.plan():
        world.apply(step)
    deadline = next_deadline(world.rows.values(), NOW)
    if deadline is None:
        assert not world.rows
        return
    before = world.plan(deadline - timedelta(microseconds=1))
    assert not any(isinstance(step, Expire) for step in before)
    assert any(isinstance(step, Expire) for step in world.plan(deadline))
