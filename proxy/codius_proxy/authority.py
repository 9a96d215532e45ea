"""Which of our names a Host value means: a pod, the host itself, or neither."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

MAX_NAME: Final = 253  # characters of a DNS name without its final dot, RFC 1035 section 2.3.4
MAX_AUTHORITY: Final = MAX_NAME + len(".:65535")  # characters; nothing longer can be meant for us
MAX_PORT: Final = 65535
REMEMBERED_HOSTS: Final = 4096  # Host values whose reading is remembered

# Underscores are no host names by RFC 1123, but they are in use; they can only lead to "unknown".
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_AUTHORITY: Final = re.compile(
    rf"(?:\[(?P<v6>[0-9A-Fa-f:.]{{2,45}})\]|(?P<name>{_LABEL}(?:\.{_LABEL})*)\.?)(?::(?P<port>[1-9][0-9]{{0,4}}))?"
)
_HASH: Final = re.compile(r"[a-z2-7]{52}")
_DOTTED_QUAD: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")


class AuthorityError(ValueError):
    """A Host value that is no host name or address with an optional port."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A host name or address, lower-case and without a final dot, and the port if one was given."""

    hostname: str
    port: int | None


@dataclass(frozen=True, slots=True)
class PodName:
    """The name of a pod: its manifest hash directly under the host's name."""

    hash: str


@dataclass(frozen=True, slots=True)
class HostItself:
    """A name or address of the host: its public API answers."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A well-formed name that is not ours."""

    hostname: str


def parse(value: str) -> Authority:
    """Strict reading of a Host value (RFC 9110 section 7.2); AuthorityError for anything else."""
    if len(value) > MAX_AUTHORITY:
        raise AuthorityError(f"a Host value of {len(value)} characters is longer than any name of this host")
    match = _AUTHORITY.fullmatch(value)
    if match is None:
        raise AuthorityError(f"{value!r} is no host name with an optional port")
    port = None
    if match["port"] is not None:
        port = int(match["port"])
        if port > MAX_PORT:
            raise AuthorityError(f"port {port} is outside 1-{MAX_PORT}")
    if match["v6"] is not None:
        try:
            return Authority(str(IPv6Address(match["v6"])), port)
        except AddressValueError as error:
            raise AuthorityError(f"[{match['v6']}] is no IPv6 address") from error
    hostname = match["name"].lower()
    if len(hostname) > MAX_NAME:
        raise AuthorityError(f"a host name of {len(hostname)} characters is longer than DNS allows")
    return Authority(hostname, port)


@lru_cache(maxsize=REMEMBERED_HOSTS)
def read_host(value: bytes) -> Authority:
    """A Host value as it came, read by `parse`; AuthorityError."""
    return parse(value.decode("latin-1"))


def classify(hostname: str, zone: str) -> PodName | HostItself | Unknown:
    """What a parsed host name means on a host called `zone` (lower-case, no final dot).

    Only exact pod names directly under the zone count: the hash under a stranger's domain, or a
    label in front of it, is not a pod.
    """
    if hostname in (zone, "localhost") or _is_address(hostname):
        return HostItself()
    label, dot, parent = hostname.partition(".")
    if dot and parent == zone and _HASH.fullmatch(label):
        return PodName(label)
    return Unknown(hostname)


def _is_address(hostname: str) -> bool:
    if ":" in hostname:  # only the bracketed form of `parse` lets a colon in
        return True
    if not _DOTTED_QUAD.fullmatch(hostname):
        return False
    try:
        IPv4Address(hostname)
    except AddressValueError:
        return False
    return True
