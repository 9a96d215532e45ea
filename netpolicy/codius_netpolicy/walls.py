"""The two walls around the pods, nftables and routing: raised, watched, changed and lowered."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from codius_netpolicy import elements, namespace, nfnetlink, ruleset
from codius_netpolicy.addressing import find_address
from codius_netpolicy.conntrack import cut_flows
from codius_netpolicy.forbidden import Forbidden
from codius_netpolicy.kernel import Kernel
from codius_netpolicy.nft import Element, Nft
from codius_netpolicy.policy import Policy, PolicyError
from codius_netpolicy.traffic import NO_TRAFFIC, REASONS, Reason, Traffic, Volume, larger

logger = logging.getLogger(__name__)

IP_VERSIONS: Final = (4, 6)
FORWARDING: Final = "ipv4/ip_forward"
FORWARDING6: Final = "ipv6/conf/all/forwarding"
INTERFACES6: Final = Path("ipv6/conf")
TABLE_GONE: Final = "the nftables table is gone"
TABLE_CHANGED: Final = "the nftables table was changed"
WALL_CHANGED: Final = "the routing wall was changed"
FORWARDING_OFF: Final = "forwarding was switched off"


class Walls:
    """Both walls, in the network namespace of the thread that made this. Blocking: see PodNetwork.

    The pods known here are those that were raised with the walls or admitted since, each with the counters
    it is known to have reached: what a table is made of when it has to be made again.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._nft = Nft()
        self._netlink = nfnetlink.open_socket()
        self._pods: dict[IPv4Address, Traffic] = {}
        self._listing: str | None = None
        self._generation: int | None = None  # at which the table was last seen to be ours

    def close(self) -> None:
        self._netlink.close()

    def raise_both(self, kernel: Kernel, pods: Mapping[IPv4Address, Traffic]) -> None:
        """The walls first, forwarding last: at no moment is a packet forwarded without both."""
        with _collector_paused():
            self._pods = self._count_on(pods)
            self._raise(kernel)

    def repair(self) -> None:
        """Raises them again for the pods known here, whatever is left of them."""
        with Kernel() as kernel:
            self.raise_both(kernel, self._pods)

    def lower(self, kernel: Kernel) -> None:
        """`ip_forward` stays: others (podman, docker, a VPN) may have come to need it meanwhile."""
        self._apply(ruleset.render_removal(self.policy))
        self._listing = self._generation = None
        self._pods.clear()
        for version in IP_VERSIONS:
            kernel.set_wall(self.policy.routing_table, version, None)

    def change(self, policy: Policy) -> int:
        """Other rules of the operator's, all of them or none; how many flows had to be cut."""
        before = self.policy
        with Kernel() as kernel:
            try:
                self._put(kernel, policy)
                return sum(
                    cut_flows(pool.version, Forbidden(policy, pool.version).__contains__)
                    for pool in policy.pools
                )
            except BaseException:
                if self.policy is not before:
                    # Where this fails as well, the next look finds what is not as it should be.
                    self._put(kernel, before)
                raise

    def _put(self, kernel: Kernel, policy: Policy) -> None:
        self._apply(ruleset.render_change(policy))
        self.policy, self._generation = policy, None
        self._set_routing(kernel)
        self._remember_table()

    # ---- pods

    def admit(self, address: IPv4Address, traffic: Traffic) -> None:
        known = larger(traffic, self._pods.get(address, NO_TRAFFIC))
        self._apply(ruleset.render_admission(self.policy, address, known))
        self._pods[address] = known

    def evict(self, address: IPv4Address) -> Traffic | None:
        """Cuts the pod off, established flows too; its last counters. Nothing to do without a table."""
        last = self._pods.pop(address, None)
        if last is not None:
            last = larger(last, self._read_one(address))
        try:
            self._apply(ruleset.render_eviction(self.policy, address))
        except PolicyError:
            if self._list_table() is not None:
                raise
        return last

    def traffic(self) -> Mapping[IPv4Address, Traffic]:
        with _collector_paused():
            self._pods = self._count_on(self._pods)
            return dict(self._pods)

    # ---- watching

    def check(self) -> tuple[str, ...]:
        """What is missing or was changed, as sentences. Cheap while nobody touches any table."""
        problems = []
        if (problem := self._check_table()) is not None:
            problems.append(problem)
        with Kernel() as kernel:
            table = self.policy.routing_table
            if not all(kernel.has_wall(table, wall) for wall in self.policy.walls()):
                problems.append(WALL_CHANGED)
        if not all(namespace.read_sysctl(name) == "1" for name in self._forwarding()):
            problems.append(FORWARDING_OFF)
        return tuple(problems)

    def _check_table(self) -> str | None:
        generation = nfnetlink.read_generation(self._netlink)
        if generation == self._generation:
            return None
        listing = self._list_table()
        if listing is None:
            return TABLE_GONE
        if listing != self._listing:
            return TABLE_CHANGED
        self._generation = generation  # somebody changed a table of their own
        return None

    def _raise(self, kernel: Kernel) -> None:
        self._set_routing(kernel)
        self._apply(ruleset.render_table(self.policy, self._pods))
        self._remember_table()
        if self.policy.pool6 is not None:
            _keep_router_advertisements()
        namespace.write_sysctls(dict.fromkeys(self._forwarding(), "1"))

    def _set_routing(self, kernel: Kernel) -> None:
        walls = {wall.pool.version: wall for wall in self.policy.walls()}
        for version in IP_VERSIONS:
            kernel.set_wall(self.policy.routing_table, version, walls.get(version))

    def _forwarding(self) -> tuple[str, ...]:
        return (FORWARDING,) if self.policy.pool6 is None else (FORWARDING, FORWARDING6)

    def _apply(self, commands: str) -> None:
        """A transaction of ours, after which the table is still known to be as it was made."""
        self._nft.apply(commands)
        if self._generation is not None:
            expected = (self._generation + 1) & 0xFFFFFFFF
            found = nfnetlink.read_generation(self._netlink)
            # Another number: somebody else was there as well, and the next check looks at all of it.
            self._generation = found if found == expected else None

    def _remember_table(self) -> None:
        self._generation = nfnetlink.read_generation(self._netlink)
        self._listing = self._list_table()

    def _list_table(self) -> str | None:
        sets = ruleset.configured_sets(self.policy)
        try:
            return self._nft.list_table(ruleset.FAMILY, self.policy.table, sets)
        except PolicyError:
            # A set is gone while the table is there: what is left of it is not ours any more.
            return self._nft.list_table(ruleset.FAMILY, self.policy.table, ())

    # ---- counters

    def counters(self) -> Mapping[Reason, int]:
        """Packets refused, by reason, all pods together; those of strangers as spoofed."""
        totals = dict.fromkeys(Reason, 0)
        for traffic in self.traffic().values():
            for reason, packets in traffic.refused.items():
                totals[reason] += packets
        with suppress(PolicyError):
            totals[Reason.SPOOFED] += self._nft.packets(ruleset.FAMILY, self.policy.table, ruleset.STRANGERS)
        return totals

    def _count_on(self, pods: Mapping[IPv4Address, Traffic]) -> dict[IPv4Address, Traffic]:
        """The pods with what the table has counted, or with what was known where that is more."""
        counted = self._read_traffic()
        return {address: larger(known, counted.get(address, NO_TRAFFIC)) for address, known in pods.items()}

    def _read_traffic(self) -> Mapping[IPv4Address, Traffic]:
        """What the table has counted; nothing without one, for there is nothing to be read then."""
        sets = {name: self._read_set(name) for name in ruleset.counted_sets(self.policy)}
        return collect_traffic(self.policy, sets)

    def _read_set(self, name: str) -> Iterable[Element]:
        try:
            return self._nft.elements(ruleset.FAMILY, self.policy.table, name)
        except PolicyError:
            return ()

    def _read_one(self, address: IPv4Address) -> Traffic:
        try:
            return elements.read_traffic(self._netlink, self.policy, address)
        except OSError as error:
            # That the pod is cut off matters more than what it had counted since it was last read.
            logger.warning("%s: its last counters cannot be read: %s", address, error)
            return NO_TRAFFIC


def collect_traffic(policy: Policy, sets: Mapping[str, Iterable[Element]]) -> dict[IPv4Address, Traffic]:
    """The pods' traffic from the elements of the table's counting sets, by the sets' names."""
    sent: dict[IPv4Address, Volume] = {}
    received: dict[IPv4Address, Volume] = {}
    refused: dict[IPv4Address, dict[Reason, int]] = {}
    for name, found in sets.items():
        for element in found:
            if name == ruleset.REFUSED_SET:
                link, mark = element.key
                address, reason = find_address(link), REASONS.get(int(mark, 16))
                if address is not None and reason is not None and element.packets:
                    refused.setdefault(address, {})[reason] = element.packets
            elif name.startswith(ruleset.SENT_SET):
                if (address := find_address(element.key[0])) is not None:
                    sent[address] = sent.get(address, Volume()) + Volume(element.bytes, element.packets)
            else:
                address = ruleset.find_pod(policy, element.key[0])
                received[address] = received.get(address, Volume()) + Volume(element.bytes, element.packets)
    return {
        address: Traffic(
            sent.get(address, Volume()), received.get(address, Volume()), refused.get(address, {})
        )
        for address in sent.keys() | received.keys() | refused.keys()
    }


@contextmanager
def _collector_paused() -> Iterator[None]:
    """For work that makes and frees thousands of values none of which is part of a cycle.

    A collection amid them finds nothing, and walks all objects of the process while the event loop waits.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _keep_router_advertisements() -> None:
    """A host that forwards IPv6 stops heeding its own router's advertisements, unless told to (accept_ra=2).

    Where they were heeded, they stay so: an operator's default route must not go because pods have IPv6.
    """
    interfaces = namespace.SYSCTLS / INTERFACES6
    for setting in sorted(interfaces.glob("*/accept_ra")):
        name = setting.parent.name
        if find_address(name) is None and setting.read_text().strip() == "1":
            namespace.write_sysctls({f"{INTERFACES6}/{name}/accept_ra": "2"})
