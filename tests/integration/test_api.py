"""The public API over a real Unix socket: shapes, statuses, streams, and clients that walk away."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import yarl

from codius_node import api, operations, peers, schema
from codius_node.config import load
from codius_node.errors import EngineError, HostFullError, ImageError, PaymentRequiredError
from codius_node.model import Capacity, LogLine
from codius_node.operations import Operation
from tests.integration.engine_double import NOON, EngineDouble, Served, serve_api

IMAGE: Final = "nginx@sha256:" + "0" * 63 + "1"
DOCUMENT: Final[dict[str, Any]] = {
    "manifest": {
        "name": "hello",
        "version": "1.0.0",
        "machine": "small",
        "port": "8080",
        "containers": [{"id": "app", "image": IMAGE}],
    }
}
HASH: Final = "ct3r5zdruzxu7w4bztzgz6pdma55ge7kbz53muq7rs23z3ddww4q"
UNKNOWN: Final = "a" * 52
DEBUG_DOCUMENT: Final = {"manifest": {**DOCUMENT["manifest"], "debug": True}}
JSON: Final = {"Content-Type": "application/json"}
DEADLINE: Final = 5.0


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve_api(tmp_path) as served:
        yield served


async def ask(
    served: Served, method: str, path: str, **options: Any
) -> tuple[aiohttp.ClientResponse, dict[str, Any]]:
    """The answer and its JSON; every answer is checked for what all have in common."""
    async with (
        asyncio.timeout(DEADLINE),
        served.client.request(method, yarl.URL(path, encoded=True), **options) as response,
    ):
        document = await response.json()
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        if response.status >= 400:
            assert document["statusCode"] == response.status
            assert document["error"] == response.reason
            assert set(document) <= {"statusCode", "error", "message", "hint"}
            assert document["message"]
        return response, document


async def upload(served: Served, document: dict[str, Any] = DOCUMENT, query: str = "") -> dict[str, Any]:
    response, answer = await ask(served, "POST", f"/pods{query}", json=document)
    assert response.status == 200
    return answer


# ---- the host -------------------------------------------------------------------------------------


async def test_version_names_the_software_and_its_installed_version(served: Served) -> None:
    _, answer = await ask(served, "GET", "/version")
    assert answer["name"] == "Codiusd (Python)"
    assert answer["version"][0].isdigit()


async def test_info_has_the_recorded_fields(served: Served) -> None:
    _, answer = await ask(served, "GET", "/info")
    assert answer == {
        "fullMem": False,
        "acceptingUploads": True,
        "serverFreeMemory": 8 * 2**30,
        "serverUptime": 3600,
        "serviceUptime": 90.0,
        "avgLoad": 0.25,
        "numPeers": 2,
        "currency": "DEV",
        "costPerMonth": 10,
        "uri": "http://codius.localhost:3000",
        "selfTestSuccess": None,
        "isolation": "container",
        "runningContracts": 0,
    }


@pytest.mark.parametrize("success", [True, False, None])
async def test_info_tells_how_the_last_selftest_went_and_nothing_else(
    served: Served, success: bool | None
) -> None:
    served.selftest.success = success
    for error in (None, EngineError("podman is away")):
        served.engine.error = error
        _, answer = await ask(served, "GET", "/info")
        assert answer["selfTestSuccess"] is success


async def test_info_tells_peers_only_to_requestPeers_true(served: Served) -> None:
    _, answer = await ask(served, "GET", "/info?requestPeers=true")
    assert answer["peers"] == ["https://a.example", "https://b.example"]
    for query in ("", "?requestPeers=1", "?requestPeers=true&requestPeers=true", "?requestpeers=true"):
        _, answer = await ask(served, "GET", f"/info{query}")
        assert "peers" not in answer


async def test_an_operator_can_keep_the_additional_information_private(tmp_path: Path) -> None:
    async with serve_api(tmp_path, load({"CODIUS_ADDITIONAL_HOST_INFO": "false"})) as served:
        _, answer = await ask(served, "GET", "/info")
        assert set(answer) == {
            "fullMem",
            "acceptingUploads",
            "numPeers",
            "currency",
            "costPerMonth",
            "uri",
            "selfTestSuccess",
            "isolation",
        }
        async with served.client.get("/") as page:
            text = await page.text()
    assert "Pods running" not in text
    assert "Free memory" not in text
    assert "up for" not in text


async def test_a_full_host_says_so_before_anybody_uploads(served: Served) -> None:
    served.engine.room = Capacity(full=True, free_memory=1, running=3)
    _, answer = await ask(served, "GET", "/info")
    assert (answer["fullMem"], answer["acceptingUploads"], answer["runningContracts"]) == (True, False, 3)
    async with served.client.get("/") as page:
        assert "Not accepting uploads: full" in await page.text()


async def test_a_host_whose_engine_is_away_still_answers_and_accepts_nothing(served: Served) -> None:
    served.engine.error = EngineError("podman is away")
    _, answer = await ask(served, "GET", "/info")
    assert answer["acceptingUploads"] is False
    assert "isolation" not in answer  # nobody to ask
    async with served.client.get("/") as page:
        assert page.status == 200


async def test_memory_is_in_bytes(served: Served) -> None:
    _, answer = await ask(served, "GET", "/memory")
    assert answer == {"freeMem": 8 * 2**30}


async def test_peers_are_limited_as_asked(served: Served) -> None:
    assert (await ask(served, "GET", "/peers"))[1] == {"peers": ["https://a.example", "https://b.example"]}
    assert (await ask(served, "GET", "/peers?limit=1"))[1] == {"peers": ["https://a.example"]}
    assert (await ask(served, "GET", "/peers?limit=1000"))[0].status == 200


@pytest.mark.parametrize(
    "query", ["0", "1001", "-1", "abc", "1e3", "1.5", "%201", "NaN", "9" * 5000, "1&limit=2"]
)
async def test_a_bad_limit_is_named(served: Served, query: str) -> None:
    response, answer = await ask(served, "GET", f"/peers?limit={query}")
    assert response.status == 400
    assert "limit" in answer["message"]


async def test_a_host_that_asks_around_is_told_who_we_are_and_whom_we_know(served: Served) -> None:
    names = ["https://c.example", "https://d.example:8443"]
    response, answer = await ask(served, "POST", "/peers/discover", json={"peers": names})
    assert response.status == 200
    assert set(answer) == {"name", "version", "peers"}
    assert (answer["name"], answer["peers"]) == (
        "Codiusd (Python)",
        ["https://a.example", "https://b.example"],
    )
    assert served.peers.suggested == names


async def test_no_more_hosts_are_told_to_one_that_asks_around_than_it_will_read(served: Served) -> None:
    served.peers.uris = tuple(f"https://h{number}.example" for number in range(2000))
    _, answer = await ask(served, "POST", "/peers/discover", json={"peers": []})
    assert len(answer["peers"]) == peers.MAX_EXCHANGED


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "empty"),
        (b"[]", 400, "peers"),
        (b"{}", 400, "peers is missing"),
        (b'{"peers": "https://c.example"}', 400, "peers must be"),
        (b'{"peers": [1]}', 400, "peers[0]"),
        (b'{"peers": ["' + b"x" * 300 + b'"]}', 400, "peers[0]"),
        (b'{"peers": [' + b'"",' * 1000 + b'""]}', 400, "peers must be"),
        (b'{"peers": [], "peers": ["x"]}', 400, "twice"),
        (b'{"peers": [], "more": 1}', 400, "more is not a known field"),
        (b'{"peers": []' + b" " * peers.MAX_LIST_BODY + b"}", 413, str(peers.MAX_LIST_BODY)),
        (gzip.compress(b'{"peers": []' + b" " * 10**7 + b"}"), 413, str(peers.MAX_LIST_BODY)),
    ],
)
async def test_a_list_of_hosts_is_checked_like_everything_from_strangers(
    served: Served, body: bytes, status: int, said: str
) -> None:
    coding = {"Content-Encoding": "gzip"} if body.startswith(b"\x1f\x8b") else {}
    response, answer = await ask(served, "POST", "/peers/discover", data=body, headers=JSON | coding)
    assert response.status == status
    assert said in answer["message"]
    assert served.peers.suggested == []


async def test_the_page_is_html_under_a_policy_that_lets_nothing_else_in(served: Served) -> None:
    async with served.client.get("/") as page:
        text = await page.text()
        assert page.status == 200
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert page.headers["Vary"] == "Accept-Encoding"
    assert "codius.localhost:3000" in text


async def test_the_page_is_compressed_for_those_who_ask(served: Served) -> None:
    async with served.client.get("/", headers={"Accept-Encoding": "gzip"}) as page:
        assert page.headers["Content-Encoding"] == "gzip"
        assert "<!doctype html>" in await page.text()
    async with served.client.get("/", headers={"Accept-Encoding": "identity"}) as page:
        assert "Content-Encoding" not in page.headers


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/version",
        "/info",
        "/memory",
        "/peers",
        "/openapi.json",
        "/llms.txt",
        f"/pods?manifestHash={HASH}",
    ],
)
async def test_HEAD_answers_as_GET_without_a_body(served: Served, path: str) -> None:
    await upload(served)
    plain = {"Accept-Encoding": "identity"}
    async with served.client.get(path, headers=plain) as get, served.client.head(path, headers=plain) as head:
        assert head.status == get.status == 200
        assert head.headers["Content-Length"] == get.headers["Content-Length"] != "0"
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
        assert await head.read() == b""


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/"),
        ("PUT", "/version"),
        ("OPTIONS", "/info"),
        ("OPTIONS", "/"),
        ("DELETE", "/pods"),
        ("PATCH", "/pods"),
        ("TRACE", "/"),
        ("GET", "/version/"),
        ("GET", "/VERSION"),
        ("GET", "/index.html"),
        ("GET", "/pods/abc"),
        ("GET", "/pods/abc/logs/x"),
        ("GET", "/..%2f"),
        ("GET", "/%ff%fe"),
        ("POST", f"/pods/{HASH}/logs"),
    ],
)
async def test_unknown_paths_and_methods_are_not_found(served: Served, method: str, path: str) -> None:
    response, answer = await ask(served, method, path)
    assert response.status == 404
    assert method in answer["message"]


async def test_a_broken_escape_in_a_path_is_a_bad_request(served: Served) -> None:
    response, answer = await ask(served, "GET", "/%zz")
    assert response.status == 400
    assert "path" in answer["message"]


async def test_what_is_not_HTTP_gets_an_answer_in_the_usual_shape(served: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(served.socket)
    writer.write(b"HELLO world\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), DEADLINE)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 400 Bad Request" in head.splitlines()[0]
    assert b"application/json" in head
    assert json.loads(body)["statusCode"] == 400


# ---- browsers -------------------------------------------------------------------------------------


async def test_a_browser_may_ask_before_it_uploads(served: Served) -> None:
    asking = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,pay-token",
    }
    async with served.client.options("/pods?duration=60", headers=asking) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["Access-Control-Max-Age"] == "86400"
        assert {"POST", "PUT", "OPTIONS"} <= set(response.headers["Access-Control-Allow-Methods"].split(", "))
        assert {"content-type", "pay-token"} <= set(
            response.headers["Access-Control-Allow-Headers"].lower().split(", ")
        )


@pytest.mark.parametrize(
    "operation",
    [each for each in vars(operations).values() if isinstance(each, Operation)],
    ids=lambda each: each.name,
)
async def test_a_browser_may_ask_about_everything_there_is(served: Served, operation: Operation) -> None:
    asking = {"Origin": "https://app.example", "Access-Control-Request-Method": operation.method}
    path = operation.path.replace("{hash}", HASH)
    async with served.client.options(path, headers=asking) as response:
        assert (response.status, await response.read()) == (204, b"")
        assert operation.method in response.headers["Access-Control-Allow-Methods"].split(", ")
        # the Fetch standard lets nobody read an answer to a request with cookies without it
        assert "Access-Control-Allow-Credentials" not in response.headers


async def test_a_page_may_read_how_to_pay(served: Served) -> None:
    served.engine.error = PaymentRequiredError("pay first")
    response, _ = await ask(served, "POST", "/pods", json=DOCUMENT, headers={"Origin": "https://app.example"})
    assert response.status == 402
    assert response.headers["Access-Control-Expose-Headers"] == "Pay"


async def test_a_quote_from_a_page_is_no_preflight(served: Served) -> None:
    response, answer = await ask(
        served, "OPTIONS", "/pods", json=DOCUMENT, headers={"Origin": "https://app.example"}
    )
    assert response.status == 200
    assert answer["price"] == "14"


# ---- pods -----------------------------------------------------------------------------------------


async def test_a_quote_names_the_hash_and_the_price_as_a_string(served: Served) -> None:
    _, answer = await ask(served, "OPTIONS", "/pods?duration=2628000", json=DOCUMENT)
    assert answer == {"manifestHash": HASH, "price": "10000"}
    assert served.engine.changes == 0


async def test_a_quote_needs_no_private_values(served: Served) -> None:
    manifest = {
        **DOCUMENT["manifest"],
        "containers": [{"id": "app", "image": IMAGE, "environment": {"S": "$S"}}],
        "vars": {"S": {"value": "0" * 64, "encoding": "private:sha256"}},
    }
    response, _ = await ask(served, "OPTIONS", "/pods", json={"manifest": manifest})
    assert response.status == 200
    response, _ = await ask(served, "POST", "/pods", json={"manifest": manifest})
    assert response.status == 422
    assert served.engine.changes == 0


async def test_an_upload_answers_url_hash_and_expiry(served: Served) -> None:
    assert await upload(served, query="?duration=600") == {
        "url": f"http://{HASH}.codius.localhost:3000/",
        "manifestHash": HASH,
        "expiry": "2026-11-23T12:10:00.000Z",
    }


async def test_an_expiry_is_written_in_milliseconds(served: Served) -> None:
    served.engine.now = NOON + timedelta(microseconds=293_999)
    assert (await upload(served, query="?duration=60"))["expiry"] == "2026-11-23T12:01:00.293Z"


async def test_the_pay_token_reaches_the_engine(served: Served) -> None:
    await upload(served)
    await ask(served, "POST", "/pods", json=DOCUMENT, headers={"Pay-Token": "Rny5_WqZJ5kLkapNosGrlA"})
    await ask(served, "PUT", f"/pods?manifestHash={HASH}", headers={"Pay-Token": "second"})
    assert served.engine.tokens == [None, "Rny5_WqZJ5kLkapNosGrlA", "second"]


async def test_an_extension_counts_from_the_old_expiry(served: Served) -> None:
    await upload(served, query="?duration=600")
    _, answer = await ask(served, "PUT", f"/pods?manifestHash={HASH}&duration=50")
    assert answer["expiry"] == "2026-11-23T12:10:50.000Z"
    _, answer = await ask(served, "PUT", f"/pods?manifestHash={HASH}", data=b"", headers=JSON)
    assert answer["expiry"] == "2026-11-23T13:10:50.000Z"


async def test_a_pod_can_be_looked_up_with_its_manifest_and_without_private_values(served: Served) -> None:
    private = {"nonce": "123", "value": "shh"}
    document = {
        "manifest": {
            **DOCUMENT["manifest"],
            "containers": [{"id": "app", "image": IMAGE, "environment": {"S": "$S"}}],
            "vars": {
                "S": {
                    "encoding": "private:sha256",
                    "value": "605f759f589cedbf4a555faf687e4d2bca87989897cc9c19d605cf80374ef0b3",
                }
            },
        },
        "private": {"vars": {"S": private}},
    }
    uploaded = await upload(served, document)
    _, answer = await ask(served, "GET", f"/pods?manifestHash={uploaded['manifestHash']}")
    assert answer == {**uploaded, "manifest": document["manifest"]}
    assert "shh" not in json.dumps(answer)


@pytest.mark.parametrize(
    ("method", "query"), [("GET", ""), ("GET", "?manifestHash="), ("PUT", "?duration=5")]
)
async def test_a_missing_hash_is_422(served: Served, method: str, query: str) -> None:
    response, answer = await ask(served, method, f"/pods{query}")
    assert response.status == 422
    assert answer["message"] == "manifestHash must be specified"


@pytest.mark.parametrize(
    "value", [UNKNOWN, HASH.upper(), f"{HASH}&manifestHash={HASH}", "1", "%00", "é", HASH + "a", " " + HASH]
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_hash_that_names_no_pod_is_404(served: Served, method: str, value: str) -> None:
    await upload(served)
    query = str(yarl.URL(f"/pods?manifestHash={value}"))
    response, _ = await ask(served, method, query)
    assert response.status == 404
    assert served.engine.changes == 1


DURATIONS: Final = (
    "0 -5 abc 1e3 0.5 NaN Infinity -Infinity 0x10 60s +60 %2060 60%20 %0960 1_000 9999999999999999 1e30 ٣"
    " 99999999999 60&duration=70 60&duration=60 &duration= true null 60%00 "
) + "9" * 6000


@pytest.mark.parametrize("value", DURATIONS.split(" "))
@pytest.mark.parametrize("method", ["OPTIONS", "POST", "PUT"])
async def test_a_bad_duration_is_named_before_anything_happens(
    served: Served, method: str, value: str
) -> None:
    await upload(served)
    body = {} if method == "PUT" else {"json": DOCUMENT}
    query = str(yarl.URL(f"/pods?manifestHash={HASH}&duration={value}"))
    response, answer = await ask(served, method, query, **body)
    assert response.status == 400
    assert "duration" in answer["message"]
    assert served.engine.changes == 1


@pytest.mark.parametrize("query", ["", "?duration=", "?DURATION=60", "?duration[a]=1", "?other=1"])
async def test_an_absent_duration_is_an_hour(served: Served, query: str) -> None:
    _, answer = await ask(served, "OPTIONS", f"/pods{query}", json=DOCUMENT)
    assert answer["price"] == "14"


async def test_the_query_is_checked_before_the_body(served: Served) -> None:
    response, answer = await ask(served, "POST", "/pods?duration=abc", data=b"{", headers=JSON)
    assert response.status == 400
    assert "duration" in answer["message"]


@pytest.mark.parametrize("body", [b'{"x":1}', b"hello", b" "])
async def test_an_extension_takes_no_body(served: Served, body: bytes) -> None:
    await upload(served)
    response, answer = await ask(served, "PUT", f"/pods?manifestHash={HASH}", data=body, headers=JSON)
    assert response.status == 400
    assert "body" in answer["message"]
    assert served.engine.changes == 1


# ---- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "JSON"),
        (b"hello", "JSON"),
        (b"null", "object"),
        (b"[]", "object"),
        (b'"x"', "object"),
        (b"1", "object"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"manifest":"\xff"}', "UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"[" * 100_000, "deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "deep"),
        (b'{"manifest":{},"manifest":{}}', "manifest"),
        (b'{"manifest":{"name":NaN}}', "NaN"),
        (b'{"manifest":{"name":' + b"9" * 100_000 + b"}}", "number"),
        (b"{}", "manifest"),
    ],
)
async def test_a_body_that_is_no_upload_is_explained(
    served: Served, method: str, body: bytes, said: str
) -> None:
    response, answer = await ask(served, method, "/pods", data=body, headers=JSON)
    assert response.status == 400
    assert said in answer["message"]
    assert served.engine.changes == 0


def broken(path: str, value: Any) -> dict[str, Any]:
    """The document with one field set; DROP takes it out."""
    document = json.loads(
        json.dumps(
            {
                "manifest": {
                    **DOCUMENT["manifest"],
                    "containers": [
                        {
                            "id": "app",
                            "image": IMAGE,
                            "command": ["run"],
                            "workdir": "/srv",
                            "environment": {"A": "1"},
                        }
                    ],
                    "vars": {"V": {"value": "x"}},
                    "debug": False,
                },
                "private": {"vars": {"P": {"nonce": "1", "value": "2"}}},
            }
        )
    )
    place: Any = document
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        place = place[key]
    if value is DROP:
        del place[last]
    else:
        place[last] = value
    return document  # type: ignore[no-any-return]


DROP: Final = object()
FIELDS: Final[list[tuple[str, list[Any], str]]] = [
    ("manifest", [DROP, None, "x", [], 1, True], "manifest"),
    ("private", [None, "x", [], 1], "private"),
    ("private.vars", [None, "x", [], 1], "private.vars"),
    ("private.vars.P", [None, "x", [], 1, {}], "private.vars.P"),
    ("private.vars.P.nonce", [DROP, None, 1, [], {}], "nonce"),
    ("private.vars.P.value", [DROP, None, 1, [], {}], "value"),
    ("private.x", [1], "x"),
    ("x", [1], "x"),
    ("manifest.x", [1], "x"),
    ("manifest.name", [DROP, None, 5, [], {}, "n" * 300], "manifest.name"),
    ("manifest.version", [DROP, None, 1, [], {}], "manifest.version"),
    ("manifest.machine", [None, "large", "", 1, []], "manifest.machine"),
    ("manifest.port", [None, 8080, "abc", "0", "-1", "65536", "1e3", " 80", "", "80 81"], "manifest.port"),
    ("manifest.debug", [None, "true", 1, [], {}], "manifest.debug"),
    ("manifest.containers", [DROP, None, {}, "x", []], "manifest.containers"),
    ("manifest.containers.0", [None, "x", [], 1], "manifest.containers[0]"),
    ("manifest.containers.0.x", [1], "x"),
    ("manifest.containers.0.id", [DROP, None, 1, "", "../a b", "A", "a" * 64], "manifest.containers[0].id"),
    (
        "manifest.containers.0.image",
        [DROP, None, 1, "", "; rm -rf /", "nginx", "nginx:1.17", IMAGE[:-1]],
        "manifest.containers[0].image",
    ),
    (
        "manifest.containers.0.command",
        [None, "ls", {}, [1], [None], ["a\0b"]],
        "manifest.containers[0].command",
    ),
    ("manifest.containers.0.workdir", [None, 1, [], "a\0b"], "manifest.containers[0].workdir"),
    ("manifest.containers.0.environment", [None, "x", [], 1], "manifest.containers[0].environment"),
    (
        "manifest.containers.0.environment.A",
        [None, 1, True, [], "$NOPE", "a\0b"],
        "manifest.containers[0].environment.A",
    ),
    ("manifest.containers.0.environment.CODIUS_X", ["1"], "CODIUS_X"),
    ("manifest.vars", [None, "x", [], 1], "manifest.vars"),
    ("manifest.vars.V", [None, "x", [], 1, {}], "manifest.vars.V"),
    ("manifest.vars.V.value", [DROP, None, 1, []], "manifest.vars.V.value"),
    ("manifest.vars.V.encoding", [None, "md5", 1, []], "manifest.vars.V.encoding"),
    ("manifest.vars.V.x", [1], "x"),
]


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        pytest.param(
            path, value, named, id=f"{path}={'(absent)' if value is DROP else json.dumps(value)[:30]}"
        )
        for path, values, named in FIELDS
        for value in values
    ],
)
async def test_every_bad_field_is_named_before_anything_happens(
    served: Served, path: str, value: Any, named: str
) -> None:
    for method in ("OPTIONS", "POST"):
        response, answer = await ask(served, method, "/pods", json=broken(path, value))
        assert response.status in {400, 422}, answer
        assert named in answer["message"]
    assert served.engine.changes == 0


async def test_the_unbroken_document_of_the_table_is_accepted(served: Served) -> None:
    await upload(served, broken("manifest.debug", True))


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 200),
        ("application/json", 200),
        ("APPLICATION/JSON", 200),
        ("application/json; charset=utf-8", 200),
        ("application/json;charset=UTF-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/vnd.api+json", 415),
        ("application/codius-v1+json", 415),
        ("multipart/form-data; boundary=x", 415),
        ("nonsense", 400),
        ("application/json, text/plain", 400),
        ("/", 400),
        ("application/", 400),
    ],
)
async def test_content_types(served: Served, given: str | None, status: int) -> None:
    headers = {} if given is None else {"Content-Type": given}
    body = json.dumps(DOCUMENT).encode()
    response, answer = await ask(
        served, "POST", "/pods", data=body, headers=headers, skip_auto_headers=["Content-Type"]
    )
    assert response.status == status
    if status != 200:
        assert "content-type" in answer["message"].lower()
        assert served.engine.changes == 0


async def test_a_body_of_one_mebibyte_is_the_largest(served: Served) -> None:
    body = json.dumps(DOCUMENT).encode()
    full = body.ljust(schema.MAX_UPLOAD_BODY)
    response, _ = await ask(served, "POST", "/pods", data=io.BytesIO(full), headers=JSON)
    assert response.status == 200
    response, answer = await ask(served, "POST", "/pods", data=io.BytesIO(full + b" "), headers=JSON)
    assert response.status == 413
    assert str(schema.MAX_UPLOAD_BODY) in answer["message"]
    assert answer["error"] == "Request Entity Too Large"


async def test_a_large_body_without_a_length_is_refused_while_it_comes(served: Served) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    response, _ = await ask(served, "POST", "/pods", data=endless(), headers=JSON)
    assert response.status == 413


PACKED: Final = gzip.compress(json.dumps(DOCUMENT).encode())


@pytest.mark.parametrize(
    ("encoding", "sent", "status"),
    [
        ("gzip", PACKED, 200),
        ("GZIP", PACKED, 200),
        ("deflate", zlib.compress(json.dumps(DOCUMENT).encode()), 200),
        ("identity", json.dumps(DOCUMENT).encode(), 200),
        # recorded: an encoding nobody knows is not looked at
        ("nope", json.dumps(DOCUMENT).encode(), 200),
        ("gzip", json.dumps(DOCUMENT).encode(), 400),
        ("gzip", PACKED[:-20], 400),
        ("gzip", PACKED + b"x", 400),
        ("gzip", gzip.compress(b" " * 50_000_000), 413),
        ("gzip", b"", 400),
        ("gzip, gzip", gzip.compress(PACKED), 400),
    ],
)
async def test_compressed_bodies(served: Served, encoding: str, sent: bytes, status: int) -> None:
    headers = {**JSON, "Content-Encoding": encoding, "Content-Length": str(len(sent))}
    response, _ = await ask(served, "POST", "/pods", data=sent, headers=headers)
    assert response.status == status


async def test_a_small_body_that_unpacks_to_a_huge_one_never_takes_its_memory(served: Served) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    await upload(served)
    tracemalloc.start()
    try:
        headers = {**JSON, "Content-Encoding": "gzip"}
        response, _ = await ask(served, "POST", "/pods", data=bomb, headers=headers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert response.status == 413
    assert peak < 10 * schema.MAX_UPLOAD_BODY


async def test_expectations(served: Served) -> None:
    response, _ = await ask(served, "POST", "/pods", json=DOCUMENT, expect100=True)
    assert response.status == 200
    response, _ = await ask(served, "POST", "/pods", json=DOCUMENT, headers={"Expect": "a miracle"})
    assert response.status == 417


# ---- errors ---------------------------------------------------------------------------------------


async def test_an_error_of_the_engine_becomes_its_status_with_its_hint(served: Served) -> None:
    served.engine.error = HostFullError("this host is full", hint="Try again later.")
    response, answer = await ask(served, "POST", "/pods", json=DOCUMENT)
    assert response.status == 503
    assert answer == {
        "statusCode": 503,
        "error": "Service Unavailable",
        "message": "this host is full",
        "hint": "Try again later.",
    }


async def test_an_unforeseen_error_is_logged_and_tells_nothing(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.engine.error = RuntimeError("the secret is 42")
    with caplog.at_level(logging.ERROR):
        response, answer = await ask(served, "POST", "/pods", json=DOCUMENT)
    assert response.status == 500
    assert "42" not in json.dumps(answer)
    assert "the secret is 42" in caplog.text
    assert "Traceback" in caplog.text


# ---- clients that walk away -----------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    "request_line", ["POST /pods", "POST /pods?progress=true", "PUT /pods?manifestHash=" + HASH]
)
async def test_a_client_that_hangs_up_does_not_stop_the_work_half_way(
    tmp_path: Path, plain: bool, request_line: str
) -> None:
    async with serve_api(tmp_path, plain=plain) as served:
        engine = served.engine
        body = b""
        if request_line.startswith("PUT"):
            await upload(served)
        else:
            body = json.dumps(DOCUMENT).encode()
        before = engine.changes
        engine.started.clear()
        engine.finished.clear()
        engine.gate = asyncio.Event()
        engine.sentences = ["pulling"]
        _, writer = await asyncio.open_unix_connection(served.socket)
        head = f"{request_line} HTTP/1.1\r\nHost: codius.localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await asyncio.wait_for(engine.started.wait(), DEADLINE)
        writer.close()
        await writer.wait_closed()
        await ask(served, "GET", "/version")  # by now the server has seen the other one leave
        engine.gate.set()
        await asyncio.wait_for(engine.finished.wait(), DEADLINE)
        assert not engine.cancelled
        assert engine.changes == before + 1


async def test_a_node_that_stops_waits_for_the_work_and_answers_it(tmp_path: Path) -> None:
    async with serve_api(tmp_path) as served:
        engine = served.engine
        engine.gate = asyncio.Event()
        client = asyncio.create_task(ask(served, "POST", "/pods", json=DOCUMENT))
        await asyncio.wait_for(engine.started.wait(), DEADLINE)
        asyncio.get_running_loop().call_later(0.05, engine.gate.set)
    assert engine.changes == 1
    assert not engine.cancelled
    await asyncio.gather(client, return_exceptions=True)


@pytest.mark.parametrize("query", ["", "?progress=true"])
async def test_a_node_that_stops_undoes_what_takes_too_long_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setattr(api, "END_SECONDS", 0.05)
    async with aiohttp.ClientSession(
        "http://codius.localhost:3000", connector=aiohttp.UnixConnector(path=str(tmp_path / "api.sock"))
    ) as client:
        async with serve_api(tmp_path) as served:
            served.engine.gate = asyncio.Event()
            asking = asyncio.create_task(
                ask(replace(served, client=client), "POST", f"/pods{query}", json=DOCUMENT)
            )
            await asyncio.wait_for(served.engine.started.wait(), DEADLINE)
        assert served.engine.cancelled
        response, answer = await asking
    assert response.status == 503
    assert "stopping" in answer["message"]


# ---- progress -------------------------------------------------------------------------------------


async def lines_of(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await response.read()).splitlines()]


async def test_progress_is_told_line_by_line_and_the_result_comes_last(served: Served) -> None:
    engine = served.engine
    engine.sentences = ["pulling nginx", "starting 1 container"]
    engine.gate = asyncio.Event()
    async with served.client.post("/pods?progress=true&duration=600", json=DOCUMENT) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/x-ndjson"
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        first = json.loads(await asyncio.wait_for(response.content.readline(), DEADLINE))
        assert first == {"progress": "pulling nginx"}  # while the engine is still at it
        engine.gate.set()
        rest = [json.loads(line) async for line in response.content]
    assert rest == [
        {"progress": "starting 1 container"},
        {
            "result": {
                "url": f"http://{HASH}.codius.localhost:3000/",
                "manifestHash": HASH,
                "expiry": "2026-11-23T12:10:00.000Z",
            }
        },
    ]


async def test_an_upload_that_fails_after_progress_ends_with_an_error_line(served: Served) -> None:
    served.engine.sentences = ["pulling nginx"]
    served.engine.error = ImageError("there is no such image: nginx", hint="Push it first.")
    async with served.client.post("/pods?progress=true", json=DOCUMENT) as response:
        assert response.status == 200
        assert (await lines_of(response))[-1] == {
            "error": {
                "statusCode": 422,
                "error": "Unprocessable Entity",
                "message": "there is no such image: nginx",
                "hint": "Push it first.",
            }
        }


async def test_what_is_out_of_order_is_told_in_detail_to_the_operator_only(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.engine.error = EngineError("podman is away at /run/x.sock", hint="systemctl start podman.socket")
    async with served.client.post("/pods", json=DOCUMENT) as response:
        assert response.status == 503
        text = await response.text()
    assert "/run" not in text
    assert "systemctl" not in text
    assert "out of order" in text
    assert "podman is away at /run/x.sock. systemctl start podman.socket" in caplog.text


async def test_a_surprise_after_progress_tells_nothing_in_its_error_line(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.engine.sentences = ["pulling nginx"]
    served.engine.error = RuntimeError("the secret is 42")
    with caplog.at_level(logging.ERROR):
        async with served.client.post("/pods?progress=true", json=DOCUMENT) as response:
            last = (await lines_of(response))[-1]
    assert last["error"]["statusCode"] == 500
    assert "42" not in json.dumps(last)
    assert "the secret is 42" in caplog.text


async def test_what_is_refused_before_any_progress_is_an_ordinary_status(served: Served) -> None:
    for error, status in ((PaymentRequiredError("pay first"), 402), (HostFullError("full"), 503)):
        served.engine.error = error
        response, _ = await ask(served, "POST", "/pods?progress=true", json=DOCUMENT)
        assert response.status == status
    response, _ = await ask(served, "POST", "/pods?progress=true", json={})
    assert response.status == 400


async def test_an_extension_by_upload_without_progress_is_one_line(served: Served) -> None:
    async with served.client.post("/pods?progress=true", json=DOCUMENT) as response:
        [line] = await lines_of(response)
    assert line["result"]["manifestHash"] == HASH


@pytest.mark.parametrize("query", ["progress=1", "progress=", "progress=true&progress=true", "progress=TRUE"])
async def test_a_bad_progress_parameter_is_named(served: Served, query: str) -> None:
    response, answer = await ask(served, "POST", f"/pods?{query}", json=DOCUMENT)
    assert response.status == 400
    assert "progress" in answer["message"]


# ---- logs -----------------------------------------------------------------------------------------


def canned(*lines: LogLine) -> AsyncIterator[LogLine]:
    async def generate() -> AsyncIterator[LogLine]:
        for line in lines:
            yield line

    return generate()


async def test_logs_are_lines_of_container_stream_and_text(served: Served) -> None:
    hash = (await upload(served, DEBUG_DOCUMENT))["manifestHash"]
    served.engine.log = lambda: canned(
        LogLine("app", "stdout", "hello"), LogLine("app", "stderr", "a ☃ warning"), LogLine("b", "stdout", "")
    )
    async with served.client.get(f"/pods/{hash}/logs", headers={"Accept-Encoding": "gzip"}) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/vnd.codius.raw-stream"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "Content-Encoding" not in response.headers
        assert await response.text("utf-8") == "app stdout hello\napp stderr a ☃ warning\nb stdout \n"


async def test_a_log_with_half_a_character_is_still_sent(served: Served) -> None:
    hash = (await upload(served, DEBUG_DOCUMENT))["manifestHash"]
    served.engine.log = lambda: canned(LogLine("app", "stdout", "\udcff"))
    async with served.client.get(f"/pods/{hash}/logs") as response:
        assert await response.read() == b"app stdout ?\n"


@pytest.mark.parametrize("name", [UNKNOWN, "abc", HASH.upper(), "%2e%2e", "%ff", "a%2Fb"])
async def test_logs_of_an_unknown_pod_are_404(served: Served, name: str) -> None:
    response, _ = await ask(served, "GET", f"/pods/{name}/logs")
    assert response.status == 404


async def test_logs_without_debug_are_403(served: Served) -> None:
    hash = (await upload(served))["manifestHash"]
    response, answer = await ask(served, "GET", f"/pods/{hash}/logs")
    assert response.status == 403
    assert "debugging" in answer["message"]


class Follower:
    """A log that writes one line and then waits; it knows when it is closed."""

    def __init__(self, engine: EngineDouble) -> None:
        self.closed = asyncio.Event()
        engine.log = self._generate

    async def _generate(self) -> AsyncIterator[LogLine]:
        try:
            yield LogLine("app", "stdout", "first")
            await asyncio.Event().wait()
        finally:
            self.closed.set()


async def test_following_ends_when_the_reader_leaves_a_silent_log(served: Served) -> None:
    hash = (await upload(served, DEBUG_DOCUMENT))["manifestHash"]
    follower = Follower(served.engine)
    response = await served.client.get(f"/pods/{hash}/logs?follow=true")
    assert await response.content.readline() == b"app stdout first\n"
    response.close()
    await asyncio.wait_for(follower.closed.wait(), DEADLINE)


async def test_following_ends_when_the_node_stops(tmp_path: Path) -> None:
    async with serve_api(tmp_path) as served:
        hash = (await upload(served, DEBUG_DOCUMENT))["manifestHash"]
        follower = Follower(served.engine)
        reader, writer = await asyncio.open_unix_connection(served.socket)
        writer.write(f"GET /pods/{hash}/logs?follow=true HTTP/1.1\r\nHost: codius.localhost\r\n\r\n".encode())
        await asyncio.wait_for(reader.readuntil(b"app stdout first\n"), DEADLINE)
    assert follower.closed.is_set()
    rest = await asyncio.wait_for(reader.read(), DEADLINE)
    assert rest.endswith(b"0\r\n\r\n")  # complete: the reader can tell an end from a breakdown
    writer.close()
    await writer.wait_closed()


async def test_HEAD_of_a_followed_log_does_not_follow(served: Served) -> None:
    hash = (await upload(served, DEBUG_DOCUMENT))["manifestHash"]
    Follower(served.engine)
    async with asyncio.timeout(DEADLINE), served.client.head(f"/pods/{hash}/logs?follow=true") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/vnd.codius.raw-stream"


async def test_no_more_than_so_many_clients_read_logs_at_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "MAX_LOG_STREAMS", 2)
    hash = (await upload(served, DEBUG_DOCUMENT))["manifestHash"]
    follower = Follower(served.engine)
    path = f"/pods/{hash}/logs?follow=true"
    readers = [await served.client.get(path) for _ in range(2)]
    response, _ = await ask(served, "GET", path)
    assert response.status == 503
    readers[0].close()
    await asyncio.wait_for(follower.closed.wait(), DEADLINE)
    async with served.client.get(path) as again:
        assert again.status == 200
    readers[1].close()


async def test_logs_that_break_off_do_not_look_complete(served: Served) -> None:
    hash = (await upload(served, DEBUG_DOCUMENT))["manifestHash"]

    async def breaking() -> AsyncIterator[LogLine]:
        yield LogLine("app", "stdout", "first")
        raise EngineError("podman went away")

    served.engine.log = breaking
    async with served.client.get(f"/pods/{hash}/logs") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
