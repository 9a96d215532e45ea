"""The engine and the network of CODIUS_HYPER_NOOP: they remember what they were told and do nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from ipaddress import IPv4Address

from codius_netpolicy.policy import Egress, Policy
from codius_netpolicy.probes import Result
from codius_netpolicy.traffic import Reason, Traffic
from codius_node.model import (
    Consumption,
    FoundPod,
    FoundState,
    Isolation,
    LogLine,
    ManifestHash,
    PodSpec,
    PullProgress,
)


class NoopEngine:
    """Stands where podman would; a pod is a name in a set."""

    def __init__(self) -> None:
        self._pods: dict[ManifestHash, FoundState] = {}

    async def pull(self, image: str) -> AsyncGenerator[PullProgress, None]:
        """Says so, and pulls nothing."""
        yield PullProgress(image, "not pulled: this host starts no containers (CODIUS_HYPER_NOOP)")

    async def import_image(self, name: str, archive: bytes) -> str:
        """No image is kept; one named by its content all the same."""
        return f"{name.rpartition(':')[0]}@sha256:{hashlib.sha256(archive).hexdigest()}"

    async def create(self, spec: PodSpec) -> None:
        """Remember the name."""
        self._pods[spec.hash] = FoundState.STOPPED

    async def start_infra(self, hash: ManifestHash) -> None:
        """Nothing to start."""

    async def open_netns(self, hash: ManifestHash) -> int:
        """A file descriptor the caller may close, of no namespace."""
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    async def prepare_members(self, hash: ManifestHash) -> None:
        """Nothing to prepare."""

    async def start_members(self, hash: ManifestHash) -> None:
        """It runs because we say so."""
        self._pods[hash] = FoundState.RUNNING

    async def check_members(self, hash: ManifestHash) -> None:
        """Nothing can have exited."""

    async def remove(self, hash: ManifestHash) -> None:
        """Forget the name."""
        self._pods.pop(hash, None)

    async def find_pods(self) -> list[FoundPod]:
        """What this process was told; nothing outlives it."""
        return [FoundPod(hash, state) for hash, state in self._pods.items()]

    async def isolation(self) -> Isolation:
        """There is nothing to keep apart."""
        return Isolation.NONE

    async def consumption(self, hash: ManifestHash) -> Consumption | None:
        """Nothing runs, so nothing is counted."""
        return None

    async def logs(self, hash: ManifestHash, *, follow: bool) -> AsyncIterator[LogLine]:
        """Containers that do not run write nothing, and who follows them waits."""
        nothing: tuple[LogLine, ...] = ()
        for line in nothing:
            yield line
        if follow:
            await asyncio.Event().wait()

    async def aclose(self) -> None:
        """Nothing is open."""


class NoopNetwork:
    """Stands where the kernel would; a link is an address with the traffic it was given."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._links: dict[IPv4Address, Traffic] = {}

    async def start(self, pods: Mapping[IPv4Address, Traffic]) -> frozenset[IPv4Address]:
        """No link outlives the process."""
        return frozenset()

    async def attach(self, address: IPv4Address, netns_fd: int, traffic: Traffic) -> None:
        """Remember the address."""
        self._links[address] = traffic

    async def detach(self, address: IPv4Address) -> Traffic | None:
        """Forget the address."""
        return self._links.pop(address, None)

    async def links(self) -> frozenset[IPv4Address]:
        """What this process was told."""
        return frozenset(self._links)

    async def traffic(self) -> Mapping[IPv4Address, Traffic]:
        """What this process was told; nobody adds to it."""
        return dict(self._links)

    async def counters(self) -> Mapping[Reason, int]:
        """Nothing is refused where nothing is sent."""
        return {}

    async def change(self, egress: Egress) -> int:
        """The rules are checked and remembered; there is no flow to cut."""
        self.policy = self.policy.with_egress(egress)
        return 0

    async def check(self) -> tuple[str, ...]:
        """Nothing can be missing."""
        return ()

    async def repair(self) -> None:
        """Nothing can be broken."""

    async def probe(self, netns_fd: int, others: Sequence[IPv4Address]) -> tuple[Result, ...]:
        """There is nothing to try."""
        return ()

    async def aclose(self) -> None:
        """Nothing is open."""
