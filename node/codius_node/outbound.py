"""The one way out to addresses that strangers name: https, checked and pinned, small answers, little time."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from codius_netpolicy.policy import DEFAULT_DENIED_RANGES
from codius_node import jsontext
from codius_node.errors import CodiusError
from codius_node.model import Json
from codius_node.uri import PublicUri, is_loopback_name

Address = IPv4Address | IPv6Address
LookUp = Callable[[str], Awaitable[Sequence[Address]]]

SECONDS: Final = 3.0
"""For one question as a whole: name, connection, TLS and the last byte of the answer."""
MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer's body."""
MAX_FIELD: Final = 4096
"""Bytes of one header field or of the status line."""
MAX_FIELDS: Final = 64
"""Header fields of an answer; with MAX_FIELD they are all that a head can make us keep."""
MAX_ADDRESSES: Final = 8
"""Addresses of one name; a host with more is none of the kind we look for."""
LOOK_UPS_AT_ONCE: Final = 8
"""Threads in a resolver that may take half a minute to give up, whatever our own deadline."""

NEVER_PUBLIC: Final = (
    *DEFAULT_DENIED_RANGES,  # what pods do not reach either, for the same reasons
    *map(
        ip_network,
        (
            "192.0.2.0/24",  # documentation (RFC 5737), and the two below
            "198.51.100.0/24",
            "203.0.113.0/24",
            "168.63.129.16/32",  # a cloud's (Azure) own services, inside of each of its machines
            "192.88.99.0/24",  # once the relay of 6to4 (RFC 7526)
            "2001::/23",  # protocol assignments (RFC 2928), Teredo and ORCHID among them
            "2001:db8::/32",  # documentation (RFC 3849), and the one below (RFC 9637)
            "3fff::/20",
        ),
    ),
)
"""Where no host of the public internet is: this machine, networks it stands in, a cloud's metadata, and IPv6
addresses that carry an IPv4 one (mapped, NAT64, 6to4, Teredo), which could be any of these in disguise."""


class TargetError(CodiusError):
    """Nobody can make us go there."""


class AnswerError(CodiusError):
    """It was asked, and there is no answer that could be used."""


def is_public(address: Address) -> bool:
    """Whether a stranger may send us there."""
    return not any(address in network for network in NEVER_PUBLIC)


class Outbound:
    """Asks hosts whose names came from strangers. In `development`, names below localhost may be asked too,
    also by plain http; all others never.

    `allows` judges the addresses that `look_up` finds, `tls` the certificates.
    """

    def __init__(
        self,
        *,
        development: bool = False,
        look_up: LookUp | None = None,
        allows: Callable[[Address], bool] = is_public,
        tls: ssl.SSLContext | None = None,
        seconds: float = SECONDS,
    ) -> None:
        self._development = development
        self._look_up = look_up or _ResolverThreads().look_up
        self._allows = allows
        self._tls: ssl.SSLContext | bool = tls or True
        self._seconds = seconds

    def accepts(self, target: PublicUri) -> bool:
        """Whether it may be asked at all, as far as its name tells."""
        if is_loopback_name(target.host):
            return self._development
        return target.scheme == "https"

    async def ask(self, method: str, target: PublicUri, path: str, document: Json = None) -> Json:
        """The JSON of a 200 answer. TargetError for where we do not go, AnswerError for all else."""
        if not self.accepts(target):
            raise TargetError(f"{target} is not asked: hosts are asked by https, and this machine never")
        try:
            async with asyncio.timeout(self._seconds):
                # Looked up once: the connection goes to what was checked, whatever the name says next.
                addresses = await self._find_addresses(target)
                body = await self._exchange(method, target, path, document, addresses)
        except TimeoutError:
            raise AnswerError(f"{target} did not answer within {self._seconds:.0f} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AnswerError(f"{target} cannot be asked: {str(error) or type(error).__name__}") from error
        try:
            return jsontext.decode_json(body, limit=MAX_ANSWER)
        except CodiusError as error:
            raise AnswerError(f"{target}{path}: {error.message.replace('the body', 'the answer')}") from error

    async def _find_addresses(self, target: PublicUri) -> Sequence[Address]:
        if is_loopback_name(target.host):
            return (IPv4Address("127.0.0.1"), IPv6Address("::1"))
        addresses = await self._look_up(target.host)
        if not 1 <= len(addresses) <= MAX_ADDRESSES:
            raise AnswerError(f"{target.host} has {len(addresses)} addresses, not 1 to {MAX_ADDRESSES}")
        for address in addresses:  # one bad one spoils them all: nobody's honest name has such a mixture
            if not self._allows(address):
                raise TargetError(f"{target.host} is {address}, which is not on the public internet")
        return addresses

    async def _exchange(
        self, method: str, target: PublicUri, path: str, document: Json, addresses: Sequence[Address]
    ) -> bytes:
        # A session of its own: no cookie, no connection and no cached name outlives the question.
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=_Pinned(addresses), family=socket.AF_UNSPEC, ssl=self._tls, force_close=True
                ),
                timeout=aiohttp.ClientTimeout(total=None),  # ours is around all of it
                auto_decompress=False,
                trust_env=False,
                max_line_size=MAX_FIELD,
                max_field_size=MAX_FIELD,
                max_headers=MAX_FIELDS,
            ) as session,
            session.request(
                method,
                target.origin + path,
                data=None if document is None else jsontext.render_json(document).encode(),
                headers={
                    "Accept": "application/json",
                    "Content-Type": "application/json",
                    # RFC 9110 12.5.3: without it every coding is welcome, a bomb's too
                    "Accept-Encoding": "identity",
                    "User-Agent": "codius-host",
                },
                allow_redirects=False,
            ) as response,
        ):
            return await _read(response, f"{target}{path}")


class _Pinned(AbstractResolver):
    """Every name is these addresses."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


class _ResolverThreads:
    """The system's resolver. It cannot be told to stop, and whoever owns a name decides how long it takes:
    it has threads of its own, so that no upload ever waits for one, and few of them.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(LOOK_UPS_AT_ONCE)

    async def look_up(self, host: str) -> Sequence[Address]:
        await self._free.acquire()  # given back when the thread is done, not when we stop to wait for it
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[Address]] = loop.create_future()

        def finish(found: Sequence[Address] | OSError) -> None:
            self._free.release()
            if answer.done():
                return  # nobody waits any more
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def work() -> None:
            found: Sequence[Address] | OSError
            try:
                entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                found = tuple(dict.fromkeys(ip_address(str(entry[4][0])) for entry in entries))
            except OSError as error:
                found = error
            except ValueError as error:  # a name that IDNA refuses, an address with a strange zone
                found = OSError(str(error))
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(finish, found)

        threading.Thread(target=work, name="outbound-name", daemon=True).start()
        return await answer


async def _read(response: aiohttp.ClientResponse, where: str) -> bytes:
    """The body, bounded; never decoded, never somebody else's."""
    if 300 <= response.status < 400:
        raise AnswerError(f"{where} sends us elsewhere (status {response.status}), and we do not follow")
    if response.status != 200:
        raise AnswerError(f"{where} answered {response.status}")
    codings = {coding.strip().lower() for coding in response.headers.getall("Content-Encoding", [])}
    if codings - {"identity", ""}:
        raise AnswerError(f"{where} answered in a coding that was not asked for")
    body = bytearray()
    if (response.content_length or 0) <= MAX_ANSWER:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_ANSWER:
                break
        else:
            return bytes(body)
    raise AnswerError(f"{where} answered with more than {MAX_ANSWER} bytes")
