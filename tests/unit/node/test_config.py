"""Settings: read from the environment, refused with a sentence that names the culprit."""

import contextlib
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_netpolicy.policy import EgressMode, TransportPorts
from codius_node import config
from codius_node.errors import SettingsError
from codius_node.uri import parse_public_uri


def test_nothing_set_is_a_free_host_on_loopback() -> None:
    settings = config.load({})
    assert settings.public_uri.origin == "http://codius.localhost:3000"
    assert settings.bind_ip == ip_address("127.0.0.1")
    assert settings.public_addresses == (ip_address("127.0.0.1"), ip_address("::1"))
    assert settings == config.Settings()


def test_a_host_with_a_payment_method_serves_the_world() -> None:
    assert config.load({"CODIUS_PAYMENTS": "free"}).bind_ip == ip_address("0.0.0.0")
    chosen = config.load({"CODIUS_PAYMENTS": "free", "CODIUS_BIND_IP": "192.0.2.1"})
    assert chosen.bind_ip == ip_address("192.0.2.1")
    assert chosen.dns_ip == ip_address("192.0.2.1")


def test_the_default_public_uri_follows_the_port() -> None:
    assert config.load({"CODIUS_PORT": "8080"}).public_uri.origin == "http://codius.localhost:8080"


def test_a_pod_lives_one_label_below_the_host() -> None:
    uri = parse_public_uri("https://Codius.Example.com/")
    assert uri.origin == "https://codius.example.com"
    assert uri.pod_url("a" * 52) == f"https://{'a' * 52}.codius.example.com/"
    assert parse_public_uri("http://h.example:81").pod_url("b") == "http://b.h.example:81/"


def both(*texts: str) -> tuple[object, ...]:
    return tuple(map(ip_address, texts))


RANGES = (IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8::/32"))
PORTS = tuple(map(TransportPorts.parse, ("tcp/6667", "udp/6000-6063")))
ACCEPTED = [
    ("CODIUS_COST_PER_MONTH", "0", "cost_per_month", Decimal(0)),
    ("CODIUS_COST_PER_MONTH", "1.5", "cost_per_month", Decimal("1.5")),
    ("CODIUS_MAX_MEMORY_FRACTION", "1", "max_memory_fraction", 1.0),
    ("CODIUS_HYPER_NOOP", "true", "noop", True),
    ("CODIUS_HYPER_NOOP", "0", "noop", False),
    ("CODIUS_ENGINE_SOCKET", "unix:///run/x.sock", "engine_socket", Path("/run/x.sock")),
    ("CODIUS_HYPER_SOCKET", "/run/x.sock", "engine_socket", Path("/run/x.sock")),
    ("CODIUS_BOOTSTRAP_PEERS", '["https://a.example"]', "bootstrap_peers", ("https://a.example",)),
    ("CODIUS_BOOTSTRAP_PEERS", "https://a.example", "bootstrap_peers", ("https://a.example",)),
    ("CODIUS_POD_NETWORK", "10.9.0.0/20", "pod_network", IPv4Network("10.9.0.0/20")),
    ("CODIUS_POD_NETWORK_6", "fd77::/112", "pod_network_6", IPv6Network("fd77::/112")),
    ("CODIUS_POD_NETWORK_6", "", "pod_network_6", None),
    ("CODIUS_POD_RESOLVERS", "192.0.2.1, fd00::1", "chosen_pod_resolvers", both("192.0.2.1", "fd00::1")),
    ("CODIUS_POD_EGRESS", "listed", "pod_egress", EgressMode.LISTED),
    ("CODIUS_POD_DENIED_RANGES", "192.0.2.0/24 2001:db8::/32", "pod_denied_ranges", RANGES),
    ("CODIUS_POD_ALLOWED_RANGES", '["192.0.2.0/24", "2001:db8::/32"]', "pod_allowed_ranges", RANGES),
    ("CODIUS_POD_ALLOWED_RANGES", "192.0.2.7", "pod_allowed_ranges", (IPv4Network("192.0.2.7/32"),)),
    ("CODIUS_POD_DENIED_PORTS", "tcp/6667,udp/6000-6063", "pod_denied_ports", PORTS),
    ("CODIUS_POD_ALLOWED_PORTS", "tcp/6667 udp/6000-6063", "pod_allowed_ports", PORTS),
    ("CODIUS_POD_CONNECTIONS", "0", "pod_connections", 0),
    ("CODIUS_POD_NEW_CONNECTIONS", "100000", "pod_new_connections", 100_000),
    ("CODIUS_POD_SEND_MBIT", "0", "pod_send_mbit", 0),
    ("CODIUS_POD_RECEIVE_MBIT", "1000", "pod_receive_mbit", 1000),
    ("CODIUS_PORT", " 80 ", "port", 80),
    ("CODIUS_PORT", "", "port", 3000),
    ("CODIUS_TLS_CERTIFICATES", "/etc/letsencrypt/live", "tls_certificates", Path("/etc/letsencrypt/live")),
    ("CODIUS_TRUSTED_PROXIES", "10.0.0.1, 2001:db8::/32", "trusted_proxies", (
        IPv4Network("10.0.0.1/32"), IPv6Network("2001:db8::/32"),
    )),
    ("CODIUS_METRICS", "127.0.0.1:9100", "metrics", ("127.0.0.1", 9100)),
    ("CODIUS_METRICS", "[::1]:9100", "metrics", ("::1", 9100)),
    ("CODIUS_PROXY_IDLE_TIMEOUT", "0.5", "proxy_idle_timeout", 0.5),
    ("CODIUS_PROXY_HEAD_SIZE", "65536", "proxy_head_size", 65536),
    ("CODIUS_ACCESS_LOG", "/var/log/codius/access.log", "access_log", Path("/var/log/codius/access.log")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "attribute", "expected"), ACCEPTED)
def test_a_good_value_is_taken(name: str, value: str, attribute: str, expected: object) -> None:
    assert getattr(config.load({name: value}), attribute) == expected


REFUSED = [
    ("CODIUS_PORT", "0"),
    ("CODIUS_PORT", "65536"),
    ("CODIUS_PORT", "abc"),
    ("CODIUS_PORT", "١٢"),
    ("CODIUS_BIND_IP", "localhost"),
    ("CODIUS_PUBLIC_URI", "codius.example.com"),
    ("CODIUS_PUBLIC_URI", "ftp://codius.example.com"),
    ("CODIUS_PUBLIC_URI", "https://codius.example.com/path"),
    ("CODIUS_PUBLIC_URI", "https://user@codius.example.com"),
    ("CODIUS_PUBLIC_URI", "https://192.0.2.1"),
    ("CODIUS_PUBLIC_URI", "https://[::1]"),
    ("CODIUS_PUBLIC_URI", "https://-bad-.example"),
    ("CODIUS_PUBLIC_URI", "https://example:99999"),
    ("CODIUS_PUBLIC_URI", "https://codius.example.com:0"),
    ("CODIUS_BOOTSTRAP_PEERS", "https://a.example:0"),
    ("CODIUS_ROOT", "relative/path"),
    ("CODIUS_COST_PER_MONTH", "-1"),
    ("CODIUS_COST_PER_MONTH", "NaN"),
    ("CODIUS_COST_PER_MONTH", "free"),
    ("CODIUS_PAYMENTS", "gold"),
    ("CODIUS_MAX_MEMORY_FRACTION", "0"),
    ("CODIUS_MAX_MEMORY_FRACTION", "75"),
    ("CODIUS_HYPER_NOOP", "maybe"),
    ("CODIUS_BOOTSTRAP_PEERS", "[1]"),
    ("CODIUS_BOOTSTRAP_PEERS", "[oops"),
    ("CODIUS_POD_NETWORK", "8.8.0.0/16"),
    ("CODIUS_POD_NETWORK", "10.77.0.0/8"),
    ("CODIUS_POD_NETWORK", "10.77.0.1/16"),
    ("CODIUS_POD_RESOLVERS", "dns.example"),
    ("CODIUS_DNS_NAMESERVERS", "not_a_name"),
    ("CODIUS_POD_NETWORK_6", "2001:db8::/112"),
    ("CODIUS_POD_NETWORK_6", "fd77::1/112"),
    ("CODIUS_POD_NETWORK_6", "10.0.0.0/16"),
    ("CODIUS_POD_EGRESS", "shut"),
    ("CODIUS_POD_DENIED_RANGES", "10.0.0.1/8"),
    ("CODIUS_POD_DENIED_RANGES", " ".join(["192.0.2.1"] * 257)),
    ("CODIUS_POD_ALLOWED_RANGES", "example.com"),
    ("CODIUS_POD_DENIED_PORTS", "25"),
    ("CODIUS_POD_DENIED_PORTS", "sctp/25"),
    ("CODIUS_POD_DENIED_PORTS", "tcp/70000"),
    ("CODIUS_POD_ALLOWED_PORTS", "tcp/20-10"),
    ("CODIUS_POD_CONNECTIONS", "-1"),
    ("CODIUS_POD_NEW_CONNECTIONS", "100001"),
    ("CODIUS_POD_SEND_MBIT", "1.5"),
    ("CODIUS_POD_RECEIVE_MBIT", "100001"),
    ("CODIUS_TLS_CERTIFICATES", "certificates"),
    ("CODIUS_HSTS", "-1"),
    ("CODIUS_HSTS", "999999999"),
    ("CODIUS_TRUSTED_PROXIES", "10.0.0.1/8"),
    ("CODIUS_TRUSTED_PROXIES", "balancer.example"),
    ("CODIUS_CONTACT", "two\nlines"),
    ("CODIUS_CONTACT", "x" * 201),
    ("CODIUS_ACCESS_LOG_SIZE", "0"),
    ("CODIUS_PROXY_CONNECTIONS", "0"),
    ("CODIUS_PROXY_CLIENT_CONNECTIONS", "many"),
    ("CODIUS_PROXY_POD_REQUESTS", "-1"),
    ("CODIUS_PROXY_IDLE_TIMEOUT", "0"),
    ("CODIUS_PROXY_HEAD_TIMEOUT", "15s"),
    ("CODIUS_PROXY_BODY_TIMEOUT", "1e3"),
    ("CODIUS_PROXY_CONNECT_TIMEOUT", "86401"),
    ("CODIUS_PROXY_FIRST_BYTE_TIMEOUT", "inf"),
    ("CODIUS_PROXY_HEAD_SIZE", "32K"),
    ("CODIUS_PROXY_HEAD_SIZE", "4095"),
    ("CODIUS_PROXY_HEADER_LINES", "31"),
    ("CODIUS_PROXY_LINE_SIZE", "1048577"),
    ("CODIUS_PROXY_CHUNK_LINE_SIZE", "31"),
    ("CODIUS_METRICS", "9100"),
    ("CODIUS_METRICS", "localhost:9100"),
    ("CODIUS_METRICS", "::1:9100"),
    ("CODIUS_METRICS", "[::1:9100"),
    ("CODIUS_METRICS", "127.0.0.1:0"),
]


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("CODIUS_POD_DENIED_RANGES", "192.0.2.0/24, 10.0.0.1/8", "10.0.0.1/8"),
        ("CODIUS_POD_ALLOWED_PORTS", "tcp/1 tcp/99999 tcp/2", "tcp/99999"),
        ("CODIUS_POD_RESOLVERS", "192.0.2.1,dns.example", "dns.example"),
        ("CODIUS_BOOTSTRAP_PEERS", '["https://a.example", "b.example"]', "b.example"),
        ("CODIUS_DNS_NAMESERVERS", "ns1.example not_a_name", "not_a_name"),
    ],
)
def test_of_a_list_the_word_that_is_wrong_is_named(name: str, value: str, word: str) -> None:
    with pytest.raises(SettingsError) as caught:
        config.load({name: value})
    assert f"({word!r} is the trouble)" in caught.value.message


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_bad_value_stops_the_start_and_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        config.load({name: value})
    assert name in caught.value.message
    assert repr(value) in caught.value.message
    assert "give " in caught.value.message
    assert caught.value.hint


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        config.load({"CODIUS_PORT": "x", "CODIUS_DEV": "x"})
    assert caught.value.message.count("\n") == 1


def test_two_names_of_one_setting_must_agree() -> None:
    both = {"CODIUS_ENGINE_SOCKET": "/a", "CODIUS_HYPER_SOCKET": "/a"}
    assert config.load(both).engine_socket == Path("/a")
    with pytest.raises(SettingsError, match="two names of one setting"):
        config.load(both | {"CODIUS_HYPER_SOCKET": "/b"})


def test_a_typing_error_in_a_name_is_found() -> None:
    assert config.find_unknown({"CODIUS_PROT": "80", "CODIUS_PORT": "80", "HOME": "/"}) == ["CODIUS_PROT"]


@given(st.sampled_from([s.name for s in config.DECLARED.values()]), st.text(max_size=60))
def test_no_value_escapes_as_another_error(name: str, value: str) -> None:
    with contextlib.suppress(SettingsError):
        config.load({name: value})


def test_every_default_is_accepted_by_its_own_setting() -> None:
    for setting in config.DECLARED.values():
        if setting.default:
            config.load({setting.name: setting.default})
