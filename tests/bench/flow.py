"""Sends numbered packets to an address at a steady rate until it is told to end, then says what it sent.

    nsenter --net=POD python -m tests.bench.flow ADDRESS PORT... --rate=2000

A process of its own: its pace does not depend on what the measuring one does. It prints JSON.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Final

PACKET: Final = struct.Struct("!Q28x")
"""The packet's number; 36 bytes that make an IP packet of 64."""
IP_RECVERR: Final = 11
"""linux/in.h; with it, a packet the sender's own queue drops is an error of `send`."""
LONGEST_SECONDS: Final = 120
"""Nobody measures that long: whoever started this has died."""


@dataclass(frozen=True, slots=True)
class Report:
    """`sent` by port, in the order given."""

    sent: Sequence[int]
    seconds: float


def number(packet: bytes) -> int:
    found: int = PACKET.unpack(packet)[0]
    return found


def send(address: str, ports: Sequence[int], rate: int) -> Report:
    """To the ports in turn, `rate` packets a second together; OSError when one cannot be sent."""
    ended = False

    def end(signal: int, frame: FrameType | None) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in ports]
    for sender, port in zip(senders, ports, strict=True):
        sender.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sender.connect((address, port))
    sent = [0] * len(ports)
    total = 0
    began = time.monotonic()
    while not ended and (passed := time.monotonic() - began) < LONGEST_SECONDS:
        # Those that are late go at once: the rate holds on a machine that is busy.
        while total < passed * rate:
            index = total % len(senders)
            senders[index].send(PACKET.pack(sent[index]))
            sent[index] += 1
            total += 1
        time.sleep(max(0.0, total / rate - (time.monotonic() - began)))
    return Report(sent, time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flow", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("ports", type=int, nargs="+")
    parser.add_argument("--rate", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(asdict(send(options.address, options.ports, options.rate))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
