"""The target side: one connection to a pod or to the host's API."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from codius_proxy.channel import Channel, Endpoint
from codius_proxy.fields import HttpError
from codius_proxy.response import ResponseHead
from codius_proxy.response_reader import ResponseReader

if TYPE_CHECKING:
    from codius_proxy.pool import Lane, Pool

logger = logging.getLogger(__name__)


class Fault(Enum):
    """How a target failed its visitor."""

    REFUSED = "nothing takes connections there"
    LIMITED = "this host has no connection left for it"
    TIMEOUT = "it did not take the connection in time"
    LOST = "the connection ended before the answer did"
    GARBAGE = "what it answered is not HTTP"


@dataclass(frozen=True, slots=True)
class Failure:
    """A fault with its details; `untouched` when not one byte of an answer had come."""

    fault: Fault
    detail: str
    untouched: bool = False


class Asker:
    """Who a target's answer is for: an exchange."""

    __slots__ = ()

    def interim(self, head: ResponseHead) -> None: ...
    def response_started(self, head: ResponseHead, data: bytes, done: bool) -> None: ...
    def response_body(self, data: bytes, done: bool) -> None: ...
    def response_failed(self, failure: Failure) -> None: ...
    def upgraded(self, head: ResponseHead, data: bytes) -> None: ...
    def target_blocked_changed(self, blocked: bool) -> None: ...


class _State(Enum):
    IDLE = "nothing was asked"
    HEAD = "waiting for the head of an answer"
    BODY = "an answer's body is coming"
    DONE = "the answer is complete"
    CLOSED = "over, or no longer ours"


# An enum's member costs 60 ns to look up in Python 3.11.
_IDLE: Final = _State.IDLE
_HEAD: Final = _State.HEAD
_BODY: Final = _State.BODY
_DONE: Final = _State.DONE
_CLOSED: Final = _State.CLOSED


class TargetConnection(Endpoint):
    """One connection to a target; serves one exchange at a time."""

    __slots__ = (
        "_asker",
        "_channel",
        "_held",
        "_pool",
        "_queued",
        "_reader",
        "_reading",
        "_received",
        "_state",
        "idle_since",
        "lane",
        "reused",
    )  # fmt: skip

    def __init__(self, pool: Pool, lane: Lane) -> None:
        self.lane = lane
        self.reused = False
        self.idle_since = 0.0
        self._pool = pool
        self._reader = ResponseReader()
        self._channel: Channel | None = None
        self._asker: Asker | None = None
        self._state = _IDLE
        self._held = False  # the visitor is slower than the target
        self._queued = False  # the rest of what came has to wait for its turn
        self._reading = True
        self._received = False

    @property
    def usable(self) -> bool:
        """Whether a request may be sent: its end may have been seen and not yet been reported."""
        return self._state is _IDLE and self._channel is not None and not self._channel.closing

    # What the exchange asks for.

    def start(
        self, asker: Asker, payload: bytes, *, method: bytes, upgrade: bytes | None, decode: bool
    ) -> None:
        """Send a request's head and what there is of its body. `decode`: give content without chunks."""
        self._asker = asker
        self._received = False
        self._reader.begin(method, upgrade, decode=decode)
        self.write(payload)
        self._state = _HEAD  # what came before a first write that fails is no answer, RFC 9112 section 9.2

    def write(self, data: bytes) -> None:
        if self._channel is not None and not self._channel.closing:
            self._channel.write(data)

    def hold(self, held: bool) -> None:
        """Stop or go on reading: the visitor is slower than the target."""
        self._held = held
        self._regulate()

    def release(self) -> None:
        """The exchange is over on both sides: keep the connection when nothing speaks against it."""
        self._asker = None
        channel = self._channel
        # Bytes may wait where a target answered early: it may have no mind to read them.
        if self._state is _DONE and self._reader.clean and channel is not None and not channel.waiting:
            self._state = _IDLE
            self.reused = True
            if self._held:
                self.hold(False)
            if not channel.closing:
                self._pool.put(self)
                return
        self.abort()

    def hand_over(self, endpoint: Endpoint) -> Channel:
        """Give the connection to `endpoint`, which tells us when it is lost."""
        if self._channel is None:
            raise RuntimeError("only somebody who has just heard from it may take it over")
        self._asker = None
        self._state = _CLOSED
        self._channel.hand_to(endpoint)
        self.hold(False)
        return self._channel

    def end(self, *, cleanly: bool) -> None:
        """The end of what it was handed over for; cleanly: after what was written has been sent."""
        if self._channel is None:
            return
        if cleanly:
            self._pool.closing(self)
            self._channel.close()
        else:
            self._channel.abort()

    def abort(self) -> None:
        """End now: nobody wants the rest."""
        self._asker = None
        self._state = _CLOSED
        if self._channel is not None:
            self._channel.abort()

    def break_off(self) -> None:
        """End now, and let whoever waits for the rest know."""
        if self._channel is not None:
            self._channel.abort()

    # What the event loop tells us.

    def connection_made(self, channel: Channel) -> None:
        self._channel = channel
        if self._state is _CLOSED:  # nobody waits for it any more
            self._channel.abort()
        else:
            self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        state, asker = self._state, self._asker
        reader = self._reader
        try:
            if state is _HEAD and asker is not None:
                self._received = True
                reader.receive(data)
                self._read_head(asker)
            elif state is _BODY:
                reader.receive(data)
                self._read_body()
            elif state is _IDLE:
                # Nobody asked: whatever this is, it must not become the answer to the next request.
                logger.info("dropped a connection to %s: it spoke unasked", self.lane.destination)
                self.abort()
            else:
                reader.clean = False
        except HttpError as error:
            self._refuse(error)

    def eof_received(self) -> bool:
        if self._state is _BODY and self._reader.end():
            self._state = _DONE
            if self._asker is not None:
                self._asker.response_body(b"", True)
        self.break_off()  # whatever is still to be sent: no answer to it can come
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.lost(self)
        state, asker = self._state, self._asker
        self._state, self._asker = _CLOSED, None
        if asker is not None and state in (_HEAD, _BODY):
            what = "before it answered" if state is _HEAD else "in the middle of its answer"
            how = "closed the connection" if error is None else "reset the connection"
            untouched = state is _HEAD and not self._received
            asker.response_failed(Failure(Fault.LOST, f"It {how} {what}.", untouched))

    def pause_writing(self) -> None:
        if self._asker is not None:
            self._asker.target_blocked_changed(True)

    def resume_writing(self) -> None:
        if self._asker is not None:
            self._asker.target_blocked_changed(False)

    def writing_failed(self) -> bool:
        """It may have answered early and closed: the request's rest is given up, not its answer."""
        self._reader.clean = False
        return self._state is _HEAD or self._state is _BODY

    def _read_head(self, asker: Asker) -> None:
        reader = self._reader
        while (head := reader.next_head()) is not None:
            if head.status >= 200:
                data = reader.read_body()
                self._state = _DONE if reader.done else _BODY
                asker.response_started(head, data, reader.done)
                if reader.waiting:
                    self._queue()
                return
            if head.status == 101:
                asker.upgraded(head, reader.waiting)
                return
            asker.interim(head)

    def _read_body(self) -> None:
        reader, asker = self._reader, self._asker
        data = reader.read_body()
        if reader.done:
            self._state = _DONE
        if asker is not None and (data or reader.done):
            asker.response_body(data, reader.done)
        if reader.waiting:
            self._queue()

    def _queue(self) -> None:
        """There is more to read than one turn of the event loop may take: nothing comes in before it."""
        if self._state is _BODY:
            self._queued = True
            self._regulate()
            self._pool.turns.wait(self._take_turn)

    def _take_turn(self) -> None:
        self._queued = False
        if self._state is not _BODY:
            return
        try:
            self._read_body()
        except HttpError as error:
            self._refuse(error)
        except Exception:
            self.break_off()  # a mistake of ours is the end of this connection only, as in its channel
            raise
        self._regulate()

    def _regulate(self) -> None:
        """Read only what somebody can take."""
        channel = self._channel
        read = not (self._held or self._queued)
        if read is self._reading or channel is None or channel.closing:
            return
        self._reading = read
        if read:
            channel.resume_reading()
        else:
            channel.pause_reading()

    def _refuse(self, error: HttpError) -> None:
        """What it says is not HTTP."""
        asker = self._asker
        self.abort()
        if asker is not None:
            asker.response_failed(Failure(Fault.GARBAGE, error.reason))
