"""The messages that find and delete tracked flows."""

import struct
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from codius_netpolicy.conntrack import (
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    HEADER,
    Entry,
    build_deletion,
    build_dump,
    find_entry,
)

POD = IPv4Address("10.77.0.2")
OTHER_POD = IPv4Address("10.77.0.3")


def body_of(message: bytes) -> bytes:
    return message[HEADER.size :]


def test_a_message_says_its_own_length() -> None:
    message = build_dump(CTA_TUPLE_ORIG, POD)
    assert struct.unpack_from("=I", message) == (len(message),)


def test_a_flow_is_found_by_its_source_on_the_side_asked_for() -> None:
    body = body_of(build_dump(CTA_TUPLE_ORIG, POD))  # it carries a tuple just as an answer does
    assert find_entry(body, CTA_TUPLE_ORIG, POD) is not None
    assert find_entry(body, CTA_TUPLE_ORIG, OTHER_POD) is None
    assert find_entry(body, CTA_TUPLE_REPLY, POD) is None


def test_a_deletion_names_the_flow_by_the_bytes_it_was_found_with() -> None:
    found = find_entry(body_of(build_dump(CTA_TUPLE_ORIG, POD)), CTA_TUPLE_ORIG, POD)
    assert found is not None
    complete = Entry(found.tuple_origin, zone=b"\0\1", id=b"\1\2\3\4")
    assert find_entry(body_of(build_deletion(complete)), CTA_TUPLE_ORIG, POD) == complete


@given(st.binary(max_size=200))
def test_strange_bytes_are_no_flow_and_no_error(body: bytes) -> None:
    find_entry(body, CTA_TUPLE_ORIG, POD)
