"""The description made of the code's own types: nothing left out, nothing said twice, nothing loose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest

from codius_node import errors, operations, replies, shapes
from codius_node.model import Isolation, Json, ManifestHash
from codius_node.openapi import build, describe_shape
from codius_node.operations import Operation
from tests.unit.node.documents import HASH, upload

ALL = [each for each in vars(operations).values() if isinstance(each, Operation)]
DOCUMENT: dict[str, Any] = build(ALL, uri="https://codius.example.com", version="2.0.0")
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def find(value: Json, key: str) -> Iterator[Json]:
    """Everything under this key, however deep."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for inner in value.values():
            yield from find(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from find(inner, key)


def get(operation: Operation) -> dict[str, Any]:
    return cast("dict[str, Any]", DOCUMENT["paths"][operation.path][operation.method.lower()])


def test_every_operation_is_described_once() -> None:
    names = [found["operationId"] for path in DOCUMENT["paths"].values() for found in path.values()]
    assert sorted(names) == sorted(operation.name for operation in ALL)
    assert len({(operation.method, operation.path) for operation in ALL}) == len(ALL)


def test_every_reference_leads_somewhere_and_no_schema_is_left_alone() -> None:
    referred = {str(reference) for reference in find(DOCUMENT, "$ref")}
    schemas = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert referred <= schemas
    assert schemas - referred == {"#/components/schemas/Step"}  # lines of a stream, which are told in words


def test_the_document_names_its_host_and_version() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["servers"] == [{"url": "https://codius.example.com"}]
    assert DOCUMENT["info"]["version"] == "2.0.0"
    json.dumps(DOCUMENT)


def test_what_an_upload_can_meet_is_said_by_status() -> None:
    answers = get(operations.UPLOAD)["responses"]
    assert set(answers) == {"200", "400", "402", "403", "413", "415", "422", "503"}
    assert answers["402"]["headers"]["Pay"]
    for sentence in (errors.ManifestError, errors.ImageError, errors.PodStartError):
        assert str(sentence.__doc__).splitlines()[0] in answers["422"]["description"]


def test_a_parameter_is_described_with_its_bounds() -> None:
    parameters = {each["name"]: each for each in get(operations.EXTEND)["parameters"]}
    assert parameters["duration"]["schema"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 315_360_000,
        "default": 3600,
    }
    assert parameters["manifestHash"]["required"]
    assert parameters["Pay-Token"]["in"] == "header"
    [path] = [each for each in get(operations.LOGS)["parameters"] if each["in"] == "path"]
    assert path["name"] == "hash"


@pytest.mark.parametrize("pattern", sorted({str(each) for each in find(DOCUMENT, "pattern")}))
def test_a_pattern_is_anchored_and_means_the_same_in_every_dialect(pattern: str) -> None:
    assert pattern.startswith("^")
    assert pattern.endswith("$")
    assert "(?P<" not in pattern
    assert r"\0" not in pattern
    re.compile(pattern)


def test_an_upload_is_closed_and_its_image_is_spelled_as_registries_do() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["Upload"]["additionalProperties"] is False
    assert schemas["Upload"]["required"] == ["manifest"]
    container = schemas["Manifest"]["properties"]["containers"]["items"]
    image = container["properties"]["image"]["pattern"]
    document = cast("dict[str, Any]", upload())
    assert re.search(image, document["manifest"]["containers"][0]["image"])
    assert not re.search(image, "docker://nginx")


def test_every_field_of_a_reply_has_a_meaning() -> None:
    for name, described in DOCUMENT["components"]["schemas"].items():
        for field, found in described["properties"].items():
            assert found.get("description") or "$ref" in found, f"{name}.{field}"


def test_a_shape_nobody_has_described_is_no_silent_hole() -> None:
    class Strange:
        wants = "something"

        def check(self, value: Json, place: shapes.Place, problems: list[shapes.Problem]) -> None: ...

    with pytest.raises(TypeError, match="Strange"):
        describe_shape(Strange())


# ---- replies --------------------------------------------------------------------------------------


def test_a_reply_is_told_in_the_names_clients_know() -> None:
    pod = replies.RunningPod("https://x/", ManifestHash(HASH), NOON.replace(microsecond=293_999))
    assert replies.render(pod) == {
        "url": "https://x/",
        "manifestHash": HASH,
        "expiry": "2026-11-23T12:00:00.293Z",
    }
    assert replies.render(replies.Step(result=pod)) == {"result": replies.render(pod)}


@pytest.mark.parametrize(("cost", "told"), [("10", 10), ("10.50", 10.5), ("1E+2", 100), ("0", 0)])
def test_a_price_is_a_number_and_a_whole_one_is_whole(cost: str, told: float) -> None:
    info = replies.Info(
        full_mem=False,
        accepting_uploads=True,
        num_peers=0,
        currency="XRP",
        cost_per_month=Decimal(cost),
        uri="https://x",
        self_test_success=True,
        isolation=Isolation.GVISOR,
        peers=(),
    )
    document = replies.render(info)
    assert json.dumps(document["costPerMonth"]) == json.dumps(told)
    assert (document["isolation"], document["peers"]) == ("gvisor", [])
    assert "serverFreeMemory" not in document
