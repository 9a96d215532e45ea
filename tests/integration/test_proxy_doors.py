"""Arrivals: whichever way a connection comes in, a mistake on its way is its own end and nobody else's."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest

from codius_proxy import doors
from codius_proxy.connection import VisitorConnection
from tests.harness.certificates import Authority
from tests.harness.front import ZONE, Raw, front
from tests.integration.test_proxy_identity import LINE, LOOPBACK, dropped


@pytest.mark.parametrize("behind", [False, True], ids=["directly", "behind a balancer"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_a_connection_that_fails_on_its_arrival_is_closed_and_the_next_one_is_served(
    tls: bool,
    behind: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mistakes = [RuntimeError("a mistake")]

    def make(*args: Any) -> VisitorConnection:
        if mistakes:
            raise mistakes.pop()
        return VisitorConnection(*args)

    authority = Authority()
    authority.issue(tmp_path / "host", ZONE)
    settings: dict[str, Any] = {"trusted_proxies": LOOPBACK, "proxy_protocol": True} if behind else {}
    if tls:
        settings |= {"scheme": "https", "certificates": tmp_path}
    monkeypatch.setattr(doors, "VisitorConnection", make)
    async with front(**settings) as proxy:

        async def arrive() -> Raw:
            client = await proxy.client()
            if behind:
                await client.send(LINE)
            if tls:
                await client.writer.start_tls(authority.trust(), server_hostname=ZONE)
            return client

        with contextlib.suppress(ConnectionResetError, ssl.SSLError):  # where the end comes in the middle
            await dropped(await arrive())
        assert (await (await arrive()).get(ZONE)).body == b"api"
    assert not mistakes
    [record] = [found for found in caplog.records if found.name == doors.__name__]
    assert record.getMessage() == "a connection was lost on its arrival"
