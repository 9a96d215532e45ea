"""The door to pyroute2: links, addresses, neighbours, routes, rules. It blocks; one worker thread owns it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from codius_netpolicy.addressing import find_address
from codius_netpolicy.policy import PolicyError

MAIN_ROUTES: Final = Path("/proc/thread-self/net/route")
"""The main table as text: read in one go, where a netlink dump costs Python most of a millisecond a route."""
LOOPBACK_INDEX: Final = 1
SERVICE_LABEL: Final = "lo:codius"
"""Marks our addresses on `lo`, so that those of an older policy are known and removed."""
ROUTE_PROTOCOL: Final = 77
"""Marks our routes in the second wall's table (rtnetlink(7): numbers above 4 are the user's)."""
ROUTE_PROHIBIT: Final = 8
SCOPE_LINK: Final = 253
SCOPE_HOST: Final = 254
NEIGHBOUR_PERMANENT: Final = 0x80
LINK_UP: Final = 0x1


@dataclass(frozen=True, slots=True)
class Link:
    """A link as found. `peer_netns` is the kernel's number for the namespace of its other end."""

    index: int
    group: int
    up: bool
    peer_netns: int | None


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

    def netns_id(self, netns_fd: int) -> int | None:
        """The kernel's number for another namespace; None when it has no link to ours."""
        with self._refusals("look at the pod's network namespace"):
            found: Any = self._netlink.get_netnsid(fd=netns_fd)
        number: int = found["nsid"]
        return number if number >= 0 else None

    # ---- addresses, neighbours, routes of a link

    def add_address(self, index: int, address: IPv4Address, *, scope: int = SCOPE_LINK) -> None:
        with self._refusals(f"give the link the address {address}"):
            self._netlink.addr("add", index=index, address=str(address), prefixlen=32, scope=scope)

    def add_neighbour(self, index: int, address: IPv4Address, mac: str) -> None:
        with self._refusals(f"name {mac} as the neighbour {address}"):
            self._netlink.neigh(
                "replace", ifindex=index, dst=str(address), lladdr=mac, state=NEIGHBOUR_PERMANENT
            )

    def add_link_route(self, index: int, address: IPv4Address) -> None:
        with self._refusals(f"route {address} to its link"):
            self._netlink.route("add", dst=f"{address}/32", oif=index, scope=SCOPE_LINK)

    def add_default_route(self, index: int, gateway: IPv4Address) -> None:
        with self._refusals(f"route everything else by {gateway}"):
            self._netlink.route("add", dst="0.0.0.0/0", oif=index, gateway=str(gateway))

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

    def set_wall(self, table: int, pool: IPv4Network | None, ranges: Collection[IPv4Network]) -> None:
        """Makes `table` prohibit exactly these ranges, and exactly `pool` ask it first; None asks nothing.

        The pool is also unreachable in the main table, where a live pod has a route of its own: a packet of
        the host to a pod that has gone fails at once, and does not leave for the internet.
        """
        with self._refusals(f"build the wall of routing table {table}"):
            dump: Any = self._netlink.get_routes(family=socket.AF_INET, table=table)
            ours = (m for m in dump if m["type"] == ROUTE_PROHIBIT and m["proto"] == ROUTE_PROTOCOL)
            found = {_network(m.get_attr("RTA_DST"), m["dst_len"]) for m in ours}
            for network in sorted(set(ranges) - found):
                self._netlink.route("replace", **_prohibition(table, network))
            for network in sorted(found.difference(ranges)):
                self._netlink.route("del", **_prohibition(table, network))
            dump = self._netlink.get_rules(family=socket.AF_INET, table=table, priority=table)
            sources = {_network(m.get_attr("FRA_SRC"), m["src_len"]) for m in dump}
            wanted = {pool} if pool else set()
            for source in wanted:
                self._netlink.route("replace", **_unreachable(source))
            for source in wanted - sources:
                self._netlink.rule("add", **_rule(table, source))
            for source in sources - wanted:
                # The rule goes last: it is what remembers an older policy's pool.
                with self._absence():
                    self._netlink.route("del", **_unreachable(source))
                self._netlink.rule("del", **_rule(table, source))

    @contextmanager
    def _absence(self) -> Iterator[None]:
        """What is to be removed may be gone already."""
        try:
            yield
        except self._errors as error:
            if _code(error) not in (errno.ENODEV, errno.ESRCH, errno.ENOENT):
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
    """The addresses that the main table routes to the link of their own."""
    try:
        return parse_pod_routes(MAIN_ROUTES.read_text())
    except OSError as error:
        raise PolicyError(f"cannot read the routes: {error.strerror}", "is /proc mounted?") from error


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


def _network(address: str | None, prefix_length: int) -> IPv4Network:
    # The kernel leaves the address out when it is 0.0.0.0.
    return IPv4Network((address or 0, prefix_length))


def _prohibition(table: int, network: IPv4Network) -> dict[str, object]:
    return {"type": "prohibit", "dst": str(network), "table": table, "proto": ROUTE_PROTOCOL}


def _unreachable(network: IPv4Network) -> dict[str, object]:
    return {"type": "unreachable", "dst": str(network), "proto": ROUTE_PROTOCOL}


def _rule(table: int, source: IPv4Network) -> dict[str, object]:
    return {
        "table": table,
        "priority": table,
        "src": str(source.network_address),
        "src_len": source.prefixlen,
        "family": socket.AF_INET,
    }
