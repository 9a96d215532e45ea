"""What a check saw, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw: a sentence, and what to do where something is not as it should be."""

    name: str
    verdict: Verdict
    message: str
    fix: str | None = None


def ok(name: str, message: str) -> Finding:
    return Finding(name, Verdict.OK, message)


def warn(name: str, message: str, fix: str | None = None) -> Finding:
    return Finding(name, Verdict.WARN, message, fix)


def bad(name: str, message: str, fix: str | None = None) -> Finding:
    return Finding(name, Verdict.BAD, message, fix)


def skip(name: str, message: str) -> Finding:
    return Finding(name, Verdict.SKIP, message)
