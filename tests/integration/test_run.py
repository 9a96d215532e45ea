"""`codiusd run`: what the whole host does when it is told to read its settings again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

from tests.harness.front import Raw
from tests.harness.noop import NoopHost, open_noop_host
from tests.harness.origin import DEADLINE
from tests.harness.processes import until


async def contact(host: NoopHost) -> str:
    """The operator's, as error pages have it."""
    client = Raw(*await asyncio.open_connection("127.0.0.1", host.port))
    answer = await client.get("x.example")
    await client.aclose()
    found: str = json.loads(answer.body)["contact"]
    return found


async def test_a_hang_up_gives_the_front_door_its_new_settings(tmp_path: Path) -> None:
    """As root, the front door is by then somebody who may read no file of root's."""
    settings = tmp_path / "codius.env"
    settings.touch(mode=0o600)
    settings.write_text("CODIUS_CONTACT=first@host.example\n")
    with open_noop_host("--env-file", str(settings)) as host:
        assert await contact(host) == "first@host.example"
        settings.write_text("CODIUS_CONTACT=second@host.example\n")
        os.kill(host.pid, signal.SIGHUP)
        async with asyncio.timeout(DEADLINE):
            while await contact(host) != "second@host.example":
                await asyncio.sleep(0.02)
        settings.write_text("CODIUS_CONTACT=third@host.example\nCODIUS_PROXY_WORKERS=none\n")
        os.kill(host.pid, signal.SIGHUP)
        await until(lambda: "the settings stay as they are: CODIUS_PROXY_WORKERS" in host.log.read_text())
        assert await contact(host) == "second@host.example"
        settings.write_text("CODIUS_CONTACT=third@host.example\nCODIUS_PROXY_PROTOCOL=true\n")
        os.kill(host.pid, signal.SIGHUP)
        await until(lambda: "the workers stay as they are" in host.log.read_text())
        assert await contact(host) == "second@host.example"
