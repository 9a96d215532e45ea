"""A real browser: a page from elsewhere uses the API, and the host's own page is what it should be."""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web

from codius_node import pages
from tests.harness.noop import NoopHost, open_noop_host
from tests.integration.test_api import DOCUMENT, HASH
from tests.unit.node.test_pages import PAGE

CHROMIUM: Final = shutil.which("chromium")
SECONDS: Final = 60.0
PAGE_MILLISECONDS: Final = 10_000
"""Of the page's own time, which stands still while it waits for the network."""
PHONES: Final = (320, 375)
"""Pixels across: a small one (and what WCAG 1.4.10 asks of any page), and a common one."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="a browser's tests need chromium")

SCRIPT: Final = """
const host = HOST, upload = UPLOAD, seen = {};
const headers = {"Content-Type": "application/json", "Pay-Token": "Rny5_WqZJ5kLkapNosGrlA"};
async function ask(name, method, path, options = {}) {
  try {
    const answer = await fetch(host + path, {method, ...options});
    const text = await answer.text(), json = answer.headers.get("Content-Type").includes("json");
    seen[name] = {status: answer.status, document: json ? JSON.parse(text) : text};
  } catch (error) { seen[name] = {error: String(error)}; }
}
(async () => {
  const body = JSON.stringify(upload);
  await ask("quote", "OPTIONS", "/pods?duration=60", {headers, body});
  await ask("upload", "POST", "/pods?duration=60", {headers, body});
  await ask("extend", "PUT", "/pods?manifestHash=HASH&duration=60", {headers: {"Pay-Token": "x"}});
  await ask("show", "GET", "/pods?manifestHash=HASH", {headers: {"Accept": "application/codius-v1+json"}});
  await ask("logs", "GET", "/pods/HASH/logs");
  await ask("peers", "POST", "/peers/discover", {headers, body: '{"peers": []}'});
  await ask("page", "HEAD", "/");
  await ask("cookies", "GET", "/info", {credentials: "include"});
  await ask("cookies first", "POST", "/pods?duration=60", {headers, body, credentials: "include"});
  await ask("another method", "DELETE", "/pods?manifestHash=HASH");
  await ask("another field", "GET", "/info", {headers: {"X-Secret": "1"}});
  await ask("refusal", "POST", "/pods?duration=abc", {headers, body});
  await ask("unknown", "GET", "/nowhere");
  document.querySelector("pre").textContent = JSON.stringify(seen);
})();
"""
MEASURE: Final = """
<script>
const {scrollWidth, clientWidth} = document.documentElement;  // the second without a scroll bar
parent.document.title = `${scrollWidth <= clientWidth} at ${innerWidth}`;
</script>
"""


@pytest.fixture(scope="module")
def host() -> Iterator[NoopHost]:
    with open_noop_host() as host:
        yield host


async def browse(url: str, directory: Path, *options: str) -> str:
    """The document as it is when the page has done its work."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless",
        "--no-sandbox",  # which root cannot have; it opens nothing but what is here
        "--disable-gpu",
        "--no-first-run",
        f"--user-data-dir={directory}",
        "--host-resolver-rules=MAP *.localhost 127.0.0.1",
        f"--virtual-time-budget={PAGE_MILLISECONDS}",
        "--dump-dom",
        *options,
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate()
    return output.decode()


async def test_a_page_from_elsewhere_can_quote_upload_extend_and_read_refusals(
    host: NoopHost, tmp_path: Path
) -> None:
    values = {"HASH": HASH, "HOST": json.dumps(host.origin), "UPLOAD": json.dumps(DOCUMENT)}
    script = re.sub("|".join(values), lambda found: values[found[0]], SCRIPT)

    async def page(_: web.Request) -> web.Response:
        return web.Response(
            text=f"<!doctype html><pre></pre><script>{script}</script>", content_type="text/html"
        )

    app = web.Application()
    app.router.add_get("/", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        text = await browse(f"http://127.0.0.1:{runner.addresses[0][1]}/", tmp_path)
    finally:
        await runner.cleanup()
    found = re.search(r"<pre>(.*?)</pre>", text, re.DOTALL)
    assert found is not None, text
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert {name: answer.get("status") for name, answer in seen.items()} == {
        "quote": 200,
        "upload": 200,
        "extend": 200,
        "show": 200,
        "logs": 403,
        "peers": 200,
        "page": 200,
        # no answer that a page may read: there is nothing here that cookies could be for
        "cookies": None,
        "cookies first": None,
        "another method": None,
        "another field": None,
        "refusal": 400,
        "unknown": 404,
    }
    assert seen["quote"]["document"]["manifestHash"] == seen["upload"]["document"]["manifestHash"] == HASH
    assert "duration must be" in seen["refusal"]["document"]["message"]


async def test_the_page_runs_its_own_script_under_its_policy(host: NoopHost, tmp_path: Path) -> None:
    text = await browse(host.origin + "/", tmp_path)
    assert text.count("<button") == text.count('class="command"') > 0


@pytest.mark.parametrize("width", PHONES)
async def test_the_page_is_no_wider_than_a_phone(width: int, tmp_path: Path) -> None:
    peer = f"https://{'b' * 60}.example"
    page = pages.render(replace(PAGE, uri=f"https://{'a-long-name.' * 8}example", some_peers=(peer,)))
    frame = f'<iframe style="border: 0" width="{width}" srcdoc="{html.escape(page + MEASURE)}"></iframe>'
    (tmp_path / "phone.html").write_text(f"<!doctype html><title></title>{frame}")
    text = await browse(f"file://{tmp_path}/phone.html", tmp_path / "profile")
    assert f"<title>true at {width}</title>" in text


@pytest.mark.skipif(not shutil.which("curl"), reason="the page's commands need curl")
async def test_the_commands_on_the_page_work_as_they_are_copied(host: NoopHost, tmp_path: Path) -> None:
    page = await browse(host.origin + "/", tmp_path / "profile")
    commands = [html.unescape(each) for each in re.findall(r"<code>(.*?)</code>", page, re.DOTALL)]
    document = {"manifest": {**DOCUMENT["manifest"], "name": "from the page"}}
    for name in ("codius.json", "upload.json"):
        (tmp_path / name).write_text(json.dumps(document))
    binaries = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)],
        env={"PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert len(commands) == 3
    assert "statusCode" not in done.stdout
    assert '"price"' in done.stdout
