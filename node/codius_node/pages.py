"""The host's page for people: one self-contained HTML document made from plain values."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from typing import Final
from urllib.parse import urlsplit

from codius_node.model import MEMORY_SMALL, Currency, Isolation
from codius_node.pricing import SECONDS_PER_MONTH

PEERS_SHOWN: Final = 12
"""Other hosts named on the page; /peers has the rest."""
ISOLATIONS: Final[Mapping[Isolation, tuple[str, str]]] = {
    Isolation.NONE: ("None", "this host runs nothing: it is there to try the API"),
    Isolation.CONTAINER: ("Containers", "namespaces and limits of the host's own kernel"),
    Isolation.GVISOR: ("gVisor", "each pod has a kernel in user space"),
    Isolation.VM: ("Virtual machines", "each pod has a kernel of its own"),
}
"""For each class a name and what it means."""


@dataclass(frozen=True, slots=True)
class HostPage:
    """What the page tells. None: the operator keeps it to themselves. Times in seconds, memory in bytes."""

    uri: str
    version: str
    refusal: str | None
    """Why uploads are refused now; None when they are welcome."""
    cost_per_month: Decimal
    currency: Currency
    free_of_charge: bool
    peers: int
    some_peers: tuple[str, ...] = ()
    isolation: Isolation | None = None
    free_memory: int | None = None
    pods: int | None = None
    uptime: int | None = None
    service_uptime: int | None = None


STYLE: Final = """
:root { color-scheme: light dark;
  --ground: #f6f7f9; --card: #fff; --ink: #1b2430; --soft: #566172; --line: #dce1e8;
  --accent: #0b61a4; --good: #0f6b3c; --good-ground: #e2f4e9; --bad: #8c3b00; --bad-ground: #fdeedd; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #11161d; --card: #1a212b; --ink: #e8edf3; --soft: #a3afbe; --line: #2f3947;
  --accent: #7cbcf2; --good: #86dcaa; --good-ground: #14331f; --bad: #f6b981; --bad-ground: #3b2614; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.55; overflow-wrap: anywhere;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: clamp(1.25rem, 5vw, 3.5rem) clamp(1rem, 4vw, 2rem) 2rem; }
a { color: var(--accent); text-underline-offset: .15em; }
a:focus-visible, button:focus-visible { outline: 3px solid var(--accent);
  outline-offset: 2px; border-radius: .3rem; }
.kind { margin: 0; color: var(--soft); }
h1 { margin: 0 0 .8rem; font-size: clamp(1.45rem, 5.5vw, 2.2rem); line-height: 1.2;
  letter-spacing: -.015em; }
h2 { margin: 2.4rem 0 .6rem; font-size: 1.15rem; }
.state { display: inline-block; margin: 0; padding: .2rem .75rem; border-radius: 1rem; font-weight: 600; }
.open { color: var(--good); background: var(--good-ground); }
.shut { color: var(--bad); background: var(--bad-ground); }
.lead { margin: 1.1rem 0 0; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .75rem;
  margin: 1.6rem 0 0; }
dl > div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .7rem .9rem; }
dt { color: var(--soft); font-size: .875rem; }
dd { margin: 0; font-size: 1.2rem; font-weight: 600; }
dd small { display: block; color: var(--soft); font-weight: 400; font-size: .875rem; }
.command { margin: 1rem 0; }
.label { display: flex; gap: .75rem; align-items: end; justify-content: space-between; margin: 0 0 .35rem; }
.label button { flex: none; min-height: 2rem; padding: 0 .8rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: .4rem; font: inherit; font-size: .8125rem; cursor: pointer; }
.label button:hover { border-color: var(--accent); }
pre { margin: 0; padding: .8rem .9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; white-space: pre-wrap;
  font: .875rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre code { user-select: all; }
ul { margin: .4rem 0; padding-left: 1.2rem; }
li { margin: .2rem 0; }
footer { margin-top: 2.6rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .875rem; }
dl > div:first-child { grid-column: 1 / -1; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr 1fr; } pre { font-size: .8125rem; } }
"""

SCRIPT: Final = """
if (navigator.clipboard) for (const box of document.querySelectorAll(".command")) {
  const button = document.createElement("button");
  button.type = "button"; button.textContent = "Copy";
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(box.querySelector("code").textContent);
      button.textContent = "Copied";
    } catch { button.textContent = "Select it"; }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  box.querySelector(".label").append(button);
}
"""


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


POLICY: Final = (
    f"default-src 'none'; style-src {_source(STYLE)}; script-src {_source(SCRIPT)}; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: this page loads nothing and runs only what is written above."""


def render(page: HostPage) -> str:
    """The document. Every value is escaped here and nowhere else."""
    host = escape(urlsplit(page.uri).netloc or page.uri)
    state = (
        '<p class="state open">Accepting uploads</p>'
        if page.refusal is None
        else f'<p class="state shut">Not accepting uploads: {escape(page.refusal)}</p>'
    )
    facts = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}{_small(note)}</dd></div>"
        for name, value, note in _facts(page)
    )
    commands = "\n".join(
        f'<div class="command"><div class="label"><span>{escape(label)}</span></div>'
        f"<pre><code>{escape(command)}</code></pre></div>"
        for label, command in _commands(page)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="description" content="A Codius host: upload a manifest, and its pod answers at its own address.">
<title>{host} – Codius host</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<p class="kind">Codius host</p>
<h1>{host}</h1>
{state}
<p class="lead">This machine runs containers for anyone. Upload a manifest for as long as you need it,
and your pod answers at an address of its own. No account needed.</p>
</header>
<dl>
{facts}
</dl>
<section aria-labelledby="upload">
<h2 id="upload">Upload something</h2>
{commands}
</section>
{_peers(page)}<section aria-labelledby="more">
<h2 id="more">For programs</h2>
<ul>
<li><a href="/openapi.json">/openapi.json</a>: every request and its answers, as OpenAPI 3.1</li>
<li><a href="/llms.txt">/llms.txt</a>: the same in words, for language models</li>
<li><a href="/info">/info</a>: this page's figures as JSON</li>
<li><a href="/peers">/peers</a>: other hosts known here</li>
<li><a href="/version">/version</a>: the software</li>
</ul>
</section>
<footer>Codius Host {escape(page.version)}</footer>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _facts(page: HostPage) -> list[tuple[str, str, str | None]]:
    """Name, value and a smaller line below; only what the operator shows."""
    second, hour, month = render_prices(page.cost_per_month, page.currency)
    facts: list[tuple[str, str, str | None]] = []
    if page.free_of_charge:
        facts.append(("Price", "Free", f"quoted at {month}, {hour}, {second}; charged to nobody"))
    else:
        facts.append(("Price", month, f"{hour}, {second}"))
    if page.isolation is not None:
        facts.append(("Isolation", *ISOLATIONS[page.isolation]))
    if page.free_memory is not None:
        pod = f"a pod has {render_size(MEMORY_SMALL)} and one CPU"
        facts.append(("Free memory", render_size(page.free_memory), pod))
    if page.pods is not None:
        facts.append(("Pods running", str(page.pods), None))
    if page.service_uptime is not None:
        facts.append(("Host up for", render_span(page.service_uptime), None))
    if page.uptime is not None:
        facts.append(("Machine up for", render_span(page.uptime), None))
    facts.append(("Known peers", str(page.peers), None))
    return facts


def _peers(page: HostPage) -> str:
    """Some other hosts to go to; nothing when none is known."""
    if not page.some_peers:
        return ""
    some = map(escape, page.some_peers)
    links = "\n".join(f'<li><a href="{uri}" rel="nofollow noreferrer">{uri}</a></li>' for uri in some)
    return f"""<section aria-labelledby="peers">
<h2 id="peers">Other hosts</h2>
<ul>
{links}
</ul>
</section>
"""


def _commands(page: HostPage) -> list[tuple[str, str]]:
    return [
        (
            "With the codiusd command, for one hour; codius.json is your manifest:",
            f"codiusd upload codius.json --host {page.uri} --duration 3600",
        ),
        (
            'With curl; upload.json is {"manifest": ..., "private": ...}:',
            f"curl -H 'Content-Type: application/json' \\\n  --data-binary @upload.json \\\n"
            f"  '{page.uri}/pods?duration=3600'",
        ),
        (
            "What it would cost, before you decide:",
            f"curl -X OPTIONS -H 'Content-Type: application/json' \\\n  --data-binary @upload.json \\\n"
            f"  '{page.uri}/pods?duration=3600'",
        ),
    ]


def render_prices(cost_per_month: Decimal, currency: Currency) -> tuple[str, str, str]:
    """A pod's price per second, hour and month, in units of the asset."""
    return (
        f"{render_amount(cost_per_month / SECONDS_PER_MONTH)} {currency.code} a second",
        f"{render_amount(cost_per_month * 3600 / SECONDS_PER_MONTH)} {currency.code} an hour",
        f"{render_amount(cost_per_month)} {currency.code} a month",
    )


def render_amount(amount: Decimal) -> str:
    """Plain digits, three that count after the point, no exponent, no zeros that say nothing."""
    places = max(2, 2 - amount.adjusted()) if amount else 0
    text = f"{amount:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def render_size(size: int) -> str:
    """Bytes for people, in binary units; the space does not break."""
    if size < 1024**3:
        return f"{size // 1024**2}\N{NO-BREAK SPACE}MiB"
    if size < 1024**4:
        return f"{size / 1024**3:.1f}\N{NO-BREAK SPACE}GiB"
    return f"{size / 1024**4:.1f}\N{NO-BREAK SPACE}TiB"


def render_span(seconds: int) -> str:
    """The two largest units: `3 days 4 h`, `5 h 12 min`, `42 min`, `less than a minute`."""
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes = rest // 60
    if days:
        return f"{days} day{'s' if days > 1 else ''} {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else "less than a minute"


def _small(note: str | None) -> str:
    return "" if note is None else f"<small>{escape(note)}</small>"
