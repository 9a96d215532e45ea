"""Header lines: their grammar, and those of them that mean something to a proxy.

A visitor's request passes through two parsers, ours and the pod's. Whatever the two could read
differently is refused here instead of passed on (RFC 9112 section 11.2, request smuggling).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

MEMO_NAMES: Final = 1024  # field names remembered per direction
MEMO_NAME_LENGTH: Final = 64  # bytes; longer ones are classified each time
MAX_LENGTH_DIGITS: Final = 18  # of a Content-Length: below 2**63 with room to spare

# Possessive quantifiers only on single characters: Python 3.11 before 3.11.5 lets fullmatch succeed in the
# middle of a possessive group (gh-106052), and Debian 12 has 3.11.2.
TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
TOKEN_BYTES: Final = b"!#$%&'*+.^_`|~-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TOKEN_ONLY: Final = re.compile(TOKEN)
BARE_LF: Final = re.compile(rb"(?<!\r)\n")
FIELD: Final = re.compile(rb"(" + TOKEN + rb"):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)")
_VALUE_BYTES: Final = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
MAX_ACCEPT: Final = 1024  # bytes that are read of what a visitor would like; browsers send 150
_WEIGHT: Final = re.compile(rb"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_JSON_RANGES: Final = (b"application/json", b"application/*", b"*/*")  # the first that is named counts
_PROTOCOL: Final = re.compile(TOKEN + rb"(?:/" + TOKEN + rb")?")


class HttpError(Exception):
    """A message that is refused: the status to answer with and a sentence that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Kind(Enum):
    """What a header line that is not simply forwarded means to a proxy."""

    DROPPED = "hop-by-hop: meant for us"
    CLAIM = "says who the visitor is: only a peer we trust may"
    FORBIDDEN = "looks like a framing field to some parsers"
    HOST = "host"
    LENGTH = "content-length"
    TRANSFER = "transfer-encoding"
    CONNECTION = "connection"
    UPGRADE = "upgrade"
    EXPECT = "expect"
    ACCEPT = "accept"
    COOKIE = "set-cookie"
    DATE = "date"
    MAX_FORWARDS = "max-forwards"
    POLICY = "strict-transport-security"


# An enum's member costs 60 ns to look up in Python 3.11, and there are a dozen look-ups per head.
DROPPED: Final = Kind.DROPPED
CLAIM: Final = Kind.CLAIM
FORBIDDEN: Final = Kind.FORBIDDEN
HOST: Final = Kind.HOST
LENGTH: Final = Kind.LENGTH
TRANSFER: Final = Kind.TRANSFER
CONNECTION: Final = Kind.CONNECTION
UPGRADE: Final = Kind.UPGRADE
EXPECT: Final = Kind.EXPECT
ACCEPT: Final = Kind.ACCEPT
COOKIE: Final = Kind.COOKIE
DATE: Final = Kind.DATE
MAX_FORWARDS: Final = Kind.MAX_FORWARDS
POLICY: Final = Kind.POLICY


class Field(NamedTuple):
    """One header line, read: what it is to us, its lower-case name, its value."""

    kind: Kind
    name: bytes
    value: bytes


PROTECTED: Final = frozenset(
    # A visitor who names these in Connection wants a pod to miss them.
    b"host content-length transfer-encoding content-type content-encoding content-range expect authorization"
    b" cookie origin cache-control range max-forwards via forwarded x-forwarded-for x-forwarded-proto"
    b" x-forwarded-host x-real-ip".split()
)
# Of a head these stay here or are decided here, and a trailer goes on as it came.
NOT_IN_TRAILERS: Final = PROTECTED | frozenset(
    b"connection te trailer upgrade set-cookie keep-alive proxy-connection proxy-authorization http2-settings"
    b" proxy".split()
)
# Options that name no field, and those whose fields stay behind in any case.
CONNECTION_OPTIONS: Final = frozenset(
    (b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings", b"proxy-connection")
)
CLAIMS: Final = b"x-forwarded-"
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"host", b"connection"))
_UNTUNNELLED: Final = frozenset((b"h2c", b"h2", b"tls"))  # protocols a proxy must not wave through
_HOP_BY_HOP: Final = {
    b"connection": Kind.CONNECTION,
    b"content-length": Kind.LENGTH,
    b"transfer-encoding": Kind.TRANSFER,
    b"upgrade": Kind.UPGRADE,
    b"keep-alive": Kind.DROPPED,
    b"proxy-connection": Kind.DROPPED,
    b"te": Kind.DROPPED,
}
_REQUEST_KINDS: Final[Mapping[bytes, Kind]] = MappingProxyType(
    {
        **_HOP_BY_HOP,
        b"host": Kind.HOST,
        b"expect": Kind.EXPECT,
        b"accept": Kind.ACCEPT,
        b"http2-settings": Kind.DROPPED,
        b"proxy-authorization": Kind.DROPPED,
        b"proxy": Kind.DROPPED,  # becomes HTTP_PROXY in CGI programs
        b"forwarded": Kind.CLAIM,
        b"x-real-ip": Kind.CLAIM,
        b"max-forwards": Kind.MAX_FORWARDS,
    }
)
_RESPONSE_KINDS: Final[Mapping[bytes, Kind]] = MappingProxyType(
    {
        **_HOP_BY_HOP,
        b"set-cookie": Kind.COOKIE,
        b"date": Kind.DATE,
        b"strict-transport-security": Kind.POLICY,
    }
)


_NO_TOKEN: Final = 0  # what `alike` makes of bytes that no name may have


def _fold(byte: int) -> int:
    if byte not in TOKEN_BYTES:
        return _NO_TOKEN
    return ord(chr(byte).lower()) if chr(byte).isalnum() else ord("-")


_ALIKE: Final = bytes(map(_fold, range(256)))


def alike(name: bytes) -> bytes:
    """A field's name as readers see it that tell letters and digits apart only.

    CGI makes `_` of `-` (RFC 3875 section 4.1.18), and some servers of every other character as well: to
    their programs X_Forwarded_For and X.Forwarded.For are X-Forwarded-For.
    """
    return name.translate(_ALIKE)


class NameMemo(dict[bytes, Kind | None]):
    """A field's name, as it is written, to what the field means to us; None: nothing, it is forwarded.

    HttpError for what is no name: one that is known needs no second look. Names hardly vary where values
    do. Bounded, and forgotten all at once when full: a flood of new names costs each reader what it
    costs without a memo.
    """

    def __init__(self, kinds: Mapping[bytes, Kind], *, from_visitor: bool) -> None:
        super().__init__()
        self._kinds = dict(kinds)
        self._from_visitor = from_visitor

    def __missing__(self, name: bytes) -> Kind | None:
        same = alike(name)  # a regex takes three times as long; floods bring new names
        if not name or _NO_TOKEN in same:
            raise HttpError(400, why_no_name(name))
        lowered = name.lower()
        kind = self._kinds.get(lowered)
        if kind is None and (same != lowered or same.startswith(CLAIMS)):
            kind = self._classify(lowered, same)
        if len(name) <= MEMO_NAME_LENGTH:
            if len(self) >= MEMO_NAMES:
                self.clear()
            self[name] = kind
        return kind

    def _classify(self, name: bytes, same: bytes) -> Kind | None:
        """What a name means that is none of ours as it stands, but to some readers the `same` as another."""
        if same != name and same in _FRAMING:
            return FORBIDDEN
        if not self._from_visitor:
            return None
        if same.startswith(CLAIMS):
            return CLAIM
        kind = self._kinds.get(same)
        return kind if kind in (DROPPED, CLAIM) else None


REQUEST_NAMES: Final = NameMemo(_REQUEST_KINDS, from_visitor=True)
RESPONSE_NAMES: Final = NameMemo(_RESPONSE_KINDS, from_visitor=False)


def split_block(block: bytes, most: int) -> list[bytes]:
    """The header lines of a head, each of which has its CR LF before it; HttpError 400, 431.

    What is left to check of a line after that is its name, by a NameMemo, and that there is a colon.
    """
    lines = block.split(b"\r\n")
    del lines[0]
    # Without all bytes that may be in a line, one CR LF is left for each of them: a CR or LF of its own
    # would be left over, and so would any other control character. Faster than a regex.
    if block.translate(None, _VALUE_BYTES) != b"\r\n" * len(lines):
        raise HttpError(400, next(why_no_field(line) for line in lines if not FIELD.fullmatch(line)))
    if len(lines) > most:
        raise HttpError(431, f"There are more than {most} header lines.")
    return lines


def without(lines: Iterable[bytes], names: frozenset[bytes]) -> list[bytes]:
    """`lines` without the fields of these lower-case names: those the Connection field named."""
    return [line for line in lines if line.partition(b":")[0].lower() not in names]


def parse_length(value: bytes) -> int:
    """A Content-Length: one number and nothing else, RFC 9112 section 6.3; HttpError."""
    if not value.isdigit():
        raise HttpError(400, f"Content-Length must be one number, not {shown(value)}.")
    if value[:1] == b"0" != value:
        raise HttpError(400, "A Content-Length begins with a zero, which some readers take for octal.")
    if len(value) > MAX_LENGTH_DIGITS:
        raise HttpError(413, f"A body of {shown(value)} bytes is more than anybody can take.")
    return int(value)


def check_transfer_encoding(value: bytes) -> None:
    """`chunked` and nothing else: 501 for codings we could not undo, 400 for nonsense. HttpError."""
    lowered = value.lower()
    if lowered == b"chunked":
        return
    codings = [part.strip(b" \t") for part in lowered.split(b",")]
    if (
        codings[-1] == b"chunked"
        and codings.count(b"chunked") == 1
        and all(map(TOKEN_ONLY.fullmatch, codings))
    ):
        raise HttpError(501, "Only the transfer coding `chunked` is known here.")
    raise HttpError(400, f"Transfer-Encoding must be `chunked`, not {shown(value)}.")


@lru_cache(maxsize=256)
def tokens(value: bytes) -> frozenset[bytes]:
    """The lower-case members of a Connection field; HttpError 400."""
    found = set()
    for part in value.lower().split(b","):
        token = part.strip(b" \t")
        if not token:  # empty list members are allowed, RFC 9110 section 5.6.1
            continue
        if not TOKEN_ONLY.fullmatch(token):
            raise HttpError(400, f"{shown(token)} in the Connection field is no token.")
        found.add(token)
    return frozenset(found)


def prefers_html(accept: bytes) -> bool:
    """Whether an Accept field names HTML, and JSON no sooner: RFC 9110 section 12.5.1."""
    lowered = accept[:MAX_ACCEPT].lower()
    if b"text/html" not in lowered:
        return False
    weights: dict[bytes, float] = {}
    for part in lowered.split(b","):
        media, *parameters = [piece.strip(b" \t") for piece in part.split(b";")]
        weight = next((float(found[1]) for found in map(_WEIGHT.fullmatch, parameters) if found), 1.0)
        weights[media] = max(weight, weights.get(media, 0.0))
    html = weights.get(b"text/html", 0.0)
    json = next((weights[media] for media in _JSON_RANGES if media in weights), 0.0)
    return html > 0 and html >= json


@lru_cache(maxsize=64)
def protocols(value: bytes) -> frozenset[bytes]:
    """The protocols of an Upgrade field; empty when one of them is no protocol name."""
    found = frozenset(part.strip(b" \t") for part in value.lower().split(b","))
    return found if all(map(_PROTOCOL.fullmatch, found)) else frozenset()


def may_tunnel(upgrade: bytes) -> bool:
    """Whether a pod may be offered these protocols: none that would hide HTTP requests from us."""
    names = protocols(upgrade)
    return bool(names) and not any(
        name in _UNTUNNELLED or name.startswith((b"http/", b"tls/", b"h2")) for name in names
    )


def shown(value: bytes) -> str:
    """Bytes of a stranger, short and harmless enough for a message."""
    text = ascii(value[:40].decode("latin-1"))
    return text if len(value) <= 40 else text + "..."


def why_no_field(line: bytes) -> str:
    name, colon, _ = line.partition(b":")
    if line[:1] in (b" ", b"\t") or not colon or not TOKEN_ONLY.fullmatch(name):
        return why_no_name(name if colon else line)
    if b"\n" in line or b"\r" in line:
        return "Lines of a head end with CR LF; this one has a bare CR or LF."
    return f"The value of {shown(name)} contains a control character."


def why_no_name(name: bytes) -> str:
    if name[:1] in (b" ", b"\t"):
        return "A header field continues on a second line, which HTTP/1.1 no longer allows."
    if b"\n" in name or b"\r" in name:
        return "Lines of a head end with CR LF; this one has a bare CR or LF."
    if TOKEN_ONLY.fullmatch(name):
        return f"The header line {shown(name)} has no colon."
    return f"{shown(name)} is no field name."
