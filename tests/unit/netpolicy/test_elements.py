"""One pod's counters, read element by element; nft wrote them."""

from ipaddress import IPv4Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_netpolicy.addressing import link_name, pod_mac
from codius_netpolicy.elements import parse_counters, read_traffic
from codius_netpolicy.nfnetlink import FAMILY_HEADER, open_socket, read_generation
from codius_netpolicy.policy import Policy
from codius_netpolicy.ruleset import render_table
from codius_netpolicy.traffic import NO_TRAFFIC, Reason, Traffic, Volume
from tests.harness.namespaces import Namespace, missing_privilege

POD = IPv4Address("10.77.0.2")
OTHER_POD = IPv4Address("10.77.1.255")
DUAL = Policy(pool6=IPv6Network("fd77:c0d1:5::/64"))
REFUSED: dict[Reason, int] = {reason: reason.mark * 11 for reason in Reason if reason is not Reason.POD}
COUNTED = Traffic(Volume(700, 7), Volume(2**40 + 50, 5), REFUSED)
PODS = {POD: COUNTED, OTHER_POD: Traffic(Volume(1, 1), Volume(2, 1), {Reason.POD: 1})}
NEWCOMER = IPv4Address("10.77.0.9")

needs_root = pytest.mark.skipif(missing_privilege() is not None, reason=str(missing_privilege()))


@pytest.mark.system
@needs_root
@pytest.mark.parametrize("policy", [Policy(), DUAL], ids=["default", "dual"])
def test_a_pod_has_its_own_counters_and_no_other_pods(policy: Policy) -> None:
    with Namespace() as scratch, scratch.call(open_socket) as netlink:
        assert read_traffic(netlink, policy, POD) == NO_TRAFFIC, "there is no table yet"
        scratch.nft(render_table(policy, PODS))
        before = read_generation(netlink)
        for address, traffic in PODS.items():
            assert read_traffic(netlink, policy, address) == traffic
        assert read_traffic(netlink, policy, NEWCOMER) == NO_TRAFFIC
        assert read_generation(netlink) == before, "to read is to change nothing"


@pytest.mark.system
@needs_root
def test_both_ip_versions_of_a_pod_are_one_sum() -> None:
    with Namespace() as scratch, scratch.call(open_socket) as netlink:
        scratch.nft(render_table(DUAL, {POD: COUNTED}))
        link = f'"{link_name(NEWCOMER)}" . {pod_mac(NEWCOMER)}'
        for name, key in (
            ("pod_tx", f"{link} . 10.77.0.9"),
            ("pod_tx6", f"{link} . fd77:c0d1:5::9"),
            ("pod_rx", "10.77.0.9"),
            ("pod_rx6", "fd77:c0d1:5::9"),
        ):
            scratch.nft(f"add element inet codius {name} {{ {key} counter packets 3 bytes 30 }}")
        assert read_traffic(netlink, DUAL, NEWCOMER) == Traffic(Volume(60, 6), Volume(60, 6))


@given(st.binary())
def test_a_strange_message_is_no_error(attributes: bytes) -> None:
    list(parse_counters(FAMILY_HEADER.pack(1, 0, 0) + attributes))
