"""dnsviz looks at the zone as it looks at any zone of the Internet, and has nothing to object to."""

import asyncio
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import pytest

from codius_dns.master import parse_zone
from codius_dns.responder import Responder
from codius_dns.server import DnsConfig, Endpoint, serve
from tests.unit.dns.zones import CHALLENGE, HASH_NAME, ORIGIN, ZONE

DNSVIZ: Final = shutil.which("dnsviz", path=str(Path(sys.executable).parent)) or shutil.which("dnsviz")
DEADLINE: Final = 60.0  # seconds; it asks some hundred questions, one after the other
# It asks name servers where the zone says they are, at port 53: an address of loopback that is nobody's.
ADDRESS: Final = "127.83.53.1"
HOST: Final = replace(
    ZONE,
    ipv4=(IPv4Address(ADDRESS),),
    ipv6=(),
    nameservers=(f"ns1.{ORIGIN}",),
    https=True,
    issuers=("ca.example",),
    records=parse_zone('@ TXT "v=spf1 mx -all"\nmail A 127.83.53.25\nwww CNAME mail\n', ORIGIN),
)


async def dnsviz(*arguments: str) -> str:
    assert DNSVIZ is not None
    process = await asyncio.create_subprocess_exec(
        DNSVIZ, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE):
        output, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    return output.decode()


def find(document: object, key: str) -> Iterator[object]:
    """Every value under this key, at any depth."""
    if isinstance(document, dict):
        for name, value in document.items():
            if name == key:
                yield value
            yield from find(value, key)
    elif isinstance(document, list):
        for value in document:
            yield from find(value, key)


def may_listen() -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((ADDRESS, 53))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not may_listen(), reason=f"port 53 of {ADDRESS} is not ours to open: run as root")
@pytest.mark.skipif(DNSVIZ is None, reason="dnsviz is not installed (pip install dnsviz)")
async def test_dnsviz_finds_no_error_and_no_warning(tmp_path: Path) -> None:
    ready: asyncio.Future[tuple[Endpoint, ...]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    responder = Responder((HOST,), {CHALLENGE: (b"one", b"two")})
    probe = tmp_path / "probe.json"
    async with asyncio.TaskGroup() as tasks:
        config = DnsConfig(zones=(HOST,), addresses=(ADDRESS,), port=53)
        tasks.create_task(serve(config, ready.set_result, stop, responder=responder))
        try:
            (endpoint,) = await ready
            server = f"{ORIGIN}+:ns1.{ORIGIN}={endpoint.address}"
            names = (ORIGIN, HASH_NAME, f"www.{ORIGIN}", CHALLENGE)
            await dnsviz(
                "probe", "-4", "-A", "-a", ORIGIN, "-x", server, "-o", str(probe),
                "-R", "SOA,NS,A,AAAA,TXT,CAA,HTTPS,CNAME", *names,
            )  # fmt: skip
        finally:
            stop.set()
    everything = json.loads(await dnsviz("grok", "-l", "info", "-r", str(probe)))
    assert {f"{name}." for name in names} <= set(everything)
    assert list(find(everything, "answer")), "it got answers"
    assert list(find(everything, "errors")) == []
    assert list(find(everything, "warnings")) == []
