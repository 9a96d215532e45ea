"""What the public API answers: a value for each kind of document, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, cast

from codius_node.jsontext import wire_name
from codius_node.model import Isolation, Json, ManifestHash
from codius_node.schema import MANIFEST


@dataclass(frozen=True, slots=True)
class Version:
    """The software that answers."""

    name: Annotated[str, "The implementation."]
    version: Annotated[str, "Its version."]


@dataclass(frozen=True, slots=True)
class Info:
    """The host, for programs that choose one. What its operator keeps private is left out."""

    full_mem: Annotated[bool, "Whether the next upload would be refused for want of room."]
    accepting_uploads: Annotated[bool, "Whether an upload would be taken now."]
    num_peers: Annotated[int, "Other hosts known here."]
    currency: Annotated[str, "What prices are counted in."]
    cost_per_month: Annotated[Decimal, "The price of a pod for a month of 2628000 s, in units of `currency`."]
    uri: Annotated[str, "The host's public address."]
    self_test_success: Annotated[
        bool | None, "What came of the host's last test of itself; null when there was none that could tell."
    ]
    isolation: Annotated[Isolation | None, "What keeps pods apart from the host; absent while unknown."] = (
        None
    )
    server_free_memory: Annotated[int | None, "Bytes of memory new work can have."] = None
    server_uptime: Annotated[int | None, "Seconds since the machine started."] = None
    service_uptime: Annotated[float | None, "Seconds since the host's software started."] = None
    avg_load: Annotated[float | None, "Processes ready to run, averaged over a minute."] = None
    running_contracts: Annotated[int | None, "Pods that run now."] = None
    peers: Annotated[tuple[str, ...] | None, "Other hosts, when asked for."] = None


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """The machine's memory."""

    free_mem: Annotated[int, "Bytes new work can have."]


@dataclass(frozen=True, slots=True)
class PeerList:
    """Other hosts, a fresh random choice each time."""

    peers: Annotated[tuple[str, ...], "Their public addresses."]


@dataclass(frozen=True, slots=True)
class Discovery:
    """What one host tells another: its software, and whom it knows."""

    name: Annotated[str, "The implementation."]
    version: Annotated[str, "Its version."]
    peers: Annotated[tuple[str, ...], "Hosts known here, their public addresses."]


@dataclass(frozen=True, slots=True)
class Price:
    """What an upload would cost."""

    manifest_hash: Annotated[ManifestHash, "The manifest's name."]
    price: Annotated[str, "Base units of the host's currency, in digits."]


@dataclass(frozen=True, slots=True)
class RunningPod:
    """A pod that runs, and until when."""

    url: Annotated[str, "Where visitors find it."]
    manifest_hash: Annotated[ManifestHash, "Its manifest's name."]
    expiry: Annotated[datetime, "The end of the time that is paid for."]
    manifest: Annotated[
        Mapping[str, Json] | None, "Its public manifest, when the pod is looked up.", MANIFEST
    ] = None


@dataclass(frozen=True, slots=True)
class Error:
    """Why something was not done, and what to do next."""

    status_code: Annotated[int, "The HTTP status."]
    error: Annotated[str, "Its name."]
    message: Annotated[str, "What is wrong, and what would be right."]
    hint: Annotated[str | None, "What to do next."] = None


@dataclass(frozen=True, slots=True)
class Step:
    """One line of an upload's progress: exactly one of its fields, the last line `result` or `error`."""

    progress: Annotated[str | None, "What is being done."] = None
    result: Annotated[RunningPod | None, "The pod: it runs."] = None
    error: Annotated[Error | None, "Why it does not; everything was undone."] = None


Reply = Version | Info | FreeMemory | PeerList | Discovery | Price | RunningPod | Error | Step


def render(reply: Reply) -> dict[str, Json]:
    """The document a client gets: names in camelCase; what may be left out is, where it is None."""
    return {
        wire_name(field.name): _render_value(value)
        for field in fields(reply)
        if (value := getattr(reply, field.name)) is not None or field.default is MISSING
    }


def render_time(moment: datetime) -> str:
    """As JavaScript's `toISOString`: UTC, milliseconds, Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def render_number(value: Decimal) -> int | float:
    """As JSON has numbers: whole ones without a point."""
    return int(value) if value == value.to_integral_value() else float(value)


def _render_value(value: object) -> Json:
    match value:
        case datetime():
            return render_time(value)
        case Decimal():
            return render_number(value)
        case tuple():
            return list(value)
        case Mapping():
            return dict(value)
        case RunningPod() | Error():
            return render(value)
        case _:
            return cast("Json", value)
