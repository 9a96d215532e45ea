"""What manifests mean: the recordings of the original agree, save for the differences listed here by name."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.errors import ManifestError, RequestError
from codius_node.jsontext import decode_json
from codius_node.manifest import (
    MAX_ENVIRONMENT_SIZE,
    canonical_json,
    generate,
    hash_manifest,
    hash_private,
    parse,
    problems,
)
from codius_node.model import Json, PrivateVariable
from codius_node.parameters import DURATION
from codius_node.schema import MAX_STRING, MAX_UPLOAD_BODY
from codius_node.shapes import Problem
from tests.unit.node.documents import (
    ANY_JSON,
    ANY_TEXT,
    DIGEST,
    HASH,
    container,
    recorded,
    refusal,
    upload,
)

SECRET = PrivateVariable(nonce="123", value="shh")
SECRET_HASH = "605f759f589cedbf4a555faf687e4d2bca87989897cc9c19d605cf80374ef0b3"

DIFFERENCES: dict[str, str] = {
    # data/vectors/private-hash.json
    "private-hash: no nonce": "without a nonce the value could be guessed from its hash",
    # data/vectors/validate.json
    "validate: port x80": "the original's pattern was not anchored, and no program can listen on x80",
    "validate: var description": "its host refused what its client accepted; `generate` leaves it out",
    "validate: many errors at once": "a repeated id is reported at that id, not at the whole list",
    # data/vectors/generate.json
    "generate: simple": "the simplified manifest served a debug command that does not exist here",
    # data/golden/quote.json and pods.json: statuses
    "quote?duration=0": "nothing is sold for no time",
    "quote?duration=-5": "a negative duration was free and shortened the pod",
    "quote?duration=abc": "the price was NaN",
    "quote?duration=1e3": "whole seconds in digits, so that all readers agree",
    "quote?duration=0.5": "whole seconds",
    "quote?duration=%2060": "whole seconds in digits, so that all readers agree",
    "quote?duration=60&duration=70": "the price was NaN",
    "quote?duration=99999999999": "3 000 years",
    "quote?duration=9999999999999999": "300 million years",
    "quote?duration=1e30": "not digits, and past the end of time",
    "quote?duration=Infinity": "the price was Infinity",
    "quote?duration=NaN": "the price was NaN",
    "quote?duration=0x10": "whole seconds in digits, so that all readers agree",
    "quote?duration=60s": "the price was NaN",
    "OPTIONS body: bad utf-8": "two different bodies had one hash",
    "quote: container id empty": "container ids are names",
    "quote: container id with slash and space": "container ids are names",
    "quote: duplicate container ids": "logs could not tell them apart",
    "quote: env $A undefined, no vars": "was a 500",
    "quote: env $A undefined, vars without it": "was a 500",
    "quote: env lone $": "was a 500",
    "quote: env $$A": "was a 500; $$ is now a literal $",
    "quote: env $toString": "was a 500; only own keys count",
    "quote: env $A public": "was a 500; private may be missing",
    "quote: private var, no private": "was a 500; private may be missing",
    "quote: port -1": "ports are 1 to 65535",
    "quote: port 99999": "ports are 1 to 65535",
    "quote: port x8080y (pattern is not anchored)": "ports are 1 to 65535",
    "quote: port '80 81'": "ports are 1 to 65535",
    "quote: port empty": "ports are 1 to 65535",
    "quote: port 1e4": "ports are 1 to 65535",
    "quote: debug 'true' string": "a converted value changes what the hash names",
    "quote: image without digest": "a tag can change; the hash must name what runs",
    "quote: image with tag": "a tag can change; the hash must name what runs",
    "quote: image junk": "not an image reference",
    "quote: __proto__ field": "an unknown field like any other",
    "quote: duplicate key": "two readers could see two manifests",
    "upload ?duration=0": "see quote",
    "upload ?duration=-5": "see quote",
    "upload ?duration=abc": "was a 500, after the charge",
    "upload ?duration=1e3": "see quote",
    "upload ?duration=0.5": "see quote",
    "upload ?duration=%2060": "see quote",
    "upload ?duration=60&duration=70": "was a 500, after the charge",
    "upload ?duration=99999999999": "see quote",
    "upload ?duration=9999999999999999": "was a 500, after the charge",
    "upload ?duration=1e30": "was a 500, after the charge",
    "upload ?duration=Infinity": "was a 500, after the charge",
    "upload ?duration=NaN": "was a 500, after the charge",
    "upload ?duration=0x10": "see quote",
    "upload ?duration=60s": "was a 500, after the charge",
    "new pod duration 0": "see quote",
    "new pod duration -5": "was a 500, after the charge",
    "new pod duration abc": "was a 500, after the charge",
    "new pod duration 0.5": "see quote",
    "new pod duration 1e30": "was a 500, after the charge",
    "new pod duration twice": "was a 500, after the charge",
}
"""Every place where these decisions differ from the recordings on purpose, with the reason."""

LEFT_OUT: dict[str, str] = {
    "OPTIONS body: text/plain": "the API decides by media type",
    "OPTIONS body: form": "the API decides by media type",
    "OPTIONS body: vnd+json": "the API decides by media type",
    "OPTIONS body: codius json": "the API decides by media type",
    "OPTIONS body: nonsense type": "the API decides by media type",
    "OPTIONS body: gzip": "the API unpacks",
    "OPTIONS body: short content-length": "the HTTP parser's affair",
    "OPTIONS body: 1.2 MB": "the body is not in the recording; see test_schema",
    "OPTIONS body: exactly 1 MiB of spaces around": "the body is not in the recording; see test_schema",
    "quote: name is 200 KB": "the body is not in the recording; see test_schema",
}
"""Recorded requests on which other parts decide."""


def differences(agreeing: dict[str, bool], prefixes: tuple[str, ...]) -> None:
    """Assert that exactly the listed ones disagree: a new disagreement and an unused entry both fail."""
    listed = {name for name in DIFFERENCES if name.startswith(prefixes)}
    assert {name for name, agrees in agreeing.items() if not agrees} == listed


# --- the recordings -----------------------------------------------------------------------------------

HASHES = recorded("vectors/hash.json")["vectors"]


@pytest.mark.parametrize("vector", HASHES, ids=[vector["name"] for vector in HASHES])
def test_every_recorded_hash_agrees(vector: dict[str, str]) -> None:
    document: Json = json.loads(vector["manifest_json"])
    if "canonical" in vector:
        assert canonical_json(document) == vector["canonical"]
    else:
        canonical = canonical_json(document).encode()
        assert hashlib.sha256(canonical).hexdigest() == vector["canonical_sha256"]
    assert hash_manifest(document) == vector["hash"]


def test_every_recorded_private_hash_agrees() -> None:
    agreeing = {}
    for vector in recorded("vectors/private-hash.json")["vectors"]:
        private = vector["private_var"]
        name = "private-hash: " + ("no nonce" if "nonce" not in private else private["value"])
        document: Json = {**upload(), "private": {"vars": {"S": private}}}
        agreeing[name] = (
            refusal(parse, document) is None and hash_private(PrivateVariable(**private)) == vector["hash"]
        )
        assert hashlib.sha256(canonical_json(private).encode()).hexdigest() == vector["hash"]
    differences(agreeing, ("private-hash: ",))


def test_every_recorded_verdict_agrees() -> None:
    agreeing = {}
    for vector in recorded("vectors/validate.json")["vectors"]:
        expected = set()
        for error in vector["errors"]:
            ((path, text),) = error.items()
            if "additionalProperties" in text:
                path += "." + text.split("'additionalProperties':'")[1].split("'")[0]
            # The original wrote indexes and private variables in two ways.
            path = path.replace("containers.0", "containers[0]").replace("private.vars.", "private.")
            expected.add(path)
        given = {verdict.path.replace("private.vars.", "private.") for verdict in problems(vector["input"])}
        agreeing["validate: " + vector["name"]] = given == expected
    assert len(agreeing) == 30
    differences(agreeing, ("validate: ",))


def test_the_verdicts_that_differ_are_these() -> None:
    vectors = {vector["name"]: vector["input"] for vector in recorded("vectors/validate.json")["vectors"]}
    assert [str(verdict) for verdict in problems(vectors["port x80"])] == [
        'manifest.port must be a string of digits from 1 to 65535, not "x80"'
    ]
    assert [verdict.path for verdict in problems(vectors["var description"])] == [
        "manifest.vars.A.description"
    ]
    assert [(verdict.path, verdict.refused) for verdict in problems(vectors["many errors at once"])] == [
        ("manifest.containers[0].environment.CODIUS_A", True),
        ("manifest.containers[0].environment.CODIUS_A", True),
        ("manifest.containers[0].environment.B", True),
        ("manifest.containers[1].id", True),
        ("manifest.vars.Z", False),
        ("private.vars.Q", False),
    ]


def test_every_recorded_generation_agrees() -> None:
    agreeing = {"generate: simple": False}
    for vector in recorded("vectors/generate.json")["vectors"]:
        name = "generate: " + vector["name"]
        if "error" in vector:
            path = vector["error"].split('"path": "')[1].split('"')[0]
            error = refusal(generate, vector["codius"], vector["vars"], str)
            agreeing[name] = isinstance(error, RequestError) and str(error).startswith(path)
        else:
            made = generate(vector["codius"], vector["vars"], lambda: "ab" * 16)
            agreeing[name] = (
                json.dumps(made, sort_keys=True) == json.dumps(vector["generated"], sort_keys=True)
                and hash_manifest(cast("dict[str, Json]", made)["manifest"]) == vector["hash"]
            )
            assert refusal(parse, made) is None
    assert len(agreeing) == 8
    differences(agreeing, ("generate: ",))


def outcome_of(response: dict[str, Any]) -> str:
    """The recorded manifest hash, or the status of the refusal."""
    hashed = json.loads(response["body"])["manifestHash"] if response["status"] == 200 else None
    return hashed or str(response["status"])


def replay(step: dict[str, Any]) -> str:
    """The hash or refusal's status that the decisions alone give to a recorded request."""
    query = step["request"]["path"].partition("?")[2].replace("%20", " ")
    durations = [pair.partition("=")[2] for pair in query.split("&") if pair.startswith("duration=")]
    private = step["request"]["method"] == "POST"
    body = step["request"].get("body", "").encode()
    if step["name"] == "OPTIONS body: bad utf-8":  # the recording shows the replacement character
        body = body.replace("\ufffd".encode(), b"\xff")

    def decide() -> str:
        DURATION.parse(durations)
        return parse(decode_json(body, limit=MAX_UPLOAD_BODY), require_private=private).manifest.hash

    error = refusal(decide)
    return decide() if error is None else str(error.status)


@pytest.mark.parametrize(
    ("file", "method", "prefixes"),
    [("quote", "OPTIONS", ("quote", "OPTIONS")), ("pods", "POST", ("upload", "new pod"))],
)
def test_every_recorded_status_agrees(file: str, method: str, prefixes: tuple[str, ...]) -> None:
    agreeing = {}
    for step in recorded(f"golden/{file}.json")["steps"]:
        request = step.get("request", {})
        if request.get("method") != method or not request["path"].startswith("/pods"):
            continue
        if step["name"] not in LEFT_OUT:
            agreeing[step["name"]] = replay(step) == outcome_of(step["response"])
    assert len(agreeing) > 20
    differences(agreeing, prefixes)


def test_the_statuses_that_differ_are_these() -> None:
    steps = {
        step["name"]: replay(step)
        for file in ("quote", "pods")
        for step in recorded(f"golden/{file}.json")["steps"]
        if step.get("name") in DIFFERENCES
    }
    assert {name for name, outcome in steps.items() if len(outcome) == 52} == {
        "quote: env $$A",
        "quote: env $A public",
        "quote: private var, no private",
    }
    assert {name for name, outcome in steps.items() if outcome == "422"} == {
        "quote: duplicate container ids",
        "quote: env $A undefined, no vars",
        "quote: env $A undefined, vars without it",
        "quote: env lone $",
        "quote: env $toString",
        "quote: image without digest",
        "quote: image with tag",
    }
    assert {outcome for outcome in steps.values() if len(outcome) != 52} == {"400", "422"}


def test_every_listed_difference_belongs_to_a_recording_tested_here() -> None:
    prefixes = ("private-hash: ", "validate: ", "generate: ", "quote", "OPTIONS", "upload", "new pod")
    assert all(name.startswith(prefixes) for name in DIFFERENCES)


def test_every_request_left_to_others_is_in_the_recordings() -> None:
    names = {step["name"] for step in recorded("golden/quote.json")["steps"] if "name" in step}
    assert names >= set(LEFT_OUT)


# --- meaning ------------------------------------------------------------------------------------------


def private_upload(**changes: Json) -> dict[str, Json]:
    document = container(environment={"S": "$S"})
    cast("dict[str, Json]", document["manifest"])["vars"] = {
        "S": {"encoding": "private:sha256", "value": SECRET_HASH}
    }
    return {**document, "private": {"vars": {"S": {"nonce": "123", "value": "shh"}}}, **changes}


def test_a_manifest_is_parsed_with_its_hash_and_its_own_document() -> None:
    document = upload()
    manifest = parse(document).manifest
    assert manifest.hash == HASH
    assert manifest.document == document["manifest"]
    assert manifest.port == 8080


def test_private_values_that_match_are_kept() -> None:
    parsed = parse(private_upload())
    assert parsed.private == {"S": SECRET}
    assert parsed.manifest.variables["S"].value == SECRET_HASH


def test_private_values_that_no_container_uses_are_not_kept() -> None:
    secrets: Json = {"vars": {"S": {"nonce": "1", "value": "v"}}}
    assert parse({**upload(), "private": secrets}).private == {}
    public = container(environment={"S": "$S"})
    cast("dict[str, Json]", public["manifest"])["vars"] = {"S": {"value": "plain"}}
    assert parse({**public, "private": secrets}).private == {}


MEANING_CASES: dict[str, tuple[Json, str]] = {
    "reserved": (
        container(environment={"CODIUS_X": "1"}),
        "manifest.containers[0].environment.CODIUS_X is reserved",
    ),
    "reserved without underscore": (
        container(environment={"CODIUSX": "1"}),
        "environment.CODIUSX is reserved: names starting with CODIUS are set by the host",
    ),
    "undefined": (
        container(environment={"A": "$B"}),
        'manifest.containers[0].environment.A refers to the variable "B", which manifest.vars does not have',
    ),
    "lone dollar": (container(environment={"A": "$"}), 'refers to the variable "", which manifest.vars'),
    "own keys only": (container(environment={"A": "$__class__"}), 'refers to the variable "__class__"'),
    "private missing": (
        {key: value for key, value in private_upload().items() if key != "private"},
        'environment.S refers to the private variable "S", whose nonce and value private.vars does not have',
    ),
    "private empty": (private_upload(private={}), "private.vars does not have"),
    "private wrong": (
        private_upload(private={"vars": {"S": {"nonce": "123", "value": "other"}}}),
        "private.vars has for it does not match the hash in manifest.vars.S.value",
    ),
    "private value in the nonce": (
        private_upload(private={"vars": {"S": {"nonce": "shh", "value": "123"}}}),
        "does not match the hash in manifest.vars.S.value",
    ),
    "hash is no hash": (
        {
            "manifest": {
                **cast("dict[str, Json]", container(environment={"S": "$S"})["manifest"]),
                "vars": {"S": {"encoding": "private:sha256", "value": SECRET_HASH.upper()}},
            },
            "private": {"vars": {"S": {"nonce": "123", "value": "shh"}}},
        },
        "manifest.vars.S.value is not a SHA-256 hash",
    ),
    "repeated id": (
        upload(containers=[{"id": "app", "image": DIGEST}, {"id": "app", "image": DIGEST}]),
        'manifest.containers[1].id must be unique, and "app" is the id of containers[0] too',
    ),
    "tag": (
        container(image="nginx:1.17"),
        'containers[0].image must name a digest, as in "name@sha256:<64 hex digits>", not "nginx:1.17"',
    ),
    "environment too large": (
        upload(
            containers=[{"id": "a", "image": DIGEST, "environment": {f"K{n}": "$V" for n in range(20)}}],
            vars={"V": {"value": "x" * MAX_STRING}},
        ),
        f"bytes with its variables filled in; at most {MAX_ENVIRONMENT_SIZE} can be given to a program",
    ),
}


@pytest.mark.parametrize("case", MEANING_CASES)
def test_a_manifest_that_cannot_run_is_refused_with_422_and_the_field(case: str) -> None:
    document, says = MEANING_CASES[case]
    with pytest.raises(ManifestError) as caught:
        parse(document)
    assert says in str(caught.value)
    assert caught.value.status == 422


def test_lower_case_codius_is_not_reserved() -> None:
    assert parse(container(environment={"codius_x": "1"})).manifest.containers[0].environment == {
        "codius_x": "1"
    }


def test_two_dollars_are_text_and_need_no_variable() -> None:
    parse(container(environment={"A": "$$B", "C": "$$", "D": "a$B"}))


def test_a_quote_may_come_without_private_values_but_not_with_wrong_ones() -> None:
    missing = {key: value for key, value in private_upload().items() if key != "private"}
    assert parse(missing, require_private=False).private == {}
    wrong: list[Json] = [{}, {"vars": {}}, {"vars": {"S": {"nonce": "1", "value": "x"}}}]
    for private in wrong:
        with pytest.raises(ManifestError):
            parse(private_upload(private=private), require_private=False)


def test_an_operator_can_allow_tags() -> None:
    assert parse(container(image="nginx:1.17"), allow_tags=True).manifest.containers[0].image == "nginx:1.17"


def test_advice_does_not_refuse() -> None:
    document = upload(vars={"A": {"value": "x"}})
    parse(document)
    assert problems(document) == [Problem("manifest.vars.A", "is not used by any container", refused=False)]


def test_all_verdicts_on_meaning_are_told() -> None:
    with pytest.raises(ManifestError) as caught:
        parse(container(environment={"CODIUS": "x", "B": "$Y"}))
    assert "environment.CODIUS is reserved" in str(caught.value)
    assert "environment.B refers to" in str(caught.value.hint)


# --- properties ---------------------------------------------------------------------------------------

NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=8).filter(
    lambda name: "=" not in name
)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
ENVIRONMENTS = st.dictionaries(
    NAMES.filter(lambda name: not name.startswith("CODIUS")),
    VALUES.map(lambda value: value.replace("$", "")),
    max_size=5,
)


@given(st.binary(max_size=300) | ANY_JSON.map(lambda document: json.dumps(document).encode()), st.booleans())
def test_any_body_is_parsed_or_refused_with_a_client_error(body: bytes, allow: bool) -> None:
    def act() -> None:
        parse(decode_json(body, limit=MAX_UPLOAD_BODY), require_private=not allow, allow_tags=allow)

    error = refusal(act)
    assert error is None or 400 <= error.status < 500


@given(ANY_JSON, ANY_JSON, ANY_JSON, st.booleans())
def test_any_json_near_an_upload_is_parsed_or_refused_with_a_client_error(
    environment: Json, variables: Json, private: Json, allow: bool
) -> None:
    document = container(environment=environment)
    cast("dict[str, Json]", document["manifest"])["vars"] = variables
    document["private"] = {"vars": private}
    error = refusal(parse, document, require_private=not allow, allow_tags=allow)
    assert error is None or error.status in {400, 422}
    told = problems(document, require_private=not allow, allow_tags=allow)
    assert any(problem.refused for problem in told) == (error is not None)


@given(ANY_JSON, ANY_JSON)
def test_any_two_project_files_make_an_upload_or_a_request_error(codius: Json, variables: Json) -> None:
    numbers = itertools.count()
    pairs: list[tuple[Json, Json]] = [
        (codius, variables),
        (upload(vars=codius), {"vars": {"public": variables}}),
        (upload(), {"vars": {"private": variables}}),
    ]
    for first, second in pairs:
        error = refusal(generate, first, second, lambda: str(next(numbers)))
        assert error is None or error.status == 400


@given(ENVIRONMENTS, st.randoms(use_true_random=False), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_the_hash_does_not_depend_on_key_order_spaces_or_escapes(
    environment: dict[str, str], shuffler: random.Random, indent: int | str | None, ascii_only: bool
) -> None:
    document = container(environment=cast("Json", environment))

    def shuffled(value: Json) -> Json:
        if isinstance(value, dict):
            keys = list(value)
            shuffler.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(shuffled(document), indent=indent, ensure_ascii=ascii_only)
    again = decode_json(text.encode(), limit=MAX_UPLOAD_BODY)
    assert parse(again).manifest.hash == parse(document).manifest.hash == hash_manifest(document["manifest"])


@given(ENVIRONMENTS, ENVIRONMENTS)
def test_different_manifests_have_different_hashes(first: dict[str, str], second: dict[str, str]) -> None:
    hashes = [
        parse(container(environment=cast("Json", environment))).manifest.hash
        for environment in (first, second)
    ]
    assert (hashes[0] == hashes[1]) == (first == second)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_canonical_number_is_the_same_number(number: float) -> None:
    text = canonical_json(number)
    assert float(text) == number
    assert "e" not in text or abs(number) >= 1e21 or abs(number) < 1e-6


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (1e21, "1e+21"),
        (123456789012345680000.0, "123456789012345680000"),
        (-1.5e-7, "-1.5e-7"),
        (0.000001234, "0.000001234"),
        (100.0, "100"),
        (10**400, "null"),
        (float("inf"), "null"),
    ],
)
def test_numbers_are_written_as_javascript_writes_them(number: float, text: str) -> None:
    assert canonical_json(number) == text


MARK = "s3cr3t-"


@given(
    VALUES.map(lambda value: MARK + value),
    VALUES.map(lambda value: MARK + value),
    st.sampled_from(["S", "other"]),
    st.sampled_from([SECRET_HASH, "00", ""]),
    st.sampled_from(["whole", "string", "list", "number name", "extra", "vars", "top", "nul"]),
)
def test_a_private_value_is_never_in_an_error(
    nonce: str, value: str, name: str, public: str, broken: str
) -> None:
    good: dict[str, Json] = {"nonce": nonce, "value": value}
    shapes: dict[str, Json] = {
        "whole": {"vars": {name: cast("Json", good)}},
        "string": {"vars": {name: value}},
        "list": {"vars": [value, nonce]},
        "number name": {"vars": {name: {"nonce": 1, "value": value}}},
        "extra": {"vars": {name: {**good, "extra": value}}},
        "vars": {"vars": value},
        "top": value,
        "nul": {"vars": {name: {"nonce": nonce, "value": value + "\0"}}},
    }
    document = container(environment={"S": "$S", "T": "$T"})
    cast("dict[str, Json]", document["manifest"])["vars"] = {
        "S": {"encoding": "private:sha256", "value": public}
    }
    document["private"] = shapes[broken]
    error = refusal(parse, document)
    assert error is not None
    for text in (str(error), repr(error), str(error.hint), *map(str, problems(document))):
        assert MARK not in text
    files_error = refusal(generate, upload(), {"vars": {"private": {name: value}}}, str)
    assert files_error is not None
    assert MARK not in f"{files_error} {files_error.hint}"


@given(ANY_TEXT)
def test_broken_json_does_not_repeat_the_body(text: str) -> None:
    body = f'{{"private": {{"vars": {{"S": {{"value": "{MARK}", '.encode() + text.encode("utf-8", "replace")
    error = refusal(decode_json, body, limit=MAX_UPLOAD_BODY)
    assert error is not None
    assert MARK not in str(error)


# --- generating ---------------------------------------------------------------------------------------


def test_each_private_variable_gets_a_nonce_of_its_own() -> None:
    numbers = itertools.count()
    made = generate(
        container(environment={"A": "$A", "B": "$B"}),
        {"vars": {"private": {"A": {"value": "x"}, "B": {"value": "x"}}}},
        lambda: f"nonce{next(numbers)}",
    )
    parsed = parse(made)
    assert parsed.private["A"] != parsed.private["B"]
    assert parsed.manifest.variables["A"] != parsed.manifest.variables["B"]


def test_descriptions_are_for_the_files_and_stay_there() -> None:
    codius = container(environment={"A": "$A", "B": "$B"})
    cast("dict[str, Json]", codius["manifest"])["vars"] = {"A": {"value": "1", "description": "the first"}}
    files: Json = {"vars": {"private": {"B": {"value": "2", "description": "the second"}}}}
    made = generate(codius, files, lambda: "n")
    assert "description" not in json.dumps(made)
    assert parse(made).private["B"].value == "2"


def test_generating_leaves_its_input_alone() -> None:
    codius = container(environment={})
    before = json.dumps(codius)
    generate(codius, {"vars": {"public": {"A": {"value": "1"}}}}, str)
    assert json.dumps(codius) == before
