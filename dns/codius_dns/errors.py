"""The errors the responder raises on purpose: what happened, and what to do about it."""

from __future__ import annotations


class DnsError(Exception):
    """Root of the responder's errors."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ZoneError(DnsError):
    """The zone's settings cannot be served."""


class DnsStartError(DnsError):
    """The responder could not start."""
