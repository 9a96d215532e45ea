"""The steps that connect and disconnect pods, in an order that leaves nothing open between any two."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from codius_netpolicy import namespace
from codius_netpolicy.addressing import POD_LINK, address6, find_address, host_mac, link_name, pod_mac
from codius_netpolicy.conntrack import forget_flows
from codius_netpolicy.kernel import Kernel, link_names, routed_pods
from codius_netpolicy.policy import Policy, PolicyError
from codius_netpolicy.traffic import Traffic
from codius_netpolicy.walls import Walls

logger = logging.getLogger(__name__)

HOST_SIDE_SYSCTLS: Final[Mapping[str, str]] = {
    "ipv4/conf/{link}/rp_filter": "1",  # the kernel takes the larger of this and `all`
    "ipv4/conf/{link}/forwarding": "1",
    "ipv4/conf/{link}/accept_redirects": "0",
    "ipv4/conf/{link}/send_redirects": "0",
    "ipv4/conf/{link}/arp_ignore": "1",
    "ipv4/conf/{link}/proxy_arp": "0",
    "ipv4/conf/{link}/route_localnet": "0",
}
WITHOUT_IPV6: Final[Mapping[str, str]] = {"ipv6/conf/{link}/disable_ipv6": "1"}
WITH_IPV6: Final[Mapping[str, str]] = {
    "ipv6/conf/{link}/accept_ra": "0",
    "ipv6/conf/{link}/accept_redirects": "0",
    "ipv6/conf/{link}/autoconf": "0",
    "ipv6/conf/{link}/dad_transmits": "0",
    "ipv6/conf/{link}/addr_gen_mode": "1",  # no link-local address of its own choosing
    "ipv6/conf/{link}/disable_ipv6": "0",
}
"""Every address and neighbour of a pod's link is set by us: nothing is learned or announced on it."""


class Wiring:
    """The pods' network in the namespace of the thread that made it. Blocking: see PodNetwork."""

    def __init__(self, policy: Policy) -> None:
        self.walls = Walls(policy)
        self._reshape: set[IPv4Address] = set()  # live links made under other limits of bandwidth

    @property
    def policy(self) -> Policy:
        return self.walls.policy

    def start(self, pods: Mapping[IPv4Address, Traffic]) -> frozenset[IPv4Address]:
        for address in pods:
            self._require_pod(address)
        with Kernel() as kernel:
            self.walls.raise_both(kernel, pods)
            live = self._remove_unknown_links(kernel, pods)
            kernel.set_service_addresses(self.policy.service_addresses)
        logger.info("network started: %d pods known, %d links live", len(pods), len(live))
        return live

    def attach(self, address: IPv4Address, netns_fd: int, traffic: Traffic) -> bool:
        """False when the pod is attached already."""
        self._require_pod(address)
        if namespace.is_own(netns_fd):
            raise PolicyError(f"{address}: that is the host's own network namespace, not a pod's")
        with Kernel() as kernel:
            if self._is_attached(kernel, address, netns_fd):
                # The table may have been replaced without this pod.
                self.walls.admit(address, traffic)
                if address in self._reshape:
                    self._shape(kernel, address, netns_fd)
                return False
            try:
                # What a pod that had this address before left behind, or an attach that did not end.
                self._remove(kernel, address)
                self._connect(kernel, address, netns_fd, traffic)
            except BaseException:
                self._undo(kernel, address)
                raise
        return True

    def detach(self, address: IPv4Address) -> Traffic | None:
        with Kernel() as kernel:
            return self._disconnect(kernel, address)

    def links(self) -> frozenset[IPv4Address]:
        """Those made under other limits are left out: to attach them once more is what mends them."""
        return routed_pods() - self._reshape

    def stop(self) -> None:
        with Kernel() as kernel:
            # The links go while the walls still stand.
            self._remove_unknown_links(kernel, ())
            kernel.set_service_addresses(())
            self.walls.lower(kernel)
        logger.info("network removed")

    def close(self) -> None:
        self.walls.close()

    def _connect(self, kernel: Kernel, address: IPv4Address, netns_fd: int, traffic: Traffic) -> None:
        policy, link, limits = self.policy, link_name(address), self.policy.limits
        self.walls.admit(address, traffic)
        index = kernel.add_veth(
            link,
            host_mac(address),
            policy.group,
            peer_name=POD_LINK,
            peer_mac=pod_mac(address),
            peer_netns_fd=netns_fd,
        )
        own6 = self._address6(address)
        # IPv6 is on at the host's end in any case: what a pod sends all the same, the rules refuse and count.
        namespace.write_sysctls(_of_link(link, {**HOST_SIDE_SYSCTLS, **WITH_IPV6}))
        kernel.add_address(index, policy.gateway)
        kernel.shape(index, limits.receive_rate)
        kernel.set_up(index)
        kernel.add_neighbour(index, address, pod_mac(address))
        if own6 is not None:
            kernel.add_address(index, policy.gateway6)
            kernel.add_neighbour(index, own6, pod_mac(address))
        namespace.call_inside(netns_fd, partial(_connect_inside, policy, address, own6))
        kernel.set_alias(index, self._render_alias())
        if own6 is not None:
            kernel.add_link_route(index, own6)
        # Last, and the mark of a link that is complete: without it the reverse path filter takes no packet
        # from the pod, and none finds its way to it.
        kernel.add_link_route(index, address)

    def _disconnect(self, kernel: Kernel, address: IPv4Address) -> Traffic | None:
        self._reshape.discard(address)
        try:
            # First, because it cuts everything at once, established flows too.
            return self.walls.evict(address)
        finally:
            self._remove(kernel, address)

    def _is_attached(self, kernel: Kernel, address: IPv4Address, netns_fd: int) -> bool:
        if address not in routed_pods():
            return False
        link = kernel.find_link(link_name(address))
        if link is None or link.group != self.policy.group or link.peer_netns is None:
            return False
        return self._has_right_versions(link.alias) and link.peer_netns == kernel.netns_id(netns_fd)

    def _shape(self, kernel: Kernel, address: IPv4Address, netns_fd: int) -> None:
        """New limits of bandwidth for a link that lives on."""
        link = kernel.find_link(link_name(address))
        if link is None:
            raise PolicyError(f"{address}: its link vanished while its limits were set")
        kernel.shape(link.index, self.policy.limits.receive_rate)
        namespace.call_inside(netns_fd, partial(_shape_inside, self.policy.limits.send_rate))
        kernel.set_alias(link.index, self._render_alias())
        self._reshape.discard(address)

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
        self._reshape.clear()
        for name in link_names():
            address = find_address(name)
            link = kernel.find_link(name) if address else None
            if address is None or link is None:
                continue
            complete = link.group == self.policy.group and link.up and self._has_right_versions(link.alias)
            if address in known and address in routed and complete:
                live.add(address)
                if link.alias != self._render_alias():
                    self._reshape.add(address)
                continue
            logger.info(
                "removing the link %s: %s", name, "incomplete" if address in known else "no known pod"
            )
            self._remove(kernel, address)
        return frozenset(live)

    def _remove(self, kernel: Kernel, address: IPv4Address) -> None:
        kernel.remove_link(link_name(address))
        own6 = self._address6(address)
        forget_flows(address, *(() if own6 is None else (own6,)))

    def _render_alias(self) -> str:
        """How a link was made, as far as settings can change it; written on the link itself."""
        limits = self.policy.limits
        return f"{self._render_versions()} send {limits.send_rate} receive {limits.receive_rate}"

    def _render_versions(self) -> str:
        return f"codius ipv6 {self.policy.pool6 or 'off'}"

    def _has_right_versions(self, alias: str) -> bool:
        return alias.startswith(f"{self._render_versions()} ")

    def _address6(self, address: IPv4Address) -> IPv6Address | None:
        policy = self.policy
        return None if policy.pool6 is None else address6(address, policy.pool, policy.pool6)

    def _require_pod(self, address: IPv4Address) -> None:
        if address not in self.policy.pool:
            raise PolicyError(f"{address} is not in the pods' pool {self.policy.pool}")


def _of_link(link: str, values: Mapping[str, str]) -> dict[str, str]:
    return {key.format(link=link): value for key, value in values.items()}


def _connect_inside(policy: Policy, address: IPv4Address, own6: IPv6Address | None) -> None:
    """Runs in a thread inside the pod's namespace."""
    with Kernel() as kernel:
        loopback = kernel.find_link("lo")
        link = kernel.find_link(POD_LINK)
        if loopback is None or link is None:
            raise PolicyError(f"{address}: the link {POD_LINK} vanished from the pod while it was attached")
        for name in ("all", "default", POD_LINK) if own6 is None else (POD_LINK,):
            namespace.write_sysctls(_of_link(name, WITHOUT_IPV6 if own6 is None else WITH_IPV6))
        kernel.set_up(loopback.index)
        kernel.add_address(link.index, address, scope=0)
        kernel.shape(link.index, policy.limits.send_rate)
        kernel.set_up(link.index)
        gateways = (policy.gateway,) if own6 is None else (policy.gateway, policy.gateway6)
        if own6 is not None:
            kernel.add_address(link.index, own6)
        for gateway in gateways:
            kernel.add_neighbour(link.index, gateway, host_mac(address))
            kernel.add_link_route(link.index, gateway)
            kernel.add_default_route(link.index, gateway)


def _shape_inside(rate: int) -> None:
    """Runs in a thread inside the pod's namespace."""
    with Kernel() as kernel:
        link = kernel.find_link(POD_LINK)
        if link is None:
            raise PolicyError(f"the link {POD_LINK} is not in the pod")
        kernel.shape(link.index, rate)
