"""The listening sockets: opened once, by us or by systemd, shared by all workers there will ever be."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from codius_proxy.config import AddressError, ProxyConfig

BACKLOG: Final = 1024  # connections the kernel holds while a worker is busy
FIRST_LISTEN_FD: Final = 3  # sd_listen_fds(3)
MAX_LISTEN_FDS: Final = 64  # sockets handed over; a larger number is a mistake
REDIRECT_NAME: Final = "redirect"  # FileDescriptorName= of a socket for the redirect to https
KEEPALIVE_IDLE: Final = 60  # seconds without a byte before the kernel asks whether a visitor still exists
KEEPALIVE_INTERVAL: Final = 15  # seconds between such questions
KEEPALIVE_PROBES: Final = 4  # unanswered questions

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
# Classic BPF over a TCP segment: of its flags only SYN and ACK matter; SYN alone asks for a new connection.
_DROP_NEW: Final = (
    (0x30, 0, 0, 13),  # ldb [13]
    (0x54, 0, 0, 0x12),  # and #SYN|ACK
    (0x15, 0, 1, 0x02),  # jeq #SYN
    (0x06, 0, 0, 0),  # ret #0: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # ret #-1: keep
)


@dataclass(frozen=True, slots=True)
class Listeners:
    """All sockets of the front door: those visitors come to, and the one for the metrics."""

    main: Sequence[socket.socket]
    redirect: Sequence[socket.socket] = ()
    metrics: socket.socket | None = None

    def all(self) -> list[socket.socket]:
        return [*self.main, *self.redirect, *([self.metrics] if self.metrics is not None else [])]

    def close(self) -> None:
        for listening in self.all():
            listening.close()


def open_all(config: ProxyConfig) -> Listeners:
    """What systemd opened for us, and the rest of what the settings ask for. AddressError."""
    found = inherited()
    opened = list(found.all())
    try:
        main = found.main or bind(config.listen_address, config.port, config.workers)
        opened += main
        redirect = found.redirect
        if config.redirect_port is not None and not redirect:
            redirect = bind(config.listen_address, config.redirect_port, config.workers)
            opened += redirect
        metrics = bind(*config.metrics, 1)[0] if config.metrics is not None else None
    except (OSError, AddressError):
        for listening in opened:
            listening.close()
        raise
    return Listeners(main, redirect, metrics)


def bind(address: str, port: int, count: int) -> list[socket.socket]:
    """Listening SO_REUSEPORT sockets, one per worker, so that the kernel spreads visitors over them."""
    family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            listening = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Accepted sockets inherit these from the listening one: no system call per visitor.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
            listening.setblocking(False)
            try:
                listening.bind((address, port))
                listening.listen(BACKLOG)
            except OSError as error:
                raise AddressError(f"cannot listen on {address} port {port}: {error.strerror}") from error
            port = listening.getsockname()[1]  # port 0: the others share what the first one got
    except (OSError, AddressError):
        for listening in sockets:
            listening.close()
        raise
    return sockets


def inherited() -> Listeners:
    """The listening sockets systemd opened for this process, if it did (sd_listen_fds(3))."""
    try:
        meant_for = int(os.environ.get("LISTEN_PID", ""))
        count = int(os.environ.get("LISTEN_FDS", ""))
    except ValueError:
        return Listeners(())
    if meant_for != os.getpid() or not 0 < count <= MAX_LISTEN_FDS:
        return Listeners(())
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # not for our children
    main: list[socket.socket] = []
    redirect: list[socket.socket] = []
    for index in range(count):
        number = FIRST_LISTEN_FD + index
        os.set_inheritable(number, False)
        listening = socket.socket(fileno=number)
        listening.setblocking(False)
        named = index < len(names) and names[index] == REDIRECT_NAME
        (redirect if named else main).append(listening)
    return Listeners(main, redirect)


def share(sockets: Sequence[socket.socket], worker: int, workers: int) -> list[socket.socket]:
    """A worker's part: sockets of its own where there are enough of one address, else all of them."""
    addresses = {listening.getsockname() for listening in sockets}
    if len(addresses) == 1 and len(sockets) >= workers:
        return list(sockets[worker::workers])
    return list(sockets)


def refuse_new(sockets: Sequence[socket.socket]) -> None:
    """Let nobody begin a connection any more; those that have begun one may still be accepted.

    Closing a listening socket resets what waits in its queue, and those visitors would see a broken
    answer instead of a refused connection. The filter drops their first packet; when it comes again, a
    second later, the socket is closed.
    """
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_NEW)
    code = ctypes.create_string_buffer(program)
    header = struct.pack("HP", len(_DROP_NEW), ctypes.addressof(code))
    for listening in sockets:
        with suppress(OSError):  # then a stop is only a little less polite
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
