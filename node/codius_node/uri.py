"""The address under which the world sees a host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

HOST_PATTERN: Final = re.compile(
    r"(?=.{1,190}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
)
"""A host name that leaves room for a 52-character label and its dot within DNS's 253 (RFC 1035 2.3.4)."""

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class PublicUri:
    """The address under which the world sees this host; pods live one label below it."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Host, with the port where it is not the scheme's own."""
        return self.host if self.port == DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        """`http://codius.localhost:3000`: no slash at the end."""
        return f"{self.scheme}://{self.netloc}"

    def pod_url(self, manifest_hash: str) -> str:
        """Where visitors find the pod of this manifest."""
        return f"{self.scheme}://{manifest_hash}.{self.netloc}/"

    def __str__(self) -> str:
        return self.origin


def is_loopback_name(host: str) -> bool:
    """The name localhost and those below it, which are this very machine (RFC 6761 section 6.3)."""
    return host == "localhost" or host.endswith(".localhost")


def parse_public_uri(value: str) -> PublicUri:
    """An http(s) URI with a host name and nothing behind it; ValueError otherwise."""
    parts = urlsplit(value)
    host = (parts.hostname or "").lower()
    if parts.scheme not in DEFAULT_PORTS or parts.username is not None or parts.password is not None:
        raise ValueError
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError
    if not HOST_PATTERN.fullmatch(host) or host.rpartition(".")[2].isdigit():
        raise ValueError  # a last label of digits would be an IPv4 address: no names below it
    port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    if port == 0:
        raise ValueError  # nobody can be reached there; it is not the scheme's own port either
    return PublicUri(parts.scheme, host, port)
