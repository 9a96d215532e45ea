"""A worker's side of the records: an append for each finished request, a message now and then."""

from __future__ import annotations

import asyncio
import errno
import logging
import marshal
import os
import socket
import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from codius_proxy import access_log
from codius_proxy.metrics import Sums, sum_up
from codius_proxy.visit import Visit

logger = logging.getLogger(__name__)

BATCH: Final = 64  # requests counted and worded at once: few enough to be in the CPU's caches still
POSTED: Final = 8  # batches of a message, if it is not sent earlier: some 170 kB
MAX_LINES: Final = 256 * 1024  # bytes of lines in one message; long targets go in more of them
MAX_MESSAGE: Final = 384 * 1024  # bytes; with the sums of its batches, which are less than the lines
MAX_KEPT: Final = 64  # batches kept while the recorder is behind, 1.5 MB mostly, 16 MiB at the worst
SEND_BUFFER: Final = 1024 * 1024  # bytes asked for between workers and recorder; the kernel may give less
LAST_WORDS: Final = 1.0  # seconds for a recorder that is behind to take what a worker says at its end
FORMAT: Final = 2  # of marshal: the last one that does not look for objects it has seen

_LATER: Final = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))  # no room now; there will be

Batch: TypeAlias = tuple[
    int,  # number of requests
    Sums,
    bytes,  # their lines in the log
]


class Message(NamedTuple):
    """What a worker tells, as marshal writes it; the lines are behind it as they are, nobody copies them."""

    worker: int  # process id
    connections: int  # open now
    accepted: int  # connections since the last message
    turned_away: dict[str, int]  # connections ended without an answer since then, by reason
    dropped: int  # requests since then
    requests: int  # that were logged and summed up
    sums: list[Sums]
    size: int  # bytes of their lines


def pair() -> tuple[socket.socket, socket.socket]:
    """The workers' end and the recorder's: whole messages, in order, none lost once it was taken."""
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    sending.setblocking(False)
    receiving.setblocking(False)
    return sending, receiving


def unpack(data: memoryview) -> tuple[Message, memoryview]:
    """A message and the lines that came with it."""
    message = Message(*marshal.loads(data))  # noqa: S302 - our own
    return message, data[len(data) - message.size :]


class Outbox:
    """An `Observer` that counts, words the log's lines and posts both."""

    def __init__(self, sending: socket.socket, worker: str) -> None:
        """`worker` is the first part of the ids of its requests."""
        self.connections: Callable[[], int] = lambda: 0  # counts those open now
        self._worker = worker
        self._sending = sending
        self._visits: list[Visit] = []
        self._batches: list[Batch] = []  # which a recorder that is behind has not taken
        self._accepted = 0  # connections, since the last message
        self._turned_away: dict[str, int] = {}
        self._dropped = 0
        self._told = 0  # the number of connections of the last message

    def visited(self, visit: Visit) -> None:
        self._visits.append(visit)
        if len(self._visits) == BATCH:
            self._gather()
            if len(self._batches) >= POSTED:
                self._post()

    def connected(self) -> None:
        self._accepted += 1

    def turned_away(self, reason: str) -> None:
        self._turned_away[reason] = self._turned_away.get(reason, 0) + 1

    def flush(self) -> None:
        """Send what there is; what the recorder has no room for waits, the oldest being dropped first."""
        if self._visits:
            self._gather()
        if self._batches or self._news or self._told != self.connections():
            self._post()

    async def aclose(self) -> None:
        """Send the rest; no request is left out because the recorder was busy at that moment."""
        deadline = asyncio.get_running_loop().time() + LAST_WORDS
        self.flush()
        while self._batches and await self._has_room(deadline):
            self.flush()

    async def _has_room(self, deadline: float) -> bool:
        """Whether the recorder takes something more before `deadline`, in seconds of the loop's clock."""
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        loop.add_writer(self._sending, room.set)
        try:
            async with asyncio.timeout_at(deadline):
                await room.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_writer(self._sending)
        return room.is_set()

    @property
    def _news(self) -> bool:
        return bool(self._accepted or self._dropped or self._turned_away)

    def _gather(self) -> None:
        visits, self._visits = self._visits, []
        # The clocks may have been set since: the wall's time is asked each time.
        self._pack(visits, time.time() - time.monotonic())

    def _pack(self, visits: list[Visit], offset: float) -> None:
        count = len(visits)
        lines = access_log.render(visits, self._worker, offset)
        if len(lines) > MAX_LINES and count > 1:
            self._pack(visits[: count // 2], offset)
            self._pack(visits[count // 2 :], offset)
        else:
            self._batches.append((count, sum_up(visits, offset), lines))

    def _post(self) -> None:
        """As many messages as the recorder has room for, at least one."""
        batches = self._batches
        while True:
            taken = _fill(batches)
            if not self._send(batches[:taken]):
                break
            del batches[:taken]
            if not batches:
                return
        excess = len(batches) - MAX_KEPT
        if excess > 0:
            self._dropped += sum(batch[0] for batch in batches[:excess])
            del batches[:excess]

    def _send(self, batches: list[Batch]) -> bool:
        """Whether they need not be kept any longer."""
        connections = self.connections()
        lines = [batch[2] for batch in batches]
        count = sum([batch[0] for batch in batches])
        message = Message(
            worker=os.getpid(),
            connections=connections,
            accepted=self._accepted,
            turned_away=self._turned_away,
            dropped=self._dropped,
            requests=count,
            sums=[batch[1] for batch in batches],
            size=sum(map(len, lines)),
        )
        try:
            self._sending.sendmsg([marshal.dumps(tuple(message), FORMAT), *lines])
        except OSError as error:
            if error.errno in _LATER:
                return False
            logger.warning("the recorder did not take %d requests: %s", count, error)
            self._dropped += count
            return True
        self._accepted = self._dropped = 0
        self._turned_away = {}
        self._told = connections
        return True


def _fill(batches: list[Batch]) -> int:
    """How many of the batches, the first ones, go into one message."""
    size = 0
    for taken, (_, _, lines) in enumerate(batches[:POSTED]):
        size += len(lines)
        if size > MAX_LINES:
            return max(1, taken)
    return min(len(batches), POSTED)
