"""The messages that find and delete tracked flows."""

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_netpolicy.conntrack import (
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    Entry,
    Flow,
    build_deletion,
    build_dump,
    find_entry,
    parse_flow,
)
from codius_netpolicy.nfnetlink import FAMILY_HEADER, HEADER, build_attribute
from codius_netpolicy.ranges import Address

POD = IPv4Address("10.77.0.2")
OTHER_POD = IPv4Address("10.77.0.3")
POD6 = IPv6Address("fd77::2")
OTHER_POD6 = IPv6Address("fd77::3")


def body_of(message: bytes) -> bytes:
    return message[HEADER.size :]


def test_a_message_says_its_own_length() -> None:
    message = build_dump(CTA_TUPLE_ORIG, POD)
    assert struct.unpack_from("=I", message) == (len(message),)


def build_flow(source: Address) -> bytes:
    """What the kernel says of a flow, as far as its source."""
    key = 1 if source.version == 4 else 3
    origin = build_attribute(CTA_TUPLE_ORIG, build_attribute(1, build_attribute(key, source.packed)))
    return FAMILY_HEADER.pack(2 if source.version == 4 else 10, 0, 0) + origin


@pytest.mark.parametrize(("pod", "other"), [(POD, OTHER_POD), (POD6, OTHER_POD6)])
def test_a_flow_is_found_by_its_source_on_the_side_asked_for(pod: Address, other: Address) -> None:
    body = build_flow(pod)
    assert find_entry(body, CTA_TUPLE_ORIG, pod) is not None
    assert find_entry(body, CTA_TUPLE_ORIG, other) is None
    assert find_entry(body, CTA_TUPLE_REPLY, pod) is None


def test_a_flow_is_read_as_it_was_begun() -> None:
    ends = build_attribute(1, POD.packed) + build_attribute(2, OTHER_POD.packed)
    transport = build_attribute(1, b"\x06") + build_attribute(2, b"\x9c\x40") + build_attribute(3, b"\0\x50")
    origin = build_attribute(1, ends) + build_attribute(2, transport)
    body = FAMILY_HEADER.pack(2, 0, 0) + build_attribute(CTA_TUPLE_ORIG, origin)
    assert parse_flow(body, 4) == Flow(POD, OTHER_POD, 6, 80)
    assert parse_flow(body, 6) is None


def test_a_deletion_names_the_flow_by_the_bytes_it_was_found_with() -> None:
    found = find_entry(build_flow(POD), CTA_TUPLE_ORIG, POD)
    assert found is not None
    complete = Entry(found.family, found.tuple_origin, zone=b"\0\1", id=b"\1\2\3\4")
    assert find_entry(body_of(build_deletion(complete)), CTA_TUPLE_ORIG, POD) == complete


@given(st.binary(max_size=200))
def test_strange_bytes_are_no_flow_and_no_error(body: bytes) -> None:
    find_entry(body, CTA_TUPLE_ORIG, POD)
    parse_flow(body, 4)
    parse_flow(body, 6)
