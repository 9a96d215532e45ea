"""A host and everything around it for system tests: internet, podman, registry, image, visitors."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from tests.harness.host import Host
from tests.harness.namespaces import HostNetwork
from tests.harness.podman_service import PrivatePodman, Registry
from tests.harness.sample import SAMPLE_FILES, SAMPLE_NAME, manifest_of, sample_container, sample_manifest

DEADLINE_SECONDS: Final = 30.0
"""For whatever has to become true."""
POLL_SECONDS: Final = 0.02
UPLOAD_SECONDS: Final = 120.0
HOUR: Final = 3600
SETTINGS: Final = {
    "CODIUS_MAX_MEMORY_FRACTION": "1",  # who else works on the machine is no business of the tests
    "CODIUS_PROXY_WORKERS": "2",  # so that what one of them knows and the other does not comes to light
}


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def document(self) -> dict[str, object]:
        answer: dict[str, object] = json.loads(self.body)
        return answer


class Visitor:
    """aiohttp's client, for which every name below localhost is the front door."""

    def __init__(self, port: int, *, keep_alive: bool = True) -> None:
        self._origin = f"codius.localhost:{port}"
        self._keep_alive = keep_alive

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(resolver=_Loopback(), force_close=not self._keep_alive, limit=0)
        timeout = aiohttp.ClientTimeout(total=UPLOAD_SECONDS)
        self.session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()

    def url(self, hash: str | None = None, path: str = "/") -> str:
        """Of a pod, or of the host itself."""
        return f"http://{self._origin}{path}" if hash is None else f"http://{hash}.{self._origin}{path}"

    async def get(self, hash: str | None = None, path: str = "/", **query: str) -> Answer:
        return await self.ask("GET", path, hash=hash, **query)

    async def ask(
        self, method: str, path: str, *, hash: str | None = None, document: object = None, **query: str
    ) -> Answer:
        async with self.session.request(
            method, self.url(hash, path), params=query, json=document
        ) as response:
            return Answer(response.status, await response.read(), response.headers)

    async def upload(self, document: object, *, duration: int = HOUR) -> Answer:
        return await self.ask("POST", "/pods", document=document, duration=str(duration))


class _Loopback(AbstractResolver):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if not host.endswith(".localhost"):
            raise OSError(f"tests do not look up {host}")
        found = ResolveResult(
            hostname=host,
            host="127.0.0.1",
            port=port,
            family=socket.AF_INET,
            proto=socket.IPPROTO_TCP,
            flags=socket.AI_NUMERICHOST,
        )
        return [found]

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything there is of pods on a host, each kind as its keeper tells it."""

    rows: Mapping[str, IPv4Address]
    """The database: the pods' hashes and addresses."""
    pods: Sequence[str]
    """podman: their hashes, once for each pod."""
    containers: Sequence[str]
    links: Sequence[IPv4Address]
    senders: Sequence[IPv4Address]
    """The kernel's table: who may send, and below who may be sent to."""
    receivers: Sequence[IPv4Address]
    files: Sequence[str]
    manifests: Sequence[str]

    def check(self, *hashes: str, containers: int = 1) -> None:
        """Exactly these pods, once each and everywhere the same; `containers` besides the infra of each."""
        wanted = sorted(hashes)
        addresses = sorted(self.rows.values())
        found = (sorted(self.rows), sorted(self.pods), sorted(self.files), sorted(self.manifests))
        assert found == (wanted, wanted, wanted, wanted), self
        assert sorted(self.links) == sorted(self.senders) == sorted(self.receivers) == addresses, self
        assert len(self.containers) == len(wanted) * (containers + 1), self


@dataclass
class World:
    """What a system test holds in its hands."""

    directory: Path
    network: HostNetwork
    podman: PrivatePodman
    registry: Registry
    host: Host
    visitor: Visitor
    image: str
    settings: Mapping[str, str]
    """Its own; whoever starts a part again gives them again."""
    names: itertools.count[int] = field(default_factory=itertools.count)

    def manifest(self, *commands: Sequence[str]) -> dict[str, object]:
        """One of its own; containers with these commands, or the sample's page."""
        name = f"pod-{next(self.names)}"
        if not commands:
            return sample_manifest(self.image, name=name)
        return manifest_of(
            *(sample_container(self.image, command, id=f"c{i}") for i, command in enumerate(commands)),
            name=name,
        )

    async def run(self, document: object = None, *, duration: int = HOUR) -> str:
        """Upload it, or the sample; the pod's hash."""
        answer = await self.visitor.upload(document or self.manifest(), duration=duration)
        assert answer.status == 200, (answer, self.host.tail())
        return str(answer.document["manifestHash"])

    async def expiry(self, hash: str) -> str:
        """As the API tells it."""
        answer = await self.visitor.get(path="/pods", manifestHash=hash)
        assert answer.status == 200, answer
        return str(answer.document["expiry"])

    async def inside(self, hash: str, *command: str, container: str = "web") -> str:
        """What a command in a pod's container prints. RuntimeError when it fails."""
        return await self.podman.cli("exec", f"codius-{hash}-{container}", *command)

    async def inventory(self) -> Inventory:
        pods = json.loads(await self.podman.cli("pod", "ps", "--format", "json")) or []
        containers = json.loads(await self.podman.cli("ps", "--all", "--format", "json")) or []
        # an empty object stands for each link of another group
        links = json.loads(self.network.exec("ip", "-json", "link", "show", "group", "77").stdout or "[]")
        return Inventory(
            rows={
                str(hash): IPv4Address(str(address))
                for hash, address in self.host.query("SELECT hash, address FROM pods")
            },
            pods=[pod["Labels"]["codius.manifest"] for pod in pods],
            containers=[container["Id"] for container in containers],
            links=[IPv4Address(int(link["ifname"].removeprefix("cp"), 16)) for link in links if link],
            senders=[IPv4Address(element["concat"][2]) for element in self._elements("pod_tx")],
            receivers=[IPv4Address(element) for element in self._elements("pod_rx")],
            files=[path.name for path in (self.host.root / "pods").iterdir()],
            manifests=[str(hash) for (hash,) in self.host.query("SELECT hash FROM manifests")],
        )

    def _elements(self, name: str) -> list[Any]:
        listed = self.network.exec("nft", "-j", "list", "set", "inet", "codius", name).stdout
        (found,) = (part["set"] for part in json.loads(listed)["nftables"] if "set" in part)
        return [entry["elem"]["val"] for entry in found.get("elem", [])]

    def address(self, hash: str) -> IPv4Address:
        """The pod's own, in the pods' network."""
        [(address,)] = self.host.query("SELECT address FROM pods WHERE hash = ?", hash)
        return IPv4Address(str(address))

    def ledger(self, hash: str) -> list[str]:
        """The kinds of its entries, oldest first."""
        rows = self.host.query("SELECT kind FROM ledger WHERE manifest_hash = ? ORDER BY id", hash)
        return [str(kind) for (kind,) in rows]

    async def until_answering(self, hash: str, path: str = "/") -> None:
        """After a restart of the node the front door looks for it every other second."""

        async def answering() -> bool:
            return (await self.visitor.ask("HEAD", path, hash=hash)).status == 200

        await until(answering, f"pod {hash} does not answer")

    async def until_gone(self, hash: str) -> None:
        """Until nobody on the host knows the pod any more."""

        async def gone() -> bool:
            found = await self.inventory()
            return hash not in (*found.rows, *found.pods, *found.files, *found.manifests)

        await until(gone, f"pod {hash} is still there")


async def until(true: Callable[[], object], what: str, *, seconds: float = DEADLINE_SECONDS) -> None:
    """Polls a function, plain or `async`, until its answer is true; AssertionError with `what` if never."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        answer = true()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return
        assert loop.time() < deadline, what
        await asyncio.sleep(POLL_SECONDS)


@contextmanager
def open_directory() -> Iterator[Path]:
    """One below which any user can find what it is told of; pytest's own are closed to all but one."""
    with tempfile.TemporaryDirectory(prefix="codius-world-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        yield directory


@asynccontextmanager
async def open_world(
    directory: Path | None = None, *, units: bool = False, **settings: str
) -> AsyncIterator[World]:
    """A started host with all that it needs, and nothing of it left afterwards."""
    async with AsyncExitStack() as stack:
        if directory is None:  # the front door's unprivileged user has to find its sockets in it
            directory = stack.enter_context(open_directory())
        network = stack.enter_context(HostNetwork())
        registry = await stack.enter_async_context(Registry(netns=network.host.path))
        podman = await stack.enter_async_context(
            PrivatePodman(netns=network.host.path, insecure=[registry.address])
        )
        image = await podman.make_image(SAMPLE_NAME, files=SAMPLE_FILES)
        host = stack.enter_context(Host(directory, network=network, podman_socket=podman.socket))
        settings = {**SETTINGS, **settings}
        await asyncio.to_thread(host.start, units=units, **settings)
        visitor = await stack.enter_async_context(Visitor(host.port))
        yield World(directory, network, podman, registry, host, visitor, image, settings)
