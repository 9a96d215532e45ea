"""One question to one server, to see what others see; not a resolver."""

from __future__ import annotations

import secrets
import socket
from typing import Final

from codius_dns.errors import DnsError
from codius_dns.names import Name
from codius_dns.query import MAX_UDP_EDNS
from codius_dns.records import Reply
from codius_dns.wire import parse_reply, render_question

TIMEOUT: Final = 3.0  # seconds for one answer
ATTEMPTS: Final = 2  # over UDP, where a packet may get lost


def ask(
    server: str, name: Name, qtype: int, *, port: int = 53, recursive: bool = False, tcp: bool = False
) -> Reply:
    """What the server at this address says; over TCP too when it says that UDP is too small.

    DnsError when it says nothing, or nothing that makes sense.
    """
    packet = render_question(secrets.randbelow(1 << 16), name, qtype, recursive=recursive)
    try:
        reply = _over_tcp(server, port, packet) if tcp else _over_udp(server, port, packet)
    except OSError as error:
        how = "TCP" if tcp else "UDP"
        raise DnsError(f"{server} does not answer over {how}: {error.strerror or error}") from error
    if reply.truncated and not tcp:
        return ask(server, name, qtype, port=port, recursive=recursive, tcp=True)
    return reply


def _over_udp(server: str, port: int, packet: bytes) -> Reply:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with socket.socket(_family(server), socket.SOCK_DGRAM) as sock:
                sock.settimeout(TIMEOUT)
                sock.connect((server, port))  # what comes from anybody else is dropped
                sock.send(packet)
                while (answer := sock.recv(MAX_UDP_EDNS))[:2] != packet[:2]:
                    pass
                return parse_reply(answer)
        except TimeoutError:
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _over_tcp(server: str, port: int, packet: bytes) -> Reply:
    with socket.create_connection((server, port), TIMEOUT) as sock, sock.makefile("rb") as stream:
        sock.sendall(len(packet).to_bytes(2) + packet)
        answer = stream.read(int.from_bytes(stream.read(2)))
        if answer[:2] != packet[:2]:
            raise DnsError(f"{server} hangs up over TCP")
        return parse_reply(answer)


def _family(server: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in server else socket.AF_INET
