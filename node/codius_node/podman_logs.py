"""What the containers of a pod wrote: read once, or followed for as long as the pod is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Final

from codius_node import libpod
from codius_node.errors import EngineError
from codius_node.model import LogLine, ManifestHash
from codius_node.podman_api import ANSWER_SECONDS, READ_SIZE, PodmanApi

FOLLOW_POLL_SECONDS: Final = 1.0
"""Between two looks whether a followed pod still exists: podman's stream does not always end with it."""
FOLLOW_LAST_SECONDS: Final = 0.5
"""What the streams of a pod that is gone get to hand over their last lines."""
MAX_LINES_WAITING: Final = 256
"""Log lines read ahead of a slow reader; podman then waits."""
LAST_LINES: Final = 10
"""Lines of a failed container's log that its error quotes."""
MAX_LAST_LINE: Final = 300
"""Characters of each of them."""


class PodmanLogs(PodmanApi):
    """The logs of one owner's pods."""

    async def logs(self, hash: ManifestHash, *, follow: bool) -> AsyncGenerator[LogLine, None]:
        """What the pod's containers wrote; with `follow` until the pod goes away.

        Without `follow` one container after the other, with it as lines come.
        """
        pods = await self._list(hash)
        if not pods or not pods[0].members:
            return
        names = {member.id: self._manifest_name(hash, member) for member in pods[0].members}
        if follow:
            async with aclosing(self._follow(pods[0].id, names)) as lines:
                async for line in lines:
                    yield line
            return
        for id, name in names.items():
            async with aclosing(self._read_log(id, libpod.LogParser())) as read:
                async for stream, text in read:
                    yield LogLine(name, stream, text)

    async def _follow(self, pod: str, names: Mapping[str, str]) -> AsyncGenerator[LogLine, None]:
        queue: asyncio.Queue[LogLine | Exception | None] = asyncio.Queue(MAX_LINES_WAITING)
        readers = [
            asyncio.create_task(self._follow_container(id, name, queue), name=f"logs-{name}")
            for id, name in names.items()
        ]
        watch = asyncio.create_task(self._watch_end(pod, readers, queue), name="logs-watch")
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            for task in (watch, *readers):
                task.cancel()
            await asyncio.gather(watch, *readers, return_exceptions=True)

    async def _watch_end(
        self,
        pod: str,
        readers: Collection[asyncio.Task[None]],
        queue: asyncio.Queue[LogLine | Exception | None],
    ) -> None:
        """End the queue once the pod is gone and its last lines are in it."""
        try:
            while True:
                # a reader ends by itself when its container is gone: mostly this is how the end is seen
                _, reading = await asyncio.wait(readers, timeout=FOLLOW_POLL_SECONDS)
                if not reading:
                    break
                if (await self._ask("GET", f"/pods/{pod}/exists")).status == HTTPStatus.NOT_FOUND:
                    await asyncio.wait(reading, timeout=FOLLOW_LAST_SECONDS)
                    break
        except EngineError as error:
            await queue.put(error)
            return
        for reader in readers:
            reader.cancel()
        await queue.put(None)

    async def _follow_container(
        self, id: str, name: str, queue: asyncio.Queue[LogLine | Exception | None]
    ) -> None:
        """Podman ends the stream when the container exits: take it up again when it was restarted."""
        cursor: libpod.LogCursor | None = None
        try:
            while True:
                parser = libpod.LogParser(cursor)
                async with aclosing(self._read_log(id, parser, follow=True, since=cursor)) as lines:
                    async for stream, text in lines:
                        await queue.put(LogLine(name, stream, text))
                cursor = parser.cursor
                if not await self._wait_running(id):
                    return
        except EngineError as error:
            await queue.put(error)

    async def _wait_running(self, id: str) -> bool:
        """Wait until the container runs; False once it is gone."""
        while True:
            state = await self._find_state(id)
            if state is None or state.running:
                return state is not None
            await asyncio.sleep(FOLLOW_POLL_SECONDS)

    async def _read_log(
        self,
        id: str,
        parser: libpod.LogParser,
        *,
        follow: bool = False,
        since: libpod.LogCursor | None = None,
        tail: int | None = None,
    ) -> AsyncGenerator[tuple[str, str], None]:
        parameters = {"stdout": "true", "stderr": "true", "timestamps": "true"}
        if follow:
            parameters["follow"] = "true"
        if since is not None:
            parameters["since"] = since.stamp
        if tail is not None:
            parameters["tail"] = str(tail)
        total = None if follow else ANSWER_SECONDS
        async with self._stream("GET", f"/containers/{id}/logs", parameters, total=total) as response:
            if response.status == HTTPStatus.NOT_FOUND:
                return
            if response.status != HTTPStatus.OK:
                raise self._engine_error("read a log", libpod.parse_error(await response.read()))
            async for data in response.content.iter_chunked(READ_SIZE):
                try:
                    lines = parser.feed(data)
                except ValueError as error:
                    raise EngineError("podman's log stream makes no sense") from error
                for line in lines:
                    yield line
        for line in parser.flush():
            yield line

    async def _read_last_lines(self, id: str) -> list[str]:
        read = self._read_log(id, libpod.LogParser(), tail=LAST_LINES)
        async with aclosing(read) as lines:
            return [text[:MAX_LAST_LINE] async for _, text in lines][-LAST_LINES:]
