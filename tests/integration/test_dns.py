"""The DNS story: a stranger asks over real sockets, and dnspython judges what comes back."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rdatatype
import pytest

from codius_dns.responder import Responder
from codius_dns.server import DnsConfig, DnsStartError, Endpoint, serve
from codius_dns.tcp import TcpLimits
from tests.unit.dns.zones import CHALLENGE, HASH, HASH_NAME, IPV4, IPV6, ORIGIN, ZONE

DEADLINE: Final = 5.0  # seconds until a test gives up; nothing here should take one
MORE_THAN_BUFFERS_HOLD: Final = 16 << 20  # bytes
CONFIG: Final = DnsConfig(zones=(ZONE,), addresses=("127.0.0.1",), port=0)


@asynccontextmanager
async def running(
    config: DnsConfig = CONFIG, responder: Responder | None = None
) -> AsyncIterator[tuple[Endpoint, ...]]:
    ready: asyncio.Future[tuple[Endpoint, ...]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    async with asyncio.timeout(4 * DEADLINE), asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(config, ready.set_result, stop, responder=responder))
        try:
            yield await ready
        finally:
            stop.set()


async def ask(query: dns.message.Message, endpoint: Endpoint, transport: str) -> dns.message.Message:
    """dnspython itself checks the id, the question and that nothing trails the message."""
    if transport == "udp":
        return await dns.asyncquery.udp(query, endpoint.address, port=endpoint.port, timeout=DEADLINE)
    return await dns.asyncquery.tcp(query, endpoint.address, port=endpoint.port, timeout=DEADLINE)


def section(rrsets: Sequence[dns.rrset.RRset]) -> set[str]:
    """`name type` of every record set, and `name type value` where one value says it all."""
    return {f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)}" for rrset in rrsets}


APEX, NS1, NS2 = f"{ORIGIN}.", f"ns1.{ORIGIN}.", f"ns2.dns.{ORIGIN}."
DENIED: Final = {f"{APEX} SOA"}
GLUE: Final = {f"{NS1} A", f"{NS1} AAAA", f"{NS2} A", f"{NS2} AAAA"}
NOTHING: Final[set[str]] = set()

# name, type, class, rcode, authoritative, answer, authority, additional
TABLE: Final = [
    (ORIGIN, "SOA", "IN", "NOERROR", True, {f"{APEX} SOA"}, NOTHING, NOTHING),
    (ORIGIN, "NS", "IN", "NOERROR", True, {f"{APEX} NS"}, NOTHING, GLUE),
    (ORIGIN, "A", "IN", "NOERROR", True, {f"{APEX} A"}, NOTHING, NOTHING),
    (ORIGIN, "AAAA", "IN", "NOERROR", True, {f"{APEX} AAAA"}, NOTHING, NOTHING),
    (ORIGIN, "TXT", "IN", "NOERROR", True, NOTHING, DENIED, NOTHING),
    (ORIGIN, "CAA", "IN", "NOERROR", True, NOTHING, DENIED, NOTHING),
    (ORIGIN, "DS", "IN", "NOERROR", True, NOTHING, DENIED, NOTHING),
    (ORIGIN, "ANY", "IN", "NOERROR", True, {f"{APEX} HINFO"}, NOTHING, NOTHING),
    (ORIGIN.upper(), "A", "IN", "NOERROR", True, {f"{APEX} A"}, NOTHING, NOTHING),
    (NS1, "A", "IN", "NOERROR", True, {f"{NS1} A"}, NOTHING, NOTHING),
    (NS1, "AAAA", "IN", "NOERROR", True, {f"{NS1} AAAA"}, NOTHING, NOTHING),
    (NS1, "NS", "IN", "NOERROR", True, NOTHING, DENIED, NOTHING),
    (NS2, "A", "IN", "NOERROR", True, {f"{NS2} A"}, NOTHING, NOTHING),
    (f"dns.{ORIGIN}", "A", "IN", "NOERROR", True, NOTHING, DENIED, NOTHING),  # an empty non-terminal
    (f"dns.{ORIGIN}", "ANY", "IN", "NOERROR", True, NOTHING, DENIED, NOTHING),
    (f"x.dns.{ORIGIN}", "A", "IN", "NXDOMAIN", True, NOTHING, DENIED, NOTHING),
    (HASH_NAME, "A", "IN", "NOERROR", True, {f"{HASH_NAME}. A"}, NOTHING, NOTHING),
    (HASH_NAME, "AAAA", "IN", "NOERROR", True, {f"{HASH_NAME}. AAAA"}, NOTHING, NOTHING),
    (HASH_NAME.upper(), "A", "IN", "NOERROR", True, {f"{HASH_NAME}. A"}, NOTHING, NOTHING),
    (HASH_NAME, "ANY", "IN", "NOERROR", True, {f"{HASH_NAME}. HINFO"}, NOTHING, NOTHING),
    *(
        (HASH_NAME, qtype, "IN", "NOERROR", True, NOTHING, DENIED, NOTHING)
        for qtype in ("CAA", "TXT", "HTTPS", "MX", "SOA", "NS", "CNAME", "DNSKEY", "TYPE65280", "TYPE0")
    ),
    (f"www.{HASH_NAME}", "A", "IN", "NXDOMAIN", True, NOTHING, DENIED, NOTHING),
    (f"{HASH[:-1]}.{ORIGIN}", "A", "IN", "NXDOMAIN", True, NOTHING, DENIED, NOTHING),
    (f"{HASH}a.{ORIGIN}", "A", "IN", "NXDOMAIN", True, NOTHING, DENIED, NOTHING),
    (f"{HASH[:-1]}1.{ORIGIN}", "A", "IN", "NXDOMAIN", True, NOTHING, DENIED, NOTHING),
    (f"*.{ORIGIN}", "A", "IN", "NXDOMAIN", True, NOTHING, DENIED, NOTHING),
    (f"nobody.{ORIGIN}", "SOA", "IN", "NXDOMAIN", True, NOTHING, DENIED, NOTHING),
    (f"nobody.{ORIGIN}", "ANY", "IN", "NXDOMAIN", True, NOTHING, DENIED, NOTHING),
    (f"a.b.c.d.nobody.{ORIGIN}", "A", "IN", "NXDOMAIN", True, NOTHING, DENIED, NOTHING),
    (rf"\255\000\.{'x' * 60}.{ORIGIN}", "A", "IN", "NXDOMAIN", True, NOTHING, DENIED, NOTHING),
    (CHALLENGE, "TXT", "IN", "NOERROR", True, {f"{CHALLENGE}. TXT"}, NOTHING, NOTHING),
    (CHALLENGE, "A", "IN", "NOERROR", True, NOTHING, DENIED, NOTHING),
    *(
        (name, qtype, qclass, "REFUSED", False, NOTHING, NOTHING, NOTHING)
        for name, qtype, qclass in (
            ("example", "A", "IN"),
            ("codius.example", "A", "IN"),
            (f"x{ORIGIN}", "A", "IN"),
            (f"{ORIGIN}.example", "A", "IN"),
            (f"{HASH}.example", "A", "IN"),
            (".", "NS", "IN"),
            (".", "ANY", "IN"),
            (ORIGIN, "A", "CH"),
            (ORIGIN, "A", "ANY"),
            ("version.bind", "TXT", "CH"),
            (ORIGIN, "AXFR", "IN"),
            (f"nobody.{ORIGIN}", "AXFR", "IN"),
            (ORIGIN, "IXFR", "IN"),
            ("example", "AXFR", "IN"),
        )
    ),
]


async def test_the_table_of_questions_and_answers() -> None:
    async with running(responder=Responder((ZONE,), {CHALLENGE: (b"one", b"two")})) as (endpoint,):
        for name, qtype, qclass, rcode, authoritative, answer, authority, additional in TABLE:
            for transport in ("udp", "tcp"):
                for edns in (-1, 0):
                    case = f"{name} {qtype} {qclass} {transport} edns {edns}"
                    query = dns.message.make_query(name, qtype, qclass, use_edns=edns, payload=4096)
                    # A transfer's question as a plain one: dnspython would wait for a stream of answers.
                    message = await ask(query, endpoint, transport)
                    assert dns.rcode.to_text(message.rcode()) == rcode, case
                    assert message.flags & dns.flags.QR, case
                    assert message.flags & dns.flags.RD, case
                    assert not message.flags & (dns.flags.RA | dns.flags.TC | dns.flags.AD), case
                    assert bool(message.flags & dns.flags.AA) is authoritative, case
                    assert message.question[0].name.labels == query.question[0].name.labels, case
                    assert {text.lower() for text in section(message.answer)} == {
                        t.lower() for t in answer
                    }, case
                    assert section(message.authority) == authority, case
                    assert section(message.additional) == additional, case
                    assert message.edns == edns, case
                    if edns == 0:
                        assert message.payload == 1232, case


async def test_the_values_are_the_configured_ones() -> None:
    async with running() as (endpoint,):

        async def values(name: str, qtype: str) -> list[str]:
            message = await ask(dns.message.make_query(name, qtype), endpoint, "udp")
            return [str(value) for rrset in message.answer for value in rrset]

        assert await values(HASH_NAME, "A") == [str(IPV4)]
        assert await values(HASH_NAME, "AAAA") == [str(IPV6)]
        assert await values(ORIGIN, "NS") == [NS1, NS2]
        assert await values(ORIGIN, "SOA") == [f"{NS1} hostmaster.{APEX} 1 3600 600 1209600 60"]
        assert await values(HASH_NAME, "ANY") == ['"RFC8482" ""']


FLAGGED: Final = [
    # what is done to the question, the answer's rcode, its EDNS version
    ({"edns": 1}, "BADVERS", 0),
    ({"edns": 255}, "BADVERS", 0),
    ({"ednsflags": dns.flags.DO}, "NOERROR", 0),
    ({"options": [dns.edns.GenericOption("65001", b"unknown")]}, "NOERROR", 0),
    ({"options": [dns.edns.ECSOption("192.0.2.0", 24)]}, "NOERROR", 0),
]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize(("edns", "rcode", "version"), FLAGGED)
async def test_edns_is_answered_with_edns(
    edns: dict[str, object], rcode: str, version: int, transport: str
) -> None:
    query = dns.message.make_query(HASH_NAME, "A")
    query.use_edns(**{"edns": 0, **edns})  # type: ignore[arg-type]
    async with running() as (endpoint,):
        message = await ask(query, endpoint, transport)
    assert dns.rcode.to_text(message.rcode()) == rcode
    assert message.edns == version
    assert message.options == ()
    assert message.ednsflags & dns.flags.DO == query.ednsflags & dns.flags.DO
    assert bool(message.answer) is (rcode == "NOERROR")


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_an_update_and_a_notify_are_not_implemented(transport: str) -> None:
    async with running() as (endpoint,):
        for opcode in (dns.opcode.NOTIFY, dns.opcode.UPDATE, dns.opcode.STATUS):
            query = dns.message.make_query(ORIGIN, "SOA")
            query.set_opcode(opcode)
            packet = await exchange(query.to_wire(), endpoint, transport)
            assert packet[:2] == query.id.to_bytes(2)
            assert packet[3] & 0xF == dns.rcode.NOTIMP


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize(
    "packet",
    [
        b"\x12\x34" + bytes(10),  # QDCOUNT 0
        b"\x12\x34\0\0\0\2" + bytes(6) + b"\7example\0\0\1\0\1" * 2,
        b"\x12\x34\0\0\0\1" + bytes(6),
        b"\x12\x34\0\0\0\1" + bytes(6) + b"\xc0\x0c\0\1\0\1",
        b"\x12\x34\0\0\0\1" + bytes(6) + b"\7exam",
        b"\x12\x34\0\0\0\1" + bytes(6) + b"\7example\0\0\1\0\1trailing",
    ],
)
async def test_a_malformed_question_gets_formerr(packet: bytes, transport: str) -> None:
    async with running() as (endpoint,):
        answer = await exchange(packet, endpoint, transport)
        assert answer[:2] == packet[:2]
        assert answer[2] & 0x80
        assert answer[3] & 0xF == dns.rcode.FORMERR
        assert len(answer) <= len(packet)


async def exchange(packet: bytes, endpoint: Endpoint, transport: str) -> bytes:
    if transport == "tcp":
        reader, writer = await connect(endpoint)
        writer.write(len(packet).to_bytes(2) + packet)
        answer = await receive(reader)
        await hang_up(writer)
        return answer
    with udp_socket(endpoint) as sock:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, packet)
        async with asyncio.timeout(DEADLINE):
            return await loop.sock_recv(sock, 65535)


def udp_socket(endpoint: Endpoint) -> socket.socket:
    """Connected: the kernel drops what comes from another address than the one we asked."""
    sock = socket.socket(socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.connect((endpoint.address, endpoint.port))
    return sock


async def connect(endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(endpoint.address, endpoint.port)


async def receive(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(DEADLINE):
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))


async def is_hung_up(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(DEADLINE):
        try:
            return await reader.read(1) == b""
        except ConnectionResetError:
            return True


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionResetError):
        await writer.wait_closed()


async def test_silence_for_answers_and_scraps_over_udp() -> None:
    """The next question is answered first, so nothing was said before it."""
    query = dns.message.make_query(HASH_NAME, "A")
    reply = dns.message.make_response(query)
    async with running() as (endpoint,):
        with udp_socket(endpoint) as sock:
            loop = asyncio.get_running_loop()
            for packet in (reply.to_wire(), b"", b"\x12", b"\x12\x34\0\0\0\1\0\0\0\0\0", query.to_wire()):
                await loop.sock_sendall(sock, packet)
            async with asyncio.timeout(DEADLINE):
                answer = dns.message.from_wire(await loop.sock_recv(sock, 65535))
    assert query.is_response(answer)
    assert answer.answer


async def test_a_truncated_answer_is_whole_over_tcp() -> None:
    values = [bytes((65 + i,)) * 200 for i in range(8)]
    query = dns.message.make_query(CHALLENGE, "TXT", use_edns=0, payload=4096)
    async with running(responder=Responder((ZONE,), {CHALLENGE: values})) as (endpoint,):
        message, over_tcp = await dns.asyncquery.udp_with_fallback(
            query, endpoint.address, port=endpoint.port, timeout=DEADLINE
        )
    assert over_tcp
    assert len(message.answer[0]) == len(values)


async def test_one_connection_carries_many_questions_even_in_crumbs() -> None:
    async with running() as (endpoint,):
        reader, writer = await connect(endpoint)
        queries = [dns.message.make_query(f"{c * 52}.{ORIGIN}", "A", id=i) for i, c in enumerate("abcdefgh")]
        for query in queries:
            wire = query.to_wire()
            message = len(wire).to_bytes(2) + wire
            for at in range(0, len(message), 7):
                writer.write(message[at : at + 7])
                await writer.drain()
            answer = dns.message.from_wire(await receive(reader))
            assert query.is_response(answer)
        await hang_up(writer)


async def test_pipelined_questions_are_all_answered_and_a_half_closed_asker_still_gets_them() -> None:
    async with running() as (endpoint,):
        reader, writer = await connect(endpoint)
        queries = [dns.message.make_query(f"{'a' * 52}.{ORIGIN}", "AAAA", id=i) for i in range(300)]
        writer.write(b"".join(len(q.to_wire()).to_bytes(2) + q.to_wire() for q in queries))
        writer.write_eof()
        answered = {dns.message.from_wire(await receive(reader)).id for _ in queries}
        assert answered == set(range(300))
        assert await is_hung_up(reader)
        await hang_up(writer)


async def test_an_asker_that_does_not_read_is_not_read_from_either() -> None:
    """It can send no more once all buffers are full; when it reads at last, no answer is missing."""
    query = dns.message.make_query(ORIGIN, "NS", id=9).to_wire()
    burst = (len(query).to_bytes(2) + query) * 500
    async with running() as (endpoint,):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((endpoint.address, endpoint.port))
            sock.setblocking(False)
            sent = 0
            turns_without_progress = 0
            while turns_without_progress < 100:  # the responder has the same loop: each turn it may read
                try:
                    sent += sock.send(burst[sent % len(burst) :])
                    turns_without_progress = 0
                except BlockingIOError:
                    turns_without_progress += 1
                await asyncio.sleep(0)
                assert sent < MORE_THAN_BUFFERS_HOLD
            reader, writer = await asyncio.open_connection(sock=sock)
            for _ in range(sent // (2 + len(query))):
                answer = await receive(reader)
                assert answer[:2] == query[:2]
            await hang_up(writer)


@pytest.mark.parametrize(
    "message",
    [
        b"\0\0",
        b"\0\x0bhello world",
        b"\xff\xff" + bytes(100),
        (4097).to_bytes(2) + bytes(4097),
        b"\0\x0c\0\0\x80" + bytes(9),
    ],
    ids=["empty", "less than a header", "huge", "too large", "an answer"],
)
async def test_a_connection_that_makes_no_sense_is_closed(message: bytes) -> None:
    async with running() as (endpoint,):
        reader, writer = await connect(endpoint)
        writer.write(message)
        assert await is_hung_up(reader)
        await hang_up(writer)


async def test_what_was_understood_before_is_answered_before_the_connection_closes() -> None:
    query = dns.message.make_query(HASH_NAME, "A")
    async with running() as (endpoint,):
        reader, writer = await connect(endpoint)
        writer.write(len(query.to_wire()).to_bytes(2) + query.to_wire() + b"\0\0")
        assert query.is_response(dns.message.from_wire(await receive(reader)))
        assert await is_hung_up(reader)
        await hang_up(writer)


@pytest.mark.parametrize("crumb", [b"", b"\0", b"\0\x20half"])
async def test_a_silent_connection_is_closed(crumb: bytes) -> None:
    async with running(replace(CONFIG, tcp=TcpLimits(idle_timeout=0.05))) as (endpoint,):
        reader, writer = await connect(endpoint)
        writer.write(crumb)
        assert await is_hung_up(reader)
        await hang_up(writer)


async def test_a_connection_stays_while_it_asks_and_is_closed_once_it_is_silent() -> None:
    query = dns.message.make_query(HASH_NAME, "A").to_wire()
    limits = TcpLimits(idle_timeout=0.5)
    loop = asyncio.get_running_loop()
    async with running(replace(CONFIG, tcp=limits)) as (endpoint,):
        reader, writer = await connect(endpoint)
        beyond_the_timeout = loop.time() + 1.2 * limits.idle_timeout
        while loop.time() < beyond_the_timeout:
            writer.write(len(query).to_bytes(2) + query)
            await receive(reader)
        assert await is_hung_up(reader)
        await hang_up(writer)


async def test_too_many_connections_cost_the_longest_silent_one_its_place() -> None:
    query = dns.message.make_query(HASH_NAME, "A")
    message = len(query.to_wire()).to_bytes(2) + query.to_wire()
    async with running(replace(CONFIG, tcp=TcpLimits(connections=3))) as (endpoint,):
        connections = []
        for _ in range(3):
            reader, writer = await connect(endpoint)
            writer.write(message)
            await receive(reader)
            connections.append((reader, writer))
        first, second, third = connections
        first[1].write(message)  # the first speaks again, so the second is the longest silent
        await receive(first[0])
        connections.append(await connect(endpoint))
        assert await is_hung_up(second[0])
        for reader, writer in (first, third, connections[3]):
            writer.write(message)
            assert query.is_response(dns.message.from_wire(await receive(reader)))
        for _, writer in connections:
            await hang_up(writer)


async def test_one_network_cannot_take_the_places_of_all() -> None:
    query = dns.message.make_query(HASH_NAME, "A")
    message = len(query.to_wire()).to_bytes(2) + query.to_wire()
    async with running(replace(CONFIG, tcp=TcpLimits(connections=9, per_network=2))) as (endpoint,):

        async def open_from(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(
                endpoint.address, endpoint.port, local_addr=(address, 0)
            )
            writer.write(message)
            await receive(reader)
            return reader, writer

        elsewhere = await open_from("127.9.9.9")
        greedy = [await open_from(f"127.0.0.{number}") for number in (1, 2, 3)]
        assert await is_hung_up(greedy[0][0])
        for reader, writer in (elsewhere, *greedy[1:]):
            writer.write(message)
            assert query.is_response(dns.message.from_wire(await receive(reader)))
        for _, writer in (elsewhere, *greedy):
            await hang_up(writer)


async def test_stopping_hangs_up_and_frees_the_port() -> None:
    async with running() as (endpoint,):
        reader, writer = await connect(endpoint)
        query = dns.message.make_query(HASH_NAME, "A").to_wire()
        writer.write(len(query).to_bytes(2) + query)
        await receive(reader)
    assert await is_hung_up(reader)
    await hang_up(writer)
    async with running(replace(CONFIG, port=endpoint.port)) as (again,):
        assert again == endpoint


async def test_a_wildcard_listener_answers_from_the_address_that_was_asked() -> None:
    """The route back would choose 127.0.0.1, and the asker's kernel would drop that."""
    async with running(replace(CONFIG, addresses=("0.0.0.0",))) as (endpoint,):
        for address in ("127.0.0.1", "127.0.0.53", "127.1.2.3"):
            asked = Endpoint(address, endpoint.port)
            query = dns.message.make_query(HASH_NAME, "A")
            for transport in ("udp", "tcp"):
                answer = dns.message.from_wire(await exchange(query.to_wire(), asked, transport))
                assert query.is_response(answer)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
@pytest.mark.parametrize("addresses", [("::1", "127.0.0.1"), ("::", "0.0.0.0")])
async def test_ipv6_and_ipv4_listen_side_by_side_on_one_port(addresses: tuple[str, ...]) -> None:
    async with running(replace(CONFIG, addresses=addresses)) as endpoints:
        assert len({endpoint.port for endpoint in endpoints}) == 1
        for address in ("::1", "127.0.0.1"):
            asked = Endpoint(address, endpoints[0].port)
            for transport in ("udp", "tcp"):
                query = dns.message.make_query(HASH_NAME, "AAAA")
                assert query.is_response(
                    dns.message.from_wire(await exchange(query.to_wire(), asked, transport))
                )


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_port_in_use_stops_the_start_with_a_sentence(kind: socket.SocketKind, workers: int) -> None:
    from codius_dns.sockets import open_listeners

    with socket.socket(socket.AF_INET, kind) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DnsStartError, match=f"127.0.0.1 port {port}") as caught:
            open_listeners(("127.0.0.1",), port, workers=workers)
    assert caught.value.hint is not None
    assert str(port) in caught.value.hint


@pytest.mark.parametrize(
    ("addresses", "sentence"),
    [
        (("198.51.100.77",), "does not have that address"),
        (("localhost",), "not an IP address"),
        ((), "no address"),
    ],
)
async def test_an_address_that_cannot_be_listened_on_stops_the_start(
    addresses: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(DnsStartError, match=sentence):
        await serve(replace(CONFIG, addresses=addresses), print, asyncio.Event())


@pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed (apt install dnsutils)")
@pytest.mark.parametrize("over", ["+notcp", "+tcp"])
async def test_dig_finds_a_pod(over: str) -> None:
    async with running() as (endpoint,):
        process = await asyncio.create_subprocess_exec(
            "dig", f"@{endpoint.address}", "-p", str(endpoint.port), over, "+norecurse",
            "+time=5", "+tries=1", HASH_NAME, "A",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0
    assert [f"{HASH_NAME}.", "300", "IN", "A", str(IPV4)] in [line.split() for line in text.splitlines()]
    assert "status: NOERROR" in text
    assert "flags: qr aa;" in text
    assert "WARNING" not in text
    assert "malformed" not in text
