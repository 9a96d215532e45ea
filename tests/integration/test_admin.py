"""The operator's whole way: the command, the admin socket, a real node, its feed and its public API."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import pty
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from codius_node import cli, daemon
from codius_node.config import Settings, load
from codius_node.daemon import Node, open_node
from codius_node.errors import StoreError
from codius_node.model import Pod, Quote, Receipt, Target
from codius_node.payments import FreeRail
from codius_proxy import routes
from tests.harness.engine import NOON, Clock, make_upload

UPLOAD: Final = make_upload()
HASH: Final = UPLOAD.manifest.hash
DOCUMENT: Final = {"manifest": dict(UPLOAD.manifest.document)}
TOKEN: Final = "c2VjcmV0LXRva2VuLTE2IQ"
SECONDS: Final = 30


class ChargingRail(FreeRail):
    """Takes what was quoted, and keeps the token."""

    async def claim(self, quote: Quote, token: str | None) -> Receipt:
        return Receipt(rail="test", price=quote.price, currency=self.currency, token=token)


@dataclass
class Host:
    node: Node
    settings: Settings
    clock: Clock
    admin: aiohttp.ClientSession
    public: aiohttp.ClientSession
    capfd: pytest.CaptureFixture[str]

    async def codiusd(self, *words: str) -> tuple[int, str, str]:
        """`codiusd admin` with these words."""
        self.capfd.readouterr()
        status = await asyncio.to_thread(cli.main, ["admin", *words])
        captured = self.capfd.readouterr()
        return status, captured.out, captured.err

    async def json(self, *words: str) -> Any:
        status, out, err = await self.codiusd(*words, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """The admin API."""
        return await read(self.admin, method, path, **options)

    async def api(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """The public API, with a token."""
        return await read(self.public, method, path, headers={"Pay-Token": TOKEN}, **options)

    async def table(self) -> routes.RouteTable:
        """What a worker of the front door that connects now is told."""
        reader, writer = await asyncio.open_unix_connection(
            str(self.settings.feed_socket), limit=routes.MAX_LINE
        )
        table = routes.RouteTable()
        table.apply(routes.parse(await reader.readline()))
        writer.close()
        return table


async def read(client: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with client.request(method, path, **options) as response:
        text = await response.text()
        return response.status, json.loads(text) if text else None


Open = Callable[..., Any]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Open:
    """Opens the host; again, after it is closed, it is the same one restarted."""
    clock = Clock()
    environment = {
        "CODIUS_HYPER_NOOP": "true",
        "CODIUS_ROOT": str(tmp_path / "root"),
        "CODIUS_RUN": str(tmp_path),
        "CODIUS_SELFTEST": "false",
    }
    for name in [name for name in os.environ if name.startswith("CODIUS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(daemon, "FreeRail", ChargingRail)

    @asynccontextmanager
    async def start(**more: str) -> AsyncIterator[Host]:
        settings = load(environment | more)
        async with (
            open_node(settings, clock=clock, target_of=target_of) as node,
            unix_client(settings.admin_socket) as admin,
            unix_client(settings.api_socket) as public,
        ):
            yield Host(node, settings, clock, admin, public, capfd)

    return start


def target_of(pod: Pod) -> Target | None:
    return None if pod.manifest.port is None else Target(str(pod.address), pod.manifest.port)


def unix_client(socket: Path) -> aiohttp.ClientSession:
    return aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(path=str(socket)))


@pytest.fixture
async def host(opened: Open) -> AsyncIterator[Host]:
    async with opened() as host:
        yield host


# ---- stops ----------------------------------------------------------------------------------------


async def test_a_pod_is_stopped_in_plain_words(host: Host) -> None:
    await host.node.engine.upload(UPLOAD, 3600, token=None)
    host.clock.forward(seconds=600)
    status, out, _ = await host.codiusd("stop", HASH, "--reason", "Malware.", "--public")
    assert status == 0
    assert out.splitlines() == [
        f"Taken down: {HASH}. Visitors get 410, with the reason.",
        "What is left of the paid time is kept for the next upload of the same manifest. It is 50 min.",
        "Unless it is denied it can be uploaded again;"
        f" `codiusd admin deny add manifest {HASH} --reason …` keeps it out.",
    ]
    assert (await host.codiusd("pods"))[1] == "No pods.\n"
    table = await host.table()
    assert (len(table), table.find_notice(HASH)) == (0, routes.Notice(False, "Malware."))
    again = await host.json("stop", HASH, "--reason", "another", "--no-credit")
    assert again == {
        "hash": HASH,
        "reason": "another",
        "public": False,
        "legal": False,
        "credit": False,
        "seconds": 3000,
        "stoppedAt": "2026-01-01T12:10:00.000Z",
        "endedAt": None,
    }


async def test_a_stop_on_a_legal_demand_without_credit_says_so(host: Host) -> None:
    await host.node.engine.upload(UPLOAD, 3600, token=None)
    _, out, _ = await host.codiusd("stop", HASH, "--reason", "Order 7", "--legal", "--no-credit")
    assert "Visitors get 451, without the reason." in out
    assert "What is left of the paid time is lost. It is 1 h." in out
    assert (await host.table()).find_notice(HASH) == routes.Notice(True, "")


async def test_what_does_not_run_is_told_with_what_to_do_next(host: Host) -> None:
    status, out, err = await host.codiusd("stop", HASH, "--reason", "x")
    assert (status, out) == (1, "")
    assert "no pod of this hash runs here" in err
    assert "`codiusd admin pods`" in err


@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("\n", 1), ("y\n", 0)])
async def test_on_a_terminal_the_operator_is_asked_first(host: Host, answer: str, status: int) -> None:
    await host.node.engine.upload(UPLOAD, 3600, token=None)
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "codius_node", "admin", "stop", HASH, "--reason", "x"),
        stdin=theirs,
        stdout=asyncio.subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    async with asyncio.timeout(SECONDS):
        await process.communicate()
    assert f"Take the pod {HASH} down? [y/N]".encode() in os.read(ours, 4096)
    os.close(ours)
    assert process.returncode == status
    assert len(await host.table()) == status


# ---- the denylist ---------------------------------------------------------------------------------


async def test_what_is_denied_is_refused_in_words_also_after_a_restart(opened: Open) -> None:
    async with opened() as host:
        await host.node.engine.upload(UPLOAD, 3600, token=None)
        _, out, _ = await host.codiusd(
            *("deny", "add", "image", "Example.com:443/app", "--reason", "Scams.", "--public")
        )
        assert out.splitlines() == [
            "Denied: image example.com/app. Uploads, extensions and quotes are refused.",
            f"Taken down: {HASH}",
            "Visitors get 410, with the reason. What is left of the paid time is kept for the next upload of"
            " the same manifest.",
        ]
    async with opened() as host:
        assert (await host.table()).find_notice(HASH) == routes.Notice(False, "Scams.")
        for method in ("OPTIONS", "POST"):
            status, answer = await host.api(method, "/pods?duration=60", json=DOCUMENT)
            assert status == answer["statusCode"] == 403
            assert answer["message"] == (
                "the operator of this host does not run the image example.com/app: Scams."
            )
            assert "Nothing was charged" in answer["hint"]
        assert await host.node.store.pods() == []
        assert len(await host.node.store.ledger()) == 1
        [row] = (await host.codiusd("deny", "list"))[1].splitlines()[1:]
        assert row.split()[:7] == ["image", "example.com/app", "2026-01-01", "yes", "yes", "410,", "with"]
        assert (await host.json("deny", "list"))["denials"] == [
            {
                "kind": "image",
                "value": "example.com/app",
                "reason": "Scams.",
                "public": True,
                "legal": False,
                "credit": True,
                "takedown": True,
                "since": "2026-01-01T12:00:00.000Z",
            }
        ]
        assert await host.json("deny", "remove", "image", "example.com/app") == {
            "kind": "image",
            "value": "example.com/app",
        }
        status, answer = await host.api("POST", "/pods?duration=60", json=DOCUMENT)
        assert status == 200
        assert answer["expiry"] == "2026-01-01T13:01:00.000Z", "with the hour that was credited"
        assert (await host.codiusd("deny", "list"))[1] == "Nothing is denied.\n"
    async with opened() as host:
        await host.node.engine.upload(UPLOAD, 60, token=None)


async def test_what_cannot_be_taken_down_yet_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise StoreError("the disk is full")

    await host.node.engine.upload(UPLOAD, 3600, token=None)
    monkeypatch.setattr(host.node.store, "stop_pod", full)
    status, out, _ = await host.codiusd("deny", "add", "manifest", HASH, "--reason", "x")
    assert status == 0
    assert f"Not yet taken down, and reached by nobody: {HASH}." in out
    assert (await host.table()).find_notice(HASH) is not None


async def test_an_extension_of_what_is_denied_and_stays_is_refused(host: Host) -> None:
    await host.api("POST", "/pods?duration=60", json=DOCUMENT)
    _, out, _ = await host.codiusd(
        *("deny", "add", "registry", "example.com", "--reason", "x", "--no-takedown")
    )
    assert "Pods that run stay until their end." in out
    status, answer = await host.api("PUT", f"/pods?manifestHash={HASH}&duration=60")
    assert (status, answer["message"]) == (
        403,
        "the operator of this host does not run images from example.com",
    )
    shown = await host.api("GET", f"/pods?manifestHash={HASH}")
    assert shown[1]["expiry"] == "2026-01-01T12:01:00.000Z"


async def test_what_is_not_denied_cannot_be_admitted(host: Host) -> None:
    status, _, err = await host.codiusd("deny", "remove", "registry", "quay.io")
    assert (status, "the registry quay.io is not on the denylist" in err) == (1, True)


async def test_the_denylist_has_a_bound_and_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codius_node.books.MAX_DENIALS", 2)
    for name in ("a.example", "b.example", "b.example"):
        assert (await host.codiusd("deny", "add", "registry", name, "--reason", "x"))[0] == 0
    status, _, err = await host.codiusd("deny", "add", "registry", "c.example", "--reason", "x")
    assert (status, "the denylist has 2 entries" in err) == (1, True)
    assert len((await host.json("deny", "list"))["denials"]) == 2


# ---- the price ------------------------------------------------------------------------------------


async def test_who_was_quoted_a_lower_price_pays_it_for_ten_minutes_also_over_a_restart(
    opened: Open,
) -> None:
    month = "/pods?duration=2628000"

    async def quote(host: Host) -> int:
        return int((await host.api("OPTIONS", month, json=DOCUMENT))[1]["price"])

    async def pay(host: Host, name: str) -> int:
        """What is charged for a month."""
        upload = make_upload(name)
        status, _ = await read(host.public, "POST", month, json={"manifest": dict(upload.manifest.document)})
        assert status == 200
        [entry] = await host.node.store.ledger(upload.manifest.hash)
        return entry.price

    async with opened() as host:
        told = await quote(host)
        assert told == 10_000
        _, out, _ = await host.codiusd("price", "set", "20")
        assert out.splitlines() == [
            "A month costs 20 DEV, set at run time.",
            "The settings say 10; `codiusd admin price reset` goes back to them.",
            "Whoever pays until 2026-01-01T12:10:00.000Z pays 10: it was quoted before.",
        ]
        assert (await quote(host), await pay(host, "a")) == (20_000, told)
        host.clock.forward(minutes=5)
    async with opened() as host:
        assert (await quote(host), await pay(host, "b")) == (20_000, told)
        host.clock.forward(minutes=5)
        assert await pay(host, "c") == told
        host.clock.forward(seconds=1)
        assert await pay(host, "d") == 20_000
        await host.codiusd("price", "set", "5")
        assert (await quote(host), await pay(host, "e")) == (5_000, 5_000), "a lower price counts at once"
        assert await host.json("price", "reset") == {
            "hostCostPerMonth": 10,
            "currency": "DEV",
            "origin": "settings",
            "settings": 10,
            "charged": 5,
            "earlier": [{"hostCostPerMonth": 5, "until": "2026-01-01T12:20:01.000Z"}],
        }
    async with opened(CODIUS_COST_PER_MONTH="30") as host:
        assert (await quote(host), await pay(host, "f")) == (30_000, 5_000)
        host.clock.forward(minutes=10, seconds=1)
        assert (await quote(host), await pay(host, "g")) == (30_000, 30_000)


async def test_an_extension_is_charged_like_an_upload(host: Host) -> None:
    await host.node.engine.upload(UPLOAD, 60, token=None)
    await host.ask("POST", "/config", json={"hostCostPerMonth": 1000})
    status, _ = await host.api("PUT", f"/pods?manifestHash={HASH}&duration=2628000")
    assert (status, (await host.node.store.ledger(HASH))[0].price) == (200, 10_000)


async def test_a_price_an_older_version_kept_is_taken_up(opened: Open) -> None:
    async with opened() as host:
        await host.node.store.set_setting("cost_per_month", "7.5", now=NOON)
    async with opened() as host:
        price = await host.json("price", "show")
        assert (price["hostCostPerMonth"], price["origin"], price["earlier"]) == (7.5, "run time", [])


# ---- usage ----------------------------------------------------------------------------------------


async def test_usage_outlives_pods_and_names_no_token(host: Host) -> None:
    await host.api("POST", "/pods?duration=3600", json=DOCUMENT)
    host.clock.forward(seconds=600)
    await host.ask("POST", f"/pods/{HASH}/stop", json={"reason": "why"})
    usage = await host.json("usage", HASH)
    assert usage["state"] == "stopped"
    times = {key: value for key, value in usage.items() if key.startswith("seconds")}
    assert times == {
        "secondsPaid": 3600,
        "secondsUsed": 600,
        "secondsLeft": 0,
        "secondsHeld": 3000,
        "secondsRestored": 0,
        "secondsOfOutage": 0,
    }
    assert usage["ledger"] == [
        {
            "id": 1,
            "kind": "upload",
            "seconds": 3600,
            "amount": "0.014",
            "currency": "DEV",
            "rail": "test",
            "at": "2026-01-01T12:00:00.000Z",
        }
    ]
    assert usage["prices"] == [{"currency": "DEV", "amount": "0.014"}]
    assert [stop["reason"] for stop in usage["stops"]] == ["why"]
    await host.node.engine.upload(UPLOAD, 100, token=None)
    host.clock.forward(seconds=50)
    usage = await host.json("usage", HASH)
    assert (usage["state"], usage["secondsRestored"], usage["secondsLeft"]) == ("running", 3000, 3050)
    assert (usage["secondsPaid"], usage["secondsUsed"], usage["secondsHeld"]) == (3700, 650, 0)
    told = [await host.codiusd(*words) for words in (["usage"], ["usage", HASH], ["pods"])]
    told += [(0, json.dumps(await host.json(*words)), "") for words in (["usage"], ["usage", HASH])]
    assert all(status == 0 and HASH in out and TOKEN not in out for status, out, _ in told)
    assert "3000" not in told[1][1], "people read times"


async def test_usage_comes_in_pages_newest_first(host: Host) -> None:
    hashes = []
    for number in range(5):
        pod = await host.node.engine.upload(make_upload(f"app-{number}"), 60, token=None)
        hashes.append(pod.hash)
    await host.node.engine.extend(hashes[0], 60, token=None)
    expected = [hashes[0], *reversed(hashes[1:])]
    found: list[str] = []
    before: list[str] = []
    while True:
        page = await host.json("usage", "--limit", "2", *before)
        found += [usage["hash"] for usage in page["usage"]]
        if page["next"] is None:
            break
        assert len(page["usage"]) == 2
        before = ["--before", str(page["next"])]
    assert found == expected
    _, out, _ = await host.codiusd("usage", "--limit", "2")
    assert out.splitlines()[-1] == "There are more: codiusd admin usage --before 5"
    page = await host.json("usage", hashes[0], "--limit", "1")
    assert ([entry["kind"] for entry in page["ledger"]], page["next"]) == (["extension"], 6)
    page = await host.json("usage", hashes[0], "--limit", "1", "--before", "6")
    assert ([entry["kind"] for entry in page["ledger"]], page["next"]) == (["upload"], None)


async def test_an_empty_book_says_so(host: Host) -> None:
    assert (await host.codiusd("usage"))[1] == "Nothing was ever paid for here.\n"
    status, _, err = await host.codiusd("usage", HASH)
    assert (status, "was ever paid for here" in err) == (1, True)


async def test_the_recorded_sums_are_told_for_the_hosts_whole_life(host: Host) -> None:
    assert await host.ask("GET", "/getAllUptime") == (
        200,
        {"aggregate_pod_uptime": "0", "aggregate_earnings": {"DEV": "0"}},
    )
    await host.api("POST", "/pods?duration=2628000", json=DOCUMENT)
    await host.ask("POST", f"/pods/{HASH}/stop", json={"reason": "x", "credit": False})
    await host.node.engine.upload(make_upload("b"), 657000, token=None)
    assert await host.ask("GET", "/getAllUptime") == (
        200,
        {"aggregate_pod_uptime": "3285000", "aggregate_earnings": {"DEV": "12.5"}},
    )


# ---- what nobody should send ----------------------------------------------------------------------

STOP: Final = f"/pods/{HASH}/stop"
GOOD_STOP: Final = {"reason": "x"}
GOOD_DENIAL: Final = {"kind": "registry", "value": "quay.io", "reason": "x"}
BODIES: Final[list[tuple[bytes, int]]] = [
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b"null", 400),
    (b"NaN", 400),
    (b"\xff\xfe", 400),
    (b'{"reason": "x", "reason": "y"}', 400),
    (b'{"reason": NaN}', 400),
    (b'{"reason": "\\ud800"}', 400),
    (b'{"reason": "a\\u0000b"}', 400),
    (b'{"reason": "a\\nb"}', 400),
    (b'{"reason": "a\\u202eb"}', 400),
    (b'{"reason": "' + b"x" * 201 + b'"}', 400),
    (b'{"reason": "x", "credit": 1e999}', 400),
    (b'{"reason": "x", "credit": "yes"}', 400),
    (b'{"reason": "x", "more": 1}', 400),
    (b"[" * 3000, 400),
    (b'{"reason": "' + b"x" * 5000 + b'"}', 413),
    (gzip.compress(b'{"reason": "' + b"x" * 100_000 + b'"}'), 400),
]


@pytest.mark.parametrize("path", [STOP, "/denylist", "/config"])
@pytest.mark.parametrize("number", range(len(BODIES)))
async def test_a_bad_body_is_refused_and_changes_nothing(host: Host, path: str, number: int) -> None:
    body, expected = BODIES[number]
    await host.node.engine.upload(UPLOAD, 600, token=None)
    status, answer = await host.ask("POST", path, data=body)
    assert status == answer["statusCode"] == expected
    assert answer["message"]
    assert len(await host.table()) == 1
    assert host.node.engine.denials.all() == []
    assert host.node.engine.prices.told == 10


async def test_a_packed_body_is_unpacked_within_its_bound(host: Host) -> None:
    headers = {"Content-Encoding": "gzip"}
    packed = gzip.compress(json.dumps(GOOD_DENIAL).encode())
    assert (await host.ask("POST", "/denylist", data=packed, headers=headers))[0] == 200
    bomb = gzip.compress(b" " * 10_000_000)
    assert (await host.ask("POST", "/denylist", data=bomb, headers=headers))[0] == 413
    assert (await host.ask("POST", "/denylist", data=b"no gzip", headers=headers))[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", f"/pods/{HASH.upper()}/stop", GOOD_STOP, 404),
        ("POST", f"/pods/{HASH[1:]}/stop", GOOD_STOP, 404),
        ("POST", "/pods/%00/stop", GOOD_STOP, 404),
        ("POST", "/pods/..%2f/stop", GOOD_STOP, 404),
        ("POST", f"/pods/{'b' * 52}/stop", GOOD_STOP, 404),
        ("GET", STOP, None, 404),
        ("POST", f"/pods/{HASH.upper()}/probe", None, 404),
        ("GET", f"/usage/{HASH.upper()}", None, 404),
        ("GET", f"/usage/{'b' * 52}", None, 404),
        ("GET", "/usage/%0a", None, 404),
        ("GET", "/usage?limit=0", None, 400),
        ("GET", "/usage?limit=1001", None, 400),
        ("GET", "/usage?limit=1&limit=2", None, 400),
        ("GET", "/usage?limit=-1", None, 400),
        ("GET", "/usage?limit=1e3", None, 400),
        ("GET", "/usage?before=0", None, 400),
        ("GET", "/usage?before=99999999999999999999", None, 400),
        ("GET", "/usage?before=x", None, 400),
        ("GET", f"/usage/{HASH}?limit=x", None, 400),
        ("POST", "/denylist", {**GOOD_DENIAL, "kind": "REGISTRY"}, 400),
        ("POST", "/denylist", {**GOOD_DENIAL, "kind": "manifest", "value": HASH.upper()}, 400),
        ("POST", "/denylist", {**GOOD_DENIAL, "kind": "image", "value": "nginx:latest"}, 400),
        ("POST", "/denylist", {**GOOD_DENIAL, "kind": "image", "value": "a" * 513}, 400),
        ("POST", "/denylist", {**GOOD_DENIAL, "value": "https://quay.io"}, 400),
        ("POST", "/denylist", {**GOOD_DENIAL, "value": 5}, 400),
        ("POST", "/denylist", {"kind": "registry", "value": "quay.io"}, 400),
        ("PUT", "/denylist", GOOD_DENIAL, 404),
        ("DELETE", "/denylist", None, 400),
        ("DELETE", "/denylist?kind=registry", None, 400),
        ("DELETE", "/denylist?kind=registry&value=", None, 400),
        ("DELETE", "/denylist?kind=host&value=x", None, 400),
        ("DELETE", "/denylist?kind=registry&value=a.example&value=b.example", None, 400),
        ("DELETE", "/denylist?kind=registry&value=%00", None, 400),
        ("DELETE", "/denylist?kind=registry&value=quay.io", None, 404),
    ],
)
async def test_whatever_is_wrong_is_told_and_never_500(
    host: Host, method: str, path: str, body: Any, status: int
) -> None:
    await host.node.engine.upload(UPLOAD, 600, token=None)
    found, answer = await host.ask(method, path, json=body)
    assert found == answer["statusCode"] == status
    assert answer["message"]
    assert len(await host.table()) == 1
    assert host.node.engine.denials.all() == []
