"""`make docs`: writes again what is generated from the code; the tests fail when it is out of date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from codius_node import config, declarations
from tests.integration import http_requirements
from tests.integration.test_golden import DIFFERENCES
from tests.system.isolation import page

ROOT = Path(__file__).parents[1]
MARKERS = re.compile(r"(<!-- settings: .*? -->\n).*?(<!-- settings end -->)", re.DOTALL)


def generated() -> Iterator[tuple[Path, str]]:
    """Each generated file with the text it should have."""
    settings = config.DECLARED.values()
    yield ROOT / ".env.example", declarations.render_env(settings)
    yield ROOT / "docs" / "compatibility.md", render_differences()
    # What was found stays as it is: only the system tests can find it.
    yield page.PAGE, page.render(page.read(page.PAGE.read_text()))
    yield ROOT / "docs" / "http-conformance.md", http_requirements.render()
    readme = ROOT / "README.md"
    yield (
        readme,
        MARKERS.sub(lambda m: m[1] + declarations.render_table(settings) + m[2], readme.read_text()),
    )


def render_differences() -> str:
    """docs/compatibility.md: what recorded steps of the original we answer otherwise, and why."""
    by_reason: dict[tuple[str, int | None], list[str]] = {}
    for difference in DIFFERENCES:
        by_reason.setdefault((difference.reason, difference.status), []).append(difference.step)
    lines = [
        "# What is deliberately different from codiusd",
        "",
        "Recordings of codiusd 1.2.5 are replayed against this host, through its front door"
        " (`tests/integration/test_golden.py`).",
        "Every answer agrees in status, content type and JSON, or is in this table; the test fails for a"
        " difference that is not listed, and for an entry that is not one.",
        "Generated from that test by `make docs`.",
        "",
        "| why | our status | recorded steps |",
        "|---|---|---|",
    ]
    for (reason, status), steps in by_reason.items():
        named = "<br>".join(f"`{_cell(step)}`" for step in steps)
        lines.append(f"| {_cell(reason)} | {status or ''} | {named} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    for path, text in generated():
        if path.exists() and path.read_text() == text:
            continue
        path.write_text(text)
        print(f"written: {path.relative_to(ROOT)}")
