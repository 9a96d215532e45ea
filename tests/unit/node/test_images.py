"""Image references taken apart, and what makes two registries the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.errors import ImageError
from codius_node.images import normalize_registry, parse_image

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("image", "name", "registry", "repository", "tag"),
    [
        ("nginx", "nginx", "docker.io", "library/nginx", "latest"),
        ("nginx:1.27", "nginx", "docker.io", "library/nginx", "1.27"),
        ("user/app", "user/app", "docker.io", "user/app", "latest"),
        ("docker.io/nginx:1", "docker.io/nginx", "docker.io", "library/nginx", "1"),
        ("index.docker.io/user/app", "index.docker.io/user/app", "docker.io", "user/app", "latest"),
        ("quay.io/a/b/c:x", "quay.io/a/b/c", "quay.io", "a/b/c", "x"),
        ("localhost/app", "localhost/app", "localhost", "app", "latest"),
        ("127.0.0.1:5000/app:2", "127.0.0.1:5000/app", "127.0.0.1:5000", "app", "2"),
        ("Registry.Example/app", "Registry.Example/app", "registry.example", "app", "latest"),
    ],
)
def test_a_reference_is_taken_apart_as_podman_does(
    image: str, name: str, registry: str, repository: str, tag: str
) -> None:
    reference = parse_image(image)
    assert (reference.name, reference.registry, reference.repository, reference.tag, reference.digest) == (
        name,
        registry,
        repository,
        tag,
        None,
    )


def test_the_api_of_docker_hub_is_elsewhere() -> None:
    assert parse_image("nginx").api == "registry-1.docker.io"
    assert parse_image("quay.io/a/b").api == "quay.io"


def test_a_digest_is_kept() -> None:
    assert parse_image(f"nginx:1@{DIGEST}").digest == DIGEST


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_an_error_that_says_so(text: str) -> None:
    try:
        reference = parse_image(text)
    except ImageError:
        return
    assert text.startswith(reference.name)


@pytest.mark.parametrize(
    ("registry", "spelling"),
    [
        ("docker.io", "docker.io"),
        ("INDEX.docker.io:443", "docker.io"),
        ("index.docker.io:5000", "index.docker.io:5000"),
        ("Quay.io", "quay.io"),
        ("quay.io:443", "quay.io"),
        ("quay.io:05000", "quay.io:5000"),
    ],
)
def test_a_registry_has_one_spelling(registry: str, spelling: str) -> None:
    assert normalize_registry(registry) == spelling
