"""One request on its way to a target, and the answer on its way back."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic, time
from typing import TYPE_CHECKING, Final

from codius_proxy.chunked import LAST_CHUNK, encode_chunk
from codius_proxy.identity import build_fields
from codius_proxy.pages import Refusal, http_date
from codius_proxy.pool import Lane, explain
from codius_proxy.refusals import busy, last_hop, not_secure
from codius_proxy.request import RequestHead, render_request
from codius_proxy.response import CHUNKED, UNTIL_CLOSE, ResponseHead, render_response
from codius_proxy.routes import Api, Route
from codius_proxy.tunnel import Tunnel
from codius_proxy.upstream import Asker, Failure, Fault, TargetConnection
from codius_proxy.visit import End, Visit

if TYPE_CHECKING:
    from codius_proxy.connection import VisitorConnection

logger = logging.getLogger(__name__)

MAX_DRAIN: Final = 256 * 1024  # bytes of an unwanted body that are read to keep a connection
JOINED: Final = 32 * 1024  # bytes up to which a head and its body are copied together: one buffer, one write
FRESH: Final = 1.0  # seconds; a request that cannot be repeated uses no connection idle for longer
_WITH_CONTENT: Final = frozenset((b"POST", b"PUT", b"PATCH"))  # methods whose definition gives it a meaning


class Exchange(Asker):
    """A request that was read, from the look-up of its route until its answer is complete."""

    __slots__ = (
        "_connecting", "_continued", "_encode", "_lane", "_reason", "_received", "_retried",
        "_route", "_sent", "_site", "_started_at", "_status", "_target", "_visitor",
        "held", "identity", "number", "request", "started", "target_blocked",
    )  # fmt: skip

    def __init__(self, visitor: VisitorConnection, request: RequestHead) -> None:
        self._visitor = visitor
        self._site = visitor.site
        self._started_at = monotonic()
        self.number = visitor.site.next_number()
        identity = visitor.identity
        if identity.trusted:  # a proxy of the operator's says itself whom this request is from
            identity = visitor.site.trust.believe(identity, request.claims)
        self.identity = identity
        self.request = request
        self.held = b""  # the body's first bytes, while the target is not connected
        self._route: Route | None = None
        self._lane: Lane | None = None  # where it is counted
        self._target: TargetConnection | None = None
        self.target_blocked = False
        self._connecting: asyncio.Task[None] | None = None
        self._retried = False
        self._continued = False  # 100 Continue was passed on
        self.started = False  # an answer's head was sent
        self._encode = False  # the answer's end is marked by chunks of ours
        self._status = 0
        self._received = 0
        self._sent = 0
        self._reason = ""

    # What the visitor's connection asks for.

    def start(self, body: bytes) -> None:
        """Send the request on its way, with what has come of its body."""
        site = self._site
        self._received = len(body)
        found = site.route(self.request.host)
        if self._visitor.entrance.redirects and not isinstance(found, Refusal):
            found = site.redirect(self.request)
        if isinstance(found, Refusal):
            self._answer(found)
            return
        if self.request.last_hop:
            self._answer(last_hop())
            return
        if self.request.secure and self.identity.scheme != "https":
            self._answer(not_secure())
            return
        self._route = found
        lane = site.pool.enter(found.destination, site.limit(found.destination))
        if lane is None:
            self._answer(busy(found.name))
            return
        self._lane = lane
        unused_for = site.timeouts.pooled if self.request.repeatable else FRESH
        target = site.pool.take(lane, unused_for=unused_for)
        if target is not None:
            self._send(target, body)
        else:
            self.held = body
            self._connect(lane)

    def body(self, data: bytes) -> None:
        """More of the request's body."""
        self._received += len(data)
        if self._target is None:
            self.held += data
        elif data:
            self._target.write(data)

    def hold(self, held: bool) -> None:
        """The visitor does not, or does again, read as fast as we write."""
        if self._target is not None:
            self._target.hold(held)

    def patience(self) -> float:
        """How long whoever is awaited now may take, in seconds."""
        timeouts = self._site.timeouts
        visitor = self._visitor
        if self._target is None:
            return timeouts.connect
        if visitor.blocked:
            return timeouts.body
        if visitor.eof:
            return timeouts.half_close
        if self.started:
            return timeouts.stream
        if not visitor.reader.body_done or self.target_blocked:
            return timeouts.body
        if self._route is not None and isinstance(self._route.destination, Api):
            return timeouts.api_first_byte
        return timeouts.first_byte

    def expired(self) -> None:
        """`patience` is over."""
        visitor = self._visitor
        if self._target is None:
            self._fail(Failure(Fault.TIMEOUT, "It did not take the connection in time."))
        elif visitor.eof:
            visitor.cut()
        elif self.started:
            visitor.cut(End.TARGET_LOST, "stalled")
        elif visitor.reader.body_done or self.target_blocked:
            what = "It took no more of the request" if self.target_blocked else "It sent no answer"
            self._fail(Failure(Fault.TIMEOUT, f"{what} for too long."))
        else:
            visitor.refuse(Refusal(408, "The request's body stopped coming.", "Send it without long pauses."))

    def drainable(self) -> bool:
        """Whether the rest of the request's body is worth reading to keep the connection."""
        reader = self._visitor.reader
        if reader.chunked or reader.left > MAX_DRAIN:
            return False
        # Told no, a visitor that asked may send the body or not: nobody can know.
        return self._continued or not self.request.expect

    def abandon(self, end: End, *, status: int = 0, sent: int = 0, reason: str = "") -> None:
        """Nobody waits for the answer any more, or somebody else has given one: `status`."""
        self._status = self._status or status
        self._sent += sent
        self._reason = self._reason or reason
        target = self._detach()
        if target is not None:
            target.abort()
        self._report(end)

    # What the target tells us.

    def interim(self, head: ResponseHead) -> None:
        if self.request.minor:  # HTTP/1.0 knows no 1xx
            self._continued = self._continued or head.status == 100
            self._visitor.write(render_response(head, close=False, chunked=False))
        self._visitor.touch()

    def response_started(self, head: ResponseHead, data: bytes, done: bool) -> None:
        visitor = self._visitor
        self.started = True
        self._status = head.status
        if self._site.draining or not (visitor.reader.body_done or self.drainable()):
            visitor.close_after = True
        chunked = head.body is CHUNKED
        if head.body is UNTIL_CLOSE or chunked:
            if self.request.minor:
                self._encode = not chunked
                chunked = True
            else:
                visitor.ends_by_close = True
                chunked = False
        date = b""
        if not head.dated:  # RFC 9110 section 6.6.1: whoever passes it on has to
            date = f"\r\nDate: {http_date(int(time()))}".encode("ascii")
        policy = visitor.policy(self.identity)
        out = render_response(head, close=visitor.close_after, chunked=chunked, date=date, policy=policy)
        if self._encode:
            data = encode_chunk(data) + (LAST_CHUNK if done else b"")
        self._sent += len(out) + len(data)
        if len(data) <= JOINED:
            visitor.write(out + data)
        else:
            visitor.write(out)
            visitor.write(data)
        if done:
            self._finish(End.ANSWERED)
        else:
            visitor.touch()

    def response_body(self, data: bytes, done: bool) -> None:
        if self._encode:
            data = encode_chunk(data) + (LAST_CHUNK if done else b"")
        if data:
            self._sent += len(data)
            self._visitor.write(data)
        if done:
            self._finish(End.ANSWERED)
        else:
            self._visitor.touch()

    def response_failed(self, failure: Failure) -> None:
        target, lane = self._target, self._lane
        # The target may have ended a kept-alive connection at the moment we used it, RFC 9112 section 9.3.1.
        if (
            failure.untouched and target is not None and target.reused
            and self.request.repeatable and not self._retried and lane is not None
        ):  # fmt: skip
            self._retried = True
            self._target = None
            self._connect(lane)
            return
        self._fail(failure)

    def upgraded(self, head: ResponseHead, data: bytes) -> None:
        target = self._target
        if target is None:
            return
        self.started = True
        self._status = head.status
        out = render_response(head, close=False, chunked=False)
        self._sent += len(out)
        self._visitor.write(out)
        tunnel = Tunnel(self._site, target, self._tunnel_ended)
        self._visitor.become(tunnel, data)

    def target_blocked_changed(self, blocked: bool) -> None:
        self.target_blocked = blocked
        self._visitor.touch()
        self._visitor.regulate()

    # On the way.

    def _connect(self, lane: Lane) -> None:
        self._connecting = asyncio.create_task(self._connect_now(lane), name=f"connect to {lane.destination}")
        self._visitor.touch()

    async def _connect_now(self, lane: Lane) -> None:
        try:
            target = await self._site.pool.connect(lane)
        except OSError as error:
            self._connecting = None
            logger.info("no connection to %s: %s", lane.destination, error)
            self._fail(explain(error))
        else:
            self._connecting = None
            held, self.held = self.held, b""
            self._send(target, held)
            self._visitor.regulate()

    def _send(self, target: TargetConnection, body: bytes) -> None:
        visitor, request = self._visitor, self.request
        self._target = target
        self.target_blocked = False
        if self.identity is visitor.identity:
            forwarding = visitor.forwarding(request.host)
        else:
            forwarding = build_fields(self.identity.render(), request.host)
        head = render_request(request, forwarding)
        target.start(
            self,
            head + body if len(body) <= JOINED else head,
            method=request.method,
            upgrade=request.upgrade,
            decode=request.minor == 0,
        )
        if len(body) > JOINED:
            target.write(body)
        if visitor.blocked:
            target.hold(True)
        visitor.touch()

    def _answer(self, refusal: Refusal) -> None:
        """Our own answer instead of a target's."""
        visitor = self._visitor
        if not (visitor.reader.body_done or self.drainable()):
            visitor.close_after = True
        self.started = True
        self._status = refusal.status
        self._reason = refusal.label
        self._sent += visitor.write_page(refusal, self.request, self.number, self.identity)
        self._finish(End.REFUSED)

    def _fail(self, failure: Failure) -> None:
        """The target did not do its part."""
        if self.started:
            # A second head, or an end, would be a lie.
            self._visitor.cut(End.TARGET_LOST, "broken_off")
            return
        target = self._detach()
        if target is not None:
            target.abort()
        if self._route is not None:
            self._answer(self._site.explain(self._route.destination, failure))

    def _finish(self, end: End) -> None:
        """The answer is complete."""
        target = self._detach()
        if target is not None:
            if self._visitor.reader.body_done and not self._overlookable():
                target.release()
            else:
                target.abort()
        self._report(end)
        self._visitor.answered()

    def _overlookable(self) -> bool:
        """Whether a target might take the request's body for its next request, RFC 9110 section 9.3.1."""
        request = self.request
        return (request.chunked or bool(request.length)) and request.method not in _WITH_CONTENT

    def _detach(self) -> TargetConnection | None:
        """Give up the target and the attempt to get one; what there was of it is the caller's."""
        target, self._target = self._target, None
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._lane is not None:
            self._site.pool.leave(self._lane)
            self._lane = None
        return target

    def _tunnel_ended(self, tunnel: Tunnel) -> None:
        self._target = None
        self._detach()
        self._sent += tunnel.target_side.passed
        self._received += tunnel.visitor_side.passed
        self._visitor.tunnel_ended(tunnel)
        self._report(End.UPGRADED)

    def _report(self, end: End) -> None:
        started = self._started_at
        self._site.observer.visited(
            Visit(
                self.identity,
                self.request,
                self._route.name if self._route is not None else "",
                self._status,
                self._received,
                self._sent,
                started,
                monotonic() - started,
                self.number,
                end,
                self._reason,
            )
        )
