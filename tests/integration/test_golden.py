"""The recordings of the original, replayed: every answer agrees, or its difference is in the table below."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import yarl

from tests.integration.recorded_host import DEADLINE, RecordedHost, open_recorded_host

GOLDEN: Final = Path(__file__).parent.parent / "data" / "golden"
IMAGE: Final = "nginx@sha256:" + "0" * 63 + "1"
SLACK: Final = timedelta(seconds=10)
"""Between a request and the moment its pod starts, theirs and ours."""
CHANGING: Final = frozenset({"serverFreeMemory", "serverUptime", "serviceUptime", "avgLoad", "freeMem"})
"""Fields whose values are those of a machine and a moment: only their kind is compared."""


CLIENT: Final = "cli"
CLIENT_RECORDINGS: Final = ("upload-free", "extend-free", "tail-free", "extend-hash-plain")
"""Of the original's client (npm `codius` 3.1.0), in the order they were made."""
UPLOADED: Final = "a pod is there"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, recorded or ours. `status` None: the connection ended without one."""

    status: int | None
    content_type: str | None
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


Shape = Callable[[Answer, Answer], bool]


@dataclass(slots=True)
class Difference:
    """A step that we answer otherwise on purpose: which, with what status, and why."""

    step: str
    """Group and name of the recorded step."""
    status: int | None
    reason: str
    says: str = ""
    """What our error's message must contain."""
    shape: Shape | None = None
    """For answers that are no errors: whether ours (the second) is what it should be beside theirs."""
    seen: int = field(default=0, init=False)


def is_version(_: Answer, ours: Answer) -> bool:
    return set(ours.document) == {"name", "version"} and ours.document["name"] == "Codiusd (Python)"


def is_info(theirs: Answer, ours: Answer) -> bool:
    """All recorded fields and values agree, but for what nobody can know yet."""
    document = ours.document
    recorded = {**theirs.document, "selfTestSuccess": None}
    return document.pop("isolation") == "none" and compare_json(recorded, document) is None


def is_charged_nothing(_: Answer, ours: Answer) -> bool:
    return set(ours.document) in ({"manifestHash", "price"}, {"url", "manifestHash", "expiry"})


def is_log(_: Answer, ours: Answer) -> bool:
    lines = ours.body.decode().splitlines()
    return bool(lines) and all(re.fullmatch(r"(web|side) (stdout|stderr) [ -~]+", line) for line in lines)


def is_quote(_: Answer, ours: Answer) -> bool:
    return set(ours.document) == {"manifestHash", "price"}


def is_echo(theirs: Answer, ours: Answer) -> bool:
    """The pod got the same request, but for what a proxy has to add and what concerns one connection only."""
    got, recorded = ours.document, theirs.document
    expected = {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "via"}
    kept = [
        pair
        for pair in got["headers"]
        if pair[0] not in expected and pair[0] not in {"host", "connection", "content-length"}
    ]
    added = {name for name, _ in got["headers"]} & expected
    wanted = [
        pair
        for pair in recorded["headers"]
        if pair[0] not in {"host", "connection", "x-forwarded-for", "content-length"}
    ]
    same = all(got[name] == recorded[name] for name in ("pod", "method", "path", "body"))
    return (
        same
        and sorted(kept) == sorted(wanted)
        and added == expected
        and "9.9.9.9" not in json.dumps(got["headers"])
    )


DURATION: Final = (
    "a duration is a whole number of seconds from 1; the original charged, then answered 500 or worse"
)
ANCHORED: Final = "the schema says what a field may hold, whole and not in part"
UNCLEAR: Final = "JSON that two parsers read differently has no clear hash"
CRASHED: Final = "the original crashed on a quote with variables and no private values"
OTHER_NAME: Final = "another implementation gives its own name"
NO_PAGE: Final = "unknown paths are 404; the original answered every GET with its page"
OWN_NAMES: Final = "only names of this host are served; the original took any domain"
COMPLETE: Final = "refusals are complete answers, for WebSocket as well"
FORWARDED: Final = (
    "pods learn who asked by X-Forwarded-* and Forwarded, which visitors cannot invent; connections are kept"
    " alive, and Via says that we were there"
)
INFO_NOW: Final = (
    "the host also tells what keeps pods apart (`isolation`); selfTestSuccess is null until it was tested,"
    " where the original, in its development mode, said true"
)
FREE: Final = "the recorded host was paid over Interledger; this one is free, and looks at no token"
UNPAID_CHANGES: Final = [
    f"{method} {token}"
    for method in ("OPTIONS", "POST", "PUT")
    for token in (
        "no token",
        "token 16 bytes",
        "token std base64",
        "token 15 bytes",
        "token junk",
        "token empty",
        "token 32 bytes",
    )
]
PLAIN_LOGS: Final = "container names without prefix, whole frames, no ping lines, no side container"


def differ(
    status: int | None, reason: str, *steps: str, says: str = "", shape: Shape | None = None
) -> list[Difference]:
    return [Difference(step, status, reason, says, shape) for step in steps]


DIFFERENCES: Final = [
    *differ(
        200,
        OTHER_NAME,
        "basic: GET /version",
        "basic: GET /version?x=<script>",
        "basic: gzip of /version (under 1 KB)",
        "basic: accept codius v1",
        "basic: accept codius v99",
        "basic: If-None-Match",
        shape=is_version,
    ),
    *differ(
        200,
        INFO_NOW,
        "basic: GET /info",
        "basic: GET /info?requestPeers=true",
        "basic: GET /info?requestPeers=1",
        "basic: GET /info?x=1",
        "basic: GET /info with Origin",
        shape=is_info,
    ),
    *differ(
        404,
        NO_PAGE,
        "basic: GET /index.html",
        "basic: GET /no/such/path",
        "basic: GET /version/",
        "basic: GET /VERSION",
        "basic: GET /pods/abc",
        "basic: GET /pods/abc/logs/x",
        "basic: GET /..%2f",
        "basic: GET /peers/discover",
        says="there is no GET",
    ),
    *differ(
        501,
        "TRACE is no method of this host: it shows scripts what only a browser should know",
        "basic: TRACE /",
        says="TRACE is not served",
    ),
    *differ(
        204,
        "a browser's preflight is answered; the original took it for a quote without a body",
        "basic: OPTIONS /pods as CORS preflight",
        shape=lambda _, ours: ours.body == b"",
    ),
    *differ(421, OWN_NAMES, "basic: Host: unrelated", says="example.org is not served here"),
    *differ(
        400,
        "a request without a host name belongs to nobody (RFC 9112 3.2)",
        "basic: no Host header (HTTP/1.0)",
        "basic: empty Host header",
        says="Host field",
    ),
    *differ(
        400,
        DURATION,
        "quote: quote?duration=0",
        "quote: quote?duration=-5",
        "quote: quote?duration=abc",
        "quote: quote?duration=1e3",
        "quote: quote?duration=0.5",
        "quote: quote?duration=%2060",
        "quote: quote?duration=60&duration=70",
        "quote: quote?duration=99999999999",
        "quote: quote?duration=9999999999999999",
        "quote: quote?duration=1e30",
        "quote: quote?duration=Infinity",
        "quote: quote?duration=NaN",
        "quote: quote?duration=0x10",
        "quote: quote?duration=60s",
        "pods: upload ?duration=0",
        "pods: upload ?duration=-5",
        "pods: upload ?duration=abc",
        "pods: upload ?duration=1e3",
        "pods: upload ?duration=0.5",
        "pods: upload ?duration=%2060",
        "pods: upload ?duration=60&duration=70",
        "pods: upload ?duration=99999999999",
        "pods: upload ?duration=9999999999999999",
        "pods: upload ?duration=1e30",
        "pods: upload ?duration=Infinity",
        "pods: upload ?duration=NaN",
        "pods: upload ?duration=0x10",
        "pods: upload ?duration=60s",
        "pods: new pod duration 0",
        "pods: new pod duration -5",
        "pods: new pod duration abc",
        "pods: new pod duration 0.5",
        "pods: new pod duration 1e30",
        "pods: new pod duration twice",
        "pods: extend A &duration=0",
        "pods: extend A &duration=-20",
        "pods: extend A &duration=abc",
        "pods: extend A &duration=1e30",
        "pods: extend A &duration=0.5",
        says="duration must be",
    ),
    *differ(400, UNCLEAR, "quote: OPTIONS body: bad utf-8", says="UTF-8"),
    *differ(400, UNCLEAR, "quote: quote: duplicate key", says='"name" twice'),
    *differ(
        400,
        "a known type for every answer; the recorded one was no HTTP answer of the original's own",
        "quote: OPTIONS body: short content-length",
        says="JSON",
    ),
    *differ(
        400,
        ANCHORED,
        "quote: quote: container id empty",
        "quote: quote: container id with slash and space",
        says="manifest.containers[0].id",
    ),
    *differ(
        400,
        ANCHORED,
        "quote: quote: port -1",
        "quote: quote: port 99999",
        "quote: quote: port x8080y (pattern is not anchored)",
        "quote: quote: port '80 81'",
        "quote: quote: port empty",
        "quote: quote: port 1e4",
        says="manifest.port",
    ),
    *differ(400, ANCHORED, "quote: quote: image junk", says="manifest.containers[0].image"),
    *differ(400, ANCHORED, "quote: quote: __proto__ field", says="__proto__"),
    *differ(
        400,
        "names are for people to read and have a bound; the whole manifest goes into every environment",
        "quote: quote: name is 200 KB",
        says="manifest.name",
    ),
    *differ(
        400,
        'the original turned "true" into true before hashing, so that client and host could disagree',
        "quote: quote: debug 'true' string",
        says="manifest.debug",
    ),
    *differ(
        422,
        "two containers of one name cannot be told apart in logs",
        "quote: quote: duplicate container ids",
        says="manifest.containers[1].id",
    ),
    *differ(
        422,
        "the hash must name what runs; CODIUS_ALLOW_TAGS lets tags in",
        "quote: quote: image without digest",
        "quote: quote: image with tag",
        says="manifest.containers[0].image",
    ),
    *differ(
        422,
        CRASHED,
        "quote: quote: env $A undefined, no vars",
        "quote: quote: env $A undefined, vars without it",
        "quote: quote: env lone $",
        "quote: quote: env $toString",
        says="manifest.containers[0].environment.A",
    ),
    *differ(
        200,
        CRASHED,
        "quote: quote: env $$A",
        "quote: quote: env $A public",
        "quote: quote: private var, no private",
        shape=is_quote,
    ),
    *differ(
        200,
        PLAIN_LOGS,
        "pods: logs A",
        "pods: logs A follow",
        "pods: logs A follow=1",
        "pods: logs A gzip asked",
        "cli: tail-free, GET",
        shape=is_log,
    ),
    *differ(
        200,
        FORWARDED,
        "pods: proxy GET",
        "pods: proxy POST",
        "pods: proxy PUT",
        "pods: proxy DELETE",
        "pods: proxy with X-Forwarded-For",
        "pods: proxy large body",
        shape=is_echo,
    ),
    *differ(418, FORWARDED, "pods: proxy 418", shape=is_echo),
    *differ(
        200,
        "names have no case (RFC 4343)",
        "pods: proxy upper case label",
        shape=lambda _, ours: ours.document["path"] == "/",
    ),
    *differ(
        421,
        OWN_NAMES,
        "pods: proxy host with port and more labels",
        "pods: proxy bare label",
        "pods: proxy 51 chars",
        "pods: proxy label with 1 and 8",
        says="is not served here",
    ),
    *differ(404, COMPLETE, "pods: ws to unknown pod"),
    *differ(
        404,
        "the host's own name has no WebSocket, and says so",
        "pods: ws to the host name",
        says="there is no GET /ws",
    ),
    *differ(503, COMPLETE, "pods: ws to crashed pod", says="nothing in it takes connections"),
    *differ(
        200,
        FREE,
        *(f"unpaid: {step}" for step in UNPAID_CHANGES if not step.startswith("PUT")),
        "unpaid: same token again",
        shape=is_charged_nothing,
    ),
    *differ(
        404,
        "a pod that is not there is told before anybody is asked to pay",
        *(f"unpaid: {step}" for step in UNPAID_CHANGES if step.startswith("PUT")),
        says="no pod found",
    ),
    *differ(
        422,
        "a manifest is checked before anybody is asked to pay",
        "unpaid: quote: undefined var with token",
        says="manifest.containers[0].environment",
    ),
]


# ---- the replay -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Replay:
    """One group's steps in order against one host; it remembers expiries, since they build on each other."""

    host: RecordedHost
    client: aiohttp.ClientSession
    group: str
    hashes: dict[str, str]
    theirs: dict[str, datetime] = field(default_factory=dict)
    ours: dict[str, datetime] = field(default_factory=dict)

    async def run(self, steps: list[dict[str, Any]]) -> list[str]:
        """What does not agree, a line each."""
        found = []
        for step in steps:
            if step.get("mark") == "pod C's server stops listening":
                await self.host.doomed.cleanup()
            if step.get("mark") == UPLOADED:
                await self._upload(recorded_answer(step))
            if "mark" not in step and (complaint := await self._step(step)):
                found.append(f"{step['name']}: {complaint}")
        return found

    async def _upload(self, theirs: Answer) -> None:
        """A pod that was there when the recording began; from now on its expiry moves as the recorded one."""
        url = f"http://{self.host.address}:{self.host.port}/pods"
        document = {"manifest": theirs.document["manifest"]}
        async with self.client.post(url, json=document, headers={"Host": self.host.authority}) as response:
            ours = Answer(response.status, response.headers["Content-Type"], await response.read())
        for answer, expiries in ((theirs, self.theirs), (ours, self.ours)):
            found = expiry_of(answer)
            assert found
            expiries[found[0]] = found[1]

    async def _step(self, step: dict[str, Any]) -> str | None:
        theirs = recorded_answer(step)
        began = datetime.now(UTC)
        ours = await self._ask(step)
        complaint = self._compare(step, theirs, ours, began)
        name = f"{self.group}: {step['name']}"
        known = next((difference for difference in DIFFERENCES if difference.step == name), None)
        if known is None:
            return complaint
        known.seen += 1
        if complaint is None:
            return "it agrees, and the table says it differs"
        return check_difference(known, theirs, ours)

    async def _ask(self, step: dict[str, Any]) -> Answer:
        if "raw_request" in step:
            return await self._ask_raw(step["raw_request"].encode("latin-1"), upgrade="ws " in step["name"])
        request = step["request"]
        path = request.get("path_sent", request["path"])
        for label, hash in self.hashes.items():
            path = path.replace(f"{{{{hash:{label}}}}}", hash)
            path = path.replace(f"{{{{hash:{label}:upper}}}}", hash.upper())
        headers = {"Host": self.host.authority, **request["headers"]}
        body = rebuild_body(step["name"], request.get("body"))
        if "Content-Length" in headers:
            lines = [f"{request['method']} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
            return await self._ask_raw("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        async with self.client.request(
            request["method"],
            yarl.URL(f"http://{self.host.address}:{self.host.port}{path}", encoded=True),
            headers=headers,
            data=None if body is None else io.BytesIO(body),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            allow_redirects=False,
        ) as response:
            return Answer(response.status, response.headers.get("Content-Type"), await response.read())

    async def _ask_raw(self, request: bytes, *, upgrade: bool = False) -> Answer:
        reader, writer = await asyncio.open_connection(self.host.address, self.host.port)
        writer.write(request)
        async with asyncio.timeout(DEADLINE):
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ")[1])
            fields = dict(
                line.decode("latin-1").lower().split(": ", 1) for line in head.split(b"\r\n")[1:] if line
            )
            if status == 101:
                body = await reader.readexactly(27)
            elif "content-length" in fields:
                body = await reader.readexactly(int(fields["content-length"]))
            else:
                body = await reader.read()
        writer.close()
        await writer.wait_closed()
        return Answer(status, fields.get("content-type"), body)

    def _compare(self, step: dict[str, Any], theirs: Answer, ours: Answer, began: datetime) -> str | None:
        """Why ours is not theirs; None when it agrees."""
        problem = None
        if ours.status != theirs.status:
            problem = f"{ours.status} where {theirs.status} was recorded: {ours.body[:200]!r}"
        elif ours.content_type != theirs.content_type:
            problem = f"{ours.content_type} where {theirs.content_type} was recorded"
        elif step.get("request", {}).get("method") == "HEAD":
            problem = "a body" if ours.body else None
        elif theirs.content_type and theirs.content_type.startswith("application/json"):
            problem = compare_json(theirs.document, ours.document)
        elif not (theirs.content_type or "").startswith("text/html"):
            problem = None if ours.body == theirs.body else f"{ours.body[:200]!r}"
        timing = self._compare_expiry(step, theirs, ours, began)
        return problem or timing

    def _compare_expiry(
        self, step: dict[str, Any], theirs: Answer, ours: Answer, began: datetime
    ) -> str | None:
        """Both sides' expiries move by the same time, or start from their own now by the same time."""
        recorded, given = expiry_of(theirs), expiry_of(ours)
        problem = None
        if recorded and given and recorded[0] == given[0]:
            hash = given[0]
            if hash in self.theirs and hash in self.ours:
                moved, wanted = given[1] - self.ours[hash], recorded[1] - self.theirs[hash]
                if moved != wanted:
                    problem = f"the expiry moved by {moved} where {wanted} was recorded"
            else:
                query = parse_qs(urlsplit(step["request"]["path"]).query)
                duration = timedelta(seconds=int(query.get("duration", ["3600"])[0]))
                if not timedelta(0) <= given[1] - began - duration <= SLACK:
                    problem = f"the expiry is {given[1] - began} away and {duration} was paid"
        if recorded:
            self.theirs[recorded[0]] = recorded[1]
        if given:
            self.ours[given[0]] = given[1]
        return problem


def load_recording(group: str) -> dict[str, Any]:
    """A group's steps; the client's recordings are one story, told in several files."""
    if group != CLIENT:
        recording: dict[str, Any] = json.loads((GOLDEN / f"{group}.json").read_text())
        return recording
    steps: list[dict[str, Any]] = []
    for name in CLIENT_RECORDINGS:
        told = json.loads((GOLDEN / CLIENT / f"{name}.json").read_text())
        own = [read_exchange(name, each["request"], each["response"]) for each in told]
        if own[0]["request"]["path"].startswith("/pods?manifestHash="):
            steps.append({"mark": UPLOADED, "response": own[0]["response"]})
        steps += own
    return {"hashes": {}, "steps": steps}


def read_exchange(name: str, request: str, response: str) -> dict[str, Any]:
    """A step in the form of the other recordings. The client's host and connection were its own."""
    head, _, body = request.partition("\r\n\r\n")
    line, *fields = head.split("\r\n")
    method, path, _ = line.split(" ")
    own = {"host", "connection", "content-length"}
    headers = dict(field.split(": ", 1) for field in fields if field.split(":")[0].lower() not in own)
    head, _, answer = response.partition("\r\n\r\n")
    line, *fields = head.split("\r\n")
    if "Transfer-Encoding: chunked" in fields:
        answer = "".join(answer.split("\r\n")[1::2])
    return {
        "name": f"{name}, {method}",
        "request": {"method": method, "path": path, "headers": headers, "body": body or None},
        "response": {
            "status": int(line.split(" ")[1]),
            "headers": [field.split(": ", 1) for field in fields],
            "body": answer,
        },
    }


def recorded_answer(step: dict[str, Any]) -> Answer:
    if "raw_response" in step:
        head, _, body = step["raw_response"].encode("latin-1").partition(b"\r\n\r\n")
        if not head:
            return Answer(None, None, b"")
        kinds = re.findall(rb"(?i)\r\ncontent-type: ([^\r]*)", head)
        return Answer(int(head.split(b" ")[1]), kinds[0].decode() if kinds else None, body)
    response = step["response"]
    kinds = [value for name, value in response["headers"] if name.lower() == "content-type"]
    body = (response.get("body") or "").encode()
    if "body_sha256" in response:  # the recording holds only its beginning; the rest is more of the same
        body = body.rstrip(b"z").ljust(response["body_len"] - 2, b"z") + b'"}'
        assert hashlib.sha256(body).hexdigest() == response["body_sha256"]
    return Answer(response["status"], kinds[0] if kinds else None, body)


def rebuild_body(name: str, recorded: str | None) -> bytes | None:
    """The body as it was sent; the recording holds large ones by their size and binary ones as text."""
    document = {
        "manifest": {
            "name": "ct",
            "version": "1.0.0",
            "machine": "small",
            "port": "8080",
            "containers": [{"id": "app", "image": IMAGE}],
        }
    }
    plain = json.dumps(document, separators=(",", ":")).encode()
    if recorded is None:
        return None
    if name == "OPTIONS body: gzip":
        return gzip.compress(plain)
    if name == "OPTIONS body: bad utf-8":
        return recorded.encode().replace("\ufffd".encode(), b"\xff")
    if size := re.fullmatch(r"<(\d+) bytes>", recorded):
        wanted = int(size[1])
        if name == "quote: name is 200 KB":
            document["manifest"]["name"] = "n" * (wanted - len(plain) + len("ct"))
            return json.dumps(document, separators=(",", ":")).encode()
        return b"z" * wanted if name == "proxy large body" else plain.center(wanted)
    return recorded.encode()


def compare_json(theirs: Any, ours: Any) -> str | None:
    """Errors agree by status and name, and ours says more; everything else by field and value."""
    if isinstance(theirs, dict) and "statusCode" in theirs:
        same = isinstance(ours, dict) and all(ours.get(key) == theirs[key] for key in ("statusCode", "error"))
        complete = (
            same and ours["message"] and set(ours) <= {"statusCode", "error", "message", "hint", "requestId"}
        )
        return None if complete else f"{ours}"
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return None if ours == theirs else f"{ours}"
    if set(ours) != set(theirs):
        return f"fields {sorted(set(ours) ^ set(theirs))}"
    for key, value in theirs.items():
        if key in CHANGING:
            if not isinstance(ours[key], int | float) or ours[key] < 0:
                return f"{key} is {ours[key]!r}"
        elif key != "expiry" and ours[key] != value:
            return f"{key} is {ours[key]!r} where {value!r} was recorded"
    return None


def expiry_of(answer: Answer) -> tuple[str, datetime] | None:
    if not answer.content_type or not answer.content_type.startswith("application/json") or not answer.body:
        return None
    document = answer.document
    if not isinstance(document, dict) or "expiry" not in document:
        return None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document["expiry"])
    return document["manifestHash"], datetime.fromisoformat(document["expiry"])


def check_difference(difference: Difference, theirs: Answer, ours: Answer) -> str | None:
    """Whether ours is the difference that the table describes."""
    if ours.status != difference.status:
        return f"{ours.status} where the table says {difference.status}: {ours.body[:300]!r}"
    if difference.shape is not None:
        return None if difference.shape(theirs, ours) else f"not as the table says: {ours.body[:300]!r}"
    if ours.status is not None and ours.status >= 400 and ours.body:
        document = ours.document
        if document["statusCode"] != ours.status or difference.says not in document["message"]:
            return f"not as the table says: {document}"
    return None


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[RecordedHost]:
    async with open_recorded_host(tmp_path) as host:
        yield host


GROUPS: Final = (
    "basic",
    "quote",
    "pods",
    "unpaid",
    "cli",
)
PAID: Final = {"paid/btp-receiver", "paid/cog-simple.trace", "paid/host-upload.trace"}
"""Packets of a payment, no requests of this API."""


@pytest.mark.parametrize("group", GROUPS)
async def test_every_recorded_answer_agrees_or_differs_on_purpose(host: RecordedHost, group: str) -> None:
    recording = load_recording(group)
    own = [difference for difference in DIFFERENCES if difference.step.startswith(f"{group}:")]
    for difference in own:
        difference.seen = 0
    async with aiohttp.ClientSession(auto_decompress=True) as client:
        replay = Replay(host, client, group, recording["hashes"])
        found = await replay.run(recording["steps"])
    assert not found, "\n" + "\n".join(found)
    assert [difference.step for difference in own if not difference.seen] == []


def test_every_difference_is_listed_once_under_a_group() -> None:
    steps = [difference.step for difference in DIFFERENCES]
    assert len(set(steps)) == len(steps)
    assert {step.split(":")[0] for step in steps} <= set(GROUPS)


def test_every_recording_is_replayed() -> None:
    recordings = {str(path.relative_to(GOLDEN).with_suffix("")) for path in GOLDEN.rglob("*.json")}
    assert recordings == {*GROUPS, *(f"{CLIENT}/{name}" for name in CLIENT_RECORDINGS), *PAID} - {CLIENT}
