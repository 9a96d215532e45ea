"""TLS at the front door over real sockets: names, renewal, redirect, HSTS, upgrades, ends."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from codius_proxy.config import Limits
from codius_proxy.doors import ARRIVING_SHARE
from codius_proxy.tls import LOOK_EVERY
from tests.harness.certificates import Authority, serial_of
from tests.harness.front import OTHER, POD, ZONE, Raw, front, name
from tests.harness.origin import ANSWER, DEADLINE, Line, Origin, origin, websocket_echo

HOUR = 3600


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def certificates(tmp_path: Path, authority: Authority) -> Path:
    authority.issue(tmp_path / "host", ZONE, f"*.{ZONE}")
    return tmp_path


@pytest.fixture
async def pod() -> AsyncIterator[Origin]:
    async with origin() as found:
        yield found


def shown_to(client: Raw) -> int:
    return serial_of(cast(ssl.SSLObject, client.writer.get_extra_info("ssl_object")))


async def test_a_pod_is_reached_by_tls_and_told_so(
    pod: Origin, certificates: Path, authority: Authority
) -> None:
    async with front({POD: pod.port}, scheme="https", certificates=certificates) as proxy:
        client = await proxy.client(tls=authority.trust(), server_name=name())
        for _ in range(2):
            answer = await client.get(name())
            assert (answer.status, answer.body) == (200, b"hello")
            assert not answer.has("strict-transport-security")
        found = client.writer.get_extra_info("ssl_object")
        assert found.selected_alpn_protocol() == "http/1.1"
        assert found.version() == "TLSv1.3"
    assert pod.requests[0].one("x-forwarded-proto") == "https"
    assert f'for=127.0.0.1;proto=https;host="{name()}"' == pod.requests[0].one("forwarded")


async def test_an_independent_client_is_served_large_bodies_both_ways(
    certificates: Path, authority: Authority
) -> None:
    body = b"0123456789abcdef" * 65536

    async def script(line: Line) -> None:
        while (request := await line.read_request()) is not None:
            await line.send(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body) + request.body
            )

    async with (
        origin(script) as pod,
        front({POD: pod.port}, scheme="https", certificates=certificates) as proxy,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=authority.trust())) as client,
    ):
        for _ in range(2):
            async with client.post(
                f"https://127.0.0.1:{proxy.port}/",
                data=body,
                headers={"Host": name()},
                server_hostname=name(),
            ) as answer:
                assert await answer.read() == body


async def test_a_websocket_passes_through_tls(certificates: Path, authority: Authority) -> None:
    async with (
        websocket_echo() as port,
        front({POD: port}, scheme="https", certificates=certificates) as proxy,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=authority.trust())) as client,
        client.ws_connect(
            f"wss://127.0.0.1:{proxy.port}/", headers={"Host": name()}, server_hostname=name()
        ) as socket,
    ):
        for size in (1, 70_000):
            await socket.send_bytes(b"x" * size)
            assert (await socket.receive_bytes()) == b"x" * size


async def test_a_renewed_certificate_is_shown_to_newcomers_and_disturbs_nobody(
    pod: Origin, certificates: Path, authority: Authority
) -> None:
    async with front({POD: pod.port}, scheme="https", certificates=certificates) as proxy:
        before = await proxy.client(tls=authority.trust())
        renewed = authority.issue(certificates / "host", ZONE, f"*.{ZONE}")
        assert shown_to(before) != renewed
        async with asyncio.timeout(LOOK_EVERY + DEADLINE):
            while shown_to(client := await proxy.client(tls=authority.trust())) != renewed:
                assert (await client.get(ZONE)).body == b"api"
                await asyncio.sleep(0.05)
        for one in (before, client):
            assert (await one.get(name())).body == b"hello"


async def test_http_leads_to_the_same_place_by_https(
    pod: Origin, certificates: Path, authority: Authority
) -> None:
    async with front(
        {POD: pod.port},
        scheme="https",
        public_port=443,
        certificates=certificates,
        redirect=True,
        hsts=HOUR,
    ) as proxy:
        client = await proxy.client(port=proxy.config.redirect_port)
        answer = await client.get(name(), "/a?b=c")
        assert (answer.status, answer.one("location")) == (308, f"https://{name()}/a?b=c")
        assert not answer.has("strict-transport-security")  # RFC 6797 section 7.2
        answer = await client.get(name(OTHER))
        assert answer.status == 404
        answer = await client.get("elsewhere.example")
        assert answer.status == 421
        assert not answer.has("location")
    assert not pod.requests


async def test_the_way_to_https_names_a_port_that_is_not_the_usual_one(certificates: Path) -> None:
    async with front(scheme="https", certificates=certificates, redirect=True) as proxy:
        client = await proxy.client(port=proxy.config.redirect_port)
        answer = await client.get(f"{ZONE}:80", "/x", method="POST", extra="Content-Length: 0\r\n")
        assert answer.one("location") == f"https://{ZONE}:{proxy.port}/x"


@pytest.mark.parametrize(
    ("request_head", "location"),
    [
        ("GET / HTTP/1.0\r\nHost: {zone}", "https://{zone}/"),
        ("HEAD /x HTTP/1.1\r\nHost: {zone}", "https://{zone}/x"),
        ("PUT /x?y HTTP/1.1\r\nHost: {zone}:80\r\nContent-Length: 0", "https://{zone}/x?y"),
        ("OPTIONS * HTTP/1.1\r\nHost: {zone}", "https://{zone}/"),
        ("GET http://{zone}/x HTTP/1.1\r\nHost: {zone}", "https://{zone}/x"),
        ("GET https://{zone}/x HTTP/1.1\r\nHost: {zone}", "https://{zone}/x"),
        ("GET //evil.example/x HTTP/1.1\r\nHost: {zone}", "https://{zone}//evil.example/x"),
        ("GET /@evil.example HTTP/1.1\r\nHost: {zone}", "https://{zone}/@evil.example"),
        ("GET /%0d%0aX:y HTTP/1.1\r\nHost: {zone}", "https://{zone}/%0d%0aX:y"),
        ("GET / HTTP/1.1\r\nHost: {ZONE}.", "https://{zone}/"),
        ("GET / HTTP/1.1\r\nHost: [::1]:80", "https://[::1]/"),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1", "https://127.0.0.1/"),
        ("GET / HTTP/1.1\r\nHost: evil.example", None),
        ("GET / HTTP/1.1\r\nHost: {zone}@evil.example", None),
        ("GET / HTTP/1.1\r\nHost: {zone}\r\nX-Forwarded-Host: evil.example", "https://{zone}/"),
    ],
)
async def test_the_way_to_https_leads_to_a_name_of_this_host_and_nowhere_else(
    request_head: str, location: str | None, certificates: Path
) -> None:
    async with front(scheme="https", public_port=443, certificates=certificates, redirect=True) as proxy:
        client = await proxy.client(port=proxy.config.redirect_port)
        await client.send((request_head.format(zone=ZONE, ZONE=ZONE.upper()) + "\r\n\r\n").encode())
        answer = await client.answer(method=request_head.partition(" ")[0])
        if location is None:
            assert answer.status in (400, 421)
            assert not answer.has("location")
        else:
            assert answer.status == 308  # a method and its body stay what they are, RFC 9110 section 15.4.9
            assert answer.one("location") == location.format(zone=ZONE)
        assert not answer.has("x")


async def test_who_speaks_another_protocol_is_told_which_one_is_spoken(
    certificates: Path, authority: Authority
) -> None:
    async with front(scheme="https", certificates=certificates) as proxy:
        trust = authority.trust()
        trust.set_alpn_protocols(["h2"])
        client = await proxy.client(tls=trust)
        await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 505
        assert b"HTTP/1.1 and HTTP/1.0" in answer.body
        assert await client.rest() == b""


async def test_who_gives_another_name_than_he_asks_for_is_shown_the_first_certificate(
    certificates: Path, authority: Authority
) -> None:
    authority.issue(certificates / "zzz", "other.example")
    async with front(scheme="https", certificates=certificates) as proxy:
        trust = authority.trust()
        trust.check_hostname = False
        for server_name in ("stranger.example", "127.0.0.1", "other.example"):
            client = await proxy.client(tls=trust, server_name=server_name)
            found = client.writer.get_extra_info("ssl_object").getpeercert()["subjectAltName"]
            assert ("DNS", "other.example" if server_name == "other.example" else ZONE) in found
            assert (await client.get(ZONE)).body == b"api"


async def test_a_plain_host_says_nothing_of_https(pod: Origin) -> None:
    async with front({POD: pod.port}, hsts=HOUR) as proxy:
        for host in (name(), ZONE, name(OTHER)):
            assert not (await proxy.get(host)).has("strict-transport-security")


async def test_browsers_are_told_to_come_back_by_https_with_every_answer(
    certificates: Path, authority: Authority
) -> None:
    own = ANSWER.replace(b"\r\n\r\n", b"\r\nStrict-Transport-Security: max-age=1\r\n\r\n", 1)
    async with (
        origin(answer=own) as pod,
        front({POD: pod.port}, scheme="https", certificates=certificates, hsts=HOUR) as proxy,
    ):
        client = await proxy.client(tls=authority.trust())
        for host, status in ((name(), 200), (ZONE, 200), (name(OTHER), 404)):
            answer = await client.get(host)
            assert answer.status == status
            # One only, RFC 6797 section 7.1: the operator's goes before the pod's own.
            assert answer.one("strict-transport-security") == f"max-age={HOUR}"


async def test_a_pods_own_policy_passes_where_the_operator_has_none() -> None:
    own = ANSWER.replace(b"\r\n\r\n", b"\r\nStrict-Transport-Security: max-age=1\r\n\r\n", 1)
    async with origin(answer=own) as pod, front({POD: pod.port}, scheme="https") as proxy:
        client = await proxy.client()
        for _ in range(2):  # the second from memory
            assert (await client.get(name())).one("strict-transport-security") == "max-age=1"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_behind_a_balancer_the_policy_is_for_who_came_by_https(pod: Origin, scheme: str) -> None:
    """RFC 6797 section 7.2: not over what is not secure, whatever we speak with the balancer."""
    came = f"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: {scheme}\r\n"
    async with front(
        {POD: pod.port}, scheme="https", hsts=HOUR, trusted_proxies=(ip_network("127.0.0.0/8"),)
    ) as proxy:
        for host in (name(), name(OTHER)):
            answer = await proxy.get(host, extra=came)
            assert answer.has("strict-transport-security") is (scheme == "https")


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x00"]
)
async def test_what_is_not_tls_is_dropped_and_others_go_on(
    first: bytes, certificates: Path, authority: Authority
) -> None:
    async with front(scheme="https", certificates=certificates) as proxy:
        stranger = await proxy.client()
        await stranger.send(first)
        if len(first) > 1:
            assert b"HTTP" not in await stranger.rest()
        client = await proxy.client(tls=authority.trust())
        assert (await client.get(ZONE)).body == b"api"


async def test_connections_that_say_nothing_keep_nobody_out(
    certificates: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(connections=3 * ARRIVING_SHARE)
    async with front(scheme="https", certificates=certificates, limits=limits) as proxy:
        silent = [await proxy.client() for _ in range(8)]
        client = await proxy.client(tls=authority.trust())
        assert (await client.get(ZONE)).body == b"api"
        for gone in silent[:5]:
            assert await gone.rest() == b""
        last = asyncio.create_task(silent[-1].reader.read())
        assert (await client.get(ZONE)).body == b"api"
        assert not last.done()  # it was not the clock that ended the others
        last.cancel()
    assert [found.message for found in caplog.records if found.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("minor", [0, 1])
async def test_an_answer_that_ends_with_the_connection_is_complete(
    minor: int, certificates: Path, authority: Authority
) -> None:
    async def script(line: Line) -> None:
        await line.read_head()
        await line.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000)

    async with (
        origin(script) as pod,
        front({POD: pod.port}, scheme="https", certificates=certificates) as proxy,
    ):
        client = await proxy.client(tls=authority.trust())
        await client.send(f"GET / HTTP/1.{minor}\r\nHost: {name()}\r\nConnection: close\r\n\r\n".encode())
        assert (await client.answer()).body == b"x" * 100_000
        assert await client.rest() == b""


async def test_a_bad_request_gets_its_answer_and_then_the_end(
    certificates: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async with front(scheme="https", certificates=certificates) as proxy:
        client = await proxy.client(tls=authority.trust())
        await client.send(b"GET / HTTP/1.1\r\nBad Field: 1\r\n\r\n")
        assert (await client.answer()).status == 400
        assert await client.rest() == b""
    assert [found.message for found in caplog.records if found.levelno >= logging.WARNING] == []


async def test_a_visitor_that_ends_tls_is_nothing_to_complain_about(
    certificates: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def script(line: Line) -> None:
        await line.read_head()
        asked.set()
        await go.wait()

    async with (
        origin(script) as pod,
        front({POD: pod.port}, scheme="https", certificates=certificates) as proxy,
    ):
        rested = await proxy.client(tls=authority.trust())
        assert (await rested.get(ZONE)).body == b"api"
        waiting = await proxy.client(tls=authority.trust())
        await waiting.send(f"GET / HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode())
        await asked.wait()
        for client in (rested, waiting):
            client.writer.close()
            await client.writer.wait_closed()
        go.set()
    assert [found.message for found in caplog.records if found.levelno >= logging.WARNING] == []


async def test_a_target_that_says_https_is_served_by_https(
    certificates: Path, authority: Authority, pod: Origin
) -> None:
    request = f"GET https://{name()}/x HTTP/1.1\r\nHost: {name()}\r\n\r\n".encode()
    async with front({POD: pod.port}, certificates=certificates, scheme="https") as proxy:
        client = await proxy.client(tls=authority.trust())
        await client.send(request)
        assert (await client.answer()).body == b"hello"
    assert pod.requests[0].line == "GET /x HTTP/1.1"


async def test_a_balancers_word_for_https_is_enough(pod: Origin) -> None:
    trusted = (ip_network("127.0.0.1/32"),)
    lines = f"Host: {name()}\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: "
    async with front({POD: pod.port}, trusted_proxies=trusted) as proxy:
        for scheme, status in (("https", 200), ("http", 421)):
            client = await proxy.client()
            await client.send(f"GET https://{name()}/x HTTP/1.1\r\n{lines}{scheme}\r\n\r\n".encode())
            assert (await client.answer()).status == status
