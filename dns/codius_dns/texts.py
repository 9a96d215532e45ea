"""TXT values that change while we run: the message that carries them, and the reader that follows them.

The publisher says everything there is in each message, one line of JSON:
`{"serial": 1764000000, "texts": {"_acme-challenge.pods.example": ["value", ...]}}`. The values are for the
whole world to see, so the socket keeps nothing from anybody on this machine.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from codius_dns.errors import DnsError
from codius_dns.records import MAX_SERIAL

logger = logging.getLogger(__name__)

MAX_MESSAGE: Final = 1 << 20  # bytes of one line: some thousand challenges at once
FIRST_PAUSE: Final = 0.02  # seconds before the first try to connect again: a restart is quick
LONGEST_PAUSE: Final = 0.25  # seconds; a challenge after an outage should not wait for us


class TextsError(DnsError):
    """The publisher said something that is no message."""


@dataclass(frozen=True, slots=True)
class Texts:
    """All TXT values by name, and the serial that goes with them: higher whenever they are others."""

    serial: int = 0
    values: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)


def render_texts(texts: Texts) -> bytes:
    """The line for these values; they are ASCII, as everything in a challenge is."""
    values = {name: [value.decode("ascii") for value in found] for name, found in texts.values.items()}
    return json.dumps({"serial": texts.serial, "texts": values}).encode() + b"\n"


def parse_texts_message(line: bytes) -> Texts:
    """The values in a line; TextsError for anything else."""
    try:
        message = json.loads(line)
        serial, texts = message["serial"], message["texts"]
        if not isinstance(serial, int) or isinstance(serial, bool) or not 0 <= serial <= MAX_SERIAL:
            raise ValueError(f"the serial {serial!r}")
        values = {}
        for name, found in texts.items():
            if not isinstance(found, list):
                raise ValueError(f"the values of {name}")
            values[name] = tuple(value.encode("ascii") for value in found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TextsError(f"not a message of TXT values: {error}") from error
    return Texts(serial, values)


class TextsReader:
    """Follows a publisher for as long as `run` runs; keeps the last values while it is away."""

    def __init__(self, path: Path, publish: Callable[[Texts], None]) -> None:
        self._path = path
        self._publish = publish

    async def run(self) -> None:
        """Connect, publish, connect again; ends only when cancelled."""
        pause = FIRST_PAUSE
        complaint: str | None = None
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path), limit=MAX_MESSAGE)
                try:
                    while line := await reader.readline():
                        self._publish(parse_texts_message(line))
                        pause, complaint = FIRST_PAUSE, None
                finally:
                    writer.transport.abort()
            except (DnsError, OSError, ValueError) as error:
                if complaint != str(error):  # once per trouble, not once per try
                    logger.warning("TXT values stay as they are: %s: %s", self._path, error)
                complaint = str(error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
