"""A response's head: a pod's bytes in, what may go to a visitor out."""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import Final

from codius_proxy.cookies import keep_to_pod
from codius_proxy.fields import (
    CONNECTION,
    CONNECTION_OPTIONS,
    COOKIE,
    DATE,
    FORBIDDEN,
    LENGTH,
    POLICY,
    RESPONSE_NAMES,
    TOKEN,
    TRANSFER,
    UPGRADE,
    HttpError,
    check_transfer_encoding,
    parse_length,
    protocols,
    shown,
    split_block,
    tokens,
    why_no_name,
    without,
)
from codius_proxy.memo import Memo

MAX_RESPONSE_HEAD: Final = 64 * 1024  # bytes; pods may send longer heads than visitors
MAX_FIELDS: Final = 128  # header lines of a response

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*+))?")
MEMO_HEADS: Final = 512  # remembered: a pod says the same again and again
MEMO_HEAD_LENGTH: Final = 1024  # bytes; longer ones are read each time

_BLANK_LINE: Final = re.compile(rb"\r?+\n\r?+\n")
_SPACED_NAME: Final = re.compile(rb"(\r\n" + TOKEN + rb")[ \t]++:")
_LINE_END: Final = re.compile(rb"\r?+\n")


class Body(Enum):
    """How the end of a response's body is found, RFC 9112 section 6.3."""

    NONE = "there is no body"
    LENGTH = "after Content-Length bytes"
    CHUNKED = "after the last chunk"
    UNTIL_CLOSE = "when the connection ends"


NO_BODY: Final = Body.NONE  # as for `fields.Kind`
BY_LENGTH: Final = Body.LENGTH
CHUNKED: Final = Body.CHUNKED
UNTIL_CLOSE: Final = Body.UNTIL_CLOSE


class ResponseHead:
    """A response as it may go to a visitor: end-to-end fields only, the rest decided."""

    __slots__ = (
        "body",
        "dated",
        "fields",
        "length",
        "policy",
        "reusable",
        "status",
        "status_line",
        "upgrade",
    )

    def __init__(
        self,
        status: int,
        status_line: bytes,
        fields: bytes,
        body: Body,
        length: int | None,
        reusable: bool,
        upgrade: bytes | None,
        dated: bool,
        policy: bytes,
    ) -> None:
        self.status = status
        self.status_line = status_line
        self.fields = fields  # what is end-to-end as it came, and the length; CR LF before each line
        self.body = body
        self.length = length  # as declared, also where no body follows (HEAD, 304)
        self.reusable = reusable  # another request may follow on the pod's connection
        self.upgrade = upgrade
        self.dated = dated
        self.policy = policy  # Strict-Transport-Security as it came, CR LF before each line


def find_response_end(buffer: bytes, start: int = 0) -> tuple[int, int]:
    """Where a response's last header line ends and where its body begins; -1 while it has not arrived.

    HttpError 502 as soon as it never can. `start` is what an earlier call already looked through.

    Lines may end with a bare LF. RFC 9112 section 2.2 leaves that to the reader, and small CGI servers
    do it. The reason to be strict with visitors is missing here: nobody else reads these bytes, for a
    visitor gets the head as we write it. Such a connection serves no second request (`parse_response`).
    """
    start = start - 3 if start > 3 else 0
    end = buffer.find(b"\r\n\r\n", start)
    if end >= 0 and buffer.count(b"\n", 0, end) == buffer.count(b"\r", 0, end):
        begin = end + 4
    elif found := _BLANK_LINE.search(buffer, start):
        end, begin = found.span()
    else:
        end = begin = -1
    if end > MAX_RESPONSE_HEAD or (end < 0 and len(buffer) > MAX_RESPONSE_HEAD):
        raise HttpError(502, f"The pod's answer has a head longer than {MAX_RESPONSE_HEAD} bytes.")
    if end < 0 and not buffer.startswith(b"HTTP/1."[: len(buffer)]):
        raise HttpError(502, "The pod's answer is not HTTP/1.1.")
    return end, begin


def recall_response(head: bytes, method: bytes) -> ResponseHead | None:
    """The same, if it is remembered: then there is no bare LF in it, nor anything else to be found out."""
    return None if method == b"HEAD" else remembered_heads.get(head)


def parse_response(head: bytes, *, method: bytes, upgrade: bytes | None) -> ResponseHead:
    """A response's head, to a request with this method and offer to upgrade; HttpError 502."""
    try:
        return _read_head(head, method, upgrade)
    except HttpError as error:
        raise HttpError(502, f"The pod's answer is not valid HTTP/1.1. {error.reason}") from error


def render_response(
    head: ResponseHead, *, close: bool, chunked: bool, date: bytes = b"", policy: bytes = b""
) -> bytes:
    """The head for the visitor; `chunked` when the body goes out in chunks.

    `date` and `policy` are lines of ours, CR LF before them. There may be one Strict-Transport-Security only,
    RFC 6797 section 7.1: the operator's, where there is one.
    """
    parts = [head.status_line, date, policy or head.policy, head.fields]
    if chunked:
        parts.append(b"\r\nTransfer-Encoding: chunked")
    if head.upgrade is not None:
        parts += b"\r\nConnection: Upgrade\r\nUpgrade: ", head.upgrade
    elif close:
        parts.append(b"\r\nConnection: close")
    parts.append(b"\r\n\r\n")
    return b"".join(parts)


remembered_heads: Final[Memo[ResponseHead]] = Memo(entries=MEMO_HEADS, length=MEMO_HEAD_LENGTH)


def _read_head(head: bytes, method: bytes, upgrade: bytes | None) -> ResponseHead:
    """Remembers what it read, where that is a function of the head's bytes alone."""
    try:
        found = _parse_head(head, method, upgrade)
    except HttpError:
        mended = _mend(head)
        if mended == head:
            raise
        found = _parse_head(mended, method, upgrade)
        found.reusable = False
        return found
    if method != b"HEAD" and found.status != 101:
        remembered_heads.remember(head, found)
    return found


def _mend(head: bytes) -> bytes:
    """What a reader may, or has to, forgive a target: bare LFs, and space before a colon (section 5.1)."""
    return _SPACED_NAME.sub(rb"\1:", b"\r\n".join(_LINE_END.split(head)))


@lru_cache(maxsize=64)
def _parse_status_line(line: bytes) -> tuple[int, int, bytes]:
    """The digit of the version, the status, and the line as we send it; HttpError."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise HttpError(502, f"{shown(line)} is no status line.")
    digit, code, reason = match.groups()
    return int(digit), int(code), b"HTTP/1.1 %b %b" % (code, reason or b"")


def _parse_head(head: bytes, method: bytes, asked_upgrade: bytes | None) -> ResponseHead:
    first, _, _ = head.partition(b"\r\n")
    minor, status, status_line = _parse_status_line(first)
    kept = [b""]
    policies = [b""]
    length: int | None = None
    chunked = False
    options = _NOTHING
    upgrade: bytes | None = None
    dated = False
    for line in split_block(head[len(first) :], MAX_FIELDS):
        name, colon, value = line.partition(b":")
        kind = RESPONSE_NAMES[name]
        if not colon:
            raise HttpError(502, why_no_name(name))
        if kind is None:
            kept.append(line)
            continue
        value = value.strip(b" \t")
        if kind is LENGTH:
            if length is not None:
                raise HttpError(502, "It has more than one Content-Length field.")
            length = parse_length(value)
        elif kind is TRANSFER:
            if chunked:
                raise HttpError(502, "It has more than one Transfer-Encoding field.")
            if not minor:
                raise HttpError(502, "HTTP/1.0 knows no Transfer-Encoding.")
            check_transfer_encoding(value)
            chunked = True
        elif kind is CONNECTION:
            options = options | tokens(value) if options else tokens(value)
        elif kind is UPGRADE:
            upgrade = value if upgrade is None else upgrade + b", " + value
        elif kind is DATE:
            kept.append(line)
            dated = True
        elif kind is POLICY:
            policies.append(line)
        elif kind is COOKIE:
            kept.append(keep_to_pod(line))
        elif kind is FORBIDDEN:
            raise HttpError(502, f"Its field {name.decode()} is too close to one that frames the message.")
    if chunked and length is not None:
        raise HttpError(502, "It has both Content-Length and Transfer-Encoding.")
    if options and (named := options - CONNECTION_OPTIONS):
        if chunked:  # the trailer, which goes on as it came, might hold them
            raise HttpError(502, "Its Connection field names fields, and it is chunked.")
        kept = without(kept, named)
        policies = without(policies, named)
    if status == 101:
        offered = protocols(asked_upgrade) if asked_upgrade is not None else _NOTHING
        if upgrade is None or upgrade.lower() not in offered:
            raise HttpError(502, "It switches to a protocol nobody asked for.")
    elif status != 426:  # Upgrade Required has to name the protocol; elsewhere it is a mere offer
        upgrade = None
    if status < 200 or status == 204:
        length = None  # RFC 9110 section 8.6: not allowed there
    if length is not None:
        kept.append(b"Content-Length: %d" % length)
    if method == b"HEAD" or status < 200 or status in (204, 304):
        body = NO_BODY
    elif chunked:
        body = CHUNKED
    elif length is not None:
        body = BY_LENGTH if length else NO_BODY
    else:
        body = UNTIL_CLOSE
    return ResponseHead(
        status,
        status_line,
        b"\r\n".join(kept),
        body,
        length,
        minor == 1 and body is not UNTIL_CLOSE and b"close" not in options,
        upgrade,
        dated,
        b"\r\n".join(policies),
    )


_NOTHING: Final[frozenset[bytes]] = frozenset()
