"""Listening sockets, UDP and TCP on the same port, opened before privileges are dropped."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from codius_dns.errors import DnsStartError

TCP_BACKLOG: Final = 128  # connections the kernel keeps for us until we accept them
LOCAL_BACKLOG: Final = 8  # the same for the metrics
UDP_RECEIVE_BUFFER: Final = 1 << 20  # bytes the kernel keeps for us in a burst; it may grant less
PORT_ATTEMPTS: Final = 20  # times port 0 may pick a TCP port whose UDP twin is taken

# <linux/in.h>; the socket module has no name for it in Python 3.11.
IP_PKTINFO: Final[int] = getattr(socket, "IP_PKTINFO", 8)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the responder can be asked."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Listener:
    """One endpoint's two sockets."""

    endpoint: Endpoint
    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


def open_listeners(addresses: Sequence[str], port: int, *, workers: int = 1) -> list[list[Listener]]:
    """One list of listeners per worker. Port 0 picks one free on all addresses and protocols."""
    if not addresses:
        raise DnsStartError("the DNS responder has no address to listen on")
    if workers == 1:
        return [_open_set(addresses, port, shared=False)]
    # A shared port would also be shared with a stranger of the same user: see first that nobody has it.
    probe = _open_set(addresses, port, shared=False)
    port = probe[0].endpoint.port
    with ExitStack() as undo:
        for listener in probe:
            listener.close()
        sets = []
        for _ in range(workers):
            listeners = _open_set(addresses, port, shared=True)
            for listener in listeners:
                undo.callback(listener.close)
            sets.append(listeners)
        undo.pop_all()
    return sets


def open_local(endpoint: Endpoint) -> socket.socket:
    """A listening TCP socket for something of this machine, apart from DNS."""
    try:
        return socket.create_server(
            (endpoint.address, endpoint.port),
            family=socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET,
            backlog=LOCAL_BACKLOG,
        )
    except OSError as error:
        raise _start_error(error, endpoint.address, endpoint.port) from error


def _open_set(addresses: Sequence[str], port: int, *, shared: bool) -> list[Listener]:
    attempts = 1 if port else PORT_ATTEMPTS
    for attempt in range(1, attempts + 1):
        with ExitStack() as undo:
            listeners: list[Listener] = []
            try:
                for address in addresses:
                    chosen = listeners[0].endpoint.port if listeners else port
                    listener = _open(address, chosen, shared=shared)
                    undo.callback(listener.close)
                    listeners.append(listener)
            except OSError as error:
                if error.errno == errno.EADDRINUSE and attempt < attempts:
                    continue
                raise _start_error(error, address, chosen) from error
            undo.pop_all()
            return listeners
    raise AssertionError("unreachable: the last attempt returns or raises")


def _open(address: str, port: int, *, shared: bool) -> Listener:
    family, _, _, _, sockaddr = socket.getaddrinfo(
        address, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
    )[0]
    with ExitStack() as undo:
        tcp = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        udp = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        for sock in (tcp, udp):
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # so 0.0.0.0 can be beside ::
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(sockaddr)
        tcp.listen(TCP_BACKLOG)
        bound = tcp.getsockname()[1]
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_RECEIVE_BUFFER)
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            udp.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        udp.bind((sockaddr[0], bound, *sockaddr[2:]))
        undo.pop_all()
    return Listener(Endpoint(address, bound), udp, tcp)


def _start_error(error: OSError, address: str, port: int) -> DnsStartError:
    where = f"{address} port {port}"
    if isinstance(error, socket.gaierror):
        return DnsStartError(
            f"{address!r} is not an IP address", hint="Listen on an address such as 0.0.0.0 or ::."
        )
    if error.errno == errno.EADDRINUSE:
        return DnsStartError(
            f"something else already answers on {where}",
            hint=f"`ss -lntup 'sport = :{port}'` shows what. Stop it, or give the DNS responder "
            "another address or port. (systemd-resolved has port 53 on 127.0.0.53: use the public address.)",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return DnsStartError(
            f"not allowed to listen on {where}",
            hint="Ports below 1024 need root or CAP_NET_BIND_SERVICE: use the systemd unit or a higher port.",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return DnsStartError(
            f"cannot listen on {where}: this machine does not have that address",
            hint="`ip address` lists those it has. Behind NAT listen on the inner one, or on 0.0.0.0.",
        )
    return DnsStartError(f"cannot listen on {where}: {error.strerror or error}")
