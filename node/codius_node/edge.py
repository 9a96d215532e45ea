"""The two processes that face the internet: light, without privilege, knowing nothing of the node."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from codius_node import privileges, systemd
from codius_node.config import Settings
from codius_node.errors import SettingsError


def proxy(settings: Settings) -> int:
    """`codiusd proxy`: the front door, until SIGTERM."""
    from codius_proxy import server  # each process loads only what it is

    uri = settings.public_uri
    config = server.ProxyConfig(
        host=uri.host,
        address=str(settings.bind_ip),
        port=settings.port,
        api_socket=settings.api_socket,
        feed_socket=settings.feed_socket,
        workers=settings.proxy_workers,
        scheme=uri.scheme,
    )
    return server.run(config, drop_privileges=_opened)


def dns(settings: Settings) -> int:
    """`codiusd dns`: the responder, until SIGTERM."""
    from codius_dns import server
    from codius_dns.zone import Zone

    addresses = settings.public_addresses
    if not addresses:
        raise SettingsError(
            f"the DNS responder does not know the public addresses of {settings.public_uri.host}",
            hint="Set CODIUS_PUBLIC_ADDRESSES to the addresses visitors reach this host by.",
        )
    if settings.dns_port == 0:
        raise SettingsError(
            "CODIUS_DNS_PORT=0 means no DNS responder", hint="Set it to 53, or do not start one."
        )
    host = settings.public_uri.host
    zone = Zone(
        origin=host,
        ipv4=tuple(a for a in addresses if isinstance(a, IPv4Address)),
        ipv6=tuple(a for a in addresses if isinstance(a, IPv6Address)),
        nameservers=settings.dns_nameservers or (f"ns1.{host}",),
    )
    config = server.DnsConfig(zone=zone, addresses=(str(settings.dns_ip),), port=settings.dns_port)
    return server.run(config, drop_privileges=_opened)


def _opened() -> None:
    """The ports are open: nothing more needs root, and whoever started us may go on."""
    privileges.drop()
    systemd.notify("READY=1")
