"""Cookies: the vectors of the RFC, and what does not count as one of ours."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_dns.cookies import (
    COOKIE,
    MAX_AGE,
    MAX_AHEAD,
    MAX_RECENT,
    RENEW_AGE,
    SECRET_LIFE,
    Cookies,
    compute_cookie,
)
from codius_dns.siphash import keyed

ASKER = ip_address("198.51.100.100").packed
CLIENT = bytes.fromhex("2464c4abcf10c957")
NOW = 1_700_000_000


def test_the_hash_is_siphash_2_4() -> None:
    """The vectors of the paper that defined it: the key 00 01 .. 0f, messages 00 01 02 .. of each length."""
    digest = keyed(bytes(range(16)))
    for length, expected in (
        (0, "310e0edd47db6f72"),
        (1, "fd67dc93c539f874"),
        (7, "37d1018bf50002ab"),
        (8, "6224939a79f5f593"),
        (15, "e545be4961ca29a1"),
        (16, "db9bc2577fcc2a3f"),
        (63, "724506eb4c328a95"),
    ):
        assert digest(bytes(range(length))).hex() == expected, length


@pytest.mark.parametrize(
    ("secret", "client", "head", "asker", "digest"),
    [
        ("e5e973e5a6b2a43f48e7dc849e37bfcf", "2464c4abcf10c957", "010000005cf79f11", "198.51.100.100",
         "1f8130c3eee29480"),
        ("e5e973e5a6b2a43f48e7dc849e37bfcf", "2464c4abcf10c957", "010000005cf7a871", "198.51.100.100",
         "d4a564a1442aca77"),
        ("e5e973e5a6b2a43f48e7dc849e37bfcf", "fc93fc62807ddb86", "01abcdef5cf78f71", "203.0.113.203",
         "a314227b6679ebf5"),
        ("dd3bdf9344b678b185a6f5cb60fca715", "22681ab97d52c298", "010000005cf7c579",
         "2001:db8:220:1:59de:d0f4:8769:82b8", "26556bd0934c72f8"),
        ("445536bcd2513298075a5d379663c962", "22681ab97d52c298", "010000005cf7c609",
         "2001:db8:220:1:59de:d0f4:8769:82b8", "a6bb79d16625507a"),
    ],
)  # fmt: skip
def test_cookies_are_those_of_rfc_9018_appendix_a(
    secret: str, client: str, head: str, asker: str, digest: str
) -> None:
    made = compute_cookie(
        keyed(bytes.fromhex(secret)), bytes.fromhex(client), bytes.fromhex(head), ip_address(asker).packed
    )
    assert made.hex() == client + head + digest


@pytest.mark.parametrize(
    ("later", "age"),
    [
        (0, 0),
        (59, 59),
        (MAX_AGE, MAX_AGE),
        (MAX_AGE + 1, None),
        (-MAX_AHEAD, -MAX_AHEAD),
        (-MAX_AHEAD - 1, None),
    ],
)
def test_a_cookie_counts_for_an_hour(later: int, age: int | None) -> None:
    cookies = Cookies()
    assert cookies.age(cookies.make(CLIENT, ASKER, NOW), ASKER, NOW + later) == age


def test_a_client_gets_the_same_cookie_for_a_while_and_what_is_remembered_is_bounded() -> None:
    cookies = Cookies()
    first = cookies.make(CLIENT, ASKER, NOW)
    assert cookies.make(CLIENT, ASKER, NOW + RENEW_AGE - 1) == first
    assert cookies.make(CLIENT, ASKER, NOW + RENEW_AGE) != first
    for number in range(MAX_RECENT + 10):
        cookies.make(number.to_bytes(8), ASKER, NOW)
        assert len(cookies._recent) <= MAX_RECENT


def test_time_may_wrap_around() -> None:
    cookies = Cookies()
    assert cookies.age(cookies.make(CLIENT, ASKER, 2**32 - 5), ASKER, 2**32 + 5) == 10


@given(st.integers(0, COOKIE - 1), st.integers(1, 255))
def test_a_cookie_with_any_byte_changed_is_not_ours(place: int, change: int) -> None:
    cookies = Cookies(bytes(16))
    cookie = bytearray(cookies.make(CLIENT, ASKER, NOW))
    cookie[place] ^= change
    assert cookies.age(bytes(cookie), ASKER, NOW) is None


@given(st.binary(max_size=48), st.binary(max_size=16))
def test_any_bytes_are_no_cookie_of_ours(cookie: bytes, asker: bytes) -> None:
    assert Cookies(bytes(16)).age(cookie, asker, NOW) is None


def test_a_cookie_counts_for_its_own_address_and_for_servers_of_one_seed() -> None:
    ours, twin, stranger = Cookies(b"x" * 16), Cookies(b"x" * 16), Cookies()
    cookie = ours.make(CLIENT, ASKER, NOW)
    assert twin.age(cookie, ASKER, NOW) == 0
    assert stranger.age(cookie, ASKER, NOW) is None
    assert ours.age(cookie, ip_address("198.51.100.101").packed, NOW) is None


def test_secrets_change_by_themselves_and_the_last_one_still_counts() -> None:
    cookies = Cookies(bytes(16))
    boundary = (NOW // SECRET_LIFE + 1) * SECRET_LIFE
    before = cookies.make(CLIENT, ASKER, boundary - 1)
    assert cookies.age(before, ASKER, boundary + 1) == 2
    other = CLIENT[::-1]  # one that was given none before
    after = cookies.make(other, ASKER, boundary)
    assert after != compute_cookie(cookies._digest(boundary - 1), other, after[8:16], ASKER)
    assert after == compute_cookie(cookies._digest(boundary), other, after[8:16], ASKER)
    for weeks in range(10):
        cookies.make(CLIENT, ASKER, boundary + weeks * SECRET_LIFE)
        assert len(cookies._digests) <= 2
