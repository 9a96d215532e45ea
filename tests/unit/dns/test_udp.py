"""UDP: one asker's trouble is no one else's."""

import asyncio
import errno
import logging
import socket
from typing import Any

import dns.message
import pytest

from codius_dns.responder import Responder
from codius_dns.sockets import IP_PKTINFO
from codius_dns.udp import BATCH, UdpService
from tests.unit.dns.zones import HASH_NAME, ZONE


class Unsending(socket.socket):
    """A socket whose first answer has nowhere to go, as with a forged source port of 0."""

    refusals = 1

    def refuse(self) -> None:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EINVAL, "refused on purpose")

    def sendto(self, *arguments: Any) -> int:
        self.refuse()
        return super().sendto(*arguments)

    def sendmsg(self, *arguments: Any) -> int:
        self.refuse()
        return super().sendmsg(*arguments)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
async def test_an_answer_that_cannot_be_sent_does_not_keep_the_next_from_being_sent(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    sock = Unsending(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    sock.bind((address, 0))
    service = UdpService(sock, Responder(ZONE))
    first, second = (dns.message.make_query(HASH_NAME, "A", id=number) for number in (1, 2))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker, caplog.at_level(logging.ERROR):
        asker.setblocking(False)
        asker.connect(("127.0.0.1", sock.getsockname()[1]))
        asker.send(first.to_wire())
        asker.send(second.to_wire())
        service.start()
        try:
            async with asyncio.timeout(5):
                answer = await loop.sock_recv(asker, 65535)
        finally:
            service.stop()
    assert second.is_response(dns.message.from_wire(answer))
    assert caplog.records == []  # asyncio logs what escapes a reader


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
async def test_a_flood_does_not_keep_the_loop_from_its_other_work(address: str) -> None:
    """More is waiting than one turn may take: something else gets its turn before all is answered."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    sock.bind((address, 0))
    answered = 0

    class Counting(Responder):
        def respond(self, packet: bytes, *, transport: object) -> None:
            nonlocal answered
            answered += 1

    service = UdpService(sock, Counting(ZONE))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect(("127.0.0.1", sock.getsockname()[1]))
        for _ in range(2 * BATCH):
            asker.send(b"x")
        service.start()
        try:
            async with asyncio.timeout(5):
                while answered == 0:
                    await asyncio.sleep(0)
                assert answered <= BATCH
                while answered < 2 * BATCH:
                    await asyncio.sleep(0)
        finally:
            service.stop()
