"""What clients ask of a host, over HTTP: prices, uploads, extensions, logs."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlencode

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from codius_node import jsontext, manifest, operations, pages
from codius_node.errors import CodiusError
from codius_node.model import Json, LogLine, ManifestHash
from codius_node.parcels import Parcel
from codius_node.pricing import SECONDS_PER_MONTH
from codius_node.registry import Registry
from codius_node.uri import is_loopback_name

DEFAULT_HOST: Final = "http://codius.localhost:3000"
ACCEPT: Final = "application/codius-v1+json"
"""What clients of this API have always sent; nothing is decided by it."""

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 60.0
"""For an answer that needs no work from the host."""
SILENCE_SECONDS: Final = 900.0
"""For the next line of an upload's progress: pulling a large image says nothing for minutes."""
CURRENCY_SECONDS: Final = 5.0
"""For the currency and what a month costs in it; a price is worth showing without."""
MAX_COST: Final = 10**15
"""Units of a currency for a month; what a host says beyond is not worth repeating."""
MAX_ANSWER: Final = 4 * 1024 * 1024
"""Bytes of a host's JSON answer: the operator's list of a few thousand pods is one."""
MAX_LINE: Final = 64 * 1024
"""Bytes of one line of a log or of progress; a longer one is cut into several."""
TOKEN_BYTES: Final = 16
"""Of a Pay-Token: 22 characters of base64url."""

NO_HOST_HINT: Final = "Is that a Codius host? `--host` names another."

_PRICE: Final = re.compile(r"[0-9]{1,40}")


class HostError(CodiusError):
    """The host cannot be reached, or its answer makes no sense."""


class RefusedError(CodiusError):
    """The host understood and said no. `answer_status` is the HTTP status it said it with."""

    def __init__(self, message: str, *, answer_status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.answer_status = answer_status


@dataclass(frozen=True, slots=True)
class Offer:
    """A host's price for a manifest: `price` in base units of `currency`, where the host names it. `amount`
    is about the same in whole units, by what the host says a month costs.
    """

    hash: ManifestHash
    duration: int
    price: int
    currency: str | None
    amount: Decimal | None = None


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """A pod as its host tells of it. `document` is the whole answer, for scripts."""

    hash: ManifestHash
    url: str
    expires_at: datetime
    document: Mapping[str, Json]


def render_price(offer: Offer) -> str:
    """The host does not say how many base units make one unit of its currency."""
    text = f"{offer.price} base units" + (f" of {offer.currency}" if offer.currency else "")
    if offer.amount is None or offer.currency is None:
        return text
    return f"{text} (about {pages.render_amount(offer.amount)} {offer.currency})"


def parse_host(text: str) -> URL:
    """The origin of a host; HostError for what is none."""
    try:
        url = URL(text.strip())
        fine = url.scheme in {"http", "https"} and bool(url.host) and url.user is None and url.port != 0
        fine = fine and url.path in {"", "/"} and not url.query_string and not url.fragment
        if fine:
            return url.origin()
    except ValueError:
        pass
    raise HostError(
        f"{jsontext.quote(text)} is not the address of a host",
        hint="Give --host (or CODIUS_HOST_URI) as in https://codius.example.com, with nothing behind it.",
    )


class LoopbackResolver(AbstractResolver):
    """Names below localhost are this machine (RFC 6761 section 6.3), whatever the system's resolver says."""

    def __init__(self) -> None:
        self._others = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        name = host.lower().rstrip(".")
        if not is_loopback_name(name):
            return await self._others.resolve(host, port, family)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
            if family in {socket.AF_UNSPEC, kind}
        ]

    async def close(self) -> None:
        await self._others.close()


def build_session() -> aiohttp.ClientSession:
    """A session for hosts and registries."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=LoopbackResolver(), family=socket.AF_UNSPEC),
        timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS),
        headers={"User-Agent": "codius-host"},
    )


class Client:
    """One host, as its clients see it. Use it in `async with`."""

    def __init__(
        self,
        host: str,
        *,
        insecure_registries: Collection[str] = (),
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.origin = parse_host(host)
        self._insecure = insecure_registries
        self._silence = silence_seconds

    async def __aenter__(self) -> Self:
        self._session = build_session()
        try:
            self.registry = Registry(self._session, insecure=self._insecure)
        except CodiusError:
            await self._session.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def quote(self, parcel: Parcel, duration: int, *, with_private: bool = False) -> Offer:
        """The price of running it. Private values go along only `with_private`: old hosts want them."""
        document = parcel.document if with_private else {"manifest": parcel.document["manifest"]}
        return await self._quote(document, parcel.hash, duration)

    async def _quote(self, document: Json, hash: ManifestHash, duration: int) -> Offer:
        async with self._request("OPTIONS", "/pods", {"duration": str(duration)}, document) as response:
            answer = await self._read_answer(response)
        self._check_hash(answer, hash)
        price = answer.get("price")
        if not isinstance(price, str) or not _PRICE.fullmatch(price):
            raise self._nonsense("a price that is no whole number")
        currency, cost_per_month = await self._find_currency()
        amount = None if cost_per_month is None else cost_per_month * duration / SECONDS_PER_MONTH
        return Offer(hash, duration, int(price), currency, amount)

    async def upload(
        self,
        parcel: Parcel,
        duration: int,
        *,
        tell: Callable[[str], None] = lambda _: None,
        token: str | None = None,
    ) -> PodAnswer:
        """Upload it, or extend it where it runs already; `tell` gets the host's sentences on the way.

        `token` is a Pay-Token that has been paid for; without it a fresh one goes along.
        """
        # The quote comes first: a host that would run something else is found out before it gets to.
        offer = await self.quote(parcel, duration, with_private=True)
        try:
            return await self._upload(parcel, duration, tell, token, with_progress=True)
        except RefusedError as error:
            if error.answer_status == 402:
                raise self._payment_refusal(offer) from error
            if error.answer_status != 400:
                raise
        # Hosts of before do not know ?progress= and refuse what they do not know; nothing has begun.
        return await self._upload(parcel, duration, tell, token, with_progress=False)

    async def _upload(
        self,
        parcel: Parcel,
        duration: int,
        tell: Callable[[str], None],
        token: str | None,
        *,
        with_progress: bool,
    ) -> PodAnswer:
        query = {"duration": str(duration)} | ({"progress": "true"} if with_progress else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=self._silence)
        async with self._request("POST", "/pods", query, parcel.document, timeout, token) as response:
            if response.status < 300 and response.content_type == operations.PROGRESS_TYPE:
                answer = await self._follow(response, parcel.hash, tell)
            else:
                answer = await self._read_answer(response)
        return self._read_pod(answer, parcel.hash)

    async def _follow(
        self, response: aiohttp.ClientResponse, hash: ManifestHash, tell: Callable[[str], None]
    ) -> dict[str, Json]:
        """The result at the end of the stream; RefusedError when the end is an error."""
        unclear = (
            "the connection broke before the host said how the upload ended",
            f"It may go on without us: `codiusd pods {hash} --host {self.origin}` tells whether it runs.",
        )
        try:
            async for line in _split_lines(response):
                news = self._decode(line)
                match news:
                    case {"progress": str(sentence)}:
                        tell(sentence)
                    case {"result": dict(result)}:
                        return result
                    case {"error": dict(error)}:
                        status = error.get("statusCode")
                        raise self._refusal(status if isinstance(status, int) else 500, error)
                    case _:
                        pass  # news of a kind that came later
        except (aiohttp.ClientError, OSError) as error:
            raise HostError(unclear[0], hint=unclear[1]) from error
        raise HostError(unclear[0], hint=unclear[1])

    async def extend(self, hash: ManifestHash, duration: int) -> PodAnswer:
        """Add seconds to a pod's paid time."""
        query = {"manifestHash": hash, "duration": str(duration)}
        try:
            async with self._request("PUT", "/pods", query) as response:
                answer = await self._read_answer(response)
        except RefusedError as error:
            if error.answer_status == 402:
                raise self._payment_refusal(await self._find_offer(hash, duration)) from error
            raise
        return self._read_pod(answer, hash)

    async def _find_offer(self, hash: ManifestHash, duration: int) -> Offer | None:
        """The price of a pod that runs, when the host tells."""
        try:
            pod = await self.get(hash)
            return await self._quote({"manifest": pod.document["manifest"]}, hash, duration)
        except (CodiusError, KeyError):
            return None

    async def get(self, hash: ManifestHash) -> PodAnswer:
        """The pod of this hash; HostError when the host shows another manifest under its name."""
        async with self._request("GET", "/pods", {"manifestHash": hash}) as response:
            answer = await self._read_answer(response)
        shown = answer.get("manifest")
        if isinstance(shown, dict) and manifest.hash_manifest(shown) != hash:
            raise self._nonsense("a manifest that does not have the hash it was asked for")
        return self._read_pod(answer, hash)

    async def logs(self, hash: ManifestHash, *, follow: bool) -> AsyncGenerator[LogLine, None]:
        """What the pod's containers wrote, and with `follow` what they write from now on."""
        query = {"follow": "true"} if follow else {}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=None if follow else ANSWER_SECONDS
        )
        async with self._request("GET", f"/pods/{hash}/logs", query, timeout=timeout) as response:
            if response.status != 200:
                await self._read_answer(response)
                raise self._nonsense(f"status {response.status} to a question for logs")
            if response.content_type != operations.LOG_TYPE:
                raise self._nonsense(f"{jsontext.quote(response.content_type)} to a question for logs")
            async for raw in _split_lines(response):
                yield parse_log_line(raw)

    async def info(self, *, seconds: float = ANSWER_SECONDS) -> Mapping[str, Json]:
        """What the host tells of itself."""
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with self._request("GET", "/info", timeout=timeout) as response:
            return await self._read_answer(response)

    async def _find_currency(self) -> tuple[str | None, Decimal | None]:
        """What the host counts prices in, and what a month costs; old hosts and busy ones may not say."""
        try:
            info = await self.info(seconds=CURRENCY_SECONDS)
        except CodiusError:
            return None, None
        currency, cost = info.get("currency"), info.get("costPerMonth")
        if not isinstance(currency, str) or not re.fullmatch(r"\w{1,16}", currency):
            return None, None
        if not isinstance(cost, int | float) or isinstance(cost, bool) or not 0 <= cost < MAX_COST:
            return currency, None
        return currency, Decimal(str(cost))

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        document: Json = None,
        timeout: aiohttp.ClientTimeout | None = None,
        token: str | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": ACCEPT, operations.PAY_TOKEN: token or secrets.token_urlsafe(TOKEN_BYTES)}
        body = None
        if document is not None:
            headers["Content-Type"] = "application/json"
            body = jsontext.render_json(document).encode()
        url = URL(f"{self.origin}{path}?{urlencode(query)}" if query else f"{self.origin}{path}")
        with _reaching(self.origin):
            async with self._session.request(
                method,
                url,
                headers=headers,
                data=body,
                allow_redirects=False,
                timeout=timeout or self._session.timeout,
            ) as response:
                yield response

    async def _read_answer(self, response: aiohttp.ClientResponse) -> dict[str, Json]:
        """The JSON object of a 2xx answer; RefusedError with the host's words otherwise."""
        if 300 <= response.status < 400:
            target = response.headers.get("Location", "nowhere")
            raise HostError(
                f"{self.origin} sends us on to {jsontext.quote(target)}",
                hint="Give that address with --host, if you trust it.",
            )
        body = await read_body(response)
        if body is None:
            raise self._nonsense(f"more than {MAX_ANSWER} bytes")
        if response.status == 402:
            raise self._payment_refusal(None)
        if response.status >= 400:
            try:
                document = json.loads(body)
            except (ValueError, RecursionError):
                document = None
            raise self._refusal(response.status, document if isinstance(document, dict) else {})
        return self._decode(body)

    def _decode(self, body: bytes) -> dict[str, Json]:
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self._nonsense(f"{jsontext.quote(body[:80].decode(errors='replace'))}, not a JSON object")
        return document

    def _payment_refusal(self, offer: Offer | None) -> RefusedError:
        price = "" if offer is None else f" {render_price(offer)} for {offer.duration} s"
        return RefusedError(
            f"{self.origin} wants{price or ' to be paid'} by Interledger, which this client cannot pay yet",
            answer_status=402,
            hint="Choose a host that is free of charge, or pay with another client.",
        )

    def _refusal(self, status: int, document: Mapping[str, Json]) -> RefusedError:
        message, hint = document.get("message"), document.get("hint")
        if not isinstance(message, str) or not message:
            message = f"{self.origin} answered {status} and did not say why"
            hint = NO_HOST_HINT if status < 500 else "Try again later, or another host with --host."
        return RefusedError(message, answer_status=status, hint=hint if isinstance(hint, str) else None)

    def _read_pod(self, answer: Mapping[str, Json], expected: ManifestHash) -> PodAnswer:
        self._check_hash(answer, expected)
        url, expiry = answer.get("url"), answer.get("expiry")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise self._nonsense("a pod without a URL")
        try:
            expires_at = datetime.fromisoformat(str(expiry))
        except ValueError:
            raise self._nonsense(f"the expiry {jsontext.quote(str(expiry))}, which is no time") from None
        if expires_at.tzinfo is None:
            expires_at = expires_at.replace(tzinfo=UTC)
        return PodAnswer(expected, url, expires_at, answer)

    def _check_hash(self, answer: Mapping[str, Json], expected: ManifestHash) -> None:
        hash = answer.get("manifestHash")
        if hash != expected:
            raise HostError(
                f"{self.origin} answered with the hash {jsontext.quote(str(hash))}, and this manifest's is"
                f" {expected}: it would run something else",
                hint="Do not use this host for it, and tell its operator.",
            )

    def _nonsense(self, what: str) -> HostError:
        return HostError(f"{self.origin} answered with {what}", hint=NO_HOST_HINT)


@contextmanager
def _reaching(origin: URL) -> Iterator[None]:
    """Turns what can go wrong on the way to a host into a HostError."""
    try:
        yield
    except TimeoutError as error:
        raise HostError(
            f"{origin} does not answer", hint="Try again later, or another host with --host."
        ) from error
    except aiohttp.ClientConnectorError as error:
        raise HostError(f"{origin} cannot be reached: {explain(error)}", hint=_advise(error)) from error
    except aiohttp.ClientResponseError as error:
        raise HostError(f"what answers at {origin} does not speak HTTP", hint=NO_HOST_HINT) from error
    except aiohttp.ServerDisconnectedError as error:
        hint = "Try again." if origin.scheme == "https" else "Try again; or does it want https:// in front?"
        raise HostError(f"{origin} hung up without an answer", hint=hint) from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise HostError(f"the connection to {origin} broke: {explain(error)}", hint="Try again.") from error


def explain(error: BaseException) -> str:
    """Why a connection failed or broke, in words."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return explain(error.certificate_error)
        case aiohttp.ClientConnectorError():
            return explain(error.os_error)
        case TimeoutError():
            return "no answer"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not valid ({error.verify_message.rstrip('.')})"
        case ssl.SSLError():
            return f"it does not speak TLS ({(error.reason or 'no reason given').lower().replace('_', ' ')})"
        case OSError():
            # several addresses make one message of all their errors; resolvers have numbers of their own
            number = error.errno or 0
            return os.strerror(number) if number > 0 else error.strerror or str(error) or type(error).__name__
        case _:
            return str(error) or type(error).__name__


def _advise(error: aiohttp.ClientConnectorError) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return "Nothing was sent. Is the address right? If so, its operator has to renew the certificate."
        case aiohttp.ClientConnectorSSLError():
            return "Is the address right, with its port? A host without TLS has http:// in front."
        case _:
            return "Is the host running there, and is the address right? `--host` names another."


async def read_body(response: aiohttp.ClientResponse) -> bytes | None:
    """The body; None when it is larger than any answer should be."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER:
            return None
    return bytes(body)


async def _split_lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
        while len(rest) > MAX_LINE:
            yield rest[:MAX_LINE]
            rest = rest[MAX_LINE:]
    if rest:
        yield rest


def parse_log_line(raw: bytes) -> LogLine:
    """`<container> stdout|stderr <text>`; other lines have no container and no stream."""
    text = raw.decode(errors="replace")
    container, _, rest = text.partition(" ")
    stream, _, message = rest.partition(" ")
    return LogLine(container, stream, message) if stream in {"stdout", "stderr"} else LogLine("", "", text)
