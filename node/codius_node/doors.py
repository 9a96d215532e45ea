"""What the node needs from outside, as Protocols: containers, the network, payments, routes, the machine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Protocol

from codius_netpolicy.policy import Egress, Policy
from codius_netpolicy.probes import Result
from codius_netpolicy.traffic import Reason, Traffic
from codius_node.model import (
    Consumption,
    Currency,
    FoundPod,
    Isolation,
    LogLine,
    ManifestHash,
    Notice,
    PodSpec,
    PullProgress,
    Quote,
    Receipt,
    Target,
)


class ContainerEngine(Protocol):
    """What the node needs from whatever runs containers."""

    def pull(self, image: str) -> AsyncGenerator[PullProgress, None]:
        """Make the image present; ImageError when it cannot be had."""
        ...

    async def import_image(self, name: str, archive: bytes) -> str:
        """Make an image of one layer, a tar archive, unless it is here; its reference by digest."""
        ...

    async def create(self, spec: PodSpec) -> None: ...
    async def start_infra(self, hash: ManifestHash) -> None: ...
    async def open_netns(self, hash: ManifestHash) -> int: ...
    async def prepare_members(self, hash: ManifestHash) -> None:
        """What can be done of a start before any program runs; safe while the network is being wired."""
        ...

    async def start_members(self, hash: ManifestHash) -> None: ...
    async def check_members(self, hash: ManifestHash) -> None:
        """PodStartError when a container of the pod has exited."""
        ...

    async def remove(self, hash: ManifestHash) -> None: ...
    async def find_pods(self) -> list[FoundPod]: ...
    async def isolation(self) -> Isolation:
        """What stands between a pod and the host."""
        ...

    async def consumption(self, hash: ManifestHash) -> Consumption | None:
        """As the control groups of the pod's containers count it; None where nobody counts."""
        ...

    def logs(self, hash: ManifestHash, *, follow: bool) -> AsyncIterator[LogLine]: ...


class Network(Protocol):
    """What the node needs from the kernel. The counters of a pod go on from the traffic given with it."""

    @property
    def policy(self) -> Policy:
        """The one in force."""
        ...

    async def start(self, pods: Mapping[IPv4Address, Traffic]) -> frozenset[IPv4Address]: ...
    async def attach(self, address: IPv4Address, netns_fd: int, traffic: Traffic) -> None: ...
    async def detach(self, address: IPv4Address) -> Traffic | None: ...
    async def links(self) -> frozenset[IPv4Address]: ...
    async def traffic(self) -> Mapping[IPv4Address, Traffic]:
        """Of every attached pod."""
        ...

    async def counters(self) -> Mapping[Reason, int]:
        """Packets refused, of all attached pods together."""
        ...

    async def change(self, egress: Egress) -> int:
        """How many flows were cut; after a ValueError or NetworkError the old rules are in force."""
        ...

    async def check(self) -> tuple[str, ...]:
        """What of ours in the kernel is missing or was changed by others, in sentences."""
        ...

    async def repair(self) -> None: ...
    async def probe(self, netns_fd: int, others: Sequence[IPv4Address]) -> tuple[Result, ...]: ...


class Rail(Protocol):
    """A way to pay."""

    @property
    def currency(self) -> Currency: ...
    async def authorize(self, quote: Quote, token: str | None) -> None:
        """PaymentRequiredError unless the claim can be expected to succeed."""
        ...

    async def claim(self, quote: Quote, token: str | None) -> Receipt: ...


class RoutePublisher(Protocol):
    """Where the front door learns its routes."""

    def publish(self, hash: ManifestHash, target: Target) -> None: ...
    def unpublish(self, hash: ManifestHash) -> None: ...
    def stop(self, hash: ManifestHash, notice: Notice) -> None:
        """No route, and visitors are told so."""
        ...

    def readmit(self, hash: ManifestHash) -> None:
        """Nothing is told of a stop any more; `publish` does it, too."""
        ...


class HostStats(Protocol):
    """The machine's own figures, in bytes."""

    def memory(self) -> tuple[int, int]:
        """Available and total memory."""
        ...

    def free_disk(self) -> int: ...
