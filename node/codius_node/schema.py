"""JSON from strangers: strict decoding, and the closed shape of an upload, field by field."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

from codius_node.errors import BodyTooLargeError, RequestError
from codius_node.model import Container, Json, Machine, PrivateVariable, Variable

MAX_UPLOAD_BODY: Final = 1024 * 1024
"""Bytes of an upload's body, as recorded from the original."""
MAX_DEPTH: Final = 32
"""Arrays and objects inside one another; an upload needs six."""
MAX_NUMBER_LENGTH: Final = 64
"""Characters of one number: nothing here counts that far, and int() of a million digits takes seconds."""

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

MAX_SHOWN: Final = 60
"""Characters of a stranger's value repeated in an error text."""
MAX_PROBLEMS_TOLD: Final = 5
"""Problems told in one error besides the first; the rest are counted."""

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
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_JSON_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NOT_BRACKET: Final = re.compile(r"[^\[\]{}]+")


# --- decoding ---------------------------------------------------------------------------------------


def decode_json(body: bytes, *, limit: int) -> Json:
    """The JSON value in `body`, of at most `limit` bytes, refusing what two parsers could read differently.

    The error texts repeat no values of the body, because some are private.
    """
    if len(body) > limit:
        raise BodyTooLargeError(f"the body has {len(body)} bytes; this host accepts at most {limit}")
    if not body.strip(b" \t\r\n"):
        raise RequestError("the body is empty; it must be a JSON object")
    if body.startswith(b"\xef\xbb\xbf"):
        raise RequestError("the body starts with a byte order mark; JSON must be UTF-8 without one")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the body is not UTF-8: 0x{body[error.start]:02x} at byte {error.start} does not belong there"
        ) from error
    try:
        document: Json = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
    except json.JSONDecodeError as error:
        raise RequestError(
            f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    except RecursionError as error:
        raise _too_deep() from error
    if _is_deeper(text, MAX_DEPTH):
        raise _too_deep()
    # Python accepts the escape of half a surrogate pair, and then cannot encode the string again.
    if _SURROGATE_ESCAPE.search(text) and not _is_encodable(render_json(document)):
        raise RequestError(
            r"the body has half of a surrogate pair (such as \ud83d alone), which is not a character"
        )
    return document


def render_json(document: Json | Mapping[str, Json]) -> str:
    """JSON without spaces, keys in their own order: what JSON.stringify makes of the same document."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RequestError(f"the body has the key {quote(key)} twice in one object; give it once")
            seen.add(key)
    return result


def _constant(name: str) -> Json:
    raise RequestError(f"the body has {name}, which is not JSON; numbers must be finite")


def _integer(digits: str) -> Json:
    if len(digits) > MAX_NUMBER_LENGTH:
        raise RequestError(
            f"the body has a number of {len(digits)} characters; at most {MAX_NUMBER_LENGTH} are accepted"
        )
    return int(digits)


def _float(digits: str) -> Json:
    if len(digits) > MAX_NUMBER_LENGTH:
        _integer(digits)
    number = float(digits)
    if not math.isfinite(number):
        raise RequestError("the body has a number too large for a double; numbers must be finite")
    return number


def _too_deep() -> RequestError:
    return RequestError(
        f"the body is nested too deeply; at most {MAX_DEPTH} arrays and objects may be inside one another"
    )


def _is_deeper(text: str, depth: int) -> bool:
    """Whether valid JSON nests deeper than `depth`, found by peeling off the innermost pairs."""
    brackets = _NOT_BRACKET.sub("", _JSON_STRING.sub("", text)).replace("{", "[").replace("}", "]")
    for _ in range(depth):
        if not brackets:
            return False
        brackets = brackets.replace("[]", "")
    return bool(brackets)


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# --- where a problem is, and what it is -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document; `path` names the field. Not `refused`: worth telling, yet accepted."""

    path: str
    message: str
    refused: bool = True

    def __str__(self) -> str:
        return f"{self.path or 'the body'} {self.message}"


def explain(problems: Sequence[Problem]) -> tuple[str, str | None]:
    """The message and hint of the error that tells these problems: the first one, and the others after it."""
    first, *others = (str(problem) for problem in problems)
    if not others:
        return first, None
    told = others[:MAX_PROBLEMS_TOLD]
    if len(others) > len(told):
        told.append(f"and {len(others) - len(told)} more")
    return first, "also: " + "; ".join(told)


def refused(problems: Iterable[Problem]) -> list[Problem]:
    """Those of the problems for which an upload is refused."""
    return [problem for problem in problems if problem.refused]


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a document. In a `secret` place values are described and never shown."""

    path: str = ""
    secret: bool = False

    def key(self, name: str) -> Place:
        if not _PLAIN_KEY.fullmatch(name):
            return Place(f"{self.path}[{quote(name)}]", self.secret)
        return Place(
            f"{self.path}.{name}" if self.path else name, self.secret or (self.path, name) in _SECRETS
        )

    def index(self, index: int) -> Place:
        return Place(f"{self.path}[{index}]", self.secret)


_SECRETS: Final = frozenset({("", "private"), ("vars", "private")})
"""Where private values are: in an upload, and in a codiusvars.json."""


def quote(text: str) -> str:
    """A stranger's text for an error message: quoted, escaped, and cut when long."""
    shown = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    quoted = json.dumps(shown, ensure_ascii=False)
    return quoted if quoted.isprintable() else json.dumps(shown)


def _describe(value: Json, *, secret: bool) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean" if secret else f"{str(value).lower()} (a boolean)"
        case int() | float():
            # str() of an int above 4300 digits raises
            long = isinstance(value, int) and value.bit_length() > MAX_NUMBER_LENGTH * 4
            return "a number" if secret or long else f"{value} (a number)"
        case str():
            size = len(value.encode("utf-8", "surrogatepass"))
            if secret:
                return f"a string of {size} bytes"
            return quote(value) if len(value) <= MAX_SHOWN else f"{quote(value)} ({size} bytes)"
        case list():
            return f"an array of {len(value)}" if value else "an empty array"
        case _:
            return f"an object with {len(value)} fields" if value else "an empty object"


# --- shapes: a table of what is accepted ------------------------------------------------------------


class Shape(Protocol):
    """What a value must look like. `wants` completes the sentence "it must be …"."""

    @property
    def wants(self) -> str: ...

    def check(self, value: Json, place: Place, problems: list[Problem]) -> None: ...


def _mismatch(shape: Shape, value: Json, place: Place) -> Problem:
    return Problem(place.path, f"must be {shape.wants}, not {_describe(value, secret=place.secret)}")


@dataclass(frozen=True, slots=True)
class Text:
    """A string: at most `limit` bytes of UTF-8, matching `pattern` as a whole."""

    wants: str
    limit: int
    pattern: re.Pattern[str] | None = None

    def check(self, value: Json, place: Place, problems: list[Problem]) -> None:
        if not isinstance(value, str) or not self.accepts(value):
            problems.append(_mismatch(self, value, place))

    def accepts(self, value: str) -> bool:
        if len(value) > self.limit or not _is_encodable(value) or len(value.encode()) > self.limit:
            return False
        return self.pattern is None or self.pattern.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false; `"true"` is refused, because a converted value would change what the hash names."""

    wants: str = "true or false"

    def check(self, value: Json, place: Place, problems: list[Problem]) -> None:
        if not isinstance(value, bool):
            problems.append(_mismatch(self, value, place))


@dataclass(frozen=True, slots=True)
class ListOf:
    """An array of `least` to `most` items of one shape."""

    wants: str
    item: Shape
    least: int
    most: int

    def check(self, value: Json, place: Place, problems: list[Problem]) -> None:
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            problems.append(_mismatch(self, value, place))
            return
        for index, item in enumerate(value):
            self.item.check(item, place.index(index), problems)


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object whose keys are the uploader's own, at most `most` of them."""

    wants: str
    key: Text
    value: Shape
    most: int

    def check(self, value: Json, place: Place, problems: list[Problem]) -> None:
        if not isinstance(value, dict) or len(value) > self.most:
            problems.append(_mismatch(self, value, place))
            return
        for name, item in value.items():
            if self.key.accepts(name):
                self.value.check(item, place.key(name), problems)
            else:
                problems.append(
                    Problem(
                        place.key(name).path, f"has a name that cannot be used: it must be {self.key.wants}"
                    )
                )


@dataclass(frozen=True, slots=True)
class Record:
    """An object with fixed fields; a field it does not have is an error."""

    wants: str
    fields: Mapping[str, Shape]
    optional: frozenset[str] = field(default_factory=frozenset)

    def check(self, value: Json, place: Place, problems: list[Problem]) -> None:
        if not isinstance(value, dict):
            problems.append(_mismatch(self, value, place))
            return
        for name, shape in self.fields.items():
            if name in value:
                shape.check(value[name], place.key(name), problems)
            elif name not in self.optional:
                problems.append(Problem(place.key(name).path, f"is missing: it must be {shape.wants}"))
        unknown = [name for name in value if name not in self.fields]
        problems += [
            Problem(place.key(name).path, f"is not a known field; {self._suggest(name)}")
            for name in unknown[: MAX_PROBLEMS_TOLD + 1]
        ]

    def _suggest(self, name: str) -> str:
        near = difflib.get_close_matches(name[:MAX_SHOWN], self.fields, n=1)
        return f"did you mean {near[0]}?" if near else f"known here: {', '.join(self.fields)}"


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


# --- uploads ----------------------------------------------------------------------------------------


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
    problems = _problems(UPLOAD, document)
    if not problems:
        size = len(render_json(cast("dict[str, Json]", document)["manifest"]).encode())
        if size > MAX_MANIFEST_SIZE:
            problems.append(
                Problem("manifest", f"must be at most {MAX_MANIFEST_SIZE} bytes as JSON, not {size}")
            )
    return problems


def check_upload(document: Json) -> UploadDocument:
    """The upload in `document`; RequestError naming the fields that are not as they must be."""
    _refuse(upload_problems(document))
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
    _refuse(_problems(_CODIUS_FILE, document))


def check_vars_file(document: Json) -> None:
    """RequestError when `document` is not a codiusvars.json: `{vars: {public?, private?}}`."""
    _refuse(_problems(_VARS_FILE, document))


def wire_name(field: str) -> str:
    """`cost_per_month` is `costPerMonth` to clients."""
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


def check(shape: Shape, document: Json) -> None:
    """RequestError when `document` has another shape."""
    _refuse(_problems(shape, document))


def _problems(shape: Shape, document: Json) -> list[Problem]:
    problems: list[Problem] = []
    shape.check(document, Place(), problems)
    return problems


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        message, hint = explain(problems)
        raise RequestError(message, hint=hint)


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
