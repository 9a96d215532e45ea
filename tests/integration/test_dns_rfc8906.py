"""RFC 8906, section 8: the questions a server is asked to see whether it fails to communicate.

Each test is a subsection; what it expects is what that subsection says a working server answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from codius_dns.server import DnsConfig, Endpoint, serve
from tests.unit.dns.zones import ORIGIN, ZONE

DEADLINE: Final = 5.0  # seconds until a test gives up
RESERVED: Final = 0x40  # the last reserved bit of the header
UNKNOWN_FLAG: Final = 0x40  # in OPT
UNKNOWN_OPTION: Final = dns.edns.GenericOption("100", b"")


@pytest.fixture
async def server() -> AsyncIterator[Endpoint]:
    ready: asyncio.Future[tuple[Endpoint, ...]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    async with asyncio.timeout(4 * DEADLINE), asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(DnsConfig(zones=(ZONE,), port=0), ready.set_result, stop))
        try:
            yield (await ready)[0]
        finally:
            stop.set()


async def ask(
    server: Endpoint,
    qtype: str = "SOA",
    *,
    flags: int = 0,
    edns: int | None = None,
    ednsflags: int = 0,
    options: tuple[dns.edns.Option, ...] = (),
    payload: int = 4096,
    tcp: bool = False,
) -> dns.message.Message:
    query = dns.message.make_query(ORIGIN, qtype)
    query.flags = dns.flags.Flag(flags)
    if edns is not None:
        query.use_edns(edns, ednsflags, payload, options=list(options))
    exchange = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    answer = await exchange(query, server.address, port=server.port, timeout=DEADLINE)
    assert answer.flags & dns.flags.QR
    assert not answer.flags & RESERVED
    return answer


def is_soa(answer: dns.message.Message) -> bool:
    (found,) = answer.answer
    return (
        answer.rcode() == dns.rcode.NOERROR
        and bool(answer.flags & dns.flags.AA)
        and found.rdtype == dns.rdatatype.SOA
    )


def is_badvers(answer: dns.message.Message) -> bool:
    return answer.rcode() == dns.rcode.BADVERS and answer.edns == 0 and not answer.answer


async def test_8_1_1_is_the_server_configured_for_the_zone(server: Endpoint) -> None:
    answer = await ask(server)
    assert is_soa(answer)
    assert not answer.flags & (dns.flags.RD | dns.flags.AD)
    assert answer.edns == -1


async def test_8_1_2_unknown_types(server: Endpoint) -> None:
    answer = await ask(server, "TYPE1000")
    assert (answer.rcode(), answer.answer, answer.edns) == (dns.rcode.NOERROR, [], -1)
    assert answer.flags & dns.flags.AA
    assert answer.authority[0].rdtype == dns.rdatatype.SOA


@pytest.mark.parametrize("bit", [dns.flags.CD, dns.flags.AD, RESERVED])
async def test_8_1_3_1_to_3_header_bits_do_not_matter_and_are_not_echoed(server: Endpoint, bit: int) -> None:
    answer = await ask(server, flags=bit)
    assert is_soa(answer)
    assert not answer.flags & bit
    assert not answer.flags & dns.flags.RD


async def test_8_1_3_4_recursion_desired_is_echoed_and_not_available(server: Endpoint) -> None:
    answer = await ask(server, flags=dns.flags.RD)
    assert is_soa(answer)
    assert answer.flags & dns.flags.RD
    assert not answer.flags & dns.flags.RA


async def test_8_1_4_unknown_opcodes(server: Endpoint) -> None:
    """+opcode=15 +header-only: just the header goes, and just the header is asked back."""
    loop = asyncio.get_running_loop()
    received: asyncio.Future[bytes] = loop.create_future()

    class Asker(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            received.set_result(data)

    transport, _ = await loop.create_datagram_endpoint(Asker, remote_addr=(server.address, server.port))
    transport.sendto(b"\x12\x34\x78\x00" + bytes(8))
    answer = await asyncio.wait_for(received, DEADLINE)
    transport.close()
    assert answer == b"\x12\x34\xf8\x04" + bytes(8)  # QR, the opcode, NOTIMP


async def test_8_1_5_tcp(server: Endpoint) -> None:
    answer = await ask(server, tcp=True)
    assert is_soa(answer)
    assert answer.edns == -1


@pytest.mark.parametrize("tcp", [False, True])
async def test_8_2_1_edns_version_0(server: Endpoint, tcp: bool) -> None:
    answer = await ask(server, edns=0, tcp=tcp)
    assert is_soa(answer)
    assert (answer.edns, answer.ednsflags & 0xFFFF, answer.options) == (0, 0, ())


async def test_8_2_2_edns_version_1(server: Endpoint) -> None:
    assert is_badvers(await ask(server, edns=1))


async def test_8_2_3_unknown_edns_options(server: Endpoint) -> None:
    answer = await ask(server, edns=0, options=(UNKNOWN_OPTION,))
    assert is_soa(answer)
    assert (answer.edns, answer.options) == (0, ())


async def test_8_2_4_unknown_edns_flags(server: Endpoint) -> None:
    answer = await ask(server, edns=0, ednsflags=UNKNOWN_FLAG)
    assert is_soa(answer)
    assert (answer.edns, answer.ednsflags & 0xFFFF) == (0, 0)


async def test_8_2_5_edns_version_1_with_unknown_edns_flags(server: Endpoint) -> None:
    answer = await ask(server, edns=1, ednsflags=UNKNOWN_FLAG)
    assert is_badvers(answer)
    assert answer.ednsflags & 0xFFFF == 0


async def test_8_2_6_edns_version_1_with_unknown_edns_options(server: Endpoint) -> None:
    answer = await ask(server, edns=1, options=(UNKNOWN_OPTION,))
    assert is_badvers(answer)
    assert answer.options == ()


async def test_8_2_7_a_small_buffer_gets_an_answer_that_fits_with_its_opt(server: Endpoint) -> None:
    answer = await ask(server, "DNSKEY", edns=0, ednsflags=dns.flags.DO, payload=512)
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.edns == 0
    assert len(answer.to_wire()) <= 512


@pytest.mark.parametrize("version", [0, 1])
async def test_8_2_8_and_9_the_do_bit(server: Endpoint, version: int) -> None:
    answer = await ask(server, edns=version, ednsflags=dns.flags.DO)
    assert is_badvers(answer) if version else is_soa(answer)
    assert answer.edns == 0
    if version == 0:
        assert answer.ednsflags & dns.flags.DO


async def test_8_2_10_several_defined_options(server: Endpoint) -> None:
    options = (
        dns.edns.GenericOption(dns.edns.OptionType.NSID, b""),
        dns.edns.CookieOption(b"\1\2\3\4\5\6\7\1", b""),
        dns.edns.ECSOption("0.0.0.0", 0),
        dns.edns.GenericOption("9", b""),  # EXPIRE, RFC 7314
    )
    answer = await ask(server, edns=0, options=options)
    assert is_soa(answer)
    assert [option.otype for option in answer.options] == [dns.edns.OptionType.COOKIE]
