"""Which flows of pods a policy does not allow: the ruleset's own judgement, over flows that exist already."""

from __future__ import annotations

from typing import Final

from codius_netpolicy.conntrack import Flow
from codius_netpolicy.policy import Policy, Transport

PORTLESS: Final = frozenset({1, 58})
"""Protocols pods may speak besides TCP and UDP: ICMP and ICMPv6 (IANA)."""


class Forbidden:
    """The tracked flows of pods that a policy does not allow (any more)."""

    def __init__(self, policy: Policy, version: int) -> None:
        self._pool = next(pool for pool in policy.pools if pool.version == version)
        self._gateways = {policy.gateway, policy.gateway6}
        self._openings = {(o.address, o.transport.number, o.port) for o in policy.openings}
        self._addresses = policy.denied_addresses(version)
        self._ports = {t.number: policy.denied_port_numbers(t) for t in Transport}

    def __contains__(self, flow: object) -> bool:
        if not isinstance(flow, Flow) or flow.source not in self._pool:
            return False
        if (flow.destination, flow.protocol, flow.port) in self._openings:
            return False
        if flow.destination in self._gateways:
            return False
        if flow.destination in self._pool or int(flow.destination) in self._addresses:
            return True
        if flow.protocol not in self._ports:
            return flow.protocol not in PORTLESS
        return flow.port in self._ports[flow.protocol]
