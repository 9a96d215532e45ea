"""What clients can ask of the public API: the table that is routed, described and tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from codius_node import parameters, replies, schema
from codius_node.errors import (
    BodyTooLargeError,
    CodiusError,
    DeniedError,
    ForbiddenError,
    HostFullError,
    ImageError,
    ManifestError,
    MediaTypeError,
    NotFoundError,
    PaymentRequiredError,
    PodStartError,
    RequestError,
    StoreError,
)
from codius_node.parameters import Parameter
from codius_node.replies import Reply
from codius_node.shapes import Record

JSON_TYPE: Final = "application/json"
HTML_TYPE: Final = "text/html"
TEXT_TYPE: Final = "text/plain"
LOG_TYPE: Final = "application/vnd.codius.raw-stream"
PROGRESS_TYPE: Final = "application/x-ndjson"

PAY_TOKEN: Final = "Pay-Token"  # noqa: S105  the name of a header
PAY: Final = "Pay"

_BODY_REFUSALS: Final = (RequestError, BodyTooLargeError, MediaTypeError, ManifestError)


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to ask: how, what is answered by media type, and which errors are the asker's to expect."""

    name: str
    method: str
    path: str
    summary: str
    answers: Mapping[str, type[Reply] | str]
    """The kind of document, or words for what is none of JSON."""
    query: tuple[Parameter, ...] = ()
    body: Record | None = None
    paid: bool = False
    """Whether it is carried out only for payment, where the host is not free."""
    own_refusals: tuple[type[CodiusError], ...] = ()
    in_path: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def refusals(self) -> tuple[type[CodiusError], ...]:
        """Its own, and those of its parameters, its body and its price."""
        found = [error for parameter in self.query for error in parameter.refusals]
        if self.body is not None:
            found += _BODY_REFUSALS
        if self.paid:
            found.append(PaymentRequiredError)
        return tuple(dict.fromkeys((*found, *self.own_refusals)))


PAGE: Final = Operation(
    "showPage", "GET", "/", "The host, for people.", {HTML_TYPE: "A page that needs nothing else."}
)
VERSION: Final = Operation("tellVersion", "GET", "/version", "The software.", {JSON_TYPE: replies.Version})
INFO: Final = Operation(
    "tellInfo",
    "GET",
    "/info",
    "The host, for programs.",
    {JSON_TYPE: replies.Info},
    query=(parameters.REQUEST_PEERS,),
)
MEMORY: Final = Operation(
    "tellMemory", "GET", "/memory", "The machine's free memory.", {JSON_TYPE: replies.FreeMemory}
)
PEERS: Final = Operation(
    "tellPeers",
    "GET",
    "/peers",
    "Other hosts known here.",
    {JSON_TYPE: replies.PeerList},
    query=(parameters.LIMIT,),
)
DISCOVER: Final = Operation(
    "discoverPeers",
    "POST",
    "/peers/discover",
    "Tell this host of others, and hear whom it knows. It looks at each before it tells of it.",
    {JSON_TYPE: replies.Discovery},
    body=schema.PEER_LIST,
)
QUOTE: Final = Operation(
    "quote",
    "OPTIONS",
    "/pods",
    "What an upload would cost, and the name its manifest has. Private values may be left out.",
    {JSON_TYPE: replies.Price},
    query=(parameters.DURATION,),
    body=schema.UPLOAD,
    own_refusals=(DeniedError,),
)
UPLOAD: Final = Operation(
    "upload",
    "POST",
    "/pods",
    "Run a manifest; one that runs already is extended from its expiry.",
    {
        JSON_TYPE: replies.RunningPod,
        PROGRESS_TYPE: "With `progress=true`: lines of JSON, each a `Step`, the last one with the outcome.",
    },
    query=(parameters.DURATION, parameters.PROGRESS),
    body=schema.UPLOAD,
    paid=True,
    own_refusals=(DeniedError, ImageError, PodStartError, HostFullError, StoreError),
)
EXTEND: Final = Operation(
    "extend",
    "PUT",
    "/pods",
    "Run a pod longer. Takes no body.",
    {JSON_TYPE: replies.RunningPod},
    query=(parameters.MANIFEST_HASH, parameters.DURATION),
    paid=True,
    own_refusals=(DeniedError, StoreError),
)
SHOW_POD: Final = Operation(
    "showPod",
    "GET",
    "/pods",
    "A running pod with its public manifest.",
    {JSON_TYPE: replies.RunningPod},
    query=(parameters.MANIFEST_HASH,),
)
LOGS: Final = Operation(
    "readLogs",
    "GET",
    "/pods/{hash}/logs",
    "What the pod's containers write: lines of container, `stdout` or `stderr`, and text.",
    {LOG_TYPE: "Lines such as `web stdout hello`."},
    query=(parameters.FOLLOW,),
    own_refusals=(NotFoundError, ForbiddenError, HostFullError),
    in_path={"hash": parameters.MANIFEST_HASH},
)
OPENAPI: Final = Operation(
    "tellOpenapi", "GET", "/openapi.json", "This description.", {JSON_TYPE: "OpenAPI 3.1."}
)
LLMS: Final = Operation(
    "tellLlms", "GET", "/llms.txt", "How to use this host, for language models.", {TEXT_TYPE: "Markdown."}
)
