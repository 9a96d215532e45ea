"""The values that cross borders inside the node: manifests, pods as wanted, pods as found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Final, NewType

ManifestHash = NewType("ManifestHash", str)
"""52 characters of `a-z2-7`: the name of a manifest, and the first label of its pod's hostname."""

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

MEMORY_SMALL: Final = 512 * 1024 * 1024
"""Bytes for the whole pod of a `machine: small` manifest."""
VCPUS_SMALL: Final = 1.0
PIDS_SMALL: Final = 512
"""Processes and threads in the whole pod: a fork bomb's ceiling, far above what a small pod needs."""


class Machine(StrEnum):
    """The sizes a manifest can ask for."""

    SMALL = "small"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a whole pod may use. `memory` in bytes, `vcpus` in CPUs, `pids` in tasks."""

    memory: int = MEMORY_SMALL
    vcpus: float = VCPUS_SMALL
    pids: int = PIDS_SMALL


@dataclass(frozen=True, slots=True)
class Container:
    """A container as its manifest describes it; environment values are not yet interpolated."""

    id: str
    image: str
    command: tuple[str, ...] | None = None
    workdir: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Variable:
    """A public variable: its value, or with `encoding` the hash of the private one."""

    value: str
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class PrivateVariable:
    """A private value with its nonce. Never printed: repr shows no content."""

    nonce: str = field(repr=False)
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A valid public manifest. `document` is the JSON exactly as parsed: it is what the hash names."""

    hash: ManifestHash
    name: str
    version: str
    machine: Machine
    port: int | None
    containers: tuple[Container, ...]
    variables: Mapping[str, Variable]
    debug: bool
    document: Mapping[str, Json] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Upload:
    """What a client sends: the public manifest and the values of its private variables."""

    manifest: Manifest
    private: Mapping[str, PrivateVariable] = field(default_factory=dict, repr=False)


class PodState(StrEnum):
    """The life of a pod as the store records it; the transitions are in `lifecycle`."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as wanted: one row of the store. Times are aware UTC datetimes."""

    manifest: Manifest
    state: PodState
    created_at: datetime
    expires_at: datetime
    address: IPv4Address

    @property
    def hash(self) -> ManifestHash:
        """The pod's name is its manifest's hash."""
        return self.manifest.hash


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container, ready for the engine: names final, environment complete and in order."""

    name: str
    image: str
    command: tuple[str, ...] | None
    workdir: str | None
    environment: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PodSpec:
    """A pod, ready for the engine. `address` is the pod's own address, for its /etc/hosts."""

    hash: ManifestHash
    containers: tuple[ContainerSpec, ...]
    limits: Limits
    address: IPv4Address


class FoundState(StrEnum):
    """What the engine sees of a pod: all of it runs, some of it does not, or it never started."""

    RUNNING = "running"
    DEGRADED = "degraded"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class FoundPod:
    """A pod as found in the engine: running, partly running or stopped."""

    hash: ManifestHash
    state: FoundState


@dataclass(frozen=True, slots=True)
class Consumption:
    """What a running pod takes of the machine: bytes of memory now, nanoseconds of CPU since it started."""

    memory: int
    cpu: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line a container wrote; `text` without its newline."""

    container: str
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class PullProgress:
    """A sentence about a pull that is under way."""

    image: str
    message: str


@dataclass(frozen=True, slots=True)
class Quote:
    """A price for a duration: `price` in the asset's base units (10^-scale), `duration` in seconds."""

    hash: ManifestHash
    duration: int
    price: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where visitors of a pod are sent."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Notice:
    """What visitors of a pod that was taken down are told; `reason` is empty where it is kept private."""

    legal: bool
    reason: str


class Isolation(StrEnum):
    """What stands between a pod and the host: the class of the OCI runtime that runs it."""

    NONE = "none"
    """Nothing is run at all (CODIUS_HYPER_NOOP)."""
    CONTAINER = "container"
    """Namespaces, control groups and seccomp of the host's own kernel."""
    GVISOR = "gvisor"
    """A kernel in user space between the pod and the host's."""
    VM = "vm"
    """A virtual machine with a kernel of its own."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The host's room: `free_memory` in bytes; `full` when the next upload would be refused."""

    full: bool
    free_memory: int
    running: int


@dataclass(frozen=True, slots=True)
class Currency:
    """What prices are counted in: base units of 10^-scale of `code`."""

    code: str
    scale: int

    def units(self, amount: int) -> Decimal:
        """Base units as units of the asset, exactly."""
        return Decimal(f"{amount}E-{self.scale}")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was paid, by which rail; `token` is the claim that can never be used again."""

    rail: str
    price: int
    currency: Currency
    token: str | None
