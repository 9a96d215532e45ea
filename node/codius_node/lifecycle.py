"""The life of pods: which state follows which, and the steps from what is found to what is wanted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from typing import Final

from codius_node.model import FoundPod, FoundState, ManifestHash, Pod, PodState

TRANSITIONS: Final[Mapping[PodState, frozenset[PodState]]] = {
    PodState.PENDING: frozenset({PodState.RUNNING, PodState.STOPPING}),
    PodState.RUNNING: frozenset({PodState.STOPPING}),
    PodState.STOPPING: frozenset(),
}
"""The end of STOPPING is the end of the row."""


@dataclass(frozen=True, slots=True)
class RemoveOrphan:
    """A pod of ours that no row wants: take it off the engine and the network."""

    hash: ManifestHash


@dataclass(frozen=True, slots=True)
class Discard:
    """An upload that a crash cut short: undo all of it. Payments are claimed at its end, so nobody paid."""

    pod: Pod

    @property
    def hash(self) -> ManifestHash:
        return self.pod.hash


@dataclass(frozen=True, slots=True)
class Finish:
    """A removal that was begun: end it."""

    pod: Pod

    @property
    def hash(self) -> ManifestHash:
        return self.pod.hash


@dataclass(frozen=True, slots=True)
class Expire:
    """The paid time is over: route, drain, network, podman, row, in this order."""

    pod: Pod

    @property
    def hash(self) -> ManifestHash:
        return self.pod.hash


@dataclass(frozen=True, slots=True)
class Adopt:
    """It runs and is wired: publish its route, touch nothing else."""

    pod: Pod

    @property
    def hash(self) -> ManifestHash:
        return self.pod.hash


@dataclass(frozen=True, slots=True)
class Rewire:
    """It runs without its network: attach it, then publish its route."""

    pod: Pod

    @property
    def hash(self) -> ManifestHash:
        return self.pod.hash


@dataclass(frozen=True, slots=True)
class Restart:
    """It should run and does not: make it anew, paid until `expires_at`.

    `expires_at` is absolute and counted from the row as it was, so the step may run twice.
    """

    pod: Pod
    expires_at: datetime

    @property
    def hash(self) -> ManifestHash:
        return self.pod.hash


@dataclass(frozen=True, slots=True)
class TakeDown:
    """It is denied and still here, as after a crash: it goes, with time left until `expires_at`."""

    pod: Pod
    expires_at: datetime

    @property
    def hash(self) -> ManifestHash:
        return self.pod.hash


Step = TakeDown | RemoveOrphan | Discard | Finish | Expire | Adopt | Rewire | Restart

ORDER: Final[tuple[type[Step], ...]] = (
    *(TakeDown, Expire, Finish, Discard, RemoveOrphan),
    *(Adopt, Rewire, Restart),
)
"""What goes makes room first; then the cheap steps that bring visitors back; what must start comes last."""


def plan(
    wanted: Iterable[Pod],
    found: Iterable[FoundPod],
    *,
    now: datetime,
    last_alive: datetime | None,
    linked: Collection[IPv4Address],
    in_flight: Collection[ManifestHash],
    denied: Collection[ManifestHash] = (),
) -> list[Step]:
    """What to do so that what is found becomes what is wanted; empty or all Adopt when it already is.

    `last_alive` is the last moment at which the node knows it was up: the time since then is given back
    to the pods that stood still. `linked` holds the addresses that have their network. Pods `in_flight`
    are in somebody's hands and left alone. Pods that are `denied` are never brought back.
    """
    rows = {pod.hash: pod for pod in wanted}
    states = {pod.hash: pod.state for pod in found}
    steps: list[Step] = []
    for pod in rows.values():
        if pod.hash not in in_flight:
            step = _step(pod, states.get(pod.hash), now=now, last_alive=last_alive, linked=linked)
            steps.append(_deny(step) if pod.hash in denied else step)
    steps += [RemoveOrphan(name) for name in states if name not in rows and name not in in_flight]
    return sorted(steps, key=_position)


def next_deadline(wanted: Iterable[Pod], now: datetime) -> datetime | None:
    """When `plan` will next have something to do by itself: the first expiry, or `now` when it is past.

    Steps that failed are not counted: how soon to try again is the reconciler's affair.
    """
    expiries = [pod.expires_at for pod in wanted if pod.state is PodState.RUNNING]
    return max(now, min(expiries)) if expiries else None


def _step(
    pod: Pod,
    found: FoundState | None,
    *,
    now: datetime,
    last_alive: datetime | None,
    linked: Collection[IPv4Address],
) -> Step:
    if pod.state is PodState.PENDING:
        return Discard(pod)
    if pod.state is PodState.STOPPING:
        return Finish(pod)
    if found in {FoundState.RUNNING, FoundState.DEGRADED}:
        # A member that exited is the pod's own affair: podman's restart policy brings it back or not, the
        # others go on serving, and starting the pod anew would lose their state. It was there all the
        # time, so nothing is given back either.
        if pod.expires_at <= now:
            return Expire(pod)
        return Adopt(pod) if pod.address in linked else Rewire(pod)
    # It stood still, at the longest since the node was last alive, or since it was made after that.
    outage = timedelta(0)
    if last_alive is not None:
        outage = max(now - max(last_alive, pod.created_at), outage)
    if pod.expires_at <= now - outage:
        return Expire(pod)
    return Restart(pod, pod.expires_at + outage)


def _deny(step: Step) -> Step:
    """What becomes of a pod's step when the pod is denied; what goes anyway goes as it would."""
    match step:
        case Adopt() | Rewire():
            return TakeDown(step.pod, step.pod.expires_at)
        case Restart():
            return TakeDown(step.pod, step.expires_at)
        case _:
            return step


def _position(step: Step) -> tuple[int, float, str]:
    expiry = 0.0 if isinstance(step, RemoveOrphan) else step.pod.expires_at.timestamp()
    return ORDER.index(type(step)), expiry, step.hash
