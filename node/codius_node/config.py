"""The settings: each declared once, read from environment variables, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final

from codius_netpolicy.policy import (
    MAX_RATE,
    MAX_RULES,
    EgressMode,
    Limits,
    TransportPorts,
    parse_range,
)
from codius_node import values
from codius_node.declarations import Setting, declare, read
from codius_node.uri import PublicUri, is_loopback_name
from codius_proxy import bounds
from codius_proxy.config import Limits as Visitors
from codius_proxy.config import Timeouts

MAX_PROXY_WORKERS: Final = 64
"""Workers; more than the CPUs of any machine this is meant for is a typing error."""
SECONDS_TO_WAIT: Final = (0.1, 86_400.0)
"""Seconds of a time-out of the front door: below, honest visitors are cut off; above, it is none."""
MAX_VISITORS: Final = 1_000_000
"""Connections of a worker of the front door; no worker has files for more."""
MAX_DNS_WORKERS: Final = 64
"""The same for the DNS responder's."""
MAX_HSTS_SECONDS: Final = 2 * 365 * 86400
"""What the browsers' preload list asks for at most."""
MAX_CONNECTIONS: Final = 100_000
"""Flows of one pod, at once or begun in a second: some kernels track no more of all pods together."""
MEGABIT: Final = 1_000_000
"""Bits."""
_SECONDS: Final = "a number of seconds, {:g}-{:g}".format(*SECONDS_TO_WAIT)
LOOPBACK: Final = ip_address("127.0.0.1")
EVERYWHERE: Final = ip_address("0.0.0.0")  # noqa: S104  asked for by the operator's choice of a payment method


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator decided. Build it with `load`; the defaults are those of the table."""

    port: int = declare(
        "CODIUS_PORT", values.integer(1, 65535), "3000", "a port, 1-65535", "Port of the front door."
    )
    chosen_bind_ip: IPv4Address | IPv6Address | None = declare(
        "CODIUS_BIND_IP",
        values.address,
        "",
        "an IPv4 or IPv6 address",
        "Address of the front door. Unset: 127.0.0.1 while no payment method is chosen, else 0.0.0.0.",
    )
    chosen_public_uri: PublicUri | None = declare(
        "CODIUS_PUBLIC_URI",
        values.public_uri,
        "",
        "http:// or https:// and a host name, such as https://codius.example.com",
        "The host's public address; pods answer one label below it."
        " Unset: http://codius.localhost:$CODIUS_PORT.",
    )
    root: Path = declare(
        "CODIUS_ROOT",
        values.path,
        "/var/lib/codius",
        "an absolute path",
        "Directory of the database and its key.",
    )
    run: Path = declare(
        "CODIUS_RUN", values.path, "/run/codius", "an absolute path", "Directory of the node's Unix sockets."
    )
    cost_per_month: Decimal = declare(
        "CODIUS_COST_PER_MONTH",
        values.price,
        "10",
        "a number from 0",
        "Price of a pod for a month (2628000 s), in the currency's unit.",
    )
    payments: str = declare(
        "CODIUS_PAYMENTS",
        values.payments,
        "",
        "free, or nothing",
        "How clients pay. `free`: nobody pays, and the host serves the world all the same."
        " Unset: free, on loopback only.",
    )
    max_memory_fraction: float = declare(
        "CODIUS_MAX_MEMORY_FRACTION",
        values.fraction,
        "0.75",
        "a number above 0, up to 1",
        "Share of the machine's memory that may be in use before uploads are refused.",
    )
    additional_host_info: bool = declare(
        "CODIUS_ADDITIONAL_HOST_INFO",
        values.boolean,
        "true",
        "true or false",
        "Whether /info also tells memory, uptime, load and the number of pods.",
    )
    bootstrap_peers: tuple[str, ...] = declare(
        "CODIUS_BOOTSTRAP_PEERS",
        values.each(values.uri),
        "[]",
        'a JSON list of URIs, such as ["https://codius.example.com"]',
        "Hosts known from the start.",
    )
    engine_socket: Path = declare(
        "CODIUS_ENGINE_SOCKET",
        values.socket,
        "/run/podman/podman.sock",
        "an absolute path",
        "Podman's API socket. Where none is there, `codiusd run` starts a podman service of its own.",
        aliases=("CODIUS_HYPER_SOCKET",),
    )
    oci_runtime: str = declare(
        "CODIUS_OCI_RUNTIME",
        values.text,
        "",
        "crun, runc, runsc or krun",
        "Runtime of the podman service that `codiusd run` starts. Unset: what fits the machine's cgroups.",
    )
    noop: bool = declare(
        "CODIUS_HYPER_NOOP",
        values.boolean,
        "false",
        "true or false",
        "true: no container is started and the kernel is left alone. To try the API anywhere.",
    )
    allow_tags: bool = declare(
        "CODIUS_ALLOW_TAGS",
        values.boolean,
        "false",
        "true or false",
        "Whether manifests may name images by tag. The hash then no longer names what runs.",
    )
    pod_network: IPv4Network = declare(
        "CODIUS_POD_NETWORK",
        values.pool,
        "10.77.0.0/16",
        "a private IPv4 network from /16 to /28",
        "Addresses of the pods.",
    )
    pod_network_6: IPv6Network | None = declare(
        "CODIUS_POD_NETWORK_6",
        values.pool6,
        "",
        "a unique local IPv6 network, such as fd77::/112",
        "IPv6 addresses of the pods, translated on their way out (NAT66). Unset: pods have no IPv6.",
    )
    chosen_pod_resolvers: tuple[IPv4Address | IPv6Address, ...] = declare(
        "CODIUS_POD_RESOLVERS",
        values.each(ip_address),
        "",
        "IP addresses, divided by commas",
        "DNS resolvers of the pods, reached on port 53 wherever they are. Unset: those of this host.",
    )
    pod_egress: EgressMode = declare(
        "CODIUS_POD_EGRESS",
        EgressMode,
        "open",
        "open or listed",
        "What pods reach on the internet. `open`: everything but what is denied. `listed`: nothing but"
        " what is allowed.",
    )
    pod_denied_ranges: tuple[IPv4Network | IPv6Network, ...] = declare(
        "CODIUS_POD_DENIED_RANGES",
        values.each(parse_range, most=MAX_RULES),
        "",
        f"up to {MAX_RULES} ranges such as 203.0.113.0/24, divided by commas",
        "Addresses that pods do not reach, besides private and reserved ones."
        " The most specific range decides.",
    )
    pod_allowed_ranges: tuple[IPv4Network | IPv6Network, ...] = declare(
        "CODIUS_POD_ALLOWED_RANGES",
        values.each(parse_range, most=MAX_RULES),
        "",
        f"up to {MAX_RULES} ranges such as 192.168.7.0/24, divided by commas",
        "Addresses that pods reach although a wider range around them is denied.",
    )
    pod_denied_ports: tuple[TransportPorts, ...] = declare(
        "CODIUS_POD_DENIED_PORTS",
        values.each(TransportPorts.parse, most=MAX_RULES),
        "",
        f"up to {MAX_RULES} ports such as tcp/6667 or udp/6000-6063, divided by commas",
        "Ports that pods do not reach anywhere, besides tcp/25 (mail) and tcp/5060, udp/5060 (telephony).",
    )
    pod_allowed_ports: tuple[TransportPorts, ...] = declare(
        "CODIUS_POD_ALLOWED_PORTS",
        values.each(TransportPorts.parse, most=MAX_RULES),
        "",
        f"up to {MAX_RULES} ports such as tcp/25, divided by commas",
        "Ports that pods reach although they are denied by default; with `listed`, the only ones.",
    )
    pod_connections: int = declare(
        "CODIUS_POD_CONNECTIONS",
        values.integer(0, MAX_CONNECTIONS),
        str(Limits().connections),
        f"a number up to {MAX_CONNECTIONS}; 0: no limit",
        "Connections that a pod may have open at once to the outside.",
    )
    pod_new_connections: int = declare(
        "CODIUS_POD_NEW_CONNECTIONS",
        values.integer(0, MAX_CONNECTIONS),
        str(Limits().new_connections),
        f"a number up to {MAX_CONNECTIONS}; 0: no limit",
        "Connections that a pod may begin in a second; for a moment, twice as many.",
    )
    pod_send_mbit: int = declare(
        "CODIUS_POD_SEND_MBIT",
        values.integer(0, MAX_RATE // MEGABIT),
        str(Limits().send_rate // MEGABIT),
        f"a number up to {MAX_RATE // MEGABIT}; 0: no limit",
        "Megabits that a pod may send in a second.",
    )
    pod_receive_mbit: int = declare(
        "CODIUS_POD_RECEIVE_MBIT",
        values.integer(0, MAX_RATE // MEGABIT),
        str(Limits().receive_rate // MEGABIT),
        f"a number up to {MAX_RATE // MEGABIT}; 0: no limit",
        "Megabits that a pod may receive in a second.",
    )
    proxy_workers: int = declare(
        "CODIUS_PROXY_WORKERS",
        values.integer(1, MAX_PROXY_WORKERS),
        "1",
        f"a number from 1 to {MAX_PROXY_WORKERS}",
        "Processes of the front door; more than one where visitors keep a whole core busy. 23 MB each.",
    )
    proxy_connections: int = declare(
        "CODIUS_PROXY_CONNECTIONS",
        values.integer(1, MAX_VISITORS),
        str(Visitors().connections),
        f"a number from 1 to {MAX_VISITORS}",
        "Visitors that each worker of the front door takes at once; fewer where the limit of open files"
        " allows fewer (two each). When it is full, those go that have rested longest.",
    )
    proxy_client_connections: int = declare(
        "CODIUS_PROXY_CLIENT_CONNECTIONS",
        values.integer(1, MAX_VISITORS),
        str(Visitors().per_client),
        f"a number from 1 to {MAX_VISITORS}",
        "Connections that one address, or one IPv6 network (/64), may have to each worker; more get 429."
        " Those of CODIUS_TRUSTED_PROXIES are not counted.",
    )
    proxy_pod_requests: int = declare(
        "CODIUS_PROXY_POD_REQUESTS",
        values.integer(1, MAX_VISITORS),
        str(Visitors().per_target),
        f"a number from 1 to {MAX_VISITORS}",
        "Requests, each with a connection of its own, that one pod may have under way from each worker; more"
        " get 503, so that a pod that hangs does not hang the others.",
    )
    proxy_idle_timeout: float = declare(
        "CODIUS_PROXY_IDLE_TIMEOUT",
        values.number(*SECONDS_TO_WAIT),
        f"{Timeouts().idle:g}",
        _SECONDS,
        "How long the front door keeps a visitor's connection without a request: browsers come back within"
        " a minute, or not at all.",
    )
    proxy_head_timeout: float = declare(
        "CODIUS_PROXY_HEAD_TIMEOUT",
        values.number(*SECONDS_TO_WAIT),
        f"{Timeouts().head:g}",
        _SECONDS,
        "How long a request's head may take to arrive, however it trickles in; then 408.",
    )
    proxy_body_timeout: float = declare(
        "CODIUS_PROXY_BODY_TIMEOUT",
        values.number(*SECONDS_TO_WAIT),
        f"{Timeouts().body:g}",
        _SECONDS,
        "How long a body may stand still, on its way to a pod or to a visitor; then 408, or the end.",
    )
    proxy_connect_timeout: float = declare(
        "CODIUS_PROXY_CONNECT_TIMEOUT",
        values.number(*SECONDS_TO_WAIT),
        f"{Timeouts().connect:g}",
        _SECONDS,
        "How long a pod may take to accept a connection; then 504. It is on this machine.",
    )
    proxy_first_byte_timeout: float = declare(
        "CODIUS_PROXY_FIRST_BYTE_TIMEOUT",
        values.number(*SECONDS_TO_WAIT),
        f"{Timeouts().first_byte:g}",
        _SECONDS,
        "How long a pod may take to begin its answer; then 504. The host's API has half an hour: an upload"
        " waits for its images.",
    )
    proxy_head_size: int = declare(
        "CODIUS_PROXY_HEAD_SIZE",
        values.integer(bounds.LEAST.head, bounds.MOST.head),
        str(bounds.DEFAULT.head),
        f"a number of bytes, {bounds.LEAST.head}-{bounds.MOST.head}",
        "Size of a request's head; a larger one gets 431. Browsers stay below 16 KiB.",
    )
    proxy_header_lines: int = declare(
        "CODIUS_PROXY_HEADER_LINES",
        values.integer(bounds.LEAST.fields, bounds.MOST.fields),
        str(bounds.DEFAULT.fields),
        f"a number from {bounds.LEAST.fields} to {bounds.MOST.fields}",
        "Header lines of a request; more get 431. Browsers send two dozen.",
    )
    proxy_line_size: int = declare(
        "CODIUS_PROXY_LINE_SIZE",
        values.integer(bounds.LEAST.line, bounds.MOST.line),
        str(bounds.DEFAULT.line),
        f"a number of bytes, {bounds.LEAST.line}-{bounds.MOST.line}",
        "Size of a request's target, which gets 414 when it is longer, and of one header line (431).",
    )
    proxy_chunk_line_size: int = declare(
        "CODIUS_PROXY_CHUNK_LINE_SIZE",
        values.integer(bounds.LEAST.chunk_line, bounds.MOST.chunk_line),
        str(bounds.DEFAULT.chunk_line),
        f"a number of bytes, {bounds.LEAST.chunk_line}-{bounds.MOST.chunk_line}",
        "Size of a chunk's length with its extensions, in a visitor's chunked body; a longer one gets 400.",
    )
    tls_certificates: Path | None = declare(
        "CODIUS_TLS_CERTIFICATES",
        values.optional_path,
        "",
        "an absolute path",
        "Directory of certificates; with it CODIUS_PORT speaks TLS. One folder each, with fullchain.pem and"
        " privkey.pem, as in certbot's live/; the front door's user must be able to read them. They are"
        " chosen by name, and taken up when they change.",
    )
    redirect_port: int = declare(
        "CODIUS_REDIRECT_PORT",
        values.integer(0, 65535),
        "0",
        "a port, 1-65535; 0: none",
        "Port where http is answered with the way to https; the world expects 80.",
    )
    hsts: int = declare(
        "CODIUS_HSTS",
        values.integer(0, MAX_HSTS_SECONDS),
        "0",
        "a number of seconds; 0: not said",
        "How long browsers shall come back by https only, to the host and to each pod"
        " (Strict-Transport-Security).",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = declare(
        "CODIUS_TRUSTED_PROXIES",
        values.each(ip_network),
        "",
        "IP addresses or networks, divided by commas",
        "Load balancers in front of this host that set X-Forwarded-For and X-Forwarded-Proto. From anybody"
        " else these are dropped.",
    )
    proxy_protocol: bool = declare(
        "CODIUS_PROXY_PROTOCOL",
        values.boolean,
        "false",
        "true or false",
        "true: connections from CODIUS_TRUSTED_PROXIES begin with a PROXY header, version 1 or 2.",
    )
    contact: str = declare(
        "CODIUS_CONTACT",
        values.line,
        "",
        "one line of text, such as a mail address",
        "How visitors reach you; shown on error pages.",
    )
    access_log: Path | None = declare(
        "CODIUS_ACCESS_LOG",
        values.optional_path,
        "",
        "an absolute path",
        "File of the access log, one line of JSON per request. Unset: none.",
    )
    access_log_size: int = declare(
        "CODIUS_ACCESS_LOG_SIZE",
        values.integer(1, 100_000),
        "64",
        "a number of MiB",
        "Size at which the access log is moved aside; four older files are kept.",
    )
    metrics: tuple[str, int] | None = declare(
        "CODIUS_METRICS",
        values.endpoint,
        "",
        "an IP address and a port, such as 127.0.0.1:9100",
        "Where Prometheus finds the front door's counters, at /metrics. Unset: nowhere.",
    )
    dns_port: int = declare(
        "CODIUS_DNS_PORT",
        values.integer(0, 65535),
        "5300",
        "a port, 1-65535; 0: no DNS",
        "Port of the DNS responder. The world asks on 53; the systemd unit sets that.",
    )
    chosen_dns_ip: IPv4Address | IPv6Address | None = declare(
        "CODIUS_DNS_IP",
        values.address,
        "",
        "an IPv4 or IPv6 address",
        "Address of the DNS responder. Unset: that of the front door.",
    )
    dns_nameservers: tuple[str, ...] = declare(
        "CODIUS_DNS_NAMESERVERS",
        values.each(values.name),
        "",
        "host names, divided by commas",
        "Names of the zone's name servers. Unset: ns1 below the host's name.",
    )
    dns_workers: int = declare(
        "CODIUS_DNS_WORKERS",
        values.integer(1, MAX_DNS_WORKERS),
        "1",
        "a number from 1 to 64",
        "Processes of the DNS responder; one answers some hundred thousand questions a second.",
    )
    dns_rate_limit: int = declare(
        "CODIUS_DNS_RATE_LIMIT",
        values.integer(0, 1_000_000),
        "200",
        "a number of answers per second; 0: no limit",
        "DNS answers over UDP that one network (/24, /56) gets per second, so that nobody can aim them at"
        " others. Askers with a cookie and over TCP are exempt.",
    )
    dns_zones: Path | None = declare(
        "CODIUS_DNS_ZONES",
        values.optional_path,
        "",
        "an absolute path",
        "Directory of zone files, named ZONE.zone: records of your own for the host's name, and other zones.",
    )
    dns_issuers: tuple[str, ...] = declare(
        "CODIUS_DNS_CAA",
        values.each(values.name),
        "",
        "domain names, divided by commas",
        "Certificate authorities that may issue for the host's names, such as letsencrypt.org. Unset: any.",
    )
    dns_nsid: str = declare(
        "CODIUS_DNS_NSID",
        values.identity,
        "",
        "up to 64 printable ASCII characters",
        "Name of this machine that DNS tells who asks for it (NSID, id.server). Unset: nobody is told.",
    )
    dns_metrics: tuple[str, int] | None = declare(
        "CODIUS_DNS_METRICS",
        values.endpoint,
        "",
        "an IP address and a port, such as 127.0.0.1:9153 or [::1]:9153",
        "Where the DNS responder's counters can be read by Prometheus, at /metrics. Unset: nowhere.",
    )
    dns_query_log: bool = declare(
        "CODIUS_DNS_QUERY_LOG",
        values.boolean,
        "false",
        "true or false",
        "Whether every DNS question is logged, with who asked. Slow, and about people: to find a fault.",
    )
    chosen_public_addresses: tuple[IPv4Address | IPv6Address, ...] = declare(
        "CODIUS_PUBLIC_ADDRESSES",
        values.each(ip_address),
        "",
        "IP addresses, divided by commas",
        "Addresses that the host's name and its pods' names resolve to. Unset: loopback for a host below"
        " localhost, else the address of the front door.",
    )
    admin_api: bool = declare(
        "CODIUS_ADMIN_API",
        values.boolean,
        "false",
        "true or false",
        "Whether the admin API also listens on 127.0.0.1, besides its Unix socket.",
    )
    admin_port: int = declare(
        "CODIUS_ADMIN_PORT", values.integer(1, 65535), "3001", "a port, 1-65535", "Port of the admin API."
    )
    selftest: bool = declare(
        "CODIUS_SELFTEST",
        values.boolean,
        "true",
        "true or false",
        "Whether the host uploads a sample to itself once a day, by its public address, and tells in /info"
        " how that went.",
    )
    selftest_image: str = declare(
        "CODIUS_SELFTEST_IMAGE",
        values.image,
        "",
        "an image that serves HTTP and echoes WebSocket messages on port 8080",
        "Sample of the self-test. Unset: a built-in one, for x86-64 and ARM64.",
    )
    dev: bool = declare(
        "CODIUS_DEV",
        values.boolean,
        "false",
        "true or false",
        "Development mode: the log shows every step, and peers may be hosts below localhost, also by http.",
    )

    @property
    def public_uri(self) -> PublicUri:
        """As chosen, or the loopback name with the front door's port."""
        return self.chosen_public_uri or PublicUri("http", "codius.localhost", self.port)

    @property
    def bind_ip(self) -> IPv4Address | IPv6Address:
        """A host that nobody pays for stays on loopback unless its operator said otherwise."""
        return self.chosen_bind_ip or (EVERYWHERE if self.payments else LOOPBACK)

    @property
    def dns_ip(self) -> IPv4Address | IPv6Address:
        """As chosen, or where the front door is."""
        return self.chosen_dns_ip or self.bind_ip

    @property
    def dns_addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Where the responder listens: everywhere means IPv6 too, when the host has an address there."""
        everywhere = self.dns_ip == EVERYWHERE and any(ip.version == 6 for ip in self.public_addresses)
        return (self.dns_ip, ip_address("::")) if everywhere else (self.dns_ip,)

    @property
    def public_addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """What the host's names resolve to; empty when only the operator can know it."""
        if self.chosen_public_addresses:
            return self.chosen_public_addresses
        if is_loopback_name(self.public_uri.host):
            return (LOOPBACK, ip_address("::1"))
        return () if self.bind_ip.is_unspecified else (self.bind_ip,)

    @property
    def database(self) -> Path:
        """The SQLite file: everything that is wanted."""
        return self.root / "codius.db"

    @property
    def key_file(self) -> Path:
        """The key of the private variables, mode 0600."""
        return self.root / "secret.key"

    @property
    def pod_files(self) -> Path:
        """resolv.conf and hosts of each pod."""
        return self.root / "pods"

    @property
    def api_socket(self) -> Path:
        """The public API, behind the front door."""
        return self.run / "api.sock"

    @property
    def admin_socket(self) -> Path:
        """The admin API, for root and the node's own user."""
        return self.run / "admin.sock"

    @property
    def feed_socket(self) -> Path:
        """The route table, for the front door's workers."""
        return self.run / "feed.sock"

    @property
    def texts_socket(self) -> Path:
        """The TXT values of running challenges, for the DNS responder's workers."""
        return self.run / "texts.sock"


DECLARED: Final[Mapping[str, Setting]] = {f.name: f.metadata["setting"] for f in fields(Settings)}
"""The declarations by attribute, in the order of the docs table."""


def load(environ: Mapping[str, str]) -> Settings:
    """Settings from an environment; SettingsError with one sentence per bad value."""
    return Settings(**read(DECLARED, environ))


def find_unknown(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like settings of ours and are none: most often a typing error."""
    known = {name for setting in DECLARED.values() for name in setting.names}
    return sorted(name for name in environ if name.startswith("CODIUS_") and name not in known)
