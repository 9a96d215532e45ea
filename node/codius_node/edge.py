"""The two processes that face the internet: light, without privilege, knowing nothing of the node."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from codius_node import privileges, systemd
from codius_node.config import Settings, load
from codius_node.environment import Environment
from codius_node.errors import CodiusError, SettingsError
from codius_node.uri import DEFAULT_PORTS

if TYPE_CHECKING:
    from codius_dns.server import DnsConfig
    from codius_dns.zone import Zone
    from codius_proxy.config import ProxyConfig

MIB: Final = 1024 * 1024


def proxy(settings: Settings, environment: Environment) -> int:
    """`codiusd proxy`: the front door, until SIGTERM; SIGHUP reads the environment again. The exit status."""
    from codius_proxy import server  # each process loads only what it is
    from codius_proxy.config import AddressError, CertificateError, SetupError

    config = proxy_config(settings)

    def reread() -> ProxyConfig:
        try:
            return proxy_config(load(environment.read()))
        except SettingsError as error:
            raise SetupError(error.message) from error

    try:
        server.run(
            config,
            drop_privileges=privileges.drop,
            on_ready=lambda: systemd.notify("READY=1"),
            reread=reread,
        )
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


def proxy_config(settings: Settings) -> ProxyConfig:
    """What the settings mean for the front door; SettingsError for what cannot be meant together."""
    from codius_proxy.bounds import Bounds
    from codius_proxy.config import Limits, ProxyConfig, Timeouts

    _check_together(settings)
    uri = settings.public_uri
    return ProxyConfig(
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
        timeouts=Timeouts(
            head=settings.proxy_head_timeout,
            idle=settings.proxy_idle_timeout,
            body=settings.proxy_body_timeout,
            connect=settings.proxy_connect_timeout,
            first_byte=settings.proxy_first_byte_timeout,
        ),
        limits=Limits(
            connections=settings.proxy_connections,
            per_client=settings.proxy_client_connections,
            per_target=settings.proxy_pod_requests,
        ),
        bounds=Bounds(
            head=settings.proxy_head_size,
            fields=settings.proxy_header_lines,
            line=settings.proxy_line_size,
            chunk_line=settings.proxy_chunk_line_size,
        ),
    )


def dns(settings: Settings, environment: Environment) -> int:
    """`codiusd dns`: the responder, until SIGTERM; SIGHUP reads its records again. The exit status."""
    from codius_dns import server
    from codius_dns.errors import DnsError, ZoneError

    if settings.dns_port == 0:
        raise SettingsError(
            "CODIUS_DNS_PORT=0 means no DNS responder", hint="Set it to 53, or do not start one."
        )

    def reread() -> Sequence[Zone]:
        try:
            return dns_zones(load(environment.read()), serial=int(time.time()))
        except SettingsError as error:
            raise ZoneError(error.message, hint=error.hint) from error

    try:
        return server.run(
            dns_config(settings),
            drop_privileges=_opened,
            reread=None if sys.stdin.isatty() else reread,  # a terminal's SIGHUP is its end, and ours
        )
    except DnsError as error:
        raise StartError(error.message, hint=error.hint) from error


def dns_config(settings: Settings) -> DnsConfig:
    """What the settings and the zone files mean for the responder; DnsError for what it cannot serve."""
    from codius_dns.responder import Identity
    from codius_dns.server import DnsConfig
    from codius_dns.sockets import Endpoint

    metrics = settings.dns_metrics
    return DnsConfig(
        zones=dns_zones(settings, serial=int(time.time())),
        addresses=tuple(str(address) for address in settings.dns_addresses),
        port=settings.dns_port,
        workers=settings.dns_workers,
        rate_limit=settings.dns_rate_limit,
        identity=Identity(settings.dns_nsid.encode("ascii")),
        texts_socket=settings.texts_socket,
        metrics=None if metrics is None else Endpoint(str(metrics[0]), metrics[1]),
        log_queries=settings.dns_query_log,
    )


def dns_zones(settings: Settings, *, serial: int) -> tuple[Zone, ...]:
    """The host's zone first, then those of the operator's other zone files."""
    from codius_dns.master import SUFFIX, read_zone
    from codius_dns.zone import Zone

    addresses = settings.public_addresses
    if not addresses:
        raise SettingsError(
            f"the DNS responder does not know the public addresses of {settings.public_uri.host}",
            hint="Set CODIUS_PUBLIC_ADDRESSES to the addresses visitors reach this host by.",
        )
    files = () if settings.dns_zones is None else _list(settings.dns_zones)
    records = dict(read_zone(path) for path in files if path.name.endswith(SUFFIX))
    uri = settings.public_uri
    own = Zone(
        origin=uri.host,
        ipv4=tuple(address for address in addresses if isinstance(address, IPv4Address)),
        ipv6=tuple(address for address in addresses if isinstance(address, IPv6Address)),
        nameservers=settings.dns_nameservers,
        https=uri.scheme == "https" and uri.port == DEFAULT_PORTS["https"],
        issuers=settings.dns_issuers,
        serial=serial,
        records=records.pop(uri.host, ()),
    )
    others = (
        Zone(origin, nameservers=own.nameserver_names, hashes=False, serial=serial, records=found)
        for origin, found in records.items()
    )
    return (own, *others)


def _list(zones: Path) -> list[Path]:
    try:
        return sorted(zones.iterdir())  # glob() passes over what it may not read: all the zones would be gone
    except OSError as error:
        raise SettingsError(
            f"CODIUS_DNS_ZONES={zones} cannot be read: {error.strerror}",
            hint="Make it a directory that the user of the DNS responder can read, or unset the variable.",
        ) from error


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
