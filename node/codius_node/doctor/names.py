"""Whether the host's public name, and those below it, lead here."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from codius_node.doctor.findings import Finding, bad, ok, skip, warn
from codius_node.doctor.machine import Machine
from codius_node.uri import is_loopback_name

NAMES_SECONDS: Final = 5.0
"""For all look-ups of names; a resolver that is away would hold us for half a minute."""
SAMPLE_LABEL: Final = "a" * 52
"""The first label of a pod's name, of no pod that can ever be."""


def check_names(machine: Machine) -> Finding:
    host = machine.settings.public_uri.host
    if is_loopback_name(host):
        return skip("public name", f"{host} is this machine by itself; nothing to check")
    names = (host, f"{SAMPLE_LABEL}.{host}")
    return judge_names(host, machine.settings.public_addresses, resolve(names))


def resolve(names: Sequence[str], seconds: float = NAMES_SECONDS) -> dict[str, frozenset[str] | None]:
    """Addresses of each name, empty when there are none; None when no answer came in time."""
    answers: dict[str, frozenset[str] | None] = dict.fromkeys(names)

    def look_up() -> None:
        for name in names:
            try:
                found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                found = []
            answers[name] = frozenset(str(entry[4][0]) for entry in found)

    # A daemon thread, because getaddrinfo cannot be told to stop.
    thread = threading.Thread(target=look_up, name="doctor-names", daemon=True)
    thread.start()
    thread.join(seconds)
    return dict(answers)


def judge_names(
    host: str,
    wanted: Collection[IPv4Address | IPv6Address],
    answers: Mapping[str, frozenset[str] | None],
) -> Finding:
    """Whether the host's name and those below it lead here."""
    name = "public name"
    if not wanted:
        return bad(
            name,
            f"the addresses that {host} should have are not known",
            "set CODIUS_PUBLIC_ADDRESSES to the addresses visitors reach this host by",
        )
    expected = {str(address) for address in wanted}
    shown = ", ".join(sorted(expected))
    for asked, addresses in answers.items():
        what = asked.replace(SAMPLE_LABEL, "<hash>")
        if addresses is None:
            return warn(
                name,
                f"no answer about {what} in {NAMES_SECONDS:.0f} s",
                "is there a resolver? cat /etc/resolv.conf",
            )
        if not addresses:
            return bad(
                name,
                f"{what} has no address",
                f"at your domain's registrar: NS records for {host} to this host, or A records"
                f" for {host} and *.{host} to {shown}",
            )
        if not {str(ip_address(address)) for address in addresses} & expected:
            return bad(
                name,
                f"{what} is {', '.join(sorted(addresses))}, not {shown}",
                "correct the DNS records, or CODIUS_PUBLIC_ADDRESSES",
            )
    return ok(name, f"{host} and the names below it lead to {shown}")
