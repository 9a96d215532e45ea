"""The visitor side: one connection, and its requests one after the other.

HEAD -> EXCHANGE -> HEAD ...       a request, its answer, the next request
        EXCHANGE -> DRAIN -> HEAD  answered before the request's short body was complete
        EXCHANGE -> GIVEN_AWAY     upgraded: a tunnel has it now
any  -> LINGER -> CLOSED           answered and not to go on; unread bytes must not reset
                                   the answer away, RFC 9112 section 9.6
"""

from __future__ import annotations

from enum import Enum
from time import monotonic
from typing import Final

from codius_proxy.admission import origin_of
from codius_proxy.channel import Channel, Endpoint
from codius_proxy.exchange import MAX_DRAIN, Exchange
from codius_proxy.fields import HttpError
from codius_proxy.identity import Entrance, Identity, build_fields
from codius_proxy.pages import Refusal
from codius_proxy.refusals import host_crowded
from codius_proxy.request import RequestHead
from codius_proxy.request_reader import RequestReader
from codius_proxy.site import Site
from codius_proxy.tunnel import Tunnel
from codius_proxy.visit import End, Visit

MAX_AHEAD: Final = 64 * 1024  # bytes held of what a visitor sends before its turn, plus one read
LARGE: Final = 4 * 1024  # bytes of requests; of more each waits for its turn, and others do not wait for all
FEW: Final = 8  # requests answered at once, some 10 µs each; of more each waits for its turn, however small


class _State(Enum):
    HEAD = "waiting for a request"
    EXCHANGE = "request and answer are passing"
    DRAIN = "answered; the request's body still comes"
    GIVEN_AWAY = "upgraded"
    LINGER = "answered for the last time"
    CLOSED = "over"


# An enum's member costs 60 ns to look up in Python 3.11.
_HEAD: Final = _State.HEAD
_EXCHANGE: Final = _State.EXCHANGE
_DRAIN: Final = _State.DRAIN
_GIVEN_AWAY: Final = _State.GIVEN_AWAY
_LINGER: Final = _State.LINGER
_CLOSED: Final = _State.CLOSED


class VisitorConnection(Endpoint):
    """One visitor's connection; forwards one request at a time, whatever is pipelined behind it."""

    __slots__ = (
        "_advancing",
        "_channel",
        "_client",
        "_exchange",
        "_forwarding",
        "_named",
        "_origin",
        "_queued",
        "_reading",
        "_rendered",
        "_state",
        "_swallowed",
        "_trickled",
        "_unsent",
        "_unwelcome",
        "blocked",
        "close_after",
        "deadline",
        "ends_by_close",
        "entrance",
        "eof",
        "identity",
        "reader",
        "site",
    )  # fmt: skip

    def __init__(self, site: Site, entrance: Entrance, client: str | None = None) -> None:
        """`client` is the address a trusted balancer gave, where it is not the connection's own."""
        self.site = site
        self.entrance = entrance
        self._client = client
        self.reader = RequestReader(site.config.bounds)
        self.identity: Identity
        self._rendered: bytes  # the part of `forwarding` that is the same for every host
        self._named: bytes | None = None  # the last request's host, and `forwarding` for it
        self._forwarding = b""
        self.deadline = 0.0
        self.eof = False  # the visitor shut its side
        self.blocked = False  # the visitor does not read as fast as we write
        self.close_after = False  # no request after this one
        self.ends_by_close = False  # the answer's end is the connection's end
        self._channel: Channel
        self._state = _HEAD
        self._exchange: Exchange | None = None
        self._origin: str | None = None  # whom it is counted for
        self._advancing = False
        self._queued = False  # what waits has to wait for its turn
        self._reading = True
        self._swallowed = 0
        self._trickled = 0  # bytes of a body since it last counted as moving
        self._unsent = 0
        self._unwelcome: Refusal | None = None  # why it may not stay; it has not been told yet

    # What the event loop tells us.

    def connection_made(self, channel: Channel) -> None:
        self._channel = channel
        site = self.site
        address = self._client if self._client is not None else channel.peer[0]
        accepted = site.add(self)
        site.observer.connected()
        self.wait(site.timeouts.idle)
        refusal = self._introduce(site.trust.identify(address, self.entrance.scheme))
        if not accepted:
            if site.admission.crowded:
                site.turn_away("crowded")
                self._channel.abort()
                return
            refusal = host_crowded()
        if refusal is not None:  # told when it has said in which form: a page for people
            self._unwelcome = refusal
            self.wait(site.timeouts.linger)

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _HEAD:
            reader = self.reader
            fresh = not reader.waiting
            reader.receive(data)
            self._advance()
            if fresh and self._state is _HEAD and reader.waiting:
                timeouts = self.site.timeouts
                self.wait(timeouts.head if self._unwelcome is None else timeouts.linger)
        elif state is _EXCHANGE or state is _DRAIN:
            self.reader.receive(data)
            if self.reader.body_done:
                self.regulate()
            else:
                self._more_body(len(data))
        # What comes after the last answer is thrown away, for as long as `linger` says.

    def eof_received(self) -> bool:
        self.eof = True
        state = self._state
        if state is _EXCHANGE and self.reader.body_done:
            # It may only have shut its side, or be gone: the answer gets a little time to come.
            self.close_after = self.close_after or not self.reader.waiting
            self.touch()
            return self._channel.half_closable  # a TLS connection ends as a whole
        if state is _HEAD and self.blocked and self._channel.half_closable:
            return True  # pipelined requests wait for it to read
        if state is _HEAD:
            self._close()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._unwelcome is not None:
            self.site.turn_away(self._unwelcome.label)
        self._state = _CLOSED
        self._leave()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon(End.VISITOR_LOST)

    def pause_writing(self) -> None:
        self.blocked = True
        self._unsent = self._channel.count_unsent()
        if self._exchange is not None:
            self._exchange.hold(True)
        self.touch()

    def resume_writing(self) -> None:
        self.blocked = False
        if self._exchange is not None:
            self._exchange.hold(False)
        self.touch()
        self._advance()

    # What the site tells us.

    @property
    def resting(self) -> bool:
        return self._state is _HEAD and not self.reader.waiting and not self.blocked

    def expired(self) -> None:
        """The deadline has passed: whoever made us wait is to blame."""
        state = self._state
        if self.blocked or self._channel.closing or state in (_LINGER, _CLOSED):
            unsent = self._channel.count_unsent()
            if 0 < unsent <= self._unsent - self.site.config.limits.progress:  # slow, but reading
                self._unsent = unsent
                self.wait(self.site.timeouts.body)
            else:
                self.cut()
        elif self._exchange is not None:
            self._exchange.expired()
        elif state is _DRAIN:
            self._linger()
        elif self._unwelcome is not None:
            self.refuse(self._unwelcome)
        elif self.reader.waiting:
            self.refuse(Refusal(408, "The request's head did not come in time.", "Send it at once."))
        else:
            self._close()

    def drain(self) -> None:
        """No new requests from now on."""
        if self._state is _HEAD and not self.reader.waiting:
            self._close()
        else:
            self.close_after = True

    def abort(self) -> None:
        self.cut()

    # What the exchange tells us.

    def write(self, data: bytes) -> None:
        self._channel.write(data)

    def policy(self, identity: Identity) -> bytes:
        """The line that has browsers come back by https: never over what is not, RFC 6797 section 7.2."""
        return self.entrance.policy if identity.scheme == "https" else b""

    def write_page(
        self, refusal: Refusal, request: RequestHead | None, number: int, identity: Identity
    ) -> int:
        """An answer of our own to a request with this number; how many bytes it has."""
        page = self.site.render_page(
            refusal,
            number,
            html=request is not None and request.html,
            head_only=request is not None and request.method == b"HEAD",
            close=self.close_after,
            policy=self.policy(identity),
        )
        self._channel.write(page)
        return len(page)

    def answered(self) -> None:
        """The answer is out; what becomes of the request's rest and the connection."""
        exchange, self._exchange = self._exchange, None
        if self.site.draining:
            self.close_after = True
        if self.reader.body_done:
            if not self.close_after:
                self._next()
            elif not self.reader.waiting and exchange is not None and not exchange.request.keep_alive:
                self._close()  # it will not send more: nothing unread can reset the answer away
            else:
                self._linger()
        elif self.close_after:
            self._linger()
        else:
            self._state = _DRAIN
            self._swallowed = 0
            self.wait(self.site.timeouts.body)
            self.regulate()

    def become(self, tunnel: Tunnel, from_target: bytes) -> None:
        """Nothing here is HTTP from now on."""
        self._state = _GIVEN_AWAY
        self._exchange = None
        self.site.discard(self)
        self.site.add(tunnel)
        waiting, self.reader.waiting = self.reader.waiting, b""
        if not self._reading:
            self._channel.resume_reading()
        tunnel.open(self._channel, waiting, from_target, eof=self.eof, blocked=self.blocked)

    def tunnel_ended(self, tunnel: Tunnel) -> None:
        self.site.discard(tunnel)
        self._leave()

    def cut(self, end: End = End.VISITOR_LOST, reason: str = "") -> None:
        """End now. Where the end would pass for the answer's, a reset says that it is none.

        It also frees what the kernel holds for a visitor that does not read, for minutes otherwise.
        """
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon(end, reason=reason)
        self._state = _CLOSED
        if self.ends_by_close or self.blocked:
            self._channel.reset()
        else:
            self._channel.abort()

    def refuse(self, refusal: Refusal, request: RequestHead | None = None) -> None:
        """Answer a request, of which there may be no head, and nothing after it."""
        self.close_after = True
        self._unwelcome = None
        exchange, self._exchange = self._exchange, None
        status, label = refusal.status, refusal.label
        if exchange is not None:
            sent = self.write_page(refusal, exchange.request, exchange.number, exchange.identity)
            exchange.abandon(End.REFUSED, status=status, sent=sent, reason=label)
        else:
            number = self.site.next_number()
            sent = self.write_page(refusal, request, number, self.identity)
            visit = Visit(
                self.identity, request, "", status, 0, sent, monotonic(), 0.0, number, End.REFUSED, label
            )
            self.site.observer.visited(visit)
        self._linger()

    def forwarding(self, host: bytes) -> bytes:
        """What a pod is told about this visitor; most ask for one host only."""
        if host != self._named:
            self._named = host
            self._forwarding = build_fields(self._rendered, host)
        return self._forwarding

    def touch(self) -> None:
        """Something moved: whoever is awaited next gets its full time."""
        if self._exchange is not None:
            self.wait(self._exchange.patience())

    def regulate(self) -> None:
        """Read from the visitor only what somebody can take."""
        state = self._state
        if state is _EXCHANGE and self._exchange is not None:
            held = len(self.reader.waiting) + len(self._exchange.held)
            read = not self._queued and held <= MAX_AHEAD and not self._exchange.target_blocked
        elif state is _HEAD:
            read = not self._queued and (not self.blocked or len(self.reader.waiting) <= MAX_AHEAD)
        else:
            read = True
        if read is self._reading or self._channel.closing:
            return
        self._reading = read
        if read:
            self._channel.resume_reading()
        else:
            self._channel.pause_reading()

    def wait(self, seconds: float) -> None:
        self.deadline = self.site.now + seconds

    # Who it is.

    def _introduce(self, identity: Identity) -> Refusal | None:
        """It is known whose connection this is; why it may not stay, if so."""
        self.identity = identity
        self._rendered = identity.render()
        if identity.trusted:  # a proxy of the operator's stands for many
            return None
        origin = origin_of(identity.address)
        if self.site.admission.enter(origin):
            self._origin = origin
            return None
        return Refusal(
            429,
            f"There are too many connections from {origin} already.",
            "Close some of them, or use one for several requests.",
            "flood",
        )

    def _leave(self) -> None:
        self.site.discard(self)
        if self._origin is not None:
            self.site.admission.leave(self._origin)
            self._origin = None

    # Requests.

    def _advance(self, turn: bool = False) -> None:
        """Begin as many of the waiting requests as can be answered at once, or the one that cannot.

        While there are more bytes than are `LARGE` it is one in each turn, and never more than a `FEW`.
        """
        if self._advancing or self._queued:
            return
        self._advancing = True
        begun = 0
        try:
            while self._state is _HEAD and self.reader.waiting and not self.blocked:
                if (len(self.reader.waiting) > LARGE or begun >= FEW) and not turn:
                    self._queue()
                    break
                turn = False
                begun += 1
                if not self._begin():
                    break
        finally:
            self._advancing = False
        if self.eof and self._state is _HEAD and not self.blocked and not self._queued:
            self._close()  # what is left can never become a request
        if self.reader.waiting or not self._reading:
            self._queue_body()
            self.regulate()

    def _queue(self) -> None:
        self._queued = True
        self.site.turns.wait(self._take_turn)

    def _queue_body(self) -> None:
        """Have the rest of what has come of a request's body wait for its turn, if there is any."""
        if self._state is _EXCHANGE and self.reader.waiting and not self.reader.body_done:
            self._queue()

    def _take_turn(self) -> None:
        self._queued = False
        try:
            if self._state is _HEAD:
                self._advance(turn=True)
            elif self._state is _EXCHANGE:
                self.touch()  # it was for us that it had to wait
                self._more_body(0)
        except Exception:
            self.cut()  # a mistake of ours is the end of this connection only, as in its channel
            raise

    def _begin(self) -> bool:
        """Read one request and send it on its way; False when its head is not complete."""
        reader = self.reader
        body = b""
        try:
            request = reader.next_head()
            if request is None:
                return False
            if self._unwelcome is not None:
                self.refuse(self._unwelcome, request)
                return False
            exchange = self._exchange = Exchange(self, request)
            if not reader.body_done:
                body = reader.read_body()
        except HttpError as error:
            self.refuse(Refusal(error.status, error.reason, _HINT))
            return False
        self.close_after = not request.keep_alive or self.site.draining
        self._state = _EXCHANGE
        if self.eof and not (reader.body_done or reader.waiting):
            self.cut()  # the rest of the body cannot come any more
            return False
        exchange.start(body)
        return True

    def _more_body(self, size: int) -> None:
        exchange = self._exchange
        try:
            body = self.reader.read_body()
        except HttpError as error:
            if exchange is None or exchange.started:
                self.cut()
            else:
                self.refuse(Refusal(error.status, error.reason, _HINT))
            return
        if exchange is not None:
            exchange.body(body)
            self._trickled += size
            enough = self.site.config.limits.progress
            if self._trickled >= enough or self.reader.body_done or exchange.started:
                self._trickled = 0
                self.touch()
            if self.eof and not (self.reader.body_done or self.reader.waiting):
                self.cut()  # as in `_begin`
                return
            self._queue_body()
            self.regulate()
            return
        self._swallowed += size
        if self.reader.body_done:
            self._next()
        elif self._swallowed > MAX_DRAIN:
            self._linger()

    def _next(self) -> None:
        self._state = _HEAD
        timeouts = self.site.timeouts
        waiting = self.reader.waiting
        self.wait(timeouts.head if waiting else timeouts.idle)
        if waiting or self.eof or not self._reading:
            self._advance()

    # Ends.

    def _linger(self) -> None:
        """Nothing more will be said; read on for a moment, so that what was said arrives."""
        if self.eof or not self._channel.half_closable:  # the end of TLS waits for the visitor's
            self._close()
        if self._channel.closing:
            return
        self._state = _LINGER
        self.reader.waiting = b""
        self._channel.write_eof()
        self.regulate()
        self._wait_for_the_rest()

    def _close(self) -> None:
        """End after what was written has been sent."""
        if self._channel.closing:
            return
        self._state = _CLOSED
        self._channel.close()
        self._wait_for_the_rest()

    def _wait_for_the_rest(self) -> None:
        self._unsent = self._channel.count_unsent()
        timeouts = self.site.timeouts
        self.wait(timeouts.body if self._channel.waiting else timeouts.linger)


_HINT: Final = "Send a well-formed HTTP/1.1 request."
