"""Questions over UDP: a batch in, a batch of answers out, each from the address it was asked at."""

from __future__ import annotations

import asyncio
import socket
import time
from ipaddress import ip_address
from typing import Final

from codius_dns.limits import RateLimit, Verdict, network_of
from codius_dns.metrics import Drop
from codius_dns.mmsg import BATCH, Batch, Other, Quick
from codius_dns.responder import Responder, Transport

BATCHES: Final = 4  # of packets per turn of the loop; then TCP and signals have theirs
BUSY: Final = 4  # packets in one batch that let more be expected at once
PAUSE: Final = 50e-6
"""Seconds to let more come when it is busy. A turn of the loop costs as much as four answers, and a batch as
much as two: many small batches would be most of the work. Nobody notices a pause that short, and without a
flood there is none."""
_PROOF: Final = b"\0\x0a\0\x18"  # how a cookie option begins that has a server's part: 10, 24 bytes


class UdpService:
    """One UDP socket being answered. Takes over the socket."""

    def __init__(self, sock: socket.socket, responder: Responder, limit: RateLimit | None = None) -> None:
        self._sock = sock
        self._responder = responder
        self._limit = limit
        bound = ip_address(sock.getsockname()[0].partition("%")[0])
        # On a wildcard socket the kernel would choose the source by route, and the asker would not know it.
        self._batch = Batch(sock, from_destination=bound.is_unspecified)

    def start(self) -> None:
        on_readable = self._answer_all if self._limit is None else self._answer_within_limit
        asyncio.get_running_loop().add_reader(self._sock.fileno(), on_readable)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()

    def _answer_all(self) -> None:
        self._exchange(self._responder.quick, self._respond)

    def _answer_within_limit(self) -> None:
        assert self._limit is not None  # noqa: S101 - start() saw to it
        self._limit.turn(asyncio.get_running_loop().time())
        self._exchange(_not_yet, self._respond_within_limit)

    def _exchange(self, quick: Quick, other: Other) -> None:
        for _ in range(BATCHES):
            count, unsent = self._batch.exchange(quick, other)
            if unsent:
                self._responder.drop(Drop.UNSENT, unsent)
            if count < BUSY:
                return
            if count < BATCH:
                time.sleep(PAUSE)

    def _respond(self, packet: bytes, index: int) -> bytes | None:
        return self._responder.respond(packet, transport=Transport.UDP, asker=self._batch.asker(index))

    def _respond_within_limit(self, packet: bytes, index: int) -> bytes | None:
        assert self._limit is not None  # noqa: S101 - start() saw to it
        responder = self._responder
        asker = self._batch.asker(index)
        verdict = self._limit.judge(network_of(asker))
        if verdict is Verdict.SEND:
            return responder.quick(packet) or responder.respond(packet, transport=Transport.UDP, asker=asker)
        if _PROOF in packet and responder.has_proof(packet, asker):
            return responder.respond(packet, transport=Transport.UDP, asker=asker)
        if verdict is Verdict.TRUNCATE:
            responder.drop(Drop.SLIP)
            return responder.truncate(packet)
        responder.drop(Drop.RATE)
        return None


def _not_yet(packet: bytes) -> None:
    """Stands where `quick` does: first it has to be seen whether there may be an answer at all."""
