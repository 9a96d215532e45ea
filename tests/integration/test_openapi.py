"""The API's description: an independent judge asks what it describes, and gets what it describes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, cast

import aiohttp
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS, CheckFunction, load_all_checks

from codius_node import openapi, operations
from codius_node.operations import Operation
from codius_node.parameters import Hash
from tests.harness.noop import NoopHost, open_noop_host
from tests.unit.node.documents import upload

EXAMPLES: Final = 20
"""Random requests for each operation, besides those the judge makes up for every limit it reads."""
DEADLINE: Final = 10.0
ROUTED: Final = [each for each in vars(operations).values() if isinstance(each, Operation)]
JUDGE: Final = schemathesis.openapi.from_dict(openapi.build(ROUTED, uri="http://localhost", version="0"))
# Methods that no operation has. TRACE is not among them: the front door's 501 for it, which RFC 9110 section
# 15.6.2 means for a method that is not served anywhere, would pass for a server's failure.
JUDGE.config.phases.coverage.unexpected_methods = {"get", "put", "post", "delete", "options", "patch", "head"}
load_all_checks()
EXCLUDED: Final = [
    cast("CheckFunction", CHECKS.get_one(name))
    for name in (
        "unsupported_method",  # it wants 405 for a method a path does not have; recorded are 404s
        # A schema cannot say all of a manifest's meaning: some that fit it are refused, as they must be.
        "positive_data_acceptance",
    )
]


@pytest.fixture(scope="module")
def host() -> Iterator[NoopHost]:
    with open_noop_host() as host:
        yield host


@JUDGE.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_answer_is_one_that_is_described(case: schemathesis.Case[Any], host: NoopHost) -> None:
    case.call_and_validate(
        base_url=f"http://127.0.0.1:{host.port}",
        headers={"Host": host.authority},
        excluded_checks=EXCLUDED,
        timeout=DEADLINE,
    )


async def test_the_served_description_is_that_of_all_operations_and_valid(host: NoopHost) -> None:
    JUDGE.validate()
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{host.port}", headers={"Host": host.authority}) as client,
        client.get("/openapi.json") as answer,
    ):
        document = await answer.json()
    assert document == openapi.build(ROUTED, uri=host.origin, version=document["info"]["version"])


def test_an_upload_leads_by_links_to_all_that_can_be_asked_of_its_pod(host: NoopHost) -> None:
    waiting = {"upload": JUDGE["/pods"]["POST"].Case(body=upload(debug=True), query={"duration": 600})}
    seen = set()
    while waiting:
        name, case = waiting.popitem()
        seen.add(name)
        answer = case.call_and_validate(
            base_url=f"http://127.0.0.1:{host.port}", headers={"Host": host.authority}, timeout=DEADLINE
        )
        assert answer.status_code == 200, (name, answer.text)
        for link in case.operation.definition.raw["responses"]["200"].get("links", {}).values():
            if link["operationId"] not in seen:
                waiting[link["operationId"]] = follow(link, answer.json())
    assert seen == {each.name for each in ROUTED if takes_a_hash(each)} | {"upload"}


def takes_a_hash(operation: Operation) -> bool:
    return any(isinstance(each, Hash) for each in (*operation.query, *operation.in_path.values()))


def follow(link: dict[str, Any], answer: dict[str, Any]) -> schemathesis.Case[Any]:
    """The request it leads to from this answer."""
    given: dict[str, dict[str, str]] = {"query": {}, "path": {}}
    for parameter, expression in link["parameters"].items():
        where, _, name = parameter.partition(".")
        given[where][name] = answer[expression.removeprefix("$response.body#/")]
    asked = JUDGE.find_operation_by_id(link["operationId"])
    return asked.Case(query=given["query"], path_parameters=given["path"])


def find_schemas(document: Any) -> Iterator[Any]:
    """Every JSON Schema of the description, by the places OpenAPI 3.1 has for them."""
    yield from document["components"]["schemas"].values()
    for operations_of_path in document["paths"].values():
        for operation in operations_of_path.values():
            yield from (parameter["schema"] for parameter in operation.get("parameters", []))
            answers = operation["responses"].values()
            for each in (operation.get("requestBody", {}), *answers):
                yield from (content["schema"] for content in each.get("content", {}).values())
                yield from (field["schema"] for field in each.get("headers", {}).values())


def test_every_schema_in_the_description_is_json_schema() -> None:
    """OpenAPI's own meta-schema lets any object pass for one: they have a specification of their own."""
    schemas = list(find_schemas(JUDGE.raw_schema))
    assert len(schemas) > 50
    for schema in schemas:
        jsonschema_rs.meta.validate(schema)


async def test_everything_a_language_model_is_told_of_is_there(host: NoopHost) -> None:
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{host.port}", headers={"Host": host.authority}
    ) as client:
        async with client.get("/llms.txt") as answer:
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
            text = await answer.text()
        links = re.findall(rf"\]\({re.escape(host.origin)}(/[^)]*)\)", text)
        assert len(links) == len([each for each in ROUTED if each.method == "GET" and "{" not in each.path])
        for path in links:
            async with client.get(path) as answer:
                assert answer.status in {200, 422}, path
    for operation in ROUTED:
        assert f"{operation.method} {operation.path}" in text
