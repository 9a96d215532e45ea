"""What the text of a setting may be: one parser for each kind; ValueError for anything else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Final, TypeVar

from codius_netpolicy.policy import UNIQUE_LOCAL
from codius_node.uri import HOST_PATTERN, PublicUri, parse_public_uri

T = TypeVar("T")

MAX_DNS_NSID: Final = 64
"""Bytes; it goes into answers over UDP."""
MAX_CONTACT: Final = 200
"""Characters of the operator's address on error pages."""
POD_POOL_PREFIXES: Final = range(16, 29)
"""A pool of /16 (65 000 pods) down to /28 (a dozen)."""


def text(value: str) -> str:
    return value


def boolean(value: str) -> bool:
    lowered = value.lower()
    if lowered in {"true", "1", "yes", "on"}:
        return True
    if lowered in {"false", "0", "no", "off"}:
        return False
    raise ValueError


def integer(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise ValueError
        return int(value)

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """A decimal number with three places at most."""

    def parse(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,3})?", value) or not low <= float(value) <= high:
            raise ValueError
        return float(value)

    return parse


def price(value: str) -> Decimal:
    try:
        found = Decimal(value)
    except InvalidOperation as error:
        raise ValueError from error
    if not found.is_finite() or not 0 <= found <= 10**12:
        raise ValueError
    return found


def fraction(value: str) -> float:
    found = float(value)
    if not 0 < found <= 1:
        raise ValueError
    return found


def path(value: str) -> Path:
    found = Path(value)
    if not found.is_absolute():
        raise ValueError
    return found


def optional_path(value: str) -> Path | None:
    return path(value) if value else None


def identity(value: str) -> str:
    if len(value) > MAX_DNS_NSID or not value.isascii() or not value.isprintable():
        raise ValueError
    return value


def socket(value: str) -> Path:
    # podman and docker people write unix:///run/podman/podman.sock
    return path(value.removeprefix("unix://"))


def public_uri(value: str) -> PublicUri | None:
    return parse_public_uri(value) if value else None


def address(value: str) -> IPv4Address | IPv6Address | None:
    return ip_address(value) if value else None


def words(value: str) -> tuple[str, ...]:
    """A JSON list of strings, or words divided by commas or spaces."""
    if value.startswith("["):
        found = json.loads(value)
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise ValueError
        return tuple(found)
    return tuple(word for word in re.split(r"[,\s]+", value) if word)


class WordError(ValueError):
    """One word of a list that cannot be used."""


def each(parse: Callable[[str], T], *, most: int | None = None) -> Callable[[str], tuple[T, ...]]:
    def parse_words(value: str) -> tuple[T, ...]:
        found = words(value)
        if most is not None and len(found) > most:
            raise ValueError
        return tuple(map(parse_word, found))

    def parse_word(word: str) -> T:
        try:
            return parse(word)
        except ValueError:
            raise WordError(word) from None

    return parse_words


def uri(word: str) -> str:
    return parse_public_uri(word).origin


def name(word: str) -> str:
    found = word.lower().rstrip(".")
    if not HOST_PATTERN.fullmatch(found):
        raise ValueError
    return found


def pool(value: str) -> IPv4Network:
    network = IPv4Network(value)
    if not network.is_private or network.prefixlen not in POD_POOL_PREFIXES:
        raise ValueError
    return network


def pool6(value: str) -> IPv6Network | None:
    if not value:
        return None
    network = IPv6Network(value)
    if not network.subnet_of(UNIQUE_LOCAL):
        raise ValueError
    return network


def endpoint(value: str) -> tuple[str, int] | None:
    """`127.0.0.1:9100` or `[::1]:9100`."""
    if not value:
        return None
    host, colon, port = value.rpartition(":")
    if not colon or host.startswith("[") != host.endswith("]") or (":" in host and host[0] != "["):
        raise ValueError
    return str(ip_address(host.strip("[]"))), integer(1, 65535)(port)


def line(value: str) -> str:
    if not value.isprintable() or len(value) > MAX_CONTACT:
        raise ValueError
    return value


def image(value: str) -> str:
    # its whole grammar is the manifest's; here only what could not be one is kept out
    if not re.fullmatch(r"[\x21-\x7e]{0,512}", value):
        raise ValueError
    return value


def payments(value: str) -> str:
    if value not in {"", "free"}:
        raise ValueError
    return value
