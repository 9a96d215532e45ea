"""Batches of datagrams: recvmmsg(2) and sendmmsg(2), which Python has no door to, by ctypes.

Everything is allocated once, and the structures are written once, apart from where answers begin and end.
Addresses and control messages are filled in by the kernel and given back to it as they are, and never become
objects.
"""

from __future__ import annotations

import ctypes
import errno
import socket
from array import array
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address
from itertools import accumulate
from typing import Final, cast

MAX_QUERY: Final = 1232  # bytes read of a packet: what our own OPT records say we take
MAX_REPLY: Final = 1232  # bytes

BATCH: Final = 64  # packets at once, then the loop may look after TCP and signals

_ADDRESS_ROOM: Final = 32  # bytes per peer; sockaddr_in6 is the largest, with 28
_CONTROL_ROOM: Final = 64  # bytes per control message; one with an in6_pktinfo takes 40
_CONTROL_HEAD: Final = 16  # bytes of struct cmsghdr before its data, cmsg(3)


Quick = Callable[[bytes], bytes | None]
Other = Callable[[bytes, int], bytes | None]


class _IoVec(ctypes.Structure):
    """<bits/types/struct_iovec.h>."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    """<bits/socket.h>, recvmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MMsgHdr(ctypes.Structure):
    """recvmmsg(2)."""

    _fields_ = (("header", _MsgHdr), ("length", ctypes.c_uint))


_HEADER: Final = ctypes.sizeof(_MMsgHdr)
_INT: Final = 4  # bytes; single fields are read and written as arrays of these
_LONG: Final = 8  # bytes, and of these
_STARTS: Final = range(0, BATCH * MAX_QUERY, MAX_QUERY)


def _find(name: str, *arguments: type) -> Callable[..., int]:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype = ctypes.c_int
    function.argtypes = arguments
    return function  # type: ignore[no-any-return]


_recvmmsg: Final = _find(
    "recvmmsg", ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p
)
_sendmmsg: Final = _find("sendmmsg", ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


class Batch:
    """Room for a batch of packets and their answers, on one socket; not its owner."""

    def __init__(self, sock: socket.socket, *, from_destination: bool) -> None:
        """`from_destination`: the socket tells where each packet went to (IP_PKTINFO), and answers leave
        from there.
        """
        self._fd = sock.fileno()
        self._ipv6 = sock.family == socket.AF_INET6
        self._from_destination = from_destination
        self._peers = bytearray(BATCH * _ADDRESS_ROOM)
        self._controls = bytearray(BATCH * _CONTROL_ROOM)
        self._queries = bytearray(BATCH * MAX_QUERY)
        self._replies = bytearray(BATCH * MAX_REPLY)
        peers, controls = _address_of(self._peers), _address_of(self._controls)
        # CMSG_SPACE of an in6_pktinfo or an in_pktinfo; a message has just this one.
        control_length = (socket.CMSG_SPACE(20 if self._ipv6 else 12)) if from_destination else 0
        self._received = (_MMsgHdr * BATCH)()
        self._sent = (_MMsgHdr * BATCH)()
        self._vectors = (_IoVec * (2 * BATCH))()
        vectors = ctypes.addressof(self._vectors)
        size = ctypes.sizeof(_IoVec)
        for index in range(BATCH):
            self._vectors[index] = _IoVec(_address_of(self._queries) + index * MAX_QUERY, MAX_QUERY)
            for headers, vector in ((self._received, index), (self._sent, BATCH + index)):
                headers[index].header = _MsgHdr(
                    name=peers + index * _ADDRESS_ROOM,
                    name_length=28 if self._ipv6 else 16,  # sizes of sockaddr_in6 and sockaddr_in
                    iov=vectors + vector * size,
                    iov_count=1,
                    control=controls + index * _CONTROL_ROOM if from_destination else None,
                    control_length=control_length,
                )
        self._peers_at, self._controls_at = peers, controls
        self._replies_at = _address_of(self._replies)
        self._received_at, self._sent_at = ctypes.addressof(self._received), ctypes.addressof(self._sent)
        # The fields that change, as arrays: attributes of ctypes' structures cost five times as much.
        lengths = memoryview(self._received).cast("B").cast("I")
        self._lengths = lengths[_MMsgHdr.length.offset // _INT :: _HEADER // _INT]
        self._queries_view = memoryview(self._queries)
        self._replies_view = memoryview(self._replies)
        vector_longs = memoryview(self._vectors).cast("B").cast("Q")
        self._reply_starts = vector_longs[2 * BATCH :: 2]
        self._reply_sizes = vector_longs[2 * BATCH + 1 :: 2]
        self._sent_longs = memoryview(self._sent).cast("B").cast("Q")
        self._interfaces = memoryview(self._controls).cast("I")
        self._moved = 0  # headers, from the first on, that may point at another packet's address

    def exchange(self, quick: Quick, other: Other) -> tuple[int, int]:
        """Receive what is there, send the answers: how many packets came, how many answers stayed unsent.

        `quick` is asked first, then `other` with the packet's place in the batch, for `asker`.
        """
        count = _recvmmsg(self._fd, self._received_at, BATCH, socket.MSG_DONTWAIT, None)
        if count <= 0:
            return 0, 0
        if self._from_destination:
            self._forget_interfaces(count)
        lengths = self._lengths[:count].tolist()
        queries = self._queries_view[: count * MAX_QUERY].tobytes()  # one copy, and cheap slices of it
        replies = [quick(queries[at : at + length]) for at, length in zip(_STARTS, lengths, strict=False)]
        if None not in replies:
            return count, self._send(cast(list[bytes], replies), range(count) if self._moved else None)
        for index, reply in enumerate(replies):
            if reply is None:
                at = index * MAX_QUERY
                replies[index] = other(queries[at : at + lengths[index]], index)
        askers = [index for index, reply in enumerate(replies) if reply is not None]
        return count, self._send([reply for reply in replies if reply is not None], askers)

    def asker(self, index: int) -> bytes:
        """The packed address that a packet of the last batch came from."""
        at = index * _ADDRESS_ROOM
        return bytes(self._peers[at + 8 : at + 24] if self._ipv6 else self._peers[at + 4 : at + 8])

    def _send(self, replies: Sequence[bytes], askers: Sequence[int] | None) -> int:
        """Send the replies; how many nobody took.

        `askers`: the places of their packets; None: each reply is where its packet was.
        """
        if askers is not None:
            self._address(askers)
        sizes = array("Q", map(len, replies))
        written = b"".join(replies)
        self._replies_view[: len(written)] = written
        starts = array("Q", accumulate(sizes, initial=self._replies_at))
        self._reply_starts[: len(sizes)] = memoryview(starts)[:-1]
        self._reply_sizes[: len(sizes)] = memoryview(sizes)
        at = unsent = 0
        while at < len(replies):
            sent = _sendmmsg(self._fd, self._sent_at + at * _HEADER, len(replies) - at, socket.MSG_DONTWAIT)
            if sent > 0:
                at += sent
                continue
            error = ctypes.get_errno()
            if error == errno.EINTR:
                continue
            if error in (errno.EAGAIN, errno.ENOBUFS):
                return unsent + len(replies) - at  # no room: those who did not get theirs ask again
            unsent += 1  # unreachable, or forged (port 0): one asker's trouble, no one else's
            at += 1
        return unsent

    def _address(self, askers: Sequence[int]) -> None:
        """Point the header of each reply at the address its packet came from."""
        for place, asker in enumerate(askers):
            at = place * _HEADER // _LONG
            self._sent_longs[at + _MsgHdr.name.offset // _LONG] = self._peers_at + asker * _ADDRESS_ROOM
            if self._from_destination:
                control = self._controls_at + asker * _CONTROL_ROOM
                self._sent_longs[at + _MsgHdr.control.offset // _LONG] = control
        in_place = not askers or askers[-1] == len(askers) - 1
        if not in_place:
            self._moved = max(self._moved, len(askers))
        elif len(askers) >= self._moved:
            self._moved = 0

    def _forget_interfaces(self, count: int) -> None:
        """Leave by route, not by the interface of arrival; only link-local addresses mean nothing without."""
        for index in range(count):
            at = index * _CONTROL_ROOM + _CONTROL_HEAD
            if not self._ipv6:
                self._interfaces[at // _INT] = 0  # struct in_pktinfo begins with it, ip(7)
            elif not IPv6Address(bytes(self._controls[at : at + 16])).is_link_local:
                self._interfaces[(at + 16) // _INT] = 0  # struct in6_pktinfo ends with it, ipv6(7)


def _address_of(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
