"""The network policy in sentences, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from codius_netpolicy.policy import EgressMode, Limits
from codius_netpolicy.traffic import Reason
from codius_node.config import MEGABIT
from codius_node.policy import Origin, PolicyReport, Repairs

REFUSALS: Final[Mapping[Reason, str]] = {
    Reason.SPOOFED: "from an address that is not the pod's",
    Reason.IPV6: "of IPv6",
    Reason.POD: "to other pods",
    Reason.HOST: "to this host",
    Reason.RANGE: "to denied ranges",
    Reason.PORT: "to denied ports",
    Reason.PROTOCOL: "of other protocols than TCP, UDP and ICMP",
    Reason.CONNECTIONS: "of too many connections at once",
    Reason.RATE: "of connections begun too fast",
    Reason.INVALID: "of no connection",
    Reason.UNSOLICITED: "to a pod, unasked",
}


def describe(report: PolicyReport) -> list[str]:
    """What pods may do, line by line; lines that go on with the one above begin with two spaces."""
    return [
        *_describe_egress(report),
        *_describe_host(report),
        _describe_limits(report.limits),
        _describe_addresses(report.pools),
        "These rules are those of the settings."
        if report.origin is Origin.SETTINGS
        else "These rules were set at run time; `codiusd admin policy reset` goes back to the settings'.",
        _describe_refusals(report),
        *_describe_repairs(report.repairs),
    ]


def _describe_egress(report: PolicyReport) -> Iterator[str]:
    egress, built_in = report.egress, report.built_in
    if egress.mode is EgressMode.OPEN:
        yield "Pods reach the internet, except:"
        yield f"  private and reserved ranges: {', '.join(built_in.denied_ranges)}"
        if egress.denied_ranges:
            yield f"  ranges you denied: {_join(egress.denied_ranges)}"
        yield f"  ports that are abused: {', '.join(built_in.denied_ports)}"
        if egress.denied_ports:
            yield f"  ports you denied: {_join(egress.denied_ports)}"
        if egress.allowed_ranges or egress.allowed_ports:
            yield "They reach all the same, because you allowed it:"
            if egress.allowed_ranges:
                yield f"  ranges: {_join(egress.allowed_ranges)}"
            if egress.allowed_ports:
                yield f"  ports: {_join(egress.allowed_ports)}"
        return
    if not egress.allowed_ranges:
        yield "Pods reach nothing on the internet: no range is allowed."
        return
    yield "Pods reach nothing on the internet but what you allowed:"
    yield f"  ranges: {_join(egress.allowed_ranges)}"
    if egress.denied_ranges:
        yield f"  except in: {_join(egress.denied_ranges)}"
    if egress.allowed_ports:
        yield f"  ports: {_join(egress.allowed_ports)}"
    denied_ports = (*(() if egress.allowed_ports else built_in.denied_ports), *egress.denied_ports)
    if denied_ports:
        yield f"  ports except: {_join(denied_ports)}"


def _describe_host(report: PolicyReport) -> Iterator[str]:
    yield f"They look up names at {_enumerate(report.resolvers)}, on port 53 and no other."
    services = f" but its services: {', '.join(report.built_in.services)}" if report.built_in.services else ""
    yield f"They never reach each other, and nothing of this host{services}."
    yield "Nothing reaches them but visitors by this host's front door, and answers to what they asked."
    yield f"Their UDP ports {', '.join(report.built_in.denied_in_udp)} are closed even to this host."


def _describe_limits(limits: Limits) -> str:
    parts = (
        f"have {limits.connections} connections at once" if limits.connections else "",
        f"begin {limits.new_connections} in a second" if limits.new_connections else "",
        f"send {limits.send_rate // MEGABIT} Mbit/s" if limits.send_rate else "",
        f"receive {limits.receive_rate // MEGABIT} Mbit/s" if limits.receive_rate else "",
    )
    set_ones = [part for part in parts if part]
    return f"Each may {_enumerate(set_ones)}." if set_ones else "No pod is limited in connections or speed."


def _describe_addresses(pools: Sequence[str]) -> str:
    ipv6 = "translated on the way out" if len(pools) > 1 else "translated on the way out; they have no IPv6"
    return f"Their addresses are in {_enumerate(pools)}, {ipv6}."


def _describe_refusals(report: PolicyReport) -> str:
    reasons = sorted(report.refused.items(), key=lambda item: -item[1])
    told = ", ".join(f"{packets} {REFUSALS[reason]}" for reason, packets in reasons if packets)
    return f"Refused to the pods that run now, in packets: {told or 'none'}."


def _describe_repairs(repairs: Repairs) -> Iterator[str]:
    if repairs.last is None:
        yield "Nobody has changed these rules in the kernel since the node started."
        return
    times = "once" if repairs.count == 1 else f"{repairs.count} times"
    at = repairs.last.at.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    yield (
        f"Others changed these rules in the kernel {times} since the node started, and it restored them;"
        f" last at {at}: {'; '.join(repairs.last.problems)}."
    )


def _join(entries: Iterable[object]) -> str:
    return ", ".join(map(str, entries))


def _enumerate(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part) if words else "nobody"
