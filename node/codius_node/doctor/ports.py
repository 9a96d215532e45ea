"""Whether the host's own ports are free, or who has them."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from codius_node.doctor.findings import Finding, bad, ok, skip
from codius_node.doctor.machine import Machine

OWN_COMMAND: Final = re.compile(r"\bcodius(?:d\b|_node)")
"""In the command line of a process of this host, however it was started."""


def check_front_door(machine: Machine) -> Finding:
    settings = machine.settings
    return _check_port(
        machine, "front door", settings.bind_ip, settings.port, [socket.SOCK_STREAM], "CODIUS_PORT"
    )


def check_redirect_port(machine: Machine) -> Finding:
    settings = machine.settings
    if not settings.redirect_port:
        return skip("redirect port", "CODIUS_REDIRECT_PORT=0: nobody is led from http to https")
    return _check_port(
        machine,
        "redirect port",
        settings.bind_ip,
        settings.redirect_port,
        [socket.SOCK_STREAM],
        "CODIUS_REDIRECT_PORT",
    )


def check_metrics_port(machine: Machine) -> Finding:
    if machine.settings.metrics is None:
        return skip("metrics port", "CODIUS_METRICS is not set: Prometheus finds nothing")
    address, port = machine.settings.metrics
    return _check_port(
        machine, "metrics port", ip_address(address), port, [socket.SOCK_STREAM], "CODIUS_METRICS"
    )


def check_dns_port(machine: Machine) -> Finding:
    settings = machine.settings
    if settings.dns_port == 0:
        return skip("dns port", "CODIUS_DNS_PORT=0: no responder")
    kinds = [socket.SOCK_DGRAM, socket.SOCK_STREAM]
    return _check_port(machine, "dns port", settings.dns_ip, settings.dns_port, kinds, "CODIUS_DNS_PORT")


def _check_port(
    machine: Machine,
    name: str,
    address: IPv4Address | IPv6Address,
    port: int,
    kinds: Sequence[socket.SocketKind],
    setting: str,
) -> Finding:
    where = f"{address} port {port}"
    for kind in kinds:
        try:
            _try_to_bind(address, port, kind)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                holder = find_holder(machine.proc, port, kind)
                if holder is not None and OWN_COMMAND.search(holder):
                    return ok(name, f"{where}: this host is running")
                whose = f"by `{holder}`" if holder else "by another process"
                return bad(name, f"{where} is taken {whose}", f"stop it, or set {setting} to a free port")
            if error.errno == errno.EADDRNOTAVAIL:
                return bad(name, f"{address} is no address of this machine", "see `ip address`")
            if error.errno == errno.EACCES:
                return bad(name, f"{where} is not open to user {machine.euid}", "sudo codiusd doctor")
            return bad(name, f"{where}: {error.strerror}", f"set {setting} to another port")
    return ok(name, f"{where} is free")


def _try_to_bind(address: IPv4Address | IPv6Address, port: int, kind: socket.SocketKind) -> None:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the front door does
        probe.bind((str(address), port))


def find_holder(proc: Path, port: int, kind: socket.SocketKind) -> str | None:
    """The command line of a process with this port open; None when it is not ours to see."""
    inodes = set()
    for table in ("tcp", "tcp6") if kind == socket.SOCK_STREAM else ("udp", "udp6"):
        try:
            text = (proc / "net" / table).read_text()
        except OSError:
            continue
        inodes |= parse_socket_inodes(text, port, listening=kind == socket.SOCK_STREAM)
    for descriptor in proc.glob("[0-9]*/fd/*"):
        try:
            target = str(descriptor.readlink())
            if target.startswith("socket:[") and target[8:-1] in inodes:
                command = (descriptor.parents[1] / "cmdline").read_bytes()
                return command.replace(b"\0", b" ").decode(errors="replace").strip()[:120]
        except OSError:
            continue  # it ended, or is somebody else's
    return None


def parse_socket_inodes(table: str, port: int, *, listening: bool) -> set[str]:
    """Inodes of the sockets on a local port, from /proc/net/tcp and its like (proc(5))."""
    rows = (line.split() for line in table.splitlines()[1:])
    return {
        row[9]
        for row in rows
        if len(row) > 9 and row[1].endswith(f":{port:04X}") and (not listening or row[3] == "0A")
    }
