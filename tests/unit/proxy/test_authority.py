"""Host values: which are names of ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_proxy.authority import Authority, AuthorityError, HostItself, PodName, Unknown, classify, parse

ZONE = "codius.example"
HASH = "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrst"

_hostile = st.text(st.sampled_from("aZ09.-_:[]@%/ \t\r\n\x00é٣"), max_size=40) | st.text(max_size=300)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("codius.example", Authority("codius.example", None)),
        ("Codius.EXAMPLE:3000", Authority("codius.example", 3000)),
        ("codius.example.", Authority("codius.example", None)),
        ("codius.example.:80", Authority("codius.example", 80)),
        ("127.0.0.1:3000", Authority("127.0.0.1", 3000)),
        ("[::1]", Authority("::1", None)),
        ("[2001:DB8:0::1]:443", Authority("2001:db8::1", 443)),
        ("a_b.example", Authority("a_b.example", None)),
        (f"{HASH.upper()}.codius.example:65535", Authority(f"{HASH}.codius.example", 65535)),
    ],
)
def test_a_host_value_is_read(value: str, expected: Authority) -> None:
    assert parse(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "-a",
        "a-",
        "a b",
        "a:",
        ":80",
        "a:0",
        "a:65536",
        "a:080",
        "a:00",
        "a:+1",
        "a:１",
        "a:80:80",
        "user@a",
        "a/b",
        "a?b",
        "a,b",
        "a\x00",
        "a\n",
        "a\r\n",
        "[::1",
        "::1",
        "[::1]x",
        "[1.2.3.4]",
        "[:::]",
        "[fe80::1%25eth0]",
        "é.example",
        "%61.example",
        "a" * 64,
        ".".join(["a" * 63] * 4),
        "a" * 300,
        "codius.example..",
    ],
)
def test_a_malformed_host_value_is_refused(value: str) -> None:
    with pytest.raises(AuthorityError):
        parse(value)


@pytest.mark.parametrize(
    ("hostname", "expected"),
    [
        (ZONE, HostItself()),
        ("localhost", HostItself()),
        ("127.0.0.1", HostItself()),
        ("::1", HostItself()),
        (f"{HASH}.{ZONE}", PodName(HASH)),
        (f"{HASH}.other.example", Unknown(f"{HASH}.other.example")),
        (f"x.{HASH}.{ZONE}", Unknown(f"x.{HASH}.{ZONE}")),
        (f"{HASH}.x.{ZONE}", Unknown(f"{HASH}.x.{ZONE}")),
        (f"{HASH}x{ZONE}", Unknown(f"{HASH}x{ZONE}")),
        (HASH, Unknown(HASH)),
        (f"{HASH[:-1]}.{ZONE}", Unknown(f"{HASH[:-1]}.{ZONE}")),
        (f"{HASH}a.{ZONE}", Unknown(f"{HASH}a.{ZONE}")),
        (f"{HASH[:-1]}1.{ZONE}", Unknown(f"{HASH[:-1]}1.{ZONE}")),
        (f"{HASH}.localhost", Unknown(f"{HASH}.localhost")),
        (f"www.{ZONE}", Unknown(f"www.{ZONE}")),
        ("999.1.1.1", Unknown("999.1.1.1")),
    ],
)
def test_a_hostname_means(hostname: str, expected: object) -> None:
    assert classify(hostname, ZONE) == expected


@given(_hostile)
def test_no_text_escapes_the_parser_and_what_it_accepts_has_one_meaning(value: str) -> None:
    try:
        authority = parse(value)
    except AuthorityError:
        return
    assert authority.hostname == authority.hostname.lower()
    assert authority.hostname.isascii()
    assert authority.port is None or 0 < authority.port < 65536
    classify(authority.hostname, ZONE)
    rendered = f"[{authority.hostname}]" if ":" in authority.hostname else authority.hostname
    assert parse(rendered).hostname == authority.hostname


@given(
    st.text(st.sampled_from("abcxyz234567ABCXYZ"), min_size=50, max_size=54),
    st.sampled_from([ZONE, "x.example"]),
)
def test_only_a_whole_hash_under_our_own_zone_is_a_pod(label: str, parent: str) -> None:
    meaning = classify(parse(f"{label}.{parent}").hostname, ZONE)
    assert isinstance(meaning, PodName) is (len(label) == 52 and parent == ZONE)
