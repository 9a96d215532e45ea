"""What clients send: an upload read from files, its images pinned, checked as the host will check it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from codius_node import jsontext, manifest, schema
from codius_node.errors import CodiusError
from codius_node.model import Json, ManifestHash
from codius_node.registry import Registry

CODIUS_FILE: Final = "codius.json"
VARS_FILE: Final = "codiusvars.json"
NONCE_BYTES: Final = 16
"""Random bytes beside each private value, so that its public hash tells nobody what it is."""


class FileError(CodiusError):
    """A file of the user's cannot be used."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """An upload, checked here as the host will check it. `resolved` maps tags to what they named."""

    hash: ManifestHash
    document: dict[str, Json]
    resolved: Mapping[str, str]
    debug: bool
    has_port: bool


def read_upload(path: Path, variables: Path | None = None) -> tuple[dict[str, Json], bool]:
    """`{manifest, private?}` from a file, and whether its private values got new nonces just now.

    A `codius.json` takes the `codiusvars.json` beside it along; any other file only `variables`.
    """
    document = _read_json(path)
    complete = isinstance(document, dict) and "private" in document
    if variables is not None and complete:
        raise FileError(
            f"{path} has private values already, and {variables} would add others",
            hint="Leave --vars out, or give the codius.json that both were made from.",
        )
    beside = path.with_name(VARS_FILE)
    if variables is None and not complete and path.name == CODIUS_FILE and beside.exists():
        variables = beside
    if variables is None and path.name != CODIUS_FILE:
        complete = True
    if complete:
        with _naming(path):
            schema.check_upload(document)
        return cast("dict[str, Json]", document), False
    values: Json = {"vars": {}} if variables is None else _read_json(variables)
    with _naming(path):
        schema.check_codius_file(document)
    with _naming(variables or path):
        schema.check_vars_file(values)
        made = manifest.generate(document, values, lambda: secrets.token_hex(NONCE_BYTES))
    upload = cast("dict[str, Json]", made)
    return upload, bool(upload.get("private"))


def _read_json(path: Path) -> Json:
    try:
        with path.open("rb") as file:
            body = file.read(schema.MAX_UPLOAD_BODY + 1)
    except OSError as error:
        raise FileError(
            f"{path} cannot be read: {error.strerror}",
            hint="Name a codius.json, or a file with {manifest, private}.",
        ) from error
    if len(body) > schema.MAX_UPLOAD_BODY:
        raise FileError(f"{path} is larger than the {schema.MAX_UPLOAD_BODY} bytes that hosts accept")
    with _naming(path):
        return jsontext.decode_json(body, limit=schema.MAX_UPLOAD_BODY)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name in front of what is said about its content."""
    try:
        yield
    except FileError:
        raise
    except CodiusError as error:
        message = error.message.replace("the body", "the file", 1)
        raise FileError(f"{path}: {message}", hint=error.hint) from error


def save_upload(path: Path, document: Mapping[str, Json]) -> None:
    """The complete `{manifest, private}`, for its owner's eyes only; an existing file is left alone."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2, ensure_ascii=False)
            file.write("\n")
    except OSError as error:
        raise FileError(
            f"{path} cannot be written: {error.strerror}", hint="Give --save a new file's name."
        ) from error


async def prepare(
    document: dict[str, Json],
    *,
    registry: Registry,
    tell: Callable[[str], None] = lambda _: None,
) -> Parcel:
    """Tags become digests, and what the host would refuse is refused here, before anything is sent."""
    shape = schema.check_upload(document)
    resolved: dict[str, str] = {}
    for container in shape.containers:
        if container.image in resolved or "@" in container.image:
            continue
        tell(f"asking what {container.image} is now")
        resolved[container.image] = await registry.resolve(container.image)
        tell(f"{container.image} is {resolved[container.image]}")
    manifest_part = cast("dict[str, Json]", document["manifest"])
    containers = cast("list[dict[str, Json]]", manifest_part["containers"])
    images: list[Json] = [
        {**item, "image": resolved.get(str(item["image"]), item["image"])} for item in containers
    ]
    pinned: dict[str, Json] = {**document, "manifest": {**manifest_part, "containers": images}}
    upload = manifest.parse(pinned)
    return Parcel(
        hash=upload.manifest.hash,
        document=pinned,
        resolved=resolved,
        debug=upload.manifest.debug,
        has_port=upload.manifest.port is not None,
    )
