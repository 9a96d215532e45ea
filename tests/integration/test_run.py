"""`codiusd run` and `codiusd node`: what they do when they are told to read their settings again."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import socket
from pathlib import Path

import dns.message
import dns.query
import pytest

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


def addresses(port: int) -> list[str]:
    """What the responder says that the host's name is."""
    query = dns.message.make_query("host.example", "A")
    answer = dns.query.udp(query, "127.0.0.1", port=port, timeout=DEADLINE)
    return [str(value) for rrset in answer.answer for value in rrset]


async def test_a_hang_up_gives_the_responder_its_new_addresses(tmp_path: Path) -> None:
    settings = tmp_path / "codius.env"
    settings.touch(mode=0o600)
    settings.write_text("CODIUS_PUBLIC_ADDRESSES=192.0.2.17\n")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    with open_noop_host(
        *("--env-file", str(settings)), CODIUS_PUBLIC_URI="http://host.example", CODIUS_DNS_PORT=str(port)
    ) as host:
        await until(lambda: "host ready" in host.log.read_text())
        assert addresses(port) == ["192.0.2.17"]
        settings.write_text("CODIUS_PUBLIC_ADDRESSES=192.0.2.18\n")
        os.kill(host.pid, signal.SIGHUP)
        await until(lambda: addresses(port) == ["192.0.2.18"])
        settings.write_text("CODIUS_PUBLIC_ADDRESSES=nowhere\n")
        os.kill(host.pid, signal.SIGHUP)
        await until(lambda: "the settings stay as they are: CODIUS_PUBLIC_ADDRESSES" in host.log.read_text())
        assert addresses(port) == ["192.0.2.18"]


def ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], DEADLINE)[0])  # readable once the process has ended


async def test_a_node_that_is_hung_up_says_that_it_wants_a_restart_and_stays() -> None:
    with open_noop_host(command="node") as host:
        for times in (1, 2):
            os.kill(host.pid, signal.SIGHUP)
            await until(lambda times=times: host.log.read_text().count("restart it") == times)  # type: ignore[misc]
        client = Raw(*await asyncio.open_unix_connection(str(host.directory / "run" / "api.sock")))
        assert (await client.get("codius.localhost")).status == 200
        await client.aclose()


@pytest.mark.parametrize("command", ["node", "run"])
def test_the_end_of_its_terminal_is_the_end_of_what_was_started_there(command: str) -> None:
    ours, theirs = pty.openpty()
    with open_noop_host(command=command, stdin=theirs) as host:
        os.close(theirs)
        pidfd = os.pidfd_open(host.pid)
        os.kill(host.pid, signal.SIGHUP)
        assert ended(pidfd)
        assert "stopping; pods stay up" in host.log.read_text()
    os.close(pidfd)
    os.close(ours)
