"""Images in podman: looked for, pulled from registries, made from an archive."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from http import HTTPStatus
from typing import Final

from codius_node import libpod
from codius_node.errors import EngineError, ImageError
from codius_node.model import PullProgress
from codius_node.podman_api import READ_SIZE, PodmanApi, disk_full, parse, segment

logger = logging.getLogger(__name__)

PULL_SECONDS: Final = 900.0
"""For a whole image: a gigabyte over a slow line."""
PULL_SILENCE_SECONDS: Final = 300.0
"""podman says nothing while it copies one blob."""
MAX_PULL_LINE: Final = 64 * 1024
"""Bytes of one line of a pull's stream."""


class PodmanImages(PodmanApi):
    """The images of a podman service, whoever uses them."""

    async def find_image(self, image: str) -> bool:
        """Whether the image is here already."""
        answer = await self._ask("GET", f"/images/{segment(libpod.normalize_image(image))}/exists")
        if answer.status == HTTPStatus.NOT_FOUND:
            return False
        self._expect(answer, f"look for {image}", HTTPStatus.NO_CONTENT, HTTPStatus.OK)
        return True

    async def pull(self, image: str) -> AsyncGenerator[PullProgress, None]:
        """Make the image present; says nothing when it is. ImageError when it cannot be had."""
        if await self.find_image(image):
            return
        logger.info("pulling %s", image)
        reference = libpod.normalize_image(image)
        failure = None
        async with self._stream(
            "POST",
            "/images/pull",
            {"reference": reference, "policy": "missing"},
            total=PULL_SECONDS,
            silence=PULL_SILENCE_SECONDS,
        ) as response:
            if response.status != HTTPStatus.OK:
                raise self._image_error(image, libpod.parse_error(await response.read()))
            # a missing digest is 200 with an error line: only the whole stream tells
            async for line in _lines(response.content.iter_chunked(READ_SIZE)):
                try:
                    report = libpod.parse_pull(line)
                except ValueError as error:
                    raise EngineError(f"podman's report on the pull of {image} makes no sense") from error
                if report is not None and report.failed:
                    failure = report.message
                elif report is not None:
                    yield PullProgress(image, report.message)
        if failure is not None:
            raise self._image_error(image, failure)
        if not await self.find_image(image):
            raise ImageError(f"{image} was pulled and is not there", hint="Try again.")
        logger.info("pulled %s", image)

    async def import_image(self, name: str, archive: bytes) -> str:
        """Make an image of one layer, a tar archive, unless it is here; its reference by digest."""
        if (found := await self._find_digest(name)) is not None:
            return found
        answer = await self._ask("POST", "/images/import", {"reference": name}, body=archive)
        self._expect(answer, f"import {name}", HTTPStatus.OK)
        logger.info("imported %s", name)
        if (found := await self._find_digest(name)) is None:
            raise EngineError(f"{name} was imported and is not there", hint="Try again.")
        return found

    async def _find_digest(self, name: str) -> str | None:
        answer = await self._ask("GET", f"/images/{segment(name)}/json")
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        self._expect(answer, f"look at {name}", HTTPStatus.OK)
        return f"{name.rpartition(':')[0]}@{parse(libpod.parse_digest, answer)}"

    def _image_error(self, image: str, reason: str) -> EngineError | ImageError:
        if libpod.mentions(reason, libpod.DISK_FULL):
            return disk_full(f"pull {image}", reason)
        return ImageError(
            f"{image} could not be pulled: {reason}",
            hint="Check the image's name, its digest and that its registry serves it to everybody.",
        )


async def _lines(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines of a JSON stream; aiohttp's own iterator stops at its buffer's size."""
    buffer = bytearray()
    async for data in content:
        buffer += data
        *lines, rest = buffer.split(b"\n")
        buffer = rest
        for line in lines:
            if line.strip():
                yield bytes(line)
        if len(buffer) > MAX_PULL_LINE:
            raise EngineError("podman's report on a pull does not end")
    if buffer.strip():
        yield bytes(buffer)
