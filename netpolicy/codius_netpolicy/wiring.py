"""The steps that connect and disconnect pods, in an order that leaves nothing open between any two."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import partial
from ipaddress import IPv4Address
from typing import Final

from codius_netpolicy import namespace, ruleset
from codius_netpolicy.addressing import POD_LINK, find_address, host_mac, link_name, pod_mac
from codius_netpolicy.conntrack import forget_flows
from codius_netpolicy.kernel import Kernel, link_names, routed_pods
from codius_netpolicy.nft import Nft
from codius_netpolicy.policy import Policy, PolicyError

logger = logging.getLogger(__name__)

HOST_SIDE_SYSCTLS: Final[Mapping[str, str]] = {
    "ipv4/conf/{link}/rp_filter": "1",  # the kernel takes the larger of this and `all`
    "ipv4/conf/{link}/forwarding": "1",
    "ipv4/conf/{link}/accept_redirects": "0",
    "ipv4/conf/{link}/send_redirects": "0",
    "ipv4/conf/{link}/arp_ignore": "1",
    "ipv4/conf/{link}/proxy_arp": "0",
    "ipv4/conf/{link}/route_localnet": "0",
    "ipv6/conf/{link}/disable_ipv6": "1",
}
POD_SIDE_SYSCTLS: Final[Mapping[str, str]] = {
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
    f"ipv6/conf/{POD_LINK}/disable_ipv6": "1",
}


class Wiring:
    """The pods' network in the namespace of the thread that made it. Blocking: see PodNetwork."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.nft = Nft()
        self._listing: str | None = None

    def start(self, addresses: Collection[IPv4Address]) -> frozenset[IPv4Address]:
        for address in addresses:
            self._require_pod(address)
        policy = self.policy
        with Kernel() as kernel:
            # Walls first, forwarding last: at no moment is a packet forwarded without both.
            kernel.set_wall(policy.routing_table, policy.pool, policy.walled_ranges)
            self.nft.apply(ruleset.render_table(policy, addresses))
            self._listing = self._list_table()
            live = self._remove_unknown_links(kernel, addresses)
            kernel.set_service_addresses(policy.service_addresses)
        namespace.write_sysctls({"ipv4/ip_forward": "1"})
        logger.info("network started: %d pods known, %d links live", len(addresses), len(live))
        return live

    def attach(self, address: IPv4Address, netns_fd: int) -> bool:
        """False when the pod is attached already."""
        self._require_pod(address)
        if namespace.is_own(netns_fd):
            raise PolicyError(f"{address}: that is the host's own network namespace, not a pod's")
        with Kernel() as kernel:
            if self._is_attached(kernel, address, netns_fd):
                return False
            try:
                # What a pod that had this address before left behind, or an attach that did not end.
                _remove(kernel, address)
                self._connect(kernel, address, netns_fd)
            except BaseException:
                self._undo(kernel, address)
                raise
        return True

    def detach(self, address: IPv4Address) -> None:
        with Kernel() as kernel:
            self._disconnect(kernel, address)

    def links(self) -> frozenset[IPv4Address]:
        return routed_pods()

    def present(self) -> bool:
        listing = self._list_table()
        if listing is None or self._listing is None:
            return listing is not None and ruleset.render_comment(self.policy) in listing
        return listing == self._listing

    def counters(self) -> Mapping[str, int]:
        return self.nft.counters(ruleset.FAMILY, self.policy.table)

    def stop(self) -> None:
        """`ip_forward` stays: others (podman, docker, a VPN) may have come to need it meanwhile."""
        with Kernel() as kernel:
            # The links go while the walls still stand.
            self._remove_unknown_links(kernel, ())
            kernel.set_service_addresses(())
            self.nft.apply(ruleset.render_removal(self.policy))
            self._listing = None
            kernel.set_wall(self.policy.routing_table, None, ())
        logger.info("network removed")

    def _connect(self, kernel: Kernel, address: IPv4Address, netns_fd: int) -> None:
        policy, link = self.policy, link_name(address)
        self.nft.apply(ruleset.render_admission(policy, address))
        index = kernel.add_veth(
            link,
            host_mac(address),
            policy.group,
            peer_name=POD_LINK,
            peer_mac=pod_mac(address),
            peer_netns_fd=netns_fd,
        )
        namespace.write_sysctls({key.format(link=link): value for key, value in HOST_SIDE_SYSCTLS.items()})
        kernel.add_address(index, policy.gateway)
        kernel.set_up(index)
        kernel.add_neighbour(index, address, pod_mac(address))
        namespace.call_inside(netns_fd, partial(_connect_inside, address, policy.gateway))
        # Last, and the mark of a link that is complete: without it the reverse path filter takes no packet
        # from the pod, and none finds its way to it.
        kernel.add_link_route(index, address)

    def _disconnect(self, kernel: Kernel, address: IPv4Address) -> None:
        try:
            # First, because it cuts everything at once, established flows too.
            self.nft.apply(ruleset.render_eviction(self.policy, address))
        except PolicyError:
            # Without a table there are no elements; with one, the link must go all the same.
            if self._list_table() is not None:
                _remove(kernel, address)
                raise
        _remove(kernel, address)

    def _is_attached(self, kernel: Kernel, address: IPv4Address, netns_fd: int) -> bool:
        if address not in routed_pods():
            return False
        link = kernel.find_link(link_name(address))
        if link is None or link.group != self.policy.group or link.peer_netns is None:
            return False
        if link.peer_netns != kernel.netns_id(netns_fd):
            return False
        # The table may have been replaced without this pod.
        self.nft.apply(ruleset.render_admission(self.policy, address))
        return True

    def _undo(self, kernel: Kernel, address: IPv4Address) -> None:
        try:
            self._disconnect(kernel, address)
        except PolicyError:
            # The first error is the one to tell; what is left is closed, and gone with the next start.
            logger.exception("%s: could not undo a failed attach", address)

    def _remove_unknown_links(self, kernel: Kernel, known: Collection[IPv4Address]) -> frozenset[IPv4Address]:
        """Removes every pod link that is not both known and complete; the addresses of those that stay."""
        routed = routed_pods()
        live = set()
        for name in link_names():
            address = find_address(name)
            link = kernel.find_link(name) if address else None
            if address is None or link is None:
                continue
            if address in known and address in routed and link.group == self.policy.group and link.up:
                live.add(address)
                continue
            logger.info(
                "removing the link %s: %s", name, "incomplete" if address in known else "no known pod"
            )
            _remove(kernel, address)
        return frozenset(live)

    def _list_table(self) -> str | None:
        return self.nft.list_table(ruleset.FAMILY, self.policy.table, ruleset.CONFIGURED_SETS)

    def _require_pod(self, address: IPv4Address) -> None:
        if address not in self.policy.pool:
            raise PolicyError(f"{address} is not in the pods' pool {self.policy.pool}")


def _remove(kernel: Kernel, address: IPv4Address) -> None:
    kernel.remove_link(link_name(address))
    forget_flows(address)


def _connect_inside(address: IPv4Address, gateway: IPv4Address) -> None:
    """Runs in a thread inside the pod's namespace."""
    namespace.write_sysctls(POD_SIDE_SYSCTLS)
    with Kernel() as kernel:
        loopback = kernel.find_link("lo")
        link = kernel.find_link(POD_LINK)
        if loopback is None or link is None:
            raise PolicyError(f"{address}: the link {POD_LINK} vanished from the pod while it was attached")
        kernel.set_up(loopback.index)
        kernel.add_address(link.index, address, scope=0)
        kernel.set_up(link.index)
        kernel.add_neighbour(link.index, gateway, host_mac(address))
        kernel.add_link_route(link.index, gateway)
        kernel.add_default_route(link.index, gateway)
