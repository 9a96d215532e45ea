"""DNS names as look-up keys: lower-case wire form, so that a stranger's bytes need no decoding."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NewType

from codius_dns.errors import ZoneError

Name = NewType("Name", bytes)
"""Length-prefixed labels and the root's zero, ASCII letters in lower case (RFC 4034 section 6.2)."""

ROOT: Final = Name(b"\0")
MAX_LABEL: Final = 63  # bytes, RFC 1035 section 2.3.4
MAX_NAME: Final = 255  # bytes on the wire with the root's zero, RFC 1035 section 2.3.4
HASH_LABEL: Final = 52  # characters of a manifest hash: 256 bits in base32 without padding

WILDCARD: Final = b"\1*"  # the label that stands for every name not there, RFC 4592 section 2.1.1

_OUR_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
is_hash_in_any_case: Final = re.compile(rb"[A-Za-z2-7]{%d}" % HASH_LABEL).match
"""The same for letters as they came, from a place in a packet on."""
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


def parse_owner(text: str) -> Name:
    """The name of a record in a zone file: as in the settings, or with `*` for its first label (RFC 4592)."""
    star, dot, rest = text.partition(".")
    if star != "*" or not dot:
        return parse_name(text)
    wire = WILDCARD + parse_name(rest)
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


def to_text(name: bytes) -> str:
    r"""For people: the dot at the end, bytes outside hosts' letters as \DDD (RFC 1035 section 5.1)."""
    return "".join(f"{_escape(label)}." for label in labels_of(name)) or "."


def _escape(label: bytes) -> str:
    return "".join(chr(c) if (c < 128 and chr(c).isalnum()) or c in b"-_*" else f"\\{c:03d}" for c in label)


def is_within(name: Name, origin: Name) -> bool:
    """Whether the name is the origin or below it, label by label: a label may *contain* what looks it."""
    surplus = len(name) - len(origin)
    if surplus < 0 or not name.endswith(origin):
        return False
    at = 0
    while at < surplus:
        at += 1 + name[at]
    return at == surplus


def is_hash_label(name: bytes, at: int) -> bool:
    """Whether the label of a name that begins there is a well-formed manifest hash."""
    return name[at] == HASH_LABEL and _HASH.match(name, at + 1) is not None


def is_hash_name(name: Name, origin: Name) -> bool:
    """Whether the name is a well-formed manifest hash directly under the origin."""
    return len(name) == 1 + HASH_LABEL + len(origin) and name.endswith(origin) and is_hash_label(name, 0)
