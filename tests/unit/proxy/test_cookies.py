"""No pod sets a cookie that another pod, or the host's API, would be sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_proxy.cookies import keep_to_pod
from codius_proxy.response import parse_response, render_response

OWN = "a" * 52 + ".host.example"


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("Set-Cookie: a=b", "Set-Cookie: a=b"),
        ("Set-Cookie: a=b; Path=/; HttpOnly", "Set-Cookie: a=b; Path=/; HttpOnly"),
        ("Set-Cookie: a=b; Domain=host.example; Path=/", "Set-Cookie: a=b; Path=/"),
        ("Set-Cookie: a=b;domain=.HOST.example", "Set-Cookie: a=b"),
        ("Set-Cookie: a=b; DOMAIN \t=\t host.example ;Secure", "Set-Cookie: a=b;Secure"),
        ("Set-Cookie: a=b; Domain=example", "Set-Cookie: a=b"),
        ('Set-Cookie: a="x; Domain=host.example"', 'Set-Cookie: a="x'),
        (f"Set-Cookie: a=b; Domain={OWN}; Domain=host.example", f"Set-Cookie: a=b; Domain={OWN}"),
        (f"Set-Cookie: a=b; Domain={OWN}; Path=/", f"Set-Cookie: a=b; Domain={OWN}; Path=/"),
        (f"Set-Cookie: a=b; Domain=.{OWN}", f"Set-Cookie: a=b; Domain=.{OWN}"),
        ("Set-Cookie: domain=host.example", "Set-Cookie: domain=host.example"),  # a cookie of that name
        ("Set-Cookie: a=b; xdomain=host.example", "Set-Cookie: a=b; xdomain=host.example"),
    ],
)
def test_a_domain_above_the_pod_is_left_out(line: str, kept: str) -> None:
    assert keep_to_pod(line.encode()) == kept.encode()


PIECES = st.sampled_from(["; ", ";", "Domain", "=", "host.example", " ", "\t", OWN, "a", '"'])


@given(st.lists(PIECES, max_size=12))
def test_as_a_browser_reads_it_no_domain_is_left_but_the_pods(parts: list[str]) -> None:
    kept = keep_to_pod(("Set-Cookie: a=b" + "".join(parts)).encode()).decode()
    for attribute in kept.partition(":")[2].split(";")[1:]:  # RFC 6265 section 5.2
        name, equals, value = attribute.partition("=")
        if equals and name.strip(" \t").lower() == "domain" and value.strip(" \t"):
            assert value.strip(" \t").removeprefix(".").startswith("a" * 52 + ".")


def test_cookies_keep_their_order_and_their_number() -> None:
    head = parse_response(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Domain=host.example\r\nX: y\r\nSet-Cookie: b=2",
        method=b"GET",
        upgrade=None,
    )
    lines = render_response(head, close=False, chunked=False).split(b"\r\n")
    cookies = [line for line in lines if line.startswith(b"Set-Cookie")]
    assert cookies == [b"Set-Cookie: a=1", b"Set-Cookie: b=2"]
