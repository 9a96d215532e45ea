"""The door to pyroute2: links, addresses, neighbours, routes, rules. It blocks; one worker thread owns it."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from codius_netpolicy.addressing import find_address
from codius_netpolicy.policy import DNS_PORT, PolicyError, Transport, Wall
from codius_netpolicy.ranges import Address, Network

MAIN_ROUTES: Final = Path("/proc/thread-self/net/route")
"""The main table as text: read in one go, where a netlink dump costs Python most of a millisecond a route."""
LOCAL_ADDRESSES: Final = Path("/proc/thread-self/net/fib_trie")
MAIN_TABLE: Final = 254
LOOPBACK_INDEX: Final = 1
SERVICE_LABEL: Final = "lo:codius"
"""Marks our addresses on `lo`, so that those of an older policy are known and removed."""
ROUTE_PROTOCOL: Final = 77
"""Marks our routes in the second wall's table (rtnetlink(7): numbers above 4 are the user's)."""
ROUTE_PROHIBIT: Final = 8
ROUTE_THROW: Final = 9
"""Ends the look-up in this table; the next rule goes on (ip-route(8))."""
WALL_KINDS: Final = {ROUTE_PROHIBIT: "prohibit", ROUTE_THROW: "throw"}
SCOPE_LINK: Final = 253
SCOPE_HOST: Final = 254
NEIGHBOUR_PERMANENT: Final = 0x80
NO_DUPLICATE_DETECTION: Final = 0x02
"""IFA_F_NODAD: an address is used at once; nobody else is on a pod's link."""
LINK_UP: Final = 0x1
ROOT_QDISC: Final = 0xFFFFFFFF
"""TC_H_ROOT of linux/pkt_sched.h."""
SHAPER_LATENCY: Final = 0.05
"""Seconds a packet may wait in a link's token bucket before it is dropped: what a home router holds."""
SHAPER_BURST: Final = 128 * 1024
"""Bytes a token bucket lets through at once, at least: two of the largest segments links pass (64 KiB)."""
SHAPER_BURST_SECONDS: Final = 0.01
"""The same for fast links, as time: what comes in between two looks of a slow kernel timer (100 Hz)."""
FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
ZEROS: Final[Mapping[int, str]] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104  nobody listens there


_LOCAL_ADDRESS: Final = re.compile(r"\|-- ([0-9.]{7,15})\n +/32 host LOCAL")


@dataclass(frozen=True, slots=True)
class Link:
    """A link as found. `peer_netns` is the kernel's number for the namespace of its other end."""

    index: int
    group: int
    up: bool
    peer_netns: int | None
    alias: str
    """Free text; ours says how the link was made."""


@dataclass(frozen=True, slots=True)
class WallRule:
    """An `ip rule` of the second wall: pods ask its table first; DNS to a resolver passes it by."""

    source: Network
    priority: int
    table: int
    target: Network | None = None
    protocol: int = 0

    def as_request(self) -> dict[str, object]:
        request: dict[str, object] = {
            "family": FAMILIES[self.source.version],
            "table": self.table,
            "priority": self.priority,
            "src": str(self.source.network_address),
            "src_len": self.source.prefixlen,
        }
        if self.target is not None:
            request |= {
                "dst": str(self.target.network_address),
                "dst_len": self.target.prefixlen,
                "ip_proto": self.protocol,
                "dport_range": f"{DNS_PORT}:{DNS_PORT}",
            }
        return request


class Kernel:
    """A netlink socket of one job, in the network namespace of the thread that opens it.

    Not kept: pyroute2 0.9 remembers an answer of every request until its socket is closed (2 kB each), and
    opening one costs a quarter of a millisecond.
    """

    def __init__(self) -> None:
        # Imported here: 13 MB and 70 ms that the command line, or a node without pods, need not pay.
        import pyroute2

        self._errors = (pyroute2.NetlinkError, OSError)
        # pyroute2 runs on a loop of its own behind its plain calls. It must not be one of the process's
        # policy: uvloop knows no netlink sockets.
        self._loop = asyncio.SelectorEventLoop()
        try:
            with self._refusals("open a netlink socket"):
                self._netlink = pyroute2.IPRoute(use_event_loop=self._loop)
        except BaseException:
            self._loop.close()
            raise

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._netlink.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    # ---- links

    def add_veth(
        self, name: str, mac: str, group: int, *, peer_name: str, peer_mac: str, peer_netns_fd: int
    ) -> int:
        """The new link's index. Group and the peer's namespace are part of the one message that makes it."""
        peer = {"ifname": peer_name, "address": peer_mac, "net_ns_fd": peer_netns_fd}
        with self._refusals(f"make the link {name}"):
            self._netlink.link("add", ifname=name, kind="veth", address=mac, group=group, peer=peer)
            return socket.if_nametoindex(name)

    def find_link(self, name: str) -> Link | None:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return None
        with self._refusals(f"look at the link {name}"):
            try:
                # By index: a dump of all links costs a millisecond for each.
                found: Any = self._netlink.link("get", index=index)[0]
            except self._errors as error:
                if _code(error) == errno.ENODEV:
                    return None
                raise
        return Link(
            index=index,
            group=found.get_attr("IFLA_GROUP") or 0,
            up=bool(found["flags"] & LINK_UP),
            peer_netns=found.get_attr("IFLA_LINK_NETNSID"),
            alias=found.get_attr("IFLA_IFALIAS") or "",
        )

    def remove_link(self, name: str) -> bool:
        """False when there is none. The link's addresses, neighbours and routes go with it."""
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return False
        with self._refusals(f"remove the link {name}"):
            try:
                self._netlink.link("del", index=index)
            except self._errors as error:
                if _code(error) == errno.ENODEV:
                    return False
                raise
        return True

    def set_up(self, index: int) -> None:
        with self._refusals("set the link up"):
            self._netlink.link("set", index=index, state="up")

    def set_alias(self, index: int, alias: str) -> None:
        with self._refusals("name the link"):
            self._netlink.link("set", index=index, ifalias=alias)

    def shape(self, index: int, rate: int) -> None:
        """What leaves by the link goes at `rate` bits per second, no faster; 0 takes the brake off."""
        with self._refusals(f"shape the link to {rate} bit/s"):
            if not rate:
                with self._absence(errno.EINVAL):  # so it says of the qdisc a link is born with
                    self._netlink.tc("del", index=index, parent=ROOT_QDISC)
                return
            burst = max(SHAPER_BURST, int(rate / 8 * SHAPER_BURST_SECONDS))
            limit = burst + int(rate / 8 * SHAPER_LATENCY)
            self._netlink.tc("replace", kind="tbf", index=index, rate=rate // 8, burst=burst, limit=limit)

    def netns_id(self, netns_fd: int) -> int | None:
        """The kernel's number for another namespace; None when it has no link to ours."""
        with self._refusals("look at the pod's network namespace"):
            found: Any = self._netlink.get_netnsid(fd=netns_fd)
        number: int = found["nsid"]
        return number if number >= 0 else None

    # ---- addresses, neighbours, routes of a link

    def add_address(self, index: int, address: Address, *, scope: int = SCOPE_LINK) -> None:
        with self._refusals(f"give the link the address {address}"):
            mine = {"flags": NO_DUPLICATE_DETECTION} if address.version == 6 else {"scope": scope}
            self._netlink.addr(
                "add",
                family=FAMILIES[address.version],
                index=index,
                address=str(address),
                prefixlen=address.max_prefixlen,
                **mine,
            )

    def add_neighbour(self, index: int, address: Address, mac: str) -> None:
        with self._refusals(f"name {mac} as the neighbour {address}"):
            self._netlink.neigh(
                "replace",
                family=FAMILIES[address.version],
                ifindex=index,
                dst=str(address),
                lladdr=mac,
                state=NEIGHBOUR_PERMANENT,
            )

    def add_link_route(self, index: int, address: Address) -> None:
        with self._refusals(f"route {address} to its link"):
            scope = {"scope": SCOPE_LINK} if address.version == 4 else {}
            self._netlink.route(
                "add",
                family=FAMILIES[address.version],
                dst=f"{address}/{address.max_prefixlen}",
                oif=index,
                **scope,
            )

    def add_default_route(self, index: int, gateway: Address) -> None:
        with self._refusals(f"route everything else by {gateway}"):
            everything = "0.0.0.0/0" if gateway.version == 4 else "::/0"
            self._netlink.route(
                "add", family=FAMILIES[gateway.version], dst=everything, oif=index, gateway=str(gateway)
            )

    # ---- service addresses

    def set_service_addresses(self, wanted: Collection[IPv4Address]) -> None:
        """Makes the addresses of ours on `lo` exactly these."""
        with self._refusals("set the service addresses on lo"):
            dump: Any = self._netlink.get_addr(
                family=socket.AF_INET, index=LOOPBACK_INDEX, label=SERVICE_LABEL
            )
            found = {IPv4Address(message.get_attr("IFA_LOCAL")) for message in dump}
            for address in sorted(found.difference(wanted)):
                self._netlink.addr("del", index=LOOPBACK_INDEX, address=str(address), prefixlen=32)
            for address in sorted(set(wanted) - found):
                # Scope host: the kernel never picks it as the source of a packet that leaves the machine.
                self._netlink.addr(
                    "replace",
                    index=LOOPBACK_INDEX,
                    address=str(address),
                    prefixlen=32,
                    label=SERVICE_LABEL,
                    scope=SCOPE_HOST,
                )

    # ---- the second wall

    def set_wall(self, table: int, version: int, wall: Wall | None) -> None:
        """Makes `table` hold exactly the wall's routes, and exactly its pool ask it first; None removes it.

        The pool is also unreachable in the main table, where a live pod has a route of its own: a packet of
        the host to a pod that has gone fails at once, and does not leave for the internet.
        """
        with self._refusals(f"build the wall of routing table {table}"):
            family = FAMILIES[version]
            found, wanted = self._wall_routes(table, family), _wall_routes(wall)
            # Exceptions come before what they are exceptions from, and go after it: what is let through
            # both before and after is let through at every moment between.
            for network, kind in sorted(wanted.items(), key=_kind, reverse=True):
                if found.get(network) == kind:
                    continue
                if network in found:
                    self._netlink.route("del", **_wall_route(table, network, found.pop(network)))
                self._netlink.route("add", **_wall_route(table, network, kind))
            for network, kind in sorted(found.items(), key=_kind):
                if network not in wanted:
                    self._netlink.route("del", **_wall_route(table, network, kind))
            rules, wanted_rules = self._wall_rules(table, family), _wall_rules(table, wall)
            if wall is not None:
                self._netlink.route("replace", **_unreachable(wall.pool))
            for rule in wanted_rules - rules:
                self._netlink.rule("add", **rule.as_request())
            for rule in rules - wanted_rules:
                if wall is None or rule.source != wall.pool:
                    # The rule goes last: it is what remembers an older policy's pool.
                    with self._absence():
                        self._netlink.route("del", **_unreachable(rule.source))
                self._netlink.rule("del", **rule.as_request())

    def has_wall(self, table: int, wall: Wall) -> bool:
        """Whether the wall stands exactly as it should."""
        with self._refusals(f"look at the wall of routing table {table}"):
            family = FAMILIES[wall.pool.version]
            return self._wall_rules(table, family) == _wall_rules(table, wall) and self._wall_routes(
                table, family
            ) == _wall_routes(wall)

    def _wall_routes(self, table: int, family: int) -> dict[Network, int]:
        dump: Any = self._netlink.get_routes(family=family, table=table)
        return {
            _network(m.get_attr("RTA_DST"), m["dst_len"], family): m["type"]
            for m in dump
            if m["type"] in WALL_KINDS and m["proto"] == ROUTE_PROTOCOL
        }

    def _wall_rules(self, table: int, family: int) -> frozenset[WallRule]:
        dump: Any = self._netlink.get_rules(family=family)
        return frozenset(
            WallRule(
                source=_network(m.get_attr("FRA_SRC"), m["src_len"], family),
                priority=m.get_attr("FRA_PRIORITY"),
                table=m.get_attr("FRA_TABLE"),
                target=_network(m.get_attr("FRA_DST"), m["dst_len"], family) if m["dst_len"] else None,
                protocol=m.get_attr("FRA_IP_PROTO") or 0,
            )
            for m in dump
            if m.get_attr("FRA_PRIORITY") in (table - 1, table) and m["src_len"]
        )

    @contextmanager
    def _absence(self, *codes: int) -> Iterator[None]:
        """What is to be removed may be gone already; `codes` are further ways to say so."""
        try:
            yield
        except self._errors as error:
            if _code(error) not in (errno.ENODEV, errno.ESRCH, errno.ENOENT, *codes):
                raise

    @contextmanager
    def _refusals(self, action: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            code = _code(error)
            hint = "run as root" if code in (errno.EPERM, errno.EACCES) else None
            reason = errno.errorcode.get(code, "") if code else ""
            raise PolicyError(f"cannot {action}: {reason or error}", hint) from error


def link_names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def routed_pods() -> frozenset[IPv4Address]:
    """The addresses that the main table routes to the link of their own: the last step of an attach."""
    try:
        return parse_pod_routes(MAIN_ROUTES.read_text())
    except OSError as error:
        raise PolicyError(f"cannot read the routes: {error.strerror}", "is /proc mounted?") from error


def read_local_addresses() -> tuple[IPv4Address, ...]:
    """The host's own IPv4 addresses, loopback left out."""
    try:
        return parse_local_addresses(LOCAL_ADDRESSES.read_text())
    except OSError as error:
        raise PolicyError(
            f"cannot read the host's addresses: {error.strerror}", "is /proc mounted?"
        ) from error


def parse_local_addresses(trie: str) -> tuple[IPv4Address, ...]:
    """Reads /proc/net/fib_trie: a line `|-- address`, and below it `/32 host LOCAL` when it is the host's."""
    found = {IPv4Address(match[1]) for match in _LOCAL_ADDRESS.finditer(trie)}
    return tuple(sorted(address for address in found if not address.is_loopback))


def parse_pod_routes(table: str) -> frozenset[IPv4Address]:
    """Reads /proc/net/route: Iface, Destination, ..., Mask (8th); addresses in the machine's byte order."""
    routed = set()
    for line in table.splitlines()[1:]:
        columns = line.split()
        if len(columns) < 8 or columns[7] != "FFFFFFFF":
            continue
        address = find_address(columns[0])
        if address and address.packed == socket.htonl(int(columns[1], 16)).to_bytes(4, "big"):
            routed.add(address)
    return frozenset(routed)


def _code(error: BaseException) -> int | None:
    # pyroute2's NetlinkError has `code`, OSError has `errno`.
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    return abs(code) if isinstance(code, int) else None


def _network(address: str | None, prefix_length: int, family: int) -> Network:
    # The kernel leaves the address out when it is all zeros.
    return ip_network((address or ZEROS[family], prefix_length))


def _wall_routes(wall: Wall | None) -> dict[Network, int]:
    if wall is None:
        return {}
    return {n: ROUTE_PROHIBIT if denied else ROUTE_THROW for n, denied in wall.networks.items()}


def _wall_rules(table: int, wall: Wall | None) -> frozenset[WallRule]:
    if wall is None:
        return frozenset()
    past = (
        WallRule(wall.pool, table - 1, MAIN_TABLE, ip_network(resolver), transport.number)
        for resolver in wall.resolvers
        for transport in Transport
    )
    return frozenset((WallRule(wall.pool, table, table), *past))


def _kind(route: tuple[Network, int]) -> int:
    """Prohibited ones sort before exceptions."""
    return route[1]


def _wall_route(table: int, network: Network, kind: int) -> dict[str, object]:
    return {
        "family": FAMILIES[network.version],
        "type": WALL_KINDS[kind],
        "dst": str(network),
        "table": table,
        "proto": ROUTE_PROTOCOL,
    }


def _unreachable(network: Network) -> dict[str, object]:
    return {
        "family": FAMILIES[network.version],
        "type": "unreachable",
        "dst": str(network),
        "proto": ROUTE_PROTOCOL,
    }
