"""The route table, and the feed's messages that keep it: rendered by the node, parsed by the proxy."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

MAX_PODS: Final = 65536  # routes in one snapshot: more than one machine can run
# Bytes of one message with its newline. A route with an IPv6 target takes at most 108 bytes
# ("<52>":["<39>",65535],), a stopped pod 1264 ("<52>":[false,"<200, each \u00xx>"],), so a full snapshot
# fits: 65536 * 108 and 1024 * 1264 are 8 MiB.
MAX_LINE: Final = 9 * 1024 * 1024

MAX_REMEMBERED: Final = 4096  # pods that are gone and whose visitors are told so
MAX_STOPPED: Final = 1024  # pods that were stopped and whose visitors are told so, the newest
MAX_REASON: Final = 200  # bytes of why

_HASH: Final = re.compile(r"[a-z2-7]{52}")
_HALF_CHARACTER: Final = re.compile(r"[\ud800-\udfff]")
_MAX_PORT: Final = 65535

_Json: TypeAlias = "bool | int | float | str | list[_Json] | dict[str, _Json] | None"


class FeedError(ValueError):
    """A line of the feed that is none of its messages."""


class Target(NamedTuple):
    """Where a pod listens: an IP address literal and a TCP port."""

    address: str
    port: int


class Api(NamedTuple):
    """The host's own public API, on a Unix socket."""

    path: Path


Destination: TypeAlias = Target | Api


class Notice(NamedTuple):
    """What visitors of a stopped pod are told: whether the law demanded it, and why; "" is private."""

    legal: bool
    reason: str


class Route(NamedTuple):
    """Where a name leads, and what it is called in log and metrics: a manifest hash, or `api`."""

    name: str
    destination: Destination


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole table; the first message of every connection."""

    routes: Mapping[str, Target]
    stopped: Mapping[str, Notice] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Add:
    """A pod is reachable from now on, or at another target than before."""

    hash: str
    target: Target


@dataclass(frozen=True, slots=True)
class Remove:
    """A pod is not to be reached any more, and nothing more is told of it."""

    hash: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The operator stopped a pod: it is not to be reached any more, and its visitors are told so."""

    hash: str
    notice: Notice


Message: TypeAlias = Snapshot | Add | Remove | Stop


class RouteTable:
    """Manifest hash to target, or to why there is none: what the feed said last."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self.known = False  # no snapshot yet: an absent hash says nothing about the pod
        self._left: dict[str, None] = {}  # hashes that had a route once, the last one at the end
        self._stopped: dict[str, Notice] = {}  # the last one at the end

    def __len__(self) -> int:
        return len(self._routes)

    @property
    def snapshot(self) -> Snapshot:
        """The message that makes another table like this one."""
        routes = {
            pod: route.destination
            for pod, route in self._routes.items()
            if isinstance(route.destination, Target)
        }
        return Snapshot(routes, dict(self._stopped))

    def find(self, pod_hash: str) -> Route | None:
        return self._routes.get(pod_hash)

    def find_notice(self, pod_hash: str) -> Notice | None:
        """What visitors of a pod without a route are told, when its operator stopped it."""
        return self._stopped.get(pod_hash)

    def was_known(self, pod_hash: str) -> bool:
        """Whether a pod without a route had one not too long ago."""
        return pod_hash in self._left

    def apply(self, message: Message) -> frozenset[Destination]:
        """Change the table; the targets that no hash leads to any more. Any message may come twice."""
        if isinstance(message, Snapshot):
            before = self._routes
            for pod in before.keys() - message.routes.keys():
                self._remember(pod)
            self._routes = {pod: Route(pod, target) for pod, target in message.routes.items()}
            self._stopped = dict(message.stopped)
            self.known = True
            return self._gone([route.destination for route in before.values()])
        old = self._routes.get(message.hash)
        self._stopped.pop(message.hash, None)
        if isinstance(message, Add):
            self._routes[message.hash] = Route(message.hash, message.target)
        elif self._routes.pop(message.hash, None) is not None:
            self._remember(message.hash)
        if isinstance(message, Stop):
            keep_notice(self._stopped, message.hash, message.notice)
        return frozenset() if old is None else self._gone((old.destination,))

    def _remember(self, pod: str) -> None:
        self._left.pop(pod, None)
        self._left[pod] = None
        if len(self._left) > MAX_REMEMBERED:
            del self._left[next(iter(self._left))]

    def _gone(self, before: Iterable[Destination]) -> frozenset[Destination]:
        return frozenset(before).difference([route.destination for route in self._routes.values()])


def keep_notice(stopped: dict[str, Notice], pod_hash: str, notice: Notice) -> None:
    """As the newest; beyond `MAX_STOPPED` the oldest goes."""
    stopped.pop(pod_hash, None)
    stopped[pod_hash] = notice
    if len(stopped) > MAX_STOPPED:
        del stopped[next(iter(stopped))]


def render_snapshot(routes: Mapping[str, Target], stopped: Mapping[str, Notice] | None = None) -> bytes:
    """FeedError when there are more routes than a reader accepts."""
    if len(routes) > MAX_PODS:
        raise FeedError(f"{len(routes)} routes do not fit into one snapshot of at most {MAX_PODS}")
    return _render({"type": "snapshot", "routes": routes, **({"stopped": stopped} if stopped else {})})


def render_add(pod_hash: str, target: Target) -> bytes:
    return _render({"type": "add", "hash": pod_hash, "target": target})


def render_remove(pod_hash: str) -> bytes:
    return _render({"type": "remove", "hash": pod_hash})


def render_stop(pod_hash: str, notice: Notice) -> bytes:
    return _render({"type": "stop", "hash": pod_hash, "notice": notice})


def parse(line: bytes) -> Message:
    """One line of the feed, with or without its newline; FeedError for anything but a known message."""
    if len(line) > MAX_LINE:
        raise FeedError(f"a message of {len(line)} bytes is longer than {MAX_LINE}")
    try:
        document: _Json = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except FeedError:
        raise
    except (ValueError, RecursionError) as error:
        raise FeedError(f"a message is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise FeedError("a message is not a JSON object")
    match document:
        case {"type": "snapshot", "routes": dict(routes), **rest} if rest.keys() <= {"stopped"}:
            if len(routes) > MAX_PODS:
                raise FeedError(f"a snapshot of {len(routes)} routes is larger than {MAX_PODS}")
            return Snapshot(
                {_hash(key): _target(value) for key, value in routes.items()},
                _stopped(rest.get("stopped", {})),
            )
        case {"type": "add", "hash": pod_hash, "target": target, **rest} if not rest:
            return Add(_hash(pod_hash), _target(target))
        case {"type": "remove", "hash": pod_hash, **rest} if not rest:
            return Remove(_hash(pod_hash))
        case {"type": "stop", "hash": pod_hash, "notice": notice, **rest} if not rest:
            return Stop(_hash(pod_hash), _notice(notice))
    raise FeedError(f"not a message of the feed: {str(document)[:100]}")


def _render(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _object(pairs: list[tuple[str, _Json]]) -> dict[str, _Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FeedError("a message names a key twice")
    return found


def _hash(value: _Json) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise FeedError(f"{str(value)[:80]!r} is no manifest hash")
    return value


def _target(value: _Json) -> Target:
    match value:
        case [_, bool()]:  # an int in Python, but no port
            pass
        case [str(address), int(port)]:
            if 0 < port <= _MAX_PORT and _is_address(address):
                return Target(address, port)
    raise FeedError(f"{str(value)[:80]} is no [address, port]")


def _stopped(value: _Json) -> dict[str, Notice]:
    if not isinstance(value, dict) or len(value) > MAX_STOPPED:
        raise FeedError(f"{str(value)[:80]} are not at most {MAX_STOPPED} stopped pods")
    return {_hash(key): _notice(notice) for key, notice in value.items()}


def _notice(value: _Json) -> Notice:
    match value:
        # Half of a surrogate pair is no character: no page could be made of it.
        case [bool(legal), str(reason)] if len(reason.encode(errors="surrogatepass")) <= MAX_REASON:
            if not _HALF_CHARACTER.search(reason):
                return Notice(legal, reason)
    raise FeedError(f"{str(value)[:80]} is no [legal, reason]")


def _is_address(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate inside
            continue
        return True
    return False
