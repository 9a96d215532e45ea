"""What is generated from the code is up to date."""

import pytest

from tests.docs import ROOT, generated


@pytest.mark.parametrize("name", [path.name for path, _ in generated()])
def test_a_generated_file_is_what_the_code_says(name: str) -> None:
    [(path, text)] = [(path, text) for path, text in generated() if path.name == name]
    assert path.read_text() == text, f"{path.relative_to(ROOT)} is out of date: run `make docs`"
