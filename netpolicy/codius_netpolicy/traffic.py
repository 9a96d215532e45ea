"""What a pod sent, received and was refused: the kernel's counters as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Why a packet of a pod, or to one, was refused."""

    SPOOFED = "spoofed"  # a source, by address or hardware address, that is not the pod's own
    IPV6 = "ipv6"  # while pods have none
    POD = "pod"  # to another pod
    HOST = "host"  # to an address of the host
    RANGE = "range"  # to a denied range
    PORT = "port"  # to a denied port
    PROTOCOL = "protocol"  # neither TCP, UDP nor ICMP
    CONNECTIONS = "connections"  # more flows at once than a pod may have
    RATE = "rate"  # more new flows a second than a pod may begin
    INVALID = "invalid"  # part of no flow
    UNSOLICITED = "unsolicited"  # to the pod, from outside

    @property
    def mark(self) -> int:
        """Its number in the ruleset; 0 is no reason, as an unmarked packet has it."""
        return MARKS[self]


MARKS: Final[Mapping[Reason, int]] = {reason: number for number, reason in enumerate(Reason, 1)}
REASONS: Final[Mapping[int, Reason]] = {number: reason for reason, number in MARKS.items()}


@dataclass(frozen=True, slots=True)
class Volume:
    """Bytes (of IP packets, without link headers) and packets."""

    bytes: int = 0
    packets: int = 0

    def __add__(self, other: Volume) -> Volume:
        return Volume(self.bytes + other.bytes, self.packets + other.packets)


@dataclass(frozen=True, slots=True)
class Traffic:
    """A pod's counters, IPv4 and IPv6 together. `refused` in packets; what was not refused is left out."""

    sent: Volume = Volume()
    received: Volume = Volume()
    refused: Mapping[Reason, int] = field(default_factory=dict)


NO_TRAFFIC: Final = Traffic()


def larger(one: Traffic, other: Traffic) -> Traffic:
    """The larger of each counter: of two readings of one pod, whichever saw more."""
    if one == other:
        return one  # most pods are idle most of the time, and there may be thousands
    return Traffic(
        sent=_larger(one.sent, other.sent),
        received=_larger(one.received, other.received),
        refused={
            reason: max(one.refused.get(reason, 0), other.refused.get(reason, 0))
            for reason in Reason
            if reason in one.refused or reason in other.refused
        },
    )


def _larger(one: Volume, other: Volume) -> Volume:
    return Volume(max(one.bytes, other.bytes), max(one.packets, other.packets))
