"""What a manifest means: its hash, its variables, and whether this host can run it."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, cast

from codius_node.errors import ManifestError
from codius_node.jsontext import quote, render_json
from codius_node.model import Json, Manifest, ManifestHash, PrivateVariable, Upload, Variable
from codius_node.schema import (
    IMAGE_PATTERN,
    PRIVATE_ENCODING,
    UploadDocument,
    check_codius_file,
    check_upload,
    check_vars_file,
    parse_literal,
    parse_reference,
    upload_problems,
)
from codius_node.shapes import Place, Problem, explain, refused

__all__ = [
    "Problem",
    "canonical_json",
    "generate",
    "hash_manifest",
    "hash_private",
    "parse",
    "problems",
]

RESERVED_PREFIX: Final = "CODIUS"
"""Environment names that belong to the host; upper case only, as recorded."""
MAX_ENVIRONMENT_SIZE: Final = 1024 * 1024
"""Bytes of one container's environment with its variables filled in: half of what Linux takes with the
usual 8 MiB stack (execve: a quarter of it). One variable used 256 times is counted 256 times."""
_HOST_ENVIRONMENT_SIZE: Final = 1024
"""Bytes kept for CODIUS, CODIUS_HOST and CODIUS_MANIFEST_HASH; CODIUS_MANIFEST is counted as it is."""

_SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")


def parse(document: Json, *, require_private: bool = True, allow_tags: bool = False) -> Upload:
    """The upload in `document`: RequestError (400) for its shape, ManifestError (422) for its meaning.

    `require_private=False` lets `private` be missing as a whole, for a quote. Of the private values
    only those are kept that a container uses.
    """
    upload = check_upload(document)
    wrong = refused(_judge(upload, require_private=require_private, allow_tags=allow_tags))
    if wrong:
        message, hint = explain(wrong)
        raise ManifestError(message, hint=hint)
    private = upload.private or {}
    return Upload(
        Manifest(
            hash=hash_manifest(cast("dict[str, Json]", upload.manifest)),
            name=upload.name,
            version=upload.version,
            machine=upload.machine,
            port=upload.port,
            containers=upload.containers,
            variables=upload.variables,
            debug=upload.debug,
            document=upload.manifest,
        ),
        {
            name: private[name]
            for name in sorted(_used(upload))
            if name in private and upload.variables[name].encoding is not None
        },
    )


def restore(document: Mapping[str, Json]) -> Manifest:
    """A manifest this host accepted earlier, from its public document alone."""
    return parse({"manifest": dict(document)}, require_private=False, allow_tags=True).manifest


def problems(document: Json, *, require_private: bool = True, allow_tags: bool = False) -> list[Problem]:
    """Every verdict on an upload at once, for a client to show; those not `refused` are advice."""
    shape = upload_problems(document)
    if shape:
        return shape
    return list(_judge(check_upload(document), require_private=require_private, allow_tags=allow_tags))


def _judge(upload: UploadDocument, *, require_private: bool, allow_tags: bool) -> Iterator[Problem]:
    containers = Place("manifest").key("containers")
    first: dict[str, int] = {}
    for index, container in enumerate(upload.containers):
        place = containers.index(index)
        if (earlier := first.setdefault(container.id, index)) != index:
            yield Problem(
                place.key("id").path,
                f"must be unique, and {quote(container.id)} is the id of containers[{earlier}] too",
            )
        image = IMAGE_PATTERN.fullmatch(container.image)
        if not allow_tags and (image is None or image["digest"] is None):
            yield Problem(
                place.key("image").path,
                f'must name a digest, as in "name@sha256:<64 hex digits>", not {quote(container.image)}: '
                "a tag can change, and the hash must name what runs",
            )
        for name, value in container.environment.items():
            yield from _judge_entry(
                upload, place.key("environment").key(name), name, value, require_private=require_private
            )
    yield from _judge_sizes(upload)
    yield from _judge_unused(upload)


def _judge_entry(
    upload: UploadDocument, place: Place, name: str, value: str, *, require_private: bool
) -> Iterator[Problem]:
    if name.startswith(RESERVED_PREFIX):
        yield Problem(
            place.path,
            f"is reserved: names starting with {RESERVED_PREFIX} are set by the host; choose another",
        )
    reference = parse_reference(value)
    if reference is None:
        return
    variable = upload.variables.get(reference)
    if variable is None:
        yield Problem(
            place.path,
            f"refers to the variable {quote(reference)}, which manifest.vars does not have; "
            "define it there, or start the value with $$ for a literal $",
        )
    elif variable.encoding is not None:
        yield from _judge_private(upload, place, reference, variable, require_private=require_private)


def _judge_private(
    upload: UploadDocument, place: Place, name: str, variable: Variable, *, require_private: bool
) -> Iterator[Problem]:
    if upload.private is None and not require_private:
        return
    secret = (upload.private or {}).get(name)
    public = Place("manifest").key("vars").key(name).path
    if secret is None:
        yield Problem(
            place.path,
            f"refers to the private variable {quote(name)}, whose nonce and value private.vars does not have",
        )
    elif not _SHA256_HEX.fullmatch(variable.value):
        yield Problem(
            place.path,
            f"refers to the private variable {quote(name)}, and {public}.value is not a SHA-256 hash "
            "(64 digits of 0-9 and a-f)",
        )
    elif hash_private(secret) != variable.value:
        yield Problem(
            place.path,
            f"refers to the private variable {quote(name)}, and what private.vars has for it does not "
            f"match the hash in {public}.value (SHA-256 of the canonical JSON of nonce and value)",
        )


def _judge_sizes(upload: UploadDocument) -> Iterator[Problem]:
    document = len(render_json(upload.manifest).encode())
    for index, container in enumerate(upload.containers):
        size = document + _HOST_ENVIRONMENT_SIZE
        for name, value in container.environment.items():
            size += len(name.encode()) + len(_filled_in(upload, value).encode()) + 2  # "=" and NUL
        if size > MAX_ENVIRONMENT_SIZE:
            place = Place("manifest").key("containers").index(index).key("environment")
            yield Problem(
                place.path,
                f"has {size} bytes with its variables filled in; at most {MAX_ENVIRONMENT_SIZE} can be given "
                "to a program",
            )


def _filled_in(upload: UploadDocument, value: str) -> str:
    name = parse_reference(value)
    if name is None:
        return parse_literal(value)
    if name not in upload.variables:
        return ""
    if upload.variables[name].encoding is None:
        return upload.variables[name].value
    secret = (upload.private or {}).get(name)
    return "" if secret is None else secret.value


def _judge_unused(upload: UploadDocument) -> Iterator[Problem]:
    """Advice: the original's client complained of these, and its host accepted them."""
    # A variable named like an environment entry passes for used there, as recorded.
    used = _used(upload).union(*(container.environment for container in upload.containers))
    for name in upload.variables:
        if name not in used:
            yield Problem(
                Place("manifest").key("vars").key(name).path, "is not used by any container", refused=False
            )
    for name in upload.private or {}:
        place = Place("private").key("vars").key(name)
        if name not in upload.variables:
            yield Problem(place.path, "has no variable of that name in manifest.vars", refused=False)
        elif name not in used:
            yield Problem(place.path, "is not used by any container", refused=False)


def _used(upload: UploadDocument) -> set[str]:
    return {
        name
        for container in upload.containers
        for value in container.environment.values()
        if (name := parse_reference(value)) is not None
    }


# --- canonical JSON and hashes ----------------------------------------------------------------------

_ESCAPED_RANGES: Final = (
    (0x00, 0x1F),
    (0x7F, 0x9F),
    (0xAD, 0xAD),
    (0x600, 0x604),
    (0x70F, 0x70F),
    (0x17B4, 0x17B5),
    (0x200C, 0x200F),
    (0x2028, 0x202F),
    (0x2060, 0x206F),
    (0xFEFF, 0xFEFF),
    (0xFFF0, 0xFFFF),
)
"""What canonical-json 0.0.4 writes as \\uXXXX; every other character stands for itself."""
_ESCAPES: Final[Mapping[int, str]] = {
    **{code: f"\\u{code:04x}" for low, high in _ESCAPED_RANGES for code in range(low, high + 1)},
    **{ord(character): f"\\{letter}" for character, letter in zip('\b\t\n\f\r"\\', 'btnfr"\\', strict=True)},
    # Half of a surrogate pair: its UTF-8 is that of U+FFFD, which is not escaped the second time.
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def canonical_json(document: Json) -> str:
    """The text whose SHA-256 names a document: that of canonical-json 0.0.4, character for character."""
    match document:
        case None:
            return "null"
        case bool():
            return "true" if document else "false"
        case int() | float():
            return _canonical_number(document)
        case str():
            return f'"{document.translate(_ESCAPES)}"'
        case list():
            return f"[{','.join(map(canonical_json, document))}]"
        case _:
            keys = sorted(document, key=_utf16)
            return f"{{{','.join(f'{canonical_json(key)}:{canonical_json(document[key])}' for key in keys)}}}"


def _utf16(key: str) -> bytes:
    # JavaScript sorts by UTF-16 code unit: U+1F600 (d83d de00) comes before U+FB00.
    return key.encode("utf-16-be", "surrogatepass")


def _canonical_number(value: int | float) -> str:
    """A number as JavaScript prints it (ECMA-262, Number::toString): always a double."""
    try:
        number = float(value)
    except OverflowError:
        return "null"
    if not math.isfinite(number):
        return "null"
    if number == 0:
        return "0"  # -0 too
    # Python's repr finds the same shortest digits and only places the point and the exponent differently.
    mantissa, _, exponent = repr(abs(number)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    point = len(whole) + int(exponent or 0)
    digits = whole + fraction
    point -= len(digits) - len(digits.lstrip("0"))
    digits = digits.strip("0")
    sign = "-" if number < 0 else ""
    if len(digits) <= point <= 21:
        return f"{sign}{digits}{'0' * (point - len(digits))}"
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    dot = "." if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{dot}{digits[1:]}e{point - 1:+d}"


def hash_manifest(document: Json) -> ManifestHash:
    """The name of a public manifest: base32 of the SHA-256 of its canonical JSON."""
    digest = hashlib.sha256(canonical_json(document).encode()).digest()
    return ManifestHash(base64.b32encode(digest).decode("ascii").rstrip("=").lower())


def hash_private(variable: PrivateVariable) -> str:
    """What the public manifest shows of a private variable: SHA-256 in hex of its canonical JSON."""
    text = canonical_json({"nonce": variable.nonce, "value": variable.value})
    return hashlib.sha256(text.encode()).hexdigest()


# --- making an upload from the two files of a project -----------------------------------------------


def generate(codius: Json, variables: Json, nonce: Callable[[], str]) -> Json:
    """The complete `{manifest, private}` of a codius.json and a codiusvars.json.

    Public variables of the second file replace those of the first; private ones become hashes, each
    with a `nonce()` of its own. Descriptions stay behind, because hosts refuse them.
    """
    check_codius_file(codius)
    check_vars_file(variables)
    manifest = dict(cast("dict[str, dict[str, Json]]", codius)["manifest"])
    manifest["containers"] = [
        {key: value for key, value in container.items() if key != "environment" or value}
        for container in cast("Sequence[dict[str, Json]]", manifest["containers"])
    ]
    sections = cast("dict[str, dict[str, dict[str, dict[str, Json]]]]", variables)["vars"]
    public = {
        **cast("dict[str, dict[str, Json]]", manifest.get("vars", {})),
        **sections.get("public", {}),
    }
    entries: dict[str, Json] = {name: _without_description(entry) for name, entry in public.items()}
    secrets: dict[str, Json] = {}
    for name, entry in sections.get("private", {}).items():
        secret = PrivateVariable(nonce=nonce(), value=str(entry["value"]))
        entries[name] = {"encoding": PRIVATE_ENCODING, "value": hash_private(secret)}
        secrets[name] = {"value": secret.value, "nonce": secret.nonce}
    if entries or "vars" in manifest:
        manifest["vars"] = entries
    result: dict[str, Json] = {"manifest": manifest}
    if sections.get("public") or secrets:
        result["private"] = {"vars": secrets} if secrets else {}
    return result


def _without_description(entry: Mapping[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in entry.items() if key != "description"}
