"""Uploads and recordings for the tests of the decisions: good ones to break, and any JSON at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from hypothesis import strategies as st

from codius_node.errors import CodiusError
from codius_node.model import Json

P = ParamSpec("P")

DATA = Path(__file__).parents[2] / "data"
DIGEST = "nginx@sha256:" + "0" * 63 + "1"
HASH = "ct3r5zdruzxu7w4bztzgz6pdma55ge7kbz53muq7rs23z3ddww4q"
"""Of `upload()`, as the original computed it."""

FIELDS = [
    "manifest",
    "private",
    "name",
    "version",
    "machine",
    "port",
    "containers",
    "vars",
    "debug",
    "id",
    "image",
    "command",
    "workdir",
    "environment",
    "value",
    "encoding",
    "nonce",
    "S",
]

ANY_TEXT = st.text(st.characters(categories=None), max_size=8)
"""Lone surrogates too."""
ANY_JSON: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.sampled_from(["small", "8080", "app", "$S", DIGEST]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | ANY_TEXT, inner, max_size=4)
    ),
    max_leaves=12,
)


def recorded(path: str) -> Any:
    """A file of `tests/data`."""
    return json.loads((DATA / path).read_text(encoding="utf-8"))


def upload(**manifest: Json) -> dict[str, Json]:
    """A good upload, with these fields of its manifest instead."""
    base: dict[str, Json] = {
        "name": "hello",
        "version": "1.0.0",
        "machine": "small",
        "port": "8080",
        "containers": [{"id": "app", "image": DIGEST}],
    }
    return {"manifest": {**base, **manifest}}


def container(**fields: Json) -> dict[str, Json]:
    """A good upload, with these fields of its one container instead."""
    one: dict[str, Json] = {"id": "app", "image": DIGEST, **fields}
    return upload(containers=[one])


def refusal(act: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> CodiusError | None:
    """The error with which `act` refuses, if it does; any other exception is a failure of the test."""
    try:
        act(*args, **kwargs)
    except CodiusError as error:
        str(error).encode()  # it can be sent
        return error
    return None
