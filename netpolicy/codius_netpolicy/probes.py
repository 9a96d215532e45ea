"""Harmless probes from inside a live pod: what it reaches, beside what the policy says it should."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from codius_netpolicy.conntrack import Flow
from codius_netpolicy.forbidden import Forbidden
from codius_netpolicy.policy import DNS_PORT, Policy, Transport
from codius_netpolicy.ranges import Address

ANSWER_SECONDS: Final = 1.5
"""For all probes together; what is let through answers in milliseconds, or crosses an ocean in 0.3 s."""
MAX_OTHERS: Final = 3
"""Other pods that are tried: one would do, were it sure to be up."""
MAX_HOST_ADDRESSES: Final = 8
"""Addresses of the host that are tried."""
WEB_PORT: Final = 80
MAIL_PORT: Final = 25
NOBODY: Final = IPv4Address("192.0.2.1")
"""TEST-NET-1 (RFC 5737): what gets out to it by mistake disturbs nobody."""
NOBODY6: Final = IPv6Address("2001:db8::1")
METADATA: Final = IPv4Address("169.254.169.254")
"""Where clouds answer with a machine's credentials."""
PING: Final = "ping"
DNS_QUERY: Final = struct.pack("!6H", 0x4344, 0x0100, 1, 0, 0, 0) + b"\0" + struct.pack("!2H", 2, 1)
"""`. NS`, as every resolver can answer it (RFC 1035 4.1)."""
ECHO_REQUEST: Final = bytes.fromhex("0800 b2b2 4344 0001".replace(" ", ""))
"""ICMP type 8, its checksum, identifier and sequence (RFC 792)."""


class Verdict(StrEnum):
    """Whether something answered."""

    REACHED = "reached"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing a pod tries. `transport` is tcp, udp or ping."""

    name: str
    transport: str
    target: Address
    port: int
    expected: Verdict


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a probe; `detail` says how."""

    name: str
    expected: Verdict
    found: Verdict
    detail: str

    @property
    def ok(self) -> bool:
        return self.expected is self.found


def plan(policy: Policy, others: Sequence[IPv4Address], host: Sequence[IPv4Address]) -> tuple[Probe, ...]:
    """What to try from a pod: what must work first, then what must not."""
    return (*_plan_allowed(policy), *_plan_denied(policy, others, host))


def run(probes: Sequence[Probe]) -> tuple[Result, ...]:
    """All at once, in the network namespace of the calling thread, which may open raw sockets."""
    found: dict[int, str | None] = {}
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for number, probe in enumerate(probes):
            try:
                attempt = stack.enter_context(_begin(probe))
            except OSError as error:
                found[number] = _explain(error)
                continue
            events = selectors.EVENT_WRITE if probe.transport == Transport.TCP else selectors.EVENT_READ
            selector.register(attempt, events, number)
        deadline = time.monotonic() + ANSWER_SECONDS
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                found[key.data] = _read(key.fileobj, probes[key.data])  # type: ignore[arg-type]
                selector.unregister(key.fileobj)
    silent = f"no answer in {ANSWER_SECONDS} s"
    return tuple(_judge(probe, found.get(number, silent)) for number, probe in enumerate(probes))


def _plan_allowed(policy: Policy) -> Iterator[Probe]:
    yield Probe("the gateway, by ping", PING, policy.gateway, 0, Verdict.REACHED)
    for resolver in policy.resolvers:
        if resolver.version == 4 or policy.pool6 is not None:
            for transport in Transport:
                name = f"the resolver {resolver}, by {transport}"
                yield Probe(name, transport, resolver, DNS_PORT, Verdict.REACHED)


def _plan_denied(
    policy: Policy, others: Sequence[IPv4Address], host: Sequence[IPv4Address]
) -> Iterator[Probe]:
    forbidden = Forbidden(policy, 4)
    pod = policy.pool[1]

    def denied(target: Address, port: int) -> bool:
        return Flow(pod, target, Transport.TCP.number, port) in forbidden

    for other in others[:MAX_OTHERS]:
        for transport in Transport:
            yield Probe(f"the pod {other}, by {transport}", transport, other, WEB_PORT, Verdict.STOPPED)
    own = {service.address for service in policy.openings}
    for address in [a for a in host if a not in own][:MAX_HOST_ADDRESSES]:
        yield Probe(f"the host at {address}", Transport.TCP, address, WEB_PORT, Verdict.STOPPED)
    if denied(METADATA, WEB_PORT):
        yield Probe("cloud metadata", Transport.TCP, METADATA, WEB_PORT, Verdict.STOPPED)
    for network in policy.denied_ranges:
        # A pod's 127.0.0.1 is its own.
        if network.version == 4 and not network.is_loopback and denied(target := network[1], WEB_PORT):
            yield Probe(f"the range {network}", Transport.TCP, target, WEB_PORT, Verdict.STOPPED)
    for resolver in policy.resolvers:
        if resolver.version == 4 and denied(resolver, WEB_PORT):
            name = f"another port of the resolver {resolver}"
            yield Probe(name, Transport.TCP, resolver, WEB_PORT, Verdict.STOPPED)
    if denied(NOBODY, MAIL_PORT):
        yield Probe("mail to anybody", Transport.TCP, NOBODY, MAIL_PORT, Verdict.STOPPED)
    if policy.pool6 is None:
        yield Probe("IPv6", Transport.TCP, NOBODY6, WEB_PORT, Verdict.STOPPED)


def _begin(probe: Probe) -> socket.socket:
    family = socket.AF_INET if probe.target.version == 4 else socket.AF_INET6
    if probe.transport == PING:
        attempt = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    else:
        kind = socket.SOCK_STREAM if probe.transport == Transport.TCP else socket.SOCK_DGRAM
        attempt = socket.socket(family, kind)
    try:
        attempt.setblocking(False)
        code = attempt.connect_ex((str(probe.target), probe.port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, errno.errorcode.get(code, ""))
        if probe.transport != Transport.TCP:
            attempt.send(ECHO_REQUEST if probe.transport == PING else DNS_QUERY)
    except BaseException:
        attempt.close()
        raise
    return attempt


def _read(attempt: socket.socket, probe: Probe) -> str | None:
    """None when the target answered, be it with a refusal; else how it was kept from it."""
    if probe.transport == Transport.TCP:
        code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return _explain(OSError(code, "")) if code else None
    try:
        attempt.recv(2048)
    except OSError as error:
        return _explain(error)
    return None


def _explain(error: OSError) -> str | None:
    if error.errno == errno.ECONNREFUSED:
        return None
    sentences: Mapping[int, str] = {
        errno.EHOSTUNREACH: "the network says: unreachable or prohibited",
        errno.ENETUNREACH: "there is no route",
        errno.EACCES: "the network says: prohibited",
    }
    code = error.errno or 0
    return sentences.get(code) or f"refused: {errno.errorcode.get(code, str(error))}"


def _judge(probe: Probe, hindrance: str | None) -> Result:
    found = Verdict.REACHED if hindrance is None else Verdict.STOPPED
    return Result(probe.name, probe.expected, found, hindrance or "it answered")
