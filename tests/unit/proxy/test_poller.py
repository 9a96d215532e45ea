"""The poller under asyncio: handlers are called, asyncio is never kept waiting, and no file is mixed up."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE

import pytest

from codius_proxy.event_loop import FrontLoop, running_poller
from codius_proxy.poller import BROKEN, READABLE, WRITABLE, Poller

PATIENCE = 200_000  # calls of a handler, a second of them: whoever is not back by then would never be


@pytest.fixture
def poller() -> Iterator[Poller]:
    found = Poller()
    yield found
    found.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


class Crowd:
    """A file that is always readable, as the connections of a busy worker are together."""

    def __init__(self, poller: Poller, ours: socket.socket, theirs: socket.socket) -> None:
        self.calls = 0
        self._poller = poller
        self._file = ours.fileno()
        theirs.send(b"never read")
        poller.attach(self._file, self._handle, READABLE)
        self.patient = True

    def _handle(self, _: int) -> None:
        self.calls += 1
        if self.calls == PATIENCE:
            self.leave()
            self.patient = False

    def leave(self) -> None:
        self._poller.detach(self._file)


def run(main: Callable[[FrontLoop], object]) -> None:
    """`main` in a loop that ends when it calls `stop`."""
    loop = FrontLoop()
    try:
        loop.call_soon(main, loop)
        loop.run_forever()
    finally:
        loop.close()


def test_a_handler_is_called_until_nothing_is_left(
    poller: Poller, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = ends
    seen: list[int] = []
    poller.attach(ours.fileno(), seen.append, READABLE)
    assert poller.select(0) == []
    assert seen == []
    theirs.send(b"x")
    poller.select(0)
    poller.select(0)
    assert seen == [READABLE, READABLE]
    ours.recv(1)
    poller.select(0)
    assert len(seen) == 2


def test_a_handler_hears_of_what_it_asked_for_last_and_of_breaks(
    poller: Poller, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = ends
    seen: list[int] = []
    poller.attach(ours.fileno(), seen.append, READABLE)
    theirs.send(b"x")
    poller.adjust(ours.fileno(), WRITABLE)
    poller.select(0)
    poller.adjust(ours.fileno(), 0)
    poller.select(0)
    assert seen == [WRITABLE]
    theirs.close()
    poller.select(0)
    assert seen[1] & BROKEN
    poller.detach(ours.fileno())
    poller.select(0)
    assert len(seen) == 2
    poller.attach(ours.fileno(), seen.append, READABLE)
    poller.select(0)
    assert len(seen) == 3


def test_what_was_detached_hears_nothing_more_of_what_came_with_it(poller: Poller) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    heard: list[int] = []

    def handle(_: int) -> None:
        heard.append(1)
        for ours, _theirs in pairs:
            poller.detach(ours.fileno())

    for ours, theirs in pairs:
        poller.attach(ours.fileno(), handle, READABLE)
        theirs.send(b"x")
    poller.select(0)
    assert heard == [1]
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_a_time_out_comes_however_busy_the_handlers_are(
    poller: Poller, ends: tuple[socket.socket, socket.socket]
) -> None:
    crowd = Crowd(poller, *ends)
    assert poller.select(0.01) == []
    assert crowd.patient
    assert crowd.calls > 1  # it did wait
    before = crowd.calls
    poller.select(0)
    assert crowd.calls == before + 1


def test_without_handlers_a_time_out_comes_too(poller: Poller) -> None:
    assert poller.select(0.001) == []


def test_what_asyncio_waits_for_comes_however_busy_the_handlers_are(
    poller: Poller, ends: tuple[socket.socket, socket.socket]
) -> None:
    crowd = Crowd(poller, *ends)
    other, another = socket.socketpair()
    with other, another:
        key = poller.register(other, EVENT_READ, "data")
        another.send(b"x")
        assert poller.select(None) == [(key, EVENT_READ)]
        assert crowd.patient


def test_a_timer_fires_under_constant_load(ends: tuple[socket.socket, socket.socket]) -> None:
    crowds: list[Crowd] = []

    def main(loop: FrontLoop) -> None:
        crowds.append(Crowd(loop.poller, *ends))
        loop.call_later(0.01, loop.stop)

    run(main)
    assert crowds[0].patient


def test_another_thread_is_heard_under_constant_load(ends: tuple[socket.socket, socket.socket]) -> None:
    crowds: list[Crowd] = []

    def main(loop: FrontLoop) -> None:
        crowds.append(Crowd(loop.poller, *ends))
        threading.Thread(target=loop.call_soon_threadsafe, args=(loop.stop,)).start()

    run(main)
    assert crowds[0].patient


def test_a_signal_is_heard_under_constant_load(ends: tuple[socket.socket, socket.socket]) -> None:
    crowds: list[Crowd] = []

    def main(loop: FrontLoop) -> None:
        crowds.append(Crowd(loop.poller, *ends))
        loop.add_signal_handler(signal.SIGUSR1, loop.stop)
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1)).start()

    run(main)
    assert crowds[0].patient


@pytest.mark.parametrize("how", ["soon", "later"])
def test_what_a_handler_gives_asyncio_to_do_is_done_before_the_poller_waits(
    how: str, ends: tuple[socket.socket, socket.socket]
) -> None:
    """Nothing else happens on this loop: without the interruption it would wait forever."""
    ours, theirs = ends
    done: list[bytes] = []

    def main(loop: FrontLoop) -> None:
        def handle(_: int) -> None:
            done.append(ours.recv(10))
            if how == "soon":
                loop.call_soon(loop.stop)
            else:
                loop.call_later(0.001, loop.stop)

        loop.poller.attach(ours.fileno(), handle, READABLE)
        # Late enough that the loop is waiting, so that nothing but the handler can make it stop.
        threading.Timer(0.01, theirs.send, [b"x"]).start()

    run(main)
    assert done == [b"x"]


def test_asyncio_is_told_of_what_it_asked_for_and_of_breaks_as_that(
    poller: Poller, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = ends
    assert poller.register(ours, EVENT_READ, 1) == poller.get_key(ours) == poller.get_map()[ours.fileno()]
    assert poller.select(0) == []
    both = poller.modify(ours, EVENT_READ | EVENT_WRITE, 2)
    assert both.data == 2
    assert poller.select(0) == [(both, EVENT_WRITE)]
    theirs.send(b"x")
    assert poller.select(0) == [(both, EVENT_READ | EVENT_WRITE)]
    same = poller.modify(ours.fileno(), EVENT_READ | EVENT_WRITE, 3)
    assert poller.select(0) == [(same, EVENT_READ | EVENT_WRITE)]
    ours.recv(1)
    reading = poller.modify(ours, EVENT_READ, 4)
    assert poller.select(0) == []
    theirs.close()
    assert poller.select(0) == [(reading, EVENT_READ)]
    writing = poller.modify(ours, EVENT_WRITE, 5)
    assert poller.select(0) == [(writing, EVENT_WRITE)]
    assert poller.unregister(ours) == writing
    assert poller.select(0) == []


def test_a_break_alone_is_what_asyncio_waited_for(poller: Poller) -> None:
    reading, writing = os.pipe()
    key = poller.register(reading, EVENT_READ)
    os.close(writing)
    assert poller.select(0) == [(key, EVENT_READ)]
    poller.unregister(reading)
    os.close(reading)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    key = poller.register(writing, EVENT_WRITE)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    assert poller.select(0) == []
    os.close(reading)
    assert poller.select(0) == [(key, EVENT_WRITE)]
    poller.unregister(writing)
    os.close(writing)


def test_a_file_is_known_once(poller: Poller, ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    poller.register(ours, EVENT_READ)
    with pytest.raises(KeyError):
        poller.register(ours, EVENT_WRITE)
    with pytest.raises(FileExistsError):
        poller.attach(ours.fileno(), lambda _: None, READABLE)
    for ask in (poller.unregister, poller.get_key):
        with pytest.raises(KeyError):
            ask(theirs)
    with pytest.raises(KeyError):
        poller.modify(theirs, EVENT_READ)
    poller.unregister(ours)
    poller.attach(ours.fileno(), lambda _: None, READABLE)


def test_a_closed_file_can_be_taken_out_so_that_its_number_serves_the_next(poller: Poller) -> None:
    """asyncio would find the old key otherwise, change nothing about it and wait forever."""
    ours, theirs = socket.socketpair()
    other, another = socket.socketpair()
    number = ours.fileno()
    key = poller.register(ours, EVENT_READ)
    ours.close()
    assert poller.get_key(ours) == key
    assert poller.unregister(ours) == key
    with pytest.raises(KeyError):
        poller.get_key(ours)
    with theirs, other, another:
        os.dup2(other.fileno(), number)
        with pytest.raises(KeyError):
            poller.get_key(number)
        fresh = poller.register(number, EVENT_READ)
        another.send(b"x")
        assert poller.select(0) == [(fresh, EVENT_READ)]
        os.close(number)


def test_a_closed_file_that_is_changed_is_forgotten(poller: Poller) -> None:
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    poller.register(number, EVENT_READ)
    with theirs:
        ours.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            poller.modify(number, EVENT_WRITE)
        assert not poller.get_map()


def test_readers_and_writers_of_asyncio_come_and_go(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    heard: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        written = asyncio.Event()
        read = asyncio.Event()
        loop.add_reader(ours, read.set)
        loop.add_writer(ours, written.set)
        await written.wait()
        assert loop.remove_writer(ours)
        assert not loop.remove_writer(ours)
        theirs.send(b"x")
        await read.wait()
        replaced = asyncio.Event()
        loop.add_reader(ours, replaced.set)
        await replaced.wait()
        assert loop.remove_reader(ours)
        assert await loop.sock_recv(ours, 10) == b"x"
        waiting = asyncio.create_task(loop.sock_recv(ours, 10))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert running_poller().get_map().keys().isdisjoint({ours.fileno()})
        heard.append("all")

    with asyncio.Runner(loop_factory=FrontLoop) as runner:
        runner.run(main())
    assert heard == ["all"]


def test_a_handler_does_not_outlive_its_loop(ends: tuple[socket.socket, socket.socket]) -> None:
    loop = FrontLoop()
    loop.poller.attach(ends[0].fileno(), lambda _: None, READABLE)
    loop.close()
    assert loop.is_closed()
    with pytest.raises(ValueError, match="closed"):
        loop.poller.attach(ends[1].fileno(), lambda _: None, READABLE)


def test_other_loops_have_no_poller() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="FrontLoop"):
            running_poller()

    asyncio.run(main())
