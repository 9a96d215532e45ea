"""Settings files: read as systemd reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node import environment
from codius_node.errors import SettingsError


def test_a_settings_file_is_read_as_systemd_reads_it() -> None:
    text = "# comment\n; too\n\nA=1\nexport B = 2\nC='x y'\nD=\"z\"\nE=\nF='\nG=a=b\n"
    assert environment.parse_env_file(text.replace("B = ", "B="), Path("f")) == {
        "A": "1",
        "B": "2",
        "C": "x y",
        "D": "z",
        "E": "",
        "F": "'",
        "G": "a=b",
    }


def test_the_file_is_read_again_and_the_processs_own_variables_go_first(tmp_path: Path) -> None:
    path = tmp_path / "env"
    found = environment.Environment({"A": "own"}, path)
    path.write_text("A=1\nB=1\n")
    assert found.read() == {"A": "own", "B": "1"}
    path.write_text("B=2\nC=3\n")
    assert found.read() == {"A": "own", "B": "2", "C": "3"}
    path.unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        found.read()


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126))


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,9}", fullmatch=True), PRINTABLE))
def test_what_is_written_is_read_back(values: dict[str, str]) -> None:
    text = environment.render_env_file(values)
    assert environment.parse_env_file(text, Path("f")) == values


def test_a_line_that_sets_nothing_is_named() -> None:
    with pytest.raises(SettingsError, match=r"codius\.env, line 2: 'nonsense'"):
        environment.parse_env_file("A=1\nnonsense\n", Path("codius.env"))
