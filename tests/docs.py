"""`make docs`: writes again what is generated from the code; the tests fail when it is out of date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from codius_node import config

ROOT = Path(__file__).parents[1]
MARKERS = re.compile(r"(<!-- settings: .*? -->\n).*?(<!-- settings end -->)", re.DOTALL)


def generated() -> Iterator[tuple[Path, str]]:
    """Each generated file with the text it should have."""
    yield ROOT / ".env.example", config.render_env()
    readme = ROOT / "README.md"
    yield readme, MARKERS.sub(lambda m: m[1] + config.render_table() + m[2], readme.read_text())


if __name__ == "__main__":
    for path, text in generated():
        if path.exists() and path.read_text() == text:
            continue
        path.write_text(text)
        print(f"written: {path.relative_to(ROOT)}")
