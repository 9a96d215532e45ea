"""The shape of an upload: what is refused, with which words, and that nothing else ever escapes."""

from __future__ import annotations

import pytest
from hypothesis import given

from codius_node import schema
from codius_node.errors import RequestError
from codius_node.model import Json, Machine
from codius_node.schema import (
    MAX_CONTAINERS,
    MAX_STRING,
    MAX_VARIABLES,
    check_upload,
    parse_literal,
    parse_reference,
    upload_problems,
)
from codius_node.shapes import Problem, explain
from tests.unit.node.documents import ANY_JSON, DIGEST, container, refusal, upload


def test_a_small_upload_is_read() -> None:
    read = check_upload(upload())
    assert (read.name, read.version, read.machine, read.port) == ("hello", "1.0.0", Machine.SMALL, 8080)
    assert [(item.id, item.image) for item in read.containers] == [("app", DIGEST)]
    assert read.private is None
    assert not read.debug


def test_every_field_is_read() -> None:
    document: Json = {
        "manifest": {
            "name": "",
            "version": "",
            "port": "0080",
            "debug": True,
            "containers": [
                {
                    "id": "a-1",
                    "image": "registry.example:5000/team/app:v1@sha256:" + "a" * 64,
                    "command": ["run", ""],
                    "workdir": "/srv",
                    "environment": {"A": "x"},
                }
            ],
            "vars": {"V": {"value": "1"}, "S": {"value": "2", "encoding": "private:sha256"}},
        },
        "private": {"vars": {"S": {"nonce": "n", "value": "v"}}},
    }
    read = check_upload(document)
    assert read.port == 80
    assert read.debug
    assert read.containers[0].command == ("run", "")
    assert read.containers[0].workdir == "/srv"
    assert read.containers[0].environment == {"A": "x"}
    assert read.variables["S"].encoding == "private:sha256"
    assert read.variables["V"].encoding is None
    assert read.private is not None
    assert read.private["S"].value == "v"


PORT = "must be a string of digits from 1 to 65535, not"
SHAPE_CASES: dict[str, tuple[Json, str]] = {
    "null": (None, "the body must be a JSON object with manifest and private, not null"),
    "array": ([], "the body must be a JSON object with manifest and private, not an empty array"),
    "no manifest": ({}, "manifest is missing: it must be an object with name, version and containers"),
    "manifest string": (
        {"manifest": "x"},
        'manifest must be an object with name, version and containers, not "x"',
    ),
    "private null": (
        {**upload(), "private": None},
        "private must be an object with vars, not null",
    ),
    "unknown top field": (
        {**upload(), "x": 1},
        "x is not a known field; known here: manifest, private",
    ),
    "name null": (upload(name=None), "manifest.name must be a string of at most 256 bytes, not null"),
    "name long": (
        upload(name="x" * 200_000),
        'manifest.name must be a string of at most 256 bytes, not "' + "x" * 60 + '…" (200000 bytes)',
    ),
    "name long in bytes": (upload(name="é" * 129), "manifest.name must be a string of at most 256 bytes"),
    "name not encodable": (upload(name="\udc00"), r'at most 256 bytes, not "\udc00"'),
    "port number": (upload(port=8080), f"manifest.port {PORT} 8080 (a number)"),
    "port zero": (upload(port="0"), f'manifest.port {PORT} "0"'),
    "port empty": (upload(port=""), f'manifest.port {PORT} ""'),
    "port too large": (upload(port="65536"), f'manifest.port {PORT} "65536"'),
    "port 99999": (upload(port="99999"), f'manifest.port {PORT} "99999"'),
    "port x80": (upload(port="x80"), f'manifest.port {PORT} "x80"'),
    "port newline": (upload(port="80\n"), f'manifest.port {PORT} "80\\n"'),
    "port other digits": (upload(port="٨٠"), f'manifest.port {PORT} "٨٠"'),
    "machine large": (upload(machine="large"), 'manifest.machine must be "small", not "large"'),
    "debug string": (upload(debug="true"), 'manifest.debug must be true or false, not "true"'),
    "debug number": (upload(debug=1), "manifest.debug must be true or false, not 1 (a number)"),
    "description": (
        upload(description="d"),
        "manifest.description is not a known field; known here: name",
    ),
    "proto": (
        upload(__proto__={"x": 1}),
        "manifest.__proto__ is not a known field; known here: name, version, machine, port, containers, "
        "vars, debug",
    ),
    "containers missing": (
        {"manifest": {"name": "a", "version": "1"}},
        "manifest.containers is missing: it must be an array of 1 to 16 containers",
    ),
    "containers empty": (
        upload(containers=[]),
        "manifest.containers must be an array of 1 to 16 containers, not an empty array",
    ),
    "containers many": (
        upload(containers=[{}] * (MAX_CONTAINERS + 1)),
        "manifest.containers must be an array of 1 to 16 containers, not an array of 17",
    ),
    "container string": (
        upload(containers=["x"]),
        'manifest.containers[0] must be an object with id and image, not "x"',
    ),
    "id number": (
        container(id=1),
        "manifest.containers[0].id must be 1 to 63 of a-z, 0-9 and -, the first not -, not 1 (a number)",
    ),
    "id empty": (container(id=""), "manifest.containers[0].id must be 1 to 63"),
    "id path": (container(id="../a b"), "manifest.containers[0].id must be 1 to 63"),
    "id upper case": (container(id="App"), 'the first not -, not "App"'),
    "id dash first": (container(id="-app"), 'the first not -, not "-app"'),
    "id long": (container(id="a" * 64), "manifest.containers[0].id must be 1 to 63"),
    "image junk": (container(image="; rm -rf /"), "manifest.containers[0].image must be an image reference"),
    "image transport": (container(image="docker://nginx"), "manifest.containers[0].image must be"),
    "image path": (container(image="dir:/etc"), "manifest.containers[0].image must be"),
    "image digest short": (container(image="nginx@sha256:00"), "manifest.containers[0].image must be"),
    "image digest upper case": (container(image="nginx@sha256:" + "A" * 64), "image must be"),
    "image md5": (container(image="nginx@md5:" + "0" * 32), "manifest.containers[0].image must be"),
    "image upper case name": (container(image="Nginx:1"), "manifest.containers[0].image must be"),
    "image newline": (container(image=DIGEST + "\n"), "manifest.containers[0].image must be"),
    "image up": (container(image="registry.example/../nginx"), "manifest.containers[0].image must be"),
    "image number": (container(image=5), "manifest.containers[0].image must be"),
    "command string": (
        container(command="ls"),
        'manifest.containers[0].command must be an array of at most 256 strings, not "ls"',
    ),
    "command item": (
        container(command=["a", 1]),
        f"containers[0].command[1] must be a string of at most {MAX_STRING} bytes without NUL, not 1",
    ),
    "command NUL": (container(command=["a\0"]), r'without NUL, not "a\u0000"'),
    "command many": (container(command=["a"] * 257), "not an array of 257"),
    "workdir number": (container(workdir=1), "manifest.containers[0].workdir must be an absolute path"),
    "workdir relative": (container(workdir="srv"), 'path of at most 4095 bytes, not "srv"'),
    "environment array": (
        container(environment=[]),
        "manifest.containers[0].environment must be an object of at most 256 strings, not an empty array",
    ),
    "environment null": (container(environment={"A": None}), "manifest.containers[0].environment.A must be"),
    "environment many": (
        container(environment={f"K{number}": "" for number in range(MAX_VARIABLES + 1)}),
        "not an object with 257 fields",
    ),
    "environment name": (
        container(environment={"A=B": "x"}),
        'manifest.containers[0].environment["A=B"] has a name that cannot be used: '
        "it must be 1 to 256 bytes without = and NUL",
    ),
    "environment empty name": (container(environment={"": "x"}), 'environment[""] has a name that cannot'),
    "environment huge value": (container(environment={"A": "x" * (MAX_STRING + 1)}), "(65537 bytes)"),
    "misspelt": (
        container(enviroment={}),
        "manifest.containers[0].enviroment is not a known field; did you mean environment?",
    ),
    "vars array": (upload(vars=[]), "manifest.vars must be an object of at most 256 variables"),
    "var string": (upload(vars={"A": "x"}), 'vars.A must be an object such as {"value": "…"}, not "x"'),
    "var no value": (upload(vars={"A": {}}), "manifest.vars.A.value is missing"),
    "var encoding": (
        upload(vars={"A": {"value": "x", "encoding": "md5"}}),
        'manifest.vars.A.encoding must be "private:sha256", not "md5"',
    ),
    "var description": (
        upload(vars={"A": {"value": "x", "description": "d"}}),
        "manifest.vars.A.description is not a known field; known here: value, encoding",
    ),
    "private value number": (
        {**upload(), "private": {"vars": {"S": {"nonce": "1", "value": 31337}}}},
        f"private.vars.S.value must be a string of at most {MAX_STRING} bytes without NUL, not a number",
    ),
    "private value long": (
        {**upload(), "private": {"vars": {"S": {"nonce": "1", "value": "q" * 70_000}}}},
        "without NUL, not a string of 70000 bytes",
    ),
    "private nonce missing": (
        {**upload(), "private": {"vars": {"S": {"value": "v"}}}},
        "private.vars.S.nonce is missing",
    ),
    "private string": (
        {**upload(), "private": {"vars": {"S": "shh"}}},
        'private.vars.S must be an object such as {"nonce": "…", "value": "…"}, not a string of 3 bytes',
    ),
    "whole manifest": (
        upload(containers=[{"id": f"a{n}", "image": DIGEST, "command": ["x" * 60_000]} for n in range(3)]),
        "manifest must be at most 122880 bytes as JSON, not 180",
    ),
}


@pytest.mark.parametrize("case", SHAPE_CASES)
def test_a_field_of_the_wrong_shape_is_named_with_what_would_be_right(case: str) -> None:
    document, says = SHAPE_CASES[case]
    with pytest.raises(RequestError) as caught:
        check_upload(document)
    assert says in str(caught.value)
    assert caught.value.status == 400


def test_all_problems_are_told_the_first_as_the_message() -> None:
    with pytest.raises(RequestError) as caught:
        check_upload(upload(name=1, version=2, port=3))
    assert str(caught.value).startswith("manifest.name must be")
    assert caught.value.hint is not None
    assert "manifest.version must be" in caught.value.hint
    assert "manifest.port must be" in caught.value.hint


def test_a_flood_of_problems_makes_a_short_error() -> None:
    document = container(**{f"x{number}": 1 for number in range(10_000)})
    assert len(upload_problems(document)) <= 6
    message, hint = explain([Problem(f"field{number}", "is wrong") for number in range(100)])
    assert message == "field0 is wrong"
    assert hint is not None
    assert hint.endswith("field5 is wrong; and 94 more")


def test_an_image_is_accepted_in_every_form_registries_use() -> None:
    for image in (
        "nginx",
        "nginx:1.17",
        "library/nginx",
        "registry.example/nginx",
        "127.0.0.1:5000/sample:latest",
        "localhost/a/b-c/d__e.f@sha256:" + "0" * 64,
    ):
        assert check_upload(container(image=image)).containers[0].image == image


def test_odd_keys_are_shown_quoted_so_that_a_path_stays_one_line() -> None:
    problems = upload_problems(container(environment={"a\nb": 1, "x" * 250: 1, "\u202e": 1}))
    shown = [problem.path for problem in problems]
    assert shown[0] == r'manifest.containers[0].environment["a\nb"]'
    assert shown[2] == r'manifest.containers[0].environment["\u202e"]'
    assert len(shown[1]) < 120


@given(ANY_JSON)
def test_any_json_is_an_upload_or_a_request_error(document: Json) -> None:
    error = refusal(check_upload, document)
    assert error is None or error.status == 400


@given(ANY_JSON)
def test_any_json_in_any_field_is_answered(value: Json) -> None:
    documents = [
        upload(**{name: value}) for name in ("name", "port", "containers", "vars", "debug", "machine")
    ]
    documents += [
        container(**{name: value}) for name in ("id", "image", "command", "workdir", "environment", "other")
    ]
    documents += [{**upload(), "private": {"vars": {"S": value}}}, {**upload(), "private": value}]
    for document in documents:
        error = refusal(check_upload, document)
        assert error is None or error.status == 400


def test_a_number_too_long_to_print_is_described() -> None:
    assert "not a number" in str(upload_problems(upload(port=10**5000))[0])


# --- references and query parameters ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reference", "literal"),
    [
        ("$A", "A", None),
        ("$", "", None),
        ("$A$B", "A$B", None),
        ("$$A", None, "$A"),
        ("$$$A", None, "$$A"),
        ("$$", None, "$"),
        ("a$A", None, "a$A"),
        ("", None, ""),
    ],
)
def test_a_dollar_refers_and_two_dollars_are_one(
    value: str, reference: str | None, literal: str | None
) -> None:
    assert parse_reference(value) == reference
    if reference is None:
        assert parse_literal(value) == literal


def test_the_limits_leave_room_for_what_linux_takes_in_one_string() -> None:
    assert schema.MAX_MANIFEST_SIZE + len("CODIUS_MANIFEST=") < 128 * 1024
    assert MAX_STRING + schema.MAX_LABEL < 128 * 1024
