"""The policy as text for nftables: the whole table, its change in place, and one pod's elements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from string import Template
from typing import Final

from codius_netpolicy.addressing import address6, link_name, pod_mac
from codius_netpolicy.policy import MAX_PODS, Policy, Transport
from codius_netpolicy.ranges import Address, render_addresses
from codius_netpolicy.traffic import NO_TRAFFIC, Reason, Traffic, Volume

FAMILY: Final = "inet"
OWNER: Final = "owned by codius host; replaced as a whole"
STRANGERS: Final = "strangers"
"""The counter of packets from outside that claim a pod's address: they are no pod's."""
REFUSED_SET: Final = "refused"
SENT_SET: Final = "pod_tx"
RECEIVED_SET: Final = "pod_rx"


@dataclass(frozen=True, slots=True)
class IpVersion:
    """How nftables spells one version of IP."""

    number: int
    keyword: str
    type: str
    suffix: str
    """Of the names of this version's sets."""


V4: Final = IpVersion(4, "ip", "ipv4_addr", "")
V6: Final = IpVersion(6, "ip6", "ipv6_addr", "6")

# A packet of a pod meets three chains. `pre` drops what is not the pod's own before connection tracking
# spends an entry on it. `screen` judges where it wants to go, before it is routed: the second wall, which
# is in the routing, counts nothing. `pod_to_host` judges what turned out to be for the host itself.
# A link is in the group from its first moment, so one whose elements are missing can do nothing: closed by
# default. A flow is judged and limited when it begins; `confirmed` is one that was let through, also while
# nobody answers it and it stays `new`. Refusals name their reason by the packet's mark, so that one set
# counts each pod's by reason. Chains end with their base chain's policy: accept.
_CHAINS: Final = Template("""\
  chain pre {
    type filter hook prerouting priority raw; policy accept;
    iifgroup $group goto pod_ingress
$strangers  }
  chain pod_ingress {
$own  }
  chain refuse {
    add @refused { iifname . meta mark }
    drop
  }
  chain refuse_aloud {
    add @refused { iifname . meta mark }
    reject with icmpx admin-prohibited
  }
  chain refuse_inbound {
    add @refused { oifname . meta mark }
    drop
  }
  chain screen {
    type filter hook prerouting priority mangle; policy accept;
    iifgroup $group goto from_pod
  }
  chain from_pod {
    ct status confirmed accept
    ct state invalid meta mark set $invalid goto refuse
$screened    meta l4proto != { tcp, udp, icmp, ipv6-icmp } meta mark set $protocol goto refuse
    meta l4proto . th dport @deny_out meta mark set $port goto refuse_aloud
    goto admit
  }
  chain admit {
$limits  }
  chain input {
    type filter hook input priority filter; policy accept;
    iifgroup $group jump pod_to_host
  }
  chain pod_to_host {
    ct status confirmed accept
$hosted    meta mark set $host goto refuse
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    oifgroup $group jump to_pod
  }
  chain to_pod {
    ct state established,related accept
    meta mark set $unsolicited goto refuse_inbound
  }
  chain output {
    type filter hook output priority filter; policy accept;
    oifgroup $group udp dport @deny_in_udp ct state new meta mark set $port goto refuse_inbound
  }
  chain post_acct {
    type filter hook postrouting priority mangle; policy accept;
$received  }
  chain nat {
    type nat hook postrouting priority srcnat; policy accept;
$masquerade  }
""")


def render_table(policy: Policy, pods: Mapping[IPv4Address, Traffic]) -> str:
    """The whole table with these pods' elements: one transaction that replaces what was there.

    The pods' counters go on from the traffic given.
    """
    return render_removal(policy) + _render_body(policy, pods)


def render_change(policy: Policy) -> str:
    """Other rules and ranges for the table as it stands: one transaction; pods and their counters stay."""
    table = f"{FAMILY} {policy.table}"
    emptied = "".join(f"flush set {table} {name}\n" for name in configured_sets(policy))
    return f"flush table {table}\n{emptied}" + _render_body(policy, {})


def render_removal(policy: Policy) -> str:
    """Removes the table; adding it first makes that succeed when there is none."""
    return f"add table {FAMILY} {policy.table}\ndelete table {FAMILY} {policy.table}\n"


def render_admission(policy: Policy, address: IPv4Address, traffic: Traffic = NO_TRAFFIC) -> str:
    """Lets the pod send and receive, its counters going on from `traffic`; a second time changes nothing."""
    return "".join(
        f"add element {FAMILY} {policy.table} {name} {{ {element} }}\n"
        for name, element in _elements(policy, address, traffic)
    )


def render_eviction(policy: Policy, address: IPv4Address) -> str:
    """Cuts the pod off; adding the elements first makes that succeed when they are gone already."""
    keys = counted_keys(policy, address)
    return "".join(
        f"{verb} element {FAMILY} {policy.table} {name} {{ {', '.join(keys[name])} }}\n"
        for verb in ("add", "delete")
        for name in keys
    )


def counted_sets(policy: Policy) -> tuple[str, ...]:
    """The sets whose elements count for a pod."""
    return (REFUSED_SET, *(name + v.suffix for v in _versions(policy) for name in (SENT_SET, RECEIVED_SET)))


def counted_keys(policy: Policy, address: IPv4Address) -> dict[str, tuple[str, ...]]:
    """The keys of every element that counts, or may count, for the pod; by set."""
    own = {name: (key,) for name, key in _keys(policy, address)}
    return {**own, REFUSED_SET: tuple(_refused(address, reason) for reason in Reason)}


def pod_addresses(policy: Policy, address: IPv4Address) -> Iterator[tuple[str, Address]]:
    """The pod's address of each IP version it has, after the suffix of that version's sets."""
    yield V4.suffix, address
    if policy.pool6 is not None:
        yield V6.suffix, address6(address, policy.pool, policy.pool6)


def find_pod(policy: Policy, address: str) -> IPv4Address:
    """The pod that one of its addresses, of either version, is of; ValueError when it is in no pool."""
    found = ip_address(address)
    if isinstance(found, IPv6Address):
        if policy.pool6 is None:
            raise ValueError(f"{address} is no pod's: pods have no IPv6")
        return policy.pool.network_address + (int(found) - int(policy.pool6.network_address))
    return found


def configured_sets(policy: Policy) -> tuple[str, ...]:
    """The sets that hold configuration; all others are filled at run time."""
    versions = _versions(policy)
    return (*(f"{name}{v.suffix}" for v in versions for name in ("svc", "deny")), "deny_out", "deny_in_udp")


def _versions(policy: Policy) -> tuple[IpVersion, ...]:
    return (V4,) if policy.pool6 is None else (V4, V6)


def _render_body(policy: Policy, pods: Mapping[IPv4Address, Traffic]) -> str:
    chains = _CHAINS.substitute(
        {reason.value: reason.mark for reason in Reason},
        group=policy.group,
        strangers=_lines(_render_strangers(policy)),
        own=_lines(_render_own(policy)),
        screened=_lines(_render_screened(policy)),
        hosted=_lines(_render_hosted(policy)),
        limits=_lines(_render_limits(policy)),
        received=_lines(
            f"oifgroup {policy.group} {v.keyword} daddr @{RECEIVED_SET}{v.suffix}" for v in _versions(policy)
        ),
        masquerade=_lines(
            f"{v.keyword} saddr {pool} oifgroup != {policy.group} masquerade"
            for v, pool in zip(_versions(policy), policy.pools, strict=True)
        ),
    )
    return (
        f"table {FAMILY} {policy.table} {{\n"
        f'  comment "{OWNER}"\n'
        f"{_render_sets(policy, pods)}"
        f"  counter {STRANGERS} {{ }}\n"
        f"{chains}}}\n"
    )


def _render_sets(policy: Policy, pods: Mapping[IPv4Address, Traffic]) -> str:
    filled: dict[str, list[str]] = {}
    for address in sorted(pods, key=int):
        for name, element in _elements(policy, address, pods[address]):
            filled.setdefault(name, []).append(element)
    ports = [
        f"{transport} . {span.first}-{span.last}"
        for transport in Transport
        for span in policy.denied_port_numbers(transport).spans
    ]
    sets = [
        _set(REFUSED_SET, f"ifname . mark; size {MAX_PODS * len(Reason)}; flags dynamic; counter", filled),
        _set("deny_out", "inet_proto . inet_service; flags interval; auto-merge", {"deny_out": ports}),
        _set(
            "deny_in_udp",
            "inet_service; flags interval; auto-merge",
            {"deny_in_udp": list(map(str, sorted(set(policy.denied_in_udp))))},
        ),
    ]
    for v in _versions(policy):
        openings = [
            f"{o.address} . {o.transport} . {o.port}"
            for o in policy.openings
            if o.address.version == v.number
        ]
        denied = render_addresses(policy.denied_addresses(v.number).spans, v.number)
        configured = {f"svc{v.suffix}": openings, f"deny{v.suffix}": denied}
        size = f"size {MAX_PODS}"
        sets += [
            _set(f"{SENT_SET}{v.suffix}", f"ifname . ether_addr . {v.type}; {size}; counter", filled),
            _set(f"{RECEIVED_SET}{v.suffix}", f"{v.type}; {size}; counter", filled),
            _set(f"svc{v.suffix}", f"{v.type} . inet_proto . inet_service", configured),
            _set(f"deny{v.suffix}", f"{v.type}; flags interval; auto-merge", configured),
            _set(f"conns{v.suffix}", f"{v.type}; {size}; flags dynamic", {}),
            _set(f"newrate{v.suffix}", f"{v.type}; {size}; flags dynamic,timeout; timeout 60s", {}),
        ]
    return "".join(sets)


def _render_strangers(policy: Policy) -> Iterator[str]:
    for v, pool in zip(_versions(policy), policy.pools, strict=True):
        yield f'iifname != "lo" {v.keyword} saddr {pool} counter name {STRANGERS} drop'


def _render_own(policy: Policy) -> Iterator[str]:
    if policy.pool6 is not None:
        # The kernel of every pod announces its multicast groups (RFC 3810 5.2.13); that is no attack.
        yield "ip6 saddr :: ip6 daddr ff02::16 drop"
    # Looked up positively: a `!=` look-up would not move the elements' counters.
    for v in _versions(policy):
        yield f"iifname . ether saddr . {v.keyword} saddr @{SENT_SET}{v.suffix} accept"
    if policy.pool6 is None:
        yield f"meta nfproto ipv6 meta mark set {Reason.IPV6.mark} goto refuse"
    yield f"meta mark set {Reason.SPOOFED.mark} goto refuse"


def _render_screened(policy: Policy) -> Iterator[str]:
    # What is for the host itself is left to `input`, which sees it after any redirection by others.
    yield "fib daddr type local accept"
    for v, pool in zip(_versions(policy), policy.pools, strict=True):
        yield f"{v.keyword} daddr {pool} meta mark set {Reason.POD.mark} goto refuse"
    for v in _versions(policy):
        yield f"{v.keyword} daddr . meta l4proto . th dport @svc{v.suffix} goto admit"
    for v in _versions(policy):
        yield f"{v.keyword} daddr @deny{v.suffix} meta mark set {Reason.RANGE.mark} goto refuse_aloud"


def _render_hosted(policy: Policy) -> Iterator[str]:
    for v in _versions(policy):
        yield f"{v.keyword} daddr . meta l4proto . th dport @svc{v.suffix} goto admit"
    limited = f"limit rate {policy.limits.echo_requests}/second accept"
    yield f"ip daddr {policy.gateway} icmp type echo-request {limited}"
    if policy.pool6 is not None:
        yield f"ip6 daddr {policy.gateway6} icmpv6 type echo-request {limited}"


def _render_limits(policy: Policy) -> Iterator[str]:
    limits = policy.limits
    for v in _versions(policy):
        if limits.connections:
            over = f"{v.keyword} saddr ct count over {limits.connections}"
            yield f"add @conns{v.suffix} {{ {over} }} meta mark set {Reason.CONNECTIONS.mark} goto refuse"
        if limits.new_connections:
            rate = f"{limits.new_connections}/second burst {limits.new_connections_burst} packets"
            over = f"{v.keyword} saddr limit rate over {rate}"
            yield f"update @newrate{v.suffix} {{ {over} }} meta mark set {Reason.RATE.mark} goto refuse"  # noqa: S608


def _keys(policy: Policy, address: IPv4Address) -> Iterator[tuple[str, str]]:
    for suffix, own in pod_addresses(policy, address):
        yield f"{SENT_SET}{suffix}", f'"{link_name(address)}" . {pod_mac(address)} . {own}'
        yield f"{RECEIVED_SET}{suffix}", str(own)


def _elements(policy: Policy, address: IPv4Address, traffic: Traffic) -> Iterator[tuple[str, str]]:
    """The set and the element of everything the kernel knows of a pod."""
    volumes = {SENT_SET: traffic.sent, RECEIVED_SET: traffic.received}
    for name, key in _keys(policy, address):
        # What went before is all in the IPv4 counters: a pod's two versions are told as one sum.
        yield name, key + _counter(volumes.get(name, Volume()))
    for reason, packets in traffic.refused.items():
        yield REFUSED_SET, _refused(address, reason) + _counter(Volume(packets=packets))


def _refused(address: IPv4Address, reason: Reason) -> str:
    return f'"{link_name(address)}" . {reason.mark}'


def _counter(volume: Volume) -> str:
    if volume == Volume():
        return ""
    return f" counter packets {volume.packets} bytes {volume.bytes}"


def _set(name: str, definition: str, filled: Mapping[str, list[str]]) -> str:
    """An empty list is a syntax error, so an empty set has no list at all."""
    elements = filled.get(name)
    listed = f"; elements = {{ {', '.join(elements)} }}" if elements else ""
    return f"  set {name} {{ type {definition}{listed}; }}\n"


def _lines(rules: Iterable[str]) -> str:
    return "".join(f"    {rule}\n" for rule in rules)
