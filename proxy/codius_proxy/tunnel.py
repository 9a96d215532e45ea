"""Upgraded connections: bytes that mean nothing to us, passed both ways until both sides have ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from codius_proxy.channel import Channel, Endpoint
from codius_proxy.upstream import TargetConnection

if TYPE_CHECKING:
    from codius_proxy.site import Site


class Tunnel:
    """A visitor and a target that agreed on a protocol of their own; a visitor to the site."""

    __slots__ = ("_closing", "_finished", "_site", "_target", "deadline", "target_side", "visitor_side")

    resting = False

    def __init__(self, site: Site, target: TargetConnection, finished: Callable[[Tunnel], None]) -> None:
        """`finished` is told once, when the visitor's side is lost."""
        self._site = site
        self._target = target
        self._finished = finished
        self._closing = False
        self.deadline = 0.0
        self.visitor_side = _Side(self, self._visitor_lost)
        self.target_side = _Side(self, self._target_lost)
        self.visitor_side.other = self.target_side
        self.target_side.other = self.visitor_side

    def open(
        self, visitor: Channel, from_visitor: bytes, from_target: bytes, *, eof: bool, blocked: bool
    ) -> None:
        """Take over both connections and what came on them already; `blocked`: the visitor reads slowly."""
        self.visitor_side.channel = visitor
        self.target_side.channel = self._target.hand_over(self.target_side)
        visitor.hand_to(self.visitor_side)
        self.moved()
        if blocked:
            self.visitor_side.pause_writing()
        if from_target:
            self.target_side.data_received(from_target)
        if from_visitor:
            self.visitor_side.data_received(from_visitor)
        if eof:
            self.visitor_side.eof_received()

    def moved(self) -> None:
        """Bytes passed, or cannot: how long it may last until the next ones."""
        timeouts = self._site.timeouts
        waiting = self._closing or self.visitor_side.blocked or self.target_side.blocked
        self.deadline = self._site.now + (timeouts.body if waiting else timeouts.tunnel)

    def part(self) -> None:
        """One side is about to end: it has the time of a body for it."""
        self._closing = True
        self.moved()

    # What the site tells us.

    def expired(self) -> None:
        """Nothing passed for too long; but a side may be slow and still take what waits for it."""
        enough = self._site.config.limits.progress
        # Both are looked at, whatever the first says.
        if self.visitor_side.progressed(enough) | self.target_side.progressed(enough):
            self.moved()
        else:
            self.abort()

    def drain(self) -> None:
        """It ends when its own sides end it, or with the drain's deadline."""

    def abort(self) -> None:
        for side in (self.visitor_side, self.target_side):
            if side.blocked:
                side.channel.reset()  # the kernel need not hold what it does not read
            else:
                side.channel.abort()

    def _visitor_lost(self, error: Exception | None) -> None:
        self._finished(self)
        self._target.end(cleanly=error is None)

    def _target_lost(self, error: Exception | None) -> None:
        self._target.connection_lost(error)
        self.part()
        if error is None:
            self.visitor_side.channel.close()
        else:
            self.visitor_side.channel.reset()


class _Side(Endpoint):
    """One connection of a tunnel: what comes on it goes out on the other one."""

    __slots__ = ("_lost", "_tunnel", "_unsent", "blocked", "channel", "eof", "other", "passed")

    other: _Side
    channel: Channel

    def __init__(self, tunnel: Tunnel, lost: Callable[[Exception | None], None]) -> None:
        self._tunnel = tunnel
        self._lost = lost
        self.blocked = False  # does not take bytes as fast as they come
        self.eof = False
        self.passed = 0  # bytes that came
        self._unsent = 0  # when it was blocked, or last looked at

    def progressed(self, enough: int) -> bool:
        """Whether it took so many bytes of what waits for it since the last look."""
        before, self._unsent = self._unsent, self.channel.count_unsent()
        return 0 < self._unsent <= before - enough

    def data_received(self, data: bytes) -> None:
        self.passed += len(data)
        self.other.channel.write(data)
        self._tunnel.moved()

    def eof_received(self) -> bool:
        """Half-close is kept: one side may end long before the other, RFC 9110 section 9.3.6."""
        self.eof = True
        if not self.other.channel.closing:
            if self.other.eof or not self.other.channel.half_closable:
                self.other.channel.close()  # under TLS both directions end together
                self._tunnel.part()
            else:
                self.other.channel.write_eof()
        return not self.other.eof and self.channel.half_closable

    def pause_writing(self) -> None:
        self.blocked = True
        self._unsent = self.channel.count_unsent()
        if not self.other.channel.closing:
            self.other.channel.pause_reading()
        self._tunnel.moved()

    def resume_writing(self) -> None:
        self.blocked = False
        if not self.other.channel.closing:
            self.other.channel.resume_reading()
        self._tunnel.moved()

    def writing_failed(self) -> bool:
        """Its last words are passed on: WebSockets say why they end, and not all wait for an answer."""
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(error)
