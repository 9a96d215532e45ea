"""The proxy's own answers: JSON for programs, a small page for people, always complete."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Final

REASONS: Final = {
    200: "OK",
    308: "Permanent Redirect",
    400: "Bad Request",
    404: "Not Found",
    408: "Request Timeout",
    410: "Gone",
    413: "Content Too Large",
    414: "URI Too Long",
    417: "Expectation Failed",
    421: "Misdirected Request",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    451: "Unavailable For Legal Reasons",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}
RETRY_AFTER: Final = 5  # seconds a client should wait after a 503: restarts here are quicker

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
{refresh}<title>{title}</title>
<style>
:root {{ color-scheme: light dark;
  --ink: #1c2430; --soft: #5b6675; --paper: #f5f6f8; --card: #fff; --line: #dde2e8; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8ebef; --soft: #9aa5b3; --paper: #14181e; --card: #1c222a; --line: #2c343f; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.25rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }}
main {{ width: 100%; max-width: 34rem; padding: 2rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .75rem; }}
.status {{ margin: 0; color: var(--soft); font-size: .9rem; letter-spacing: .04em; }}
h1 {{ margin: .25rem 0 1rem; font-size: 1.5rem; line-height: 1.25; text-wrap: balance; }}
p {{ margin: 0 0 .75rem; overflow-wrap: anywhere; }}
.hint {{ margin: 0; color: var(--soft); }}
footer {{ margin-top: 1.5rem; padding-top: 1rem; border-top: 1px solid var(--line);
  color: var(--soft); font-size: .85rem; }}
footer p {{ margin: 0; }}
code {{ font: .95em ui-monospace, monospace; }}
</style>
</head>
<body>
<main>
<p class="status">{status} {reason}</p>
<h1>{title}</h1>
<p>{message}</p>
{hint}{footer}</main>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request does not reach a pod: status, what happened, what to do next."""

    status: int
    message: str
    hint: str
    reason: str = ""  # one word for the metrics and the access log; that of its status when empty
    title: str = ""  # a page's heading; the status's own when empty
    passing: bool = False  # over in a moment: a page asks again by itself
    location: str = ""  # where to go instead
    blocked_by: str = ""  # who keeps it from visitors, as a URI (RFC 7725 section 4)

    @property
    def label(self) -> str:
        return self.reason or _LABELS.get(self.status, "refused")


_LABELS: Final = {
    400: "malformed",
    408: "slow",
    413: "too_large",
    414: "too_large",
    417: "unsupported",
    431: "too_large",
    501: "unsupported",
    505: "unsupported",
}


def render(
    refusal: Refusal,
    *,
    html: bool,
    head_only: bool,
    close: bool,
    request_id: str = "",
    contact: str = "",
    policy: bytes = b"",
) -> bytes:
    """The complete answer; `head_only` leaves the body out and its length in (a HEAD request).

    `contact` is how to reach the operator; `policy` is a header line, CR LF before it.
    """
    body = _render_html(refusal, request_id, contact) if html else _render_json(refusal, request_id, contact)
    lines = [
        f"HTTP/1.1 {refusal.status} {REASONS[refusal.status]}",
        f"Date: {http_date(int(time.time()))}",
        f"Content-Type: {'text/html' if html else 'application/json'}; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-cache",
        "Vary: Accept",
        "X-Content-Type-Options: nosniff",
    ]
    if html:
        lines.append("Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'")
    if request_id:
        lines.append(f"X-Request-Id: {request_id}")
    if refusal.status == 503:
        lines.append(f"Retry-After: {RETRY_AFTER}")
    if refusal.location:
        lines.append(f"Location: {refusal.location}")
    if refusal.blocked_by:
        lines.append(f'Link: <{refusal.blocked_by}>; rel="blocked-by"')
    if close:
        lines.append("Connection: close")
    head = "\r\n".join(lines).encode("ascii") + policy + b"\r\n\r\n"
    return head if head_only else head + body


def _render_json(refusal: Refusal, request_id: str, contact: str) -> bytes:
    document = {
        "statusCode": refusal.status,
        "error": REASONS[refusal.status],
        "message": refusal.message,
        "hint": refusal.hint,
    }
    if request_id:
        document["requestId"] = request_id
    if contact:
        document["contact"] = contact
    return json.dumps(document).encode()


def _render_html(refusal: Refusal, request_id: str, contact: str) -> bytes:
    reason = REASONS[refusal.status]
    facts = []
    if request_id:
        facts.append(f"<p>Request <code>{escape(request_id)}</code></p>\n")
    if contact:
        facts.append(f"<p>This host's operator: <bdi>{escape(contact)}</bdi></p>\n")
    return _PAGE.format(
        status=refusal.status,
        reason=escape(reason),
        title=escape(refusal.title or reason),
        message=escape(refusal.message),
        hint=f'<p class="hint">{escape(refusal.hint)}</p>\n' if refusal.hint else "",
        refresh=f'<meta http-equiv="refresh" content="{RETRY_AFTER}">\n' if refusal.passing else "",
        footer=f"<footer>\n{''.join(facts)}</footer>\n" if facts else "",
    ).encode()


@lru_cache(maxsize=1)
def http_date(seconds: int) -> str:
    """RFC 9110 section 5.6.7; strftime would follow the locale."""
    moment = time.gmtime(seconds)
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[moment.tm_wday]
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[
        moment.tm_mon - 1
    ]
    clock = f"{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}"
    return f"{day}, {moment.tm_mday:02} {month} {moment.tm_year} {clock} GMT"
