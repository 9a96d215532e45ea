"""Image references taken apart as podman reads them, and the names by which two of them are the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from codius_node.errors import ImageError
from codius_node.jsontext import quote
from codius_node.schema import IMAGE_PATTERN

DOCKER_HUB: Final = "docker.io"
"""The registry of names that begin with none, as everywhere."""
DOCKER_HUB_NAMES: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
DOCKER_HUB_API: Final = "registry-1.docker.io"
DEFAULT_TAG: Final = "latest"
DEFAULT_PORT: Final = 443
"""Where registries answer that are named without a port."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An image's name, taken apart. `name` is the name as written, without tag and digest."""

    name: str
    registry: str
    repository: str
    tag: str
    digest: str | None

    @property
    def api(self) -> str:
        """Host and port that the registry's API answers on."""
        return DOCKER_HUB_API if self.registry == DOCKER_HUB else self.registry


def parse_image(image: str) -> Reference:
    """The parts of an image reference; ImageError when it is none."""
    match = IMAGE_PATTERN.fullmatch(image)
    if match is None:
        raise ImageError(
            f"{quote(image)} is not an image reference",
            hint="Write it like docker.io/library/nginx:1.27 or registry.example/name@sha256:<hex>.",
        )
    name = match["name"]
    first, slash, rest = name.partition("/")
    # What podman and docker take for a registry rather than a user's name.
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, repository = first.lower(), rest
    else:
        registry, repository = DOCKER_HUB, name
    if registry in DOCKER_HUB_NAMES:
        registry = DOCKER_HUB
        if "/" not in repository:
            repository = f"library/{repository}"
    return Reference(name, registry, repository, match["tag"] or DEFAULT_TAG, match["digest"])


def normalize_registry(registry: str) -> str:
    """One spelling for each registry: lower case, Docker Hub by its name, no port where it is the usual."""
    host, colon, port = registry.lower().partition(":")
    if colon and int(port) != DEFAULT_PORT:
        return f"{host}:{int(port)}"
    return DOCKER_HUB if host in DOCKER_HUB_NAMES else host
