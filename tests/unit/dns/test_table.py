"""The table: name and type in, answer out."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from codius_dns.errors import ZoneError
from codius_dns.master import parse_zone
from codius_dns.names import Name, parse_name, to_text
from codius_dns.records import REFUSED, Answer, Ns, Qtype, Raw, Rcode, Record, Soa, Text, type_of
from codius_dns.table import Table
from codius_dns.zone import MAX_RECORDS, Zone
from tests.unit.dns.zones import CHALLENGE, HASH, HASH_NAME, IPV4, IPV6, ORIGIN, ZONE


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


# ---- the operator's records ---------------------------------------------------------------------------

STATIC = r"""
@      MX 10 mail
       TXT "v=spf1 mx -all"
mail   A 192.0.2.25
www    CNAME web
web    A 192.0.2.80
       A 192.0.2.81
pod    CNAME vp7ocv2oxlnfjyjeyfoawv6gphqoxlgsmyx4wyf6y2g5gnkbu4ca
away   CNAME elsewhere.example.
lost   CNAME not-there
twice  CNAME www
*.apps A 192.0.2.90
here.apps TXT "so the wildcard does not speak for it"
*.alias CNAME web
odd    TYPE65280 \# 2 beef
sub    NS ns.sub
       NS ns.elsewhere.example.
ns.sub A 192.0.2.53
deep.er.and.deeper TXT "far down"
"""
FULL = Table((replace(ZONE, https=True, issuers=("ca.example",), records=parse_zone(STATIC, ORIGIN)),))


def find(name: str, qtype: int) -> Answer:
    wire = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return FULL.find(Name(wire + parse_name(ORIGIN)), qtype)


def said(answer: Answer) -> list[tuple[str | None, int]]:
    return [
        (to_text(record.owner).removesuffix(f".{ORIGIN}.") if record.owner else None, type_of(record.data))
        for record in answer.records
    ]


def test_the_operators_records_are_beside_ours() -> None:
    apex = parse_name(ORIGIN)
    for qtype in (Qtype.SOA, Qtype.NS, Qtype.A, Qtype.AAAA, Qtype.MX, Qtype.TXT, Qtype.CAA, Qtype.HTTPS):
        assert FULL.find(apex, qtype).records, qtype
    assert [record.data for record in find("web", Qtype.A).records] == [
        IPv4Address("192.0.2.80"),
        IPv4Address("192.0.2.81"),
    ]
    assert find("odd", 65280).records[0].data == Raw(65280, b"\xbe\xef")


def test_an_authority_for_certificates_is_named_and_https_is_announced_where_it_is() -> None:
    assert FULL.find(parse_name(ORIGIN), Qtype.CAA).records[0].data == Raw(257, b"\0\5issueca.example")
    for name in (ORIGIN, HASH_NAME):
        assert FULL.find(parse_name(name), Qtype.HTTPS).records[0].data == Raw(65, b"\0\1\0")
        assert Table((ZONE,)).find(parse_name(name), Qtype.HTTPS).records == ()
    assert find("ns1", Qtype.HTTPS).records == ()


def test_an_alias_is_followed_as_far_as_the_zones_go() -> None:
    assert said(find("www", Qtype.A)) == [(None, Qtype.CNAME), ("web", Qtype.A), ("web", Qtype.A)]
    assert said(find("twice", Qtype.A))[:2] == [(None, Qtype.CNAME), ("www", Qtype.CNAME)]
    assert said(find("www", Qtype.CNAME)) == said(find("www", Qtype.ANY)) == [(None, Qtype.CNAME)]
    assert said(find("pod", Qtype.AAAA)) == [(None, Qtype.CNAME), (HASH, Qtype.AAAA)]
    assert said(find("x.alias", Qtype.A))[:2] == [(None, Qtype.CNAME), ("web", Qtype.A)]
    for name, rcode, denied in (("www", 0, 1), ("lost", 3, 1), ("away", 0, 0)):
        answer = find(name, Qtype.MX)
        assert (answer.rcode, said(answer), len(answer.authority)) == (rcode, [(None, Qtype.CNAME)], denied)


def test_a_wildcard_speaks_for_what_is_not_there_and_for_nothing_else() -> None:
    assert find("x.apps", Qtype.A) is find("*.apps", Qtype.A) is find("x.y.apps", Qtype.A)
    assert find("x.apps", Qtype.TXT).rcode is Rcode.NOERROR
    assert find("here.apps", Qtype.A).records == ()
    assert (
        find("x.here.apps", Qtype.A).rcode is Rcode.NXDOMAIN
    )  # RFC 4592 section 2.2.1: the closest encloser
    assert find("x.*.apps", Qtype.A).rcode is Rcode.NXDOMAIN
    assert find("apps", Qtype.A).rcode is Rcode.NOERROR
    assert find("x.app", Qtype.A).rcode is Rcode.NXDOMAIN


def test_a_wildcard_at_the_top_does_not_speak_for_hash_names_nor_below_them() -> None:
    table = Table((replace(ZONE, records=parse_zone("* TXT star", ORIGIN)),))
    assert table.find(parse_name(f"x.{ORIGIN}"), Qtype.TXT).records
    assert table.find(parse_name(HASH_NAME), Qtype.TXT).records == ()
    assert table.find(parse_name(HASH_NAME), Qtype.A).records
    assert table.find(parse_name(f"x.{HASH_NAME}"), Qtype.TXT).rcode is Rcode.NXDOMAIN


@pytest.mark.parametrize("name", ["sub", "x.sub", "ns.sub", f"{HASH}.sub"])
def test_a_delegation_is_referred_to(name: str) -> None:
    answer = find(name, Qtype.A)
    assert (answer.rcode, answer.records, answer.authoritative) == (Rcode.NOERROR, (), False)
    assert [record.data for record in answer.authority] == [
        Ns(parse_name(f"ns.sub.{ORIGIN}")),
        Ns(parse_name("ns.elsewhere.example")),
    ]
    assert [record.data for record in answer.additional] == [IPv4Address("192.0.2.53")]


def test_whether_a_delegation_is_signed_is_ours_to_say() -> None:
    answer = find("sub", Qtype.DS)
    assert (answer.authoritative, answer.records, len(answer.authority)) == (True, (), 1)
    assert not find("x.sub", Qtype.DS).authoritative


def test_a_written_set_replaces_ours_and_the_serial_stays_ours() -> None:
    text = (
        "@ 60 SOA ns.other.example. me 2024010101 1 2 3 4\n@ NS ns.other.example.\n"
        "ns1 A 192.0.2.77\n@ A 192.0.2.78\n"
    )
    table = Table((replace(ZONE, serial=5, records=parse_zone(text, ORIGIN)),), serial=9)
    apex = parse_name(ORIGIN)
    (soa,) = table.find(apex, Qtype.SOA).records
    assert isinstance(soa.data, Soa)
    assert (to_text(soa.data.mname), soa.data.serial, soa.data.minimum, soa.ttl) == (
        "ns.other.example.",
        9,
        4,
        60,
    )
    assert [record.data for record in table.find(apex, Qtype.NS).records] == [
        Ns(parse_name("ns.other.example"))
    ]
    assert [record.data for record in table.find(apex, Qtype.A).records] == [IPv4Address("192.0.2.78")]
    assert table.find(parse_name(HASH_NAME), Qtype.A).records[0].data == IPV4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("@ CNAME elsewhere.example.", "is an alias"),
        (f"{HASH} CNAME elsewhere.example.", "is an alias"),
        ("a CNAME b\na A 192.0.2.1", "is an alias"),
        ("a CNAME b\na CNAME c", "too many"),
        ("a CNAME b\nb CNAME a", "or to itself"),
        ("a CNAME a", "or to itself"),
        ("\n".join(f"a{i} CNAME a{i + 1}" for i in range(9)), "leads to more than"),
        ("a DNAME b.", "can only be written as bytes"),
        ("a TYPE39 \\# 3 016200", "DNAME, which is not served"),
        ("@ DNSKEY 257 3 13 aaaa", "DNSKEY, which is not served"),
        ("@ NS ns7\nns7 TXT none", "has no address there"),
        ("\n".join(f"a A 192.0.2.{i}" for i in range(65)), "too many"),
    ],
)
def test_records_that_cannot_be_served_are_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ZoneError, match=sentence):
        Table((replace(ZONE, records=parse_zone(text, ORIGIN)),))


# ---- several zones --------------------------------------------------------------------------------

OUTER = Zone(
    "example",
    nameservers=("ns1.pods.example",),
    hashes=False,
    records=parse_zone("www A 192.0.2.3\npods NS ns1.pods\nx.pods A 192.0.2.66\n", "example"),
)
OTHER = Zone("other.test", nameservers=("ns1.pods.example",), hashes=False)


@pytest.mark.parametrize("order", [(ZONE, OUTER, OTHER), (OTHER, OUTER, ZONE)])
def test_each_zone_speaks_for_its_own_names(order: tuple[Zone, ...]) -> None:
    table = Table(order, {"_acme-challenge.other.test": (b"one",), CHALLENGE: (b"two",)})
    assert table.find(parse_name("www.example"), Qtype.A).records
    assert table.find(parse_name(HASH_NAME), Qtype.A).records
    assert table.find(parse_name(f"x.{ORIGIN}"), Qtype.A).rcode is Rcode.NXDOMAIN
    assert table.find(parse_name(f"{HASH}.example"), Qtype.A).rcode is Rcode.NXDOMAIN
    assert table.find(parse_name(f"{HASH}.other.test"), Qtype.A).rcode is Rcode.NXDOMAIN
    assert table.find(parse_name("_acme-challenge.other.test"), Qtype.TXT).records
    assert table.find(parse_name("test"), Qtype.SOA) is REFUSED
    for name, origin in (
        ("nobody.example", "example"),
        (f"nobody.{ORIGIN}", ORIGIN),
        ("a.other.test", "other.test"),
    ):
        (record,) = table.find(parse_name(name), Qtype.A).authority
        assert record.owner == parse_name(origin)


def test_what_a_parent_zone_knows_of_the_delegation_is_the_parents_to_say() -> None:
    (record,) = Table((ZONE, OUTER)).find(parse_name(ORIGIN), Qtype.DS).authority
    assert record.owner == parse_name("example")
    (record,) = Table((ZONE,)).find(parse_name(ORIGIN), Qtype.DS).authority
    assert record.owner == parse_name(ORIGIN)


def test_more_records_than_can_be_made_anew_in_time_are_refused() -> None:
    half = (Record(parse_name(f"a.{ORIGIN}"), 1, IPV4),) * (MAX_RECORDS // 2 + 1)
    other = tuple(replace(record, owner=parse_name("other.test")) for record in half)
    with pytest.raises(ZoneError, match="static records in all zones"):
        Table((replace(ZONE, records=half), replace(OTHER, records=other)))


def test_a_zone_twice_is_refused() -> None:
    with pytest.raises(ZoneError, match="twice"):
        Table((ZONE, ZONE))
