"""The two processes that face the internet: light, without privilege, knowing nothing of the node."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from codius_node import privileges, systemd
from codius_node.config import Settings
from codius_node.errors import CodiusError, SettingsError

MIB: Final = 1024 * 1024


def proxy(settings: Settings) -> int:
    """`codiusd proxy`: the front door, until SIGTERM; the exit status."""
    from codius_proxy import server  # each process loads only what it is
    from codius_proxy.config import AddressError, CertificateError, ProxyConfig, SetupError

    _check_together(settings)
    uri = settings.public_uri
    config = ProxyConfig(
        zone=uri.host,
        listen_address=str(settings.bind_ip),
        port=settings.port,
        api_socket=settings.api_socket,
        feed_socket=settings.feed_socket,
        workers=settings.proxy_workers,
        scheme=uri.scheme,
        public_port=uri.port,
        certificates=settings.tls_certificates,
        redirect_port=settings.redirect_port or None,
        hsts=settings.hsts,
        trusted_proxies=settings.trusted_proxies,
        proxy_protocol=settings.proxy_protocol,
        contact=settings.contact,
        access_log=settings.access_log,
        access_log_bytes=settings.access_log_size * MIB,
        metrics=settings.metrics,
    )
    try:
        server.run(config, drop_privileges=privileges.drop, on_ready=lambda: systemd.notify("READY=1"))
    except AddressError as error:
        raise StartError(
            f"the front door {error}",
            hint="`ss -ltnp` says who has the port; CODIUS_PORT, CODIUS_REDIRECT_PORT, CODIUS_METRICS and"
            " CODIUS_BIND_IP choose others.",
        ) from error
    except CertificateError as error:
        raise StartError(
            f"the front door cannot start with its certificates: {error}",
            hint=f"Files in {settings.tls_certificates} are read as an unprivileged user: give them to its"
            " group (codius), mode 0640.",
        ) from error
    except SetupError as error:
        raise StartError(
            f"the front door {error}",
            hint="It runs as an unprivileged user, who also moves full files aside: give it the directory.",
        ) from error
    return 0


def dns(settings: Settings) -> int:
    """`codiusd dns`: the responder, until SIGTERM; the exit status."""
    from codius_dns import server
    from codius_dns.errors import DnsError
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
    try:
        zone = Zone(
            origin=settings.public_uri.host,
            ipv4=tuple(address for address in addresses if isinstance(address, IPv4Address)),
            ipv6=tuple(address for address in addresses if isinstance(address, IPv6Address)),
            nameservers=settings.dns_nameservers,
        )
        config = server.DnsConfig(zone=zone, addresses=(str(settings.dns_ip),), port=settings.dns_port)
        return server.run(config, drop_privileges=_opened)
    except DnsError as error:
        raise StartError(error.message, hint=error.hint) from error


def _check_together(settings: Settings) -> None:
    """Settings that are each well-formed and cannot be meant together. SettingsError."""
    if settings.tls_certificates is not None and settings.public_uri.scheme != "https":
        raise SettingsError(
            f"CODIUS_TLS_CERTIFICATES is set, but the host's public address is {settings.public_uri}",
            hint="Set CODIUS_PUBLIC_URI to the https address whose certificates these are.",
        )
    if settings.redirect_port and settings.public_uri.scheme != "https":
        raise SettingsError(
            f"CODIUS_REDIRECT_PORT leads to https, but the host's public address is {settings.public_uri}",
            hint="Set CODIUS_PUBLIC_URI to an https address, or CODIUS_REDIRECT_PORT to 0.",
        )
    if settings.proxy_protocol and not settings.trusted_proxies:
        raise SettingsError(
            "CODIUS_PROXY_PROTOCOL is true, but no proxy is trusted",
            hint="Set CODIUS_TRUSTED_PROXIES to the addresses of your load balancers.",
        )


class StartError(CodiusError):
    """A process could not take up its work."""


def _opened() -> None:
    """The ports are open: nothing more needs root, and whoever started us may go on."""
    privileges.drop()
    systemd.notify("READY=1")
