"""What a firewall makes of a forwarded packet: its rules as values, and the way of a packet through them.

Only what is certain counts. A match that is not understood, or that asks for more than is known of the
packet, is neither yes nor no, and its rule is passed over.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from codius_node.model import Json

Network = IPv4Network | IPv6Network
Value = str | int | range | Network
"""Of a match or a packet. A str that ends in `*` is the beginning of a link's name."""


class Key(StrEnum):
    """What rules look at, as far as it is understood."""

    LINK_IN = "iifname"
    LINK_OUT = "oifname"
    GROUP_IN = "iifgroup"
    GROUP_OUT = "oifgroup"
    FAMILY = "nfproto"
    SOURCE = "saddr"
    DESTINATION = "daddr"
    TRANSPORT = "l4proto"
    PORT_FROM = "sport"
    PORT_TO = "dport"
    STATE = "state"
    UNKNOWN = "unknown"


KEYS: Final = frozenset(Key)

Packet = Mapping[Key, Sequence[Value]]
"""What is known of a packet; with several values it may be any of them."""


class Action(Enum):
    """What a rule does with a packet that it matches."""

    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"


@dataclass(frozen=True, slots=True)
class Match:
    """One condition: the packet has one of these values, or, negated, none of them."""

    key: Key
    values: tuple[Value, ...] = ()
    negated: bool = False

    def holds(self, packet: Packet) -> bool | None:
        """None when nobody can say."""
        known = packet.get(self.key)
        if not known or not self.values:
            return None
        answer = _all(_any(_within(value, wanted) for wanted in self.values) for value in known)
        return answer if answer is None else answer != self.negated


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions, and what becomes of a packet that meets all of them."""

    matches: tuple[Match, ...]
    action: Action
    target: str = ""

    def applies(self, packet: Packet) -> bool:
        return all(match.holds(packet) is True for match in self.matches)


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in their order; `policy` is for the packets that none decides, of a base chain only."""

    name: str
    policy: Action = Action.RETURN
    forwards: bool = False
    """It is asked about every forwarded packet."""
    rules: list[Rule] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Table:
    """One table of one family, with its chains by name."""

    family: str
    name: str
    chains: dict[str, Chain] = field(default_factory=dict)

    def find_dropping_chain(self, packet: Packet) -> Chain | None:
        """The chain asked about forwarded packets that stops this one."""
        for chain in self.chains.values():
            if chain.forwards and (self._pass(chain, packet) or chain.policy) is Action.DROP:
                return chain
        return None

    def _pass(self, chain: Chain, packet: Packet) -> Action | None:
        """What the chain decides, and those it calls; None when nothing does."""
        for rule in chain.rules:
            if not rule.applies(packet):
                continue
            if rule.action is Action.RETURN:
                return None
            if rule.action in (Action.ACCEPT, Action.DROP):
                return rule.action
            called = self.chains.get(rule.target)
            decided = None if called is None else self._pass(called, packet)
            if decided is not None or rule.action is Action.GOTO:
                return decided
        return None


def _all(answers: Iterable[bool | None]) -> bool | None:
    """True or False when all say so."""
    found = set(answers)
    return found.pop() if len(found) == 1 else None


def _any(answers: Iterable[bool | None]) -> bool | None:
    found = set(answers)
    return True if True in found else None if None in found else False


def _within(known: Value, wanted: Value) -> bool | None:
    """Whether a packet with the known value has the wanted one, too."""
    if isinstance(known, IPv4Network) and isinstance(wanted, IPv4Network):
        return known.subnet_of(wanted) or (None if known.overlaps(wanted) else False)
    if isinstance(known, IPv6Network) and isinstance(wanted, IPv6Network):
        return known.subnet_of(wanted) or (None if known.overlaps(wanted) else False)
    if isinstance(known, str) and isinstance(wanted, str) and "*" in known + wanted:
        start, wanted_start = known.removesuffix("*"), wanted.removesuffix("*")
        if wanted.endswith("*") and start.startswith(wanted_start):
            return True
        return None if known.endswith("*") and wanted_start.startswith(start) else False
    if isinstance(known, int) and isinstance(wanted, range):
        return known in wanted
    return known == wanted if type(known) is type(wanted) else None


# ---- nft's JSON -----------------------------------------------------------------------------------

ACTIONS: Final = {action.value: action for action in Action} | {"reject": Action.DROP}
NEUTRAL: Final = frozenset({"counter", "log", "mangle"})
"""Statements that neither match nor decide."""


def parse_nft(document: Json) -> list[Table]:
    """The tables of `nft --json list ruleset` that see IP packets; ValueError when it is another document."""
    entries = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("that is no listing of nft's")
    tables: dict[tuple[str, str], Table] = {}
    for entry in entries:
        match entry:
            case {"chain": {"family": ("ip" | "ip6" | "inet") as family, "table": str(name),
                            "name": str(chain), **base}}:  # fmt: skip
                table = tables.setdefault((family, name), Table(family, name))
                policy = Action.DROP if base.get("policy") == "drop" else Action.RETURN
                table.chains[chain] = Chain(chain, policy, base.get("hook") == "forward")
            case {"rule": {"family": str(family), "table": str(name), "chain": str(chain),
                           "expr": list(expressions)}} if (family, name) in tables:  # fmt: skip
                tables[family, name].chains[chain].rules.extend(_parse_rule(expressions))
    return list(tables.values())


def _parse_rule(expressions: Sequence[Json]) -> Iterator[Rule]:
    matches: list[Match] = []
    for expression in expressions:
        match expression:
            case {"match": {"op": ("==" | "!=" | "in") as op, "left": left, "right": right}}:
                matches.extend(_parse_match(left, right, negated=op == "!="))
            case {"vmap": {"key": key, "data": {"set": list(pairs)}}}:
                for pair in pairs:
                    if isinstance(pair, list) and len(pair) == 2:
                        yield from _decide((*matches, *_parse_match(key, pair[0])), pair[1])
            case {"xt": {"name": "REJECT"}}:
                yield Rule(tuple(matches), Action.DROP)
            case {"xt": {"type": "target"}}:
                pass  # the others mark or log
            case dict() if not NEUTRAL.isdisjoint(expression):
                pass
            case dict() if not ACTIONS.keys().isdisjoint(expression):
                yield from _decide(tuple(matches), expression)
            case _:
                matches.append(Match(Key.UNKNOWN))


def _decide(matches: tuple[Match, ...], statement: Json) -> Iterator[Rule]:
    for name, detail in statement.items() if isinstance(statement, dict) else ():
        if name in ACTIONS:
            target = str(detail["target"]) if isinstance(detail, dict) and "target" in detail else ""
            yield Rule(matches, ACTIONS[name], target)


def _parse_match(left: Json, right: Json, *, negated: bool = False) -> Iterator[Match]:
    values = _parse_values(right)
    match left:
        case {"meta": {"key": ("iif" | "oif") as key}}:
            yield Match(Key(f"{key}name"), values, negated)
        case {"meta": {"key": str(key)}} | {"ct": {"key": str(key)}} if key in KEYS:
            yield Match(Key(key), values, negated)
        case {"payload": {"protocol": ("ip" | "ip6"), "field": ("saddr" | "daddr") as name}}:
            yield Match(Key(name), values, negated)
        case {"payload": {"protocol": str(protocol), "field": str(name)}}:
            # A look into a header is also the condition that the packet has one.
            if protocol not in ("ip", "ip6", "th"):
                yield Match(Key.TRANSPORT, (protocol,))
            yield Match(Key(name) if name in ("sport", "dport") else Key.UNKNOWN, values, negated)
        case _:
            yield Match(Key.UNKNOWN)


def _parse_values(right: Json) -> tuple[Value, ...]:
    """None at all when one of them is not understood."""
    match right:
        case {"set": list(members)} | list(members):
            nested = [_parse_values(member) for member in members]
            return tuple(value for values in nested for value in values) if all(nested) else ()
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            return (ip_network(f"{address}/{length}", strict=False),)
        case {"range": [int(first), int(last)]}:
            return (range(first, last + 1),)
        case int() if not isinstance(right, bool):
            return (right,)
        case str() if not right.startswith("@"):
            return (_parse_address(right) or right,)
        case _:
            return ()


def _parse_address(text: str) -> Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


# ---- iptables' text -------------------------------------------------------------------------------

LINKS: Final = {"-i": Key.LINK_IN, "-o": Key.LINK_OUT}
ADDRESSES: Final = {"-s": Key.SOURCE, "-d": Key.DESTINATION}
GROUPS: Final = {"--src-group": Key.GROUP_IN, "--dst-group": Key.GROUP_OUT}
PORTS: Final = {"--sport": Key.PORT_FROM, "--dport": Key.PORT_TO}
STATES: Final = frozenset({"--ctstate", "--state"})
TARGETS: Final = {
    "ACCEPT": Action.ACCEPT,
    "DROP": Action.DROP,
    "REJECT": Action.DROP,
    "RETURN": Action.RETURN,
}
EXPLAINED: Final = frozenset({"tcp", "udp", "conntrack", "state", "devgroup", "comment"})
"""Modules of iptables whose options are understood, or do not matter."""


def parse_iptables(text: str, family: str, name: str) -> Table:
    """A table as `iptables -S` shows it, or one of its kin."""
    lines = [shlex.split(line) for line in text.splitlines()]
    table = Table(family, name)
    for words in lines:
        match words:
            case ["-P", chain, policy]:
                table.chains[chain] = Chain(chain, TARGETS.get(policy, Action.RETURN), chain == "FORWARD")
            case ["-N", chain]:
                table.chains[chain] = Chain(chain)
    for words in lines:
        match words:
            case ["-A", chain, *rest] if chain in table.chains:
                table.chains[chain].rules.extend(_parse_words(rest, table.chains))
    return table


def _parse_words(words: Sequence[str], chains: Mapping[str, Chain]) -> Iterator[Rule]:
    matches: list[Match] = []
    negated = False
    remaining = iter(words)
    for word in remaining:
        if word == "!":
            negated = True
            continue
        if word in ("-j", "-g"):
            target = next(remaining, "")
            if target in TARGETS:
                yield Rule(tuple(matches), TARGETS[target])
            elif target in chains:
                yield Rule(tuple(matches), Action.GOTO if word == "-g" else Action.JUMP, target)
            return  # what follows are the target's own options
        if word == "--comment":
            next(remaining, "")
        elif word.startswith("-"):
            matches.extend(_parse_option(word, next(remaining, ""), negated=negated))
        negated = False


def _parse_option(option: str, value: str, *, negated: bool) -> Iterator[Match]:
    if option == "-m":
        if value not in EXPLAINED:
            yield Match(Key.UNKNOWN)
    elif option in LINKS:
        # A plus at the end stands for any rest of the name.
        yield Match(LINKS[option], (f"{value[:-1]}*" if value.endswith("+") else value,), negated)
    elif option in ADDRESSES:
        address = _parse_address(value)
        yield Match(ADDRESSES[option], () if address is None else (address,), negated)
    elif option in GROUPS or option in PORTS:
        yield Match((GROUPS | PORTS)[option], _parse_numbers(value), negated)
    elif option in STATES:
        yield Match(Key.STATE, tuple(value.lower().split(",")), negated)
    elif option == "-p":
        yield Match(Key.TRANSPORT, (value,), negated)
    else:
        yield Match(Key.UNKNOWN)


def _parse_numbers(text: str) -> tuple[Value, ...]:
    """A number, in hexadecimal too, or two with a colon between; nothing when it is a mask or a name."""
    try:
        first, _, last = text.partition(":")
        return (range(int(first, 0), int(last, 0) + 1),) if last else (int(first, 0),)
    except ValueError:
        return ()
