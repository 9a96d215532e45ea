"""JSON from strangers, decoded strictly; JSON for them; their words in what they are told."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Final

from codius_node.errors import BodyTooLargeError, RequestError
from codius_node.model import Json

MAX_DEPTH: Final = 32
"""Arrays and objects inside one another; an upload needs six."""
MAX_NUMBER_LENGTH: Final = 64
"""Characters of one number: nothing here counts that far, and int() of a million digits takes seconds."""
MAX_SHOWN: Final = 60
"""Characters of a stranger's value repeated in an error text."""

_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_JSON_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NOT_BRACKET: Final = re.compile(r"[^\[\]{}]+")


def decode_json(body: bytes, *, limit: int) -> Json:
    """The JSON value in `body`, of at most `limit` bytes, refusing what two parsers could read differently.

    The error texts repeat no values of the body, because some are private.
    """
    if len(body) > limit:
        raise BodyTooLargeError(f"the body has {len(body)} bytes; this host accepts at most {limit}")
    if not body.strip(b" \t\r\n"):
        raise RequestError("the body is empty; it must be a JSON object")
    if body.startswith(b"\xef\xbb\xbf"):
        raise RequestError("the body starts with a byte order mark; JSON must be UTF-8 without one")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the body is not UTF-8: 0x{body[error.start]:02x} at byte {error.start} does not belong there"
        ) from error
    try:
        document: Json = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
    except json.JSONDecodeError as error:
        raise RequestError(
            f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    except RecursionError as error:
        raise _too_deep() from error
    if _is_deeper(text, MAX_DEPTH):
        raise _too_deep()
    # Python accepts the escape of half a surrogate pair, and then cannot encode the string again.
    if _SURROGATE_ESCAPE.search(text) and not is_encodable(render_json(document)):
        raise RequestError(
            r"the body has half of a surrogate pair (such as \ud83d alone), which is not a character"
        )
    return document


def render_json(document: Json | Mapping[str, Json]) -> str:
    """JSON without spaces, keys in their own order: what JSON.stringify makes of the same document."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RequestError(f"the body has the key {quote(key)} twice in one object; give it once")
            seen.add(key)
    return result


def _constant(name: str) -> Json:
    raise RequestError(f"the body has {name}, which is not JSON; numbers must be finite")


def _integer(digits: str) -> Json:
    if len(digits) > MAX_NUMBER_LENGTH:
        raise RequestError(
            f"the body has a number of {len(digits)} characters; at most {MAX_NUMBER_LENGTH} are accepted"
        )
    return int(digits)


def _float(digits: str) -> Json:
    if len(digits) > MAX_NUMBER_LENGTH:
        _integer(digits)
    number = float(digits)
    if not math.isfinite(number):
        raise RequestError("the body has a number too large for a double; numbers must be finite")
    return number


def _too_deep() -> RequestError:
    return RequestError(
        f"the body is nested too deeply; at most {MAX_DEPTH} arrays and objects may be inside one another"
    )


def _is_deeper(text: str, depth: int) -> bool:
    """Whether valid JSON nests deeper than `depth`, found by peeling off the innermost pairs."""
    brackets = _NOT_BRACKET.sub("", _JSON_STRING.sub("", text)).replace("{", "[").replace("}", "]")
    for _ in range(depth):
        if not brackets:
            return False
        brackets = brackets.replace("[]", "")
    return bool(brackets)


def is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def wire_name(field: str) -> str:
    """`cost_per_month` is `costPerMonth` to clients."""
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


def quote(text: str) -> str:
    """A stranger's text for an error message: quoted, escaped, and cut when long."""
    shown = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    quoted = json.dumps(shown, ensure_ascii=False)
    return quoted if quoted.isprintable() else json.dumps(shown)
