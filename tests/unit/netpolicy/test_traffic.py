"""Counters as values."""

from codius_netpolicy.traffic import MARKS, NO_TRAFFIC, REASONS, Reason, Traffic, Volume, larger


def test_of_two_readings_each_counter_is_the_larger() -> None:
    one = Traffic(Volume(10, 1), Volume(5, 5), {Reason.POD: 2, Reason.HOST: 1})
    other = Traffic(Volume(7, 3), Volume(9, 4), {Reason.POD: 3, Reason.RATE: 1})
    both = Traffic(Volume(10, 3), Volume(9, 5), {Reason.POD: 3, Reason.HOST: 1, Reason.RATE: 1})
    assert larger(one, other) == larger(other, one) == both
    assert larger(one, NO_TRAFFIC) == one


def test_every_reason_has_a_number_of_its_own_and_none_is_that_of_an_unmarked_packet() -> None:
    assert len(REASONS) == len(Reason)
    assert all(REASONS[reason.mark] is reason for reason in Reason)
    assert 0 not in MARKS.values()
