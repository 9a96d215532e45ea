"""The DNS process: sockets, workers, and from start to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from codius_dns.errors import DnsStartError
from codius_dns.responder import Responder
from codius_dns.sockets import Endpoint, Listener, open_listeners
from codius_dns.tcp import TcpLimits, TcpService
from codius_dns.udp import UdpService
from codius_dns.zone import Zone

__all__ = ["DnsConfig", "DnsStartError", "Endpoint", "Ready", "run", "serve"]

logger = logging.getLogger(__name__)

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
MAX_WORKERS: Final = 64

Ready = Callable[[tuple[Endpoint, ...]], object]
"""Told once, when every question will be answered, where they can be asked."""


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """Everything the responder has to know, and nothing it could find out itself."""

    zone: Zone
    addresses: tuple[str, ...] = ("127.0.0.1",)  # IP literals; `::` is IPv6 alone, name 0.0.0.0 beside it
    port: int = 53  # of both UDP and TCP; 0: one the kernel picks
    workers: int = 1  # processes on one port
    tcp: TcpLimits = field(default_factory=TcpLimits)

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MAX_WORKERS:
            raise DnsStartError(f"{self.workers} DNS workers: between 1 and {MAX_WORKERS} are possible")


async def serve(
    config: DnsConfig, ready: Ready, stop: asyncio.Event, *, responder: Responder | None = None
) -> None:
    """Answer in the running loop until `stop` is set: one worker, whatever the config says.

    `responder` is for a caller that publishes TXT values to it.
    """
    (listeners,) = open_listeners(config.addresses, config.port)
    await _serve(listeners, responder or Responder(config.zone), config.tcp, ready, stop)


def run(config: DnsConfig, *, drop_privileges: Callable[[], None] | None = None) -> int:
    """Answer until SIGTERM or SIGINT; the process's exit status. Raises DnsStartError."""
    sets = open_listeners(config.addresses, config.port, workers=config.workers)
    with ExitStack() as undo:
        for listeners in sets:
            undo.callback(_close, listeners)
        if drop_privileges is not None:
            drop_privileges()
        responder = Responder(config.zone)
        if config.workers == 1:
            asyncio.run(_serve_until_signal(sets[0], responder, config.tcp))
            return 0
        return _run_workers(sets, responder, config.tcp)


async def _serve(
    listeners: Sequence[Listener], responder: Responder, limits: TcpLimits, ready: Ready, stop: asyncio.Event
) -> None:
    """Takes over the listeners' sockets."""
    loop = asyncio.get_running_loop()
    with ExitStack() as undo:
        for listener in listeners:
            undo.callback(listener.close)
        tcp = TcpService(responder, limits)
        servers = [await loop.create_server(tcp.connect, sock=listener.tcp) for listener in listeners]
        for listener in listeners:
            udp = UdpService(listener.udp, responder)
            udp.start()
            undo.callback(udp.stop)
        endpoints = tuple(listener.endpoint for listener in listeners)
        for endpoint in endpoints:
            logger.info("answering DNS on %s port %d", endpoint.address, endpoint.port)
        ready(endpoints)
        try:
            await stop.wait()
        finally:
            for server in servers:
                server.close()
            await tcp.aclose()
    logger.info("stopped answering DNS")


async def _serve_until_signal(
    listeners: Sequence[Listener], responder: Responder, limits: TcpLimits, parent: int | None = None
) -> None:
    """`parent` is a pipe that ends when the parent process does, however it does."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    if parent is not None:
        loop.add_reader(parent, stop.set)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        await _serve(listeners, responder, limits, lambda _: None, stop)
    finally:
        if parent is not None:
            loop.remove_reader(parent)


def _run_workers(sets: Sequence[Sequence[Listener]], responder: Responder, limits: TcpLimits) -> int:
    """One process per set of listeners, until a signal, or until one of them dies: then all stop."""
    watched = {*STOP_SIGNALS, signal.SIGCHLD}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # kept for sigwait, however early they come
    alive, keep = os.pipe()
    try:
        workers = [_fork_worker(sets, index, responder, limits, alive, keep) for index in range(len(sets))]
        for listeners in sets:
            _close(listeners)  # a dead worker's share must not queue up in a socket nobody reads
        received = signal.sigwait(watched)
        if received == signal.SIGCHLD:
            logger.error("a DNS worker died; the others stop too, so that all can be started again")
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
        return int(received == signal.SIGCHLD or any(statuses))
    finally:
        os.close(alive)
        os.close(keep)
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _fork_worker(
    sets: Sequence[Sequence[Listener]],
    index: int,
    responder: Responder,
    limits: TcpLimits,
    alive: int,
    keep: int,
) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.close(keep)
        for other, listeners in enumerate(sets):
            if other != index:
                _close(listeners)
        asyncio.run(_serve_until_signal(sets[index], responder, limits, parent=alive))
        status = 0
    except BaseException:
        logger.exception("a DNS worker failed")
    finally:
        os._exit(status)  # never back into the parent's code


def _close(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.close()
