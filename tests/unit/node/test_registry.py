"""Which digest a tag names: names taken apart, and what registries may answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.errors import ImageError
from codius_node.registry import (
    MANIFEST_TYPES,
    MAX_MANIFEST,
    MAX_TOKEN_ANSWER,
    Challenge,
    Registry,
    is_loopback,
    parse_challenge,
)
from tests.harness.serving import serving
from tests.integration.registry_double import RegistryDouble

DIGEST = "sha256:" + "ab" * 32


def test_a_challenge_is_read_whatever_its_order() -> None:
    header = 'bearer scope="repository:a/b:pull", service="reg.example" ,realm="https://auth.example/token"'
    assert parse_challenge(header) == Challenge(
        "https://auth.example/token", "reg.example", "repository:a/b:pull"
    )


@pytest.mark.parametrize("header", ["", "Basic realm=x", "Bearer", 'Bearer service="x"'])
def test_what_is_no_bearer_challenge_is_none(header: str) -> None:
    assert parse_challenge(header) is None


@given(st.text())
def test_no_challenge_header_breaks_the_reader(header: str) -> None:
    parse_challenge(header)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("a.localhost", True), ("127.9.9.9", True), ("::1", True), ("registry", False),
     ("10.0.0.1", False), ("localhost.example", False), ("", False)],
)  # fmt: skip
def test_only_loopback_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


# ---- against a registry ---------------------------------------------------------------------------


@pytest.fixture
def double() -> RegistryDouble:
    return RegistryDouble()


@pytest.fixture
def authority(double: RegistryDouble) -> Iterator[str]:
    with serving(double.app()) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
async def registry(authority: str) -> AsyncIterator[Registry]:
    async with aiohttp.ClientSession() as session:
        yield Registry(session, insecure=[authority])


async def test_a_tag_becomes_the_digest_of_what_the_registry_has(
    double: RegistryDouble, registry: Registry, authority: str
) -> None:
    digest = double.add("app:1.2")
    assert await registry.resolve(f"{authority}/app:1.2") == f"{authority}/app@{digest}"
    assert double.requests[0].headers["Accept"] == ", ".join(MANIFEST_TYPES)


async def test_a_bare_name_means_latest(double: RegistryDouble, registry: Registry, authority: str) -> None:
    digest = double.add("team/app:latest")
    assert await registry.resolve(f"{authority}/team/app") == f"{authority}/team/app@{digest}"


async def test_an_image_with_a_digest_is_not_asked_for(
    double: RegistryDouble, registry: Registry, authority: str
) -> None:
    image = f"{authority}/app@{DIGEST}"
    assert await registry.resolve(image) == image
    assert double.requests == []


async def test_a_registry_that_wants_a_token_gets_the_one_its_server_gives(
    double: RegistryDouble, registry: Registry, authority: str
) -> None:
    digest = double.add("app:latest")
    double.token = "let-me-in"
    assert await registry.resolve(f"{authority}/app") == f"{authority}/app@{digest}"
    assert [request.path for request in double.requests] == [
        "/v2/app/manifests/latest",
        "/token",
        "/v2/app/manifests/latest",
    ]


async def refused(registry: Registry, image: str) -> ImageError:
    with pytest.raises(ImageError) as caught:
        await registry.resolve(image)
    assert caught.value.hint
    return caught.value


async def test_a_missing_tag_is_named(registry: Registry, authority: str) -> None:
    error = await refused(registry, f"{authority}/app:9")
    assert f"there is no {authority}/app:9" in error.message


async def test_a_token_that_is_not_accepted_is_no_endless_loop(
    double: RegistryDouble, registry: Registry, authority: str
) -> None:
    double.token = "real"
    double.token_answer = json.dumps({"access_token": "another"}).encode()
    error = await refused(registry, f"{authority}/app")
    assert "not open to everybody" in error.message
    assert len(double.requests) == 3


@pytest.mark.parametrize(
    "answer", [b"{}", b"[]", b"not JSON", b'{"token": 5}', b'{"token": "a\\r\\nX: y"}', b'{"token": ""}']
)
async def test_a_token_server_that_gives_none_is_an_error(
    answer: bytes, double: RegistryDouble, registry: Registry, authority: str
) -> None:
    double.token, double.token_answer = "real", answer
    assert "gave no token" in (await refused(registry, f"{authority}/app")).message


async def test_an_oversized_token_answer_is_not_read_to_its_end(
    double: RegistryDouble, registry: Registry, authority: str
) -> None:
    double.token, double.token_answer = "real", b" " * (MAX_TOKEN_ANSWER + 1)
    assert "larger than" in (await refused(registry, f"{authority}/app")).message


async def test_an_oversized_manifest_is_refused(
    double: RegistryDouble, registry: Registry, authority: str
) -> None:
    double.manifests["app:latest"] = b" " * (MAX_MANIFEST + 1)
    assert "larger than" in (await refused(registry, f"{authority}/app")).message


async def test_a_digest_that_is_not_that_of_the_content_is_refused(
    double: RegistryDouble, registry: Registry, authority: str
) -> None:
    double.add("app:latest")
    double.claimed = DIGEST
    assert DIGEST in (await refused(registry, f"{authority}/app")).message


async def test_an_answer_that_is_no_manifest_is_refused(
    double: RegistryDouble, registry: Registry, authority: str
) -> None:
    double.add("app:latest")
    double.content_type = "text/html"
    assert "text/html" in (await refused(registry, f"{authority}/app")).message


@pytest.mark.parametrize(
    ("status", "said"), [(403, "not open"), (429, "too many"), (500, "answered 500"), (204, "answered 204")]
)
async def test_other_statuses_are_told_in_words(
    status: int, said: str, double: RegistryDouble, registry: Registry, authority: str
) -> None:
    double.status = status
    assert said in (await refused(registry, f"{authority}/app")).message


async def test_a_redirect_within_the_registry_is_followed(
    double: RegistryDouble, registry: Registry, authority: str
) -> None:
    digest = double.add("mirror/app:latest")
    double.redirect = "/v2/mirror/app/manifests/latest"
    assert await registry.resolve(f"{authority}/app") == f"{authority}/app@{digest}"


@pytest.mark.parametrize(
    "target", ["http://registry.invalid/", "https://127.0.0.1/", "http://127.0.0.1:1/", "file:///etc/passwd"]
)
async def test_a_redirect_to_plain_http_or_into_this_machine_is_not_followed(
    target: str, double: RegistryDouble, registry: Registry, authority: str
) -> None:
    double.redirect = target
    assert "not safe" in (await refused(registry, f"{authority}/app")).message


async def test_a_token_server_on_this_machine_is_not_asked(
    double: RegistryDouble, registry: Registry, authority: str
) -> None:
    double.token, double.challenge = "real", 'Bearer realm="http://127.0.0.1:1/token"'
    assert "not safe" in (await refused(registry, f"{authority}/app")).message


async def test_a_registry_with_another_scheme_of_login_is_not_open(
    double: RegistryDouble, registry: Registry, authority: str
) -> None:
    double.token, double.challenge = "real", 'Basic realm="x"'
    assert "not open" in (await refused(registry, f"{authority}/app")).message


async def test_a_registry_that_is_away_is_named() -> None:
    async with aiohttp.ClientSession() as session:
        registry = Registry(session, insecure=["127.0.0.1:1"])
        error = await refused(registry, "127.0.0.1:1/app")
    assert "127.0.0.1:1" in error.message


async def test_a_registry_that_is_silent_is_left_after_a_while(
    double: RegistryDouble, authority: str
) -> None:
    double.silent = True
    async with aiohttp.ClientSession() as session:
        registry = Registry(session, insecure=[authority], seconds=0.05)
        assert "no answer" in (await refused(registry, f"{authority}/app")).message


async def test_plain_http_is_for_loopback_only() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ImageError, match="loopback only"):
            Registry(session, insecure=["registry.example:5000"])
