"""The proxy's settings: frozen, made once by whoever starts it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


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
    drain: float = 10.0  # from the stop signal to the end of the last request

    def shortest(self) -> float:
        return min(
            self.head, self.idle, self.body, self.connect, self.first_byte, self.stream, self.tunnel,
            self.half_close, self.linger, self.pooled,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one worker takes on."""

    connections: int = 8192  # visitors at once; the file limit may lower it (two files per visitor)
    per_client: int = 1024  # of these from one address, or one IPv6 /64; trusted proxies are not counted
    per_target: int = 512  # requests at once to one pod, so that one cannot use up all connections
    to_api: int = 256  # the same for the host's own API
    idle_per_target: int = 32  # kept-alive connections to one pod that nobody uses


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
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)

    def url(self, label: str | None = None) -> str:
        """The address of the host, or of a name directly under it, as visitors write it."""
        port = self.public_port if self.public_port is not None else self.port
        suffix = "" if port == DEFAULT_PORTS.get(self.scheme) else f":{port}"
        name = self.zone if label is None else f"{label}.{self.zone}"
        return f"{self.scheme}://{name}{suffix}/"
