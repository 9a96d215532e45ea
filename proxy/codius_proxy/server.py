"""The proxy as processes: listeners bound once, one forked worker per core, a parent that watches."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, NoReturn

import uvloop

from codius_proxy.config import ProxyConfig
from codius_proxy.worker import BACKLOG, serve

logger = logging.getLogger(__name__)

FIRST_LISTEN_FD: Final = 3  # sd_listen_fds(3)
MAX_LISTEN_FDS: Final = 64  # sockets handed over; a larger number is a mistake
KEEPALIVE_IDLE: Final = 60  # seconds without a byte before the kernel asks whether a visitor still exists
KEEPALIVE_INTERVAL: Final = 15  # seconds between such questions
KEEPALIVE_PROBES: Final = 4  # unanswered questions
GRACE: Final = 2.0  # seconds beyond the drain time-out before a worker is killed
FIRST_PAUSE: Final = 0.1  # seconds before a dead worker is replaced
LONGEST_PAUSE: Final = 5.0  # seconds, when workers keep dying
HEALTHY: Final = 30.0  # seconds a worker has to live for the pause to start over
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


@dataclass(slots=True)
class _Worker:
    """One place for a worker process: its sockets, and who has them now."""

    number: int
    sockets: list[socket.socket]
    pid: int | None = None
    started: float = 0.0
    pause: float = FIRST_PAUSE
    due: float = 0.0  # when to start the next one, while there is none


def run(
    config: ProxyConfig,
    *,
    drop_privileges: Callable[[], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. Call it from the main thread of a process without an event loop.

    `drop_privileges` is called after the sockets are bound and before anything is served; `on_ready`
    when visitors are accepted. OSError when an address cannot be bound.
    """
    sockets = inherited() or bind(config)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        if drop_privileges is not None:
            drop_privileges()
        _raise_file_limit()
        workers = _places(config.workers, sockets)
        gc.freeze()  # so that no collection in a worker copies the pages it shares with us
        for worker in workers:
            _start(worker, workers, config, before)
        if on_ready is not None:
            on_ready()
        _watch(workers, config, before)
    finally:
        while signal.sigtimedwait(_SIGNALS, 0) is not None:
            pass  # being told twice is no reason to end by the signal
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for listening in sockets:
            listening.close()


def bind(config: ProxyConfig) -> list[socket.socket]:
    """One listening SO_REUSEPORT socket per worker, so that the kernel spreads visitors over them."""
    family = socket.AF_INET6 if ip_address(config.listen_address).version == 6 else socket.AF_INET
    sockets: list[socket.socket] = []
    port = config.port
    try:
        for _ in range(config.workers):
            listening = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Accepted sockets inherit these from the listening one: no system call per visitor.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
            listening.setblocking(False)
            try:
                listening.bind((config.listen_address, port))
                listening.listen(BACKLOG)
            except OSError as error:
                raise OSError(
                    error.errno, f"cannot listen on {config.listen_address} port {port}: {error.strerror}"
                ) from error
            port = listening.getsockname()[1]  # port 0: the others share what the first one got
    except OSError:
        for listening in sockets:
            listening.close()
        raise
    return sockets


def inherited() -> list[socket.socket]:
    """The listening sockets systemd opened for this process, if it did (sd_listen_fds(3))."""
    try:
        meant_for = int(os.environ.get("LISTEN_PID", ""))
        count = int(os.environ.get("LISTEN_FDS", ""))
    except ValueError:
        return []
    if meant_for != os.getpid() or not 0 < count <= MAX_LISTEN_FDS:
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # not for our children
    sockets = []
    for number in range(FIRST_LISTEN_FD, FIRST_LISTEN_FD + count):
        os.set_inheritable(number, False)
        listening = socket.socket(fileno=number)
        listening.setblocking(False)
        sockets.append(listening)
    return sockets


def _places(count: int, sockets: Sequence[socket.socket]) -> list[_Worker]:
    """Each worker its own sockets where there are enough of one address, else all workers all sockets."""
    addresses = {listening.getsockname() for listening in sockets}
    if len(addresses) == 1 and len(sockets) >= count:
        return [_Worker(number, list(sockets[number::count])) for number in range(count)]
    return [_Worker(number, list(sockets)) for number in range(count)]


def _raise_file_limit() -> None:
    """Two files per visitor: take what the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _start(
    worker: _Worker, workers: Sequence[_Worker], config: ProxyConfig, mask: set[int | signal.Signals]
) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        # A copy left open would keep another worker's listener alive after it stopped listening.
        for other in {listening for place in workers for listening in place.sockets} - set(worker.sockets):
            other.close()
        _be_worker(worker, config, parent, mask)
    worker.pid = pid
    worker.started = time.monotonic()
    logger.info("worker %d is process %d", worker.number, pid)


def _be_worker(
    worker: _Worker, config: ProxyConfig, parent: int, mask: set[int | signal.Signals]
) -> NoReturn:
    """The life of a worker process; never returns into the parent's code."""
    code = 1
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == parent:  # else it died before it could be watched
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the parent decides
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_work(config, worker.sockets, mask))
        code = 0
    except BaseException:
        logger.exception("worker %d failed", worker.number)
    finally:
        logging.shutdown()
        os._exit(code)


async def _work(
    config: ProxyConfig, sockets: Sequence[socket.socket], mask: set[int | signal.Signals]
) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # a SIGTERM that came meanwhile is delivered now
    await serve(config, sockets, None, stop)


def _watch(workers: Sequence[_Worker], config: ProxyConfig, mask: set[int | signal.Signals]) -> None:
    """Replace workers that die, until a signal says to stop; then see them all out."""
    while True:
        now = time.monotonic()
        for worker in workers:
            if worker.pid is None and worker.due <= now:
                _start(worker, workers, config, mask)
        waiting = [worker.due - now for worker in workers if worker.pid is None]
        received = signal.sigtimedwait(_SIGNALS, max(0.0, min(waiting, default=3600.0)))
        if received is not None and received.si_signo != signal.SIGCHLD:
            break
        for worker, status in _reap(workers):
            lived = time.monotonic() - worker.started
            worker.pause = FIRST_PAUSE if lived > HEALTHY else worker.pause
            logger.error(
                "worker %d ended with %d after %.1f s: a new one in %.1f s",
                worker.number, status, lived, worker.pause,
            )  # fmt: skip
            worker.due = time.monotonic() + worker.pause
            worker.pause = min(worker.pause * 2, LONGEST_PAUSE)
    _stop(workers, config)


def _stop(workers: Sequence[_Worker], config: ProxyConfig) -> None:
    logger.info("draining: at most %.0f s", config.timeouts.drain)
    for worker in workers:
        for listening in worker.sockets:
            listening.close()  # with ours gone, a worker's close is the listener's end
        if worker.pid is not None:
            os.kill(worker.pid, signal.SIGTERM)
    deadline = time.monotonic() + config.timeouts.drain + GRACE
    while any(worker.pid is not None for worker in workers):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        signal.sigtimedwait((signal.SIGCHLD,), left)
        _reap(workers)
    for worker in workers:
        if worker.pid is not None:
            logger.error("worker %d did not end in time: killed", worker.number)
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)


def _reap(workers: Sequence[_Worker]) -> list[tuple[_Worker, int]]:
    """The workers that have ended, with their exit codes; signals merge, so each is asked."""
    ended = []
    for worker in workers:
        if worker.pid is not None:
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                worker.pid = None
                ended.append((worker, os.waitstatus_to_exitcode(status)))
    return ended
