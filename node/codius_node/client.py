"""What clients ask of a host, over HTTP: prices, uploads, extensions, logs."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast
from urllib.parse import urlencode

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from codius_node import manifest, schema
from codius_node.config import is_loopback_name
from codius_node.errors import CodiusError
from codius_node.model import Json, LogLine, ManifestHash
from codius_node.registry import Registry

DEFAULT_HOST: Final = "http://codius.localhost:3000"
CODIUS_FILE: Final = "codius.json"
VARS_FILE: Final = "codiusvars.json"
ACCEPT: Final = "application/codius-v1+json"
"""What clients of this API have always sent; nothing is decided by it."""
PROGRESS_TYPE: Final = "application/x-ndjson"

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 60.0
"""For an answer that needs no work from the host."""
SILENCE_SECONDS: Final = 900.0
"""For the next line of an upload's progress: pulling a large image says nothing for minutes."""
CURRENCY_SECONDS: Final = 5.0
"""For the name of the currency; a price is worth showing without."""
MAX_ANSWER: Final = 4 * 1024 * 1024
"""Bytes of a host's JSON answer: the operator's list of a few thousand pods is one."""
MAX_LINE: Final = 64 * 1024
"""Bytes of one line of a log or of progress; a longer one is cut into several."""
NONCE_BYTES: Final = 16
"""Random bytes beside each private value, so that its public hash tells nobody what it is."""
TOKEN_BYTES: Final = 16
"""Of a Pay-Token: 22 characters of base64url."""

_PRICE: Final = re.compile(r"[0-9]{1,40}")


class HostError(CodiusError):
    """The host cannot be reached, or its answer makes no sense."""


class RefusedError(CodiusError):
    """The host understood and said no. `answer_status` is the HTTP status it said it with."""

    def __init__(self, message: str, *, answer_status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.answer_status = answer_status


class FileError(CodiusError):
    """A file of the user's cannot be used."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A host's price for a manifest: `price` in base units of `currency`, where the host names it."""

    hash: ManifestHash
    duration: int
    price: int
    currency: str | None


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """A pod as its host tells of it. `document` is the whole answer, for scripts."""

    hash: ManifestHash
    url: str
    expires_at: datetime
    document: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Parcel:
    """An upload, checked here as the host will check it. `resolved` maps tags to what they named."""

    hash: ManifestHash
    document: dict[str, Json]
    resolved: Mapping[str, str]
    debug: bool
    has_port: bool


def render_price(offer: Offer) -> str:
    """The host does not say how many base units make one unit of its currency."""
    return f"{offer.price} base units" + (f" of {offer.currency}" if offer.currency else "")


# ---- files ----------------------------------------------------------------------------------------


def read_upload(path: Path, variables: Path | None = None) -> tuple[dict[str, Json], bool]:
    """`{manifest, private?}` from a file, and whether its private values got new nonces just now.

    A `codius.json` takes the `codiusvars.json` beside it along; any other file only `variables`.
    """
    document = _read_json(path)
    complete = isinstance(document, dict) and "private" in document
    if variables is not None and complete:
        raise FileError(
            f"{path} has private values already, and {variables} would add others",
            hint="Leave --vars out, or give the codius.json that both were made from.",
        )
    beside = path.with_name(VARS_FILE)
    if variables is None and not complete and path.name == CODIUS_FILE and beside.exists():
        variables = beside
    if variables is None and path.name != CODIUS_FILE:
        complete = True
    if complete:
        with _naming(path):
            schema.check_upload(document)
        return cast("dict[str, Json]", document), False
    values: Json = {"vars": {}} if variables is None else _read_json(variables)
    with _naming(path):
        schema.check_codius_file(document)
    with _naming(variables or path):
        schema.check_vars_file(values)
        made = manifest.generate(document, values, lambda: secrets.token_hex(NONCE_BYTES))
    upload = cast("dict[str, Json]", made)
    return upload, bool(upload.get("private"))


def _read_json(path: Path) -> Json:
    try:
        with path.open("rb") as file:
            body = file.read(schema.MAX_UPLOAD_BODY + 1)
    except OSError as error:
        raise FileError(
            f"{path} cannot be read: {error.strerror}",
            hint="Name a codius.json, or a file with {manifest, private}.",
        ) from error
    if len(body) > schema.MAX_UPLOAD_BODY:
        raise FileError(f"{path} is larger than the {schema.MAX_UPLOAD_BODY} bytes that hosts accept")
    with _naming(path):
        return schema.decode_json(body, limit=schema.MAX_UPLOAD_BODY)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name in front of what is said about its content."""
    try:
        yield
    except FileError:
        raise
    except CodiusError as error:
        message = error.message.replace("the body", "the file", 1)
        raise FileError(f"{path}: {message}", hint=error.hint) from error


def save_upload(path: Path, document: Mapping[str, Json]) -> None:
    """The complete `{manifest, private}`, for its owner's eyes only; an existing file is left alone."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2, ensure_ascii=False)
            file.write("\n")
    except OSError as error:
        raise FileError(
            f"{path} cannot be written: {error.strerror}", hint="Give --save a new file's name."
        ) from error


async def prepare(
    document: dict[str, Json],
    *,
    registry: Registry,
    tell: Callable[[str], None] = lambda _: None,
) -> Parcel:
    """Tags become digests, and what the host would refuse is refused here, before anything is sent."""
    shape = schema.check_upload(document)
    resolved: dict[str, str] = {}
    for container in shape.containers:
        if container.image in resolved or "@" in container.image:
            continue
        tell(f"asking what {container.image} is now")
        resolved[container.image] = await registry.resolve(container.image)
        tell(f"{container.image} is {resolved[container.image]}")
    manifest_part = cast("dict[str, Json]", document["manifest"])
    containers = cast("list[dict[str, Json]]", manifest_part["containers"])
    images: list[Json] = [
        {**item, "image": resolved.get(str(item["image"]), item["image"])} for item in containers
    ]
    pinned: dict[str, Json] = {**document, "manifest": {**manifest_part, "containers": images}}
    upload = manifest.parse(pinned)
    return Parcel(
        hash=upload.manifest.hash,
        document=pinned,
        resolved=resolved,
        debug=upload.manifest.debug,
        has_port=upload.manifest.port is not None,
    )


# ---- the host -------------------------------------------------------------------------------------


def parse_host(text: str) -> URL:
    """The origin of a host; HostError for what is none."""
    try:
        url = URL(text.strip())
        fine = url.scheme in {"http", "https"} and bool(url.host) and url.user is None
        fine = fine and url.path in {"", "/"} and not url.query_string and not url.fragment
        if fine:
            return url.origin()
    except ValueError:
        pass
    raise HostError(
        f"{schema.quote(text)} is not the address of a host",
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
        return Offer(hash, duration, int(price), await self._find_currency())

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
            if response.status < 300 and response.content_type == PROGRESS_TYPE:
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
            async for raw in _split_lines(response):
                yield parse_log_line(raw)

    async def info(self, *, seconds: float = ANSWER_SECONDS) -> Mapping[str, Json]:
        """What the host tells of itself."""
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with self._request("GET", "/info", timeout=timeout) as response:
            return await self._read_answer(response)

    async def _find_currency(self) -> str | None:
        """What the host counts prices in; old hosts and busy ones may not say."""
        try:
            currency = (await self.info(seconds=CURRENCY_SECONDS)).get("currency")
        except CodiusError:
            return None
        return currency if isinstance(currency, str) and re.fullmatch(r"\w{1,16}", currency) else None

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
        headers = {"Accept": ACCEPT, "Pay-Token": token or secrets.token_urlsafe(TOKEN_BYTES)}
        body = None
        if document is not None:
            headers["Content-Type"] = "application/json"
            body = schema.render_json(document).encode()
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
                f"{self.origin} sends us on to {schema.quote(target)}",
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
            raise self._nonsense(f"{schema.quote(body[:80].decode(errors='replace'))}, not a JSON object")
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
            message = f"the host answered {status} and did not say why"
        return RefusedError(message, answer_status=status, hint=hint if isinstance(hint, str) else None)

    def _read_pod(self, answer: Mapping[str, Json], expected: ManifestHash) -> PodAnswer:
        self._check_hash(answer, expected)
        url, expiry = answer.get("url"), answer.get("expiry")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise self._nonsense("a pod without a URL")
        try:
            expires_at = datetime.fromisoformat(str(expiry))
        except ValueError:
            raise self._nonsense(f"the expiry {schema.quote(str(expiry))}, which is no time") from None
        if expires_at.tzinfo is None:
            expires_at = expires_at.replace(tzinfo=UTC)
        return PodAnswer(expected, url, expires_at, answer)

    def _check_hash(self, answer: Mapping[str, Json], expected: ManifestHash) -> None:
        hash = answer.get("manifestHash")
        if hash != expected:
            raise HostError(
                f"{self.origin} answered with the hash {schema.quote(str(hash))}, and this manifest's is"
                f" {expected}: it would run something else",
                hint="Do not use this host for it, and tell its operator.",
            )

    def _nonsense(self, what: str) -> HostError:
        return HostError(
            f"{self.origin} answered with {what}", hint="Is that a Codius host? `--host` names another."
        )


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
        raise HostError(
            f"{origin} cannot be reached: {explain(error)}",
            hint="Is the host running there, and is the address right? `--host` names another.",
        ) from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise HostError(f"the connection to {origin} broke: {explain(error)}", hint="Try again.") from error


def explain(error: BaseException) -> str:
    """Why a connection failed, in words."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not valid ({error.certificate_error})"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        # several addresses make one message of all their errors; resolvers have numbers of their own
        number = cause.errno or 0
        return os.strerror(number) if number > 0 else cause.strerror or str(cause)
    return str(error) or type(error).__name__


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
