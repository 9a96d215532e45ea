"""What the operator takes off this host and keeps off it: terms, denials, and what they match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, cast

from codius_node import shapes
from codius_node.errors import DeniedError, ImageError, RequestError
from codius_node.images import DOCKER_HUB, normalize_registry, parse_image
from codius_node.jsontext import quote
from codius_node.model import Json, Manifest, ManifestHash, Notice
from codius_node.schema import HASH_PATTERN, IMAGE_PATTERN, MAX_IMAGE
from codius_node.shapes import Flag, Record, Shape, Text

MAX_REASON: Final = 200
"""Bytes of a reason: one sentence, which visitors may read, and which each worker of the front door keeps."""
MAX_NOTICES: Final = 1024
"""Stopped pods whose visitors are told so, the newest; of others they are told that there is no pod."""
MAX_DENIALS: Final = 10_000
"""Entries of the denylist: far more than one operator writes, and a few megabytes in memory."""
MAX_PORT: Final = 65535


class DenialKind(StrEnum):
    """What an entry of the denylist names."""

    MANIFEST = "manifest"
    IMAGE = "image"
    REGISTRY = "registry"


@dataclass(frozen=True, slots=True)
class Terms:
    """How a pod is taken down: why, who is told why, whether the law demands it, and whose its time is.

    `credit`: what is left of the paid time is kept for the next upload of the same manifest.
    """

    reason: str
    public: bool = False
    legal: bool = False
    credit: bool = True

    @property
    def notice(self) -> Notice:
        """What visitors of the pod are told."""
        return Notice(legal=self.legal, reason=self.reason if self.public else "")


@dataclass(frozen=True, slots=True)
class Denial:
    """One entry of the denylist, its `value` in the one spelling that all others are compared by.

    `takedown`: pods that run already are taken down; else they stay until their time is over.
    """

    kind: DenialKind
    value: str
    terms: Terms
    takedown: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Stop:
    """A pod that was taken down with `seconds` left. It is over, at `ended_at`, when the manifest runs again:
    then its page is gone, and time that was credited is spent.
    """

    hash: ManifestHash
    terms: Terms
    seconds: int
    created_at: datetime
    ended_at: datetime | None = None

    @property
    def held(self) -> int:
        """Seconds that the next upload of the manifest gets on top."""
        return self.seconds if self.terms.credit and self.ended_at is None else 0


@dataclass(frozen=True, slots=True)
class Enforcement:
    """What came of a denial: pods that were taken down, and those that nobody reaches any more and whose
    takedown failed for now; the node goes on trying.
    """

    stopped: Sequence[ManifestHash]
    waiting: Sequence[ManifestHash] = ()


# ---- what the operator sends -----------------------------------------------------------------------

# No line breaks, nothing a terminal would obey, nothing that turns the direction of a page's text.
_REASON: Final = Text(
    f"a sentence of at most {MAX_REASON} bytes in one line, without control characters",
    MAX_REASON,
    re.compile(r"(?=.*\S)[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+"),
)
_TERMS: Final[Mapping[str, Shape]] = {
    "reason": _REASON,
    "public": Flag(),
    "legal": Flag(),
    "credit": Flag(),
}
_OPTIONAL: Final = frozenset({"public", "legal", "credit"})
TERMS: Final = Record("a JSON object with reason", _TERMS, _OPTIONAL)
DENIAL: Final = Record(
    "a JSON object with kind, value and reason",
    {
        "kind": Text("manifest, image or registry", 16, re.compile("|".join(DenialKind))),
        "value": Text(f"a string of at most {MAX_IMAGE} bytes", MAX_IMAGE),
        **_TERMS,
        "takedown": Flag(),
    },
    _OPTIONAL | {"takedown"},
)


def parse_terms(document: Json) -> Terms:
    """RequestError names the field that is not as it must be."""
    shapes.check(TERMS, document)
    return _read_terms(cast("Mapping[str, Json]", document))


def parse_denial(document: Json, *, now: datetime) -> Denial:
    """RequestError names what is wrong; the value in its one spelling."""
    shapes.check(DENIAL, document)
    fields = cast("Mapping[str, Json]", document)
    kind = DenialKind(str(fields["kind"]))
    return Denial(
        kind=kind,
        value=normalize(kind, str(fields["value"])),
        terms=_read_terms(fields),
        takedown=fields.get("takedown", True) is True,
        created_at=now,
    )


def _read_terms(fields: Mapping[str, Json]) -> Terms:
    return Terms(
        reason=str(fields["reason"]).strip(),
        public=fields.get("public", False) is True,
        legal=fields.get("legal", False) is True,
        credit=fields.get("credit", True) is True,
    )


# ---- one spelling for each name --------------------------------------------------------------------

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def normalize(kind: DenialKind, value: str) -> str:
    """The value of an entry as manifests are compared with it; RequestError when it could match nothing."""
    match kind:
        case DenialKind.MANIFEST:
            if not HASH_PATTERN.fullmatch(value):
                raise RequestError(
                    f"{quote(value)} is no manifest hash", hint="A hash is 52 characters of a-z and 2-7."
                )
            return value
        case DenialKind.IMAGE:
            return _normalize_image(value)
        case DenialKind.REGISTRY:
            return _normalize_registry(value)


def _normalize_image(value: str) -> str:
    if _DIGEST.fullmatch(value):
        return value
    parts = IMAGE_PATTERN.fullmatch(value)
    if parts is None:
        raise RequestError(
            f"{quote(value)} is not the name of an image",
            hint="Write it like docker.io/library/nginx, or give a digest: sha256:<64 hex digits>.",
        )
    if parts["digest"] is not None:
        return parts["digest"]
    if parts["tag"] is not None:
        raise RequestError(
            f"{quote(value)} names a tag, and manifests name images by digest: it would deny nothing",
            hint="Leave the tag out to deny every version, or give the digest of one.",
        )
    return _name_image(value)[1]


def _normalize_registry(value: str) -> str:
    try:
        reference = parse_image(f"{value}/image")
    except ImageError:
        reference = None
    port = value.partition(":")[2]
    if reference is None or "/" in value or (port and not 0 < int(port) <= MAX_PORT):
        raise RequestError(
            f"{quote(value)} is not a registry", hint="Write it like quay.io or registry.example:5000."
        )
    if reference.repository not in {"image", "library/image"}:
        raise RequestError(
            f"{quote(value)} is a user's name to podman, and no registry",
            hint=f"Give the registry's whole host name, or deny the images {DOCKER_HUB}/{value}/<name>.",
        )
    return normalize_registry(reference.registry)


def _name_image(image: str) -> tuple[str, str]:
    """Its registry and its whole name, without tag and digest."""
    reference = parse_image(image)
    registry, repository = normalize_registry(reference.registry), reference.repository.lower()
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    return registry, f"{registry}/{repository}"


# ---- what is denied --------------------------------------------------------------------------------


class Denylist:
    """The operator's denials, found by what they name."""

    def __init__(self, denials: Iterable[Denial] = ()) -> None:
        self._denials: dict[tuple[DenialKind, str], Denial] = {(d.kind, d.value): d for d in denials}

    def __iter__(self) -> Iterator[Denial]:
        """In the order in which they were put on it."""
        return iter(self._denials.values())

    def put(self, denial: Denial) -> None:
        """In place of an earlier one of the same name."""
        self._denials[denial.kind, denial.value] = denial

    def remove(self, kind: DenialKind, value: str) -> None:
        self._denials.pop((kind, value), None)

    def find(self, manifest: Manifest) -> Denial | None:
        """The entry that keeps this manifest out; of several, one that also takes it down."""
        if not self._denials:
            return None
        found = [self._denials[key] for key in _keys(manifest) if key in self._denials]
        return next((denial for denial in found if denial.takedown), found[0] if found else None)

    def find_takedown(self, manifest: Manifest) -> Denial | None:
        """The entry for which a pod of this manifest is taken down."""
        denial = self.find(manifest)
        return denial if denial is not None and denial.takedown else None


def _keys(manifest: Manifest) -> Iterator[tuple[DenialKind, str]]:
    """Everything by which a manifest can be denied."""
    yield DenialKind.MANIFEST, manifest.hash
    for container in manifest.containers:
        try:
            reference = parse_image(container.image)
        except ImageError:  # no manifest that was accepted has one
            continue
        registry, name = _name_image(container.image)
        if reference.digest is not None:
            yield DenialKind.IMAGE, reference.digest
        yield DenialKind.IMAGE, name
        yield DenialKind.REGISTRY, registry


def refuse(denial: Denial) -> DeniedError:
    """What the uploader is told: what is denied, and why where the operator lets it be known."""
    what = {
        DenialKind.MANIFEST: "this manifest",
        DenialKind.IMAGE: f"the image {denial.value}",
        DenialKind.REGISTRY: f"images from {denial.value}",
    }[denial.kind]
    reason = denial.terms.notice.reason
    return DeniedError(
        f"the operator of this host does not run {what}" + (f": {reason}" if reason else ""),
        hint="Nothing was charged. Another host may run it: GET /peers.",
    )
