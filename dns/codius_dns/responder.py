"""From a packet to its answer: the order in which a question is judged, without I/O."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final

from codius_dns import wire
from codius_dns.zone import BADVERS, FORMERR, NOTIMP, REFUSED, Answer, Rcode, Table, Zone

logger = logging.getLogger(__name__)

MAX_LOGGED_FAULTS: Final = 10  # tracebacks in a process's life: whoever found the packet will send it again


class Transport(Enum):
    """How a question came, which decides how long its answer may be."""

    UDP = "udp"
    TCP = "tcp"


class Responder:
    """The zone's voice: one packet in, at most one packet out."""

    def __init__(self, zone: Zone, texts: Mapping[str, Sequence[bytes]] | None = None) -> None:
        self._zone = zone
        self._faults = 0
        self.publish_texts(texts or {})

    def publish_texts(self, texts: Mapping[str, Sequence[bytes]]) -> None:
        """Serve these TXT values by name, and no others, from the next packet on."""
        table = Table(self._zone, texts)
        self._table = table
        self._renderer = wire.Renderer(table.origin)

    def respond(self, packet: bytes, *, transport: Transport) -> bytes | None:
        """The answer, or None for a packet that deserves none. Never raises."""
        if not wire.is_question(packet):
            return None
        try:
            query = wire.parse_query(packet)
            limit = wire.udp_limit(query) if transport is Transport.UDP else wire.MAX_TCP
            return self._renderer.render(query, self._decide(query), limit)
        except Exception:
            self._faults += 1
            if self._faults <= MAX_LOGGED_FAULTS:
                logger.exception("no answer to the packet %s", packet[: wire.MAX_UDP_PLAIN].hex())
            return wire.render_header_only(packet, Rcode.SERVFAIL)

    def _decide(self, query: wire.Query) -> Answer:
        if query.opcode != wire.OPCODE_QUERY:
            return NOTIMP
        if not query.well_formed:
            return FORMERR
        if query.edns is not None and query.edns.version > 0:
            return BADVERS
        if query.qclass != wire.CLASS_IN:
            return REFUSED
        return self._table.find(query.name, query.qtype)
