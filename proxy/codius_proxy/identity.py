"""Who a visitor is: the address and the scheme that a pod may believe, whoever stands in between.

A pod is told one address, its visitor's. Which balancers the operator keeps in front is not its affair, and
every claim that came with the request is dropped, unless the peer is one of these balancers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeAlias

from codius_proxy.fields import Field

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

MAX_HOPS: Final = 16  # addresses of a chain of proxies that are looked at; real ones have two or three
REMEMBERED_PEERS: Final = 4096  # addresses of which it is remembered whether they are trusted
UNKNOWN: Final = "unknown"  # RFC 7239 section 6.2: a peer without an IP address, on a Unix socket

_WITH_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Identity:
    """A visitor as pods and the access log see it."""

    address: str  # an IP address literal, or `unknown`
    scheme: str
    trusted: bool = False  # a proxy of the operator's: its requests say themselves whom they are from

    def render(self) -> bytes:
        """Header lines for a pod, up to the host the request was for: it differs from request to request.

        `build_fields` has the rest. The same for all requests of one identity.
        """
        literal = f'"[{self.address}]"' if ":" in self.address else self.address
        return (
            f"X-Forwarded-For: {self.address}\r\nX-Forwarded-Proto: {self.scheme}\r\n"
            f'Forwarded: for={literal};proto={self.scheme};host="'
        ).encode("ascii")


def build_fields(rendered: bytes, host: bytes) -> bytes:
    """All lines that tell a pod about its visitor; `host` has passed `authority.parse`: no quotes in it."""
    return b'%b%b"\r\nX-Forwarded-Host: %b\r\n' % (rendered, host, host)


@dataclass(frozen=True, slots=True)
class Entrance:
    """One of the ways in, and what it means for those who come by it."""

    scheme: str
    redirects: bool = False  # nothing is served here: visitors are told to come by https
    policy: bytes = b""  # a Strict-Transport-Security line, CR LF before it, for those who came by https


class Trust:
    """The proxies whose word about their clients counts."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        self.covers = lru_cache(maxsize=REMEMBERED_PEERS)(self._covers)

    def identify(self, address: str, scheme: str) -> Identity:
        """The identity of a peer with this address literal."""
        found = normalize(address)
        if found is None:
            return Identity(UNKNOWN, scheme)
        return Identity(str(found), scheme, bool(self._networks) and self.covers(found))

    def believe(self, peer: Identity, claims: Iterable[Field]) -> Identity:
        """Whom a request of a trusted peer is from: the nearest address that is no trusted proxy itself.

        `Forwarded` does not count: a proxy that sets X-Forwarded-For passes on what its client says there.
        """
        chain: list[bytes] = []
        scheme = peer.scheme
        for claim in claims:
            values = [part.strip(b" \t") for part in claim.value.split(b",")]
            if claim.name == b"x-forwarded-for":
                chain += values
            elif claim.name == b"x-forwarded-proto" and values[-1].lower() in (b"http", b"https"):
                scheme = values[-1].lower().decode("ascii")
        address = peer.address
        for claimed in reversed(chain[-MAX_HOPS:]):
            found = normalize(claimed.decode("latin-1"))
            if found is None:
                break  # who said this is trusted, and said nothing: it is the last one known
            address = str(found)
            if not self.covers(found):
                break
        return Identity(address, scheme)

    def _covers(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def normalize(text: str) -> Address | None:
    """An address literal, perhaps with brackets and a port; an IPv4 one for ::ffff:192.0.2.1."""
    match = _WITH_PORT.fullmatch(text)
    if match is not None:
        text = match[1] or match[2]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
