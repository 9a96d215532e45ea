"""The proxy as processes: workers forked from a parent that watches, replaces and renews them."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from codius_proxy import listeners, outbox, recorder, worker
from codius_proxy.config import LogError, ProxyConfig, SetupError
from codius_proxy.event_loop import FrontLoop
from codius_proxy.last_table import LastTable
from codius_proxy.listeners import Listeners
from codius_proxy.log_file import LogFile
from codius_proxy.recorder import Recorder
from codius_proxy.worker import Equipment

logger = logging.getLogger(__name__)

LAST_CALL: Final = 0.25  # seconds to accept those whose connection has begun, when no other worker will
GRACE: Final = 2.0  # seconds beyond the drain time-out before a worker is killed
READY: Final = 10.0  # seconds for new workers to take visitors, before the old ones are kept instead
READY_POLL: Final = 0.05  # seconds between two looks at the signals meanwhile
FIRST_PAUSE: Final = 0.1  # seconds before a dead process is replaced
LONGEST_PAUSE: Final = 5.0  # seconds, when they keep dying
HEALTHY: Final = 30.0  # seconds a process has to live for the pause to start over
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)

_Life = Callable[[], Coroutine[None, None, None]]


@dataclass(slots=True)
class _Place:
    """Where one process of ours belongs: what it lives for, and who is there now."""

    name: str
    life: _Life
    keeps: Sequence[socket.socket]  # those of our sockets that it may hold
    pid: int | None = None
    started: float = 0.0
    pause: float = FIRST_PAUSE
    due: float = 0.0  # when to start the next one, while there is none

    def postpone(self) -> None:
        """Nobody is there, and the next one comes in a while."""
        self.due = time.monotonic() + self.pause
        self.pause = min(self.pause * 2, LONGEST_PAUSE)


def run(
    config: ProxyConfig,
    *,
    drop_privileges: Callable[[], None] | None = None,
    on_ready: Callable[[], None] | None = None,
    reread: Callable[[], ProxyConfig] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP replaces the workers and loses nobody.

    Call it from the main thread of a process without an event loop. `drop_privileges` is called after the
    sockets are bound and before anything is served; `on_ready` when visitors may come; `reread` for the
    configuration of workers that replace others. SetupError for an address, an access log or a certificate
    that is of no use; `reread` raises it as well.
    """
    opened = listeners.open_all(config)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        if drop_privileges is not None:
            drop_privileges()
        _raise_file_limit()
        parent = _Parent(config, opened, before, reread or (lambda: config))
        parent.start()
        if on_ready is not None:
            on_ready()
        parent.watch()
        parent.stop()
    finally:
        while signal.sigtimedwait(_SIGNALS, 0) is not None:
            pass  # being told twice is no reason to end by the signal
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        opened.close()


class _Parent:
    """The process that holds the sockets and serves nobody."""

    def __init__(
        self,
        config: ProxyConfig,
        opened: Listeners,
        mask: set[int | signal.Signals],
        reread: Callable[[], ProxyConfig],
    ) -> None:
        self._config = config
        self._reread = reread
        self._opened = opened
        self._mask = mask
        self._pid = os.getpid()
        self._last_table = LastTable()
        self._retired: list[_Place] = []  # workers that others have taken over from
        self._say_ready: int | None = None  # the writing end of a pipe, while somebody waits for it
        self._recorder: list[_Place] = []
        self._mailbox: socket.socket | None = None
        self._private: list[socket.socket] = []
        if config.access_log is not None or opened.metrics is not None:
            self._open_recorder()
        self._workers = self._equip()

    def start(self) -> None:
        """Fork everybody; whoever comes before they are ready waits in a socket's queue."""
        gc.freeze()  # so that no collection in a worker copies the pages it shares with us
        for place in (*self._recorder, *self._workers):
            self._fork(place)

    def watch(self) -> None:
        """Replace processes that die and renew them when told so, until a signal says to stop."""
        while True:
            places = (*self._recorder, *self._workers)
            self._tend(places)
            now = time.monotonic()
            for place in places:
                if place.pid is None and place.due <= now:
                    self._fork(place)
            waiting = [place.due - now for place in places if place.pid is None]
            received = signal.sigtimedwait(_SIGNALS, max(0.0, min(waiting, default=3600.0)))
            if received is not None and received.si_signo in _STOPPING:
                return
            if received is not None and received.si_signo == signal.SIGHUP:
                self._renew()

    def _tend(self, places: Iterable[_Place]) -> None:
        """See who has ended, and when their places are to be filled again."""
        for place, status in self._reap(list(self._retired)):
            self._retired.remove(place)
            logger.info("the retired %s has ended with %d", place.name, status)
        for place, status in self._reap(places):
            lived = time.monotonic() - place.started
            place.pause = FIRST_PAUSE if lived > HEALTHY else place.pause
            logger.error(
                "%s ended with %d after %.1f s: a new one in %.1f s", place.name, status, lived, place.pause
            )
            place.postpone()

    def stop(self) -> None:
        """See them all out: first those who serve, then the one who hears from them."""
        logger.info("draining: at most %.0f s", self._config.timeouts.drain)
        visited = (*self._opened.main, *self._opened.redirect)
        listeners.refuse_new(visited)
        for listening in visited:
            listening.close()  # with ours gone, a worker's close is the listener's end
        self._end((*self._workers, *self._retired), self._config.timeouts.drain + LAST_CALL + GRACE)
        self._end(self._recorder, GRACE)

    def _renew(self) -> None:
        """Start new workers with the settings as they are now; the old ones go when those take visitors."""
        before = self._config
        try:
            self._config = before.changed_to(self._reread())
            logs_otherwise = self._config.log_settings != before.log_settings
            if logs_otherwise:
                self._open_recorder()
            fresh = self._equip()
        except SetupError as error:
            self._config = before
            logger.error("the workers stay as they are: %s", error)
            return
        logger.info("renewing %d workers", len(self._workers))
        ready, self._say_ready = os.pipe()
        for place in fresh:
            self._fork(place)
        os.close(self._say_ready)
        self._say_ready = None
        if self._all_ready(fresh, ready):
            old, self._workers = self._workers, fresh
            for place in old:
                if place.pid is not None:
                    self._retired.append(place)
                    os.kill(place.pid, signal.SIGHUP)
            if logs_otherwise:
                self._end(self._recorder, GRACE)  # what it is sent meanwhile waits for the next one
                for place in self._recorder:
                    self._fork(place)
        else:
            self._config = before
            logger.error(
                "the new workers were not ready in %.0f s or could not be started: the old ones stay", READY
            )
            self._end(fresh, GRACE)
        os.close(ready)

    def _all_ready(self, places: Sequence[_Place], ready: int) -> bool:
        """Wait until each has said so, with one byte; one that ends, or a signal to stop, ends the wait."""
        if any(place.pid is None for place in places):  # it could not even be forked
            return False
        missing = len(places)
        deadline = time.monotonic() + READY
        while missing and time.monotonic() < deadline:
            if select.select([ready], [], [], READY_POLL)[0]:
                missing -= len(os.read(ready, missing))
            if self._reap(places) or not signal.sigpending().isdisjoint(_STOPPING):
                return False
        return not missing

    # What they are made for.

    def _equip(self) -> list[_Place]:
        """A place for each worker, with certificates as they are now. CertificateError."""
        config, opened = self._config, self._opened
        context = None
        if config.certificates is not None:
            from codius_proxy import tls  # a host without TLS need not load it

            sys.unraisablehook = tls.hush_strange_names
            certificates = tls.Certificates(config.certificates)
            context = certificates.context
            for name in (config.zone, f"*.{config.zone}"):
                if name not in certificates.names:
                    logger.warning("no certificate in %s is for %s", config.certificates, name)
        places = []
        for number in range(config.workers):
            main = listeners.share(opened.main, number, config.workers)
            redirect = listeners.share(opened.redirect, number, config.workers)
            equipment = Equipment(main, redirect, context, self._mailbox, self._last_table)
            kept = [*main, *redirect, *([self._mailbox] if self._mailbox is not None else [])]
            places.append(_Place(f"worker {number}", partial(self._work, equipment), kept))
        return places

    def _open_recorder(self) -> None:
        """A place for it, where there is none yet. LogError."""
        if self._config.access_log is not None:
            _open_log(self._config.access_log, self._config).close()  # one that cannot be written stops us
        if self._recorder:
            return
        scrapes = self._opened.metrics
        sending, receiving = outbox.pair()
        self._mailbox = sending
        self._private = [sending, receiving]
        kept = [receiving, *([scrapes] if scrapes is not None else [])]

        async def record() -> None:
            stop = asyncio.Event()
            # Who signals all processes of a name (pkill) does not mean its sums: SIGHUP changes nothing here.
            self._listen_to({signal.SIGTERM: stop, signal.SIGHUP: asyncio.Event()})
            config = self._config
            log = _open_log(config.access_log, config) if config.access_log is not None else None
            await recorder.serve(Recorder(log), receiving, scrapes, stop)

        self._recorder = [_Place("the recorder", record, kept)]

    async def _work(self, equipment: Equipment) -> None:
        ready, last_call = asyncio.Event(), asyncio.Event()
        stop, retire = asyncio.Event(), asyncio.Event()
        self._listen_to({signal.SIGTERM: last_call, signal.SIGHUP: retire})

        async def say_ready() -> None:
            await ready.wait()
            if self._say_ready is not None:
                os.write(self._say_ready, b"!")
                os.close(self._say_ready)

        async def take_the_last() -> None:
            await last_call.wait()
            await asyncio.sleep(LAST_CALL)
            stop.set()

        aside = [
            asyncio.create_task(say_ready(), name="say ready"),
            asyncio.create_task(take_the_last(), name="take the last"),
        ]
        try:
            await worker.serve(self._config, equipment, ready, stop, retire)
        finally:
            for task in aside:
                task.cancel()
            await asyncio.gather(*aside, return_exceptions=True)

    def _listen_to(self, events: dict[signal.Signals, asyncio.Event]) -> None:
        loop = asyncio.get_running_loop()
        for number, event in events.items():
            loop.add_signal_handler(number, event.set)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)  # one that came meanwhile is delivered now

    # Their beginning and end.

    def _fork(self, place: _Place) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # the machine has too many processes, or too little memory
            logger.error("%s cannot be started: %s: again in %.1f s", place.name, error.strerror, place.pause)
            place.postpone()
            return
        if pid == 0:
            # A copy left open would keep another worker's listener alive after it stopped listening.
            for other in (*self._opened.all(), *self._private):
                if other not in place.keeps:
                    other.close()
            self._be(place)
        place.pid = pid
        place.started = time.monotonic()
        logger.info("%s is process %d", place.name, pid)

    def _be(self, place: _Place) -> NoReturn:
        """The life of a child; never returns into the parent's code."""
        code = 1
        try:
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() == self._pid:  # else it died before it could be watched
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the parent decides
                with asyncio.Runner(loop_factory=FrontLoop) as runner:
                    runner.run(place.life())
            code = 0
        except BaseException:
            logger.exception("%s failed", place.name)
        finally:
            logging.shutdown()
            os._exit(code)

    def _end(self, places: Sequence[_Place], within: float) -> None:
        """SIGTERM, time to drain, then SIGKILL."""
        for place in places:
            if place.pid is not None:
                os.kill(place.pid, signal.SIGTERM)
        deadline = time.monotonic() + within
        while any(place.pid is not None for place in places):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            signal.sigtimedwait((signal.SIGCHLD,), left)
            self._reap(places)
        for place in places:
            if place.pid is not None:
                logger.error("%s did not end in time: killed", place.name)
                os.kill(place.pid, signal.SIGKILL)
                os.waitpid(place.pid, 0)

    def _reap(self, places: Iterable[_Place]) -> list[tuple[_Place, int]]:
        """The places whose process has ended, with its exit code; signals merge, so each is asked."""
        ended = []
        for place in places:
            if place.pid is not None:
                pid, status = os.waitpid(place.pid, os.WNOHANG)
                if pid:
                    place.pid = None
                    ended.append((place, os.waitstatus_to_exitcode(status)))
        return ended


def _open_log(path: Path, config: ProxyConfig) -> LogFile:
    try:
        return LogFile(path, max_bytes=config.access_log_bytes)
    except OSError as error:
        raise LogError(f"cannot write the access log {path}: {error.strerror}") from error


def _raise_file_limit() -> None:
    """Two files per visitor: take what the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
