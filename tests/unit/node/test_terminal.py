"""What people read: nothing of strangers that a terminal obeys; lengths, sizes and tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node import terminal


@given(st.text())
def test_cleaned_text_has_nothing_a_terminal_obeys_but_colours(text: str) -> None:
    assert not terminal.CONTROL.search(terminal.clean(text))
    assert not terminal.CONTROL.search(terminal.COLOUR.sub("", terminal.clean(text, colours=True)))


def test_colours_stay_where_they_may_and_end_with_the_line() -> None:
    assert terminal.clean("\x1b[31mred\x1b[2J", colours=True) == "\x1b[31mred\ufffd[2J\x1b[0m"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (-5, "0 s"), (59, "59 s"), (60, "1 min"), (3661, "1 h 1 min"), (86400 * 3 + 5, "3 d 5 s")],
)
def test_a_length_of_time_is_shown_by_its_largest_units(seconds: int, text: str) -> None:
    assert terminal.render_length(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1234, "1.2 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (1_500_000_000, "1.5 GB"),
        (2 * 10**12, "2.0 TB"),
        (2**63, "9223 PB"),
    ],
)
def test_a_size_is_shown_with_three_digits_at_most(count: int, text: str) -> None:
    assert terminal.render_size(count) == text


@given(st.integers(0, 10**17))
def test_any_size_is_short_and_close(count: int) -> None:
    number, unit = terminal.render_size(count).split()
    assert len(number) <= 4
    scale = 1000 ** ("B", "kB", "MB", "GB", "TB", "PB").index(unit)
    assert abs(float(number) * scale - count) <= 0.051 * max(count, 1)


def test_a_table_is_as_wide_as_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_table([("A", "LONG"), ("wide", "x")])
    assert capsys.readouterr().out == "A     LONG\nwide  x\n"
