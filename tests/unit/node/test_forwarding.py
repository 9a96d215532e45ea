"""What becomes of a packet in other people's rules."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.forwarding import Key, Match, Packet, parse_iptables, parse_nft

POOL = ip_network("10.77.0.0/16")
PACKET: Packet = {
    Key.LINK_IN: ("cp*",),
    Key.GROUP_IN: (77,),
    Key.LINK_OUT: ("eth0",),
    Key.FAMILY: ("ipv4",),
    Key.SOURCE: (POOL,),
    Key.TRANSPORT: ("tcp",),
    Key.PORT_TO: (443,),
    Key.STATE: ("new",),
}


@pytest.mark.parametrize(
    ("key", "values", "holds"),
    [
        (Key.SOURCE, [POOL], True),
        (Key.SOURCE, [ip_network("10.0.0.0/8")], True),
        (Key.SOURCE, [ip_network("10.77.3.0/24")], None),
        (Key.SOURCE, [ip_network("172.17.0.0/16")], False),
        (Key.SOURCE, [ip_network("172.17.0.0/16"), ip_network("10.0.0.0/8")], True),
        (Key.SOURCE, [ip_network("fd77::/64")], None),
        (Key.LINK_IN, ["cp*"], True),
        (Key.LINK_IN, ["c*"], True),
        (Key.LINK_IN, ["*"], True),
        (Key.LINK_IN, ["cp0a4d0002"], None),
        (Key.LINK_IN, ["cp0a*"], None),
        (Key.LINK_IN, ["docker0"], False),
        (Key.LINK_IN, ["docker0", "cp0a4d0002"], None),
        (Key.LINK_OUT, ["eth0"], True),
        (Key.LINK_OUT, ["eth*"], True),
        (Key.LINK_OUT, ["docker0"], False),
        (Key.LINK_OUT, ["br*"], False),
        (Key.GROUP_IN, [77], True),
        (Key.GROUP_IN, [5], False),
        (Key.GROUP_OUT, [77], None),
        (Key.PORT_TO, [range(1, 1001)], True),
        (Key.PORT_TO, [80, 8080], False),
        (Key.PORT_TO, ["https"], None),
        (Key.STATE, ["established", "related"], False),
        (Key.DESTINATION, [POOL], None),
        (Key.UNKNOWN, [1], None),
        (Key.SOURCE, [], None),
    ],
)
def test_a_condition_holds_or_not_or_nobody_can_say(key: Key, values: list[Any], holds: bool | None) -> None:
    assert Match(key, tuple(values)).holds(PACKET) is holds
    assert Match(key, tuple(values), negated=True).holds(PACKET) is (None if holds is None else not holds)


def test_a_packet_that_may_leave_by_two_links_is_certain_of_neither() -> None:
    packet = {Key.LINK_OUT: ("eth0", "eth1")}
    assert Match(Key.LINK_OUT, ("eth0",)).holds(packet) is None
    assert Match(Key.LINK_OUT, ("eth0", "eth1")).holds(packet) is True
    assert Match(Key.LINK_OUT, ("lan0",)).holds(packet) is False


def nft(*rules: list[Any], policy: str = "drop", called: list[list[Any]] | None = None) -> str | None:
    """The chain that stops the packet, of a table with these rules in its forward chain."""
    base = {"family": "inet", "table": "t", "name": "forward", "hook": "forward", "policy": policy}
    entries: list[Any] = [
        {"metainfo": {}},
        {"chain": base},
        {"chain": {**base, "hook": "input", "name": "i"}},
    ]
    entries += [{"chain": {"family": "inet", "table": "t", "name": "called"}}]
    for chain, expressions in [("forward", rules), ("called", called or [])]:
        entries += [
            {"rule": {"family": "inet", "table": "t", "chain": chain, "expr": expression}}
            for expression in expressions
        ]
    (table,) = parse_nft({"nftables": entries})
    found = table.find_dropping_chain(PACKET)
    return None if found is None else found.name


def meta(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def payload(protocol: str, name: str, right: Any, op: str = "==") -> dict[str, Any]:
    left = {"payload": {"protocol": protocol, "field": name}}
    return {"match": {"op": op, "left": left, "right": right}}


ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}
COUNTER: dict[str, Any] = {"counter": {"packets": 1, "bytes": 1}}
PREFIX = {"prefix": {"addr": "10.77.0.0", "len": 16}}
STATES = {"key": {"ct": {"key": "state"}}, "data": {"set": [["new", ACCEPT], ["invalid", DROP]]}}


@pytest.mark.parametrize(
    "rule",
    [
        [ACCEPT],
        [meta("iifgroup", 77), COUNTER, ACCEPT],
        [meta("iifgroup", {"set": [5, 77]}), ACCEPT],
        [meta("iifname", "cp*"), meta("oifname", {"set": ["eth0", "lo"]}), ACCEPT],
        [meta("iif", "lo", "!="), ACCEPT],
        [payload("ip", "saddr", PREFIX), ACCEPT],
        [payload("ip", "saddr", {"set": ["10.0.0.1", PREFIX]}), {"log": {"prefix": "x"}}, ACCEPT],
        [payload("tcp", "dport", {"range": [400, 500]}), ACCEPT],
        [payload("th", "dport", 443), ACCEPT],
        [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["new", "established"]}}, ACCEPT],
        [{"vmap": STATES}],
        [meta("nfproto", "ipv4"), {"xt": {"type": "target", "name": "LOG"}}, ACCEPT],
    ],
)
def test_nfts_rules_let_a_packet_through(rule: list[Any]) -> None:
    assert nft(rule) is None
    assert nft() == "forward"


@pytest.mark.parametrize(
    "rule",
    [
        [meta("iifgroup", 5), ACCEPT],
        [meta("oifgroup", 77), ACCEPT],
        [meta("iifname", "docker0"), ACCEPT],
        [payload("ip", "saddr", "10.77.0.2"), ACCEPT],
        [payload("ip", "saddr", "@lan"), ACCEPT],
        [payload("ip6", "saddr", {"prefix": {"addr": "fd77::", "len": 64}}), ACCEPT],
        [payload("ip6", "saddr", {"prefix": {"addr": "fd77::", "len": 64}}, "!="), ACCEPT],
        [payload("udp", "dport", 443), ACCEPT],
        [payload("tcp", "dport", 443, ">"), ACCEPT],
        [payload("icmp", "type", "echo-request"), ACCEPT],
        [payload("th", "dport", True), ACCEPT],
        [{"limit": {"rate": 3, "per": "second"}}, ACCEPT],
        [{"xt": {"type": "match", "name": "devgroup"}}, ACCEPT],
        [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established"]}}, ACCEPT],
        [{"match": {"op": "==", "left": {"ct": {"key": "status"}}, "right": "dnat"}}, ACCEPT],
        [{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@names"}}],
        [{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": ["odd", ["cp*", None]]}}}],
        [{"queue": {"num": 1}}],
        [{"return": None}],
        ["odd"],
    ],
)
def test_what_may_not_match_lets_nothing_through(rule: list[Any]) -> None:
    assert nft(rule) == "forward"


@pytest.mark.parametrize("last", [DROP, {"reject": None}, {"xt": {"type": "target", "name": "REJECT"}}])
def test_a_chain_that_accepts_by_policy_may_drop_by_a_rule(last: dict[str, Any]) -> None:
    assert nft([last], policy="accept") == "forward"
    assert nft([meta("iifname", "lan0"), last], policy="accept") is None
    assert nft([payload("ip", "saddr", "10.77.0.2"), last], policy="accept") is None, "one pod is not all"
    assert nft([ACCEPT], [last], policy="accept") is None, "the first rule decides"


def test_chains_call_each_other() -> None:
    jump, goto = [{"jump": {"target": "called"}}], [{"goto": {"target": "called"}}]
    assert nft(jump, called=[[ACCEPT]]) is None
    assert nft(goto, called=[[ACCEPT]]) is None
    assert nft(jump, [ACCEPT], called=[]) is None, "a jump comes back"
    assert nft(goto, [ACCEPT], called=[]) == "forward", "a goto does not"
    assert nft(jump, [ACCEPT], called=[[{"return": None}], [DROP]]) is None
    assert nft([meta("iifname", "lan0"), *jump], called=[[ACCEPT]]) == "forward"
    assert nft([{"jump": {"target": "missing"}}], [ACCEPT]) is None


def test_other_families_and_documents_are_told_apart() -> None:
    bridge: Any = {
        "chain": {"family": "bridge", "table": "t", "name": "f", "hook": "forward", "policy": "drop"}
    }
    stray: Any = {"rule": {"family": "bridge", "table": "t", "chain": "f", "expr": []}}
    assert parse_nft({"nftables": [bridge, stray, "odd"]}) == []
    documents: list[Any] = [None, [], {}, {"nftables": {}}]
    for document in documents:
        with pytest.raises(ValueError, match="no listing"):
            parse_nft(document)


def iptables(*lines: str, policy: str = "DROP") -> str | None:
    text = "\n".join((f"-P FORWARD {policy}", "-P INPUT DROP", "-N called", *lines))
    found = parse_iptables(text, "ip", "filter").find_dropping_chain(PACKET)
    return None if found is None else found.name


@pytest.mark.parametrize(
    "rule",
    [
        "-A FORWARD -j ACCEPT",
        "-A FORWARD -s 10.77.0.0/16 -j ACCEPT",
        "-A FORWARD ! -s 172.17.0.0/16 -j ACCEPT",
        "-A FORWARD -i cp+ -o eth0 -j ACCEPT",
        "-A FORWARD -m devgroup --src-group 0x4d -j ACCEPT",
        "-A FORWARD -p tcp -m tcp --dport 400:500 -j ACCEPT",
        '-A FORWARD -m comment --comment "-s 1.2.3.4 -j" -m conntrack --ctstate NEW,RELATED -j ACCEPT',
        "-A FORWARD -m state ! --state ESTABLISHED -j ACCEPT",
        "-A FORWARD -j called\n-A called -j ACCEPT",
        "-A FORWARD -g called\n-A called -j ACCEPT",
        "-A FORWARD -j LOG --log-prefix drop\n-A FORWARD -j ACCEPT",
        "-A FORWARD -p icmp -j DROP\n-A FORWARD -m owner --uid-owner 0 -j DROP\n-A FORWARD -j ACCEPT",
    ],
)
def test_iptables_rules_let_a_packet_through(rule: str) -> None:
    assert iptables(rule) is None
    assert iptables() == "FORWARD"


@pytest.mark.parametrize(
    "rule",
    [
        "-A FORWARD ! -s 10.0.0.0/8 -j ACCEPT",
        "-A FORWARD -s 10.77.0.2/32 -j ACCEPT",
        "-A FORWARD -s odd -j ACCEPT",
        "-A FORWARD -m devgroup ! --src-group 0x4d -j ACCEPT",
        "-A FORWARD -m devgroup --src-group 0x4d/0xff -j ACCEPT",
        "-A FORWARD -m devgroup --dst-group 0x4d -j ACCEPT",
        "-A FORWARD -m addrtype --dst-type LOCAL -j ACCEPT",
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -f -j ACCEPT",
        "-A FORWARD -p udp -m udp --dport 443 -j ACCEPT",
        "-A FORWARD -g called\n-A FORWARD -j ACCEPT",
        "-A FORWARD -j RETURN\n-A FORWARD -j ACCEPT",
        "-A FORWARD -j REJECT --reject-with icmp-port-unreachable\n-A FORWARD -j ACCEPT",
        "-A other -j ACCEPT",
        "-A FORWARD",
    ],
)
def test_iptables_rules_that_may_not_match_let_nothing_through(rule: str) -> None:
    assert iptables(rule) == "FORWARD"


def test_iptables_may_reject_behind_a_policy_that_accepts() -> None:
    assert iptables("-A FORWARD -j REJECT", policy="ACCEPT") == "FORWARD"
    assert iptables(policy="ACCEPT") is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["set", "prefix", "range", "meta", "key", "ct", "jump"]), inner)
    ),
    max_leaves=8,
)


@given(json_values, json_values, json_values)
def test_rules_of_any_shape_are_read(left: Any, right: Any, statement: Any) -> None:
    match = {"match": {"op": "==", "left": left, "right": right}}
    assert nft([match, statement, ACCEPT]) in ("forward", None)
    assert nft([{"vmap": {"key": left, "data": {"set": [[right, statement]]}}}]) in ("forward", None)


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="\"'\\"), max_size=60))
def test_lines_of_any_shape_are_read(line: str) -> None:
    assert iptables(f"-A FORWARD {line}") in ("FORWARD", None)
