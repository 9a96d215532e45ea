"""Response rate limiting: by network, in windows, in a table that never grows."""

from collections import Counter
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from codius_dns.limits import SLIP, SLOTS, WINDOW, RateLimit, Verdict, network_of


def test_a_network_is_a_24_or_a_56() -> None:
    assert network_of(ip_address("192.0.2.17").packed) == network_of(ip_address("192.0.2.250").packed)
    assert network_of(ip_address("192.0.2.17").packed) != network_of(ip_address("192.0.3.17").packed)
    first = network_of(ip_address("2001:db8:0:ff01::1").packed)
    assert first == network_of(ip_address("2001:db8:0:ffff::1").packed)
    assert first != network_of(ip_address("2001:db8:0:fe01::1").packed)


@given(st.integers(1, 50), st.integers(0, 200))
def test_within_a_window_the_limit_is_sent_and_of_the_rest_every_second_is_truncated(
    most: int, more: int
) -> None:
    limit = RateLimit(most)
    limit.turn(0.0)
    verdicts = Counter(limit.judge(b"abc") for _ in range(most + more))
    assert verdicts[Verdict.SEND] == most
    assert abs(verdicts[Verdict.TRUNCATE] - more / SLIP) < 1
    assert verdicts[Verdict.SEND] + verdicts[Verdict.TRUNCATE] + verdicts[Verdict.DROP] == most + more


def test_a_new_window_begins_with_nothing_counted() -> None:
    limit = RateLimit(1)
    limit.turn(10.0)
    assert limit.judge(b"abc") is Verdict.SEND
    limit.turn(10.0 + WINDOW / 2)
    assert limit.judge(b"abc") is not Verdict.SEND
    limit.turn(10.0 + WINDOW)
    assert limit.judge(b"abc") is Verdict.SEND


def test_one_network_over_its_limit_costs_the_others_nothing() -> None:
    limit = RateLimit(5)
    limit.turn(0.0)
    for _ in range(100):
        limit.judge(b"bad")
    sent = [limit.judge(bytes((1, 2, number))) for number in range(200)]
    assert sent.count(Verdict.SEND) >= 199  # two may share a counter


def test_a_flood_from_everywhere_costs_no_memory() -> None:
    limit = RateLimit(1)
    limit.turn(0.0)
    for number in range(2 * SLOTS):
        limit.judge(number.to_bytes(3))
    assert len(limit._counts) == SLOTS
