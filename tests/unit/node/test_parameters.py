"""Query parameters: what each accepts, refused with which words, and that nothing else ever escapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.errors import NotFoundError, RequestError
from codius_node.parameters import (
    DEFAULT_DURATION,
    DURATION,
    FOLLOW,
    LIMIT,
    MANIFEST_HASH,
    MAX_DURATION,
    MAX_PEERS,
    PROGRESS,
    REQUEST_PEERS,
    HashMissingError,
    Parameter,
)
from tests.unit.node.documents import ANY_TEXT, HASH, refusal

ALL: tuple[Parameter, ...] = (DURATION, PROGRESS, LIMIT, FOLLOW, REQUEST_PEERS, MANIFEST_HASH)


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ([], DEFAULT_DURATION),
        ([""], DEFAULT_DURATION),
        (["1"], 1),
        (["060"], 60),
        ([str(MAX_DURATION)], MAX_DURATION),
    ],
)
def test_a_duration_is_whole_seconds_and_an_hour_by_default(values: list[str], seconds: int) -> None:
    assert DURATION.parse(values) == seconds


@pytest.mark.parametrize(
    "values",
    [
        *(
            [value]
            for value in [
                "0",
                "-5",
                "+5",
                "abc",
                "1e3",
                "0.5",
                "60s",
                "0x10",
                "1_000",
                "NaN",
                "Infinity",
                "٣",
            ]
        ),
        [" 60"],
        ["60\n"],
        [str(MAX_DURATION + 1)],
        ["9" * 5000],
        ["60", "70"],
        ["60", "60"],
        ["", ""],
    ],
)
def test_a_duration_that_is_not_whole_seconds_is_refused(values: list[str]) -> None:
    with pytest.raises(
        RequestError, match="duration must be one whole number of seconds from 1 to"
    ) as caught:
        DURATION.parse(values)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 200


def test_a_hash_is_52_characters() -> None:
    assert MANIFEST_HASH.parse([HASH]) == HASH


@pytest.mark.parametrize("values", [[], [""]])
def test_a_request_without_its_hash_gets_422_as_recorded(values: list[str]) -> None:
    with pytest.raises(HashMissingError, match="manifestHash must be specified") as caught:
        MANIFEST_HASH.parse(values)
    assert caught.value.status == 422


@pytest.mark.parametrize(
    "values", [["x"], [HASH.upper()], [HASH + "\n"], [HASH, HASH], ["a" * 100_000], ["../" * 20]]
)
def test_what_cannot_be_a_hash_names_no_pod(values: list[str]) -> None:
    with pytest.raises(NotFoundError) as caught:
        MANIFEST_HASH.parse(values)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("parse", [parameter.parse for parameter in ALL])
@given(values=st.lists(ANY_TEXT, max_size=3))
def test_any_query_values_are_parsed_or_refused_with_a_client_error(
    parse: Callable[[list[str]], object], values: list[str]
) -> None:
    error = refusal(parse, values)
    assert error is None or 400 <= error.status < 500


@pytest.mark.parametrize("parameter", ALL, ids=lambda parameter: parameter.name)
@given(values=st.lists(ANY_TEXT, max_size=3))
def test_a_refusal_is_one_of_those_that_are_declared(parameter: Parameter, values: list[str]) -> None:
    error = refusal(parameter.parse, values)
    assert error is None or isinstance(error, parameter.refusals)


def test_a_limit_is_the_largest_by_default() -> None:
    assert LIMIT.parse([]) == LIMIT.parse([""]) == MAX_PEERS
    assert LIMIT.parse(["7"]) == 7
    with pytest.raises(RequestError, match='limit must be one whole number from 1 to 1000, not "1001"'):
        LIMIT.parse(["1001"])


def test_a_flag_is_strict_and_a_wish_is_not() -> None:
    assert PROGRESS.parse(["true"])
    assert FOLLOW.parse(["true"])
    assert not PROGRESS.parse([])
    assert not PROGRESS.parse(["false"])
    for values in (["1"], ["TRUE"], [""], ["true", "true"]):
        assert not FOLLOW.parse(values)
        with pytest.raises(RequestError, match="progress must be true or false, given once"):
            PROGRESS.parse(values)
