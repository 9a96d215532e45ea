"""From an operator's settings and zone files to what the responder serves."""

from pathlib import Path
from typing import Final

import pytest

from codius_dns.errors import ZoneError
from codius_dns.names import parse_name
from codius_dns.records import Answer, Qtype, Rcode
from codius_dns.table import Table
from codius_node.config import Settings, load
from codius_node.edge import dns_config, dns_zones
from codius_node.errors import SettingsError
from tests.unit.dns.zones import HASH_NAME, ORIGIN

BASE: Final = {"CODIUS_PUBLIC_URI": f"https://{ORIGIN}", "CODIUS_PUBLIC_ADDRESSES": "192.0.2.17,2001:db8::17"}


def settings(**more: str) -> Settings:
    return load(BASE | more)


def find(chosen: Settings, name: str, qtype: int) -> Answer:
    return Table(dns_zones(chosen, serial=1)).find(parse_name(name), qtype)


def test_the_hosts_zone_needs_no_file() -> None:
    (zone,) = dns_zones(settings(), serial=7)
    assert (zone.origin, zone.serial, zone.hashes, zone.records) == (ORIGIN, 7, True, ())
    assert find(settings(), HASH_NAME, Qtype.AAAA).records


@pytest.mark.parametrize(
    ("uri", "announced"),
    [(f"https://{ORIGIN}", True), (f"http://{ORIGIN}", False), (f"https://{ORIGIN}:8443", False)],
)
def test_https_is_announced_where_browsers_would_look_for_it(uri: str, announced: bool) -> None:
    answer = find(settings(CODIUS_PUBLIC_URI=uri), HASH_NAME, Qtype.HTTPS)
    assert bool(answer.records) is announced


def test_zone_files_add_to_the_hosts_zone_and_make_others(tmp_path: Path) -> None:
    (tmp_path / f"{ORIGIN}.zone").write_text("www CNAME web\nweb A 192.0.2.80\n")
    (tmp_path / "other.test.zone").write_text("@ A 192.0.2.90\n")
    (tmp_path / "notes.txt").write_text("nothing of DNS")
    chosen = settings(CODIUS_DNS_ZONES=str(tmp_path), CODIUS_DNS_CAA="ca.example")
    assert [zone.origin for zone in dns_zones(chosen, serial=1)] == [ORIGIN, "other.test"]
    assert find(chosen, f"www.{ORIGIN}", Qtype.A).records
    assert find(chosen, HASH_NAME, Qtype.A).records
    assert find(chosen, ORIGIN, Qtype.CAA).records
    assert find(chosen, "other.test", Qtype.A).records
    assert find(chosen, "other.test", Qtype.NS).records == find(chosen, ORIGIN, Qtype.NS).records
    assert find(chosen, f"{HASH_NAME.partition('.')[0]}.other.test", Qtype.A).rcode is Rcode.NXDOMAIN


def test_a_directory_or_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(SettingsError, match=str(missing)):
        dns_zones(settings(CODIUS_DNS_ZONES=str(missing)), serial=1)
    path = tmp_path / "other.test.zone"
    path.write_text("@ A nowhere\n")
    with pytest.raises(ZoneError, match=f"{path}: line 1"):
        dns_zones(settings(CODIUS_DNS_ZONES=str(tmp_path)), serial=1)


@pytest.mark.parametrize(
    ("more", "listeners"),
    [
        ({"CODIUS_PAYMENTS": "free"}, ("0.0.0.0", "::")),
        ({"CODIUS_PAYMENTS": "free", "CODIUS_PUBLIC_ADDRESSES": "192.0.2.17"}, ("0.0.0.0",)),
        ({"CODIUS_DNS_IP": "192.0.2.17"}, ("192.0.2.17",)),
        ({"CODIUS_DNS_IP": "::"}, ("::",)),
        ({}, ("127.0.0.1",)),
    ],
)
def test_everywhere_means_ipv6_too_where_the_host_has_it(
    more: dict[str, str], listeners: tuple[str, ...]
) -> None:
    assert dns_config(settings(**more)).addresses == listeners


def test_the_other_settings_reach_the_responder() -> None:
    config = dns_config(
        settings(
            CODIUS_DNS_WORKERS="3",
            CODIUS_DNS_RATE_LIMIT="50",
            CODIUS_DNS_NSID="fra-1",
            CODIUS_DNS_METRICS="[::1]:9153",
            CODIUS_DNS_QUERY_LOG="true",
        )
    )
    assert (config.workers, config.rate_limit, config.log_queries) == (3, 50, True)
    assert config.identity.nsid == b"fra-1"
    assert config.metrics is not None
    assert (config.metrics.address, config.metrics.port) == ("::1", 9153)
    plain = dns_config(settings())
    assert (plain.workers, plain.rate_limit, plain.log_queries, plain.metrics) == (1, 200, False, None)
    assert plain.texts_socket == settings().texts_socket


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CODIUS_DNS_WORKERS", "0"),
        ("CODIUS_DNS_WORKERS", "65"),
        ("CODIUS_DNS_RATE_LIMIT", "-1"),
        ("CODIUS_DNS_ZONES", "zones"),
        ("CODIUS_DNS_CAA", "no name!"),
        ("CODIUS_DNS_NSID", "x" * 65),
        ("CODIUS_DNS_NSID", "ä"),
        ("CODIUS_DNS_METRICS", "9153"),
        ("CODIUS_DNS_METRICS", "localhost:9153"),
        ("CODIUS_DNS_METRICS", "127.0.0.1:0"),
        ("CODIUS_DNS_QUERY_LOG", "maybe"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        settings(**{name: value})
