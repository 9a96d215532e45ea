"""The host explained to language models that act for somebody: /llms.txt (llmstxt.org)."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from codius_node.model import Currency
from codius_node.operations import Operation
from codius_node.pages import render_prices

EXAMPLE: Final = """{"manifest": {"name": "hello", "version": "1.0.0", "port": "8080",
 "containers": [{"id": "web", "image": "registry.example/hello@sha256:<64 hex digits>"}]}}"""


def render(
    operations: Iterable[Operation],
    *,
    uri: str,
    cost_per_month: Decimal,
    currency: Currency,
    free_of_charge: bool,
) -> str:
    """Markdown: what the host is for, how to use it, and a line for each thing it can be asked."""
    prices = ", ".join(render_prices(cost_per_month, currency))
    money = f"Quoted at {prices}; charged to nobody." if free_of_charge else f"It costs {prices}."
    lines = [
        f"# Codius host {uri}",
        "",
        "> Runs containers for anyone: POST a manifest, and its pod answers at an address of its own for as"
        f" long as is paid for. No account. {money}",
        "",
        "## Use",
        "",
        "1. Write a manifest; images by digest, because its hash names what runs. `port` is where one of the"
        " containers listens for HTTP:",
        "",
        "```json",
        EXAMPLE,
        "```",
        "",
        f"2. Ask the price: `OPTIONS {uri}/pods?duration=3600` with it as the body (`application/json`).",
        f"3. Run it for an hour: `POST {uri}/pods?duration=3600`. The answer has `url`, `manifestHash` and"
        " `expiry`. The same request again extends it; `PUT` does so by hash.",
        "4. After its expiry it is gone with what it stored. Errors are JSON with `message` and `hint`.",
        "",
        "Values that must stay secret go into `private`, and their SHA-256 into the manifest: the schema in"
        " the OpenAPI description has the fields. Logs are shown of manifests with `debug: true` only.",
        "",
        "## Requests",
        "",
        *(_line(operation, uri) for operation in operations),
    ]
    return "\n".join(lines) + "\n"


def _line(operation: Operation, uri: str) -> str:
    query = "&".join(f"{parameter.name}=…" for parameter in operation.query)
    target = operation.path + (f"?{query}" if query else "")
    if operation.method == "GET" and "{" not in operation.path:
        return f"- [GET {target}]({uri}{operation.path}): {operation.summary}"
    return f"- {operation.method} {target}: {operation.summary}"
