"""Bad input, kind by kind, to a real node, through its front door and without it: refused by name, and
nothing is created, extended or charged.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio
import yarl

from codius_node.jsontext import MAX_DEPTH
from codius_node.schema import MAX_UPLOAD_BODY
from codius_node.store import Store
from tests.integration.recorded_host import ListeningPeers, open_recorded_host
from tests.integration.test_api import DEBUG_DOCUMENT, DOCUMENT, broken

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON: Final = {"Content-Type": "application/json"}
BODY: Final = json.dumps(DOCUMENT).encode()
OTHER: Final = "b" * 52
DEADLINE: Final = 10.0


@dataclass(frozen=True, slots=True)
class Host:
    """A host with one pod, and a client that speaks to it."""

    client: aiohttp.ClientSession
    origin: str
    hash: str
    authority: str
    store: Store
    peers: ListeningPeers
    socket: Path | None
    """The API's own; None: the front door is asked."""

    async def ask(
        self, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Status and JSON, or text where it is none; errors are in the recorded shape."""
        async with self.client.request(
            method,
            yarl.URL(self.origin + target.replace("HASH", self.hash), encoded=True),
            data=None if body is None else io.BytesIO(body),
            headers={**(JSON if body is not None else {}), **headers},
        ) as answer:
            if not answer.headers["Content-Type"].startswith("application/json"):
                return answer.status, await answer.text()
            document = await answer.json()
            if answer.status >= 400:
                assert document["statusCode"] == answer.status
                assert set(document) <= {"statusCode", "error", "message", "hint"}
                assert document["message"]
            return answer.status, document

    async def send(self, line: str) -> tuple[int, Any]:
        """The answer to a request with exactly this first line."""
        url = yarl.URL(self.origin)
        reader, writer = await (
            asyncio.open_connection(url.host, url.port)
            if self.socket is None
            else asyncio.open_unix_connection(self.socket)
        )
        try:
            head = f"{line}\r\nHost: {self.authority}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            writer.write(head.encode())
            async with asyncio.timeout(DEADLINE):
                answer, body = (await reader.read()).split(b"\r\n\r\n", 1)
            return int(answer.split(b" ", 2)[1]), json.loads(body)
        finally:
            writer.close()

    async def state(self) -> Any:
        """What must not change: pods, those half begun among them, until when ours is paid for, and money."""
        _, info = await self.ask("GET", "/info")
        _, pod = await self.ask("GET", "/pods?manifestHash=HASH")
        pods, ledger = await self.store.pods(), await self.store.ledger()
        return info["runningContracts"], pod, [(each.hash, each.expires_at) for each in pods], ledger

    @asynccontextmanager
    async def unchanged(self) -> AsyncIterator[None]:
        before = await self.state()
        yield
        assert await self.state() == before


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["front-door", "socket"])
async def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Host]:
    async with open_recorded_host(tmp_path_factory.mktemp("host")) as found:
        socket = found.api_socket if request.param == "socket" else None
        connector = aiohttp.UnixConnector(str(socket)) if socket else aiohttp.TCPConnector()
        async with aiohttp.ClientSession(connector=connector, headers={"Host": found.authority}) as client:
            origin = f"http://{found.address}:{found.port}"
            async with client.post(f"{origin}/pods?duration=86400", json=DEBUG_DOCUMENT) as answer:
                hash = (await answer.json())["manifestHash"]
            yield Host(client, origin, hash, found.authority, found.store, found.peers, socket)


# ---- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "status", "says"),
    [
        ("OPTIONS", "/pods?duration=60&duration=60", 400, "duration must be one"),
        ("OPTIONS", "/pods?duration=60&duration=70", 400, "given 2 times"),
        ("POST", "/pods?duration=60&duration=60", 400, "given 2 times"),
        ("POST", "/pods?duration=&duration=", 400, "given 2 times"),
        ("POST", "/pods?progress=true&progress=true", 400, "progress must be true or false, given once"),
        ("PUT", "/pods?manifestHash=HASH&duration=60&duration=60", 400, "given 2 times"),
        ("PUT", "/pods?manifestHash=HASH&manifestHash=HASH", 404, "given 2 times"),
        ("GET", "/pods?manifestHash=HASH&manifestHash=HASH", 404, "given 2 times"),
        ("GET", f"/pods?manifestHash=HASH&manifestHash={OTHER}", 404, "given 2 times"),
        ("GET", "/peers?limit=1&limit=1", 400, "given 2 times"),
    ],
)
async def test_a_repeated_parameter_is_refused(
    host: Host, method: str, target: str, status: int, says: str
) -> None:
    async with host.unchanged():
        found, answer = await host.ask(method, target, BODY if method in {"OPTIONS", "POST"} else None)
    assert found == status
    assert says in answer["message"]


async def test_a_repeated_wish_is_not_granted(host: Host) -> None:
    _, info = await host.ask("GET", "/info?requestPeers=true&requestPeers=true")
    assert "peers" not in info
    status, log = await host.ask("GET", "/pods/HASH/logs?follow=true&follow=true")
    assert (status, "tick" in log) == (200, False)


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("GET", "/Version", None, 404),
        ("GET", "/PODS?manifestHash=HASH", None, 404),
        ("GET", "/pods/HASH/LOGS", None, 404),
        ("GET", "/pods?MANIFESTHASH=HASH", None, 422),
        ("GET", "/pods?manifesthash=HASH", None, 422),
        ("PUT", "/pods?manifesthash=HASH&duration=60", None, 422),
        ("POST", "/pods?progress=TRUE", BODY, 400),
        ("POST", "/pods?progress=True", BODY, 400),
        ("OPTIONS", "/pods", json.dumps({"Manifest": DOCUMENT["manifest"]}).encode(), 400),
        ("OPTIONS", "/pods", json.dumps(broken("manifest.machine", "SMALL")).encode(), 400),
        ("OPTIONS", "/pods", json.dumps(broken("manifest.containers.0.id", "App")).encode(), 400),
        ("OPTIONS", "/pods", BODY.replace(b'"port"', b'"Port"'), 400),
        ("OPTIONS", "/pods", BODY.replace(b"sha256:", b"SHA256:"), 400),
        ("OPTIONS", "/pods", BODY.replace(b'"8080"', b"True"), 400),
    ],
)
async def test_what_is_in_the_wrong_case_is_another_name(
    host: Host, method: str, target: str, body: bytes | None, status: int
) -> None:
    async with host.unchanged():
        found, _ = await host.ask(method, target, body)
    assert found == status


@pytest.mark.parametrize("method", ["get", "Get", "options", "Post", "pUT", "gET", "head"])
async def test_a_method_in_the_wrong_case_is_none_of_ours(host: Host, method: str) -> None:
    async with host.unchanged():  # RFC 9110 section 9.1: methods have a case
        for target in ("/info", f"/pods?manifestHash={host.hash}&duration=60"):
            status, answer = await host.send(f"{method} {target} HTTP/1.1")
            assert (status, answer["statusCode"]) == (400, 400)
            assert "capital letters" in answer["hint"]


async def test_a_hash_in_upper_case_names_no_pod(host: Host) -> None:
    for method, target in (
        ("GET", "/pods?manifestHash={}"),
        ("PUT", "/pods?manifestHash={}"),
        ("GET", "/pods/{}/logs"),
    ):
        async with host.unchanged():
            status, _ = await host.ask(method, target.format(host.hash.upper()))
        assert status == 404


@pytest.mark.parametrize("name", ["Duration", "DURATION", "duration[]", "duration%00", "%20duration", "d"])
async def test_a_parameter_nobody_knows_is_not_looked_at(host: Host, name: str) -> None:
    _, hour = await host.ask("OPTIONS", "/pods", BODY)
    status, answer = await host.ask("OPTIONS", f"/pods?{name}=999999999", BODY)
    assert (status, answer) == (200, hour)


@pytest.mark.parametrize(
    "target",
    [
        "/pods%2FHASH%2Flogs",
        "/pods/HASH%2Flogs",
        "/pods%2fHASH/logs",
        "/pods/%2FHASH/logs",
        "/pods/HASH%5Clogs",
        "/%2Fpods?manifestHash=HASH",
        "//pods?manifestHash=HASH",
        "/pods/?manifestHash=HASH",
        "/pods/..%2F..%2Fetc%2Fpasswd/logs",
        "/..%2fpods?manifestHash=HASH",
        "/version%2F",
        "/pods?manifestHash=..%2F..%2FHASH",
        "/pods?manifestHash=HASH%2F",
        "/pods?manifestHash=%2FHASH",
        "/pods/HASH%00/logs",
    ],
)
async def test_an_encoded_slash_separates_nothing(host: Host, target: str) -> None:
    status, _ = await host.ask("GET", target)
    assert status == 404


# ---- numbers --------------------------------------------------------------------------------------


async def refused_everywhere(host: Host, text: str) -> None:
    """Wherever a number is read from a query, and where a port is read from a manifest."""
    query = yarl.URL.build(query={"n": text}).raw_query_string.removeprefix("n=")
    async with host.unchanged():
        for method, target, body in (
            ("OPTIONS", f"/pods?duration={query}", BODY),
            ("POST", f"/pods?duration={query}", BODY),
            ("PUT", f"/pods?manifestHash=HASH&duration={query}", None),
            ("GET", f"/peers?limit={query}", None),
        ):
            status, answer = await host.ask(method, target, body)
            assert status == 400, (method, target, answer)
            assert "must be one whole number" in answer["message"]
            assert len(answer["message"]) < 250
        port = json.dumps(broken("manifest.port", text)).encode()
        status, answer = await host.ask("POST", "/pods", port)
        assert status == 400
        assert "manifest.port must be a string of digits from 1 to 65535" in answer["message"]


@pytest.mark.parametrize(
    "text", ["9" * 12, "9" * 13, "9" * 16, "9" * 20, "9" * 400, "9" * 5000, "315360001", "1" + "0" * 309]
)
async def test_a_huge_number_is_refused(host: Host, text: str) -> None:
    await refused_everywhere(host, text)


@pytest.mark.parametrize("text", ["NaN", "nan", "-NaN", "Infinity", "-Infinity", "inf", "null", "undefined"])
async def test_what_is_no_number_is_refused(host: Host, text: str) -> None:
    await refused_everywhere(host, text)


@pytest.mark.parametrize("text", ["1e3", "1E3", "1e0", "0x10", "0b1", "1.0", "60.5", ".5", "1_000", "1,000"])
async def test_a_number_in_another_notation_is_refused(host: Host, text: str) -> None:
    await refused_everywhere(host, text)


@pytest.mark.parametrize(
    "text", [" 60", "60 ", "\t60", "60\n", "\r\n60", "6 0", "\u00a060", "\u200b60", "60\0", "+60"]
)
async def test_a_number_with_something_around_it_is_refused(host: Host, text: str) -> None:
    await refused_everywhere(host, text)


@pytest.mark.parametrize("text", ["-1", "-60", "-0", "0", "00", "--1", "-9999999999999999", "\u221260"])
async def test_a_negative_number_or_none_at_all_is_refused(host: Host, text: str) -> None:
    await refused_everywhere(host, text)


@pytest.mark.parametrize("text", ["٣", "６０", "Ⅷ", "²", "一"])
async def test_digits_of_other_scripts_are_refused(host: Host, text: str) -> None:
    await refused_everywhere(host, text)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        ("NaN", "NaN, which is not JSON"),
        ("Infinity", "Infinity, which is not JSON"),
        ("-Infinity", "-Infinity, which is not JSON"),
        ("1e400", "too large for a double"),
        ("-1e400", "too large for a double"),
        ("9" * 65, "number of 65 characters"),
        ("0." + "1" * 100_000, "number of 100002 characters"),
        ("01", "not JSON"),
        ("+1", "not JSON"),
        ("0x10", "not JSON"),
        ("1e3", "manifest.port must be a string"),
        ("8080", "manifest.port must be a string"),
        ("-1", "manifest.port must be a string"),
    ],
)
async def test_a_number_in_a_body_is_JSON_and_finite_and_no_port(host: Host, number: str, says: str) -> None:
    async with host.unchanged():
        for method in ("OPTIONS", "POST"):
            status, answer = await host.ask(method, "/pods", BODY.replace(b'"8080"', number.encode()))
            assert status == 400
            assert says in answer["message"]


# ---- JSON -----------------------------------------------------------------------------------------


def doubled(old: str, new: str) -> bytes:
    """A document with private variables, in which one piece of text is another."""
    text = json.dumps(broken("manifest.name", "ours"))
    assert text.count(old) == 1
    return text.replace(old, new).encode()


@pytest.mark.parametrize(
    "body",
    [
        BODY[:-1] + b', "manifest": {}}',
        doubled('"name": "ours"', '"name": "ours", "name": "theirs"'),
        doubled('"name": "ours"', '"name": "ours", "name": "ours"'),
        doubled('"name": "ours"', r'"name": "ours", "\u006eame": "theirs"'),
        doubled('"id": "app"', '"id": "app", "id": "web"'),
        doubled('"A": "1"', '"A": "1", "A": "2"'),
        doubled('"value": "x"', '"value": "x", "value": "y"'),
        doubled('"nonce": "1"', '"nonce": "1", "nonce": "1"'),
        doubled('"private": {', '"private": {"vars": {}, '),
    ],
)
async def test_a_key_given_twice_is_refused_because_two_readers_hash_two_things(
    host: Host, body: bytes
) -> None:
    async with host.unchanged():
        for method in ("OPTIONS", "POST"):
            status, answer = await host.ask(method, "/pods", body)
            assert status == 400
            assert "twice in one object" in answer["message"]


def nested(depth: int, opening: str, closing: str) -> bytes:
    """So many inside one another in the place of a name, three levels below the top."""
    inner = opening * depth + closing * depth
    return BODY.replace(b'"hello"', inner.encode())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[" * 500_000, "not JSON|nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'[{"a":' * 50_000 + b"1" + b"}]" * 50_000, "nested too deeply"),
        (nested(MAX_DEPTH - 1, "[", "]"), "nested too deeply"),
        (nested(MAX_DEPTH - 2, "[", "]"), "manifest.name must be a string"),
        (nested(5000, "[", "]"), "nested too deeply"),
    ],
)
async def test_what_is_nested_deeply_is_refused_without_being_followed_down(
    host: Host, body: bytes, says: str
) -> None:
    async with host.unchanged():
        for method in ("OPTIONS", "POST"):
            status, answer = await host.ask(method, "/pods", body)
            assert status == 400
            assert any(part in answer["message"] for part in says.split("|"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (BODY.replace(b"hello", rb"\ud83d"), "half of a surrogate pair"),
        (BODY.replace(b"hello", rb"\uDE00"), "half of a surrogate pair"),
        (BODY.replace(b"hello", rb"\ude00\ud83d"), "half of a surrogate pair"),
        (BODY.replace(b'"name"', rb'"na\ud83dme"'), "half of a surrogate pair"),
        (doubled('"A": "1"', r'"A": "\udfff"'), "half of a surrogate pair"),
        (doubled('"value": "2"', r'"value": "\ud800"'), "half of a surrogate pair"),
        (BODY.replace(b"hello", b"\xed\xa0\xbd"), "not UTF-8"),
        (BODY.replace(b"hello", b"\xed\xa0\xbd\xed\xb8\x80"), "not UTF-8"),
        (BODY.replace(b"hello", b"\xf4\x90\x80\x80"), "not UTF-8"),
    ],
)
async def test_half_a_surrogate_pair_is_no_character(host: Host, body: bytes, says: str) -> None:
    async with host.unchanged():
        for method in ("OPTIONS", "POST"):
            status, answer = await host.ask(method, "/pods", body)
            assert status == 400
            assert says in answer["message"]


@pytest.mark.parametrize("text", [b"\xf0\x9f\x98\x80", rb"\ud83d\ude00"])
async def test_a_whole_pair_is_the_same_character_however_it_is_written(host: Host, text: bytes) -> None:
    status, answer = await host.ask("OPTIONS", "/pods", BODY.replace(b"hello", text))
    plain = json.dumps(
        {"manifest": {**DOCUMENT["manifest"], "name": "\U0001f600"}}, ensure_ascii=False
    ).encode()
    assert (status, answer) == (200, (await host.ask("OPTIONS", "/pods", plain))[1])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xef\xbb\xbf" + BODY, "byte order mark"),
        (b"\xef\xbb\xbf", "byte order mark"),
        (b"\xef\xbb\xbf\xef\xbb\xbf" + BODY, "byte order mark"),
        (b" \xef\xbb\xbf" + BODY, "not JSON"),
        (BODY + b"\xef\xbb\xbf", "not JSON"),
        (BODY.decode().encode("utf-16"), "not UTF-8"),
        (BODY.decode().encode("utf-16-le"), "not JSON"),
        (BODY.decode().encode("utf-32"), "not UTF-8"),
    ],
)
async def test_a_byte_order_mark_and_other_encodings_are_refused(host: Host, body: bytes, says: str) -> None:
    async with host.unchanged():
        for method in ("OPTIONS", "POST"):
            status, answer = await host.ask(method, "/pods", body)
            assert status == 400
            assert says in answer["message"]


# ---- compressed bodies ----------------------------------------------------------------------------


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def compressed() -> Iterator[tuple[str, bytes, int, str]]:
    """Coding, body, status, and what is said of a refusal."""
    packed = gzip.compress(BODY)
    yield "gzip", packed, 200, ""
    yield "x-gzip", packed, 200, ""
    yield "GZip", packed, 200, ""
    yield "deflate", zlib.compress(BODY), 200, ""
    yield "gzip", BODY, 400, "cannot be decompressed"
    yield "gzip", packed[:-1], 400, "its end is missing"
    yield "gzip", packed[:12], 400, "its end is missing"
    yield "gzip", packed + packed, 400, "behind the end"
    yield "gzip", packed + b"\0", 400, "behind the end"
    yield "gzip", gzip.compress(packed), 400, "not UTF-8"
    yield "gzip", packed[:-8] + b"\0\0\0\0" + packed[-4:], 400, "cannot be decompressed"
    yield "deflate", raw_deflate(BODY), 400, "cannot be decompressed"
    yield "gzip", gzip.compress(b"\xef\xbb\xbf" + BODY), 400, "byte order mark"
    yield "gzip", gzip.compress(BODY[:-1] + b', "manifest": {}}'), 400, "twice in one object"
    yield "gzip", gzip.compress(BODY.ljust(MAX_UPLOAD_BODY)), 200, ""
    yield "gzip", gzip.compress(BODY.ljust(MAX_UPLOAD_BODY + 1)), 413, str(MAX_UPLOAD_BODY)
    yield "gzip", gzip.compress(b" " * 100_000_000), 413, str(MAX_UPLOAD_BODY)
    yield "gzip", gzip.compress(gzip.compress(b" " * 10_000_000)), 400, "not UTF-8"


@pytest.mark.parametrize(("coding", "body", "status", "says"), list(compressed()))
async def test_a_compressed_body_is_unpacked_once_whole_and_within_bounds(
    host: Host, coding: str, body: bytes, status: int, says: str
) -> None:
    for method in ("OPTIONS",) if status == 200 else ("OPTIONS", "POST"):
        async with host.unchanged():
            found, answer = await host.ask(method, "/pods", body, **{"Content-Encoding": coding})
        assert found == status
        assert says in answer.get("message", "")


async def test_what_would_unpack_to_more_than_a_body_may_have_is_not_unpacked(host: Host) -> None:
    bomb = gzip.compress(b" " * 100_000_000)
    tracemalloc.start()
    try:
        status, _ = await host.ask("POST", "/pods", bomb, **{"Content-Encoding": "gzip"})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert status == 413
    assert most < 10 * MAX_UPLOAD_BODY


# ---- the other body -------------------------------------------------------------------------------

PEER: Final = b'{"peers": ["https://%b.example"]}'


def suggestions() -> Iterator[tuple[bytes, str, dict[str, str]]]:
    """Bodies of `POST /peers/discover`, each naming a host; what is said of them, and further fields."""
    good = PEER % b"heard-of"
    packed = {"Content-Encoding": "gzip"}
    for body, says in (
        (good[:-1] + b', "peers": []}', "twice in one object"),
        (good.replace(b"]", b"," + b"[" * 100_000 + b"]" * 100_000 + b"]"), "nested too deeply"),
        (good.replace(b"heard-of", rb"heard-of\ud83d"), "half of a surrogate pair"),
        (b"\xef\xbb\xbf" + good, "byte order mark"),
        (good.replace(b"heard-of", b"heard-of\xff"), "not UTF-8"),
        (good.replace(b"]", b", NaN]"), "not JSON"),
        (good.replace(b"]", b", 1e400]"), "too large for a double"),
        (good.replace(b"]", b", %b]" % (b"9" * 65)), "number of 65 characters"),
        (good.replace(b"]", b", 1e3]"), "peers[1] must be"),
        (good.replace(b"peers", b"Peers"), "peers is missing"),
        (good.replace(b"}", b', "more": 1}'), "more is not a known field"),
    ):
        yield body, says, {}
        yield gzip.compress(body), says, packed
    yield gzip.compress(good)[:-1], "its end is missing", packed
    yield good, "cannot be decompressed", packed


@pytest.mark.parametrize(("body", "says", "fields"), list(suggestions()))
async def test_a_list_of_hosts_is_read_as_strictly(
    host: Host, body: bytes, says: str, fields: dict[str, str]
) -> None:
    host.peers.suggested.clear()
    async with host.unchanged():
        status, answer = await host.ask("POST", "/peers/discover", body, **fields)
    assert status == 400
    assert says in answer["message"]
    assert host.peers.suggested == []
    status, _ = await host.ask("POST", "/peers/discover", PEER % b"heard-of")
    assert (status, host.peers.suggested) == (200, ["https://heard-of.example"])
