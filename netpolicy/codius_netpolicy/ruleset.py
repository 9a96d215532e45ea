"""The policy as text for nftables: the whole table, and the commands for one pod's elements."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address
from string import Template
from typing import Final

from codius_netpolicy.addressing import link_name, pod_mac
from codius_netpolicy.policy import MAX_PODS, Policy

FAMILY: Final = "inet"
OWNER: Final = "owned by codius host; replaced as a whole"

CONFIGURED_SETS: Final = ("svc", "deny4", "deny_out", "deny_in_udp")
"""The sets that hold configuration; all others are filled at run time."""
COUNTERS: Final = (
    "spoofed",
    "v6",
    "pod2pod",
    "pod2host",
    "denied4",
    "denied_port",
    "limited",
    "unsolicited",
)
"""Why a packet was refused."""

# A packet's way: `pre` drops what is not the pod's own before connection tracking spends an entry on it;
# then `input` (to the host) or `forward` (through it). A link is in the group from its first moment, so
# one whose elements are missing can do nothing: closed by default.
_TABLE: Final = Template("""\
add table $family $table
delete table $family $table

table $family $table {
  comment "$comment"
  set pod_tx {
    type ifname . ether_addr . ipv4_addr; size $max_pods; counter; comment "anti-spoof + bytes sent"; $pod_tx
  }
  set pod_rx { type ipv4_addr; size $max_pods; counter; comment "bytes received"; $pod_rx }

  set svc { type ipv4_addr . inet_proto . inet_service; $svc }
  set deny4 { type ipv4_addr; flags interval; auto-merge; $deny4 }
  set deny_out { type inet_proto . inet_service; $deny_out }
  set deny_in_udp { type inet_service; flags interval; auto-merge; $deny_in_udp }

  set conns { type ipv4_addr; size $max_pods; flags dynamic; }
  set newrate { type ipv4_addr; size $max_pods; flags dynamic,timeout; timeout 60s; }
$counters
  chain pre {
    type filter hook prerouting priority raw; policy accept;
    iifgroup $group goto pod_ingress
    iifname != "lo" ip saddr $pool counter name spoofed drop
  }
  chain pod_ingress {
    meta nfproto ipv6 counter name v6 drop
    iifname . ether saddr . ip saddr @pod_tx accept
    counter name spoofed drop
  }
  chain limits {
    add @conns { ip saddr ct count over $connections } counter name limited drop
    update @newrate { ip saddr limit rate over $rate/second burst $burst packets } counter name limited drop
  }
  chain admit {
    jump limits
    accept
  }
  chain input {
    type filter hook input priority filter; policy accept;
    iifgroup $group jump pod_to_host
  }
  chain pod_to_host {
    ct state established,related accept
    ct state invalid drop
    ip daddr . meta l4proto . th dport @svc goto admit
    ip daddr $gateway icmp type echo-request limit rate $echo/second accept
    counter name pod2host drop
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifgroup $group jump from_pod
    oifgroup $group jump to_pod
  }
  chain from_pod {
    oifgroup $group counter name pod2pod drop
    ct state vmap { established : accept, related : accept, invalid : drop }
    ip daddr @deny4 counter name denied4 drop
    meta l4proto . th dport @deny_out counter name denied_port reject with icmp admin-prohibited
    goto admit
  }
  chain to_pod {
    ct state established,related accept
    udp dport @deny_in_udp counter name denied_port drop
    counter name unsolicited drop
  }
  chain post_acct {
    type filter hook postrouting priority mangle; policy accept;
    oifgroup $group ip daddr @pod_rx
  }
  chain output {
    type filter hook output priority filter; policy accept;
    oifgroup $group udp dport @deny_in_udp ct state new counter name denied_port drop
  }
  chain nat {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr $pool oifgroup != $group masquerade
  }
}
""")


def render_table(policy: Policy, addresses: Collection[IPv4Address] = ()) -> str:
    """The whole table with the elements of `addresses`: one transaction that replaces what was there."""
    ordered = sorted(addresses)
    return _TABLE.substitute(
        family=FAMILY,
        table=policy.table,
        comment=render_comment(policy),
        max_pods=MAX_PODS,
        pod_tx=_elements(map(_pod_tx, ordered)),
        pod_rx=_elements(map(str, ordered)),
        svc=_elements(f"{s.address} . {s.transport} . {s.port}" for s in sorted(set(policy.services))),
        deny4=_elements(map(str, sorted(set(policy.denied_ranges)))),
        deny_out=_elements(f"{d.transport} . {d.port}" for d in sorted(set(policy.denied_out))),
        deny_in_udp=_elements(map(str, sorted(set(policy.denied_in_udp)))),
        counters="".join(f"  counter {name} {{ }}\n" for name in COUNTERS),
        group=policy.group,
        pool=policy.pool,
        gateway=policy.gateway,
        connections=policy.limits.connections,
        rate=policy.limits.new_connections,
        burst=policy.limits.new_connections_burst,
        echo=policy.limits.echo_requests,
    )


def render_comment(policy: Policy) -> str:
    """The table's comment: who owns it, and which policy it was rendered from."""
    return f"{OWNER}; policy {policy.fingerprint}"


def render_removal(policy: Policy) -> str:
    """Removes the table; adding it first makes that succeed when there is none."""
    return f"add table {FAMILY} {policy.table}\ndelete table {FAMILY} {policy.table}\n"


def render_admission(policy: Policy, address: IPv4Address) -> str:
    """Lets the pod send and receive; a second time changes nothing."""
    table = f"{FAMILY} {policy.table}"
    return (
        f"add element {table} pod_tx {{ {_pod_tx(address)} }}\nadd element {table} pod_rx {{ {address} }}\n"
    )


def render_eviction(policy: Policy, address: IPv4Address) -> str:
    """Cuts the pod off; adding the elements first makes that succeed when they are gone already."""
    table = f"{FAMILY} {policy.table}"
    return render_admission(policy, address) + (
        f"delete element {table} pod_tx {{ {_pod_tx(address)} }}\n"
        f"delete element {table} pod_rx {{ {address} }}\n"
    )


def _pod_tx(address: IPv4Address) -> str:
    return f'"{link_name(address)}" . {pod_mac(address)} . {address}'


def _elements(elements: Iterable[str]) -> str:
    """An empty list is a syntax error, so an empty set has no list at all."""
    joined = ", ".join(elements)
    return f"elements = {{ {joined} }}" if joined else ""
