"""The denylist's decisions: one spelling for each name, what an entry matches, what operators may send."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from codius_node import libpod, manifest
from codius_node.errors import RequestError
from codius_node.model import Json, Manifest, Notice
from codius_node.schema import IMAGE_PATTERN
from codius_node.takedown import (
    MAX_NOTICES,
    MAX_REASON,
    Denial,
    DenialKind,
    Denylist,
    Terms,
    normalize,
    parse_denial,
    parse_terms,
    refuse,
)
from codius_proxy import routes

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
HASH = "a" * 52
MANIFEST, IMAGE, REGISTRY = DenialKind.MANIFEST, DenialKind.IMAGE, DenialKind.REGISTRY


def running(*images: str) -> Manifest:
    containers: list[Json] = [{"id": f"c{n}", "image": image} for n, image in enumerate(images)]
    document: Json = {"manifest": {"name": "app", "version": "1", "containers": containers}}
    return manifest.parse(document, allow_tags=True).manifest


def deny(kind: DenialKind, value: str, *, takedown: bool = True) -> Denial:
    return Denial(kind, normalize(kind, value), Terms("no"), takedown, NOW)


@pytest.mark.parametrize(
    ("kind", "value", "spelling"),
    [
        (MANIFEST, HASH, HASH),
        (IMAGE, "nginx", "docker.io/library/nginx"),
        (IMAGE, "library/nginx", "docker.io/library/nginx"),
        (IMAGE, "docker.io/nginx", "docker.io/library/nginx"),
        (IMAGE, "index.docker.io/library/nginx", "docker.io/library/nginx"),
        (IMAGE, "registry-1.docker.io:443/nginx", "docker.io/library/nginx"),
        (IMAGE, "user/app", "docker.io/user/app"),
        (IMAGE, "Quay.IO/a/b", "quay.io/a/b"),
        (IMAGE, "quay.io:443/a/b", "quay.io/a/b"),
        (IMAGE, "quay.io:0443/a/b", "quay.io/a/b"),
        (IMAGE, "quay.io:8443/a/b", "quay.io:8443/a/b"),
        (IMAGE, "localhost/a", "localhost/a"),
        (IMAGE, DIGEST, DIGEST),
        (IMAGE, f"nginx@{DIGEST}", DIGEST),
        (IMAGE, f"nginx:1.27@{DIGEST}", DIGEST),
        (REGISTRY, "quay.io", "quay.io"),
        (REGISTRY, "QUAY.io:443", "quay.io"),
        (REGISTRY, "127.0.0.1:5000", "127.0.0.1:5000"),
        (REGISTRY, "registry:05000", "registry:5000"),
        (REGISTRY, "index.docker.io", "docker.io"),
        (REGISTRY, "localhost", "localhost"),
    ],
)
def test_each_name_has_one_spelling(kind: DenialKind, value: str, spelling: str) -> None:
    assert normalize(kind, value) == spelling
    assert normalize(kind, spelling) == spelling


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (MANIFEST, HASH.upper(), "no manifest hash"),
        (MANIFEST, "a" * 51, "no manifest hash"),
        (MANIFEST, HASH + "\n", "no manifest hash"),
        (IMAGE, "", "not the name of an image"),
        (IMAGE, "docker://nginx", "not the name of an image"),
        (IMAGE, "UPPER", "not the name of an image"),
        (IMAGE, "nginx\n", "not the name of an image"),
        (IMAGE, "nginx@sha256:abc", "not the name of an image"),
        (IMAGE, "nginx:latest", "names a tag"),
        (IMAGE, "quay.io:5000/a:1", "names a tag"),
        (REGISTRY, "", "not a registry"),
        (REGISTRY, "quay.io/a", "not a registry"),
        (REGISTRY, "https://quay.io", "not a registry"),
        (REGISTRY, "quay.io:0", "not a registry"),
        (REGISTRY, "quay.io:65536", "not a registry"),
        (REGISTRY, "quay.io:", "not a registry"),
        (REGISTRY, "quay.io:\u0663", "not a registry"),
        (REGISTRY, "quay.io\n", "not a registry"),
        (REGISTRY, "user", "a user's name"),
    ],
)
def test_what_could_match_nothing_is_refused(kind: DenialKind, value: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        normalize(kind, value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("denied", "image", "matches"),
    [
        ((IMAGE, "nginx"), f"docker.io/library/nginx@{DIGEST}", True),
        ((IMAGE, "nginx"), f"nginx:1.27@{DIGEST}", True),
        ((IMAGE, "nginx"), "index.docker.io/nginx:latest", True),
        ((IMAGE, "nginx"), f"INDEX.docker.io:443/library/nginx@{DIGEST}", True),
        ((IMAGE, "nginx"), f"quay.io/nginx@{DIGEST}", False),
        ((IMAGE, "nginx"), f"library/nginx-more@{DIGEST}", False),
        ((IMAGE, "nginx"), f"user/nginx@{DIGEST}", False),
        ((IMAGE, DIGEST), f"nginx@{DIGEST}", True),
        ((IMAGE, f"nginx@{DIGEST}"), f"quay.io/copied@{DIGEST}", True),
        ((IMAGE, DIGEST), f"nginx@{OTHER}", False),
        ((REGISTRY, "quay.io"), f"quay.io/a/b@{DIGEST}", True),
        ((REGISTRY, "quay.io"), f"Quay.Io:443/a@{DIGEST}", True),
        ((REGISTRY, "quay.io"), f"quay.io:8443/a@{DIGEST}", False),
        ((REGISTRY, "quay.io:8443"), f"quay.io:8443/a@{DIGEST}", True),
        ((REGISTRY, "quay.io:8443"), f"quay.io/a@{DIGEST}", False),
        ((REGISTRY, "quay.io"), f"sub.quay.io/a@{DIGEST}", False),
        ((REGISTRY, "docker.io"), f"nginx@{DIGEST}", True),
        ((REGISTRY, "localhost"), f"localhost/a@{DIGEST}", True),
        ((REGISTRY, "localhost"), f"localhost:5000/a@{DIGEST}", False),
    ],
)
def test_an_entry_matches_every_spelling_and_nothing_else(
    denied: tuple[DenialKind, str], image: str, matches: bool
) -> None:
    denylist = Denylist([deny(*denied)])
    assert (denylist.find(running("other.example/app", image)) is not None) is matches
    assert denylist.find(running("other.example/app")) is None


def test_a_manifest_is_matched_by_its_hash() -> None:
    app = running("nginx")
    assert Denylist([deny(MANIFEST, app.hash)]).find(app) == deny(MANIFEST, app.hash)
    assert Denylist([deny(MANIFEST, HASH)]).find(app) is None


def test_of_several_entries_one_that_takes_down_counts() -> None:
    app = running("quay.io/a")
    mild, strict = deny(MANIFEST, app.hash, takedown=False), deny(REGISTRY, "quay.io")
    denylist = Denylist([mild])
    assert (denylist.find(app), denylist.find_takedown(app)) == (mild, None)
    denylist.put(strict)
    assert denylist.find(app) == denylist.find_takedown(app) == strict
    denylist.remove(REGISTRY, "quay.io")
    denylist.remove(REGISTRY, "quay.io")
    assert denylist.find_takedown(app) is None
    assert list(denylist) == [mild]


_PARTS = st.sampled_from(["nginx", "library", "user", "a.b", "a_b", "a--b", "0"])
_NAMES = st.builds(
    lambda registry, parts: "/".join([*registry, *parts]),
    st.lists(
        st.builds(
            lambda host, port: host + port,
            st.sampled_from(["quay.io", "QUAY.io", "docker.io", "index.docker.io", "Registry-1.Docker.io",
                             "localhost", "127.0.0.1", "host", "Host"]),
            st.sampled_from(["", ":443", ":0443", ":5000"]),
        ),
        max_size=1,
    ),
    st.lists(_PARTS, min_size=1, max_size=3),
)  # fmt: skip


@given(_NAMES, st.sampled_from(["", ":1.27", ":latest"]), st.sampled_from(["", f"@{DIGEST}"]))
def test_what_podman_is_asked_for_is_denied_like_what_was_written(name: str, tag: str, digest: str) -> None:
    """The engine has a spelling of its own for each image; no entry may tell the two apart."""
    image = name + tag + digest
    assume(IMAGE_PATTERN.fullmatch(image))
    spelling = libpod.normalize_image(image)
    assume(IMAGE_PATTERN.fullmatch(spelling))  # else podman refuses it
    entry = deny(IMAGE, name)
    assert Denylist([entry]).find(running(image)) == entry
    assert Denylist([entry]).find(running(spelling)) == entry
    assert normalize(IMAGE, spelling.partition("@")[0].removesuffix(tag)) == entry.value


SENT: dict[str, Any] = {"kind": "image", "value": "nginx", "reason": " Malware. "}


def test_what_is_not_said_is_private_credited_and_takes_down() -> None:
    assert parse_terms({"reason": "x"}) == Terms("x", public=False, legal=False, credit=True)
    expected = Denial(IMAGE, "docker.io/library/nginx", Terms("Malware."), takedown=True, created_at=NOW)
    assert parse_denial(SENT, now=NOW) == expected
    more = parse_denial({**SENT, "public": True, "legal": True, "credit": False, "takedown": False}, now=NOW)
    assert more.terms == Terms("Malware.", public=True, legal=True, credit=False)
    assert not more.takedown


@pytest.mark.parametrize(
    "change",
    [
        {"reason": ""}, {"reason": "   "}, {"reason": None}, {"reason": 5},
        {"reason": "x" * (MAX_REASON + 1)},
        {"reason": "\u20ac" * (MAX_REASON // 3 + 1)}, {"reason": "a\nb"}, {"reason": "a\x1b[31m"},
        {"reason": "a\x00"}, {"reason": "a\x9bb"}, {"reason": "a\u202eb"}, {"reason": "a\u2028b"},
        {"public": "true"}, {"public": 1}, {"legal": None}, {"credit": []}, {"takedown": "no"},
        {"kind": "Image"}, {"kind": "host"}, {"kind": None}, {"value": 5}, {"value": "x" * 600},
        {"more": 1}, {"Reason": "x"},
    ],
)  # fmt: skip
def test_each_bad_field_is_named(change: dict[str, Any]) -> None:
    [field] = change
    with pytest.raises(RequestError, match=field):
        parse_denial({**SENT, **change}, now=NOW)


@pytest.mark.parametrize("document", [None, [], "x", 5, {}, {"public": True}])
def test_terms_without_a_reason_are_refused(document: Json) -> None:
    with pytest.raises(RequestError):
        parse_terms(document)


def test_a_reason_is_told_only_where_it_is_public() -> None:
    quiet, loud = Terms("Malware."), Terms("Malware.", public=True, legal=True)
    assert quiet.notice == Notice(legal=False, reason="")
    assert loud.notice == Notice(legal=True, reason="Malware.")
    silent = refuse(Denial(REGISTRY, "quay.io", quiet, takedown=True, created_at=NOW))
    assert (silent.status, silent.message) == (
        403,
        "the operator of this host does not run images from quay.io",
    )
    told = refuse(Denial(MANIFEST, HASH, loud, takedown=True, created_at=NOW))
    assert told.message.endswith("does not run this manifest: Malware.")


def test_the_front_door_takes_every_notice_there_can_be() -> None:
    assert (MAX_NOTICES, MAX_REASON) == (routes.MAX_STOPPED, routes.MAX_REASON)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["manifest", "image", "registry"]) | _JSON,
        "value": st.sampled_from([HASH, "nginx", "quay.io:443", DIGEST]) | _JSON,
        "reason": st.text(min_size=1, max_size=20) | _JSON,
        "takedown": st.booleans() | _JSON,
        "credit": st.booleans() | _JSON,
        "more": _JSON,
    },
)


@given(_FIELDS | _JSON)
def test_any_document_is_a_denial_that_can_be_told_again_or_refused_in_words(document: Json) -> None:
    try:
        denial = parse_denial(document, now=NOW)
    except RequestError:
        return
    assert normalize(denial.kind, denial.value) == denial.value
    assert 0 < len(denial.terms.reason.encode()) <= MAX_REASON
    routes.parse(routes.render_stop(HASH, routes.Notice(denial.terms.legal, denial.terms.reason)))
