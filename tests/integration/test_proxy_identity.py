"""Who pods are told their visitor is, over real sockets: strangers, trusted proxies, PROXY headers."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from codius_proxy.config import Limits, Timeouts
from codius_proxy.proxy_protocol import SIGNATURE
from tests.harness.certificates import Authority
from tests.harness.front import POD, ZONE, Raw, front, name
from tests.harness.origin import Origin, Received, origin

LOOPBACK = (ip_network("127.0.0.0/8"),)
ELSEWHERE = (ip_network("10.0.0.0/8"),)
VISITOR = "192.0.2.77"
LINE = f"PROXY TCP4 {VISITOR} 198.51.100.1 56324 443\r\n".encode()
BINARY = (
    SIGNATURE
    + struct.pack("!BBH", 0x21, 0x11, 12)
    + ip_address(VISITOR).packed
    + ip_address("198.51.100.1").packed
    + struct.pack("!HH", 56324, 443)
)
CLAIMS = (
    f"X-Forwarded-For: 203.0.113.9, {VISITOR}\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 203.0.113.9\r\n"
    "X-Forwarded-Host: evil.example\r\nForwarded: for=203.0.113.9\r\nX_Forwarded_For: 203.0.113.9\r\n"
    "X.Forwarded.For: 203.0.113.9\r\nX~Real~IP: 203.0.113.9\r\nX_Forwarded-Host: 203.0.113.9\r\n"
)


@pytest.fixture
async def pod() -> AsyncIterator[Origin]:
    async with origin() as found:
        yield found


def check(request: Received, address: str, scheme: str) -> None:
    assert request.one("x-forwarded-for") == address
    assert request.one("x-forwarded-proto") == scheme
    assert request.one("x-forwarded-host") == request.one("host") == name()
    assert request.one("forwarded") == f'for={address};proto={scheme};host="{name()}"'
    assert "203.0.113.9" not in request.head.decode()


@pytest.mark.parametrize("trusted", [(), ELSEWHERE])
async def test_a_stranger_claims_in_vain(trusted: tuple[object, ...], pod: Origin) -> None:
    async with front({POD: pod.port}, trusted_proxies=trusted) as proxy:
        assert (await proxy.get(name(), extra=CLAIMS)).status == 200
    check(pod.requests[0], "127.0.0.1", "http")


async def test_a_trusted_proxy_says_who_its_client_is_with_each_request(pod: Origin) -> None:
    async with front({POD: pod.port}, trusted_proxies=LOOPBACK) as proxy:
        client = await proxy.client()
        for claims in (CLAIMS, "", CLAIMS):
            assert (await client.get(name(), extra=claims)).status == 200
    for request, (address, scheme) in zip(
        pod.requests, [(VISITOR, "https"), ("127.0.0.1", "http"), (VISITOR, "https")], strict=True
    ):
        check(request, address, scheme)


async def test_a_trusted_proxy_may_hold_more_connections_than_one_visitor() -> None:
    async with front(trusted_proxies=LOOPBACK, limits=Limits(per_client=1)) as proxy:
        clients = [await proxy.client() for _ in range(3)]
        for client in clients:
            assert (await client.get(ZONE)).body == b"api"


@pytest.mark.parametrize("header", [LINE, BINARY], ids=["version 1", "version 2"])
@pytest.mark.parametrize("split", [False, True])
async def test_a_balancer_says_who_its_connection_is_from(header: bytes, split: bool, pod: Origin) -> None:
    async with front({POD: pod.port}, trusted_proxies=LOOPBACK, proxy_protocol=True) as proxy:
        client = await proxy.client()
        await begin(client, header, split=split)
        for _ in range(2):
            assert (await client.get(name(), extra=CLAIMS)).body == b"hello"
    for request in pod.requests:
        check(request, VISITOR, "http")


async def begin(client: Raw, header: bytes, *, split: bool) -> None:
    if not split:
        await client.send(header)
        return
    client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in header:
        await client.send(bytes([byte]))


async def dropped(client: Raw) -> None:
    """The proxy ends the connection without a word."""
    with contextlib.suppress(ConnectionResetError):
        assert await client.rest() == b""


@pytest.mark.parametrize("header", [LINE, BINARY], ids=["version 1", "version 2"])
async def test_behind_a_balancers_header_tls_begins(header: bytes, pod: Origin, tmp_path: Path) -> None:
    authority = Authority()
    authority.issue(tmp_path / "host", ZONE, f"*.{ZONE}")
    async with front(
        {POD: pod.port},
        scheme="https",
        certificates=tmp_path,
        trusted_proxies=LOOPBACK,
        proxy_protocol=True,
    ) as proxy:
        client = await proxy.client()
        await client.send(header)
        await client.writer.start_tls(authority.trust(), server_hostname=name())
        assert (await client.get(name())).body == b"hello"
    check(pod.requests[0], VISITOR, "https")


async def test_a_balancers_own_connection_is_its_own(pod: Origin) -> None:
    async with front({POD: pod.port}, trusted_proxies=LOOPBACK, proxy_protocol=True) as proxy:
        client = await proxy.client()
        await client.send(SIGNATURE + struct.pack("!BBH", 0x20, 0, 0))
        assert (await client.get(name())).body == b"hello"
    check(pod.requests[0], "127.0.0.1", "http")


@pytest.mark.parametrize(
    "first",
    [
        f"GET / HTTP/1.1\r\nHost: {ZONE}\r\n\r\n".encode(),
        LINE.replace(b"TCP4", b"TCP6"),
        LINE.replace(b"\r\n", b"\n"),
        BINARY[:12] + b"\x31" + BINARY[13:],
        b"PROXY" + b" " * 200,
        SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 0xFFFF),  # more than anybody waits for
        SIGNATURE + struct.pack("!BBH", 0x21, 0x31, 216) + b"\0" * 216,  # a Unix socket's
        b"\r\n" + LINE,
    ],
)
async def test_a_balancers_connection_without_a_proper_header_is_dropped(first: bytes, pod: Origin) -> None:
    async with front({POD: pod.port}, trusted_proxies=LOOPBACK, proxy_protocol=True) as proxy:
        client = await proxy.client()
        await client.send(first)
        await dropped(client)
        again = await proxy.client()
        await again.send(LINE)
        assert (await again.get(name())).body == b"hello"


@pytest.mark.parametrize("header", [LINE, BINARY], ids=["version 1", "version 2"])
@pytest.mark.parametrize("on", [True, False])
async def test_a_strangers_header_is_no_request(header: bytes, on: bool, pod: Origin) -> None:
    trusted = ELSEWHERE if on else LOOPBACK
    async with front({POD: pod.port}, trusted_proxies=trusted, proxy_protocol=on) as proxy:
        client = await proxy.client()
        await client.send(header + f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        answer = await client.answer()
        assert answer.status == 400
        assert await client.rest() == b""
        if on:
            assert (await proxy.get(name())).status == 200
            check(pod.requests[0], "127.0.0.1", "http")


@pytest.mark.parametrize("first", [LINE, BINARY], ids=["version 1", "version 2"])
@pytest.mark.parametrize("second", [LINE, BINARY], ids=["version 1", "version 2"])
async def test_of_two_headers_the_first_one_counts_and_the_second_is_no_request(
    first: bytes, second: bytes, pod: Origin
) -> None:
    """Else whoever is behind a balancer could write the next one himself."""
    forged = second.replace(VISITOR.encode(), b"203.0.113.9").replace(
        ip_address(VISITOR).packed, ip_address("203.0.113.9").packed
    )
    async with front({POD: pod.port}, trusted_proxies=LOOPBACK, proxy_protocol=True) as proxy:
        client = await proxy.client()
        await client.send(first + forged + f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        assert (await client.answer()).status == 400
        assert await client.rest() == b""
    assert not pod.requests


@pytest.mark.parametrize(
    ("line", "address", "scheme"),
    [
        # A stranger's, whose claims are as good as any stranger's.
        (b"PROXY TCP4 198.51.100.9 198.51.100.1 1 2", "198.51.100.9", "http"),
        (b"PROXY TCP6 ::ffff:198.51.100.9 ::1 1 2", "198.51.100.9", "http"),
        (b"PROXY TCP6 2001:db8::9 ::1 1 2", "2001:db8::9", "http"),
        # Another balancer's, and this one's own: they are trusted to say who is behind them.
        (b"PROXY TCP4 127.0.0.9 198.51.100.1 1 2", VISITOR, "https"),
        (b"PROXY UNKNOWN 203.0.113.9 203.0.113.9 1 2", VISITOR, "https"),
    ],
)
async def test_whom_a_header_names_decides_whether_claims_count(
    line: bytes, address: str, scheme: str, pod: Origin
) -> None:
    async with front({POD: pod.port}, trusted_proxies=LOOPBACK, proxy_protocol=True) as proxy:
        client = await proxy.client()
        await client.send(line + b"\r\n")
        assert (await client.get(name(), extra=CLAIMS)).body == b"hello"
    assert pod.requests[0].one("x-forwarded-for") == address
    assert pod.requests[0].one("x-forwarded-proto") == scheme
    assert "203.0.113.9" not in pod.requests[0].head.decode()


async def test_a_header_that_does_not_come_is_not_waited_for_for_ever(pod: Origin) -> None:
    async with front(
        {POD: pod.port}, trusted_proxies=LOOPBACK, proxy_protocol=True, timeouts=Timeouts(head=0.2)
    ) as proxy:
        client = await proxy.client()
        await client.send(LINE[:20])
        await dropped(client)


async def test_one_visitor_behind_a_balancer_gets_its_share_and_no_more(pod: Origin) -> None:
    async with front(
        {POD: pod.port}, trusted_proxies=LOOPBACK, proxy_protocol=True, limits=Limits(per_client=1)
    ) as proxy:
        first, second, other = [await proxy.client() for _ in range(3)]
        await first.send(LINE)
        assert (await first.get(name())).status == 200
        await second.send(LINE)
        assert (await second.get(name())).status == 429
        await other.send(LINE.replace(VISITOR.encode(), b"192.0.2.78"))
        assert (await other.get(name())).status == 200
