"""Pod specs: the environment the original gave, in its order."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Any, cast

import pytest

from codius_node.errors import ManifestError
from codius_node.manifest import parse
from codius_node.model import (
    MEMORY_SMALL,
    PIDS_SMALL,
    VCPUS_SMALL,
    Json,
    Limits,
    Pod,
    PodSpec,
    PodState,
    PrivateVariable,
)
from codius_node.podspec import build
from tests.unit.node.documents import container, recorded, refusal

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ADDRESS = IPv4Address("10.213.0.2")
VECTORS = recorded("vectors/podspec.json")
PUBLIC_URI = VECTORS["meta"]["public_uri"]

DIFFERENCES: dict[str, str] = {
    "the moneyd container": "a pod's own way to pay, with CODIUS_SECRET: waits for Interledger",
    "container names": "a spec names its containers by their ids; the engine tells pods apart",
    "private undefined (OPTIONS with vars)": "was a TypeError; a quote may come without private values",
}
"""Every place where specs differ from the recording on purpose, with the reason."""


def made(document: Json, *, private: Mapping[str, PrivateVariable] | None = None) -> PodSpec:
    upload = parse(document)
    pod = Pod(upload.manifest, PodState.PENDING, NOW, NOW + timedelta(hours=1), ADDRESS)
    return build(pod, upload.private if private is None else private, public_uri=PUBLIC_URI)


def document_of(vector: dict[str, Any]) -> dict[str, Json]:
    return {name: vector[name] for name in ("manifest", "private") if name in vector}


def test_every_recorded_spec_agrees_but_for_the_listed_differences() -> None:
    used = set()
    for vector in VECTORS["vectors"]:
        if "pod_spec" not in vector:
            continue
        recorded_spec = vector["pod_spec"]
        name = recorded_spec["id"]
        *containers, side = recorded_spec["containers"]
        assert side["name"] == f"{name}_moneyd"
        assert [entry["env"] for entry in side["envs"]] == ["CODIUS_SECRET"]
        used.add("the moneyd container")
        spec = made(document_of(vector))
        assert spec.hash == name
        assert spec.limits.vcpus == recorded_spec["resource"]["vcpu"]
        assert spec.limits.memory == recorded_spec["resource"]["memory"] * 1024 * 1024
        for ours, theirs in zip(spec.containers, containers, strict=True):
            assert theirs["name"] == f"{name}__{ours.name}"
            used.add("container names")
            assert ours.image == theirs["image"]
            assert list(ours.command or []) == theirs.get("command", [])
            assert ours.workdir == theirs.get("workdir")
            assert list(ours.environment.items()) == [
                (entry["env"], entry["value"]) for entry in theirs["envs"]
            ]
    used |= {
        vector["name"]
        for vector in VECTORS["vectors"]
        if "error" in vector and not isinstance(refusal(parse, document_of(vector)), ManifestError)
    }
    assert used == set(DIFFERENCES)


def test_a_pod_has_its_address_and_limits() -> None:
    spec = made(container())
    assert spec.address == ADDRESS
    assert spec.limits == Limits(memory=MEMORY_SMALL, vcpus=VCPUS_SMALL, pids=PIDS_SMALL)
    assert MEMORY_SMALL == 512 * 1024 * 1024


def test_two_dollars_give_the_container_one() -> None:
    spec = made(container(environment={"A": "$$A", "B": "a$B", "C": "$$$"}))
    environment = spec.containers[0].environment
    assert [environment[name] for name in "ABC"] == ["$A", "a$B", "$$"]


def test_a_variable_is_not_expanded_again() -> None:
    document = container(environment={"A": "$A"})
    cast("dict[str, Json]", document["manifest"])["vars"] = {"A": {"value": "$B"}}
    assert made(document).containers[0].environment["A"] == "$B"


def test_an_empty_command_or_workdir_is_the_images_own() -> None:
    spec = made(container(command=[], workdir="")).containers[0]
    assert spec.command is None
    assert spec.workdir is None


def test_a_digest_takes_the_place_of_the_tag() -> None:
    digest = "@sha256:" + "a" * 64
    spec = made(container(image=f"127.0.0.1:5000/team/app:v1{digest}"))
    assert spec.containers[0].image == f"127.0.0.1:5000/team/app{digest}"
    upload = parse(container(image="localhost:5000/app:v1"), allow_tags=True)
    pod = Pod(upload.manifest, PodState.PENDING, NOW, NOW, ADDRESS)
    assert build(pod, {}, public_uri=PUBLIC_URI).containers[0].image == "localhost:5000/app:v1"


def test_a_manifest_outside_ascii_reaches_the_container_as_it_is() -> None:
    document = container()
    cast("dict[str, Json]", document["manifest"])["name"] = "h\u00e9llo \u2603 \U0001f600 \x7f\n"
    environment = made(document).containers[0].environment
    assert environment["CODIUS_MANIFEST"].startswith('{"name":"h\u00e9llo \u2603 \U0001f600 \x7f\\n",')


def test_a_private_value_that_is_lost_is_named_and_not_left_out() -> None:
    vector = next(vector for vector in VECTORS["vectors"] if vector["name"] == "two containers")
    with pytest.raises(ManifestError, match='the value of the variable "S" is not at hand'):
        made(document_of(vector), private={})


def test_a_spec_does_not_print_its_environment() -> None:
    vector = next(vector for vector in VECTORS["vectors"] if vector["name"] == "two containers")
    assert "shh" not in repr(made(document_of(vector)))
