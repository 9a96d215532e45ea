"""The table: name and type in, answer out."""

from dataclasses import replace

import pytest

from codius_dns.errors import ZoneError
from codius_dns.names import parse_name
from codius_dns.records import REFUSED, Ns, Qtype, Rcode, Record, Soa, Text
from codius_dns.table import Table
from codius_dns.zone import Zone
from tests.unit.dns.zones import CHALLENGE, HASH_NAME, IPV4, IPV6, ORIGIN, ZONE


def test_every_hash_gets_the_very_same_answer() -> None:
    table = Table((ZONE,))
    other = f"{'q' * 52}.{ORIGIN}"
    for qtype in (Qtype.A, Qtype.AAAA, Qtype.ANY, Qtype.TXT):
        assert table.find(parse_name(HASH_NAME), qtype) is table.find(parse_name(other), qtype)


def test_a_hash_leads_to_the_hosts_addresses() -> None:
    table = Table((ZONE,))
    assert table.find(parse_name(HASH_NAME), Qtype.A).records == (Record(None, ZONE.address_ttl, IPV4),)
    assert table.find(parse_name(HASH_NAME), Qtype.AAAA).records == (Record(None, ZONE.address_ttl, IPV6),)


def test_a_host_without_ipv6_says_nodata_and_not_nxdomain() -> None:
    answer = Table((replace(ZONE, ipv6=()),)).find(parse_name(HASH_NAME), Qtype.AAAA)
    assert (answer.rcode, answer.records, len(answer.authority)) == (Rcode.NOERROR, (), 1)


def test_the_default_nameserver_is_ns1_of_the_zone() -> None:
    zone = Zone(origin=ORIGIN, ipv4=(IPV4,))
    answer = Table((zone,)).find(parse_name(ORIGIN), Qtype.NS)
    assert [record.data for record in answer.records] == [Ns(parse_name(f"ns1.{ORIGIN}"))]
    assert [(record.owner, record.data) for record in answer.additional] == [
        (parse_name(f"ns1.{ORIGIN}"), IPV4)
    ]


def test_a_nameserver_elsewhere_gets_no_glue_and_no_name() -> None:
    table = Table((replace(ZONE, nameservers=("ns.elsewhere.example",)),))
    assert table.find(parse_name(ORIGIN), Qtype.NS).additional == ()
    assert table.find(parse_name("ns.elsewhere.example"), Qtype.A) is REFUSED
    assert table.find(parse_name(f"ns1.{ORIGIN}"), Qtype.A).rcode is Rcode.NXDOMAIN


def test_the_zone_itself_may_be_its_nameserver() -> None:
    table = Table((replace(ZONE, nameservers=(ORIGIN,)),))
    assert table.find(parse_name(ORIGIN), Qtype.A).records
    assert table.find(parse_name(ORIGIN), Qtype.SOA).records


def test_negative_answers_live_as_long_as_the_soa_says() -> None:
    answer = Table((replace(ZONE, negative_ttl=33),)).find(parse_name(f"nobody.{ORIGIN}"), Qtype.A)
    (record,) = answer.authority
    assert record.ttl == 33
    assert isinstance(record.data, Soa)
    assert record.data.minimum == 33


def test_texts_appear_at_their_name_and_nowhere_else() -> None:
    table = Table((ZONE,), {CHALLENGE: (b"one", b"two", b"one")})
    answer = table.find(parse_name(CHALLENGE), Qtype.TXT)
    assert [record.data for record in answer.records] == [Text(b"one"), Text(b"two")]
    assert table.find(parse_name(CHALLENGE), Qtype.A).rcode is Rcode.NOERROR
    assert table.find(parse_name(ORIGIN), Qtype.TXT).records == ()
    for absent in (Table((ZONE,)), Table((ZONE,), {CHALLENGE: ()})):
        assert absent.find(parse_name(CHALLENGE), Qtype.TXT).rcode is Rcode.NXDOMAIN


def test_texts_below_a_hash_do_not_hide_its_addresses() -> None:
    table = Table((ZONE,), {f"_acme-challenge.{HASH_NAME}": (b"one",), HASH_NAME: (b"two",)})
    assert table.find(parse_name(HASH_NAME), Qtype.A).records
    assert table.find(parse_name(HASH_NAME), Qtype.TXT).records
    below_only = Table((ZONE,), {f"_acme-challenge.{HASH_NAME}": (b"one",)})
    assert below_only.find(parse_name(HASH_NAME), Qtype.A).records


def test_texts_at_the_origin_do_not_hide_what_is_there() -> None:
    table = Table((ZONE,), {ORIGIN: (b"v=spf1 -all",)})
    for qtype in (Qtype.TXT, Qtype.SOA, Qtype.NS, Qtype.A, Qtype.ANY):
        assert table.find(parse_name(ORIGIN), qtype).records


def test_names_between_two_that_exist_exist_too() -> None:
    table = Table((ZONE,), {f"a.b.c.{ORIGIN}": (b"deep",)})
    for between in ("b.c", "c", "dns"):
        answer = table.find(parse_name(f"{between}.{ORIGIN}"), Qtype.ANY)
        assert (answer.rcode, answer.records) == (Rcode.NOERROR, ())
    assert table.find(parse_name(f"x.c.{ORIGIN}"), Qtype.A).rcode is Rcode.NXDOMAIN


@pytest.mark.parametrize(
    "texts", [{"elsewhere.example": (b"x",)}, {CHALLENGE: (b"x" * 256,)}, {CHALLENGE: [b"x"] * 17}]
)
def test_texts_that_cannot_be_served_are_refused(texts: dict[str, tuple[bytes, ...]]) -> None:
    with pytest.raises(ZoneError):
        Table((ZONE,), texts)
