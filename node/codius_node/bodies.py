"""What clients send along: its media type checked, read within bounds, unpacked within bounds."""

from __future__ import annotations

import re
import zlib
from typing import Final

from aiohttp import web

from codius_node.errors import BodyTooLargeError, MediaTypeError, RequestError
from codius_node.jsontext import decode_json
from codius_node.model import Json

COMPRESSIONS: Final = frozenset({"gzip", "x-gzip", "deflate"})
"""Content codings of RFC 9110 8.4.1 that a request's body may have."""

_CONTENT_TYPE: Final = re.compile(r"\s*([!#$%&'*+.^_`|~\w-]+/[!#$%&'*+.^_`|~\w-]+)\s*(?:;.*)?", re.ASCII)


def check_is_json(request: web.Request) -> None:
    """RequestError or MediaTypeError for a body that says it is something else."""
    given = request.headers.getall("Content-Type", [])
    if not given:
        return  # recorded: clients may leave it out
    match = _CONTENT_TYPE.fullmatch(given[0])
    if len(given) > 1 or match is None:
        raise RequestError("Invalid content-type header", hint="Send Content-Type: application/json.")
    if match[1].lower() != "application/json":
        raise MediaTypeError(
            f"the body's Content-Type is {match[1]}, and only application/json is understood",
            hint="Send Content-Type: application/json.",
        )


async def read_body(request: web.Request, *, limit: int) -> bytes:
    """The body, decompressed, bounded while it is being read."""
    if (request.content_length or 0) > limit:
        raise BodyTooLargeError(
            f"the body has {request.content_length} bytes; this host accepts at most {limit}"
        )
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    # recorded: an encoding nobody knows is not looked at
    return _decompress(bytes(body), limit) if encoding in COMPRESSIONS and body else bytes(body)


async def read_json(request: web.Request, *, limit: int) -> Json:
    """The body as strict JSON."""
    return decode_json(await read_body(request, limit=limit), limit=limit)


def _decompress(body: bytes, limit: int) -> bytes:
    """What gzip or zlib packed, whichever it is, and no more of it than a body may have."""
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        plain = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(f"the body cannot be decompressed: {error}") from error
    if len(plain) > limit:
        raise _too_large(limit)
    if not decoder.eof:
        raise RequestError("the body cannot be decompressed: its end is missing")
    if decoder.unused_data:
        raise RequestError("the body has bytes behind the end of its compressed part")
    return plain


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body has more than {limit} bytes, which is all this host accepts")
