"""SipHash-2-4, the keyed hash that server cookies are made of (RFC 9018 section 4.4)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

KEY_SIZE: Final = 16  # bytes

_MASK: Final = 2**64 - 1
_WORDS: Final = [struct.Struct(f"<{count}Q") for count in range(9)]
_State = tuple[int, int, int, int]


def keyed(key: bytes) -> Callable[[bytes], bytes]:
    """The hash with this key: up to 63 bytes in, 8 bytes out."""
    low, high = struct.unpack("<QQ", key)
    start = (
        low ^ 0x736F6D6570736575,
        high ^ 0x646F72616E646F6D,
        low ^ 0x6C7967656E657261,
        high ^ 0x7465646279746573,
    )

    def digest(message: bytes) -> bytes:
        # The last word is what is left over, zeros, and the length in its highest byte.
        padded = message + bytes(7 - len(message) % 8) + bytes((len(message),))
        state = start
        for word in _WORDS[len(padded) // 8].unpack(padded):
            a, b, c, d = state
            a, b, c, d = _two_rounds((a, b, c, d ^ word))
            state = (a ^ word, b, c, d)
        a, b, c, d = state
        a, b, c, d = _two_rounds(_two_rounds((a, b, c ^ 0xFF, d)))
        return (a ^ b ^ c ^ d).to_bytes(8, "little")

    return digest


def _two_rounds(state: _State) -> _State:
    a, b, c, d = state
    for _ in range(2):
        a = a + b & _MASK
        b = (b << 13 & _MASK | b >> 51) ^ a
        a = a << 32 & _MASK | a >> 32
        c = c + d & _MASK
        d = (d << 16 & _MASK | d >> 48) ^ c
        a = a + d & _MASK
        d = (d << 21 & _MASK | d >> 43) ^ a
        c = c + b & _MASK
        b = (b << 17 & _MASK | b >> 47) ^ c
        c = c << 32 & _MASK | c >> 32
    return a, b, c, d
