"""A request's head: a visitor's bytes in, what may go to a pod out."""

from __future__ import annotations

import re
from typing import Final

from codius_proxy.authority import AuthorityError, read_host
from codius_proxy.bounds import DEFAULT, LEAST, Bounds
from codius_proxy.fields import (
    ACCEPT,
    BARE_LF,
    CLAIM,
    CONNECTION,
    CONNECTION_OPTIONS,
    EXPECT,
    FORBIDDEN,
    HOST,
    LENGTH,
    MAX_FORWARDS,
    MAX_LENGTH_DIGITS,
    PROTECTED,
    REQUEST_NAMES,
    TOKEN,
    TOKEN_BYTES,
    TRANSFER,
    UPGRADE,
    Field,
    HttpError,
    check_transfer_encoding,
    may_tunnel,
    parse_length,
    prefers_html,
    shown,
    split_block,
    tokens,
    why_no_name,
    without,
)
from codius_proxy.memo import Memo

MAX_METHOD: Final = 32  # bytes; the longest registered one has 17
# A gateway MUST say that it was there, and in which version it was spoken to: RFC 9110 section 7.6.3.
_VIA: Final = b"\r\nVia: 1.1 codius\r\n"
_VIA_1_0: Final = b"\r\nVia: 1.0 codius\r\n"

# No fragment in a target, no octet outside ASCII: what one parser escapes another may not.
_TARGET_BYTES: Final = frozenset(range(0x21, 0x7F)) - {ord("#")}
_TARGET_ONLY: Final = bytes([byte if byte in _TARGET_BYTES else byte ^ 0xFF for byte in range(256)])
_REQUEST_LINE: Final = re.compile(rb"(" + TOKEN + rb") ([\x21\x22\x24-\x7e]++) HTTP/([0-9])\.([0-9])")
_COMMON: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_ABSOLUTE: Final = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?+://([^/?]*+)(.*+)")
MEMO_BLOCKS: Final = 1024  # header blocks remembered: a program sends the same one with each request
MEMO_BLOCK_LENGTH: Final = 1024  # bytes; longer ones are read line by line each time


# Classes by hand, not dataclasses or named tuples: one of each is made per request, and compiled these cost
# a sixth.
class Framing:
    """What the header lines of a request say, whatever its first line is: a function of their bytes."""

    __slots__ = (
        "accept", "chunked", "claims", "close", "expect", "fields", "host", "length", "max_forwards",
        "upgrade",
    )  # fmt: skip

    def __init__(
        self,
        fields: bytes,
        host: bytes,
        length: int | None,
        chunked: bool,
        close: bool,
        upgrade: bytes | None,
        expect: bool,
        accept: bytes,
        claims: tuple[Field, ...],
        max_forwards: int | None,
    ) -> None:
        self.fields = fields  # for the pod: Host, what is end-to-end as it came, and the body's framing
        self.host = host
        self.length = length
        self.chunked = chunked
        self.close = close
        self.upgrade = upgrade  # offered, and one that may pass
        self.expect = expect
        self.accept = accept
        self.claims = claims
        self.max_forwards = max_forwards


class RequestHead:
    """A request as it may go to a pod: end-to-end fields only, the rest decided. Nobody changes one."""

    __slots__ = (
        "accept", "chunked", "claims", "expect", "fields", "host", "keep_alive", "last_hop", "length",
        "method", "minor", "secure", "target", "upgrade",
    )  # fmt: skip

    def __init__(
        self,
        method: bytes,
        target: bytes,
        minor: int,
        host: bytes,
        fields: bytes,
        length: int | None,
        chunked: bool,
        keep_alive: bool,
        upgrade: bytes | None,
        expect: bool,
        accept: bytes = b"",
        claims: tuple[Field, ...] = (),
        last_hop: bool = False,
        secure: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        self.minor = minor  # of HTTP/1.x
        self.host = host
        self.fields = fields  # as in `Framing`, CR LF before each line
        self.length = length
        self.chunked = chunked
        self.keep_alive = keep_alive
        self.upgrade = upgrade
        self.expect = expect
        self.accept = accept  # what the visitor would like; one field where there were several
        self.claims = claims  # Forwarded, X-Forwarded-*, X-Real-IP: nothing unless the peer is trusted
        self.last_hop = last_hop  # we are to answer it, RFC 9110 section 7.6.2
        self.secure = secure  # its target says https, so that it may have come by nothing else

    @property
    def html(self) -> bool:
        """Whether the visitor takes HTML: a person, most likely."""
        return prefers_html(self.accept)

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again when a kept-alive connection turns out to be dead.

        RFC 9110 section 9.2.2: idempotent by its method's definition. With a body it is not, for the
        body is gone.
        """
        return self.method in _IDEMPOTENT and not self.chunked and not self.length


_IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))


def find_head_end(buffer: bytes, start: int = 0, bounds: Bounds = DEFAULT) -> int:
    """Where a request's blank line begins, -1 while it has not arrived; HttpError as soon as it never can.

    `start` is what an earlier call already looked through.
    """
    end = buffer.find(b"\r\n\r\n", start - 3 if start > 3 else 0)
    if 0 <= end <= bounds.head:
        return end
    if len(buffer) > bounds.head:
        longest = min(bounds.line + MAX_METHOD, bounds.head)  # of a request line
        if b"\r\n" not in buffer[:longest]:
            raise HttpError(414, f"The request target is longer than {min(bounds.line, bounds.head)} bytes.")
        raise HttpError(431, f"The request head is longer than {bounds.head} bytes.")
    if buffer and buffer[0] not in TOKEN_BYTES:
        raise HttpError(400, "This is not an HTTP/1.1 request.")
    if BARE_LF.search(buffer, max(0, start - 1)):
        raise HttpError(400, "Lines of a request head end with CR LF; this one has a bare LF.")
    return -1


def parse_request(head: bytes, bounds: Bounds = DEFAULT) -> RequestHead:
    """A request head without the blank line's CR LF CR LF; HttpError for anything ambiguous."""
    end = head.find(b"\r\n")
    line = head if end < 0 else head[:end]
    words = line.split(b" ")
    # What nearly all requests begin with needs no regex.
    if (
        len(words) == 3
        and words[2] == b"HTTP/1.1"
        and words[0] in _COMMON
        and words[1]
        and words[1].translate(_TARGET_ONLY) == words[1]
    ):
        method, target, digit = words[0], words[1], b"1"
    else:
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise HttpError(*_why_no_request_line(line, bounds))
        method, target, major, digit = match.groups()
        if major != b"1" or digit not in b"01":
            raise HttpError(505, "This host speaks HTTP/1.1 and HTTP/1.0.")
        if (unserved := _UNSERVED.get(method.upper())) is not None:  # their names have no case to some pods
            raise HttpError(501, unserved)
    if len(method) > MAX_METHOD:
        raise HttpError(501, f"A method longer than {MAX_METHOD} bytes is not known here.")
    if len(target) > bounds.line:
        raise HttpError(414, f"The request target is longer than {bounds.line} bytes.")
    block = head[len(line) :]
    framing = remembered_blocks.get(block) if len(block) <= MEMO_BLOCK_LENGTH else None
    if framing is None:
        framing = _parse_block(block, bounds)
    minor = 1 if digit == b"1" else 0
    if not minor and framing.chunked:  # faulty framing, RFC 9112 section 6.1
        raise HttpError(400, "HTTP/1.0 knows no Transfer-Encoding.")
    if target[0] != _SLASH:
        path = _origin_form(method, target, framing.host)
        found = _build_head(method, path, minor, framing)
        found.secure = target[:6].lower() == b"https:"
        return found
    return _build_head(method, target, minor, framing)


def render_request(head: RequestHead, forwarding: bytes) -> bytes:
    """The head for the pod; `forwarding` are complete lines that say who the visitor is."""
    parts = [head.method, b" ", head.target, b" HTTP/1.1", head.fields]
    if head.expect:
        parts.append(b"\r\nExpect: 100-continue")
    if head.upgrade is not None:
        parts += b"\r\nConnection: Upgrade\r\nUpgrade: ", head.upgrade
    parts += _VIA if head.minor else _VIA_1_0, forwarding, b"\r\n"
    return b"".join(parts)


def _build_head(method: bytes, target: bytes, minor: int, framing: Framing) -> RequestHead:
    if framing.max_forwards is not None:
        return _count_hop(method, target, minor, framing, framing.max_forwards)
    return _combine(method, target, minor, framing, framing.fields, False)


def _combine(
    method: bytes, target: bytes, minor: int, framing: Framing, fields: bytes, last_hop: bool
) -> RequestHead:
    return RequestHead(
        method,
        target,
        minor,
        framing.host,
        fields,
        framing.length,
        framing.chunked,
        # HTTP/1.0 keep-alive would need every answer's length in advance: closing is simpler and right.
        minor == 1 and not framing.close,
        framing.upgrade if minor else None,
        framing.expect and minor == 1,
        framing.accept,
        framing.claims,
        last_hop,
    )


_SLASH: Final = ord("/")
_UNSERVED: Final = {
    b"CONNECT": "This is no forward proxy: CONNECT is not served.",
    b"TRACE": "TRACE is not served: it shows scripts what only a browser should know.",
}
remembered_blocks: Final[Memo[Framing]] = Memo(entries=MEMO_BLOCKS, length=MEMO_BLOCK_LENGTH)


def _parse_block(block: bytes, bounds: Bounds) -> Framing:
    """The header lines of a request, CR LF before each; HttpError."""
    kept: list[bytes] = []
    host: bytes | None = None
    length: int | None = None
    accept = b""
    chunked = expect = False
    options = _NOTHING
    upgrade: bytes | None = None
    claims: list[Field] = []
    hops: int | None = None
    lines = split_block(block, bounds.fields)
    if len(block) > bounds.line and max(map(len, lines)) > bounds.line:
        raise HttpError(431, f"A header line is longer than {bounds.line} bytes.")
    for line in lines:
        name, colon, value = line.partition(b":")
        kind = REQUEST_NAMES[name]
        if not colon:
            raise HttpError(400, why_no_name(name))
        if kind is None:
            kept.append(line)
            continue
        value = value.strip(b" \t")
        if kind is ACCEPT:
            kept.append(line)
            accept = accept + b"," + value if accept else value
        elif kind is HOST:
            if host is not None:
                raise HttpError(400, "The request has more than one Host field.")
            host = value
        elif kind is CONNECTION:
            options = options | tokens(value) if options else tokens(value)
        elif kind is LENGTH:
            if length is not None:
                raise HttpError(400, "The request has more than one Content-Length field.")
            length = parse_length(value)
        elif kind is TRANSFER:
            if chunked:
                raise HttpError(400, "The request has more than one Transfer-Encoding field.")
            if b"\t" in line:  # readers differ in whether a tab belongs to the coding's name
                raise HttpError(400, "The Transfer-Encoding field has a tab in it.")
            check_transfer_encoding(value)
            chunked = True
        elif kind is UPGRADE:
            upgrade = value if upgrade is None else upgrade + b", " + value
        elif kind is EXPECT:
            if expect:
                raise HttpError(400, "The request has more than one Expect field.")
            if value.lower() != b"100-continue":
                raise HttpError(417, "Only `Expect: 100-continue` can be met.")
            expect = True
        elif kind is CLAIM:
            claims.append(Field(kind, name.lower(), value))
        elif kind is MAX_FORWARDS:
            if hops is not None or not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
                raise HttpError(400, f"Max-Forwards must be one number, not {shown(value)}.")
            hops = int(value)
        elif kind is FORBIDDEN:
            raise HttpError(
                400, f"The field name {name.decode()} is too close to one that frames the message."
            )
    if chunked and length is not None:
        raise HttpError(400, "The request has both Content-Length and Transfer-Encoding.")
    if host is None:
        raise HttpError(400, "The request has no Host field.")
    try:
        read_host(host)
    except AuthorityError as error:
        raise HttpError(400, f"The Host field is not valid: {error}.") from error
    has_body = chunked or bool(length)
    if upgrade is not None and (b"upgrade" not in options or has_body or not may_tunnel(upgrade)):
        upgrade = None  # ignoring an offer to upgrade is always allowed, RFC 9110 section 7.8
    if options and (named := options - CONNECTION_OPTIONS):
        if not named.isdisjoint(PROTECTED):
            raise HttpError(400, "The Connection field names a field that is meant for the pod.")
        if chunked:  # the trailer, which goes on as it came, might hold them
            raise HttpError(400, "The Connection field of a chunked request names other fields.")
        kept = without(kept, named)
    kept.insert(0, b"\r\nHost: " + host)
    if chunked:
        kept.append(b"Transfer-Encoding: chunked")
    elif length is not None:
        kept.append(b"Content-Length: %d" % length)
    found = Framing(
        b"\r\n".join(kept),
        host,
        length,
        chunked,
        b"close" in options,
        upgrade,
        expect and has_body,
        accept,
        tuple(claims),
        hops,
    )
    if len(lines) <= LEAST.fields:
        remembered_blocks.remember(block, found)
    return found


_NOTHING: Final[frozenset[bytes]] = frozenset()


def _count_hop(method: bytes, target: bytes, minor: int, framing: Framing, left: int) -> RequestHead:
    """A request that may pass so many proxies only; the field counts for OPTIONS (and TRACE) alone."""
    counts = method == b"OPTIONS"
    line = b"\r\nMax-Forwards: %d" % (left - 1 if counts and left else left)
    return _combine(method, target, minor, framing, framing.fields + line, counts and not left)


def _origin_form(method: bytes, target: bytes, host: bytes) -> bytes:
    """The target as a pod wants it, RFC 9112 sections 3.2.1 to 3.2.4."""
    if target == b"*" and method == b"OPTIONS":
        return target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise HttpError(400, "The request target must begin with `/`.")
    authority, rest = match.groups()
    # Section 3.2.2 has us prefer the target. No honest client sends two names (section 3.2), and whoever
    # looks at the other one after us would be misled: refused.
    if authority.lower() != host.lower():
        raise HttpError(400, "The request target and the Host field name different hosts.")
    if not rest:
        return b"*" if method == b"OPTIONS" else b"/"
    return rest if rest[0] == _SLASH else b"/" + rest


def _why_no_request_line(line: bytes, bounds: Bounds) -> tuple[int, str]:
    if len(line) > bounds.line:
        return 414, f"The request target is longer than {bounds.line} bytes."
    if b"\n" in line or b"\r" in line:
        return 400, "Lines of a request head end with CR LF; this one has a bare CR or LF."
    return 400, f"{shown(line)} is no request line: method, target and HTTP/1.1 with one space between."
