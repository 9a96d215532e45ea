"""What JSON may look like, as tables of shapes; what is wrong with a document, by the paths of its fields."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from codius_node.errors import RequestError
from codius_node.jsontext import MAX_NUMBER_LENGTH, MAX_SHOWN, is_encodable, quote
from codius_node.model import Json

MAX_PROBLEMS_TOLD: Final = 5
"""Problems told in one error besides the first; the rest are counted."""

_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


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
        if len(value) > self.limit or not is_encodable(value) or len(value.encode()) > self.limit:
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


def check(shape: Shape, document: Json) -> None:
    """RequestError when `document` has another shape."""
    reject(find_problems(shape, document))


def find_problems(shape: Shape, document: Json) -> list[Problem]:
    """Everything in which `document` is not of this shape."""
    problems: list[Problem] = []
    shape.check(document, Place(), problems)
    return problems


def reject(problems: Sequence[Problem]) -> None:
    """RequestError that tells these problems, when there are any."""
    if problems:
        message, hint = explain(problems)
        raise RequestError(message, hint=hint)
