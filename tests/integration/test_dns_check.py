"""The delegation's story: a resolver, a zone above, and an operator who forgets one thing after another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from codius_dns.server import DnsConfig, serve
from codius_dns.zone import Zone
from codius_node import delegation
from codius_node.cli import main
from codius_node.delegation import CheckError, check, find_resolver, find_zone
from tests.unit.dns.zones import ORIGIN

DEADLINE: Final = 20.0  # seconds until a test gives up
RESOLVER, PARENT, OURS = "127.0.53.1", "127.0.53.2", "127.0.53.3"  # loopback; all at one port
ZONE: Final = Zone(ORIGIN, ipv4=(IPv4Address(OURS),))
SAMPLE: Final = f"{delegation.SAMPLE}.{ORIGIN}."

Answers = Mapping[tuple[str, str], str]
"""What a double says, as lines of records: by name and type; nothing else exists for it."""

RESOLVERS: Final[Answers] = {
    ("example.", "SOA"): "example. 60 IN SOA ns.example. root.example. 1 2 3 4 5",
    ("example.", "NS"): "example. 60 IN NS ns.example.",
    ("ns.example.", "A"): f"ns.example. 60 IN A {PARENT}",
    (SAMPLE, "A"): f"{SAMPLE} 60 IN A {OURS}",
}
DELEGATION: Final = f"{ORIGIN}. 60 IN NS ns1.{ORIGIN}.\nns1.{ORIGIN}. 60 IN A {OURS}"


class Double(asyncio.DatagramProtocol):
    """A server that says what it was given."""

    def __init__(self, answers: Answers, *, referral: bool) -> None:
        self._answers = answers
        self._referral = referral

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        assert bool(query.flags & dns.flags.RD) is not self._referral, "only a resolver is asked to resolve"
        answer = dns.message.make_response(query)
        key = (str(query.question[0].name), dns.rdatatype.to_text(query.question[0].rdtype))
        found = self._answers.get(key)
        if found is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        for line in (found or "").splitlines():
            name, ttl, rdclass, kind, data_text = line.split(" ", 4)
            rrset = dns.rrset.from_text(name, int(ttl), rdclass, kind, data_text)
            section = answer.answer
            if self._referral:
                section = answer.authority if kind == "NS" else answer.additional
            section.append(rrset)
        self._transport.sendto(answer.to_wire(), addr)


@asynccontextmanager
async def internet(
    *, delegation: str | None = DELEGATION, resolver: Answers = RESOLVERS, served: Zone | None = ZONE
) -> AsyncIterator[int]:
    """A resolver, a zone above and our responder on addresses of loopback; their port."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack, asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        stop = asyncio.Event()
        port = free_port()
        if served is not None:
            ready: asyncio.Future[object] = loop.create_future()
            config = DnsConfig(zones=(served,), addresses=(OURS,), port=port)
            tasks.create_task(serve(config, ready.set_result, stop))
            await ready
        above = {} if delegation is None else {(f"{ORIGIN}.", "NS"): delegation}
        for address, double in (
            (RESOLVER, Double(resolver, referral=False)),
            (PARENT, Double(above, referral=True)),
        ):
            transport, _ = await loop.create_datagram_endpoint(lambda d=double: d, local_addr=(address, port))  # type: ignore[misc]
            stack.callback(transport.close)
        try:
            yield port
        finally:
            stop.set()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((OURS, 0))
        return int(sock.getsockname()[1])


async def look(port: int, zone: Zone = ZONE) -> tuple[bool, str]:
    lines: list[str] = []
    well = await asyncio.to_thread(check, zone, RESOLVER, lines.append, port)
    return well, "\n".join(lines)


async def test_a_zone_that_is_delegated_right_is_well() -> None:
    async with internet() as port:
        well, text = await look(port)
    assert well, text
    assert "not ok" not in text
    assert f"{ORIGIN}. NS ns1.{ORIGIN}.\n" in text
    assert f"ns1.{ORIGIN}. A {OURS} " in text
    for each in ("over UDP answers", "over TCP answers", "pods' names resolve"):
        assert each in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"delegation": None}, f"{PARENT} delegates nothing for {ORIGIN}. (NXDOMAIN)"),
        (
            {"delegation": f"{ORIGIN}. 60 IN NS ns1.{ORIGIN}."},
            f"it has no address for ns1.{ORIGIN}. instead of {OURS}",
        ),
        (
            {"delegation": DELEGATION.replace(f"A {OURS}", f"A {PARENT}")},
            f"it has {PARENT} for ns1.{ORIGIN}. instead of {OURS}",
        ),
        ({"delegation": f"{ORIGIN}. 60 IN NS ns.old.example."}, f"it lacks the name server ns1.{ORIGIN}."),
        ({"delegation": f"{ORIGIN}. 60 IN NS ns.old.example."}, "it has the name server ns.old.example. too"),
        ({"served": None}, "does not answer over UDP"),
        (
            {"served": Zone("else.example", ipv4=(IPv4Address(OURS),))},
            f"does not answer for {ORIGIN}. (REFUSED)",
        ),
        (
            {"resolver": {k: v for k, v in RESOLVERS.items() if k[0] != SAMPLE}},
            "pods' names resolve to nothing",
        ),
        ({"resolver": {}}, f"the resolver {RESOLVER} knows no zone above"),
    ],
)
async def test_what_is_wrong_is_said_with_what_to_do(changes: dict[str, object], sentence: str) -> None:
    async with internet(**changes) as port:  # type: ignore[arg-type]
        well, text = await look(port)
    assert not well
    assert sentence in text, text
    for line, after in zip(text.splitlines(), [*text.splitlines()[1:], ""], strict=True):
        if line.startswith("not ok"):
            assert after.startswith("  "), f"no hint after: {line}"


async def test_name_servers_elsewhere_need_no_glue() -> None:
    zone = replace(ZONE, nameservers=("ns.elsewhere.test",))
    resolver = {**RESOLVERS, ("ns.elsewhere.test.", "A"): f"ns.elsewhere.test. 60 IN A {OURS}"}
    async with internet(
        delegation=f"{ORIGIN}. 60 IN NS ns.elsewhere.test.", resolver=resolver, served=zone
    ) as port:
        well, text = await look(port, zone)
    assert well, text
    assert "glue" not in text


def test_the_resolver_is_the_machines_first(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("# nameserver 1.1.1.1\nsearch x\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n")
    assert find_resolver(path) == "192.0.2.53"
    path.write_text("search x\n")
    for trouble in (path, tmp_path / "none"):
        with pytest.raises(CheckError):
            find_resolver(trouble)


def test_a_zone_is_found_by_name_and_the_hosts_own_without_one() -> None:
    other = Zone("other.test", nameservers=(f"ns1.{ORIGIN}",), hashes=False)
    assert find_zone((ZONE, other), None) is ZONE
    assert find_zone((ZONE, other), "Other.Test.") is other
    with pytest.raises(CheckError, match=r"none\.test is none of the zones"):
        find_zone((ZONE, other), "none.test")


def test_the_command_says_what_to_enter_even_when_nobody_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODIUS_PUBLIC_URI", f"https://{ORIGIN}")
    monkeypatch.setenv("CODIUS_PUBLIC_ADDRESSES", "192.0.2.17,2001:db8::17")
    assert main(["dns", "check", "--resolver", RESOLVER]) == 1  # nobody has port 53 there
    said = capsys.readouterr().out
    for line in (
        f"{ORIGIN}. NS ns1.{ORIGIN}.",
        f"ns1.{ORIGIN}. A 192.0.2.17",
        f"ns1.{ORIGIN}. AAAA 2001:db8::17",
    ):
        assert line in said
    assert f"{RESOLVER} does not answer" in said
    assert main(["dns", "check", "none.test", "--resolver", RESOLVER]) == 1
