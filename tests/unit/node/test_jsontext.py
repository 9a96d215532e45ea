"""JSON from strangers: what is refused, with which words, and that nothing else ever escapes."""

from __future__ import annotations

import json
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.errors import BodyTooLargeError, RequestError
from codius_node.jsontext import MAX_DEPTH, MAX_NUMBER_LENGTH, decode_json, wire_name
from codius_node.model import Json
from codius_node.schema import MAX_UPLOAD_BODY
from tests.unit.node.documents import refusal


def decode(body: bytes) -> Json:
    return decode_json(body, limit=MAX_UPLOAD_BODY)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"{", "the body is not JSON: Expecting property name enclosed in double quotes at line 1 column 2"),
        (b'{"a":1}x', "the body is not JSON: Extra data"),
        (b'{"a":1,}', "the body is not JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a":"c\xff"}', "not UTF-8: 0xff at byte 7"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a":"\xc0\x80"}', "not UTF-8"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        (b'{"name":"a","name":"b"}', 'the key "name" twice'),
        (b'[{"x":{"a":1,"b":2,"a":3}}]', 'the key "a" twice'),
        (b'{"a":1,"\\u0061":2}', 'the key "a" twice'),
        (b"NaN", "NaN, which is not JSON"),
        (b"[Infinity]", "Infinity, which is not JSON"),
        (b"[-Infinity]", "-Infinity, which is not JSON"),
        (b"[1e999]", "too large for a double"),
        (b"[" + b"9" * 100_000 + b"]", "a number of 100000 characters"),
        (b"[0." + b"9" * 100_000 + b"]", "a number of 100002 characters"),
        (b'"\\ud83d"', "half of a surrogate pair"),
        (b'{"\\uDC00":1}', "half of a surrogate pair"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, "nested too deeply"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_a_body_that_is_not_strict_json_is_refused_with_a_reason(body: bytes, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(body)
    assert says in str(caught.value)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 300


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(BodyTooLargeError) as caught:
        decode_json(b"x" * 11, limit=10)
    assert str(caught.value) == "the body has 11 bytes; this host accepts at most 10"


def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert decode(b"{}".ljust(MAX_UPLOAD_BODY)) == {}


def test_nesting_is_counted_exactly_and_not_inside_strings() -> None:
    deepest = b'["[[[[{{{{\\"",' * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH
    decode(deepest)
    with pytest.raises(RequestError, match="nested too deeply"):
        decode(b"[" + deepest + b"]")


def test_many_shallow_arrays_are_not_deep() -> None:
    assert len(cast("list[Json]", decode(b"[" + b"[],{}," * 1000 + b"1]"))) == 2001


def test_a_number_of_the_longest_length_is_read() -> None:
    assert decode(b"9" * MAX_NUMBER_LENGTH) == int("9" * MAX_NUMBER_LENGTH)


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert decode(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert decode(b'"\\\\ud83d"') == "\\ud83d"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_decoded_or_refused_with_a_client_error(body: bytes) -> None:
    error = refusal(decode, body)
    if error is None:
        assert decode(body) == json.loads(body)
    else:
        assert 400 <= error.status < 500


@pytest.mark.parametrize(
    ("field", "name"), [("uri", "uri"), ("full_mem", "fullMem"), ("self_test_success", "selfTestSuccess")]
)
def test_names_are_in_camel_case(field: str, name: str) -> None:
    assert wire_name(field) == name
