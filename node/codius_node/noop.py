"""The engine and the network of CODIUS_HYPER_NOOP: they remember what they were told and do nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from ipaddress import IPv4Address

from codius_node.model import FoundPod, FoundState, LogLine, ManifestHash, PodSpec, PullProgress


class NoopEngine:
    """Stands where podman would; a pod is a name in a set."""

    def __init__(self) -> None:
        self._pods: dict[ManifestHash, FoundState] = {}

    async def pull(self, image: str) -> AsyncGenerator[PullProgress, None]:
        """Says so, and pulls nothing."""
        yield PullProgress(image, "not pulled: this host starts no containers (CODIUS_HYPER_NOOP)")

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

    async def logs(self, hash: ManifestHash, *, follow: bool) -> AsyncIterator[LogLine]:
        """Containers that do not run write nothing."""
        nothing: tuple[LogLine, ...] = ()
        for line in nothing:
            yield line

    async def aclose(self) -> None:
        """Nothing is open."""


class NoopNetwork:
    """Stands where the kernel would; a link is an address in a set."""

    def __init__(self) -> None:
        self._links: set[IPv4Address] = set()

    async def start(self, addresses: Collection[IPv4Address]) -> frozenset[IPv4Address]:
        """No link outlives the process."""
        return frozenset()

    async def attach(self, address: IPv4Address, netns_fd: int) -> None:
        """Remember the address."""
        self._links.add(address)

    async def detach(self, address: IPv4Address) -> None:
        """Forget the address."""
        self._links.discard(address)

    async def links(self) -> frozenset[IPv4Address]:
        """What this process was told."""
        return frozenset(self._links)

    async def aclose(self) -> None:
        """Nothing is open."""
