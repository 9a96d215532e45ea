"""From a pod as wanted to a pod the engine can make: names final, environment complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from codius_node.errors import ManifestError
from codius_node.jsontext import quote, render_json
from codius_node.model import (
    MEMORY_SMALL,
    PIDS_SMALL,
    VCPUS_SMALL,
    Container,
    ContainerSpec,
    Limits,
    Machine,
    Pod,
    PodSpec,
    PrivateVariable,
    Variable,
)
from codius_node.schema import IMAGE_PATTERN, parse_literal, parse_reference

LIMITS: Final[Mapping[Machine, Limits]] = {
    Machine.SMALL: Limits(memory=MEMORY_SMALL, vcpus=VCPUS_SMALL, pids=PIDS_SMALL),
}
"""What each size of machine may use, the whole pod together."""


def build(pod: Pod, private: Mapping[str, PrivateVariable], *, public_uri: str) -> PodSpec:
    """The pod's spec; `public_uri` is the host's own address, without a slash at its end."""
    manifest = pod.manifest
    host = {
        "CODIUS": "true",
        "CODIUS_HOST": public_uri,
        "CODIUS_MANIFEST_HASH": manifest.hash,
        "CODIUS_MANIFEST": render_json(manifest.document),
    }
    return PodSpec(
        hash=manifest.hash,
        containers=tuple(
            _build_container(container, host, manifest.variables, private)
            for container in manifest.containers
        ),
        limits=LIMITS[manifest.machine],
        address=pod.address,
    )


def _build_container(
    container: Container,
    host: Mapping[str, str],
    variables: Mapping[str, Variable],
    private: Mapping[str, PrivateVariable],
) -> ContainerSpec:
    # Manifests cannot set names starting with CODIUS, so the order decides nothing but is as recorded.
    own = {name: _interpolate(value, variables, private) for name, value in container.environment.items()}
    return ContainerSpec(
        name=container.id,
        image=_pinned(container.image),
        command=container.command or None,  # an empty command is the image's own
        workdir=container.workdir,
        environment={**host, **own},
    )


def _interpolate(
    value: str, variables: Mapping[str, Variable], private: Mapping[str, PrivateVariable]
) -> str:
    name = parse_reference(value)
    if name is None:
        return parse_literal(value)
    variable = variables.get(name)
    if variable is not None and variable.encoding is None:
        return variable.value
    secret = private.get(name)
    if variable is None or secret is None:
        raise ManifestError(
            f"the value of the variable {quote(name)} is not at hand",
            hint="upload the manifest again with it",
        )
    return secret.value


def _pinned(image: str) -> str:
    """The reference without its tag when it has a digest: engines refuse both together."""
    parts = IMAGE_PATTERN.fullmatch(image)
    if parts is None or parts["digest"] is None:
        return image
    return f"{parts['name']}@{parts['digest']}"
