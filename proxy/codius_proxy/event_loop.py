"""The front door's event loop: asyncio's own, on the front door's poller."""

from __future__ import annotations

import asyncio
from selectors import BaseSelector
from typing import Any, cast

from codius_proxy.poller import Poller


class FrontLoop(asyncio.SelectorEventLoop):
    """An event loop like any other; its poller calls the handlers of connections by itself."""

    def __init__(self) -> None:
        self.poller = Poller()
        super().__init__(cast(BaseSelector, self.poller))

    # Whatever asyncio is given to do, it does before the poller waits again.

    def call_soon(self, *args: Any, **kwargs: Any) -> asyncio.Handle:  # type: ignore[override]
        self.poller.interrupted = True
        return super().call_soon(*args, **kwargs)

    def call_at(self, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        self.poller.interrupted = True
        return super().call_at(*args, **kwargs)


def running_poller() -> Poller:
    """The running loop's; RuntimeError when it has none."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, FrontLoop):
        raise RuntimeError("connections need an event loop of codius_proxy.event_loop.FrontLoop")
    return loop.poller
