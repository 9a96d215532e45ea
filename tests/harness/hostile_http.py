"""Requests as attackers combine them: strategies for hypothesis."""

from __future__ import annotations

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
