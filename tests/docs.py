"""`make docs`: writes again what is generated from the code; the tests fail when it is out of date."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from codius_node import config, declarations
from codius_node.admin import ENDPOINTS
from codius_node.cli import build_parser
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
    operators = ROOT / "docs" / "admin.md"
    yield operators, ADMIN_PARTS.sub(lambda m: m[1] + ADMIN_TABLES[m[2]]() + m[3], operators.read_text())
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


def render_commands() -> str:
    """A row for each word of `codiusd admin`, with all it takes, from the parser itself."""
    lines = ["| command | what it does |", "|---|---|"]
    for words, command in _find_commands(build_parser()):
        usage = " ".join(command.format_usage().removeprefix("usage: ").split())
        for option in ("[-h] ", "[--env-file FILE] ", "[--json] "):
            usage = usage.replace(option, "")
        usage = usage.replace(" [--env-file FILE]", "").replace(" [--json]", "")
        lines.append(f"| `{_cell(usage)}` | {_cell(command.description or words)} |")
    return "\n".join(lines) + "\n"


def _find_commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Those below `codiusd admin` that do something, in the order of its help."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups and " admin " in parser.prog:
        yield parser.prog, parser
    for group in groups:
        for command in group.choices.values():
            yield from _find_commands(command)


def render_endpoints() -> str:
    """A row for each thing to ask of the admin API."""
    lines = ["| request | what it is for |", "|---|---|"]
    lines += [f"| `{method} {path}` | {_cell(what)} |" for (method, path), what in ENDPOINTS.items()]
    return "\n".join(lines) + "\n"


ADMIN_PARTS = re.compile(r"(<!-- (commands|endpoints): .*? -->\n).*?(<!-- \2 end -->)", re.DOTALL)
ADMIN_TABLES = {"commands": render_commands, "endpoints": render_endpoints}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    for path, text in generated():
        if path.exists() and path.read_text() == text:
            continue
        path.write_text(text)
        print(f"written: {path.relative_to(ROOT)}")
