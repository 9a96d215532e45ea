"""The PROXY protocol: what the specification allows is read, and nothing else."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codius_proxy.proxy_protocol import (
    MAX_BLOCK,
    MAX_HEADER,
    MAX_LINE,
    SIGNATURE,
    Preamble,
    ProxyProtocolError,
    parse,
)

V4, V6 = "192.0.2.1", "2001:db8::1"
REST = b"GET / HTTP/1.1\r\n"


def line(text: str) -> bytes:
    return text.encode() + b"\r\n"


def binary(command: int, family: int, block: bytes, size: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block) if size is None else size) + block


def addresses(source: str, destination: str, source_port: int = 1, destination_port: int = 443) -> bytes:
    return (
        ip_address(source).packed
        + ip_address(destination).packed
        + struct.pack("!HH", source_port, destination_port)
    )


TLV = b"\x02\x00\x04host"

GOOD = {
    "version 1, IPv4": (line(f"PROXY TCP4 {V4} 198.51.100.1 56324 443"), V4),
    "version 1, IPv6": (line(f"PROXY TCP6 {V6} 2001:db8::2 56324 443"), V6),
    "version 1, the longest": (
        line("PROXY TCP6 " + " ".join(["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] * 2) + " 65535 65535"),
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ),
    "version 1, unknown": (line("PROXY UNKNOWN"), None),
    "version 1, unknown with addresses": (line(f"PROXY UNKNOWN {V6} {V6} 1 2"), None),
    "version 2, IPv4": (binary(0x21, 0x11, addresses(V4, "198.51.100.1")), V4),
    "version 2, IPv6": (binary(0x21, 0x21, addresses(V6, "2001:db8::2")), V6),
    "version 2, TLVs": (binary(0x21, 0x11, addresses(V4, V4) + TLV), V4),
    "version 2, a TLV that breaks off": (binary(0x21, 0x11, addresses(V4, V4) + b"\x02\xff\xffh"), V4),
    "version 2, half of a TLV's head": (binary(0x21, 0x11, addresses(V4, V4) + b"\x04\x00"), V4),
    "version 2, the largest": (binary(0x21, 0x11, addresses(V4, V4).ljust(MAX_BLOCK, b"\x04")), V4),
    "version 2, local over a Unix socket": (binary(0x20, 0x31, b"\0" * 216), None),
    "version 2, local": (binary(0x20, 0x00, b""), None),
    "version 2, local with addresses": (binary(0x20, 0x11, addresses(V4, V4)), None),
    "version 2, unspecified": (binary(0x21, 0x00, TLV), None),
}

BAD = {
    "HTTP": REST,
    "TLS": b"\x16\x03\x01\x02\x00",
    "lower case": line(f"proxy TCP4 {V4} {V4} 1 2"),
    "a bare LF": f"PROXY TCP4 {V4} {V4} 1 2\n".encode(),
    "UDP": line(f"PROXY UDP4 {V4} {V4} 1 2"),
    "another family": line(f"PROXY TCP4 {V6} {V6} 1 2"),
    "mixed families": line(f"PROXY TCP6 {V6} {V4} 1 2"),
    "no address": line("PROXY TCP4 1.2.3 1.2.3.4 1 2"),
    "a leading zero in an address": line("PROXY TCP4 192.0.2.01 1.2.3.4 1 2"),
    "a scope": line("PROXY TCP6 fe80::1%eth0 fe80::1 1 2"),
    "a port too large": line(f"PROXY TCP4 {V4} {V4} 65536 2"),
    "a leading zero in a port": line(f"PROXY TCP4 {V4} {V4} 01 2"),
    "a sign": line(f"PROXY TCP4 {V4} {V4} +1 2"),
    "one port": line(f"PROXY TCP4 {V4} {V4} 1"),
    "two spaces": line(f"PROXY TCP4  {V4} {V4} 1 2"),
    "more behind": line(f"PROXY TCP4 {V4} {V4} 1 2 3"),
    "a tab": line(f"PROXY TCP4 {V4}\t{V4} 1 2"),
    "a line without end": b"PROXY UNKNOWN" + b" " * MAX_LINE,
    "one byte too long": b"PROXY UNKNOWN".ljust(MAX_LINE - 1) + b"\r\n",
    "version 1 inside version 2": binary(0x11, 0x11, addresses(V4, V4)),
    "version 3": binary(0x31, 0x11, addresses(V4, V4)),
    "command 2": binary(0x22, 0x11, addresses(V4, V4)),
    "a name for an address": line(f"PROXY TCP4 host.example {V4} 1 2"),
    "an address in brackets": line(f"PROXY TCP6 [{V6}] [{V6}] 1 2"),
    "an address in hexadecimal": line(f"PROXY TCP4 0xc0000201 {V4} 1 2"),
    "NUL behind an address": line(f"PROXY TCP4 {V4}\0 {V4} 1 2"),
    "a negative port": line(f"PROXY TCP4 {V4} {V4} -1 2"),
    "a space at the end": line(f"PROXY TCP4 {V4} {V4} 1 2 "),
    "CR twice": line(f"PROXY TCP4 {V4} {V4} 1 2\r"),
    "an unknown family": line(f"PROXY TCP5 {V4} {V4} 1 2"),
    "a header within a header": line(f"PROXY TCP4 {V4} {V4} 1 PROXY"),
    "version 2, nothing": binary(0x21, 0x11, b""),
    "version 2, an address and no port": binary(0x21, 0x11, addresses(V4, V4)[:8]),
    "version 2, local and too long": binary(0x20, 0x00, b"", MAX_BLOCK + 1),
    "version 2, unspecified and too long": binary(0x21, 0x00, b"", 0xFFFF),
    "UDP over IPv4": binary(0x21, 0x12, addresses(V4, V4)),
    "a Unix socket": binary(0x21, 0x31, b"\0" * 216),
    "too short for its addresses": binary(0x21, 0x21, addresses(V4, V4)),
    "too long": binary(0x21, 0x11, b"", MAX_BLOCK + 1),
    "a signature that breaks off": SIGNATURE[:-1] + b"X",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_header_of_the_specification_is_read_and_what_follows_is_left(name: str) -> None:
    data, client = GOOD[name]
    expected = Preamble(len(data), None if client is None else ip_address(client))
    assert parse(data) == expected
    assert parse(data + REST) == expected


@pytest.mark.parametrize("name", GOOD)
def test_a_header_that_comes_byte_by_byte_is_waited_for(name: str) -> None:
    data, _ = GOOD[name]
    for end in range(len(data)):
        assert parse(data[:end]) is None, data[:end]


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(ProxyProtocolError):
        parse(BAD[name])


@given(st.ip_addresses(v=4), st.integers(0, 65535), st.binary(max_size=40))
def test_both_versions_say_the_same_of_any_ipv4_client(client: IPv4Address, port: int, rest: bytes) -> None:
    for data in (
        line(f"PROXY TCP4 {client} {V4} {port} 443"),
        binary(0x21, 0x11, addresses(str(client), V4, port)),
    ):
        assert parse(data + rest) == Preamble(len(data), client)


@given(st.ip_addresses(v=6), st.integers(0, 65535), st.binary(max_size=40))
def test_both_versions_say_the_same_of_any_ipv6_client(client: IPv6Address, port: int, rest: bytes) -> None:
    for data in (
        line(f"PROXY TCP6 {client} {V6} {port} 443"),
        binary(0x21, 0x21, addresses(str(client), V6, port)),
    ):
        assert parse(data + rest) == Preamble(len(data), client)


_headerish = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=200).map(lambda tail: b"PROXY " + tail),
    st.binary(max_size=200).map(lambda tail: b"PROXY TCP4 " + tail + b"\r\n"),
    st.binary(max_size=200).map(lambda tail: SIGNATURE + tail),
)


@given(_headerish)
@example(b"")
def test_any_bytes_are_read_waited_for_or_refused_and_never_for_ever(data: bytes) -> None:
    try:
        found = parse(data)
    except ProxyProtocolError:
        # What is refused stays refused, whatever follows.
        with pytest.raises(ProxyProtocolError):
            parse(data + REST)
        return
    if found is None:
        with contextlib.suppress(ProxyProtocolError):
            assert parse(data + b"\x00" * MAX_HEADER) is not None
    else:
        assert 0 < found.length <= len(data)
        assert parse(data[: found.length]) == found
