"""The DNS process: sockets, workers, and from start to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from codius_dns import metrics
from codius_dns.cookies import Cookies
from codius_dns.errors import DnsError, DnsStartError
from codius_dns.exporter import MAX_REQUEST, Exporter
from codius_dns.limits import RateLimit
from codius_dns.responder import Identity, Responder
from codius_dns.sockets import Endpoint, Listener, open_listeners, open_local
from codius_dns.tcp import TcpLimits, TcpService
from codius_dns.texts import Texts, TextsReader
from codius_dns.udp import UdpService
from codius_dns.zone import Zone

__all__ = ["DnsConfig", "DnsStartError", "Endpoint", "Ready", "run", "serve"]

logger = logging.getLogger(__name__)

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SIGNALS: Final = (*STOP_SIGNALS, signal.SIGHUP)
MAX_WORKERS: Final = 64
MAX_RATE: Final = 1_000_000  # answers per second and network: more than a worker can give
COUNT_INTERVAL: Final = 1.0  # seconds between a worker's reports of what it counted

Ready = Callable[[tuple[Endpoint, ...]], object]
"""Told once, when every question will be answered, where they can be asked."""
Reread = Callable[[], Sequence[Zone]]
"""The zones as they are by now; DnsError when they cannot be served."""


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """Everything the responder has to know, and nothing it could find out itself."""

    zones: tuple[Zone, ...]
    addresses: tuple[str, ...] = ("127.0.0.1",)  # IP literals; `::` is IPv6 alone, name 0.0.0.0 beside it
    port: int = 53  # of both UDP and TCP; 0: one the kernel picks
    workers: int = 1  # processes on one port
    tcp: TcpLimits = field(default_factory=TcpLimits)
    rate_limit: int = 0  # answers over UDP per second to one network, from all workers together; 0: no limit
    identity: Identity = field(default_factory=Identity)
    texts_socket: Path | None = None  # whose TXT values we follow
    metrics: Endpoint | None = None  # where they can be read
    log_queries: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MAX_WORKERS:
            raise DnsStartError(f"{self.workers} DNS workers: between 1 and {MAX_WORKERS} are possible")
        if not 0 <= self.rate_limit <= MAX_RATE:
            raise DnsStartError(f"a rate limit of {self.rate_limit}: between 0 and {MAX_RATE} are possible")

    def build_responder(self) -> Responder:
        return Responder(self.zones, identity=self.identity, cookies=Cookies(), log_queries=self.log_queries)


@dataclass(frozen=True, slots=True)
class Worker:
    """What one worker serves with; all of it made before the workers part."""

    config: DnsConfig
    responder: Responder
    listeners: Sequence[Listener]
    board: metrics.Board
    index: int = 0
    exporter: socket.socket | None = None  # the first one's: it tells the sum of all

    async def serve(self, ready: Ready, stop: asyncio.Event) -> None:
        """Answer until `stop` is set. Takes over the sockets."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as undo:
            for listener in self.listeners:
                undo.callback(listener.close)
            if self.config.texts_socket is not None:
                reader = TextsReader(self.config.texts_socket, self._publish)
                undo.push_async_callback(_cancel, loop.create_task(reader.run(), name="texts"))
            if self.exporter is not None:
                exporter = Exporter(self._render)
                server = await asyncio.start_server(exporter.serve, sock=self.exporter, limit=MAX_REQUEST)
                undo.callback(server.close)
            undo.push_async_callback(_cancel, loop.create_task(self._report(), name="metrics"))
            tcp = TcpService(self.responder, self.config.tcp)
            servers = [await loop.create_server(tcp.connect, sock=each.tcp) for each in self.listeners]
            share = -(
                -self.config.rate_limit // self.config.workers
            )  # the kernel spreads askers over workers
            for listener in self.listeners:
                limit = RateLimit(share) if share else None
                udp = UdpService(listener.udp, self.responder, limit)
                udp.start()
                undo.callback(udp.stop)
            endpoints = tuple(listener.endpoint for listener in self.listeners)
            for endpoint in endpoints:
                logger.info("answering DNS on %s port %d", endpoint.address, endpoint.port)
            ready(endpoints)
            try:
                await stop.wait()
            finally:
                for each in servers:
                    each.close()
                await tcp.aclose()
        logger.info("stopped answering DNS")

    def _publish(self, texts: Texts) -> None:
        self.responder.publish_texts(texts.values, texts.serial)

    def _render(self) -> bytes:
        self.board.write(self.index, self.responder.counts)
        return metrics.render(self.board.sums(), self.config.workers)

    async def _report(self) -> None:
        """Show the others what was counted here."""
        while True:
            self.board.write(self.index, self.responder.counts)
            await asyncio.sleep(COUNT_INTERVAL)


async def serve(
    config: DnsConfig, ready: Ready, stop: asyncio.Event, *, responder: Responder | None = None
) -> None:
    """Answer in the running loop until `stop` is set: one worker, whatever the config says.

    `responder` is for a caller that publishes TXT values to it.
    """
    (listeners,) = open_listeners(config.addresses, config.port)
    with ExitStack() as undo:
        undo.callback(_close, listeners)
        exporter = None if config.metrics is None else undo.enter_context(open_local(config.metrics))
        worker = Worker(
            config, responder or config.build_responder(), listeners, metrics.Board(1), exporter=exporter
        )
        await worker.serve(ready, stop)


def run(
    config: DnsConfig,
    *,
    drop_privileges: Callable[[], None] | None = None,
    reread: Reread | None = None,
) -> int:
    """Answer until SIGTERM or SIGINT; the process's exit status. Raises DnsStartError.

    SIGHUP takes up the zones that `reread` tells, and nothing else changes. Without `reread` it is one more
    way to end.
    """
    # Kept until there is somebody to take them up: a reload at the very start must not end the process.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return _run(config, drop_privileges, reread)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _run(config: DnsConfig, drop_privileges: Callable[[], None] | None, reread: Reread | None) -> int:
    responder = config.build_responder()
    sets = open_listeners(config.addresses, config.port, workers=config.workers)
    with ExitStack() as undo:
        for listeners in sets:
            undo.callback(_close, listeners)
        exporter = None if config.metrics is None else undo.enter_context(open_local(config.metrics))
        if drop_privileges is not None:
            drop_privileges()
        board = metrics.Board(config.workers)
        workers = [
            Worker(config, responder, listeners, board, index, None if index else exporter)
            for index, listeners in enumerate(sets)
        ]
        if len(workers) == 1:
            asyncio.run(_serve_until_signal(workers[0], reread))
            return 0
        return _run_workers(workers, reread)


async def _serve_until_signal(worker: Worker, reread: Reread | None, parent: int | None = None) -> None:
    """`parent` is a pipe that ends when the parent process does, however it does."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    hung_up = stop if reread is None else asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    async with AsyncExitStack() as undo:
        if parent is not None:
            loop.add_reader(parent, stop.set)
            undo.callback(loop.remove_reader, parent)
        if reread is not None:
            following = _follow_zones(worker.responder, reread, hung_up)
            undo.push_async_callback(_cancel, loop.create_task(following, name="zones"))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        await worker.serve(lambda _: None, stop)


async def _follow_zones(responder: Responder, reread: Reread, hung_up: asyncio.Event) -> None:
    while True:
        await hung_up.wait()
        hung_up.clear()
        try:
            responder.publish_zones(await asyncio.to_thread(reread))
        except DnsError as error:
            _say_unchanged(error)
        else:
            logger.info("answering with the zones as they are now; other settings are read at the start")


def _say_unchanged(error: DnsError) -> None:
    hint = f" ({error.hint})" if error.hint else ""
    logger.error("the zones stay as they are: %s%s", error.message, hint)


def _run_workers(workers: Sequence[Worker], reread: Reread | None) -> int:
    """One process per worker, until a signal, or until one of them dies: then all stop."""
    watched = {*SIGNALS, signal.SIGCHLD}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # kept for sigwait, however early they come
    alive, keep = os.pipe()
    try:
        pids = [_fork(workers, worker, reread, alive, keep) for worker in workers]
        for worker in workers:
            _close(worker.listeners)  # a dead worker's share must not queue up in a socket nobody reads
        while (received := signal.sigwait(watched)) == signal.SIGHUP and reread is not None:
            _reload(workers[0].responder, reread, pids)
        if received == signal.SIGCHLD:
            logger.error("a DNS worker died; the others stop too, so that all can be started again")
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        return int(received == signal.SIGCHLD or any(statuses))
    finally:
        os.close(alive)
        os.close(keep)
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _reload(responder: Responder, reread: Reread, pids: Sequence[int]) -> None:
    """Have the workers take up the zones, tried here first, with a responder that nobody asks: what cannot be
    served is told once, and no worker sees it.
    """
    try:
        responder.publish_zones(reread())
    except DnsError as error:
        _say_unchanged(error)
        return
    for pid in pids:
        os.kill(pid, signal.SIGHUP)


def _fork(workers: Sequence[Worker], worker: Worker, reread: Reread | None, alive: int, keep: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.close(keep)
        for other in workers:
            if other is not worker:
                _close(other.listeners)
        asyncio.run(_serve_until_signal(worker, reread, parent=alive))
        status = 0
    except BaseException:
        logger.exception("a DNS worker failed")
    finally:
        os._exit(status)  # never back into the parent's code


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _close(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.close()
