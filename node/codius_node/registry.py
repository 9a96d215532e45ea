"""Image registries: which digest a tag names right now. The door to the registry's HTTP API v2."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import aiohttp
from yarl import URL

from codius_node.errors import ImageError
from codius_node.images import Reference, parse_image
from codius_node.jsontext import quote
from codius_node.uri import is_loopback_name

MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MAX_MANIFEST: Final = 4 * 1024 * 1024
"""Bytes of an image's manifest: what the distribution specification lets a registry accept."""
MAX_TOKEN_ANSWER: Final = 64 * 1024
"""Bytes of a token server's answer; tokens of a few kilobytes have been seen."""
MAX_REDIRECTS: Final = 4
"""Public registries send their visitors once, to the nearest one."""
SECONDS: Final = 30.0
"""For one image, all requests together."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_PARAMETER: Final = re.compile(r'([a-zA-Z_]+)=(?:"([^"]*)"|([^\s",]+))')
BY_DIGEST: Final = "Give the image by digest (name@sha256:…): then no registry is asked."


@dataclass(frozen=True, slots=True)
class Challenge:
    """Where a registry sends those without a token (RFC 6750 section 3)."""

    realm: str
    service: str | None
    scope: str | None


def parse_challenge(header: str) -> Challenge | None:
    """A `WWW-Authenticate: Bearer` header; None for other schemes and without a realm."""
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() != "bearer":
        return None
    found = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(rest)}
    realm = found.get("realm")
    return Challenge(realm, found.get("service"), found.get("scope")) if realm else None


def is_loopback(host: str) -> bool:
    """Whether this name or address can only be this very machine."""
    if is_loopback_name(host):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _host(authority: str) -> str:
    try:
        return URL(f"//{authority}").host or ""
    except ValueError:
        return ""


class Registry:
    """Asks registries without an account. `insecure` are `host` or `host:port` on loopback, by plain http."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        insecure: Collection[str] = (),
        seconds: float = SECONDS,
    ) -> None:
        self._session = session
        self._insecure = frozenset(name.lower() for name in insecure)
        self._seconds = seconds
        for name in self._insecure:
            if not is_loopback(_host(name)):
                raise ImageError(
                    f"the registry {quote(name)} is not on this machine: plain http is for loopback only",
                    hint="Leave --insecure-registry out and let the registry speak https.",
                )

    async def resolve(self, image: str) -> str:
        """`name@sha256:…` for what the tag names now; an image that has a digest stays as it is."""
        reference = parse_image(image)
        if reference.digest is not None:
            return image
        where = f"{reference.name}:{reference.tag} at {reference.registry}"
        try:
            async with asyncio.timeout(self._seconds):
                digest = await self._ask(reference, where)
        except TimeoutError:
            raise ImageError(
                f"no answer about {where} within {self._seconds:.0f} s", hint=f"Try again. {BY_DIGEST}"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ImageError(
                f"the registry cannot be asked for {where}: {str(error) or type(error).__name__}",
                hint=f"Is its name right, and is it reachable from here? {BY_DIGEST}",
            ) from error
        return f"{reference.name}@{digest}"

    def _origin(self, reference: Reference) -> str:
        plain = bool({reference.api, _host(reference.api)} & self._insecure)
        return f"{'http' if plain else 'https'}://{reference.api}"

    async def _ask(self, reference: Reference, where: str) -> str:
        # GET and not HEAD: only the bytes themselves prove the digest.
        url = URL(
            f"{self._origin(reference)}/v2/{reference.repository}/manifests/{reference.tag}", encoded=True
        )
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}
        token: str | None = None
        redirects = 0
        while True:
            headers = accept | ({"Authorization": f"Bearer {token}"} if token else {})
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                if response.status == 200:
                    return await _read_digest(response, where)
                if response.status in {301, 302, 303, 307, 308} and redirects < MAX_REDIRECTS:
                    redirects += 1
                    target = url.join(URL(response.headers.get("Location", "")))
                    self._require_safe(target, where)
                    if target.origin() != url.origin():
                        token = None  # it was meant for the registry that sent us on
                    url = target
                    continue
                if response.status != 401 or token is not None:
                    raise _refusal(response.status, where)
                challenge = parse_challenge(response.headers.get("WWW-Authenticate", ""))
            if challenge is None:
                raise _refusal(401, where)
            token = await self._fetch_token(challenge, reference, where)

    async def _fetch_token(self, challenge: Challenge, reference: Reference, where: str) -> str:
        realm = URL(challenge.realm)
        self._require_safe(realm, where)
        query = {"scope": challenge.scope or f"repository:{reference.repository}:pull"}
        if challenge.service:
            query["service"] = challenge.service
        async with self._session.get(realm.update_query(query), allow_redirects=False) as response:
            if response.status != 200:
                raise _refusal(response.status if response.status != 404 else 401, where)
            body = await _read(response, MAX_TOKEN_ANSWER, where)
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise ImageError(f"the registry's token server gave no token for {where}", hint=BY_DIGEST)
        return token

    def _require_safe(self, url: URL, where: str) -> None:
        """Nobody may lead us from https to plain http, or to a port of this machine."""
        authority = f"{url.host}:{url.explicit_port}" if url.explicit_port is not None else url.host or ""
        trusted = bool({authority, url.host} & self._insecure)
        if trusted or (url.scheme == "https" and url.host and not is_loopback(url.host)):
            return
        raise ImageError(
            f"asked for {where}, the registry points to {quote(str(url))}, which is not safe to follow",
            hint=BY_DIGEST,
        )


async def _read_digest(response: aiohttp.ClientResponse, where: str) -> str:
    if response.content_type not in MANIFEST_TYPES:
        raise ImageError(
            f"the answer about {where} is {quote(response.content_type)}, not an image's manifest",
            hint=f"Is that a registry, and the image of today's format? {BY_DIGEST}",
        )
    body = await _read(response, MAX_MANIFEST, where)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    claimed = response.headers.get("Docker-Content-Digest", digest)
    if _DIGEST.fullmatch(claimed) and claimed != digest:
        raise ImageError(
            f"the registry says that {where} is {claimed}, but sent {digest}",
            hint=f"Something on the way changed it: try again, or another network. {BY_DIGEST}",
        )
    return digest


async def _read(response: aiohttp.ClientResponse, limit: int, where: str) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise ImageError(f"the answer about {where} is larger than {limit} bytes", hint=BY_DIGEST)
    return bytes(body)


def _refusal(status: int, where: str) -> ImageError:
    match status:
        case 404:
            return ImageError(
                f"there is no {where}",
                hint="Look at the spelling of its name and its tag.",
            )
        case 401 | 403:
            return ImageError(
                f"{where} is not open to everybody, or does not exist (status {status})",
                hint="A host pulls images without an account: publish it, or use another one.",
            )
        case 429:
            return ImageError(
                f"the registry has had too many questions from here; it was asked for {where}",
                hint=f"Try again later. {BY_DIGEST}",
            )
        case _:
            return ImageError(
                f"the registry answered {status} when asked for {where}", hint=f"Try again. {BY_DIGEST}"
            )
