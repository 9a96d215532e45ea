"""The operator's HTTP API: who is let in, all there is to ask, network policy, self-test."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from aiohttp import web

from codius_netpolicy.policy import Policy
from codius_netpolicy.probes import Result
from codius_netpolicy.traffic import Reason
from codius_node import admin_pods, answers, bodies
from codius_node.admin_pods import Denials, DenylistAdmin, Meter, PodsAdmin, PriceAdmin, Prices
from codius_node.errors import ForbiddenError, NotFoundError
from codius_node.model import Json, ManifestHash
from codius_node.parameters import MANIFEST_HASH
from codius_node.policy import Origin, Repairs, build_report

MAX_POLICY_BODY: Final = 64 * 1024
"""Bytes of a policy: four lists of 256 entries, an IPv6 range being the longest with 43 characters."""

LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid."""

ENDPOINTS: Final[Mapping[tuple[str, str], str]] = {
    ("GET", "/pods"): "every pod there is, with its time, containers and traffic",
    ("POST", "/pods/{hash}/stop"): "take a running pod down; a body of `reason`, `public`, `legal`, `credit`",
    ("POST", "/pods/{hash}/probe"): "what the pod reaches on the network, tried out from inside",
    ("GET", "/usage"): "manifests with what they paid and used, newest first; `limit`, `before`",
    ("GET", "/usage/{hash}"): "one manifest with its ledger, newest first; `limit`, `before`",
    ("GET", "/denylist"): "what this host does not run",
    ("POST", "/denylist"): "deny something: `kind`, `value`, `takedown`, and the fields of a stop",
    ("DELETE", "/denylist"): "admit it again: `?kind=…&value=…`",
    ("GET", "/config"): "the price of a month, and lower ones that were quoted and still count",
    ("POST", "/config"): "set the price: `hostCostPerMonth`; answered 204",
    ("DELETE", "/config"): "back to the price of the settings",
    ("GET", "/policy"): "the network rules in force",
    ("PUT", "/policy"): "other rules than those of the settings",
    ("DELETE", "/policy"): "back to the rules of the settings",
    ("POST", "/selftest"): "have the host try itself out",
    ("GET", "/getPods"): "hashes of the pods that run, as codiusd told them",
    ("GET", "/getPodInfo"): "one pod, `?id=` its hash, as codiusd told it",
    ("GET", "/getAllUptime"): "seconds paid for and earnings of the host's whole life, as codiusd told them",
}
"""All there is to ask. Another method or path is 404."""


class Engine(admin_pods.Engine, Protocol):
    """What the admin API asks of the host's coordinator."""

    async def probe(self, hash: ManifestHash) -> Sequence[Result]: ...


class Rules(Protocol):
    """What the admin API asks of whoever keeps the network's rules."""

    @property
    def policy(self) -> Policy: ...
    @property
    def origin(self) -> Origin: ...
    async def refused(self) -> Mapping[Reason, int]: ...
    async def change(self, document: Json) -> int: ...
    async def reset(self) -> int: ...


class Watch(Protocol):
    """What the admin API asks of whoever watches the network."""

    @property
    def repairs(self) -> Repairs: ...


class Report(Protocol):
    """What came of a self-test."""

    def as_document(self) -> dict[str, Json]: ...


class SelfTest(Protocol):
    """What the admin API asks of whoever tries the host out."""

    async def run(self) -> Report: ...


def build_app(
    *,
    engine: Engine,
    denials: Denials,
    prices: Prices,
    meter: Meter,
    rules: Rules,
    watch: Watch,
    selftest: SelfTest,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    allowed_uids: frozenset[int] | None = None,
) -> web.Application:
    """The admin API, for a Unix socket and for 127.0.0.1; each connection is judged by its kind.

    `allowed_uids` are the users let in by the Unix socket: root and our own by default.
    """
    guard = _Guard(frozenset({0, os.geteuid()}) if allowed_uids is None else allowed_uids)
    pods = PodsAdmin(engine, meter, clock)
    denylist = DenylistAdmin(engine, denials, clock)
    price = PriceAdmin(engine, prices)
    network = _NetworkAdmin(engine, rules, watch)

    async def test(_: web.Request) -> web.Response:
        return answers.render_json((await selftest.run()).as_document())

    handlers: dict[tuple[str, str], answers.Handler] = {
        ("GET", "/pods"): pods.list_all,
        ("POST", "/pods/{hash}/stop"): pods.stop,
        ("POST", "/pods/{hash}/probe"): network.probe,
        ("GET", "/usage"): pods.list_usage,
        ("GET", "/usage/{hash}"): pods.tell_usage,
        ("GET", "/denylist"): denylist.list_all,
        ("POST", "/denylist"): denylist.add,
        ("DELETE", "/denylist"): denylist.remove,
        ("GET", "/config"): price.tell,
        ("POST", "/config"): price.set,
        ("DELETE", "/config"): price.reset,
        ("GET", "/policy"): network.tell,
        ("PUT", "/policy"): network.change,
        ("DELETE", "/policy"): network.reset,
        ("POST", "/selftest"): test,
        ("GET", "/getPods"): pods.list_running,
        ("GET", "/getPodInfo"): pods.tell_recorded,
        ("GET", "/getAllUptime"): pods.tell_all_uptime,
    }
    app = web.Application(middlewares=[answers.answer_operators_errors, guard.check])
    app.on_response_prepare.append(answers.set_headers)
    routes = [(method, path, handlers[method, path]) for method, path in ENDPOINTS]
    answers.add_routes(app, [*routes, ("*", answers.ANY_PATH, _refuse_path)])
    return app


class _Guard:
    """Who may in: by the kernel's word on a Unix socket; on loopback TCP anybody but a browser's page."""

    def __init__(self, uids: frozenset[int]) -> None:
        self._uids = uids

    @web.middleware
    async def check(self, request: web.Request, handler: answers.Handler) -> web.StreamResponse:
        peer = request.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            uid = read_peer_uid(peer)
            if uid not in self._uids:
                raise ForbiddenError(
                    f"user {uid} may not administer this host", hint="Run the command as root (sudo)."
                )
        elif "Origin" in request.headers or not _is_loopback_name(request.host):
            # A page in the operator's browser reaches 127.0.0.1 too, also under a name of its own
            # (DNS rebinding).
            raise ForbiddenError(
                "the admin API does not answer web pages, nor under other names than localhost",
                hint="Use the Unix socket, or http://127.0.0.1 with a command-line client.",
            )
        return await handler(request)


def read_peer_uid(peer: socket.socket) -> int:
    """The user at the other end of a Unix socket, as of its connect (SO_PEERCRED, unix(7))."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(credentials)
    return int(uid)


class _NetworkAdmin:
    """The handlers of the network policy."""

    def __init__(self, engine: Engine, rules: Rules, watch: Watch) -> None:
        self._engine = engine
        self._rules = rules
        self._watch = watch

    async def tell(self, _: web.Request) -> web.Response:
        return answers.render_json(await self._report())

    async def change(self, request: web.Request) -> web.Response:
        cut = await self._rules.change(await bodies.read_json(request, limit=MAX_POLICY_BODY))
        return answers.render_json(await self._report() | {"cut": cut})

    async def reset(self, _: web.Request) -> web.Response:
        cut = await self._rules.reset()
        return answers.render_json(await self._report() | {"cut": cut})

    async def probe(self, request: web.Request) -> web.Response:
        results = await self._engine.probe(MANIFEST_HASH.parse([request.match_info["hash"]]))
        probes: list[Json] = [
            {
                "name": result.name,
                "expected": result.expected.value,
                "found": result.found.value,
                "detail": result.detail,
                "ok": result.ok,
            }
            for result in results
        ]
        return answers.render_json({"ok": all(result.ok for result in results), "probes": probes})

    async def _report(self) -> dict[str, Json]:
        rules = self._rules
        report = build_report(
            rules.policy, rules.origin, refused=await rules.refused(), repairs=self._watch.repairs
        )
        return report.as_document()


async def _refuse_path(request: web.Request) -> web.StreamResponse:
    raise NotFoundError(
        f"there is no {request.method} {request.path}",
        hint=f"There are {', '.join(' '.join(endpoint) for endpoint in ENDPOINTS)}.",
    )


def _is_loopback_name(authority: str) -> bool:
    name = authority if authority.endswith("]") else authority.rpartition(":")[0] or authority
    return name.lower() in LOOPBACK_NAMES
