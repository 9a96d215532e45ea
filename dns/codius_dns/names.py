"""DNS names as look-up keys: lower-case wire form, so that a stranger's bytes need no decoding."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NewType

from codius_dns.errors import ZoneError

Name = NewType("Name", bytes)
"""Length-prefixed labels and the root's zero, ASCII letters in lower case (RFC 4034 section 6.2)."""

MAX_LABEL: Final = 63  # bytes, RFC 1035 section 2.3.4
MAX_NAME: Final = 255  # bytes on the wire with the root's zero, RFC 1035 section 2.3.4
HASH_LABEL: Final = 52  # characters of a manifest hash: 256 bits in base32 without padding

_OUR_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_HASH: Final = re.compile(rb"[a-z2-7]{%d}" % HASH_LABEL)


def parse_name(text: str) -> Name:
    """A name from the settings. Hosts' letters only: strangers may ask for more, we never serve more."""
    labels = text.lower().removesuffix(".").split(".")
    for label in labels:
        if not _OUR_LABEL.fullmatch(label):
            raise ZoneError(
                f"{text!r} is not a DNS name: {label!r} in it is not 1-{MAX_LABEL} letters, digits, - or _",
                hint="Write international names in their xn-- form.",
            )
    wire = b"".join(bytes((len(label),)) + label.encode("ascii") for label in labels) + b"\0"
    if len(wire) > MAX_NAME:
        raise ZoneError(f"{text!r} is longer than a DNS name may be")
    return Name(wire)


def parse_mailbox(text: str) -> Name:
    """A SOA's mailbox, written `user@domain` or already as a name (RFC 1035 section 8)."""
    user, at, domain = text.rpartition("@")
    if not at:
        return parse_name(text)
    local = user.encode("ascii", "replace")
    if not 1 <= len(local) <= MAX_LABEL or not text.isascii():
        raise ZoneError(
            f"{text!r} is not a mailbox DNS can write", hint="Use something like hostmaster@example.org."
        )
    # One label whatever dots are in it, which is why this is not left to parse_name.
    wire = bytes((len(local),)) + local + parse_name(domain)
    if len(wire) > MAX_NAME:
        raise ZoneError(f"{text!r} is longer than a DNS name may be")
    return Name(wire)


def labels_of(name: bytes) -> tuple[bytes, ...]:
    labels = []
    at = 0
    while length := name[at]:
        labels.append(name[at + 1 : at + 1 + length])
        at += 1 + length
    return tuple(labels)


def ancestors(name: Name) -> Iterator[Name]:
    """The names above this one, nearest first, the root last."""
    at = 0
    while length := name[at]:
        at += 1 + length
        yield Name(name[at:])


def is_within(name: Name, origin: Name) -> bool:
    """Whether the name is the origin or below it, label by label: a label may *contain* what looks it."""
    surplus = len(name) - len(origin)
    if surplus < 0 or not name.endswith(origin):
        return False
    at = 0
    while at < surplus:
        at += 1 + name[at]
    return at == surplus


def is_hash_name(name: Name, origin: Name) -> bool:
    """Whether the name is a well-formed manifest hash directly under the origin."""
    return (
        len(name) == 1 + HASH_LABEL + len(origin)
        and name[0] == HASH_LABEL
        and name.endswith(origin)
        and _HASH.match(name, 1) is not None
    )
