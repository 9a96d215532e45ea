"""The zone's settings: what could not be served is refused before any socket is open."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from codius_dns.errors import ZoneError
from codius_dns.names import parse_name
from codius_dns.records import Record
from codius_dns.zone import MAX_ADDRESSES, MAX_ISSUERS
from tests.unit.dns.zones import IPV4, ORIGIN, ZONE


@pytest.mark.parametrize(
    "change",
    [
        {"origin": "not a name"},
        {"origin": ".".join(["x" * 50] * 4)},  # room for itself, not for a hash under it
        {"ipv4": (), "ipv6": ()},
        {"ipv4": tuple(IPv4Address(i) for i in range(MAX_ADDRESSES + 1))},
        {"nameservers": ("ns1..example",)},
        {"nameservers": tuple(f"ns{i}.{ORIGIN}" for i in range(9))},
        {"hostmaster": "nobody@"},
        {"negative_ttl": -1},
        {"address_ttl": 2**31},
        {"serial": 2**32},
        {"issuers": ("letsencrypt..org",)},
        {"issuers": ("ca.example",) * (MAX_ISSUERS + 1)},
        {"records": (Record(parse_name("elsewhere.example"), 1, IPV4),)},
        {"records": (Record(None, 1, IPV4),)},
    ],
)
def test_settings_that_cannot_be_served_are_refused_with_a_sentence(change: dict[str, object]) -> None:
    with pytest.raises(ZoneError) as caught:
        replace(ZONE, **change)  # type: ignore[arg-type]
    assert caught.value.message
