"""/info of a real node beside what the machine says of itself."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.harness.noop import NoopHost, open_noop_host
from tests.integration.test_api import DOCUMENT

PEERS: Final = ["https://one.example", "https://two.example"]
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


async def ask(host: NoopHost, target: str) -> Any:
    async with (
        aiohttp.ClientSession(headers={"Host": host.authority}) as client,
        client.get(f"http://127.0.0.1:{host.port}{target}") as answer,
    ):
        assert answer.status == 200
        return await answer.json()


async def upload(host: NoopHost, name: str) -> None:
    document = {"manifest": {**DOCUMENT["manifest"], "name": name}}
    async with (
        aiohttp.ClientSession(headers={"Host": host.authority}) as client,
        client.post(f"http://127.0.0.1:{host.port}/pods", json=document) as answer,
    ):
        assert answer.status == 200


async def test_info_tells_what_the_machine_and_the_settings_say() -> None:
    began = time.monotonic()
    with open_noop_host(
        CODIUS_COST_PER_MONTH="12.5", CODIUS_BOOTSTRAP_PEERS='["https://one.example", "https://two.example"]'
    ) as host:
        await upload(host, "one")
        await upload(host, "two")
        info = await ask(host, "/info?requestPeers=true")
        memory = await ask(host, "/memory")
        booted = float(Path("/proc/uptime").read_text().split()[0])
        lived = time.monotonic() - began
    total = os.sysconf("SC_PHYS_PAGES") * PAGE
    changing = {
        name: info.pop(name) for name in ("serverFreeMemory", "serverUptime", "serviceUptime", "avgLoad")
    }
    assert sorted(info.pop("peers")) == PEERS
    assert info == {
        "fullMem": False,
        "acceptingUploads": True,
        "numPeers": 2,
        "currency": "DEV",
        "costPerMonth": 12.5,
        "uri": host.origin,
        "selfTestSuccess": None,
        "isolation": "none",
        "runningContracts": 2,
    }
    # bytes, not KiB or MiB: more than a hundredth of the machine's memory, and no more than there is
    assert total / 100 < changing["serverFreeMemory"] <= total
    assert total / 100 < memory["freeMem"] <= total
    assert booted - lived - 2 <= changing["serverUptime"] <= booted
    assert 0 < changing["serviceUptime"] <= lived
    assert 0 <= changing["avgLoad"] < 10_000
