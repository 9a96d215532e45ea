"""What pods may do on the network, as values: validated once, rendered and applied elsewhere."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Final

MAX_PODS: Final = 65_536
"""Elements a set of the ruleset can hold: one for each address of the largest pool, a /16."""
SMALLEST_POOL_PREFIX: Final = 30
"""Prefix length; a /30 is room for two pods."""
MAX_PORT: Final = 65_535
MAX_RULE_PRIORITY: Final = 32_765
"""An `ip rule` below this number is asked before the kernel's main table (32766)."""
RESERVED_ROUTING_TABLES: Final = frozenset({0, 253, 254, 255})
"""unspec, default, main and local: the kernel's own."""
MAX_LINK_GROUP: Final = 2**32 - 1
TABLE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,30}")
FINGERPRINT_LENGTH: Final = 16
"""Hex digits; enough to tell two policies apart, short enough for a table's comment (128 bytes)."""


class PolicyError(Exception):
    """The kernel or a library refused what the policy asked for. `hint` says what to do next."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Transport(StrEnum):
    """The protocols that have ports."""

    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True, order=True)
class Service:
    """One port of the host, on a service address, that pods may talk to."""

    address: IPv4Address
    transport: Transport
    port: int


@dataclass(frozen=True, slots=True, order=True)
class TransportPort:
    """A port of any address, e.g. tcp 25."""

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


def _networks(*texts: str) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(text) for text in texts)


DEFAULT_POOL: Final = IPv4Network("10.77.0.0/16")
DEFAULT_GATEWAY: Final = IPv4Address("169.254.77.1")
"""The host's end of every pod's link. Link-local, so that it can never clash with a real network."""

DEFAULT_SERVICES: Final = (
    Service(IPv4Address("169.254.77.68"), Transport.TCP, 7768),  # payments (Interledger)
    Service(IPv4Address("169.254.77.53"), Transport.UDP, 53),  # a resolver on the host, should one be run
    Service(IPv4Address("169.254.77.53"), Transport.TCP, 53),
)
DEFAULT_RESOLVERS: Final = (IPv4Address("1.1.1.1"), IPv4Address("9.9.9.9"))
"""Public ones, reached like any other address: pods need no way into the host to look up a name."""

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
)
DEFAULT_DENIED_OUT: Final = (
    TransportPort(Transport.TCP, 25),
    TransportPort(Transport.TCP, 5060),
    TransportPort(Transport.UDP, 5060),
)
DEFAULT_DENIED_IN_UDP: Final = (
    *(PortRange.single(port) for port in (19, 22, 80, 111)),
    PortRange(137, 139),
    *(PortRange.single(port) for port in (389, 520, 1900, 5093, 5353, 11211)),
    PortRange(33434, 33534),
)


def _require_between(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise ValueError(f"{name} {value} is not between {lowest} and {highest}")


def _require_port(name: str, port: int) -> None:
    _require_between(f"{name}: port", port, 1, MAX_PORT)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the host's connection tracking one pod may use."""

    connections: int = 256
    """Tracked flows at once."""
    new_connections: int = 200
    """Flows per second, over time."""
    new_connections_burst: int = 400
    """Flows above the rate that are let through at once."""
    echo_requests: int = 50
    """Pings to the gateway per second, all pods together."""

    def __post_init__(self) -> None:
        for name in ("connections", "new_connections", "new_connections_burst", "echo_requests"):
            _require_between(f"limits.{name}", getattr(self, name), 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may talk to whom: the whole of it. A bad value raises ValueError with its name."""

    pool: IPv4Network = DEFAULT_POOL
    group: int = 77
    """Number of the interface group that all pod links are made in, and nothing else may be in."""
    table: str = "codius"
    routing_table: int = 77
    """Number of the routing table with the second wall; also the priority of its `ip rule`."""
    gateway: IPv4Address = DEFAULT_GATEWAY
    services: tuple[Service, ...] = DEFAULT_SERVICES
    resolvers: tuple[IPv4Address, ...] = DEFAULT_RESOLVERS
    denied_ranges: tuple[IPv4Network, ...] = DEFAULT_DENIED_RANGES
    denied_out: tuple[TransportPort, ...] = DEFAULT_DENIED_OUT
    denied_in_udp: tuple[PortRange, ...] = DEFAULT_DENIED_IN_UDP
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        self._check_pool()
        _require_between("group", self.group, 1, MAX_LINK_GROUP)
        if not TABLE_NAME.fullmatch(self.table):
            raise ValueError(
                f"table {self.table!r} is no name for a table: take lower-case letters, digits and _"
            )
        _require_between("routing_table", self.routing_table, 1, MAX_RULE_PRIORITY)
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
            self._check_resolver(resolver)
        for denied in self.denied_out:
            _require_port("denied_out", denied.port)
        for ports in self.denied_in_udp:
            _require_port("denied_in_udp", ports.first)
            _require_port("denied_in_udp", ports.last)
            if ports.first > ports.last:
                raise ValueError(f"denied_in_udp: {ports} runs backwards: give the lower port first")

    @property
    def service_addresses(self) -> tuple[IPv4Address, ...]:
        """The addresses of the services, each once, in order."""
        return tuple(sorted({service.address for service in self.services}))

    @property
    def walled_ranges(self) -> tuple[IPv4Network, ...]:
        """What the second wall keeps pods from: the denied ranges and the pool, each once, in order."""
        return tuple(sorted({*self.denied_ranges, self.pool}))

    @property
    def fingerprint(self) -> str:
        """A short name for exactly this policy; it is written into the table's comment."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:FINGERPRINT_LENGTH]

    def _check_pool(self) -> None:
        _require_between("pool's prefix length", self.pool.prefixlen, 16, SMALLEST_POOL_PREFIX)
        if not self.pool.is_private or self.pool.is_loopback or self.pool.is_link_local:
            raise ValueError(
                f"pool {self.pool} is no private range: take one in 10.0.0.0/8 or 192.168.0.0/16"
            )

    def _check_host_side(self, name: str, address: IPv4Address) -> None:
        if address in self.pool:
            raise ValueError(f"{name}: {address} is inside the pods' pool {self.pool}")
        if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_reserved:
            raise ValueError(f"{name}: {address} cannot be an address of a link: take one in 169.254.0.0/16")

    def _check_resolver(self, resolver: IPv4Address) -> None:
        if any(resolver == service.address and service.port == 53 for service in self.services):
            return
        for network in (self.pool, *self.denied_ranges):
            if resolver in network:
                raise ValueError(
                    f"resolvers: {resolver} is inside {network}, which pods cannot reach: "
                    "take a public resolver, or one that is a service of the host"
                )
