"""Podman's API on its Unix socket: requests, answers, and what goes wrong with either as errors of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from codius_node import libpod
from codius_node.errors import EngineError
from codius_node.model import Json, ManifestHash

T = TypeVar("T")

API: Final = "http://podman/v4.0.0/libpod"
"""podman 4 and 5 serve this version; the host's name means nothing on a Unix socket."""

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 120.0
"""For one answer: podman holds locks while it starts or removes others on a busy machine."""
READ_SIZE: Final = 64 * 1024

AWAY_HINT: Final = "Is podman's API running? systemctl start podman.socket"
FULL_HINT: Final = "Free space on the file system of podman's storage: podman system prune."


@dataclass(frozen=True, slots=True)
class Answer:
    """podman's answer, read to its end."""

    status: int
    body: bytes

    @property
    def error(self) -> str:
        return libpod.parse_error(self.body)


class PodmanApi:
    """A podman service that is asked about the pods of one owner: names and labels say whose they are."""

    def __init__(self, socket: Path, *, owner: str) -> None:
        self._socket = socket
        self._owner = owner
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Ready to ask; podman itself may still be away."""
        # a socket-activated podman goes away when idle, and a kept connection would fail the next request
        connector = aiohttp.UnixConnector(path=str(self._socket), force_close=True, limit=0)
        self._session = aiohttp.ClientSession(connector=connector)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _list(self, hash: ManifestHash | None = None) -> list[libpod.PodListing]:
        answer = await self._ask("GET", "/pods/json", {"filters": libpod.build_filters(self._owner, hash)})
        self._expect(answer, "list its pods", HTTPStatus.OK)
        return parse(partial(libpod.parse_pods, owner=self._owner), answer)

    async def _find_state(self, container: str) -> libpod.ContainerState | None:
        answer = await self._ask("GET", f"/containers/{container}/json")
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        self._expect(answer, f"describe container {container}", HTTPStatus.OK)
        return parse(libpod.parse_state, answer)

    async def _inspect(self, container: str) -> libpod.ContainerState:
        state = await self._find_state(container)
        if state is None:
            raise EngineError(f"container {container} is not there")
        return state

    def _manifest_name(self, hash: ManifestHash, member: libpod.FoundContainer) -> str:
        return member.name.removeprefix(libpod.member_name(self._owner, hash, ""))

    async def _ask(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        *,
        payload: Json = None,
        body: bytes | None = None,
    ) -> Answer:
        async with self._stream(method, path, parameters, payload=payload, body=body) as response:
            return Answer(response.status, await response.read())

    @asynccontextmanager
    async def _stream(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        *,
        payload: Json = None,
        body: bytes | None = None,
        total: float | None = ANSWER_SECONDS,
        silence: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response while it is read; whatever goes wrong with the connection is an EngineError.

        It may take so many seconds in all, and so many without a byte.
        """
        if self._session is None:
            raise EngineError("podman is not open")
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=CONNECT_SECONDS, sock_read=silence)
        url = URL(API + path, encoded=True).with_query(dict(parameters or {}))
        try:
            async with self._session.request(
                method, url, json=payload, data=body, timeout=timeout
            ) as response:
                yield response
        except TimeoutError as error:
            raise EngineError(f"podman did not answer in time ({method} {path})", hint=AWAY_HINT) from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(f"podman does not answer at {self._socket}", hint=AWAY_HINT) from error

    def _expect(self, answer: Answer, what: str, *statuses: HTTPStatus) -> None:
        if answer.status not in statuses:
            raise self._engine_error(what, answer.error)

    def _engine_error(self, what: str, reason: str) -> EngineError:
        if libpod.mentions(reason, libpod.DISK_FULL):
            return disk_full(what, reason)
        return EngineError(f"podman could not {what}: {reason}", hint="See podman's own log.")


def disk_full(what: str, reason: str) -> EngineError:
    return EngineError(f"the host's disk is full: podman could not {what} ({reason})", hint=FULL_HINT)


def parse(read: Callable[[bytes], T], answer: Answer) -> T:
    try:
        return read(answer.body)
    except ValueError as error:
        raise EngineError(f"podman's answer makes no sense: {error}", hint="Is it podman 4 or 5?") from error


def segment(text: str) -> str:
    """A reference as part of a path: podman's router takes its slashes as they are."""
    return quote(text, safe="/:@")
