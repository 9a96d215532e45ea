"""From a packet to its answer: the order in which a question is judged, without I/O."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import Final

from codius_dns import query as reader
from codius_dns import wire
from codius_dns.cookies import RENEW_AGE, Cookies
from codius_dns.errors import DnsStartError, ZoneError
from codius_dns.metrics import COUNTED, SIZE, Drop, slot_of, slot_of_drop
from codius_dns.names import HASH_LABEL, Name, is_hash_in_any_case, parse_name, to_text
from codius_dns.nodes import Kept, Node
from codius_dns.query import HEADER_SIZE, Query
from codius_dns.records import (
    BADVERS,
    BARE,
    CLASS_CH,
    CLASS_IN,
    FORMERR,
    MAX_SERIAL,
    NO_SUCH_CLASS,
    NOTIMP,
    Answer,
    Qtype,
    Rcode,
    Record,
    Text,
)
from codius_dns.table import Table
from codius_dns.zone import Zone

logger = logging.getLogger(__name__)
query_logger = logging.getLogger("codius_dns.queries")

MAX_LOGGED_FAULTS: Final = 10  # tracebacks in a process's life: whoever found the packet will send it again
MAX_LOGGED_PACKET: Final = 512  # bytes of it
MAX_KEPT: Final = 4096
"""Whole replies kept for `quick`, of 1232 bytes at most: kinds of question times kinds of name, not names."""
MAX_NSID: Final = 64  # bytes: it goes into answers over UDP
IDENTITY_TTL: Final = 0  # seconds: it is asked for to learn who answers just now

_AFTER_HASH: Final = HEADER_SIZE + 1 + HASH_LABEL  # bytes, where a hash name goes on with the zone's
_TYPE_AND_CLASS: Final = 4  # bytes after a question's name
_ANY_OTHER: Final = b"\0\0"  # stands for all types that a node has no answer of its own to
_SIZES: Final = tuple(bytes((size,)) for size in range(256))


class Transport(Enum):
    """How a question came, which decides how long its answer may be."""

    UDP = "udp"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class Identity:
    """What is told of the machine: nothing, unless its operator gave it a name (RFC 5001, RFC 4892)."""

    nsid: bytes = b""

    def __post_init__(self) -> None:
        if len(self.nsid) > MAX_NSID:
            raise DnsStartError(f"a name of {len(self.nsid)} bytes for this machine: {MAX_NSID} are possible")

    def chaos(self) -> Mapping[Name, Answer]:
        """The answers of class CHAOS; who asks for versions looks for holes, and is refused."""
        if not self.nsid:
            return {}
        record = Record(None, IDENTITY_TTL, Text(self.nsid))
        answer = Answer(Rcode.NOERROR, (record,), rclass=CLASS_CH)
        return {parse_name(name): answer for name in ("id.server", "hostname.bind")}


class Responder:
    """The zones' voice: one packet in, at most one packet out."""

    def __init__(
        self,
        zones: Sequence[Zone],
        texts: Mapping[str, Sequence[bytes]] | None = None,
        *,
        identity: Identity | None = None,
        cookies: Cookies | None = None,
        log_queries: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.counts = [0] * SIZE  # by metrics.slot_of
        self._zones = tuple(zones)
        self._identity = identity or Identity()
        self._chaos = self._identity.chaos()
        self._cookies = cookies or Cookies()
        self._log_queries = log_queries
        self._clock = clock
        self._faults = 0
        self._serial = 0
        self._texts: Mapping[str, Sequence[bytes]] = {}
        self._serve(texts or {}, 0)

    def publish_texts(self, texts: Mapping[str, Sequence[bytes]], serial: int | None = None) -> None:
        """Serve these TXT values by name, and no others, from the next packet on.

        `serial` is the zones' from now on, if it is larger than theirs; without one it rises by one.
        """
        if serial is None:
            base = max(self._serial, *(zone.serial for zone in self._zones))
            serial = base if texts == self._texts else min(base + 1, MAX_SERIAL)
        self._serve(texts, serial)

    def publish_zones(self, zones: Sequence[Zone]) -> None:
        """Serve these zones, and no others, from the next packet on; after a ZoneError all is as it was."""
        before, self._zones = self._zones, tuple(zones)
        try:
            self._serve(self._texts, self._serial)
        except ZoneError:
            self._zones = before
            raise

    def _serve(self, texts: Mapping[str, Sequence[bytes]], serial: int) -> None:
        self._table = Table(self._zones, texts, serial)
        self._texts = dict(texts)
        self._serial = serial
        self._renderer = wire.Renderer()
        self._pods: dict[bytes, Kept] = {}  # replies for hash names, by all but the id and the hash
        self._keeping: list[dict[bytes, Kept]] = []  # where each reply kept is

    def quick(self, packet: bytes) -> bytes | None:
        """The answer over UDP to a question like one that `respond` answered before; None when there is none.

        Two questions are alike when they differ in no byte besides the id and the name, and the names have
        one length and one node: then their answers differ in nothing else either. So this looks at nothing
        but the name.
        """
        try:
            if packet[HEADER_SIZE] == HASH_LABEL:
                kept = self._pods.get(packet[2:HEADER_SIZE] + packet[_AFTER_HASH:])
                if kept is not None and is_hash_in_any_case(packet, HEADER_SIZE + 1) is not None:
                    head, end, rest, slot = kept
                    self.counts[slot] += 1
                    return packet[:2] + head + packet[HEADER_SIZE:end] + rest
            end = packet.find(0, HEADER_SIZE) + 1
            node = self._table.locate(packet[HEADER_SIZE:end].lower())
            alike = _SIZES[end - HEADER_SIZE] + packet[2:HEADER_SIZE]
            kept = node.kept.get(alike + packet[end:])
            if kept is None and _is_any_other(node, packet[end : end + 2]):
                kept = node.kept.get(alike + _ANY_OTHER + packet[end + 2 :])
        except (IndexError, ValueError):
            return None  # no name: `respond` has a proper answer to that
        if kept is None:
            return None
        head, end, rest, slot = kept
        self.counts[slot] += 1
        return packet[:2] + head + packet[HEADER_SIZE:end] + rest

    def respond(self, packet: bytes, *, transport: Transport, asker: bytes = b"") -> bytes | None:
        """The answer, or None for a packet that deserves none. Never raises.

        `asker` is the packed address of who asks; a cookie counts for that address alone.
        """
        if not reader.is_question(packet):
            self.drop(Drop.RESPONSE if len(packet) >= HEADER_SIZE else Drop.SHORT)
            return None
        try:
            query = reader.parse_query(packet)
            return self._answer(query, packet, transport, asker)
        except Exception:
            self._faults += 1
            self.drop(Drop.FAULT)
            if self._faults <= MAX_LOGGED_FAULTS:
                logger.exception("no answer to the packet %s", packet[:MAX_LOGGED_PACKET].hex())
            return wire.render_header_only(packet, Rcode.SERVFAIL)

    def truncate(self, packet: bytes) -> bytes | None:
        """What an asker over its limit gets instead of an answer: no more than it sent."""
        if not reader.is_question(packet):
            return None
        return wire.render_truncated(reader.parse_query(packet))

    def has_proof(self, packet: bytes, asker: bytes) -> bool:
        """Whether the packet carries a cookie that we gave to this address."""
        if not reader.is_question(packet):
            return False
        edns = reader.parse_query(packet).edns
        if edns is None or edns.cookie is None:
            return False
        return self._cookies.age(edns.cookie, asker, int(self._clock())) is not None

    def drop(self, reason: Drop, count: int = 1) -> None:
        """Count packets that got no answer."""
        self.counts[slot_of_drop(reason)] += count

    def _answer(self, query: Query, packet: bytes, transport: Transport, asker: bytes) -> bytes:
        answer = self._decide(query)
        options, proven = self._options(query, asker)
        if transport is Transport.UDP:
            limit = reader.udp_limit(query, len(packet), proven=proven)
        else:
            limit = reader.MAX_TCP
        reply = self._renderer.render(query, answer, limit, options)
        slot = slot_of(transport.value, query.qtype, answer.rcode)
        self.counts[slot] += 1
        if self._log_queries:
            _log(query, answer, transport, asker)
        elif transport is Transport.UDP and _is_plain(query):
            self._keep(query, packet, reply, slot)
        return reply

    def _decide(self, query: Query) -> Answer:
        if query.opcode != reader.OPCODE_QUERY:
            return NOTIMP
        if not query.well_formed:
            return FORMERR
        if query.edns is not None and query.edns.version > 0:
            return BADVERS
        if not query.question:
            return BARE
        if query.qclass == CLASS_CH:
            found = self._chaos.get(query.name) if query.qtype == Qtype.TXT else None
            return found or NO_SUCH_CLASS
        if query.qclass != CLASS_IN:
            return NO_SUCH_CLASS
        return self._table.find(query.name, query.qtype)

    def _options(self, query: Query, asker: bytes) -> tuple[bytes, bool]:
        """The EDNS options of the answer, and whether the asker has shown its address to be its own."""
        edns = query.edns
        if edns is None or edns.bare or edns.version > 0:
            return b"", False
        options = b""
        proven = False
        if edns.nsid and self._identity.nsid:
            options += wire.render_option(reader.OPTION_NSID, self._identity.nsid)
        if edns.cookie is not None and query.well_formed:
            now = int(self._clock())
            age = self._cookies.age(edns.cookie, asker, now)
            proven = age is not None
            fresh = age is not None and age < RENEW_AGE
            cookie = edns.cookie if fresh else self._cookies.make(edns.cookie, asker, now)
            options += wire.render_option(reader.OPTION_COOKIE, cookie)
        return options, proven

    def _keep(self, query: Query, packet: bytes, reply: bytes, slot: int) -> None:
        """Remember a reply for all questions like this one."""
        if len(self._keeping) >= MAX_KEPT:
            # Somebody asks oddly on purpose: begin again, and what is asked for often is soon back.
            for replies in self._keeping:
                replies.clear()
            self._keeping.clear()
        name_end = HEADER_SIZE + len(query.name)
        end = name_end + _TYPE_AND_CLASS
        kept = (reply[2:HEADER_SIZE], end, reply[end:], slot)
        node = self._table.locate(query.name)
        asked = packet[name_end:]
        if _is_any_other(node, asked[:2]):
            asked = _ANY_OTHER + asked[2:]
        node.kept[_SIZES[len(query.name)] + packet[2:HEADER_SIZE] + asked] = kept
        self._keeping.append(node.kept)
        # The commonest of all by a way of their own, in plain letters: others would be too many kinds.
        if node is self._table.pods and asked[:2] != _ANY_OTHER and packet[_AFTER_HASH:name_end].islower():
            self._pods[packet[2:HEADER_SIZE] + packet[_AFTER_HASH:]] = kept
            self._keeping.append(self._pods)


def _log(query: Query, answer: Answer, transport: Transport, asker: bytes) -> None:
    """One line for one question; a stranger's name is written so that it can end no line."""
    name = to_text(query.name) if query.question else "-"
    who = ip_address(asker) if asker else "-"
    query_logger.info("%s %s %s TYPE%d %s", who, transport.value, name, query.qtype, answer.rcode.name)


def _is_any_other(node: Node, qtype: bytes) -> bool:
    """Whether this type is answered and counted with all those that nothing here is done for."""
    number = int.from_bytes(qtype)
    return number not in node.answers and number not in COUNTED


def _is_plain(query: Query) -> bool:
    """Whether the answer follows from the node and from bytes many questions share: no cookie, no wish."""
    return (
        query.well_formed
        and query.qclass != CLASS_CH  # told apart by names that are no nodes
        and query.opcode == reader.OPCODE_QUERY
        and query.question != b""
        and (query.edns is None or query.edns.bare)
    )
