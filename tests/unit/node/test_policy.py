"""The policy an operator chose: from settings, refused by the variable's name, told as a document."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_netpolicy.policy import DEFAULT_DENIED_RANGES, Egress, EgressMode, Limits, Policy, TransportPorts
from codius_netpolicy.traffic import Reason
from codius_node import config, policy
from codius_node.errors import SettingsError
from codius_node.policy import FALLBACK_RESOLVERS, Origin, PolicyReport, Repair, Repairs, build_policy

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_nothing_set_is_the_default_policy() -> None:
    assert build_policy(config.load({})) == Policy(resolvers=FALLBACK_RESOLVERS)


def test_every_setting_has_its_place_in_the_policy() -> None:
    built = build_policy(
        config.load(
            {
                "CODIUS_POD_NETWORK": "10.9.0.0/20",
                "CODIUS_POD_NETWORK_6": "fd77::/108",
                "CODIUS_POD_RESOLVERS": "192.168.7.53 fd00::53",
                "CODIUS_POD_EGRESS": "listed",
                "CODIUS_POD_DENIED_RANGES": "198.51.100.0/24",
                "CODIUS_POD_ALLOWED_RANGES": "203.0.113.0/24",
                "CODIUS_POD_DENIED_PORTS": "tcp/6667",
                "CODIUS_POD_ALLOWED_PORTS": "tcp/443",
                "CODIUS_POD_CONNECTIONS": "10",
                "CODIUS_POD_NEW_CONNECTIONS": "20",
                "CODIUS_POD_SEND_MBIT": "30",
                "CODIUS_POD_RECEIVE_MBIT": "40",
            }
        )
    )
    assert built == Policy(
        pool=IPv4Network("10.9.0.0/20"),
        pool6=IPv6Network("fd77::/108"),
        resolvers=(ip_address("192.168.7.53"), ip_address("fd00::53")),
        egress=Egress(
            mode=EgressMode.LISTED,
            denied_ranges=(IPv4Network("198.51.100.0/24"),),
            allowed_ranges=(IPv4Network("203.0.113.0/24"),),
            denied_ports=(TransportPorts.parse("tcp/6667"),),
            allowed_ports=(TransportPorts.parse("tcp/443"),),
        ),
        limits=Limits(
            connections=10,
            new_connections=20,
            new_connections_burst=40,
            send_rate=30_000_000,
            receive_rate=40_000_000,
        ),
    )


def test_each_limit_can_be_switched_off() -> None:
    names = ("CONNECTIONS", "NEW_CONNECTIONS", "SEND_MBIT", "RECEIVE_MBIT")
    limits = build_policy(config.load({f"CODIUS_POD_{name}": "0" for name in names})).limits
    assert (limits.connections, limits.new_connections, limits.send_rate, limits.receive_rate) == (0, 0, 0, 0)


def test_the_hosts_resolvers_are_asked_where_the_operator_named_none() -> None:
    own = (ip_address("192.168.1.1"),)
    assert build_policy(config.load({}), own).resolvers == own
    chosen = config.load({"CODIUS_POD_RESOLVERS": "192.0.2.1"})
    assert build_policy(chosen, own).resolvers == (ip_address("192.0.2.1"),)


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"CODIUS_POD_RESOLVERS": "10.77.0.1"}, ("CODIUS_POD_RESOLVERS", "10.77.0.1")),
        ({"CODIUS_POD_RESOLVERS": "127.0.0.53"}, ("CODIUS_POD_RESOLVERS", "127.0.0.53")),
        ({"CODIUS_POD_RESOLVERS": "2620:fe::fe"}, ("CODIUS_POD_RESOLVERS", "2620:fe::fe")),
        ({"CODIUS_POD_NETWORK_6": "fd77::/120"}, ("CODIUS_POD_NETWORK_6", "120")),
        ({"CODIUS_POD_ALLOWED_RANGES": "10.77.1.0/24"}, ("CODIUS_POD_ALLOWED_RANGES", "10.77.1.0/24")),
        ({"CODIUS_POD_DENIED_RANGES": "0.0.0.0/0"}, ("CODIUS_POD_DENIED_RANGES", "0.0.0.0/0")),
        ({"CODIUS_POD_NETWORK": "169.254.0.0/16"}, ("CODIUS_POD_NETWORK", "169.254.0.0/16")),
    ],
)
def test_values_that_do_not_go_together_are_refused_by_the_variables_name(
    environ: dict[str, str], names: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as caught:
        build_policy(config.load(environ))
    for name in names:
        assert name in caught.value.message
    assert caught.value.hint


def test_every_named_setting_is_one() -> None:
    assert set(policy.SETTING_OF.values()) <= config.DECLARED.keys()


networks = st.builds(
    lambda number, prefix: IPv4Network((number, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)
ports = st.builds(
    lambda transport, first, length: TransportPorts.parse(
        f"{transport}/{first}-{min(first + length, 65535)}"
    ),
    st.sampled_from(["tcp", "udp"]),
    st.integers(1, 65535),
    st.integers(0, 100),
)
egresses = st.builds(
    Egress,
    st.sampled_from(EgressMode),
    *(st.lists(entries, max_size=3).map(tuple) for entries in (networks, networks, ports, ports)),
)
repairs = st.one_of(
    st.just(Repairs()),
    st.builds(Repairs, st.integers(1), st.builds(Repair, st.just(NOON), st.lists(st.text()).map(tuple))),
)


@given(
    egresses,
    st.sampled_from(Origin),
    st.dictionaries(st.sampled_from(Reason), st.integers(0)),
    repairs,
)
def test_a_report_comes_back_from_its_document(
    egress: Egress, origin: Origin, refused: dict[Reason, int], repairs: Repairs
) -> None:
    base = Policy(pool6=IPv6Network("fd77::/112"), resolvers=FALLBACK_RESOLVERS, limits=Limits(connections=0))
    try:
        chosen = base.with_egress(egress)
    except ValueError:  # an allowed range inside the pool
        chosen = base
    report = policy.build_report(chosen, origin, refused=refused, repairs=repairs)
    document = json.loads(json.dumps(report.as_document()))
    assert PolicyReport.from_document(document) == report
    assert report.built_in.denied_ranges == tuple(map(str, DEFAULT_DENIED_RANGES))


def test_where_pods_have_no_ipv6_nothing_is_told_of_its_ranges() -> None:
    report = policy.build_report(Policy(), Origin.SETTINGS, refused={}, repairs=Repairs())
    assert "10.0.0.0/8" in report.built_in.denied_ranges
    assert not any(":" in told for told in report.built_in.denied_ranges)
