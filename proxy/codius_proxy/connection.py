"""The visitor side: one connection, its requests one after the other, and what flows in between.

HEAD -> CONNECT -> EXCHANGE -> HEAD ...        a request, its answer, the next request
                   EXCHANGE -> DRAIN -> HEAD   answered before the request's short body was complete
                   EXCHANGE -> TUNNEL          upgraded
any  -> LINGER -> CLOSED                       answered and not to go on; unread bytes must not reset
                                               the answer away, RFC 9112 section 9.6
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import termios
from enum import Enum
from typing import Final, cast

from codius_proxy import pages
from codius_proxy.http1 import (
    LAST_CHUNK,
    Body,
    ChunkedBody,
    HttpError,
    RequestHead,
    ResponseHead,
    encode_chunk,
    find_head_end,
    parse_request,
    render_forwarded,
    render_request,
    render_response,
)
from codius_proxy.pages import Refusal
from codius_proxy.site import Site
from codius_proxy.upstream import Api, Destination, Failure, Fault, TargetConnection, explain, reset

logger = logging.getLogger(__name__)

MAX_AHEAD: Final = 64 * 1024  # bytes held of what a visitor sends before its turn, plus one read
MAX_DRAIN: Final = 256 * 1024  # bytes of an unwanted body that are read to keep a connection
MAX_LINGER: Final = 1024 * 1024  # bytes thrown away after the last answer
JOINED: Final = 32 * 1024  # bytes up to which a head and its body are copied together: one buffer, one write
FRESH: Final = 1.0  # seconds; a request that cannot be repeated uses no connection idle for longer


class _State(Enum):
    HEAD = "waiting for a request"
    CONNECT = "waiting for the target's connection"
    EXCHANGE = "request and answer are passing"
    DRAIN = "answered; the request's body still comes"
    TUNNEL = "upgraded"
    LINGER = "answered for the last time"
    CLOSED = "over"


class VisitorConnection(asyncio.Protocol):
    """One visitor's connection; forwards one request at a time, whatever is pipelined behind it."""

    __slots__ = (
        "_advancing",
        "_ahead",
        "_blank",
        "_blocked",
        "_chunks",
        "_close_after",
        "_connecting",
        "_continued",
        "_destination",
        "_encode",
        "_ends_by_close",
        "_entered",
        "_eof",
        "_forwarded",
        "_held",
        "_left",
        "_reading",
        "_request",
        "_request_done",
        "_retried",
        "_scanned",
        "_site",
        "_started",
        "_state",
        "_swallowed",
        "_target",
        "_target_blocked",
        "_target_eof",
        "_transport",
        "_unsent",
        "deadline",
    )  # fmt: skip

    def __init__(self, site: Site) -> None:
        self._site = site
        self._transport: asyncio.Transport
        self._state = _State.HEAD
        self._ahead = b""  # received, and not yet its turn
        self._scanned = 0  # bytes of it known to hold no complete head
        self._blank = False  # an empty line before the request line was skipped
        self._advancing = False
        self._request: RequestHead | None = None
        self._request_done = True
        self._left = 0  # bytes of a request body with Content-Length still to come
        self._chunks: ChunkedBody | None = None
        self._held = b""  # a body's first bytes, while the target is not connected
        self._destination: Destination | None = None
        self._entered = False  # counted as one of the target's exchanges
        self._target: TargetConnection | None = None
        self._target_blocked = False
        self._target_eof = False
        self._connecting: asyncio.Task[None] | None = None
        self._retried = False
        self._continued = False  # 100 Continue was passed on
        self._started = False  # an answer's head was sent
        self._encode = False  # the answer's end is marked by chunks of ours
        self._ends_by_close = False  # the answer's end is the connection's end
        self._close_after = False
        self._eof = False  # the visitor shut its side
        self._blocked = False  # the visitor does not read as fast as we write
        self._reading = True
        self._swallowed = 0
        self._unsent = 0
        self.deadline = 0.0

    # What the event loop tells us.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        # A dual-stack socket shows IPv4 visitors as ::ffff:192.0.2.1.
        address = peer[0].removeprefix("::ffff:") if isinstance(peer, tuple) else "unknown"
        self._forwarded = render_forwarded(address, self._site.config.scheme)
        accepted = self._site.add(self)
        self._wait(self._site.config.timeouts.idle)
        if not accepted:
            if self._site.crowded:
                self._transport.abort()
                return
            self._answer(
                Refusal(503, "This host has all the visitors it can serve.", "Try again in a moment.")
            )

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _State.HEAD:
            if self._ahead:
                self._ahead += data
            else:
                self._ahead = data
                self._wait(self._site.config.timeouts.head)
            self._advance()
        elif state is _State.TUNNEL:
            if self._target is not None:
                self._target.write(data)
                self._wait(self._site.config.timeouts.tunnel)
        elif state is _State.LINGER:
            self._swallowed += len(data)
            if self._swallowed > MAX_LINGER:
                self._transport.abort()
        elif state is _State.CLOSED:
            return
        elif self._request_done:
            self._ahead += data
            self._regulate()
        else:
            self._more_body(data)

    def eof_received(self) -> bool:
        self._eof = True
        state = self._state
        if state is _State.TUNNEL and self._target is not None:
            self._target.write_eof()
            return not self._target_eof
        if state in (_State.CONNECT, _State.EXCHANGE) and self._request_done:
            # It may only have shut its side, or be gone: the answer gets a little time to come.
            self._close_after = self._close_after or not self._ahead
            self._touch()
            return True
        return state is _State.HEAD and self._blocked  # pipelined requests wait for it to read

    def connection_lost(self, exc: Exception | None) -> None:
        self._site.discard(self)
        tunnelled = self._state is _State.TUNNEL
        self._state = _State.CLOSED
        target = self._detach()
        if target is not None:
            if tunnelled and exc is None:
                target.close()
            else:
                target.abort()

    def pause_writing(self) -> None:
        self._blocked = True
        self._unsent = self._count_unsent()
        if self._target is not None:
            self._target.hold(True)
        self._touch()

    def resume_writing(self) -> None:
        self._blocked = False
        if self._target is not None:
            self._target.hold(False)
        self._touch()
        self._advance()

    # What the site tells us.

    def expired(self) -> None:
        """The deadline has passed: whoever made us wait is to blame."""
        state = self._state
        if self._blocked or state in (_State.LINGER, _State.CLOSED):
            unsent = self._count_unsent()
            if 0 < unsent < self._unsent:  # slow, but reading
                self._unsent = unsent
                self._wait(self._site.config.timeouts.body)
            else:
                self._cut()
        elif state is _State.HEAD:
            if self._ahead:
                self._refuse(408, "The request's head did not come in time.", "Send it at once.")
            else:
                self._close()
        elif state is _State.CONNECT:
            self._fail(Failure(Fault.TIMEOUT, "It did not take the connection in time."))
        elif state is _State.EXCHANGE and not self._started and not self._eof:
            if self._request_done or self._target_blocked:
                what = "It took no more of the request" if self._target_blocked else "It sent no answer"
                self._fail(Failure(Fault.TIMEOUT, f"{what} for too long."))
            else:
                self._refuse(408, "The request's body stopped coming.", "Send it without long pauses.")
        elif state is _State.DRAIN:
            self._linger()
        else:
            self._cut()

    def drain(self) -> None:
        """No new requests from now on."""
        if self._state is _State.HEAD and not self._ahead:
            self._close()
        else:
            self._close_after = True

    def abort(self) -> None:
        self._cut()

    # What the target tells us.

    def interim(self, head: ResponseHead) -> None:
        request = self._request
        if request is not None and request.minor:  # HTTP/1.0 knows no 1xx
            self._continued = self._continued or head.status == 100
            self._transport.write(render_response(head, close=False, chunked=False))
        self._touch()

    def response_started(self, head: ResponseHead, data: bytes, done: bool) -> None:
        request = self._request
        if request is None:
            return
        self._started = True
        if self._site.draining or not (self._request_done or self._drainable()):
            self._close_after = True
        modern = request.minor == 1
        self._encode = modern and head.body is Body.UNTIL_CLOSE
        self._ends_by_close = not modern and head.body in (Body.UNTIL_CLOSE, Body.CHUNKED)
        chunked = modern and head.body in (Body.UNTIL_CLOSE, Body.CHUNKED)
        out = render_response(head, close=self._close_after, chunked=chunked)
        if self._encode:
            data = encode_chunk(data) + (LAST_CHUNK if done else b"")
        if len(data) <= JOINED:
            self._transport.write(out + data)
        else:
            self._transport.writelines((out, data))
        if done:
            self._answered()
        else:
            self._touch()

    def response_body(self, data: bytes, done: bool) -> None:
        if self._encode:
            data = encode_chunk(data) + (LAST_CHUNK if done else b"")
        if data:
            self._transport.write(data)
        if done:
            self._answered()
        else:
            self._touch()

    def response_failed(self, failure: Failure) -> None:
        target, request = self._target, self._request
        # The target may have ended a kept-alive connection at the moment we used it.
        if (
            failure.untouched and target is not None and target.reused
            and request is not None and request.repeatable and not self._retried
        ):  # fmt: skip
            self._retried = True
            self._target = None
            self._connect()
            return
        self._fail(failure)

    def tunnel_started(self, head: ResponseHead, data: bytes) -> None:
        target = self._target
        if target is None:
            return
        self._started = True
        self._state = _State.TUNNEL
        self._transport.write(render_response(head, close=False, chunked=False) + data)
        if self._ahead:
            target.write(self._ahead)
            self._ahead = b""
        if self._eof:
            target.write_eof()
        self._wait(self._site.config.timeouts.tunnel)
        self._regulate()

    def tunnel_data(self, data: bytes) -> None:
        self._transport.write(data)
        self._wait(self._site.config.timeouts.tunnel)

    def tunnel_eof(self) -> None:
        self._target_eof = True
        if self._eof:
            target = self._detach()
            if target is not None:
                target.close()
            self._close()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def tunnel_lost(self, clean: bool) -> None:
        self._detach()
        if clean:
            self._close()
        else:
            reset(self._transport)

    def target_blocked(self, blocked: bool) -> None:
        self._target_blocked = blocked
        self._touch()
        self._regulate()

    # Requests.

    def _advance(self) -> None:
        """Begin as many of the waiting requests as can be answered at once, or the one that cannot."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._state is _State.HEAD and self._ahead and not self._blocked and self._begin():
                pass
        finally:
            self._advancing = False
        if self._eof and self._state is _State.HEAD and not self._blocked:
            self._close()  # what is left can never become a request
        self._regulate()

    def _begin(self) -> bool:
        """Read one request and send it on its way; False when its head is not complete."""
        ahead = self._ahead
        if (
            ahead.startswith(b"\r\n"[: len(ahead)]) and not self._blank
        ):  # one is allowed, RFC 9112 section 2.2
            if len(ahead) < 2:
                return False
            self._blank = True
            self._ahead = ahead = ahead[2:]
            self._scanned = 0
            if not ahead:
                return False
        try:
            end = find_head_end(ahead, self._scanned)
            if end < 0:
                self._scanned = len(ahead)
                return False
            request = parse_request(ahead[:end])
        except HttpError as error:
            self._refuse(error.status, error.reason, "Send a well-formed HTTP/1.1 request.")
            return False
        self._ahead = ahead[end + 4 :]
        self._scanned = 0
        self._blank = False
        self._request = request
        self._request_done = not request.has_body
        self._chunks = ChunkedBody() if request.chunked else None
        self._left = request.length or 0
        self._close_after = not request.keep_alive or self._site.draining
        self._started = self._continued = self._retried = False
        self._encode = self._ends_by_close = False
        self._state = _State.EXCHANGE
        if not self._request_done and self._ahead:
            data, self._ahead = self._ahead, b""
            try:
                self._held = self._read_body(data)
            except HttpError as error:
                self._refuse(error.status, error.reason, "Send a well-formed HTTP/1.1 request.")
                return False
        if self._eof and not self._request_done:
            self._cut()  # the rest of the body cannot come any more
            return False
        self._send(request)
        return True

    def _send(self, request: RequestHead) -> None:
        found = self._site.route(request.host)
        if isinstance(found, Refusal):
            self._answer(found)
            return
        if not self._site.pool.enter(found, self._site.limit(found)):
            self._answer(
                Refusal(503, "Too many requests to it are waiting already.", "Try again in a moment.")
            )
            return
        self._entered = True
        self._destination = found
        unused_for = self._site.config.timeouts.pooled if request.repeatable else FRESH
        target = self._site.pool.take(found, unused_for=unused_for)
        if target is not None:
            self._exchange(target)
        else:
            self._connect()

    def _connect(self) -> None:
        self._state = _State.CONNECT
        self._wait(self._site.config.timeouts.connect)
        self._connecting = asyncio.create_task(self._connect_now(), name=f"connect to {self._destination}")

    async def _connect_now(self) -> None:
        destination = self._destination
        if destination is None:
            return
        try:
            target = await self._site.pool.connect(destination)
        except OSError as error:
            self._connecting = None
            logger.info("no connection to %s: %s", destination, error)
            self._fail(explain(error))
        else:
            self._connecting = None
            self._exchange(target)

    def _exchange(self, target: TargetConnection) -> None:
        request = self._request
        if request is None:
            target.abort()
            return
        self._target = target
        self._state = _State.EXCHANGE
        held, self._held = self._held, b""
        head = render_request(request, self._forwarded)
        self._target_blocked = False
        target.start(
            self,
            head + held if len(held) <= JOINED else head,
            method=request.method,
            upgrade=request.upgrade,
            decode=request.minor == 0,
        )
        if len(held) > JOINED:
            target.write(held)
        if self._blocked:
            target.hold(True)
        self._touch()
        self._regulate()

    def _read_body(self, data: bytes) -> bytes:
        """What of `data` belongs to the request's body; the rest waits. HttpError when it is malformed."""
        if self._chunks is not None:
            data, self._ahead = self._chunks.feed(data)
            self._request_done = self._chunks.done
        else:
            if len(data) > self._left:
                self._ahead = data[self._left :]
                data = data[: self._left]
            self._left -= len(data)
            self._request_done = not self._left
        return data

    def _more_body(self, data: bytes) -> None:
        try:
            passed = self._read_body(data)
        except HttpError as error:
            if self._started:
                self._cut()
            else:
                self._refuse(error.status, error.reason, "Send a well-formed HTTP/1.1 request.")
            return
        if self._state is _State.DRAIN:
            self._swallowed += len(data)
            if self._request_done:
                self._next()
            elif self._swallowed > MAX_DRAIN:
                self._linger()
            return
        if self._target is None:
            self._held += passed
        else:
            if passed:
                self._target.write(passed)
            self._touch()
        self._regulate()

    # Answers.

    def _answer(self, refusal: Refusal) -> None:
        """Our own answer instead of a target's."""
        request = self._request
        if request is None or not (self._request_done or self._drainable()):
            self._close_after = True
        self._started = True
        self._transport.write(
            pages.render(
                refusal,
                html=request is not None and request.html,
                head_only=request is not None and request.method == b"HEAD",
                close=self._close_after,
            )
        )
        if request is None:
            self._linger()
        else:
            self._answered()

    def _refuse(self, status: int, reason: str, hint: str) -> None:
        """Answer a request that cannot be trusted to end where it seems to: nothing more is read from it."""
        target = self._detach()
        if target is not None:
            target.abort()
        self._close_after = True
        request = self._request if self._state is not _State.HEAD else None
        self._transport.write(
            pages.render(
                Refusal(status, reason, hint),
                html=request is not None and request.html,
                head_only=request is not None and request.method == b"HEAD",
                close=True,
            )
        )
        self._linger()

    def _fail(self, failure: Failure) -> None:
        """The target did not do its part."""
        destination = self._destination
        target = self._detach()
        if target is not None:
            target.abort()
        if self._started:
            self._cut()  # a second head, or an end, would be a lie
        elif destination is not None:
            self._answer(self._site.explain(destination, failure))

    def _answered(self) -> None:
        """The answer is out; what becomes of the target, the request's rest and the connection."""
        target = self._detach()
        if target is not None:
            if self._request_done:
                target.release()
            else:
                target.abort()
        if self._site.draining:
            self._close_after = True
        if self._request_done:
            request = self._request
            if not self._close_after:
                self._next()
            elif not self._ahead and request is not None and not request.keep_alive:
                self._close()  # it will not send more: nothing unread can reset the answer away
            else:
                self._linger()
        elif self._close_after:
            self._linger()
        else:
            self._state = _State.DRAIN
            self._swallowed = 0
            self._held = b""
            self._wait(self._site.config.timeouts.body)
            self._regulate()

    def _drainable(self) -> bool:
        """Whether the rest of the request's body is worth reading to keep the connection."""
        request = self._request
        if request is None or self._chunks is not None or self._left > MAX_DRAIN:
            return False
        # Told no, a visitor that asked may send the body or not: nobody can know.
        return self._continued or not request.expect

    def _next(self) -> None:
        self._state = _State.HEAD
        self._request = None
        self._held = b""
        timeouts = self._site.config.timeouts
        self._wait(timeouts.head if self._ahead else timeouts.idle)
        if self._ahead or self._eof or not self._reading:
            self._advance()

    # Ends.

    def _detach(self) -> TargetConnection | None:
        """Give up the target and the attempt to get one; what there was of it is the caller's."""
        target, self._target = self._target, None
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._entered and self._destination is not None:
            self._entered = False
            self._site.pool.leave(self._destination)
        self._destination = None
        self._target_blocked = False
        return target

    def _linger(self) -> None:
        """Nothing more will be said; read on for a moment, so that what was said arrives."""
        if self._eof:
            self._close()
        if self._transport.is_closing():
            return
        self._state = _State.LINGER
        self._ahead = self._held = b""
        self._swallowed = 0
        self._transport.write_eof()
        self._regulate()
        self._wait_for_the_rest()

    def _close(self) -> None:
        """End after what was written has been sent."""
        if self._transport.is_closing():
            return
        self._state = _State.CLOSED
        self._transport.close()
        self._wait_for_the_rest()

    def _cut(self) -> None:
        """End now. Where the end would pass for the answer's, a reset says that it is none."""
        target = self._detach()
        if target is not None:
            target.abort()
        self._state = _State.CLOSED
        if self._ends_by_close and self._started:
            reset(self._transport)
        else:
            self._transport.abort()

    def _wait_for_the_rest(self) -> None:
        self._unsent = self._count_unsent()
        timeouts = self._site.config.timeouts
        self._wait(timeouts.body if self._transport.get_write_buffer_size() else timeouts.linger)

    # Time and flow.

    def _wait(self, seconds: float) -> None:
        self.deadline = self._site.now + seconds

    def _touch(self) -> None:
        """Something moved: whoever is awaited next gets its full time."""
        timeouts = self._site.config.timeouts
        if self._state is _State.TUNNEL:
            self._wait(timeouts.body if self._blocked or self._target_blocked else timeouts.tunnel)
        elif self._state is _State.EXCHANGE:
            if self._blocked:
                self._wait(timeouts.body)
            elif self._eof:
                self._wait(timeouts.half_close)
            elif self._started:
                self._wait(timeouts.stream)
            elif self._request_done and not self._target_blocked:
                to_api = isinstance(self._destination, Api)
                self._wait(timeouts.api_first_byte if to_api else timeouts.first_byte)
            else:
                self._wait(timeouts.body)

    def _regulate(self) -> None:
        """Read from the visitor only what somebody can take."""
        state = self._state
        if state in (_State.CONNECT, _State.EXCHANGE, _State.HEAD):
            read = not (self._target_blocked or len(self._ahead) + len(self._held) > MAX_AHEAD)
            if state is _State.HEAD and not self._blocked:
                read = True
        elif state is _State.TUNNEL:
            read = not self._target_blocked
        else:
            read = True
        if read is self._reading or self._transport.is_closing():
            return
        self._reading = read
        if read:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _count_unsent(self) -> int:
        """Bytes written that the visitor has not acknowledged, ours and the kernel's."""
        count = self._transport.get_write_buffer_size()
        found = self._transport.get_extra_info("socket")
        if found is None or found.fileno() < 0:
            return count
        queued = array.array("i", [0])
        try:
            fcntl.ioctl(found.fileno(), termios.TIOCOUTQ, queued)
        except OSError:
            return count
        return count + queued[0]
