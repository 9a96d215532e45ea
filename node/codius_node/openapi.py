"""The public API's description as OpenAPI 3.1, made from the table of operations and the types they name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from http import HTTPStatus
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

from codius_node.errors import CodiusError
from codius_node.jsontext import wire_name
from codius_node.model import Json, ManifestHash
from codius_node.operations import JSON_TYPE, PAY, PAY_TOKEN, Operation
from codius_node.parameters import FALSE, TRUE, Flag, Hash, Parameter, WholeNumber
from codius_node.replies import Error, Reply, RunningPod, Step
from codius_node.schema import HASH_PATTERN, MANIFEST, UPLOAD
from codius_node.shapes import Flag as BooleanShape
from codius_node.shapes import ListOf, MapOf, Record, Shape, Text

OPENAPI_VERSION: Final = "3.1.0"
TITLE: Final = "Codius host"
ABOUT: Final = (
    "Upload a manifest, and its containers run as a pod at an address of its own, for as long as is paid for."
    " Times are UTC, durations seconds, memory bytes. Errors are JSON that says what is wrong and what to do."
)

_HASH: Final[dict[str, Json]] = {"type": "string", "pattern": f"^{HASH_PATTERN.pattern}$"}
_TOLD_HASH: Final = "$response.body#/manifestHash"
"""Where answers have it, as a runtime expression of OpenAPI."""
_PLAIN: Final[Mapping[object, dict[str, Json]]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    Decimal: {"type": "number"},
    str: {"type": "string"},
    datetime: {"type": "string", "format": "date-time"},
    ManifestHash: _HASH,
    tuple[str, ...]: {"type": "array", "items": {"type": "string"}},
}

_NAMED: Final[Mapping[str, Record]] = {"Upload": UPLOAD, "Manifest": MANIFEST}
"""Shapes that are described once and referred to."""


def build(operations: Iterable[Operation], *, uri: str, version: str) -> dict[str, Json]:
    """The document, for a host at `uri`."""
    paths: dict[str, dict[str, Json]] = {}
    kinds: dict[str, type[Reply]] = {kind.__name__: kind for kind in (Error, Step)}
    operations = tuple(operations)
    for operation in operations:
        links = _describe_links(operation, operations)
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, links)
        kinds |= {kind.__name__: kind for kind in operation.answers.values() if not isinstance(kind, str)}
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": TITLE, "version": version, "description": ABOUT},
        "servers": [{"url": uri}],
        "paths": dict(paths),
        "components": {
            "schemas": {
                **{name: _describe_structure(shape) for name, shape in _NAMED.items()},
                **{name: _describe_reply(kind) for name, kind in sorted(kinds.items())},
            }
        },
    }


def describe_shape(shape: Shape) -> dict[str, Json]:
    """A shape of what clients send, as JSON Schema. Limits in bytes are in words, too."""
    for name, named in _NAMED.items():
        if shape is named:
            return {"$ref": f"#/components/schemas/{name}"}
    return _describe_structure(shape)


def _describe_structure(shape: Shape) -> dict[str, Json]:
    match shape:
        case Text():
            found: dict[str, Json] = {"type": "string", "maxLength": shape.limit}
            if shape.pattern is not None:
                found["pattern"] = _translate(shape.pattern)
        case BooleanShape():
            found = {"type": "boolean"}
        case ListOf():
            found = {
                "type": "array",
                "items": describe_shape(shape.item),
                "minItems": shape.least,
                "maxItems": shape.most,
            }
        case MapOf():
            found = {
                "type": "object",
                "propertyNames": describe_shape(shape.key),
                "additionalProperties": describe_shape(shape.value),
                "maxProperties": shape.most,
            }
        case Record():
            found = {
                "type": "object",
                "properties": {name: describe_shape(field) for name, field in shape.fields.items()},
                "required": [name for name in shape.fields if name not in shape.optional],
                "additionalProperties": False,
            }
        case _:
            raise TypeError(f"no JSON Schema for {shape!r}")
    return {**found, "description": shape.wants}


def _describe(operation: Operation, links: dict[str, Json]) -> dict[str, Json]:
    found: dict[str, Json] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": _describe_answers(operation, links),
    }
    asked: list[Json] = [
        *(_describe_parameter(parameter) for parameter in operation.query),
        *(_in_path(name, parameter) for name, parameter in operation.in_path.items()),
    ]
    if operation.paid:
        asked.append(
            {
                "name": PAY_TOKEN,
                "in": "header",
                "description": "16 fresh bytes as base64url: names the payment, where the host asks for one.",
                "schema": {"type": "string"},
            }
        )
    if asked:
        found["parameters"] = asked
    if operation.body is not None:
        content: Json = {JSON_TYPE: {"schema": describe_shape(operation.body)}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _describe_links(operation: Operation, operations: Iterable[Operation]) -> dict[str, Json]:
    """Who is told of a running pod has the hash that others ask for: these come next."""
    if RunningPod not in operation.answers.values():
        return {}
    links: dict[str, Json] = {}
    for other in operations:
        named = [("query", each.name) for each in other.query if isinstance(each, Hash)]
        named += [("path", name) for name, each in other.in_path.items() if isinstance(each, Hash)]
        if named and other is not operation:
            asked: dict[str, Json] = {f"{where}.{name}": _TOLD_HASH for where, name in named}
            links[other.name] = {
                "operationId": other.name,
                "description": other.summary,
                "parameters": asked,
            }
    return links


def _describe_answers(operation: Operation, links: dict[str, Json]) -> dict[str, Json]:
    content: dict[str, Json] = {}
    for media_type, kind in operation.answers.items():
        if not isinstance(kind, str):
            content[media_type] = {"schema": _refer(kind)}
        elif media_type == JSON_TYPE:
            content[media_type] = {"schema": {"type": "object", "description": kind}}
        else:
            content[media_type] = {"schema": {"type": "string", "description": kind}}
    done: dict[str, Json] = {"description": operation.summary, "content": content}
    if links:
        done["links"] = links
    answers: dict[str, Json] = {"200": done}
    reasons: dict[int, list[str]] = {}
    for error in operation.refusals:
        reasons.setdefault(error.status, []).append(_first_line(error))
    for status, why in sorted(reasons.items()):
        refusal: dict[str, Json] = {
            "description": " Or: ".join(why),
            "content": {JSON_TYPE: {"schema": _refer(Error)}},
        }
        if status == HTTPStatus.PAYMENT_REQUIRED:
            refusal["headers"] = {PAY: {"description": "How to pay.", "schema": {"type": "string"}}}
        answers[str(status)] = refusal
    return answers


def _describe_parameter(parameter: Parameter) -> dict[str, Json]:
    found: dict[str, Json] = {"name": parameter.name, "in": "query", "description": parameter.meaning}
    match parameter:
        case WholeNumber():
            found["schema"] = {
                "type": "integer",
                "minimum": parameter.least,
                "maximum": parameter.most,
                "default": parameter.default,
            }
            found["allowEmptyValue"] = True
        case Flag():
            found["schema"] = {"type": "string", "enum": [TRUE, FALSE], "default": FALSE}
        case Hash():
            found["schema"] = _HASH
            found["required"] = True
        case _:
            found["schema"] = {"type": "string"}
            found["example"] = TRUE
    return found


def _in_path(name: str, parameter: Parameter) -> dict[str, Json]:
    return {**_describe_parameter(parameter), "name": name, "in": "path", "required": True}


def _describe_reply(kind: type[Reply]) -> dict[str, Json]:
    hints = get_type_hints(kind, include_extras=True)
    required: list[Json] = [wire_name(each.name) for each in fields(kind) if each.default is MISSING]
    return {
        "type": "object",
        "description": inspect.getdoc(kind),
        "properties": {
            wire_name(each.name): _describe_field(hints[each.name], nullable=each.default is MISSING)
            for each in fields(kind)
        },
        "required": required,
        "additionalProperties": False,
    }


def _describe_field(hint: Any, *, nullable: bool) -> dict[str, Json]:
    """`nullable`: None is told as null, where otherwise the field is left out."""
    kind, meaning, *shape = get_args(hint)
    if shape:
        return {**describe_shape(*shape), "description": meaning}
    if get_origin(kind) is not UnionType:
        return {**_describe_type(kind), "description": meaning}
    [kind] = [each for each in get_args(kind) if each is not NoneType]  # of X | None
    described = _describe_type(kind)
    if nullable:
        described = {"anyOf": [described, {"type": "null"}]}
    return {**described, "description": meaning}


def _describe_type(kind: Any) -> dict[str, Json]:
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"type": "string", "enum": [str(member) for member in kind]}
    return _refer(kind)


def _refer(kind: type[Reply]) -> dict[str, Json]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _first_line(error: type[CodiusError]) -> str:
    return (inspect.getdoc(error) or "").splitlines()[0]


def _translate(pattern: re.Pattern[str]) -> str:
    """The same language in ECMA 262 (JSON Schema's dialect), anchored: ours match as a whole."""
    text = re.sub(r"\(\?P<\w+>", "(?:", pattern.pattern).replace(r"\0", r"\x00")
    return f"^(?:{text})$"
