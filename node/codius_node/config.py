"""The settings: each declared once, read from environment variables, checked before anything starts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from codius_netpolicy.policy import (
    MAX_RATE,
    MAX_RULES,
    UNIQUE_LOCAL,
    EgressMode,
    Limits,
    TransportPorts,
    parse_range,
)
from codius_node.errors import SettingsError

T = TypeVar("T")

HOST_PATTERN: Final = re.compile(
    r"(?=.{1,190}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
)
"""A host name that leaves room for a 52-character label and its dot within DNS's 253 (RFC 1035 2.3.4)."""

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
MAX_PROXY_WORKERS: Final = 64
"""Workers; more than the CPUs of any machine this is meant for is a typing error."""
MAX_DNS_WORKERS: Final = 64
"""The same for the DNS responder's."""
MAX_DNS_NSID: Final = 64
"""Bytes; it goes into answers over UDP."""
MAX_HSTS_SECONDS: Final = 2 * 365 * 86400
"""What the browsers' preload list asks for at most."""
MAX_CONTACT: Final = 200
"""Characters of the operator's address on error pages."""
POD_POOL_PREFIXES: Final = range(16, 29)
"""A pool of /16 (65 000 pods) down to /28 (a dozen)."""
MAX_CONNECTIONS: Final = 100_000
"""Flows of one pod, at once or begun in a second: some kernels track no more of all pods together."""
MEGABIT: Final = 1_000_000
"""Bits."""


@dataclass(frozen=True, slots=True)
class PublicUri:
    """The address under which the world sees this host; pods live one label below it."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Host, with the port where it is not the scheme's own."""
        return self.host if self.port == DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        """`http://codius.localhost:3000`: no slash at the end."""
        return f"{self.scheme}://{self.netloc}"

    def pod_url(self, manifest_hash: str) -> str:
        """Where visitors find the pod of this manifest."""
        return f"{self.scheme}://{manifest_hash}.{self.netloc}/"

    def __str__(self) -> str:
        return self.origin


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting: what --help, the docs table and the templates are made from."""

    name: str
    accepts: str
    default: str
    help: str
    parse: Callable[[str], object]
    aliases: tuple[str, ...] = ()


def _text(value: str) -> str:
    return value


def _boolean(value: str) -> bool:
    lowered = value.lower()
    if lowered in {"true", "1", "yes", "on"}:
        return True
    if lowered in {"false", "0", "no", "off"}:
        return False
    raise ValueError


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise ValueError
        return int(value)

    return parse


def _price(value: str) -> Decimal:
    try:
        price = Decimal(value)
    except InvalidOperation as error:
        raise ValueError from error
    if not price.is_finite() or not 0 <= price <= 10**12:
        raise ValueError
    return price


def _fraction(value: str) -> float:
    fraction = float(value)
    if not 0 < fraction <= 1:
        raise ValueError
    return fraction


def _path(value: str) -> Path:
    path = Path(value)
    if not path.is_absolute():
        raise ValueError
    return path


def _optional_path(value: str) -> Path | None:
    return _path(value) if value else None


def _identity(value: str) -> str:
    if len(value) > MAX_DNS_NSID or not value.isascii() or not value.isprintable():
        raise ValueError
    return value


def _socket(value: str) -> Path:
    # podman and docker people write unix:///run/podman/podman.sock
    return _path(value.removeprefix("unix://"))


def is_loopback_name(host: str) -> bool:
    """The name localhost and those below it, which are this very machine (RFC 6761 section 6.3)."""
    return host == "localhost" or host.endswith(".localhost")


def parse_public_uri(value: str) -> PublicUri:
    """An http(s) URI with a host name and nothing behind it; ValueError otherwise."""
    parts = urlsplit(value)
    host = (parts.hostname or "").lower()
    if parts.scheme not in DEFAULT_PORTS or parts.username is not None or parts.password is not None:
        raise ValueError
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError
    if not HOST_PATTERN.fullmatch(host) or host.rpartition(".")[2].isdigit():
        raise ValueError  # a last label of digits would be an IPv4 address: no names below it
    return PublicUri(parts.scheme, host, parts.port or DEFAULT_PORTS[parts.scheme])


def _public_uri(value: str) -> PublicUri | None:
    return parse_public_uri(value) if value else None


def _address(value: str) -> IPv4Address | IPv6Address | None:
    return ip_address(value) if value else None


def _words(value: str) -> tuple[str, ...]:
    """A JSON list of strings, or words divided by commas or spaces."""
    if value.startswith("["):
        words = json.loads(value)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError
        return tuple(words)
    return tuple(word for word in re.split(r"[,\s]+", value) if word)


class _WordError(ValueError):
    """One word of a list that cannot be used."""


def _each(parse: Callable[[str], T], *, most: int | None = None) -> Callable[[str], tuple[T, ...]]:
    def parse_words(value: str) -> tuple[T, ...]:
        words = _words(value)
        if most is not None and len(words) > most:
            raise ValueError
        return tuple(map(parse_word, words))

    def parse_word(word: str) -> T:
        try:
            return parse(word)
        except ValueError:
            raise _WordError(word) from None

    return parse_words


def _uri(word: str) -> str:
    return parse_public_uri(word).origin


def _name(word: str) -> str:
    name = word.lower().rstrip(".")
    if not HOST_PATTERN.fullmatch(name):
        raise ValueError
    return name


def _pool(value: str) -> IPv4Network:
    network = IPv4Network(value)
    if not network.is_private or network.prefixlen not in POD_POOL_PREFIXES:
        raise ValueError
    return network


def _pool6(value: str) -> IPv6Network | None:
    if not value:
        return None
    network = IPv6Network(value)
    if not network.subnet_of(UNIQUE_LOCAL):
        raise ValueError
    return network


def _endpoint(value: str) -> tuple[str, int] | None:
    """`127.0.0.1:9100` or `[::1]:9100`."""
    if not value:
        return None
    host, colon, port = value.rpartition(":")
    if not colon or host.startswith("[") != host.endswith("]") or (":" in host and host[0] != "["):
        raise ValueError
    return str(ip_address(host.strip("[]"))), _integer(1, 65535)(port)


def _line(value: str) -> str:
    if not value.isprintable() or len(value) > MAX_CONTACT:
        raise ValueError
    return value


def _image(value: str) -> str:
    # its whole grammar is the manifest's; here only what could not be one is kept out
    if not re.fullmatch(r"[\x21-\x7e]{0,512}", value):
        raise ValueError
    return value


def _payments(value: str) -> str:
    if value not in {"", "free"}:
        raise ValueError
    return value


def _setting(
    name: str,
    parse: Callable[[str], T],
    default: str,
    accepts: str,
    help: str,
    *,
    aliases: tuple[str, ...] = (),
) -> T:
    setting = Setting(name, accepts, default, help, parse, aliases)
    value: T = field(default=parse(default), metadata={"setting": setting})
    return value


LOOPBACK: Final = ip_address("127.0.0.1")
EVERYWHERE: Final = ip_address("0.0.0.0")  # noqa: S104  asked for by the operator's choice of a payment method


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator decided. Build it with `load`; the defaults are those of the table."""

    port: int = _setting(
        "CODIUS_PORT", _integer(1, 65535), "3000", "a port, 1-65535", "Port of the front door."
    )
    chosen_bind_ip: IPv4Address | IPv6Address | None = _setting(
        "CODIUS_BIND_IP",
        _address,
        "",
        "an IPv4 or IPv6 address",
        "Address of the front door. Unset: 127.0.0.1 while no payment method is chosen, else 0.0.0.0.",
    )
    chosen_public_uri: PublicUri | None = _setting(
        "CODIUS_PUBLIC_URI",
        _public_uri,
        "",
        "http:// or https:// and a host name, such as https://codius.example.com",
        "The host's public address; pods answer one label below it."
        " Unset: http://codius.localhost:$CODIUS_PORT.",
    )
    root: Path = _setting(
        "CODIUS_ROOT",
        _path,
        "/var/lib/codius",
        "an absolute path",
        "Directory of the database and its key.",
    )
    run: Path = _setting(
        "CODIUS_RUN", _path, "/run/codius", "an absolute path", "Directory of the node's Unix sockets."
    )
    cost_per_month: Decimal = _setting(
        "CODIUS_COST_PER_MONTH",
        _price,
        "10",
        "a number from 0",
        "Price of a pod for a month (2628000 s), in the currency's unit.",
    )
    payments: str = _setting(
        "CODIUS_PAYMENTS",
        _payments,
        "",
        "free, or nothing",
        "How clients pay. `free`: nobody pays, and the host serves the world all the same."
        " Unset: free, on loopback only.",
    )
    max_memory_fraction: float = _setting(
        "CODIUS_MAX_MEMORY_FRACTION",
        _fraction,
        "0.75",
        "a number above 0, up to 1",
        "Share of the machine's memory that may be in use before uploads are refused.",
    )
    additional_host_info: bool = _setting(
        "CODIUS_ADDITIONAL_HOST_INFO",
        _boolean,
        "true",
        "true or false",
        "Whether /info also tells memory, uptime, load and the number of pods.",
    )
    bootstrap_peers: tuple[str, ...] = _setting(
        "CODIUS_BOOTSTRAP_PEERS",
        _each(_uri),
        "[]",
        'a JSON list of URIs, such as ["https://codius.example.com"]',
        "Hosts known from the start.",
    )
    engine_socket: Path = _setting(
        "CODIUS_ENGINE_SOCKET",
        _socket,
        "/run/podman/podman.sock",
        "an absolute path",
        "Podman's API socket. Where none is there, `codiusd run` starts a podman service of its own.",
        aliases=("CODIUS_HYPER_SOCKET",),
    )
    oci_runtime: str = _setting(
        "CODIUS_OCI_RUNTIME",
        _text,
        "",
        "crun, runc, runsc or krun",
        "Runtime of the podman service that `codiusd run` starts. Unset: what fits the machine's cgroups.",
    )
    noop: bool = _setting(
        "CODIUS_HYPER_NOOP",
        _boolean,
        "false",
        "true or false",
        "true: no container is started and the kernel is left alone. To try the API anywhere.",
    )
    allow_tags: bool = _setting(
        "CODIUS_ALLOW_TAGS",
        _boolean,
        "false",
        "true or false",
        "Whether manifests may name images by tag. The hash then no longer names what runs.",
    )
    pod_network: IPv4Network = _setting(
        "CODIUS_POD_NETWORK",
        _pool,
        "10.77.0.0/16",
        "a private IPv4 network from /16 to /28",
        "Addresses of the pods.",
    )
    pod_network_6: IPv6Network | None = _setting(
        "CODIUS_POD_NETWORK_6",
        _pool6,
        "",
        "a unique local IPv6 network, such as fd77::/112",
        "IPv6 addresses of the pods, translated on their way out (NAT66). Unset: pods have no IPv6.",
    )
    chosen_pod_resolvers: tuple[IPv4Address | IPv6Address, ...] = _setting(
        "CODIUS_POD_RESOLVERS",
        _each(ip_address),
        "",
        "IP addresses, divided by commas",
        "DNS resolvers of the pods, reached on port 53 wherever they are. Unset: those of this host.",
    )
    pod_egress: EgressMode = _setting(
        "CODIUS_POD_EGRESS",
        EgressMode,
        "open",
        "open or listed",
        "What pods reach on the internet. `open`: everything but what is denied. `listed`: nothing but"
        " what is allowed.",
    )
    pod_denied_ranges: tuple[IPv4Network | IPv6Network, ...] = _setting(
        "CODIUS_POD_DENIED_RANGES",
        _each(parse_range, most=MAX_RULES),
        "",
        f"up to {MAX_RULES} ranges such as 203.0.113.0/24, divided by commas",
        "Addresses that pods do not reach, besides private and reserved ones."
        " The most specific range decides.",
    )
    pod_allowed_ranges: tuple[IPv4Network | IPv6Network, ...] = _setting(
        "CODIUS_POD_ALLOWED_RANGES",
        _each(parse_range, most=MAX_RULES),
        "",
        f"up to {MAX_RULES} ranges such as 192.168.7.0/24, divided by commas",
        "Addresses that pods reach although a wider range around them is denied.",
    )
    pod_denied_ports: tuple[TransportPorts, ...] = _setting(
        "CODIUS_POD_DENIED_PORTS",
        _each(TransportPorts.parse, most=MAX_RULES),
        "",
        f"up to {MAX_RULES} ports such as tcp/6667 or udp/6000-6063, divided by commas",
        "Ports that pods do not reach anywhere, besides tcp/25 (mail) and tcp/5060, udp/5060 (telephony).",
    )
    pod_allowed_ports: tuple[TransportPorts, ...] = _setting(
        "CODIUS_POD_ALLOWED_PORTS",
        _each(TransportPorts.parse, most=MAX_RULES),
        "",
        f"up to {MAX_RULES} ports such as tcp/25, divided by commas",
        "Ports that pods reach although they are denied by default; with `listed`, the only ones.",
    )
    pod_connections: int = _setting(
        "CODIUS_POD_CONNECTIONS",
        _integer(0, MAX_CONNECTIONS),
        str(Limits().connections),
        f"a number up to {MAX_CONNECTIONS}; 0: no limit",
        "Connections that a pod may have open at once to the outside.",
    )
    pod_new_connections: int = _setting(
        "CODIUS_POD_NEW_CONNECTIONS",
        _integer(0, MAX_CONNECTIONS),
        str(Limits().new_connections),
        f"a number up to {MAX_CONNECTIONS}; 0: no limit",
        "Connections that a pod may begin in a second; for a moment, twice as many.",
    )
    pod_send_mbit: int = _setting(
        "CODIUS_POD_SEND_MBIT",
        _integer(0, MAX_RATE // MEGABIT),
        str(Limits().send_rate // MEGABIT),
        f"a number up to {MAX_RATE // MEGABIT}; 0: no limit",
        "Megabits that a pod may send in a second.",
    )
    pod_receive_mbit: int = _setting(
        "CODIUS_POD_RECEIVE_MBIT",
        _integer(0, MAX_RATE // MEGABIT),
        str(Limits().receive_rate // MEGABIT),
        f"a number up to {MAX_RATE // MEGABIT}; 0: no limit",
        "Megabits that a pod may receive in a second.",
    )
    proxy_workers: int = _setting(
        "CODIUS_PROXY_WORKERS",
        _integer(1, MAX_PROXY_WORKERS),
        "1",
        f"a number from 1 to {MAX_PROXY_WORKERS}",
        "Processes of the front door; more than one where visitors keep a whole core busy. 23 MB each.",
    )
    tls_certificates: Path | None = _setting(
        "CODIUS_TLS_CERTIFICATES",
        _optional_path,
        "",
        "an absolute path",
        "Directory of certificates; with it CODIUS_PORT speaks TLS. One folder each, with fullchain.pem and"
        " privkey.pem, as in certbot's live/; the front door's user must be able to read them. They are"
        " chosen by name, and taken up when they change.",
    )
    redirect_port: int = _setting(
        "CODIUS_REDIRECT_PORT",
        _integer(0, 65535),
        "0",
        "a port, 1-65535; 0: none",
        "Port where http is answered with the way to https; the world expects 80.",
    )
    hsts: int = _setting(
        "CODIUS_HSTS",
        _integer(0, MAX_HSTS_SECONDS),
        "0",
        "a number of seconds; 0: not said",
        "How long browsers shall come back by https only, to the host and to each pod"
        " (Strict-Transport-Security).",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = _setting(
        "CODIUS_TRUSTED_PROXIES",
        _each(ip_network),
        "",
        "IP addresses or networks, divided by commas",
        "Load balancers in front of this host that set X-Forwarded-For and X-Forwarded-Proto. From anybody"
        " else these are dropped.",
    )
    proxy_protocol: bool = _setting(
        "CODIUS_PROXY_PROTOCOL",
        _boolean,
        "false",
        "true or false",
        "true: connections from CODIUS_TRUSTED_PROXIES begin with a PROXY header, version 1 or 2.",
    )
    contact: str = _setting(
        "CODIUS_CONTACT",
        _line,
        "",
        "one line of text, such as a mail address",
        "How visitors reach you; shown on error pages.",
    )
    access_log: Path | None = _setting(
        "CODIUS_ACCESS_LOG",
        _optional_path,
        "",
        "an absolute path",
        "File of the access log, one line of JSON per request. Unset: none.",
    )
    access_log_size: int = _setting(
        "CODIUS_ACCESS_LOG_SIZE",
        _integer(1, 100_000),
        "64",
        "a number of MiB",
        "Size at which the access log is moved aside; four older files are kept.",
    )
    metrics: tuple[str, int] | None = _setting(
        "CODIUS_METRICS",
        _endpoint,
        "",
        "an IP address and a port, such as 127.0.0.1:9100",
        "Where Prometheus finds the front door's counters, at /metrics. Unset: nowhere.",
    )
    dns_port: int = _setting(
        "CODIUS_DNS_PORT",
        _integer(0, 65535),
        "5300",
        "a port, 1-65535; 0: no DNS",
        "Port of the DNS responder. The world asks on 53; the systemd unit sets that.",
    )
    chosen_dns_ip: IPv4Address | IPv6Address | None = _setting(
        "CODIUS_DNS_IP",
        _address,
        "",
        "an IPv4 or IPv6 address",
        "Address of the DNS responder. Unset: that of the front door.",
    )
    dns_nameservers: tuple[str, ...] = _setting(
        "CODIUS_DNS_NAMESERVERS",
        _each(_name),
        "",
        "host names, divided by commas",
        "Names of the zone's name servers. Unset: ns1 below the host's name.",
    )
    dns_workers: int = _setting(
        "CODIUS_DNS_WORKERS",
        _integer(1, MAX_DNS_WORKERS),
        "1",
        "a number from 1 to 64",
        "Processes of the DNS responder; one answers some hundred thousand questions a second.",
    )
    dns_rate_limit: int = _setting(
        "CODIUS_DNS_RATE_LIMIT",
        _integer(0, 1_000_000),
        "200",
        "a number of answers per second; 0: no limit",
        "DNS answers over UDP that one network (/24, /56) gets per second, so that nobody can aim them at"
        " others. Askers with a cookie and over TCP are exempt.",
    )
    dns_zones: Path | None = _setting(
        "CODIUS_DNS_ZONES",
        _optional_path,
        "",
        "an absolute path",
        "Directory of zone files, named ZONE.zone: records of your own for the host's name, and other zones.",
    )
    dns_issuers: tuple[str, ...] = _setting(
        "CODIUS_DNS_CAA",
        _each(_name),
        "",
        "domain names, divided by commas",
        "Certificate authorities that may issue for the host's names, such as letsencrypt.org. Unset: any.",
    )
    dns_nsid: str = _setting(
        "CODIUS_DNS_NSID",
        _identity,
        "",
        "up to 64 printable ASCII characters",
        "Name of this machine that DNS tells who asks for it (NSID, id.server). Unset: nobody is told.",
    )
    dns_metrics: tuple[str, int] | None = _setting(
        "CODIUS_DNS_METRICS",
        _endpoint,
        "",
        "an IP address and a port, such as 127.0.0.1:9153 or [::1]:9153",
        "Where the DNS responder's counters can be read by Prometheus, at /metrics. Unset: nowhere.",
    )
    dns_query_log: bool = _setting(
        "CODIUS_DNS_QUERY_LOG",
        _boolean,
        "false",
        "true or false",
        "Whether every DNS question is logged, with who asked. Slow, and about people: to find a fault.",
    )
    chosen_public_addresses: tuple[IPv4Address | IPv6Address, ...] = _setting(
        "CODIUS_PUBLIC_ADDRESSES",
        _each(ip_address),
        "",
        "IP addresses, divided by commas",
        "Addresses that the host's name and its pods' names resolve to. Unset: loopback for a host below"
        " localhost, else the address of the front door.",
    )
    admin_api: bool = _setting(
        "CODIUS_ADMIN_API",
        _boolean,
        "false",
        "true or false",
        "Whether the admin API also listens on 127.0.0.1, besides its Unix socket.",
    )
    admin_port: int = _setting(
        "CODIUS_ADMIN_PORT", _integer(1, 65535), "3001", "a port, 1-65535", "Port of the admin API."
    )
    selftest: bool = _setting(
        "CODIUS_SELFTEST",
        _boolean,
        "true",
        "true or false",
        "Whether the host uploads a sample to itself once a day, by its public address, and tells in /info"
        " how that went.",
    )
    selftest_image: str = _setting(
        "CODIUS_SELFTEST_IMAGE",
        _image,
        "",
        "an image that serves HTTP and echoes WebSocket messages on port 8080",
        "Sample of the self-test. Unset: a built-in one, for x86-64 and ARM64.",
    )
    dev: bool = _setting(
        "CODIUS_DEV",
        _boolean,
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
    values: dict[str, Any] = {}
    problems: list[str] = []
    for attribute, setting in DECLARED.items():
        given = [name for name in (setting.name, *setting.aliases) if environ.get(name, "").strip()]
        if not given:
            continue
        texts = {environ[name].strip() for name in given}
        if len(texts) > 1:
            problems.append(f"{' and '.join(given)} are two names of one setting and differ; keep one.")
            continue
        try:
            values[attribute] = setting.parse(texts.pop())
        except (ValueError, ArithmeticError) as error:
            word = f" ({error.args[0]!r} is the trouble)" if isinstance(error, _WordError) else ""
            problems.append(f"{given[0]}={environ[given[0]]!r} cannot be used{word}: give {setting.accepts}.")
    if problems:
        raise SettingsError(
            "\n".join(problems),
            hint="Correct the variable (or unset it for its default) and start again;"
            " `codiusd --help` lists them all.",
        )
    return Settings(**values)


def find_unknown(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like settings of ours and are none: most often a typing error."""
    known = {name for setting in DECLARED.values() for name in (setting.name, *setting.aliases)}
    return sorted(name for name in environ if name.startswith("CODIUS_") and name not in known)


def render_env() -> str:
    """The environment file of an operator: every setting, commented out at its default."""
    lines = [
        "# Settings of Codius Host. Remove the # in front of a line to change it.",
        "# Generated from node/codius_node/config.py by `make docs`.",
    ]
    for setting in DECLARED.values():
        lines += ["", f"# {setting.help}", f"# ({setting.accepts})", f"#{setting.name}={setting.default}"]
    return "\n".join(lines) + "\n"


def render_table() -> str:
    """The Markdown table of the docs."""
    rows = ["| setting | default | accepts | what it does |", "|---|---|---|---|"]
    for setting in DECLARED.values():
        names = "<br>".join(f"`{name}`" for name in (setting.name, *setting.aliases))
        default = f"`{setting.default}`" if setting.default else ""
        rows.append(f"| {names} | {default} | {setting.accepts} | {setting.help} |")
    return "\n".join(rows) + "\n"


def render_help() -> str:
    """The settings for --help, as plain text."""
    width = max(len(setting.name) for setting in DECLARED.values())
    lines = []
    for setting in DECLARED.values():
        default = f" [{setting.default}]" if setting.default else ""
        lines.append(f"  {setting.name:<{width}}  {setting.help}{default}")
    return "\n".join(lines)
