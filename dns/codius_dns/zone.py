"""The host's zone as its operator configured it: refused with a sentence when it could not be served."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from codius_dns.errors import ZoneError
from codius_dns.names import HASH_LABEL, MAX_NAME, is_within, parse_mailbox, parse_name, to_text
from codius_dns.records import MAX_SERIAL, MAX_TTL, Record

MAX_ZONES: Final = 64  # a small host's; each has its own prebuilt answers
MAX_ADDRESSES: Final = 8  # of each family: more would let a small question fetch a large answer
MAX_NAMESERVERS: Final = 8  # the same
MAX_ISSUERS: Final = 8  # certificate authorities in CAA; the same
MAX_RECORDS: Final = 1000
"""Static records of all zones together: files by hand, not a hosting provider's. A challenge's value makes
all answers anew, in every worker, and has to be seen within a tenth of a second."""


@dataclass(frozen=True, slots=True)
class Zone:
    """One zone: what is said without a record (addresses, name servers), and the operator's records."""

    origin: str
    ipv4: tuple[IPv4Address, ...] = ()
    ipv6: tuple[IPv6Address, ...] = ()
    nameservers: tuple[str, ...] = ()  # none: ns1.<origin>, with our own addresses as glue
    hostmaster: str | None = None  # a mailbox; none: hostmaster@<origin>
    address_ttl: int = 300  # seconds
    nameserver_ttl: int = 3600  # seconds, of NS and SOA
    negative_ttl: int = 60  # seconds a resolver remembers that something is not there, RFC 2308
    serial: int = 1
    hashes: bool = True  # whether it is the zone of a host, where every hash has the host's addresses
    https: bool = False  # whether hash names answer on https at its own port, and HTTPS records may say so
    issuers: tuple[str, ...] = ()  # authorities that may issue certificates for these names; none: any
    records: tuple[Record, ...] = ()  # the operator's; a set of them replaces what is said without one

    def __post_init__(self) -> None:
        """Refuse what could not be served, with a sentence, before any socket is open."""
        if self.hashes and not self.ipv4 and not self.ipv6:
            raise ZoneError(
                f"the zone {self.origin} has no public address to answer with",
                hint="Give the addresses visitors reach this host by.",
            )
        for label, values, most in (
            ("IPv4 addresses", self.ipv4, MAX_ADDRESSES),
            ("IPv6 addresses", self.ipv6, MAX_ADDRESSES),
            ("name servers", self.nameservers, MAX_NAMESERVERS),
            ("certificate authorities", self.issuers, MAX_ISSUERS),
        ):
            if len(values) > most:
                raise ZoneError(f"{len(values)} {label} in the zone {self.origin}: {most} are possible")
        for label, seconds in (
            ("address_ttl", self.address_ttl),
            ("nameserver_ttl", self.nameserver_ttl),
            ("negative_ttl", self.negative_ttl),
        ):
            if not 0 <= seconds <= MAX_TTL:
                raise ZoneError(f"{label}={seconds} is not between 0 and {MAX_TTL} seconds")
        if not 0 <= self.serial <= MAX_SERIAL:
            raise ZoneError(f"serial={self.serial} is not between 0 and {MAX_SERIAL}")
        origin = parse_name(self.origin)
        if 1 + HASH_LABEL + len(origin) > MAX_NAME:
            raise ZoneError(
                f"{self.origin!r} is too long: a hash name under it would not be a DNS name any more"
            )
        for name in (*self.nameservers, *self.issuers):
            parse_name(name)
        parse_mailbox(self.mailbox)
        for record in self.records:
            if record.owner is None or not is_within(record.owner, origin):
                name = to_text(record.owner or b"\0")
                raise ZoneError(f"the record of {name} is outside the zone {self.origin}")

    @property
    def nameserver_names(self) -> tuple[str, ...]:
        return self.nameservers or (f"ns1.{self.origin}",)

    @property
    def mailbox(self) -> str:
        return self.hostmaster or f"hostmaster@{self.origin.removesuffix('.')}"
