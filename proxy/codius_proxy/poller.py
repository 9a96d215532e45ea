"""epoll(7) for asyncio, with a short way for the bytes of connections.

asyncio makes a handle of every event, puts it into a queue and runs it in the next turn of its loop. For a
proxy, which does little per event, that is half of the work. Whoever attaches a handler here is called as
soon as the kernel has spoken; timers, tasks, signals and everything else of asyncio go on as ever.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable, Mapping
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from time import monotonic
from typing import Any, Final, TypeAlias, cast

MAX_EVENTS: Final = 256  # taken from the kernel at once: more only cost memory
READABLE: Final = 1  # EPOLLIN
WRITABLE: Final = 4  # EPOLLOUT
BROKEN: Final = 8 | 16  # EPOLLERR, EPOLLHUP: reported whether asked for or not

Handler: TypeAlias = Callable[[int], None]
"""Called with the events of its file; it catches what goes wrong in it."""


class Poller:
    """What `selectors.BaseSelector` asks for, and handlers that are called without asyncio."""

    def __init__(self) -> None:
        self.interrupted = False  # asyncio has got something to do meanwhile
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._keys: dict[int, SelectorKey] = {}
        self._handlers: dict[int, Handler] = {}

    # The short way.

    def attach(self, file: int, handler: Handler, events: int) -> None:
        """Call `handler` whenever one of the events is there (level-triggered)."""
        self._epoll.register(file, events)
        self._handlers[file] = handler

    def adjust(self, file: int, events: int) -> None:
        self._epoll.modify(file, events)

    def detach(self, file: int) -> None:
        """Before the file is closed. What the kernel has said already is not passed on any more."""
        del self._handlers[file]
        self._epoll.unregister(file)

    # asyncio's way.

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """What asyncio waits for; until then, or until it has something else to do, handlers are called."""
        handlers = self._handlers
        poll = self._poll
        ready: list[tuple[SelectorKey, int]] = []
        # Rounded up: a timer must not find that it is a little early.
        wait = -1.0 if timeout is None else max(0.0, math.ceil(timeout * 1e3) * 1e-3)
        deadline = monotonic() + wait if wait > 0.0 else 0.0
        self.interrupted = False
        while True:
            events: list[tuple[int, int]] = poll(wait, MAX_EVENTS)
            for file, mask in events:
                handler = handlers.get(file)
                if handler is not None:
                    handler(mask)
                elif (key := self._keys.get(file)) is not None:
                    _add(ready, key, mask)
            if ready or self.interrupted or not events or wait == 0.0:
                return ready
            if wait > 0.0:
                wait = deadline - monotonic()
                if wait <= 0.0:
                    return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        file = _number(fileobj)
        if file in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        self._epoll.register(file, _mask(events))
        key = SelectorKey(fileobj, file, events, data)
        self._keys[file] = key
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        old = self.get_key(fileobj)
        if events != old.events:
            try:
                self._epoll.modify(old.fd, _mask(events))
            except OSError:  # closed meanwhile: its number may soon be another one's
                del self._keys[old.fd]
                raise
        key = SelectorKey(old.fileobj, old.fd, events, data)
        self._keys[old.fd] = key
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        key = self.get_key(fileobj)
        del self._keys[key.fd]
        try:
            self._epoll.unregister(key.fd)
        except OSError:  # closed before, and forgotten by the kernel
            return key
        return key

    def get_map(self) -> Mapping[int, SelectorKey]:
        return self._keys

    def get_key(self, fileobj: Any) -> SelectorKey:
        file = _number(fileobj)
        if file < 0:  # closed: its number is known to us only
            for key in self._keys.values():
                if key.fileobj is fileobj:
                    return key
        return self._keys[file]

    def close(self) -> None:
        self._epoll.close()
        self._keys.clear()
        self._handlers.clear()


def _add(ready: list[tuple[SelectorKey, int]], key: SelectorKey, mask: int) -> None:
    """As `selectors.EpollSelector` reads the kernel: whoever waits hears of errors, whatever for it waits."""
    found = (EVENT_WRITE if mask & ~READABLE else 0) | (EVENT_READ if mask & ~WRITABLE else 0)
    if found & key.events:
        ready.append((key, found & key.events))


def _number(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else cast(int, fileobj.fileno())


def _mask(events: int) -> int:
    return (READABLE if events & EVENT_READ else 0) | (WRITABLE if events & EVENT_WRITE else 0)
