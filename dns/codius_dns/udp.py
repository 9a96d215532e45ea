"""Questions over UDP: read a batch, answer each from the address it was sent to."""

from __future__ import annotations

import asyncio
import socket
import struct
from ipaddress import IPv6Address, ip_address
from typing import Final

from codius_dns.responder import Responder, Transport
from codius_dns.sockets import IP_PKTINFO

MAX_QUERY: Final = 4096  # bytes read of a packet: a question needs 300, cookies and padding some more
BATCH: Final = 64  # packets before the loop may look after TCP and signals

_PKTINFO4: Final = struct.Struct("=i4s4s")  # interface, the local address, the packet's destination; ip(7)
_PKTINFO6: Final = struct.Struct("=16sI")  # destination, interface; ipv6(7)

Ancillary = list[tuple[int, int, bytes]]


class UdpService:
    """One UDP socket being answered. Takes over the socket."""

    def __init__(self, sock: socket.socket, responder: Responder) -> None:
        self._sock = sock
        self._responder = responder
        bound = ip_address(sock.getsockname()[0].partition("%")[0])
        # On a wildcard socket the kernel would choose the source by route, and the asker would not know it.
        self._on_ready = self._answer_from_destination if bound.is_unspecified else self._answer
        self._ancillary_size = (
            socket.CMSG_SPACE(max(_PKTINFO4.size, _PKTINFO6.size)) if bound.is_unspecified else 0
        )

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._on_ready)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()

    def _answer(self) -> None:
        receive, send, respond = self._sock.recvfrom, self._sock.sendto, self._responder.respond
        for _ in range(BATCH):
            try:
                packet, asker = receive(MAX_QUERY)
                answer = respond(packet, transport=Transport.UDP)
                if answer is not None:
                    send(answer, asker)
            except BlockingIOError:
                return  # nothing left to read, or no room to send: the asker asks again
            except OSError:
                continue  # unreachable or forged (port 0): one asker's trouble, no one else's

    def _answer_from_destination(self) -> None:
        for _ in range(BATCH):
            try:
                packet, ancillary, _, asker = self._sock.recvmsg(MAX_QUERY, self._ancillary_size)
                answer = self._responder.respond(packet, transport=Transport.UDP)
                if answer is not None:
                    self._sock.sendmsg((answer,), _source(ancillary), 0, asker)
            except BlockingIOError:
                return
            except OSError:
                continue


def _source(received: Ancillary) -> Ancillary:
    """The control message that sends an answer from where the question went to."""
    for level, kind, data in received:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            _, local, _ = _PKTINFO4.unpack(data)
            return [(level, kind, _PKTINFO4.pack(0, local, bytes(4)))]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            destination, interface = _PKTINFO6.unpack(data)
            # Only a link-local address means nothing without its interface; others go by route.
            return [
                (level, kind, _PKTINFO6.pack(destination, interface * IPv6Address(destination).is_link_local))
            ]
    return []
