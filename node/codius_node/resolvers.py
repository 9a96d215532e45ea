"""The host's own DNS resolvers, for its pods: what resolv.conf names, without what only the host reaches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from codius_node.policy import FALLBACK_RESOLVERS

logger = logging.getLogger(__name__)

RESOLV_CONFS: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""In this order: where the first names only a stub on loopback, systemd-resolved writes its own ones to the
second (systemd-resolved.service(8))."""
MAX_RESOLVERS: Final = 3
"""Of a resolv.conf; the C library reads no more (MAXNS, resolv.conf(5))."""
MAX_FILE: Final = 64 * 1024
"""Characters; a resolv.conf has a few lines."""


def find_host_resolvers(
    *, ipv6: bool, paths: Sequence[Path] = RESOLV_CONFS
) -> tuple[IPv4Address | IPv6Address, ...]:
    """Those of the first file that names one pods could ask; with none, well-known ones and a warning.

    `ipv6` tells whether pods have IPv6.
    """
    for path in paths:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                text = file.read(MAX_FILE)
        except OSError as error:
            logger.debug("%s cannot be read: %s", path, error.strerror)
            continue
        if found := parse_resolv_conf(text, ipv6=ipv6):
            logger.info("pods ask the resolvers of %s: %s", path, ", ".join(map(str, found)))
            return found
    names = ", ".join(map(str, FALLBACK_RESOLVERS))
    logger.warning(
        "this host names no resolver that its pods could ask: they ask %s. CODIUS_POD_RESOLVERS sets others.",
        names,
    )
    return FALLBACK_RESOLVERS


def parse_resolv_conf(text: str, *, ipv6: bool) -> tuple[IPv4Address | IPv6Address, ...]:
    """The nameservers that pods could reach too: neither on loopback nor on a link (fe80::1%eth0)."""
    found: dict[IPv4Address | IPv6Address, None] = {}
    for line in text.splitlines():
        keyword, *words = line.split()[:2] or [""]
        if keyword != "nameserver" or not words:
            continue
        try:
            address = ip_address(words[0])
        except ValueError:
            continue
        if not _is_of_this_host_only(address) and (ipv6 or address.version == 4):
            found[address] = None
    return tuple(found)[:MAX_RESOLVERS]


def _is_of_this_host_only(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and (address.is_link_local or address.scope_id is not None):
        return True
    return address.is_loopback or address.is_unspecified or address.is_multicast or address.is_reserved
