"""What pods may do on the network, as values: validated once, rendered and applied elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from codius_netpolicy.ranges import (
    Address,
    DeniedNumbers,
    Network,
    Ruling,
    Span,
    deny_addresses,
    paint,
    settle,
)

MAX_PODS: Final = 65_536
"""Elements a set of the ruleset can hold: one for each address of the largest pool, a /16."""
SMALLEST_POOL_PREFIX: Final = 30
"""Prefix length; a /30 is room for two pods."""
UNIQUE_LOCAL: Final = IPv6Network("fc00::/7")
"""RFC 4193: addresses that are nobody's outside of this host."""
MAX_PORT: Final = 65_535
MAX_RULES: Final = 256
"""Entries of one list of the operator's rules: far more than a person writes, and a start stays quick."""
MAX_RULE_PRIORITY: Final = 32_765
"""An `ip rule` below this number is asked before the kernel's main table (32766)."""
RESERVED_ROUTING_TABLES: Final = frozenset({0, 253, 254, 255})
"""unspec, default, main and local: the kernel's own."""
MAX_LINK_GROUP: Final = 2**32 - 1
MAX_RATE: Final = 30_000_000_000
"""Bits per second; the kernel's token bucket counts bytes a second in 32 bits (34 Gbit/s)."""
SLOWEST_RATE: Final = 64_000
"""Bits per second; below it a pod could not answer its visitors at all."""
TABLE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,30}")
DNS_PORT: Final = 53
_PORTS: Final = re.compile(r"(tcp|udp)/([0-9]{1,5})(?:-([0-9]{1,5}))?")


class PolicyError(Exception):
    """The kernel or a library refused what the policy asked for. `hint` says what to do next."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def _require_between(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise ValueError(f"{name} {value} is not between {lowest} and {highest}")


def _require_port(name: str, port: int) -> None:
    _require_between(f"{name}: port", port, 1, MAX_PORT)


def _require_ports(name: str, ports: PortRange) -> None:
    _require_port(name, ports.first)
    _require_port(name, ports.last)
    if ports.first > ports.last:
        raise ValueError(f"{name}: {ports} runs backwards: give the lower port first")


class Transport(StrEnum):
    """The protocols that have ports."""

    TCP = "tcp"
    UDP = "udp"

    @property
    def number(self) -> int:
        """Of the protocol, as in an IP header (IANA)."""
        return {Transport.TCP: 6, Transport.UDP: 17}[self]


@dataclass(frozen=True, slots=True, order=True)
class Service:
    """One port of one address that pods may talk to, wherever that address is."""

    address: Address
    transport: Transport
    port: int


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports from `first` to `last`, both included."""

    first: int
    last: int

    @classmethod
    def single(cls, port: int) -> PortRange:
        return cls(port, port)

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True, order=True)
class TransportPorts:
    """Ports of any address, e.g. tcp/25 or udp/6000-6063."""

    transport: Transport
    ports: PortRange

    @classmethod
    def parse(cls, text: str) -> TransportPorts:
        """From `tcp/25` or `udp/6000-6063`; ValueError names what else was given."""
        match = _PORTS.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no port: write tcp/25, or udp/6000-6063 for a range")
        found = cls(Transport(match[1]), PortRange(int(match[2]), int(match[3] or match[2])))
        _require_ports(text, found.ports)
        return found

    def __str__(self) -> str:
        return f"{self.transport}/{self.ports}"


def parse_range(text: str) -> Network:
    """From `203.0.113.0/24`, `2001:db8::/32` or a single address; ValueError names what else was given."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no range of addresses: {error}") from None


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(parse_range, texts))


DEFAULT_POOL: Final = IPv4Network("10.77.0.0/16")
DEFAULT_GATEWAY: Final = IPv4Address("169.254.77.1")
"""The host's end of every pod's link. Link-local, so that it can never clash with a real network."""
DEFAULT_GATEWAY6: Final = IPv6Address("fe80::1")

DEFAULT_SERVICES: Final = (
    Service(IPv4Address("169.254.77.68"), Transport.TCP, 7768),  # payments (Interledger)
)
DEFAULT_DENIED_RANGES: Final = _networks(
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",  # CGNAT
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local: cloud metadata
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
    # Only 2000::/3 is global unicast (RFC 4291 2.4); the first eighth holds loopback, IPv4-mapped addresses
    # and NAT64 (64:ff9b::/96), the last half unique local, link-local and multicast ones.
    "::/3",
    "4000::/2",
    "8000::/1",
    "2001::/32",  # Teredo
    "2002::/16",  # 6to4: carries an IPv4 address of anybody, private ones too
)
DEFAULT_DENIED_PORTS: Final = tuple(map(TransportPorts.parse, ("tcp/25", "tcp/5060", "udp/5060")))
DEFAULT_DENIED_IN_UDP: Final = (
    *(PortRange.single(port) for port in (19, 22, 80, 111)),
    PortRange(137, 139),
    *(PortRange.single(port) for port in (389, 520, 1900, 5093, 5353, 11211)),
    PortRange(33434, 33534),
)


class EgressMode(StrEnum):
    """What pods reach that nothing else is said about."""

    OPEN = "open"
    LISTED = "listed"


@dataclass(frozen=True, slots=True)
class Egress:
    """The operator's own rules about what pods reach, on top of the policy's.

    The most specific range wins, on a tie the denied one. Allowed ports open what the policy denies, and a
    denied port wins over an allowed one. In `listed` mode nothing is reached but allowed ranges, by allowed
    ports; without any allowed port, by every port that is not denied.
    """

    mode: EgressMode = EgressMode.OPEN
    denied_ranges: tuple[Network, ...] = ()
    allowed_ranges: tuple[Network, ...] = ()
    denied_ports: tuple[TransportPorts, ...] = ()
    allowed_ports: tuple[TransportPorts, ...] = ()

    def __post_init__(self) -> None:
        for name in ("denied_ranges", "allowed_ranges", "denied_ports", "allowed_ports"):
            if len(getattr(self, name)) > MAX_RULES:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries: {MAX_RULES} at most")
        for network in self.denied_ranges:
            if network.prefixlen == 0:
                raise ValueError(f"denied_ranges: {network} is every address: take the mode `listed`")

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Egress:
        """From the JSON that `as_document` makes; ValueError names what is wrong."""
        unknown = sorted(set(document) - _DOCUMENT_KEYS.keys())
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no rule: there are {', '.join(_DOCUMENT_KEYS)}")
        mode = document.get("mode", EgressMode.OPEN)
        if mode not in tuple(EgressMode):
            raise ValueError(f"mode {mode!r} is neither `open` nor `listed`")
        return cls(
            mode=EgressMode(str(mode)),
            denied_ranges=tuple(map(parse_range, _texts(document, "deniedRanges"))),
            allowed_ranges=tuple(map(parse_range, _texts(document, "allowedRanges"))),
            denied_ports=tuple(map(TransportPorts.parse, _texts(document, "deniedPorts"))),
            allowed_ports=tuple(map(TransportPorts.parse, _texts(document, "allowedPorts"))),
        )

    def as_document(self) -> dict[str, str | list[str]]:
        """JSON, for the store and for people."""
        lists = {key: [str(entry) for entry in getattr(self, name)] for key, name in _DOCUMENT_KEYS.items()}
        return {**lists, "mode": self.mode.value}


_DOCUMENT_KEYS: Final[Mapping[str, str]] = {
    "mode": "mode",
    "deniedRanges": "denied_ranges",
    "allowedRanges": "allowed_ranges",
    "deniedPorts": "denied_ports",
    "allowedPorts": "allowed_ports",
}


def _texts(document: Mapping[str, object], key: str) -> tuple[str, ...]:
    entries = document.get(key, ())
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{key} is no list of strings")
    return tuple(entries)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pod may use of the host's network; 0 switches a limit off."""

    connections: int = 256
    """Tracked flows at once."""
    new_connections: int = 200
    """Flows per second, over time."""
    new_connections_burst: int = 400
    """Flows above the rate that are let through at once."""
    echo_requests: int = 50
    """Pings to the gateway per second, all pods together; never off."""
    send_rate: int = 100_000_000
    """Bits per second from the pod."""
    receive_rate: int = 100_000_000
    """Bits per second to the pod."""

    def __post_init__(self) -> None:
        for name in ("connections", "new_connections"):
            _require_between(f"limits.{name}", getattr(self, name), 0, 1_000_000)
        for name in ("new_connections_burst", "echo_requests"):
            _require_between(f"limits.{name}", getattr(self, name), 1, 1_000_000)
        for name in ("send_rate", "receive_rate"):
            if rate := getattr(self, name):
                _require_between(f"limits.{name}", rate, SLOWEST_RATE, MAX_RATE)


@dataclass(frozen=True, slots=True)
class Wall:
    """The second wall for one IP version: what the routing itself keeps the pods of `pool` from."""

    pool: Network
    networks: Mapping[Network, bool]
    """Whether each is prohibited; the others are exceptions within a prohibited one."""
    resolvers: tuple[Address, ...]
    """Reached on port 53 all the same."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may talk to whom: the whole of it. A bad value raises ValueError with its name."""

    pool: IPv4Network = DEFAULT_POOL
    pool6: IPv6Network | None = None
    """Unique local addresses for the pods' IPv6, behind NAT66; None: pods have no IPv6."""
    group: int = 77
    """Number of the interface group that all pod links are made in, and nothing else may be in."""
    table: str = "codius"
    routing_table: int = 77
    """Number of the routing table with the second wall; also the priority of its `ip rule`."""
    gateway: IPv4Address = DEFAULT_GATEWAY
    gateway6: IPv6Address = DEFAULT_GATEWAY6
    services: tuple[Service, ...] = DEFAULT_SERVICES
    """Ports of the host's service addresses."""
    resolvers: tuple[Address, ...] = ()
    """Whom pods may ask for names (port 53 and no other), wherever that is."""
    denied_ranges: tuple[Network, ...] = DEFAULT_DENIED_RANGES
    denied_ports: tuple[TransportPorts, ...] = DEFAULT_DENIED_PORTS
    denied_in_udp: tuple[PortRange, ...] = DEFAULT_DENIED_IN_UDP
    """UDP ports of pods that nobody may send to: they amplify."""
    egress: Egress = Egress()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        self._check_pools()
        _require_between("group", self.group, 1, MAX_LINK_GROUP)
        if not TABLE_NAME.fullmatch(self.table):
            raise ValueError(
                f"table {self.table!r} is no name for a table: take lower-case letters, digits and _"
            )
        _require_between("routing_table", self.routing_table, 2, MAX_RULE_PRIORITY)
        if self.routing_table in RESERVED_ROUTING_TABLES:
            raise ValueError(f"routing_table {self.routing_table} is the kernel's own: choose another number")
        self._check_host_side("gateway", self.gateway)
        for service in self.services:
            self._check_host_side("services", service.address)
            _require_port("services", service.port)
            if service.address == self.gateway:
                raise ValueError(f"services: {service.address} is the gateway: take an address of its own")
        for network in self.denied_ranges:
            if network.prefixlen == 0:
                raise ValueError(f"denied_ranges: {network} is every address: a pod could talk to nobody")
        for resolver in self.resolvers:
            self._check_host_side("resolvers", resolver)
        for ports in self.denied_in_udp:
            _require_ports("denied_in_udp", ports)
        for network in self.egress.allowed_ranges:
            for pool in self.pools:
                if network.version == pool.version and network.subnet_of(pool):  # type: ignore[arg-type]
                    raise ValueError(
                        f"allowed_ranges: {network} is inside the pods' pool {pool}, and nothing opens pods"
                        " to each other"
                    )

    @property
    def pools(self) -> tuple[Network, ...]:
        """The pods' addresses, one range an IP version in use."""
        return (self.pool,) if self.pool6 is None else (self.pool, self.pool6)

    @property
    def service_addresses(self) -> tuple[IPv4Address, ...]:
        """The host's own addresses for services, each once, in order."""
        return tuple(sorted({s.address for s in self.services if isinstance(s.address, IPv4Address)}))

    @property
    def openings(self) -> tuple[Service, ...]:
        """Services and resolvers: what pods reach in spite of every denied range."""
        names = (Service(r, transport, DNS_PORT) for r in self.resolvers for transport in Transport)
        return tuple(dict.fromkeys((*self.services, *names)))

    def denied_addresses(self, version: int) -> DeniedNumbers:
        """What pods of this IP version do not reach, their own pool apart."""
        return deny_addresses(settle(self._rulings(version)))

    def denied_port_numbers(self, transport: Transport) -> DeniedNumbers:
        """Ports that no pod reaches anywhere."""
        egress = self.egress
        everything = egress.mode is EgressMode.LISTED and egress.allowed_ports
        layers = (
            ((PortRange(0, MAX_PORT),) if everything else (), True),
            (_of(transport, self.denied_ports), True),
            (_of(transport, egress.allowed_ports), False),
            (_of(transport, egress.denied_ports), True),
        )
        return paint(Span(p.first, p.last, denied) for ports, denied in layers for p in ports)

    def walls(self) -> tuple[Wall, ...]:
        """The second wall, one for each IP version pods have."""
        return tuple(self._wall(pool) for pool in self.pools)

    def with_egress(self, egress: Egress) -> Policy:
        """The same with other rules of the operator's."""
        return replace(self, egress=egress)

    def _wall(self, pool: Network) -> Wall:
        # The pool comes last and wins: whatever is allowed around it, pods do not reach each other.
        networks = {**settle(self._rulings(pool.version)), pool: True}
        resolvers = sorted({r for r in self.resolvers if r.version == pool.version}, key=int)
        return Wall(pool, networks, tuple(resolvers))

    def _rulings(self, version: int) -> Iterable[Ruling]:
        """Rank 0 is the policy's own, 1 what the operator allows, 2 what the operator denies."""
        egress = self.egress
        if egress.mode is EgressMode.LISTED:
            yield Ruling(parse_range("0.0.0.0/0" if version == 4 else "::/0"), denied=True, rank=0)
        layers = ((self.denied_ranges, True), (egress.allowed_ranges, False), (egress.denied_ranges, True))
        for rank, (networks, denied) in enumerate(layers):
            yield from (Ruling(n, denied, rank) for n in networks if n.version == version)

    def _check_pools(self) -> None:
        _require_between("pool's prefix length", self.pool.prefixlen, 16, SMALLEST_POOL_PREFIX)
        if not self.pool.is_private or self.pool.is_loopback or self.pool.is_link_local:
            raise ValueError(
                f"pool {self.pool} is no private range: take one in 10.0.0.0/8 or 192.168.0.0/16"
            )
        if self.pool6 is None:
            return
        if not self.pool6.subnet_of(UNIQUE_LOCAL):
            raise ValueError(f"pool6 {self.pool6} is no unique local range: take one in fd00::/8 (RFC 4193)")
        most = 128 - (32 - self.pool.prefixlen)
        _require_between("pool6's prefix length", self.pool6.prefixlen, 8, most)

    def _check_host_side(self, name: str, address: Address) -> None:
        if any(address in pool for pool in self.pools):
            raise ValueError(f"{name}: {address} is inside the pods' pool {self.pool}")
        if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_reserved:
            raise ValueError(f"{name}: {address} cannot be reached by a link: pods could not talk to it")


def _of(transport: Transport, entries: Iterable[TransportPorts]) -> tuple[PortRange, ...]:
    return tuple(entry.ports for entry in entries if entry.transport is transport)
