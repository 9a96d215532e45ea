"""What is sent: files and what stands beside them, tags that become digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node import parcels
from codius_node.errors import ManifestError
from codius_node.manifest import hash_manifest
from codius_node.registry import Registry

IMAGE = "nginx@sha256:" + "0" * 63 + "1"
MANIFEST: dict[str, Any] = {
    "name": "hello",
    "version": "1.0.0",
    "containers": [{"id": "app", "image": IMAGE, "environment": {"A": "$S"}}],
}
VARIABLES = {"vars": {"private": {"S": {"value": "shh", "description": "a secret"}}}}


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_codius_json_takes_its_neighbour_along_with_fresh_nonces(tmp_path: Path) -> None:
    file = write(tmp_path / "codius.json", {"manifest": MANIFEST})
    write(tmp_path / "codiusvars.json", VARIABLES)
    (first, fresh), (second, _) = parcels.read_upload(file), parcels.read_upload(file)
    assert fresh
    nonces = {json.dumps(upload["private"], sort_keys=True) for upload in (first, second)}
    assert len(nonces) == 2


def test_another_files_neighbour_is_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "pod.json", {"manifest": MANIFEST})
    write(tmp_path / "codiusvars.json", VARIABLES)
    assert parcels.read_upload(file) == ({"manifest": MANIFEST}, False)


def test_variables_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "pod.json", {"manifest": MANIFEST})
    upload, fresh = parcels.read_upload(file, write(tmp_path / "v.json", VARIABLES))
    assert (fresh, "private" in upload) == (True, True)


def test_a_complete_file_takes_no_further_variables(tmp_path: Path) -> None:
    file = write(tmp_path / "pod.json", {"manifest": MANIFEST, "private": {}})
    with pytest.raises(parcels.FileError, match="has private values already"):
        parcels.read_upload(file, write(tmp_path / "v.json", VARIABLES))


def test_a_description_stays_here(tmp_path: Path) -> None:
    described = {**MANIFEST, "vars": {"S": {"value": "x", "description": "for people"}}}
    upload, _ = parcels.read_upload(write(tmp_path / "codius.json", {"manifest": described}))
    assert upload == {"manifest": {**MANIFEST, "vars": {"S": {"value": "x"}}}}


@pytest.mark.parametrize("name", ["codius.json", "codiusvars.json"])
def test_an_error_names_the_file_it_is_in_and_no_private_value(name: str, tmp_path: Path) -> None:
    write(tmp_path / "codius.json", {"manifest": MANIFEST})
    write(tmp_path / "codiusvars.json", VARIABLES)
    write(tmp_path / name, {"shh": "shh-secret"})
    with pytest.raises(parcels.FileError) as caught:
        parcels.read_upload(tmp_path / "codius.json")
    assert caught.value.message.startswith(f"{tmp_path / name}: ")
    assert "shh-secret" not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_upload_or_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, body: bytes
) -> None:
    file = tmp_path_factory.mktemp("upload") / "codius.json"
    file.write_bytes(body)
    with pytest.raises(parcels.FileError, match=r"codius\.json"):
        parcels.read_upload(file)


class NoRegistry(Registry):
    """Resolves by itself."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def resolve(self, image: str) -> str:
        self.asked.append(image)
        return f"{image.partition(':')[0]}@sha256:{'ab' * 32}"


async def test_each_tag_is_asked_for_once_and_the_hash_is_of_what_runs() -> None:
    containers = [
        {"id": "a", "image": "nginx:1"},
        {"id": "b", "image": "nginx:1"},
        {"id": "c", "image": IMAGE},
    ]
    document: dict[str, Any] = {"manifest": {**MANIFEST, "containers": containers}}
    registry = NoRegistry()
    parcel = await parcels.prepare(document, registry=registry)
    assert registry.asked == ["nginx:1"]
    pinned = f"nginx@sha256:{'ab' * 32}"
    assert parcel.resolved == {"nginx:1": pinned}
    sent: Any = parcel.document["manifest"]
    assert [container["image"] for container in sent["containers"]] == [pinned, pinned, IMAGE]
    assert parcel.hash == hash_manifest(sent)
    assert document["manifest"]["containers"] == containers


async def test_the_meaning_is_checked_as_the_host_does() -> None:
    with pytest.raises(ManifestError, match="does not have"):
        await parcels.prepare({"manifest": MANIFEST}, registry=NoRegistry())
