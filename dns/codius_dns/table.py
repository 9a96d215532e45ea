"""Every answer of the zones, made once: a name and a type in, an answer out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from codius_dns.errors import ZoneError
from codius_dns.names import (
    HASH_LABEL,
    MAX_LABEL,
    Name,
    is_hash_label,
    is_hash_name,
    is_within,
    parse_name,
    to_text,
)
from codius_dns.nodes import Node, Scope, build_nodes, parse_texts
from codius_dns.records import REFUSED, Answer, Cname, Qtype, Rcode, Record
from codius_dns.zone import MAX_RECORDS, MAX_ZONES, Zone

MAX_CHAIN: Final = 8  # aliases one after the other
_NOT_FOLLOWED: Final = frozenset({Qtype.CNAME, Qtype.ANY, Qtype.AXFR, Qtype.IXFR, Qtype.RRSIG, Qtype.NSEC})


class Table:
    """The answers of all zones. A change makes a new table, so that a look-up never sees half of one."""

    def __init__(
        self, zones: Sequence[Zone], texts: Mapping[str, Sequence[bytes]] | None = None, serial: int = 0
    ) -> None:
        """`texts` are the TXT values by name, such as `_acme-challenge.<origin>` while a challenge runs.

        `serial` is theirs; a zone says the larger of it and its own.
        """
        if not 0 < len(zones) <= MAX_ZONES:
            raise ZoneError(f"{len(zones)} zones: between 1 and {MAX_ZONES} are possible")
        if (written := sum(len(zone.records) for zone in zones)) > MAX_RECORDS:
            raise ZoneError(f"{written} static records in all zones: {MAX_RECORDS} are possible")
        origins = [parse_name(zone.origin) for zone in zones]
        for origin in origins:
            if origins.count(origin) > 1:
                raise ZoneError(f"the zone {to_text(origin)} is there twice")
        outside = dict(parse_texts(texts or {}))
        self._outside: Final = Node(REFUSED)
        self._nodes: Final[dict[bytes, Node]] = {}
        for zone, origin in zip(zones, origins, strict=True):
            inner = (name for name in origins if name != origin and is_within(name, origin))
            scope = Scope(origin, tuple(inner))
            own = {name: outside.pop(name) for name in tuple(outside) if scope.holds(name)}
            self._nodes.update(build_nodes(zone, scope, own, serial))
        if outside:
            raise ZoneError(f"the TXT name {to_text(next(iter(outside)))} is outside the zone")
        self._leave_to_parents(origins)
        self.pods: Final = self._find_pods(origins)
        for name, node in self._nodes.items():
            if node.alias is not None:
                self._follow(name, node)

    def find(self, name: Name, qtype: int) -> Answer:
        """What is said to a question of class IN, never None: REFUSED when it is not ours to say."""
        return self.locate(name).find(qtype)

    def locate(self, name: bytes) -> Node:
        """The node that speaks for a name. IndexError or ValueError for bytes that are no name at all."""
        nodes = self._nodes
        node = nodes.get(name)
        if node is not None:
            return node
        at = 0
        while length := name[at]:
            if length > MAX_LABEL:
                raise ValueError("a label longer than labels can be")
            label = at
            at += 1 + length
            node = nodes.get(name[at:])
            if node is not None:
                if length == HASH_LABEL and node.hashes is not None and is_hash_label(name, label):
                    return node.hashes if label == 0 else node.hashes.below
                return node.below
        return self._outside

    def _find_pods(self, origins: Sequence[Name]) -> Node | None:
        """The node of all hash names, when there is one and no hash name has another."""
        hosts = [node for origin in origins if (node := self._nodes[origin]).hashes is not None]
        own = any(is_hash_name(Name(name), origin) for name in self._nodes for origin in origins)
        return hosts[0].hashes if len(hosts) == 1 and not own else None

    def _leave_to_parents(self, origins: Sequence[Name]) -> None:
        """DS at an origin is the parent zone's to say (RFC 4035 section 3.1.4.1), if that is ours too."""
        for origin in origins:
            above = [name for name in origins if name != origin and is_within(origin, name)]
            if above:
                parent = self._nodes[max(above, key=len)]
                self._nodes[origin].answers[Qtype.DS] = parent.other

    def _follow(self, name: bytes, alias: Node) -> None:
        """Answer with the alias and with what is at its end, where that is ours (RFC 1034 section 4.3.2)."""
        chain: list[Record] = []
        owner: Name | None = None
        node = alias
        while node.alias is not None:
            if len(chain) == MAX_CHAIN:
                raise ZoneError(
                    f"the alias {to_text(name)} leads to more than {MAX_CHAIN - 1} others, or to itself",
                    hint="Point it at the name at the end.",
                )
            assert isinstance(node.alias.data, Cname)  # noqa: S101 - that is what an alias is
            chain.append(replace(node.alias, owner=owner))
            owner = node.alias.data.target
            node = self.locate(owner)
        own = alias.answers[Qtype.CNAME]
        if node is self._outside:
            alias.other = replace(own, records=tuple(chain))
            return
        for qtype, answer in node.answers.items():
            if qtype not in _NOT_FOLLOWED:
                found = (replace(record, owner=owner) for record in answer.records)
                alias.answers[qtype] = replace(own, records=(*chain, *found), authority=answer.authority)
        end = node.other
        alias.other = replace(
            own,
            rcode=Rcode(end.rcode),
            records=tuple(chain),
            authority=end.authority,
            additional=end.additional,
        )
