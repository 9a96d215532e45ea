"""The host that the recordings are replayed against: the real node and front door, pods that echo."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import WSMsgType, web

from codius_node import answers, api, manifest
from codius_node.config import load
from codius_node.engine import Engine
from codius_node.feed import Feed
from codius_node.model import LogLine, ManifestHash, Pod, Target
from codius_node.noop import NoopEngine, NoopNetwork
from codius_node.outbound import Outbound
from codius_node.payments import FreeRail
from codius_node.peers import Peers
from codius_node.policy import build_policy
from codius_node.store import Store
from codius_proxy import worker
from codius_proxy.config import ProxyConfig
from tests.harness.front import WorkerThread
from tests.integration.engine_double import HostDouble, SelfTestDouble

DEADLINE = 10.0
ZONE = "localhost"
PUBLIC_PORT = 4310
"""The port in the recorded URLs; the replay's own port is another one."""


class ListeningPeers(Peers):
    """Remembers what it is told, too."""

    def __init__(self, store: Store, outbound: Outbound) -> None:
        super().__init__(store, outbound)
        self.suggested: list[str] = []

    def suggest(self, uris: Iterable[str]) -> None:
        names = list(uris)
        self.suggested += names
        super().suggest(names)


@dataclass(frozen=True, slots=True)
class RecordedHost:
    """Where the replay finds the host, what it has stored, and how the one pod that dies is killed."""

    address: str
    port: int
    authority: str
    api_socket: Path
    store: Store
    peers: ListeningPeers
    doomed: web.AppRunner


class LoggingContainers(NoopEngine):
    """Containers that wrote what the recorded ones wrote."""

    async def logs(self, hash: ManifestHash, *, follow: bool) -> AsyncIterator[LogLine]:
        for container in ("web", "side"):
            yield LogLine(container, "stdout", "hello from a container")
            yield LogLine(container, "stderr", "a warning")
        for number in range(5 if follow else 0):
            yield LogLine("web", "stdout", f"tick {number}")


class Host(HostDouble):
    """Room for everybody, on the disk, too."""

    def memory(self) -> tuple[int, int]:
        return 1000 * 2**30, 1024 * 2**30

    def free_disk(self) -> int:
        return 100 * 2**30


async def echo(request: web.Request) -> web.StreamResponse:
    """As the recorded pods: tells what arrived."""
    if request.headers.get("Upgrade", "").lower() == "websocket":
        line = web.WebSocketResponse()
        await line.prepare(request)
        await line.send_str('{"websocketEnabled":true}')
        async for message in line:
            if message.type is WSMsgType.CLOSE:
                break
        return line
    document = {
        "pod": request.host.split(".")[0].lower(),
        "method": request.method,
        "path": request.path_qs,
        "headers": [[name.lower(), value] for name, value in request.headers.items()],
        "body": (await request.read()).decode(),
    }
    response = web.json_response(document, status=418 if request.path == "/teapot" else 200)
    response.headers["Content-Type"] = "application/json"
    response.headers["X-Pod"] = "1"
    return response


async def start_pod(stack: AsyncExitStack) -> tuple[web.AppRunner, Target]:
    app = web.Application(client_max_size=8 * 2**20)
    app.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address, port = runner.addresses[0][:2]
    return runner, Target(address, port)


@asynccontextmanager
async def open_recorded_host(
    directory: Path, containers: NoopEngine | None = None
) -> AsyncIterator[RecordedHost]:
    settings = load(
        {
            "CODIUS_PUBLIC_URI": f"http://{ZONE}:{PUBLIC_PORT}",
            "CODIUS_HYPER_NOOP": "true",
            "CODIUS_ROOT": str(directory),
            "CODIUS_RUN": str(directory),
        }
    )
    async with AsyncExitStack() as stack:
        _, pod = await start_pod(stack)
        doomed, doomed_pod = await start_pod(stack)

        def target_of(found: Pod) -> Target | None:
            if found.manifest.port is None:
                return None
            return doomed_pod if found.manifest.name == "C" else pod

        store = await Store.open(settings.database, key_path=settings.key_file, restore=manifest.restore)
        stack.push_async_callback(store.aclose)
        feed = Feed()
        host = Host()
        engine = Engine(
            settings=settings,
            store=store,
            containers=containers or LoggingContainers(),
            network=NoopNetwork(build_policy(settings)),
            rail=FreeRail(),
            routes=feed,
            host=host,
            target_of=target_of,
        )
        await feed.start(settings.feed_socket)
        stack.push_async_callback(feed.aclose)
        peers = ListeningPeers(store, Outbound())
        app = api.build_app(
            engine=engine,
            peers=peers,
            host=host,
            selftest=SelfTestDouble(),
            settings=settings,
            started_at=datetime.now(UTC),
        )
        runner = answers.Runner(app, shutdown_timeout=1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.UnixSite(runner, str(settings.api_socket)).start()
        port = await _start_front_door(settings.api_socket, settings.feed_socket, stack)
        yield RecordedHost(
            "127.0.0.1", port, f"{ZONE}:{PUBLIC_PORT}", settings.api_socket, store, peers, doomed
        )


async def _start_front_door(api_socket: Path, feed_socket: Path, stack: AsyncExitStack) -> int:
    listening = socket.create_server(("127.0.0.1", 0))
    port = int(listening.getsockname()[1])
    config = ProxyConfig(
        zone=ZONE,
        listen_address="127.0.0.1",
        port=port,
        api_socket=api_socket,
        feed_socket=feed_socket,
        public_port=PUBLIC_PORT,
    )
    front = WorkerThread(config, worker.Equipment((listening,)))
    await front.start()
    stack.push_async_callback(front.aclose)
    return port
