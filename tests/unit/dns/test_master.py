"""Zone files: dnspython reads the same file and judges every record."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.zone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_dns.errors import ZoneError
from codius_dns.master import MAX_FILE, parse_zone, read_zone
from codius_dns.names import labels_of
from codius_dns.records import Record, type_of
from codius_dns.wire import render_rdata
from tests.unit.dns.zones import ORIGIN

FILE = r"""
$TTL 1h30m
@  IN SOA ns1 jane\.doe.pods.example. ( 2024010101 ; serial
        3600 10m
        2w 60 )
   IN NS ns1          ; the owner is that of the line before
   300 IN NS ns.elsewhere.example.
ns1 A 192.0.2.1
    IN 60 AAAA 2001:db8::1
www CNAME web
web IN 5 A 192.0.2.2
@   MX 10 mail
    MX 20 mail.elsewhere.example.
    TXT "v=spf1 mx -all" 'plain' semi\;colon "quo\"te" "\200\000"
    CAA 0 issue "letsencrypt.org; accounturi=https://acme.example/1"
*.apps TXT ( "one"
             "two" )
_sip._tcp SRV 1 2 5060 web
svc HTTPS 1 . alpn="h2,http/1.1" port=8443
    HTTPS 0 web.pods.example.
odd TYPE65280 \# 4 0a0b ( 0c0d )
key TLSA 3 1 1 abababababababababababababababababababababababababababababababab
back PTR web
$ORIGIN deep.pods.example.
a.b TXT "below"
@   TXT "deep"
$TTL 7
c TXT upper
UPPER.pods.example. A 192.0.2.9
"""


def judged(text: str) -> set[tuple[bytes, int, int, bytes]]:
    zone = dns.zone.from_text(text, ORIGIN, relativize=False, check_origin=False)

    def each() -> Iterator[tuple[bytes, int, int, bytes]]:
        for name, ttl, rdata in zone.iterate_rdatas():
            yield name.to_digestable(), ttl, rdata.rdtype, rdata.to_wire() or b""

    return set(each())


def ours(records: tuple[Record, ...]) -> set[tuple[bytes, int, int, bytes]]:
    return {(r.owner or b"", r.ttl, type_of(r.data), render_rdata(r.data)) for r in records}


def test_every_record_is_read_as_dnspython_reads_it() -> None:
    text = FILE.replace("300 IN NS", "IN NS")  # dnspython gives one TTL to the whole set, we do that later
    assert ours(parse_zone(text, ORIGIN)) == judged(text)
    assert len(parse_zone(FILE, ORIGIN)) == 22


def test_a_line_that_begins_with_a_blank_belongs_to_the_name_before() -> None:
    names = [labels_of(record.owner or b"\0")[0] for record in parse_zone(FILE, ORIGIN)]
    assert names[:5] == [b"pods", b"pods", b"pods", b"ns1", b"ns1"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("www A", "line 1: a record needs a type and data"),
        ("\n\nwww A 192.0.2", "line 3: .*cannot be read"),
        ("www A 192.0.2.1 192.0.2.2", "line 1: .*"),
        ("www AAAA 192.0.2.1", "line 1: .*"),
        ("www MX mail", "line 1: .*"),
        ("www MX 70000 mail", "line 1: .*"),
        ("www MX 10 mail more", "not the data"),
        ("www NOSUCH x", "NOSUCH is no type"),
        ("www ANY x", "ANY is no type"),
        ("www OPT x", "OPT is no type"),
        ("www TYPE0 \\# 0", "TYPE0 is no type"),
        ("www TYPE65536 \\# 0", "TYPE65536 is no type"),
        ("www TYPE65280 \\# 3 aabb", "3 bytes are announced and 2 there"),
        ("www TYPE1 \\# 4 c0000201", "A has to be written in words"),
        ("www SPF x", "can only be written as bytes"),
        ("www CH TXT x", "only the class IN"),
        ("  A 192.0.2.1", "the first record has no name"),
        ("$INCLUDE other.zone", "is not understood"),
        ("$GENERATE 1-9 a$ A 192.0.2.1", "is not understood"),
        ("$TTL never", "is not understood"),
        ("www ( A 192.0.2.1", "never closed"),
        ("www ) A 192.0.2.1", "too many"),
        ('www TXT "open', "is not understood"),
        ("www 99999999999 A 192.0.2.1", "line 1"),
        ("www 4294967296 A 192.0.2.1", "more than the"),
        ("w..w A 192.0.2.1", "not a DNS name"),
        ("a.*.b A 192.0.2.1", "not a DNS name"),
        (f"www TXT {'x' * 256}", "more than 255 bytes"),
        ("@ SOA ns1 host 1 2 3 4", "line 1"),
        ("@ SOA ns1 host -1 2 3 4 5", "no serial"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(ZoneError, match=sentence):
        parse_zone(text, ORIGIN)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ZoneError):
        parse_zone(text, ORIGIN)


@given(st.text(st.sampled_from('@. \t\n()"\\;$#0129ahmINATXSOCE*_'), max_size=80))
def test_any_likely_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ZoneError):
        parse_zone("www 1 IN TXT " + text, ORIGIN)


def test_a_file_is_named_for_its_zone(tmp_path: Path) -> None:
    path = tmp_path / "Pods.Example.zone"
    path.write_text("www A 192.0.2.1\n")
    origin, (record,) = read_zone(path)
    assert origin == ORIGIN
    assert record.owner == dns.name.from_text(f"www.{ORIGIN}").to_digestable()


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / f"{ORIGIN}.zone"
    with pytest.raises(ZoneError, match=str(path)):
        read_zone(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ZoneError, match="cannot be read"):
        read_zone(path)
    path.write_text("www A nowhere\n")
    with pytest.raises(ZoneError, match=f"{path}: line 1"):
        read_zone(path)
    path.write_bytes(b";" * (MAX_FILE + 1))
    with pytest.raises(ZoneError, match="longer"):
        read_zone(path)
