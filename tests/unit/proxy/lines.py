"""Lines of heads, good and bad, for hypothesis to combine."""

from __future__ import annotations

from hypothesis import strategies as st

LINES = st.lists(
    st.sampled_from(
        [
            b"Host: a",
            b"Host:",
            b"Content-Length: 3",
            b"Content-Length: x",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Connection: close",
            b"Connection: upgrade, x",
            b"Upgrade: websocket",
            b"Expect: 100-continue",
            b"Accept: text/html",
            b"X: y",
            b" fold",
            b"",
            b"\xff: \xff",
            b"A:\x01",
        ]
    )
    | st.binary(max_size=30),
    max_size=6,
)
FIRST = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /x HTTP/1.0", b"HTTP/1.1 200 OK", b"HTTP/1.0 304", b"HTTP/1.1 101 S"]
)
