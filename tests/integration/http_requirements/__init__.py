"""What RFC 9112 and RFC 9110 demand of an intermediary, and how the front door is seen to do it.

One row per MUST or MUST NOT, in our words, with bytes a visitor sends, bytes a pod answers, and what must
be seen on both sides. `test_http_conformance.py` runs every row over real sockets; docs/http-conformance.md
is written from this table. `others.py` has what takes another kind of test, and what is not ours.
"""

from __future__ import annotations

from typing import Final

from tests.integration.http_requirements import bodies, connections, intermediaries, messages
from tests.integration.http_requirements.others import ELSEWHERE, EXEMPT
from tests.integration.http_requirements.row import Requirement

REQUIREMENTS: Final = (*messages.ROWS, *bodies.ROWS, *connections.ROWS, *intermediaries.ROWS)


def render() -> str:
    """docs/http-conformance.md."""
    lines = [
        "# What HTTP demands of the front door",
        "",
        "Each MUST and MUST NOT of RFC 9112 and RFC 9110 that binds an intermediary, in our words, and what",
        "is sent over a real socket to see it kept. `tests/integration/test_http_conformance.py` runs every",
        "row against a running front door with a recording pod behind it; this page is written from the same",
        "table by `make docs`. Below it: requirements that other tests keep, and those that are not ours.",
        "",
        "| RFC, section | level | what it demands | a visitor sends | a pod answers | seen |",
        "|---|---|---|---|---|---|",
    ]
    for row in REQUIREMENTS:
        says = row.says + (f" **{row.note}**" if row.note else "")
        pod = _shown(row.pod) if row.reaches_pod else "is not asked"
        cells = (row.section, row.level, says, _shown(row.visitor), pod, _seen(row))
        lines.append(_line(*cells))
    lines += (
        "",
        "## Kept by other tests",
        "",
        "| RFC, section | level | what it demands | test |",
        "|---|---|---|---|",
    )
    lines += [_line(kept.section, kept.level, kept.says, f"`tests/{kept.test}`") for kept in ELSEWHERE]
    lines += (
        "",
        "## Not ours",
        "",
        "| RFC, section | what it is about | why it asks nothing here |",
        "|---|---|---|",
    )
    lines += [_line(*exempt) for exempt in EXEMPT]
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _seen(row: Requirement) -> str:
    parts = [f"visitor gets {_shown(found)}" for found in row.visitor_gets]
    parts += [f"visitor never sees {_shown(found)}" for found in row.visitor_misses]
    parts += [f"pod gets {_shown(found)}" for found in row.pod_gets]
    parts += [f"pod never sees {_shown(found)}" for found in row.pod_misses]
    if row.pod_connections is not None:
        parts.append(f"{row.pod_connections} connection(s) to the pod")
    parts.append("the connection goes on" if row.goes_on else "the connection ends")
    return "<br>".join(parts)


def _shown(data: bytes) -> str:
    text = ascii(data.decode("latin-1"))[1:-1]
    return f"`{text if len(text) <= 160 else text[:120] + '…' + text[-20:]}`"
