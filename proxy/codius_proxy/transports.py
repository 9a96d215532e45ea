"""What a proxy wants of a connection and asyncio does not offer: a reset, and who has read how much."""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import struct
import termios
from typing import Final, cast

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds


def reset(transport: asyncio.Transport) -> None:
    """End with a reset, so that the other side cannot take the end for a proper one."""
    found = transport.get_extra_info("socket")
    if found is not None and not transport.is_closing():
        cast(socket.socket, found).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


def count_unsent(transport: asyncio.Transport) -> int:
    """Bytes written that the other side has not acknowledged, ours and the kernel's."""
    count = transport.get_write_buffer_size()
    found = transport.get_extra_info("socket")
    if found is None or found.fileno() < 0:
        return count
    queued = array.array("i", [0])
    try:
        fcntl.ioctl(found.fileno(), termios.TIOCOUTQ, queued)
    except OSError:
        return count
    return count + queued[0]
