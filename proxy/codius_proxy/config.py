"""The proxy's settings: frozen, made once by whoever starts it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from codius_proxy.bounds import Bounds

if TYPE_CHECKING:  # who only wants the defaults loads nothing else
    from codius_proxy.identity import Network

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class SetupError(Exception):
    """Something the settings name is of no use."""


class AddressError(SetupError):
    """An address that cannot be listened on."""


class LogError(SetupError):
    """An access log that cannot be written."""


class CertificateError(SetupError):
    """A certificate that cannot be served."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each side may keep the other waiting, in seconds."""

    head: float = 15.0  # from the first byte of a request to the end of its head
    idle: float = 60.0  # a kept-alive visitor between two requests
    body: float = 30.0  # without one byte of progress of a body somebody should read or send
    connect: float = 5.0  # to a pod or to the API: both are on this machine
    first_byte: float = 60.0  # from the complete request to the answer's head
    api_first_byte: float = 1800.0  # the same for the host's API: an upload waits for its images
    gone: float = 2.0  # what begun answers get when their pod's route goes; the node drains for 1 s
    stream: float = 3600.0  # a started answer that says nothing: event streams and followed logs
    tunnel: float = 3600.0  # an upgraded connection without a byte either way
    half_close: float = 5.0  # a visitor that shut its side: waiting for an answer, or gone
    linger: float = 2.0  # after our last byte, so that unread bytes do not reset it away
    pooled: float = 15.0  # a kept-alive connection to a pod nobody uses
    routes: float = 2.0  # a worker that knows no routes yet waits for them before it takes visitors
    parting: float = 1.0  # a kept-alive visitor that says nothing, when its worker is to end
    drain: float = 10.0  # from the stop signal to the end of the last request
    retire: float = 3600.0  # the same for a worker whose place another one has taken

    def shortest(self) -> float:
        return min(
            self.head, self.idle, self.body, self.connect, self.first_byte, self.stream, self.tunnel,
            self.half_close, self.linger, self.pooled,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one worker takes on."""

    connections: int = 16384  # visitors at once; the file limit may lower it (two files per visitor)
    per_client: int = 1024  # of these from one address, or one IPv6 /64; trusted proxies are not counted
    per_target: int = 512  # requests at once to one pod, so that one cannot use up all connections
    to_api: int = 256  # the same for the host's own API
    # Kept-alive connections to one pod that nobody uses. Fewer than a busy moment needs cost more than they
    # save: each is closed and made again, for ten times what a request costs.
    idle_per_target: int = 128
    # Bytes within the body time-out. Who sends or reads less is not slow but holds a connection: a modem of
    # 1990 is fifty times faster.
    progress: int = 512


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Everything the proxy has to know, and nothing it could find out itself."""

    zone: str  # the host's own name, lower-case, without a final dot; pods are directly under it
    listen_address: str  # an IP address literal
    port: int
    api_socket: Path
    feed_socket: Path
    workers: int = 1
    scheme: str = "http"  # what visitors use to reach us, also when something else ends their TLS
    public_port: int | None = None  # the port visitors use, when it is not `port`
    certificates: Path | None = None  # a directory; with it `port` speaks TLS
    redirect_port: int | None = None  # where http is answered with the way to https
    hsts: int = 0  # seconds for which browsers come back by https only; 0: not said
    trusted_proxies: tuple[Network, ...] = ()  # whose word about their clients counts
    proxy_protocol: bool = False  # connections of trusted proxies begin with a PROXY header
    contact: str = ""  # how visitors reach the operator
    access_log: Path | None = None
    access_log_bytes: int = 64 * 1024 * 1024  # of one file, before it is moved aside
    metrics: tuple[str, int] | None = None  # address and port for Prometheus
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    bounds: Bounds = field(default_factory=Bounds)

    @property
    def log_settings(self) -> tuple[Path | None, int]:
        """What the access log's writer is made with."""
        return self.access_log, self.access_log_bytes

    def changed_to(self, other: ProxyConfig) -> ProxyConfig:
        """`other`, for a front door that runs with this; SetupError where that takes a restart.

        What it listens on was opened once, with rights that it no longer has.
        """
        for what, ours, theirs in (
            ("address", self.listen_address, other.listen_address),
            ("port", self.port, other.port),
            ("port of the redirect", self.redirect_port, other.redirect_port),
            ("address of the metrics", self.metrics, other.metrics),
        ):
            if ours != theirs:
                raise SetupError(f"the {what} is {ours} and would become {theirs}, which takes a restart")
        return other

    def port_suffix(self, scheme: str) -> str:
        """`:8443`, or nothing where visitors need not say the port."""
        port = self.public_port if self.public_port is not None else self.port
        return "" if port == DEFAULT_PORTS.get(scheme) else f":{port}"

    def url(self, label: str | None = None) -> str:
        """The address of the host, or of a name directly under it, as visitors write it."""
        name = self.zone if label is None else f"{label}.{self.zone}"
        return f"{self.scheme}://{name}{self.port_suffix(self.scheme)}/"
