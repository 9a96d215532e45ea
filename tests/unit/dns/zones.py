"""The zone the DNS tests serve, and what they ask it with."""

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from codius_dns.zone import Zone

ORIGIN: Final = "pods.example"
HASH: Final = "vp7ocv2oxlnfjyjeyfoawv6gphqoxlgsmyx4wyf6y2g5gnkbu4ca"
HASH_NAME: Final = f"{HASH}.{ORIGIN}"
CHALLENGE: Final = f"_acme-challenge.{ORIGIN}"
IPV4: Final = IPv4Address("192.0.2.17")
IPV6: Final = IPv6Address("2001:db8::17")
ZONE: Final = Zone(
    origin=ORIGIN, ipv4=(IPV4,), ipv6=(IPV6,), nameservers=(f"ns1.{ORIGIN}", f"ns2.dns.{ORIGIN}")
)

assert len(HASH) == 52
