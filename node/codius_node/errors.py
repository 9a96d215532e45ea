"""Every error this project raises on purpose: a sentence, a status, a hint."""

from __future__ import annotations

from typing import ClassVar


class CodiusError(Exception):
    """Root of every error this project raises on purpose.

    The message says what happened and with what; `hint` says what to do next. `status` is the HTTP
    status the API answers with, decided here once and for all callers.
    """

    status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(CodiusError):
    """A setting of the operator cannot be used; the start stops."""


class RequestError(CodiusError):
    """The request itself is malformed: its query, its JSON or a field of the wrong shape."""

    status = 400


class PaymentRequiredError(CodiusError):
    """The request is fine and has to be paid for first."""

    status = 402


class ForbiddenError(CodiusError):
    """The pod's manifest does not allow what was asked."""

    status = 403


class DeniedError(CodiusError):
    """The operator has put the manifest, or an image of it, on the denylist."""

    status = 403


class NotFoundError(CodiusError):
    """There is no such pod, or no such path."""

    status = 404


class BodyTooLargeError(CodiusError):
    """The body is larger than the host accepts."""

    status = 413


class MediaTypeError(CodiusError):
    """The body is not `application/json`."""

    status = 415


class ManifestError(CodiusError):
    """The manifest is well-formed and cannot be run: its meaning is wrong."""

    status = 422


class ImageError(CodiusError):
    """An image of the manifest cannot be had: no such image, digest or registry."""

    status = 422


class PodStartError(CodiusError):
    """The pod was created and did not stay up; everything was undone."""

    status = 422


class HostFullError(CodiusError):
    """There is no room (memory, addresses, disk) for another pod."""

    status = 503


class EngineError(CodiusError):
    """Podman is away or answered something unexpected."""

    status = 503


class NetworkError(CodiusError):
    """The kernel refused a link, route or rule."""

    status = 503


class StoreError(CodiusError):
    """The database cannot be read or written (disk full, read-only, damaged)."""

    status = 503
