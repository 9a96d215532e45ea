"""What the operator asks of the node on this machine, by its admin socket."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlencode

import aiohttp

from codius_node import jsontext
from codius_node.client import ANSWER_SECONDS, MAX_ANSWER, HostError, RefusedError, explain, read_body
from codius_node.model import Json, ManifestHash
from codius_node.policy import PolicyReport
from codius_node.replies import render_number
from codius_node.selftest import TEST_SECONDS, Report

ORIGIN: Final = "http://localhost"
"""A name the admin API answers to; the socket is what decides who is asked."""
TAKEDOWN_SECONDS: Final = 600.0
"""For a denial that takes a thousand pods down: four at a time, each for half a second or a few."""


@dataclass(frozen=True, slots=True)
class PodListing:
    """A pod in the operator's list: bytes `sent` and `received`, packets `refused`.

    `document` is its whole entry, for scripts.
    """

    hash: str
    name: str
    state: str
    seconds_left: int
    sent: int
    received: int
    refused: int
    address: str
    document: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Change:
    """What a change of the rules came to: the policy now in force, and how many flows were `cut`."""

    report: PolicyReport
    cut: int
    document: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """One probe from inside a pod: what the policy wants, and what was found."""

    name: str
    expected: str
    found: str
    detail: str
    ok: bool


async def list_pods(admin_socket: Path) -> list[PodListing]:
    """Every pod of the node."""
    answer = await _ask(admin_socket, "GET", "/pods")
    with _reading(admin_socket, "list of pods"):
        return [_read_listing(entry) for entry in cast("list[dict[str, Json]]", answer)]


async def stop_pod(admin_socket: Path, hash: ManifestHash, terms: Mapping[str, Json]) -> Mapping[str, Json]:
    """The node's document of what was stopped."""
    path = f"/pods/{hash}/stop"
    return await _ask_document(admin_socket, "POST", path, dict(terms), seconds=TAKEDOWN_SECONDS)


async def deny(admin_socket: Path, entry: Mapping[str, Json]) -> Mapping[str, Json]:
    """The entry as it is in force, and what was taken down for it."""
    return await _ask_document(admin_socket, "POST", "/denylist", dict(entry), seconds=TAKEDOWN_SECONDS)


async def admit(admin_socket: Path, kind: str, value: str) -> Mapping[str, Json]:
    """What is no longer denied."""
    query = urlencode({"kind": kind, "value": value})
    return await _ask_document(admin_socket, "DELETE", f"/denylist?{query}")


async def list_denials(admin_socket: Path) -> list[dict[str, Json]]:
    """The denylist."""
    document = await _ask_document(admin_socket, "GET", "/denylist")
    with _reading(admin_socket, "denylist"):
        return _entries(document, "denials")


async def get_price(admin_socket: Path) -> Mapping[str, Json]:
    """What is told and charged."""
    return await _ask_document(admin_socket, "GET", "/config")


async def set_price(admin_socket: Path, cost: Decimal) -> Mapping[str, Json]:
    """The price afterwards."""
    await _ask(admin_socket, "POST", "/config", {"hostCostPerMonth": render_number(cost)})
    return await get_price(admin_socket)


async def reset_price(admin_socket: Path) -> Mapping[str, Json]:
    """The price afterwards."""
    return await _ask_document(admin_socket, "DELETE", "/config")


async def list_usage(admin_socket: Path, limit: int, before: int | None) -> Mapping[str, Json]:
    """A page of manifests with what they had."""
    return await _ask_document(admin_socket, "GET", f"/usage?{_page(limit, before)}")


async def get_usage(
    admin_socket: Path, hash: ManifestHash, limit: int, before: int | None
) -> Mapping[str, Json]:
    """One manifest, with a page of its ledger."""
    return await _ask_document(admin_socket, "GET", f"/usage/{hash}?{_page(limit, before)}")


async def get_policy(admin_socket: Path) -> tuple[PolicyReport, Mapping[str, Json]]:
    """The policy in force, as a value and as the node's own document."""
    answer = await _ask(admin_socket, "GET", "/policy")
    with _reading(admin_socket, "policy"):
        document = cast("dict[str, Json]", answer)
        return PolicyReport.from_document(document), document


async def set_egress(admin_socket: Path, egress: Mapping[str, Json]) -> Change:
    """Rules at run time instead of those of the settings; RefusedError when they are none."""
    return _read_change(admin_socket, await _ask(admin_socket, "PUT", "/policy", dict(egress)))


async def reset_egress(admin_socket: Path) -> Change:
    """Back to the rules of the settings."""
    return _read_change(admin_socket, await _ask(admin_socket, "DELETE", "/policy"))


async def probe(admin_socket: Path, hash: ManifestHash) -> tuple[list[ProbeAnswer], Mapping[str, Json]]:
    """What the pod finds when it tries, and the node's own document."""
    answer = await _ask(admin_socket, "POST", f"/pods/{hash}/probe")
    with _reading(admin_socket, "list of probes"):
        document = cast("dict[str, Json]", answer)
        entries = cast("list[dict[str, Json]]", document["probes"])
        return [_read_probe(entry) for entry in entries], document


async def run_selftest(admin_socket: Path) -> tuple[Report, Mapping[str, Json]]:
    """A self-test, and the node's own document of it."""
    # The node's own limit is the one that ends it.
    answer = await _ask(admin_socket, "POST", "/selftest", seconds=TEST_SECONDS + ANSWER_SECONDS)
    with _reading(admin_socket, "report of a self-test"):
        document = cast("dict[str, Json]", answer)
        return Report.from_document(document), document


async def _ask_document(
    admin_socket: Path, method: str, path: str, body: Json = None, *, seconds: float = ANSWER_SECONDS
) -> Mapping[str, Json]:
    answer = await _ask(admin_socket, method, path, body, seconds=seconds)
    with _reading(admin_socket, "answer to this"):
        return dict(cast("dict[str, Json]", answer))


async def _ask(
    admin_socket: Path, method: str, path: str, body: Json = None, *, seconds: float = ANSWER_SECONDS
) -> Json:
    with _reaching(admin_socket):
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=str(admin_socket)),
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as session,
            session.request(
                method, ORIGIN + path, data=None if body is None else jsontext.render_json(body)
            ) as response,
        ):
            content = await read_body(response)
    if response.status == HTTPStatus.NO_CONTENT:
        return None
    if content is None:
        raise HostError(f"the answer at {admin_socket} is larger than {MAX_ANSWER} bytes")
    try:
        document: Json = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HostError(f"the answer at {admin_socket} is not JSON") from error
    if response.status != HTTPStatus.OK:
        told = document if isinstance(document, dict) else {}
        raise RefusedError(
            str(told.get("message", f"status {response.status}")),
            answer_status=response.status,
            hint=str(told["hint"]) if "hint" in told else None,
        )
    return document


@contextmanager
def _reaching(admin_socket: Path) -> Iterator[None]:
    """Turns what can go wrong on the way to the node into a HostError."""
    try:
        yield
    except (aiohttp.ClientConnectorError, OSError) as error:
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        if isinstance(cause, PermissionError):
            raise HostError(f"{admin_socket} is not open to you", hint="Run it as root (sudo).") from error
        if isinstance(cause, TimeoutError):
            raise HostError(f"{admin_socket} does not answer", hint="Look at the node's log.") from error
        raise HostError(
            f"no node is running on this machine: nobody answers at {admin_socket}",
            hint="Start one with `codiusd run`. About a pod, any host can be asked: `codiusd pods HASH`.",
        ) from error
    except aiohttp.ClientError as error:
        raise HostError(
            f"{admin_socket} does not answer: {explain(error)}", hint="Look at the node's log."
        ) from error


@contextmanager
def _reading(admin_socket: Path, what: str) -> Iterator[None]:
    """An answer of another shape, as a HostError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HostError(
            f"the answer at {admin_socket} is no {what}",
            hint="Is the node of another version? Restart it.",
        ) from error


def _entries(document: Mapping[str, Json], key: str) -> list[dict[str, Json]]:
    return [dict(cast("dict[str, Json]", entry)) for entry in cast("list[Json]", document[key])]


def _page(limit: int, before: int | None) -> str:
    return urlencode({"limit": limit} | ({} if before is None else {"before": before}))


def _read_listing(entry: dict[str, Json]) -> PodListing:
    traffic = cast("dict[str, dict[str, int]]", entry["traffic"])
    return PodListing(
        hash=str(entry["hash"]),
        name=str(entry["name"]),
        state=str(entry["state"]),
        seconds_left=int(str(entry["secondsLeft"])),
        sent=int(traffic["sent"]["bytes"]),
        received=int(traffic["received"]["bytes"]),
        refused=sum(traffic["refused"].values()),
        address=str(entry["address"]),
        document=entry,
    )


def _read_change(admin_socket: Path, answer: Json) -> Change:
    with _reading(admin_socket, "policy"):
        document = cast("dict[str, Json]", answer)
        return Change(PolicyReport.from_document(document), int(str(document["cut"])), document)


def _read_probe(entry: dict[str, Json]) -> ProbeAnswer:
    return ProbeAnswer(
        name=str(entry["name"]),
        expected=str(entry["expected"]),
        found=str(entry["found"]),
        detail=str(entry["detail"]),
        ok=entry["ok"] is True,
    )
