"""HTTP/1.1 heads and bodies as a strict reader sees them: bytes in, values out, no I/O.

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

MAX_HEAD: Final = 32 * 1024  # bytes of a request head; browsers stay below 16 KiB
MAX_TARGET: Final = 16 * 1024  # bytes of a request target: longer ones get 414
MAX_METHOD: Final = 32  # bytes; the longest registered one has 17
MAX_FIELDS: Final = 128  # header lines of a head
MAX_RESPONSE_HEAD: Final = 64 * 1024  # bytes; pods may send longer heads than visitors
MAX_LENGTH_DIGITS: Final = 18  # of a Content-Length: below 2**63 with room to spare
MAX_CHUNK_LINE: Final = 256  # bytes of a chunk's size with its extensions
MAX_CHUNK_DIGITS: Final = 15  # hexadecimal: below 2**63
MAX_TRAILER: Final = 8 * 1024  # bytes of all fields after a chunked body
MEMO_LINES: Final = 2048  # header lines remembered per direction: unchanged ones cost one look-up
MEMO_LINE_LENGTH: Final = 256  # bytes; longer lines (cookies, mostly) are parsed each time

# Possessive quantifiers only on single characters: Python 3.11 before 3.11.5 lets fullmatch succeed in the
# middle of a possessive group (gh-106052), and Debian 12 has 3.11.2.
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
# No fragment in a target, no octet outside ASCII: what one parser escapes another may not.
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb") ([\x21\x22\x24-\x7e]++) HTTP/([0-9])\.([0-9])")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*+))?")
_FIELD: Final = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)")
_TOKEN_ONLY: Final = re.compile(_TOKEN)
_PROTOCOL: Final = re.compile(_TOKEN + rb"(?:/" + _TOKEN + rb")?")
_ABSOLUTE: Final = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?+://([^/?]*+)(.*+)")
_DIGITS: Final = re.compile(rb"[0-9]++")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t \x21-\x7e])*"'
_CHUNK_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]++)(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*"
)
_TOKEN_BYTES: Final = frozenset(
    b"!#$%&'*+.^_`|~-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)


class HttpError(Exception):
    """A message that is refused: the status to answer with and a sentence that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Kind(Enum):
    """What a header line means to a proxy."""

    PLAIN = "forwarded as it came"
    DROPPED = "hop-by-hop, or a claim about the visitor that only we may make"
    FORBIDDEN = "looks like a framing field to some parsers"
    HOST = "host"
    LENGTH = "content-length"
    TRANSFER = "transfer-encoding"
    CONNECTION = "connection"
    UPGRADE = "upgrade"
    EXPECT = "expect"
    ACCEPT = "accept"


class Body(Enum):
    """How the end of a response's body is found, RFC 9112 section 6.3."""

    NONE = "there is no body"
    LENGTH = "after Content-Length bytes"
    CHUNKED = "after the last chunk"
    UNTIL_CLOSE = "when the connection ends"


class Field(NamedTuple):
    """One header line, read: what it is to us, its lower-case name, its value."""

    kind: Kind
    name: bytes
    value: bytes


# NamedTuples, not dataclasses: one of each is made per request, and a frozen dataclass costs 3x as much.
class RequestHead(NamedTuple):
    """A request as it may go to a pod: end-to-end fields only, the rest decided."""

    method: bytes
    target: bytes
    minor: int  # of HTTP/1.x
    host: bytes
    fields: tuple[bytes, ...]
    length: int | None
    chunked: bool
    keep_alive: bool
    upgrade: bytes | None
    expect: bool
    html: bool  # the visitor takes HTML: a person, most likely

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again when a kept-alive connection turns out to be dead."""
        return not self.has_body and self.method in (b"GET", b"HEAD")


class ResponseHead(NamedTuple):
    """A response as it may go to a visitor: end-to-end fields only, the rest decided."""

    status: int
    status_line: bytes
    fields: tuple[bytes, ...]
    body: Body
    length: int | None  # as declared, also where no body follows (HEAD, 304)
    reusable: bool  # another request may follow on the pod's connection
    upgrade: bytes | None


_PROTECTED: Final = frozenset(
    # A visitor who names these in Connection wants a pod to miss them.
    b"host content-length transfer-encoding content-type expect authorization cookie origin forwarded"
    b" x-forwarded-for x-forwarded-proto x-forwarded-host".split()
)
_NOT_IN_TRAILERS: Final = _PROTECTED | {b"connection", b"te", b"trailer", b"upgrade", b"set-cookie"}
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
        b"forwarded": Kind.DROPPED,
        b"x-real-ip": Kind.DROPPED,
        b"via": Kind.DROPPED,  # a visitor's claim as well; some pods stop compressing when they see it
    }
)
_RESPONSE_KINDS: Final[Mapping[bytes, Kind]] = MappingProxyType({**_HOP_BY_HOP})


class _Memo(dict[bytes, Field]):
    """Header lines already read; bounded, and forgotten all at once when full."""

    def __init__(self, kinds: Mapping[bytes, Kind], *, from_visitor: bool) -> None:
        super().__init__()
        self._kinds = kinds
        self._from_visitor = from_visitor

    def __missing__(self, line: bytes) -> Field:
        field = self._read(line)
        if len(line) <= MEMO_LINE_LENGTH:
            if len(self) >= MEMO_LINES:
                self.clear()
            self[line] = field
        return field

    def _read(self, line: bytes) -> Field:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise HttpError(400, _why_no_field(line))
        name = match[1].lower()
        return Field(self._kind(name), name, match[2].rstrip(b" \t"))

    def _kind(self, name: bytes) -> Kind:
        kind = self._kinds.get(name)
        if kind is not None:
            return kind
        # CGI-like programs read `_` and `-` as the same: X_Forwarded_For is a claim as well.
        same = name.replace(b"_", b"-")
        if same != name and same in (b"content-length", b"transfer-encoding", b"host", b"connection"):
            return Kind.FORBIDDEN
        if self._from_visitor and (same.startswith(b"x-forwarded-") or self._kinds.get(same) is Kind.DROPPED):
            return Kind.DROPPED
        return Kind.PLAIN


_request_lines: Final = _Memo(_REQUEST_KINDS, from_visitor=True)
_response_lines: Final = _Memo(_RESPONSE_KINDS, from_visitor=False)


def find_head_end(buffer: bytes, start: int = 0) -> int:
    """Where a request's blank line begins, -1 while it has not arrived; HttpError as soon as it never can.

    `start` is what an earlier call already looked through.
    """
    end = buffer.find(b"\r\n\r\n", max(0, start - 3))
    if 0 <= end <= MAX_HEAD:
        return end
    if len(buffer) > MAX_HEAD:
        if b"\r\n" not in buffer[: MAX_TARGET + MAX_METHOD]:
            raise HttpError(414, f"The request target is longer than {MAX_TARGET} bytes.")
        raise HttpError(431, f"The request head is longer than {MAX_HEAD} bytes.")
    if buffer and buffer[0] not in _TOKEN_BYTES:
        raise HttpError(400, "This is not an HTTP/1.1 request.")
    if _BARE_LF.search(buffer, max(0, start - 1)):
        raise HttpError(400, "Lines of a request head end with CR LF; this one has a bare LF.")
    return -1


def parse_request(head: bytes) -> RequestHead:
    """A request head without the blank line's CR LF CR LF; HttpError for anything ambiguous."""
    lines = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise HttpError(*_why_no_request_line(lines[0]))
    method, target, major, minor_digit = match.groups()
    if major != b"1" or minor_digit not in b"01":
        raise HttpError(505, "This host speaks HTTP/1.1 and HTTP/1.0.")
    if len(method) > MAX_METHOD:
        raise HttpError(501, f"A method longer than {MAX_METHOD} bytes is not known here.")
    if len(target) > MAX_TARGET:
        raise HttpError(414, f"The request target is longer than {MAX_TARGET} bytes.")
    if len(lines) > MAX_FIELDS + 1:
        raise HttpError(431, f"The request has more than {MAX_FIELDS} header lines.")
    minor = 1 if minor_digit == b"1" else 0

    host: bytes | None = None
    length: int | None = None
    chunked = expect = html = False
    connection: list[bytes] = []
    upgrade: bytes | None = None
    forward: list[bytes] = []
    for line in lines[1:]:
        kind, name, value = _request_lines[line]
        if kind is Kind.PLAIN:
            forward.append(line)
        elif kind is Kind.HOST:
            if host is not None:
                raise HttpError(400, "The request has more than one Host field.")
            host = value
        elif kind is Kind.ACCEPT:
            forward.append(line)
            html = html or b"text/html" in value.lower()
        elif kind is Kind.CONNECTION:
            connection.append(value)
        elif kind is Kind.LENGTH:
            if length is not None:
                raise HttpError(400, "The request has more than one Content-Length field.")
            length = _length(value)
        elif kind is Kind.TRANSFER:
            if chunked:
                raise HttpError(400, "The request has more than one Transfer-Encoding field.")
            _check_transfer_encoding(value, minor)
            chunked = True
        elif kind is Kind.UPGRADE:
            upgrade = value if upgrade is None else upgrade + b", " + value
        elif kind is Kind.EXPECT:
            if value.lower() != b"100-continue":
                raise HttpError(417, "Only `Expect: 100-continue` can be met.")
            expect = True
        elif kind is Kind.FORBIDDEN:
            raise HttpError(
                400, f"The field name {name.decode()} is too close to one that frames the message."
            )

    if chunked and length is not None:
        raise HttpError(400, "The request has both Content-Length and Transfer-Encoding.")
    if host is None:
        raise HttpError(400, "The request has no Host field.")
    target, host = _split_target(method, target, host)
    tokens = _tokens_of(connection)
    named = tokens - {b"close", b"keep-alive", b"upgrade"}
    if named:
        if not named.isdisjoint(_PROTECTED):
            raise HttpError(400, "The Connection field names a field that is meant for the pod.")
        forward = [line for line in forward if _request_lines[line].name not in named]
    has_body = chunked or bool(length)
    if upgrade is not None and (
        b"upgrade" not in tokens or not minor or has_body or not _may_tunnel(upgrade)
    ):
        upgrade = None  # ignoring an offer to upgrade is always allowed, RFC 9110 section 7.8
    return RequestHead(
        method=method,
        target=target,
        minor=minor,
        host=host,
        fields=tuple(forward),
        length=length,
        chunked=chunked,
        # HTTP/1.0 keep-alive would need every answer's length in advance: closing is simpler and right.
        keep_alive=minor == 1 and b"close" not in tokens,
        upgrade=upgrade,
        expect=expect and has_body and minor == 1,
        html=html,
    )


def render_request(head: RequestHead, forwarded: bytes) -> bytes:
    """The head for the pod; `forwarded` as `render_forwarded` makes it."""
    parts = [b"%b %b HTTP/1.1\r\nHost: %b" % (head.method, head.target, head.host), *head.fields]
    if head.chunked:
        parts.append(b"Transfer-Encoding: chunked")
    elif head.length is not None:
        parts.append(b"Content-Length: %d" % head.length)
    if head.expect:
        parts.append(b"Expect: 100-continue")
    if head.upgrade is not None:
        parts.append(b"Connection: Upgrade\r\nUpgrade: " + head.upgrade)
    parts.append(b"%bX-Forwarded-Host: %b\r\n\r\n" % (forwarded, head.host))
    return b"\r\n".join(parts)


def render_forwarded(address: str, scheme: str) -> bytes:
    """What a pod may believe about its visitor; the same for all requests of one connection."""
    return f"X-Forwarded-For: {address}\r\nX-Forwarded-Proto: {scheme}\r\n".encode("ascii")


def find_response_end(buffer: bytes) -> int:
    """The same for a response's head; HttpError 502."""
    end = buffer.find(b"\r\n\r\n")
    if 0 <= end <= MAX_RESPONSE_HEAD:
        return end
    if len(buffer) > MAX_RESPONSE_HEAD:
        raise HttpError(502, f"The pod's answer has a head longer than {MAX_RESPONSE_HEAD} bytes.")
    if not buffer.startswith(b"HTTP/1."[: len(buffer)]):
        raise HttpError(502, "The pod's answer is not HTTP/1.1.")
    if _BARE_LF.search(buffer):
        raise HttpError(502, "The pod's answer has a line that does not end with CR LF.")
    return -1


def parse_response(head: bytes, *, method: bytes, upgrade: bytes | None) -> ResponseHead:
    """A response's head, to a request with this method and offer to upgrade; HttpError 502."""
    try:
        return _parse_response(head, method, upgrade)
    except HttpError as error:
        raise HttpError(502, f"The pod's answer is not valid HTTP/1.1. {error.reason}") from error


def render_response(head: ResponseHead, *, close: bool, chunked: bool) -> bytes:
    """The head for the visitor; `chunked` when the body goes out in chunks."""
    parts = [head.status_line, *head.fields]
    if chunked:
        parts.append(b"Transfer-Encoding: chunked")
    elif head.length is not None:
        parts.append(b"Content-Length: %d" % head.length)
    if head.upgrade is not None:
        parts.append(b"Connection: Upgrade\r\nUpgrade: " + head.upgrade)
    elif close:
        parts.append(b"Connection: close")
    parts.append(b"\r\n")
    return b"\r\n".join(parts)


class ChunkedBody:
    """A chunked body going by: checks its framing and knows where it ends, RFC 9112 section 7.1."""

    __slots__ = ("_decode", "_left", "_pending", "_state", "_trailer", "done")

    def __init__(self, *, decode: bool = False) -> None:
        """`decode`: give out the content only, for a reader that knows no chunks (HTTP/1.0)."""
        self.done = False
        self._decode = decode
        self._state = _Chunk.SIZE
        self._left = 0  # bytes of the current chunk's data still to come
        self._pending = b""  # an incomplete line: nothing is passed on before it was checked
        self._trailer = 0  # bytes of trailer fields so far

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What may be passed on, and what came after the body's end; HttpError 400 for bad framing."""
        buffer = self._pending + data if self._pending else data
        self._pending = b""
        size = len(buffer)
        position = 0
        content: list[bytes] = []
        while position < size and not self.done:
            if self._state is _Chunk.DATA:
                taken = min(self._left, size - position)
                if self._decode:
                    content.append(buffer[position : position + taken])
                position += taken
                self._left -= taken
                if not self._left:
                    self._state = _Chunk.DATA_END
                continue
            line_end = self._line_end(buffer, position)
            if line_end < 0:
                self._pending = buffer[position:]
                break
            self._line(buffer[position:line_end])
            position = line_end + 2
        passed = b"".join(content) if self._decode else buffer[:position]
        return passed, (buffer[position:] if self.done else b"")

    def _line_end(self, buffer: bytes, position: int) -> int:
        """Where the line at `position` ends, -1 while its CR LF has not arrived."""
        limit = _LINE_LIMITS[self._state]
        end = buffer.find(b"\r\n", position, position + limit + 2)
        if end < 0:
            line = buffer[position:]
            # `limit` bytes and the CR may be there already; anything else is too much.
            if len(line.removesuffix(b"\r")) > limit or b"\n" in line or b"\r" in line[:-1]:
                raise HttpError(
                    400, f"A chunked body is broken: {self._state.value} does not end where it must."
                )
        return end

    def _line(self, line: bytes) -> None:
        if self._state is _Chunk.SIZE:
            match = _CHUNK_LINE.fullmatch(line)
            if match is None or len(match[1]) > MAX_CHUNK_DIGITS:
                raise HttpError(400, f"A chunked body is broken: {_shown(line)} is no chunk size.")
            self._left = int(match[1], 16)
            self._state = _Chunk.DATA if self._left else _Chunk.TRAILER
        elif self._state is _Chunk.DATA_END:
            self._state = _Chunk.SIZE
        elif not line:
            self.done = True
        else:
            self._trailer += len(line) + 2
            if self._trailer > MAX_TRAILER:
                raise HttpError(400, f"The trailer of a chunked body is longer than {MAX_TRAILER} bytes.")
            match = _FIELD.fullmatch(line)
            if match is None:
                raise HttpError(400, _why_no_field(line))
            name = match[1].lower().replace(b"_", b"-")
            # A pod that merges trailers into its header would take these for ours (RFC 9110 section 6.5.1).
            if name in _NOT_IN_TRAILERS or name.startswith(b"x-forwarded-"):
                raise HttpError(400, f"The field {name.decode()} is not allowed in a trailer.")


class _Chunk(Enum):
    """Where in a chunked body the next byte belongs."""

    SIZE = "a chunk size"
    DATA = "a chunk's data"
    DATA_END = "the data of a chunk"
    TRAILER = "the trailer"


_LINE_LIMITS: Final = {_Chunk.SIZE: MAX_CHUNK_LINE, _Chunk.DATA_END: 0, _Chunk.TRAILER: MAX_TRAILER}


def encode_chunk(data: bytes) -> bytes:
    """One chunk; nothing for no data, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


LAST_CHUNK: Final = b"0\r\n\r\n"


def _parse_response(head: bytes, method: bytes, asked_upgrade: bytes | None) -> ResponseHead:
    lines = head.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise HttpError(502, f"{_shown(lines[0])} is no status line.")
    minor = 1 if match[1] == b"1" else 0
    status = int(match[2])
    if len(lines) > MAX_FIELDS + 1:
        raise HttpError(502, f"It has more than {MAX_FIELDS} header lines.")
    length: int | None = None
    chunked = False
    connection: list[bytes] = []
    upgrade: bytes | None = None
    forward: list[bytes] = []
    for line in lines[1:]:
        kind, name, value = _response_lines[line]
        if kind is Kind.PLAIN:
            forward.append(line)
        elif kind is Kind.LENGTH:
            if length is not None:
                raise HttpError(502, "It has more than one Content-Length field.")
            length = _length(value)
        elif kind is Kind.TRANSFER:
            if chunked:
                raise HttpError(502, "It has more than one Transfer-Encoding field.")
            _check_transfer_encoding(value, minor)
            chunked = True
        elif kind is Kind.CONNECTION:
            connection.append(value)
        elif kind is Kind.UPGRADE:
            upgrade = value if upgrade is None else upgrade + b", " + value
        elif kind is Kind.FORBIDDEN:
            raise HttpError(502, f"Its field {name.decode()} is too close to one that frames the message.")
    if chunked and length is not None:
        raise HttpError(502, "It has both Content-Length and Transfer-Encoding.")
    tokens = _tokens_of(connection)
    named = tokens - {b"close", b"keep-alive", b"upgrade"}
    if named:
        forward = [line for line in forward if _response_lines[line].name not in named]
    if status == 101:
        offered = _protocols(asked_upgrade) if asked_upgrade is not None else frozenset()
        if upgrade is None or upgrade.lower() not in offered:
            raise HttpError(502, "It switches to a protocol nobody asked for.")
    elif status != 426:  # Upgrade Required has to name the protocol; elsewhere it is a mere offer
        upgrade = None
    bodiless = method == b"HEAD" or status < 200 or status in (204, 304)
    if status < 200 or status == 204:
        length = None  # RFC 9110 section 8.6: not allowed there
    if bodiless:
        body = Body.NONE
    elif chunked:
        body = Body.CHUNKED
    elif length is not None:
        body = Body.LENGTH if length else Body.NONE
    else:
        body = Body.UNTIL_CLOSE
    return ResponseHead(
        status=status,
        status_line=b"HTTP/1.1 %b %b" % (match[2], match[3] or b""),
        fields=tuple(forward),
        body=body,
        length=length,
        reusable=minor == 1 and body is not Body.UNTIL_CLOSE and b"close" not in tokens,
        upgrade=upgrade,
    )


def _split_target(method: bytes, target: bytes, host: bytes) -> tuple[bytes, bytes]:
    """The target in origin form, and the host it is for (RFC 9112 sections 3.2 and 3.2.2)."""
    if method == b"CONNECT":
        raise HttpError(501, "This is no forward proxy: CONNECT is not served.")
    if target[:1] == b"/":
        return target, host
    if target == b"*" and method == b"OPTIONS":
        return target, host
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise HttpError(400, "The request target must begin with `/`.")
    authority, rest = match.groups()
    if authority.lower() != host.lower():
        raise HttpError(400, "The request target and the Host field name different hosts.")
    if not rest:
        rest = b"*" if method == b"OPTIONS" else b"/"
    return (rest if rest[:1] in (b"/", b"*") else b"/" + rest), host


def _length(value: bytes) -> int:
    if not _DIGITS.fullmatch(value):
        raise HttpError(400, f"Content-Length must be one number, not {_shown(value)}.")
    if len(value) > MAX_LENGTH_DIGITS:
        raise HttpError(413, f"A body of {_shown(value)} bytes is more than anybody can take.")
    return int(value)


def _check_transfer_encoding(value: bytes, minor: int) -> None:
    if not minor:
        raise HttpError(400, "HTTP/1.0 knows no Transfer-Encoding.")
    lowered = value.lower()
    if lowered == b"chunked":
        return
    codings = [part.strip(b" \t") for part in lowered.split(b",")]
    if (
        codings[-1] == b"chunked"
        and codings.count(b"chunked") == 1
        and all(map(_TOKEN_ONLY.fullmatch, codings))
    ):
        raise HttpError(501, "Only the transfer coding `chunked` is known here.")
    raise HttpError(400, f"Transfer-Encoding must be `chunked`, not {_shown(value)}.")


@lru_cache(maxsize=256)
def _tokens(value: bytes) -> frozenset[bytes]:
    found = set()
    for part in value.lower().split(b","):
        token = part.strip(b" \t")
        if token and not _TOKEN_ONLY.fullmatch(
            token
        ):  # empty list members are allowed, RFC 9110 section 5.6.1
            raise HttpError(400, f"{_shown(token)} in the Connection field is no token.")
        if token:
            found.add(token)
    return frozenset(found)


_NO_TOKENS: Final[frozenset[bytes]] = frozenset()


def _tokens_of(values: Iterable[bytes]) -> frozenset[bytes]:
    tokens = _NO_TOKENS
    for value in values:
        tokens = tokens | _tokens(value) if tokens else _tokens(value)
    return tokens


@lru_cache(maxsize=64)
def _protocols(value: bytes) -> frozenset[bytes]:
    """The protocols of an Upgrade field; empty when one of them is no protocol name."""
    found = frozenset(part.strip(b" \t") for part in value.lower().split(b","))
    return found if all(map(_PROTOCOL.fullmatch, found)) else frozenset()


def _may_tunnel(upgrade: bytes) -> bool:
    protocols = _protocols(upgrade)
    return bool(protocols) and not any(
        name in _UNTUNNELLED or name.startswith((b"http/", b"tls/", b"h2")) for name in protocols
    )


def _shown(value: bytes) -> str:
    """Bytes of a stranger, short and harmless enough for a message."""
    text = ascii(value[:40].decode("latin-1"))
    return text if len(value) <= 40 else text + "..."


def _why_no_request_line(line: bytes) -> tuple[int, str]:
    if len(line) > MAX_TARGET:
        return 414, f"The request target is longer than {MAX_TARGET} bytes."
    if b"\n" in line or b"\r" in line:
        return 400, "Lines of a request head end with CR LF; this one has a bare CR or LF."
    return 400, f"{_shown(line)} is no request line: method, target and HTTP/1.1 with one space between."


def _why_no_field(line: bytes) -> str:
    if line[:1] in (b" ", b"\t"):
        return "A header field continues on a second line, which HTTP/1.1 no longer allows."
    if b"\n" in line or b"\r" in line:
        return "Lines of a head end with CR LF; this one has a bare CR or LF."
    name, colon, _ = line.partition(b":")
    if not colon:
        return f"The header line {_shown(line)} has no colon."
    if not _TOKEN_ONLY.fullmatch(name):
        return f"{_shown(name)} is no field name."
    return f"The value of {_shown(name)} contains a control character."
