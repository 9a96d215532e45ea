"""The admin API over real sockets: who is let in, what is told, and what can be set."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from codius_netpolicy.policy import Egress
from codius_netpolicy.probes import Result, Verdict
from codius_netpolicy.traffic import Reason, Traffic, Volume
from codius_node import admin, admin_pods, answers, manifest, pricing
from codius_node.egress import RulesError
from codius_node.errors import CodiusError, EngineError, NetworkError, RequestError, StoreError
from codius_node.model import ManifestHash, PodState, PrivateVariable
from codius_node.policy import Repair, Repairs
from tests.integration.engine_double import NOON, NodeDouble
from tests.integration.test_api import IMAGE

OTHERS_UID: Final = 54321
NOTHING: Final = {"bytes": 0, "packets": 0}
SECRET: Final = "shh-it-is-a-secret"
DOCUMENT: Final[dict[str, Any]] = {
    "manifest": {
        "name": "hello",
        "version": "1.0.0",
        "port": "8080",
        "containers": [{"id": "app", "image": IMAGE, "environment": {"S": "$S"}}],
        "vars": {"S": {"encoding": "private:sha256", "value": ""}},
    },
    "private": {"vars": {"S": {"nonce": "123", "value": SECRET}}},
}


@dataclass(frozen=True, slots=True)
class Admin:
    node: NodeDouble
    client: aiohttp.ClientSession
    socket: Path
    port: int
    hash: ManifestHash


@asynccontextmanager
async def open_admin(directory: Path, *, uids: frozenset[int] | None = None) -> AsyncIterator[Admin]:
    node = NodeDouble()
    document = json.loads(json.dumps(DOCUMENT))
    private = PrivateVariable("123", SECRET)
    document["manifest"]["vars"]["S"]["value"] = manifest.hash_private(private)
    pod = await node.engine.upload(manifest.parse(document), 600, token=None)
    app = node.admin(uids)
    runner = answers.Runner(app, shutdown_timeout=1)
    await runner.setup()
    path = directory / "admin.sock"
    try:
        await web.UnixSite(runner, str(path)).start()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = next(address[1] for address in runner.addresses if isinstance(address, tuple))
        async with aiohttp.ClientSession(
            "http://localhost", connector=aiohttp.UnixConnector(path=str(path))
        ) as client:
            yield Admin(node, client, path, port, pod.hash)
    finally:
        await runner.cleanup()


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Admin]:
    async with open_admin(tmp_path) as opened:
        yield opened


async def ask(opened: Admin, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with opened.client.request(method, path, **options) as response:
        text = await response.text()
        return response.status, json.loads(text) if text else None


async def test_a_selftest_is_made_when_it_is_asked_for(opened: Admin) -> None:
    opened.node.selftest.report = {"success": True, "steps": [], "unchecked": ["the rest"]}
    assert await ask(opened, "POST", "/selftest") == (200, opened.node.selftest.report)
    assert opened.node.selftest.runs == 1
    status, answer = await ask(opened, "GET", "/selftest")
    assert (status, "POST /selftest" in answer["hint"]) == (404, True)
    assert opened.node.selftest.runs == 1


async def test_running_pods_are_listed_by_hash(opened: Admin) -> None:
    assert await ask(opened, "GET", "/getPods") == (200, {"running": [opened.hash]})
    opened.node.engine.now += timedelta(seconds=600)
    assert await ask(opened, "GET", "/getPods") == (200, {"running": []})


async def test_a_pod_is_told_by_its_hash(opened: Admin) -> None:
    status, answer = await ask(opened, "GET", f"/getPodInfo?id={opened.hash}")
    assert status == 200
    assert answer == {
        "hash": opened.hash,
        "running": True,
        "start": "2026-11-23T12:00:00.000Z",
        "expiry": "2026-11-23T12:10:00.000Z",
        "ip": "10.77.0.2",
        "port": "8080",
    }


@pytest.mark.parametrize(
    ("query", "status"),
    [("?id=" + "a" * 52, 404), ("?id=x", 404), ("?id=", 400), ("", 400), ("?id=a&id=b", 400)],
)
async def test_an_unknown_pod_is_404_and_a_missing_id_is_named(
    opened: Admin, query: str, status: int
) -> None:
    found, answer = await ask(opened, "GET", f"/getPodInfo{query}")
    assert found == status == answer["statusCode"]
    assert "id" in answer["message"]


async def test_every_pod_is_listed_with_its_state_and_no_private_value(opened: Admin) -> None:
    pending = replace(opened.node.engine.kept[opened.hash], state=PodState.PENDING)
    opened.node.engine.kept[ManifestHash("p" * 52)] = pending
    opened.node.engine.now += timedelta(seconds=599.5)
    status, answer = await ask(opened, "GET", "/pods")
    assert status == 200
    assert answer[0] == {
        "hash": opened.hash,
        "name": "hello",
        "state": "running",
        "url": f"http://{opened.hash}.codius.localhost:3000/",
        "expiry": "2026-11-23T12:10:00.000Z",
        "secondsLeft": 0,
        "address": "10.77.0.2",
        "port": 8080,
        "debug": False,
        "containers": [{"id": "app", "image": IMAGE}],
        "traffic": {"sent": NOTHING, "received": NOTHING, "refused": {}},
    }
    assert answer[1]["state"] == "pending"
    assert SECRET not in json.dumps(answer)


@pytest.mark.parametrize(("sent", "cost"), [("20", "20"), ("0", "0"), ("0.25", "0.25"), ("1e3", "1000")])
async def test_the_price_can_be_set(opened: Admin, sent: str, cost: str) -> None:
    status, answer = await ask(opened, "POST", "/config", data=f'{{"hostCostPerMonth": {sent}}}')
    assert (status, answer) == (204, None)
    assert opened.node.prices.told == Decimal(cost)


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "{}", "null", "5"]
    + [
        f'{{"hostCostPerMonth": {value}}}'
        for value in ("-1", "true", '"5"', "null", "NaN", "1e400", "1e13", "[]")
    ]
    + ['{"hostCostPerMonth": 1, "x": 2}', '{"hostCostPerMonth": 1, "hostCostPerMonth": 2}'],
)
async def test_a_bad_price_changes_nothing(opened: Admin, body: str) -> None:
    status, answer = await ask(opened, "POST", "/config", data=body)
    assert status == answer["statusCode"] == 400
    assert opened.node.prices.told == 10


async def test_a_large_body_is_refused(opened: Admin) -> None:
    status, _ = await ask(opened, "POST", "/config", data=b" " * 10_000)
    assert status == 413


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", "/pods"),
        ("PUT", "/config"),
        ("GET", "/denylist/x"),
        ("PUT", "/denylist"),
        ("POST", "/usage"),
        ("DELETE", "/pods"),
        ("GET", "/x"),
        ("POST", "/policy"),
        ("GET", f"/pods/{'a' * 52}/probe"),
        ("POST", "/pods//probe"),
    ],
)
async def test_everything_else_is_not_found(opened: Admin, method: str, path: str) -> None:
    status, answer = await ask(opened, method, path)
    assert status == answer["statusCode"] == 404


# ---- the network policy ---------------------------------------------------------------------------


async def test_a_pods_traffic_is_listed_with_it(opened: Admin) -> None:
    opened.node.meter.counted[opened.hash] = Traffic(
        Volume(1000, 10), Volume(2000, 20), {Reason.HOST: 3, Reason.PORT: 1}
    )
    _, [pod] = await ask(opened, "GET", "/pods")
    assert pod["traffic"] == {
        "sent": {"bytes": 1000, "packets": 10},
        "received": {"bytes": 2000, "packets": 20},
        "refused": {"host": 3, "port": 1},
    }


async def test_the_policy_in_force_is_told(opened: Admin) -> None:
    opened.node.rules.counters = {Reason.HOST: 7}
    opened.node.watch.repairs = Repairs(2, Repair(NOON, ("the table is gone",)))
    status, answer = await ask(opened, "GET", "/policy")
    assert status == 200
    assert answer["origin"] == "settings"
    assert answer["egress"] == {
        "mode": "open",
        "deniedRanges": [],
        "allowedRanges": [],
        "deniedPorts": [],
        "allowedPorts": [],
    }
    assert "10.0.0.0/8" in answer["builtIn"]["deniedRanges"]
    assert "tcp/25" in answer["builtIn"]["deniedPorts"]
    assert answer["limits"]["connections"] == 256
    assert answer["resolvers"] == ["192.0.2.53"]
    assert answer["pools"] == ["10.77.0.0/16"]
    assert answer["refused"] == {"host": 7}
    assert answer["repairs"] == {
        "count": 2,
        "last": {"at": "2026-11-23T12:00:00+00:00", "problems": ["the table is gone"]},
    }


async def test_rules_are_set_and_taken_back_at_run_time(opened: Admin) -> None:
    opened.node.rules.cut = 3
    rules = {"mode": "listed", "allowedRanges": ["203.0.113.0/24"], "deniedPorts": ["tcp/6667"]}
    status, answer = await ask(opened, "PUT", "/policy", data=json.dumps(rules))
    assert (status, answer["cut"], answer["origin"]) == (200, 3, "run time")
    assert rules.items() <= answer["egress"].items()
    assert opened.node.rules.policy.egress == Egress.from_document(rules)
    status, answer = await ask(opened, "DELETE", "/policy")
    assert (status, answer["origin"], answer["egress"]["mode"]) == (200, "settings", "open")
    assert opened.node.rules.policy.egress == Egress()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("", "empty"),
        ("{", "JSON"),
        ("[]", "object"),
        ('{"mode": "shut"}', "shut"),
        ('{"deniedRanges": ["10.0.0.1/8"]}', "10.0.0.1/8"),
        ('{"deniedRanges": ["0.0.0.0/0"]}', "0.0.0.0/0"),
        ('{"deniedPorts": ["tcp/70000"]}', "70000"),
        ('{"deniedPorts": [25]}', "deniedPorts"),
        ('{"allowedRanges": ["10.77.3.0/24"]}', "10.77.3.0/24"),
        ('{"deniedRange": []}', "deniedRange"),
        (json.dumps({"deniedPorts": ["tcp/1"] * 257}), "257"),
    ],
)
async def test_bad_rules_are_refused_by_name_and_the_old_ones_stay(
    opened: Admin, body: str, named: str
) -> None:
    before = opened.node.rules.policy
    status, answer = await ask(opened, "PUT", "/policy", data=body)
    assert status == answer["statusCode"] == 400
    assert named in answer["message"]
    assert opened.node.rules.policy is before


async def test_rules_of_any_size_a_host_takes_fit_and_larger_ones_are_refused(opened: Admin) -> None:
    longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/128"
    lists = {"deniedRanges": [longest] * 256, "allowedRanges": [longest] * 256}
    ports = {"deniedPorts": ["udp/60000-60063"] * 256, "allowedPorts": ["udp/60000-60063"] * 256}
    assert (await ask(opened, "PUT", "/policy", data=json.dumps(lists | ports)))[0] == 200
    assert (await ask(opened, "PUT", "/policy", data=b" " * 100_000))[0] == 413


async def test_the_operator_is_told_why_the_kernel_did_not_take_the_rules(opened: Admin) -> None:
    opened.node.rules.error = RulesError("the kernel did not take the rules", hint="Do this.")
    status, answer = await ask(opened, "PUT", "/policy", data="{}")
    assert (status, answer["message"], answer["hint"]) == (
        503,
        "the kernel did not take the rules",
        "Do this.",
    )


async def test_a_pod_is_probed_and_the_answer_says_what_was_expected_and_found(opened: Admin) -> None:
    opened.node.engine.results = (
        Result("a resolver", Verdict.REACHED, Verdict.REACHED, "answered"),
        Result("metadata", Verdict.STOPPED, Verdict.REACHED, "connected"),
    )
    status, answer = await ask(opened, "POST", f"/pods/{opened.hash}/probe")
    assert (status, answer["ok"]) == (200, False)
    assert answer["probes"][1] == {
        "name": "metadata",
        "expected": "stopped",
        "found": "reached",
        "detail": "connected",
        "ok": False,
    }
    assert answer["probes"][0]["ok"] is True


@pytest.mark.parametrize("error", [EngineError, NetworkError, StoreError])
async def test_the_operator_is_told_what_is_the_matter_with_the_host(
    opened: Admin, error: type[CodiusError]
) -> None:
    opened.node.engine.error = error("/run/podman.sock does not answer", hint="Start it.")
    status, answer = await ask(opened, "POST", f"/pods/{opened.hash}/probe")
    assert (status, answer["message"], answer["hint"]) == (
        503,
        "/run/podman.sock does not answer",
        "Start it.",
    )


async def test_an_unknown_pod_cannot_be_probed(opened: Admin) -> None:
    assert (await ask(opened, "POST", f"/pods/{'b' * 52}/probe"))[0] == 404


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_any_price_is_accepted_or_refused(value: Any) -> None:
    try:
        cost = admin_pods.parse_config({"hostCostPerMonth": value})
    except RequestError:
        return
    assert 0 <= cost <= pricing.MAX_COST


# ---- who is let in --------------------------------------------------------------------------------

VISIT: Final = """
import os, socket, sys
if sys.argv[2] != "-":
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
line.sendall(b"GET /getPods HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
print(line.recv(4096).split(b" ")[1].decode())
"""


async def visit(path: Path, uid: str) -> str:
    """The status that a process of this user gets."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", VISIT, str(path), uid, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode().strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_is_turned_away_by_the_kernels_word(tmp_path: Path) -> None:
    async with open_admin(tmp_path) as opened:
        opened.socket.chmod(0o666)
        for directory in (tmp_path, *tmp_path.parents[:2]):
            directory.chmod(0o755)
        assert await visit(opened.socket, "-") == "200"
        assert await visit(opened.socket, str(OTHERS_UID)) == "403"


async def test_only_the_allowed_users_are_let_in(tmp_path: Path) -> None:
    async with open_admin(tmp_path, uids=frozenset({OTHERS_UID})) as opened:
        status, answer = await ask(opened, "GET", "/getPods")
        assert status == 403
        assert str(os.geteuid()) in answer["message"]
        status, _ = await ask(opened, "POST", "/config", data='{"hostCostPerMonth": 0}')
        assert status == 403
        assert opened.node.prices.told == 10


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:3001"}, 200),
        ({"Host": "[::1]:3001"}, 200),
        ({"Host": "rebound.example"}, 403),
        ({"Host": "127.0.0.1.example:3001"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
async def test_on_tcp_no_web_page_gets_in(opened: Admin, headers: dict[str, str], status: int) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{opened.port}/getPods", headers=headers) as response,
    ):
        assert response.status == status
        assert "Access-Control-Allow-Origin" not in response.headers


def test_the_peer_of_a_socket_pair_is_ourselves() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert admin.read_peer_uid(ours) == os.geteuid()
