"""The composition: every part built on one screen, started in order, stopped in reverse."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import grp
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aiohttp import web

from codius_netpolicy.policy import Policy
from codius_node import admin, answers, api, manifest, systemd
from codius_node.config import Settings
from codius_node.doors import ContainerEngine, Network
from codius_node.egress import EgressRules, find_egress
from codius_node.engine import Engine
from codius_node.errors import SettingsError
from codius_node.feed import Feed, TextFeed
from codius_node.firewalls import report_blockers
from codius_node.hoststats import HostStats
from codius_node.meter import Meter
from codius_node.model import Pod, Target
from codius_node.network import KernelNetwork
from codius_node.noop import NoopEngine, NoopNetwork
from codius_node.outbound import Outbound
from codius_node.payments import FreeRail, HouseRail
from codius_node.peers import Peers
from codius_node.podman import Podman
from codius_node.policy import build_policy
from codius_node.reconciler import Reconciler
from codius_node.resolvers import find_host_resolvers
from codius_node.selftest import SelfTest
from codius_node.store import Store
from codius_node.watch import NetworkWatch

logger = logging.getLogger(__name__)

STOP_SECONDS: Final = 15.0
"""What requests under way get when the node is told to stop."""
SOCKET_GROUP: Final = "codius"
"""Members may talk to the API's and the feed's socket; where there is no such group, everybody may:
both hold nothing that is not public."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is up."""

    settings: Settings
    engine: Engine
    store: Store
    feed: Feed
    texts: TextFeed
    reconciler: Reconciler


@asynccontextmanager
async def open_node(
    settings: Settings,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    target_of: Callable[[Pod], Target | None] | None = None,
) -> AsyncIterator[Node]:
    """A node, from its database to its listeners; the order is that of ARCHITECTURE.md, path 5."""
    async with AsyncExitStack() as stack:
        policy = await _build_policy(settings)
        _prepare_directories(settings)
        stack.callback(os.close, _lock(settings.root))
        store = await Store.open(settings.database, key_path=settings.key_file, restore=manifest.restore)
        stack.push_async_callback(store.aclose)
        await _check_addresses(settings, store)
        chosen = await find_egress(store, policy)
        containers, network = await _open_doors(settings, policy.with_egress(chosen or policy.egress), stack)
        host = HostStats(disk=settings.root)
        feed = Feed()
        rail = HouseRail(FreeRail())
        engine = Engine(
            settings=settings,
            store=store,
            containers=containers,
            network=network,
            rail=rail,
            routes=feed,
            host=host,
            clock=clock,
            target_of=target_of or (_no_target if settings.noop else None),
        )
        await engine.load()
        meter = Meter(store=store, network=network, containers=containers, clock=clock)
        reconciler = Reconciler(
            engine=engine, store=store, containers=containers, network=network, clock=clock
        )
        rules = EgressRules(network=network, store=store, own=policy.egress, chosen=chosen, clock=clock)
        watch = NetworkWatch(network=network, bank=meter.bank, clock=clock)
        peers = Peers(
            store,
            Outbound(development=settings.dev),
            bootstrap=settings.bootstrap_peers,
            own=settings.public_uri,
            clock=clock,
        )
        await peers.start()
        stack.push_async_callback(peers.aclose)
        stack.push_async_callback(reconciler.aclose)
        await reconciler.recover()
        if not settings.noop:
            await asyncio.to_thread(report_blockers, policy)
        watch.start()
        stack.push_async_callback(watch.aclose)

        await feed.start(settings.feed_socket)
        stack.push_async_callback(feed.aclose)
        _share(settings.feed_socket)
        texts = TextFeed()
        await texts.start(settings.texts_socket)
        stack.push_async_callback(texts.aclose)
        settings.texts_socket.chmod(0o666)  # what DNS tells the world is no secret here
        selftest = SelfTest(
            settings=settings, engine=engine, images=containers, passes=rail, store=store, clock=clock
        )
        await selftest.load()
        public = api.build_app(
            engine=engine,
            peers=peers,
            host=host,
            selftest=selftest,
            settings=settings,
            started_at=clock(),
        )
        await _listen(public, settings.api_socket, stack)
        _share(settings.api_socket)
        operators = admin.build_app(
            engine=engine,
            denials=engine.denials,
            prices=engine.prices,
            meter=meter,
            rules=rules,
            watch=watch,
            selftest=selftest,
            clock=clock,
        )
        await _listen(operators, settings.admin_socket, stack)
        settings.admin_socket.chmod(0o600)
        if settings.admin_api:
            await _listen_tcp(operators, settings.admin_port, stack)
        selftest.start()
        stack.push_async_callback(selftest.aclose)
        loop = asyncio.create_task(reconciler.run(), name="reconciler")
        stack.push_async_callback(_cancel, loop)
        yield Node(settings, engine, store, feed, texts, reconciler)


async def _build_policy(settings: Settings) -> Policy:
    if settings.chosen_pod_resolvers or settings.noop:
        return build_policy(settings)
    ipv6 = settings.pod_network_6 is not None
    return build_policy(settings, await asyncio.to_thread(find_host_resolvers, ipv6=ipv6))


async def _check_addresses(settings: Settings, store: Store) -> None:
    """Pods keep the address they were given; a pool without it cannot serve them."""
    outside = [pod for pod in await store.pods() if pod.address not in settings.pod_network]
    if outside:
        raise SettingsError(
            f"CODIUS_POD_NETWORK={settings.pod_network} leaves out {len(outside)} of this host's pods,"
            f" such as {outside[0].hash} at {outside[0].address}",
            hint="Keep the old network until they have expired.",
        )


async def _open_doors(
    settings: Settings, policy: Policy, stack: AsyncExitStack
) -> tuple[ContainerEngine, Network]:
    if settings.noop:
        return NoopEngine(), NoopNetwork(policy)
    podman = Podman(
        settings.engine_socket,
        files=settings.pod_files,
        resolvers=[str(resolver) for resolver in policy.resolvers],
    )
    await podman.open()
    stack.push_async_callback(podman.aclose)
    kernel = KernelNetwork(policy)
    stack.push_async_callback(kernel.aclose)
    return podman, kernel


def _no_target(_: Pod) -> Target | None:
    """Without containers a pod's address is somebody else's, out on the network this machine stands in."""
    return None


def _prepare_directories(settings: Settings) -> None:
    try:
        settings.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.run.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not settings.noop:
            settings.pod_files.mkdir(mode=0o711, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"cannot make {error.filename}: {error.strerror}",
            hint="Run as root, or set CODIUS_ROOT and CODIUS_RUN to directories of yours.",
        ) from error


def _lock(root: Path) -> int:
    """Two nodes on one database would fight over every pod."""
    lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise SettingsError(
            f"another node is running with CODIUS_ROOT={root}",
            hint="Stop it first, or give this one a CODIUS_ROOT and a CODIUS_RUN of its own.",
        ) from error
    return lock


def _share(socket: Path) -> None:
    try:
        group = grp.getgrnam(SOCKET_GROUP).gr_gid
        os.chown(socket, -1, group)
        socket.chmod(0o660)
    except (KeyError, PermissionError):
        socket.chmod(0o666)


async def _listen(app: web.Application, socket: Path, stack: AsyncExitStack) -> None:
    runner = await _runner(app, stack)
    await web.UnixSite(runner, str(socket)).start()


async def _listen_tcp(app: web.Application, port: int, stack: AsyncExitStack) -> None:
    runner = await _runner(app, stack)
    await web.TCPSite(runner, "127.0.0.1", port).start()


async def _runner(app: web.Application, stack: AsyncExitStack) -> answers.Runner:
    runner = answers.Runner(app, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


# ---- the process ----------------------------------------------------------------------------------


def node(settings: Settings) -> int:
    """`codiusd node`: until SIGTERM; the exit status."""
    asyncio.run(_node(settings))
    return 0


async def _node(settings: Settings) -> None:
    stop = stop_signals()
    on_hang_up(stop, _say_restart)
    async with open_node(settings):
        settle_memory()
        systemd.notify("READY=1")
        logger.info("node ready: %s", settings.public_uri)
        await stop.wait()
        systemd.notify("STOPPING=1")
        logger.info("stopping; pods stay up")


def settle_memory() -> None:
    """What is in memory now stays there: no later collection walks all of it while the loop waits."""
    gc.collect()
    gc.freeze()


def stop_signals() -> asyncio.Event:
    """Set by SIGTERM or Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def on_hang_up(stop: asyncio.Event, reload: Callable[[], None]) -> None:
    """SIGHUP: who was started from a terminal ends with it; of all others it wants a `reload`."""
    action = stop.set if sys.stdin.isatty() else reload
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, action)


def _say_restart() -> None:
    logger.warning("the node's settings are read at its start: to change them, restart it; pods stay up")
