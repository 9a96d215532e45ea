"""UDP: batches, and one asker's trouble is no one else's."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import dns.edns
import dns.flags
import dns.message
import pytest

from codius_dns.limits import RateLimit
from codius_dns.metrics import Drop, slot_of_drop
from codius_dns.mmsg import BATCH, MAX_QUERY, Batch
from codius_dns.responder import Responder
from codius_dns.sockets import IP_PKTINFO, UDP_RECEIVE_BUFFER
from codius_dns.udp import BATCHES, UdpService
from tests.unit.dns.zones import HASH_NAME, ORIGIN, ZONE


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_RECEIVE_BUFFER)
        sock.bind((request.param, 0))
        yield sock


@pytest.fixture
def asker(listener: socket.socket) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", listener.getsockname()[1]))
        yield sock


def batch_on(listener: socket.socket) -> Batch:
    return Batch(listener, from_destination=listener.getsockname()[0] == "0.0.0.0")


@asynccontextmanager
async def serving(
    listener: socket.socket, responder: Responder, limit: RateLimit | None = None
) -> AsyncIterator[None]:
    service = UdpService(listener, responder, limit)
    service.start()
    try:
        async with asyncio.timeout(5):
            yield
    finally:
        service.stop()


def received(asker: socket.socket) -> list[bytes]:
    """What has come, and nothing is waited for: on loopback it is there once it is sent."""
    packets = []
    while True:
        try:
            packets.append(asker.recv(65535))
        except BlockingIOError:
            return packets


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH + 1])
def test_a_batch_is_answered_each_packet_with_its_own_answer(
    listener: socket.socket, asker: socket.socket, count: int
) -> None:
    for number in range(count):
        asker.send(b"%d" % number)
    batch = batch_on(listener)
    assert batch.exchange(lambda packet: packet + b"!", lambda *_: None) == (min(count, BATCH), 0)
    assert received(asker) == [b"%d!" % number for number in range(min(count, BATCH))]


def test_packets_without_an_answer_leave_no_gap_and_no_confusion(listener: socket.socket) -> None:
    """Several askers, some get silence: each of the others gets its own answer, batch after batch."""
    batch = batch_on(listener)
    askers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(BATCH)]
    try:
        for sock in askers:
            sock.setblocking(False)
            sock.connect(("127.0.0.1", listener.getsockname()[1]))
        for keep in (2, 3, 7, 1):
            for index, sock in enumerate(askers):
                sock.send(b"%d" % index)

            def answer(packet: bytes, index: int, keep: int = keep) -> bytes | None:
                assert packet == b"%d" % index
                assert batch.asker(index) == b"\x7f\0\0\1"
                return packet * 2 if index % keep == 0 else None

            assert batch.exchange(lambda _: None, answer) == (BATCH, 0)
            for index, sock in enumerate(askers):
                assert received(sock) == ([b"%d%d" % (index, index)] if index % keep == 0 else [])
            # A few packets, then many, all answered quickly, right after a batch with gaps.
            for some in (3, BATCH):
                for index, sock in enumerate(askers[:some]):
                    sock.send(b"%d" % index)
                assert batch.exchange(lambda packet: packet, lambda *_: None) == (some, 0)
                for index, sock in enumerate(askers[:some]):
                    assert received(sock) == [b"%d" % index]
    finally:
        for sock in askers:
            sock.close()


def test_answers_leave_by_route_and_not_by_the_interface_of_arrival(
    listener: socket.socket, asker: socket.socket
) -> None:
    """What the kernel is given back says from which address, and nothing of an interface."""
    batch = batch_on(listener)
    for _ in range(3):
        asker.send(b"x")
    batch.exchange(lambda packet: packet, lambda *_: None)
    assert len(received(asker)) == 3
    room = len(batch._controls) // BATCH
    for index in range(3):
        interface, source = struct.unpack_from("=i4s", batch._controls, index * room + 16)
        assert interface == 0
        if listener.getsockname()[0] == "0.0.0.0":
            assert source == b"\x7f\0\0\1"


def test_a_packet_longer_than_any_question_is_cut_and_nothing_beside_it_is_touched(
    listener: socket.socket, asker: socket.socket
) -> None:
    seen: list[bytes] = []
    for packet in (b"a" * 5, b"b" * (MAX_QUERY + 500), b"c" * 5):
        asker.send(packet)
    batch_on(listener).exchange(seen.append, lambda *_: None)
    assert seen == [b"a" * 5, b"b" * MAX_QUERY, b"c" * 5]


def test_an_answer_that_cannot_be_sent_does_not_keep_the_next_from_being_sent(
    listener: socket.socket, asker: socket.socket
) -> None:
    """As with a forged source port of 0, which the kernel refuses to send to."""
    batch = batch_on(listener)
    for number in range(3):
        asker.send(b"%d" % number)

    def forge(packet: bytes) -> bytes:
        if packet == b"1":
            at = len(batch._peers) // BATCH  # the second peer's address begins there
            batch._peers[at + 2 : at + 4] = bytes(2)
        return packet

    assert batch.exchange(forge, lambda *_: None) == (3, 1)
    assert received(asker) == [b"0", b"2"]


async def test_a_flood_does_not_keep_the_loop_from_its_other_work(
    listener: socket.socket, asker: socket.socket
) -> None:
    """More is waiting than one turn may take: something else gets its turn before all is answered."""
    most = BATCHES * BATCH
    responder = Responder((ZONE,))
    for _ in range(most + 8):
        asker.send(b"x")
    async with serving(listener, responder):
        short = slot_of_drop(Drop.SHORT)
        while responder.counts[short] == 0:
            await asyncio.sleep(0)
        assert responder.counts[short] <= most
        while responder.counts[short] < most + 8:
            await asyncio.sleep(0)


async def test_beyond_the_limit_every_second_answer_is_truncated_and_the_others_are_not_given(
    listener: socket.socket, asker: socket.socket
) -> None:
    responder = Responder((ZONE,))
    query = dns.message.make_query(HASH_NAME, "A", use_edns=0)
    for _ in range(30):
        asker.send(query.to_wire())
    async with serving(listener, responder, RateLimit(10)):
        while responder.counts[slot_of_drop(Drop.RATE)] + responder.counts[slot_of_drop(Drop.SLIP)] < 20:
            await asyncio.sleep(0)
        answers = [dns.message.from_wire(packet) for packet in received(asker)]
    whole = [answer for answer in answers if answer.answer]
    truncated = [answer for answer in answers if not answer.answer]
    assert (len(whole), len(truncated)) == (10, 10)
    assert all(answer.flags & dns.flags.TC for answer in truncated)
    assert responder.counts[slot_of_drop(Drop.RATE)] == 10


async def test_who_has_a_cookie_is_answered_beyond_the_limit(
    listener: socket.socket, asker: socket.socket
) -> None:
    responder = Responder((ZONE,))
    loop = asyncio.get_running_loop()
    wish = dns.edns.CookieOption(b"12345678", b"")
    first = dns.message.make_query(ORIGIN, "A", use_edns=0, options=[wish])
    asker.send(first.to_wire())
    async with serving(listener, responder, RateLimit(1)):
        given = dns.message.from_wire(await loop.sock_recv(asker, 65535))
        proven = dns.message.make_query(HASH_NAME, "A", use_edns=0, options=list(given.options))
        for _ in range(20):
            asker.send(proven.to_wire())
        for _ in range(20):
            assert dns.message.from_wire(await loop.sock_recv(asker, 65535)).answer
