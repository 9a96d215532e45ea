"""The query parameters of the public API: what each accepts, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from codius_node.errors import CodiusError, NotFoundError, RequestError
from codius_node.jsontext import quote
from codius_node.model import ManifestHash
from codius_node.schema import HASH_PATTERN

DEFAULT_DURATION: Final = 3600
"""Seconds a pod is paid for when the request does not say."""
MAX_DURATION: Final = 10 * 365 * 24 * 3600
"""Seconds (ten years): more than any host can promise, and far from the end of datetime."""
MAX_PEERS: Final = 1000
"""Peers in one answer, and the default."""
USAGE_PAGE: Final = 50
"""Manifests, or entries of a ledger, in one answer to the operator."""
MAX_PAGE: Final = 1000
"""The most of them: about a megabyte."""
NEWEST: Final = 10**12 - 1
"""Larger than any ledger's last entry."""
TRUE: Final = "true"
FALSE: Final = "false"


class HashMissingError(RequestError):
    """A request about a pod does not say which one: recorded as 422, and clients see that status."""

    status = 422


@dataclass(frozen=True, slots=True)
class WholeNumber:
    """A number in plain decimal digits, given once; absent or empty it is `default`."""

    name: str
    meaning: str
    kind: str
    least: int
    most: int
    default: int

    refusals: tuple[type[CodiusError], ...] = (RequestError,)

    def parse(self, values: Sequence[str]) -> int:
        """From all values the query has of it."""
        wants = f"{self.name} must be one {self.kind} from {self.least} to {self.most}"
        if len(values) > 1:
            raise RequestError(f"{wants}, and it was given {len(values)} times")
        if not values or not values[0]:
            return self.default
        digits = values[0]
        # isdigit() would let in other scripts' digits; the length keeps int() cheap
        if not re.fullmatch(r"[0-9]{1,12}", digits) or not self.least <= int(digits) <= self.most:
            raise RequestError(f"{wants}, not {quote(digits)}")
        return int(digits)


@dataclass(frozen=True, slots=True)
class Flag:
    """`true` or `false`, given once; absent it is false."""

    name: str
    meaning: str

    refusals: tuple[type[CodiusError], ...] = (RequestError,)

    def parse(self, values: Sequence[str]) -> bool:
        """From all values the query has of it."""
        if len(values) > 1 or (values and values[0] not in {TRUE, FALSE}):
            raise RequestError(f"{self.name} must be true or false, given once")
        return list(values) == [TRUE]


@dataclass(frozen=True, slots=True)
class Wish:
    """Granted for exactly one `true`, and no error for anything else, as recorded."""

    name: str
    meaning: str

    refusals: tuple[type[CodiusError], ...] = ()

    def parse(self, values: Sequence[str]) -> bool:
        """From all values the query has of it."""
        return list(values) == [TRUE]


@dataclass(frozen=True, slots=True)
class Hash:
    """A manifest's hash. What cannot be one names no pod: NotFoundError."""

    name: str
    meaning: str

    refusals: tuple[type[CodiusError], ...] = (HashMissingError, NotFoundError)

    def parse(self, values: Sequence[str]) -> ManifestHash:
        """From all values the query has of it, or the segment of a path."""
        if not any(values):
            raise HashMissingError(
                f"{self.name} must be specified", hint=f"add ?{self.name}=<52 characters of a-z and 2-7>"
            )
        if len(values) > 1:
            raise NotFoundError(f"{self.name} must be given once, and it was given {len(values)} times")
        if not HASH_PATTERN.fullmatch(values[0]):
            raise NotFoundError(
                f"no manifest with hash of {quote(values[0])}", hint="a hash is 52 characters of a-z and 2-7"
            )
        return ManifestHash(values[0])


Parameter = WholeNumber | Flag | Wish | Hash

DURATION: Final = WholeNumber(
    "duration",
    "Seconds to run the pod, or to run it longer.",
    "whole number of seconds",
    1,
    MAX_DURATION,
    DEFAULT_DURATION,
)
PROGRESS: Final = Flag("progress", "`true`: tell what is being done, a line of JSON each.")
LIMIT: Final = WholeNumber("limit", "Hosts to tell of.", "whole number", 1, MAX_PEERS, MAX_PEERS)
USAGE_LIMIT: Final = WholeNumber("limit", "Entries of one page.", "whole number", 1, MAX_PAGE, USAGE_PAGE)
BEFORE: Final = WholeNumber(
    "before", "Where a page begins: the `next` of the one before.", "whole number", 1, NEWEST, NEWEST
)
FOLLOW: Final = Wish("follow", "`true`: go on with what is written from now on.")
REQUEST_PEERS: Final = Wish("requestPeers", "`true`: tell the known hosts, too.")
MANIFEST_HASH: Final = Hash("manifestHash", "The pod's manifest.")
