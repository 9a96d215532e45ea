"""The PROXY protocol, versions 1 and 2: who a trusted load balancer says is behind its connection.

Bytes in, values out. https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt, cited by section.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"  # of version 2, section 2.2
MAX_LINE: Final = 107  # bytes of a version 1 line with its CR LF, section 2.1
# Bytes behind a version 2 header: addresses take 36 at most, the rest are TLVs nobody here reads.
MAX_BLOCK: Final = 2048
MAX_HEADER: Final = len(SIGNATURE) + 4 + MAX_BLOCK  # bytes; no header is longer

_PREFIX: Final = b"PROXY "
_ADDRESS: Final = rb"([0-9A-Fa-f:.]{2,39})"
_PORT: Final = rb"(0|[1-9][0-9]{0,4})"
_LINE: Final = re.compile(
    rb"PROXY (?:(TCP4|TCP6) ([0-9A-Fa-f:.]{2,39}) ([0-9A-Fa-f:.]{2,39}) "
    + _PORT
    + b" "
    + _PORT
    + rb"|UNKNOWN.*)"
)
_FIXED: Final = struct.Struct("!12sBBH")
_LOCAL: Final = 0x20  # version 2, command LOCAL: the balancer itself, a health check
_PROXY: Final = 0x21  # version 2, command PROXY
_ADDRESSES: Final = {0x11: struct.Struct("!4s4sHH"), 0x21: struct.Struct("!16s16sHH")}  # TCP over IPv4, IPv6
_UNSPECIFIED: Final = 0x00  # family and protocol unknown: nothing is said about the client


class ProxyProtocolError(ValueError):
    """The connection does not begin with a PROXY header, and must not be used."""


@dataclass(frozen=True, slots=True)
class Preamble:
    """A complete header: its length in bytes, and the client it names (None: the balancer itself)."""

    length: int
    client: IPv4Address | IPv6Address | None


def parse(data: bytes) -> Preamble | None:
    """The header `data` begins with; None while it is incomplete; ProxyProtocolError when it is none."""
    if data.startswith(SIGNATURE):
        return _parse_binary(data)
    if SIGNATURE.startswith(data) or _PREFIX.startswith(data):
        return None
    if data.startswith(_PREFIX):
        return _parse_line(data)
    raise ProxyProtocolError("the connection does not begin with a PROXY header")


def _parse_line(data: bytes) -> Preamble | None:
    end = data.find(b"\n", 0, MAX_LINE)
    if end < 0:
        if len(data) >= MAX_LINE:
            raise ProxyProtocolError(f"a PROXY line is longer than {MAX_LINE} bytes")
        return None
    line = data[:end]
    match = _LINE.fullmatch(line, 0, end - 1)
    if match is None or not line.endswith(b"\r"):
        raise ProxyProtocolError(f"{line[:60]!a} is no PROXY line")
    protocol, source, destination, *ports = match.groups()
    if protocol is None:  # UNKNOWN: whatever follows it says nothing, section 2.1
        return Preamble(end + 1, None)
    version = 4 if protocol == b"TCP4" else 6
    try:
        addresses = [ip_address(text.decode("ascii")) for text in (source, destination)]
    except ValueError as error:
        raise ProxyProtocolError(f"{line[:60]!a} holds no IP address") from error
    if any(address.version != version for address in addresses):
        raise ProxyProtocolError(f"{line[:60]!a} holds an address of another family")
    if any(int(port) > 0xFFFF for port in ports):
        raise ProxyProtocolError(f"{line[:60]!a} holds a port above 65535")
    return Preamble(end + 1, addresses[0])


def _parse_binary(data: bytes) -> Preamble | None:
    if len(data) < _FIXED.size:
        return None
    _, command, family, size = _FIXED.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise ProxyProtocolError(f"a PROXY header of version and command {command:#04x} is not known")
    if size > MAX_BLOCK:
        raise ProxyProtocolError(f"a PROXY header of {size} bytes is longer than {MAX_BLOCK}")
    length = _FIXED.size + size
    if command == _LOCAL:  # its addresses are to be ignored, section 2.2
        return Preamble(length, None) if len(data) >= length else None
    if family == _UNSPECIFIED:
        return Preamble(length, None) if len(data) >= length else None
    addresses = _ADDRESSES.get(family)
    if addresses is None:
        raise ProxyProtocolError(f"a PROXY header for {family:#04x} is for no TCP connection")
    if size < addresses.size:
        raise ProxyProtocolError(f"a PROXY header of {size} bytes is too short for its addresses")
    if len(data) < length:
        return None
    source, _, _, _ = addresses.unpack_from(data, _FIXED.size)
    return Preamble(length, ip_address(source))
