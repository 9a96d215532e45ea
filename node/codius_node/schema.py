"""The closed shape of an upload, of the files it is made from and of lists of hosts, field by field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from codius_node.jsontext import render_json
from codius_node.model import Container, Json, Machine, PrivateVariable, Variable
from codius_node.shapes import Flag, ListOf, MapOf, Problem, Record, Shape, Text, find_problems, reject

MAX_UPLOAD_BODY: Final = 1024 * 1024
"""Bytes of an upload's body, as recorded from the original."""

MAX_MANIFEST_SIZE: Final = 120 * 1024
"""Bytes of the public manifest as JSON. It is given to every container in CODIUS_MANIFEST, and Linux
refuses to start a program with one string above 128 KiB (MAX_ARG_STRLEN)."""
MAX_STRING: Final = 64 * 1024
"""Bytes of one argument, environment value or variable: half of what Linux takes in one string."""
MAX_LABEL: Final = 256
"""Bytes of a manifest's name or version, or of a variable's name: they are for people to read."""
MAX_CONTAINER_ID: Final = 63
"""Characters of a container's id: a DNS label, which is what engines make of it."""
MAX_IMAGE: Final = 512
"""Characters of an image reference: name 255, tag 128 and digest 71 fit."""
MAX_PATH: Final = 4095
"""Bytes of a path (Linux's PATH_MAX without its NUL)."""
MAX_NONCE: Final = 1024
"""Bytes of a nonce; clients send 32."""
MAX_CONTAINERS: Final = 16
"""Containers in a pod: they share 512 MiB."""
MAX_ARGUMENTS: Final = 256
"""Words of a command."""
MAX_VARIABLES: Final = 256
"""Entries of one environment or one set of variables."""
MAX_PEER_LIST: Final = 1000
"""Hosts that one host tells another at once, as recorded from the original's answers."""
MAX_URI: Final = 256
"""Characters of a host's address: a name of 190, its scheme and its port."""


PRIVATE_ENCODING: Final = "private:sha256"

HASH_PATTERN: Final = re.compile(r"[a-z2-7]{52}")
IMAGE_PATTERN: Final = re.compile(
    r"(?P<name>"
    r"(?:(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
    r"(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r")"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
"""An image reference as registries spell it: no transport such as `dir:` or `docker://` before it."""
_PORT_PATTERN: Final = re.compile(
    r"0*(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)


def _strings(what: str, limit: int) -> Text:
    """Text that a program is given, so it cannot hold a NUL."""
    return Text(f"{what} of at most {limit} bytes without NUL", limit, re.compile(r"[^\0]*"))


_VALUE: Final = _strings("a string", MAX_STRING)
_VARIABLE_NAME: Final = _strings("a name", MAX_LABEL)
_LABEL: Final = Text(f"a string of at most {MAX_LABEL} bytes", MAX_LABEL)

_CONTAINER: Final = Record(
    "an object with id and image",
    {
        "id": Text(
            f"1 to {MAX_CONTAINER_ID} of a-z, 0-9 and -, the first not -",
            MAX_CONTAINER_ID,
            re.compile(r"[a-z0-9][a-z0-9-]*"),
        ),
        "image": Text(
            'an image reference such as "registry.example/name@sha256:<64 hex digits>"',
            MAX_IMAGE,
            IMAGE_PATTERN,
        ),
        "command": ListOf(f"an array of at most {MAX_ARGUMENTS} strings", _VALUE, 0, MAX_ARGUMENTS),
        "workdir": Text(
            f"an absolute path of at most {MAX_PATH} bytes", MAX_PATH, re.compile(r"(?:/[^\0]*)?")
        ),  # empty, as recorded: the image's own
        "environment": MapOf(
            f"an object of at most {MAX_VARIABLES} strings",
            Text(
                f"1 to {MAX_LABEL} bytes without = and NUL",
                MAX_LABEL,
                re.compile(r"[^=\0]+"),
            ),
            _VALUE,
            MAX_VARIABLES,
        ),
    },
    optional=frozenset({"command", "workdir", "environment"}),
)


def _manifest(variable: Shape) -> Record:
    return Record(
        "an object with name, version and containers",
        {
            "name": _LABEL,
            "version": _LABEL,
            "machine": Text('"small"', MAX_LABEL, re.compile("|".join(Machine))),
            "port": Text("a string of digits from 1 to 65535", 5, _PORT_PATTERN),
            "containers": ListOf(
                f"an array of 1 to {MAX_CONTAINERS} containers", _CONTAINER, 1, MAX_CONTAINERS
            ),
            "vars": _variables(variable),
            "debug": Flag(),
        },
        optional=frozenset({"machine", "port", "vars", "debug"}),
    )


def _variables(variable: Shape) -> MapOf:
    return MapOf(f"an object of at most {MAX_VARIABLES} variables", _VARIABLE_NAME, variable, MAX_VARIABLES)


_ENCODING: Final = Text(f'"{PRIVATE_ENCODING}"', MAX_LABEL, re.compile(re.escape(PRIVATE_ENCODING)))
_VARIABLE: Final = Record(
    'an object such as {"value": "…"}', {"value": _VALUE, "encoding": _ENCODING}, frozenset({"encoding"})
)
_DESCRIBED_VARIABLE: Final = Record(
    _VARIABLE.wants,
    {**_VARIABLE.fields, "description": Text(f"a string of at most {MAX_STRING} bytes", MAX_STRING)},
    frozenset({"encoding", "description"}),
)
_PRIVATE_VARIABLE: Final = Record(
    'an object such as {"nonce": "…", "value": "…"}',
    {"nonce": _strings("a string", MAX_NONCE), "value": _VALUE},
)
MANIFEST: Final = _manifest(_VARIABLE)
PEER_URIS: Final = ListOf(
    f"an array of at most {MAX_PEER_LIST} URIs",
    Text(f"a URI of at most {MAX_URI} characters", MAX_URI),
    0,
    MAX_PEER_LIST,
)
PEER_LIST: Final = Record("a JSON object with peers", {"peers": PEER_URIS})
UPLOAD: Final = Record(
    "a JSON object with manifest and private",
    {
        "manifest": MANIFEST,
        "private": Record(
            "an object with vars", {"vars": _variables(_PRIVATE_VARIABLE)}, frozenset({"vars"})
        ),
    },
    frozenset({"private"}),
)
_CODIUS_FILE: Final = Record("a JSON object with manifest", {"manifest": _manifest(_DESCRIBED_VARIABLE)})
_VARS_FILE: Final = Record(
    "a JSON object with vars",
    {
        "vars": Record(
            "an object with public and private",
            {
                "public": _variables(_DESCRIBED_VARIABLE),
                "private": _variables(
                    Record(
                        'an object such as {"value": "…"}',
                        {"value": _VALUE, "description": _DESCRIBED_VARIABLE.fields["description"]},
                        frozenset({"description"}),
                    )
                ),
            },
            frozenset({"public", "private"}),
        )
    },
)


@dataclass(frozen=True, slots=True)
class UploadDocument:
    """An upload of the right shape, its meaning not yet looked at. `private` is None when it was not sent."""

    manifest: Mapping[str, Json] = field(repr=False)
    name: str
    version: str
    machine: Machine
    port: int | None
    containers: tuple[Container, ...]
    variables: Mapping[str, Variable]
    debug: bool
    private: Mapping[str, PrivateVariable] | None = field(repr=False)


def upload_problems(document: Json) -> list[Problem]:
    """Everything wrong with the shape of an upload."""
    problems = find_problems(UPLOAD, document)
    if not problems:
        size = len(render_json(cast("dict[str, Json]", document)["manifest"]).encode())
        if size > MAX_MANIFEST_SIZE:
            problems.append(
                Problem("manifest", f"must be at most {MAX_MANIFEST_SIZE} bytes as JSON, not {size}")
            )
    return problems


def check_upload(document: Json) -> UploadDocument:
    """The upload in `document`; RequestError naming the fields that are not as they must be."""
    reject(upload_problems(document))
    upload = cast("dict[str, dict[str, Json]]", document)
    manifest = upload["manifest"]
    private = None
    if "private" in upload:
        secrets = cast("dict[str, dict[str, str]]", upload["private"].get("vars", {}))
        private = {name: PrivateVariable(**secret) for name, secret in secrets.items()}
    variables = cast("dict[str, dict[str, str]]", manifest.get("vars", {}))
    return UploadDocument(
        manifest=manifest,
        name=str(manifest["name"]),
        version=str(manifest["version"]),
        machine=Machine(str(manifest.get("machine", Machine.SMALL))),
        port=int(str(manifest["port"])) if "port" in manifest else None,
        containers=tuple(
            _read_container(item) for item in cast("list[dict[str, Json]]", manifest["containers"])
        ),
        variables={name: Variable(**variable) for name, variable in variables.items()},
        debug=manifest.get("debug", False) is True,
        private=private,
    )


def check_codius_file(document: Json) -> None:
    """RequestError when `document` is not a codius.json: `{manifest}`, variables may have a description."""
    reject(find_problems(_CODIUS_FILE, document))


def check_vars_file(document: Json) -> None:
    """RequestError when `document` is not a codiusvars.json: `{vars: {public?, private?}}`."""
    reject(find_problems(_VARS_FILE, document))


def _read_container(record: Mapping[str, Json]) -> Container:
    command = cast("list[str] | None", record.get("command"))
    return Container(
        id=str(record["id"]),
        image=str(record["image"]),
        command=None if command is None else tuple(command),
        workdir=str(record.get("workdir", "")) or None,
        environment=cast("dict[str, str]", record.get("environment", {})),
    )


def parse_reference(value: str) -> str | None:
    """NAME when an environment's value is `$NAME`; None when it is text (`$$…` is the text `$…`)."""
    return value[1:] if value.startswith("$") and not value.startswith("$$") else None


def parse_literal(value: str) -> str:
    """The text of an environment's value that is not a reference."""
    return value[1:] if value.startswith("$$") else value
