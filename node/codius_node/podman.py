"""The door to podman: pods, images and logs over the libpod socket."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from codius_node import libpod
from codius_node.errors import EngineError, ImageError, PodStartError
from codius_node.model import (
    Consumption,
    FoundPod,
    Isolation,
    Json,
    LogLine,
    ManifestHash,
    PodSpec,
    PullProgress,
)
from codius_node.rlimits import read_rlimits

logger = logging.getLogger(__name__)

T = TypeVar("T")

API: Final = "http://podman/v4.0.0/libpod"
"""podman 4 and 5 serve this version; the host's name means nothing on a Unix socket."""

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 120.0
"""For one answer: podman holds locks while it starts or removes others on a busy machine."""
PULL_SECONDS: Final = 900.0
"""For a whole image: a gigabyte over a slow line."""
PULL_SILENCE_SECONDS: Final = 300.0
"""podman says nothing while it copies one blob."""
STOP_SECONDS: Final = 2
"""What a container gets between SIGTERM and SIGKILL: enough to flush, and an expiry is no surprise."""
REMOVE_TRIES: Final = 5
REMOVE_PAUSE_SECONDS: Final = 0.1
"""Before the second try to remove a pod, and each time as much longer."""
FOLLOW_POLL_SECONDS: Final = 1.0
"""Between two looks whether a followed pod still exists: podman's stream does not always end with it."""
FOLLOW_LAST_SECONDS: Final = 0.5
"""What the streams of a pod that is gone get to hand over their last lines."""
MAX_LINES_WAITING: Final = 256
"""Log lines read ahead of a slow reader; podman then waits."""
READ_SIZE: Final = 64 * 1024
LAST_LINES: Final = 10
"""Lines of a failed container's log that its error quotes."""
MAX_LAST_LINE: Final = 300
"""Characters of each of them."""
MAX_PULL_LINE: Final = 64 * 1024
"""Bytes of one line of a pull's stream."""
KILLED: Final = 137
"""Exit code of a process ended by SIGKILL (128 + 9)."""

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


@dataclass(frozen=True, slots=True)
class Member:
    """A container of a pod; `name` is the manifest's."""

    id: str
    name: str


class Podman:
    """A podman service, and of what it runs only the pods of one owner.

    `files` is the directory of the pods' hosts and resolv.conf. `runtime` is the OCI runtime that the
    service must be set to; None takes what it has. Several owners may share a podman: their pods have
    different names and labels, and nothing without our label is ever touched.
    """

    def __init__(
        self,
        socket: Path,
        *,
        files: Path,
        resolvers: Sequence[str] = (),
        runtime: str | None = None,
        owner: str = "codius",
    ) -> None:
        self._socket = socket
        self._files = files
        self._resolvers = tuple(resolvers)
        self._runtime = runtime
        self._owner = owner
        self._rlimits = read_rlimits()
        self._isolation: Isolation | None = None
        self._session: aiohttp.ClientSession | None = None
        # What `create` made, so that the steps after it need not ask; a node that was restarted asks.
        self._created: dict[ManifestHash, tuple[Member, ...]] = {}

    async def open(self) -> None:
        """Ready to ask; podman itself may still be away. Pods of an earlier run get today's resolvers."""
        await asyncio.to_thread(self._prepare_files)
        # a socket-activated podman goes away when idle, and a kept connection would fail the next request
        connector = aiohttp.UnixConnector(path=str(self._socket), force_close=True, limit=0)
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def version(self) -> str:
        """Podman's version. EngineError when it is away, or set to another runtime than asked for."""
        version, runtime = await self._info()
        # podman 4 ignores the runtime a container asks for: the service's own is what counts
        if self._runtime is not None and runtime != Path(self._runtime).name:
            raise EngineError(
                f"podman runs containers with {runtime}, not with {self._runtime}",
                hint=f'Set runtime = "{self._runtime}" under [engine] in containers.conf, restart podman.',
            )
        return version

    async def isolation(self) -> Isolation:
        """That of the service's runtime, asked once. EngineError when podman is away."""
        if self._isolation is None:
            _, runtime = await self._info()
            self._isolation = libpod.classify_runtime(runtime)
        return self._isolation

    async def _info(self) -> tuple[str, str]:
        answer = await self._ask("GET", "/info")
        self._expect(answer, "say what it is", HTTPStatus.OK)
        return _parse(libpod.parse_info, answer)

    # ---- images ---------------------------------------------------------------------------------

    async def find_image(self, image: str) -> bool:
        """Whether the image is here already."""
        answer = await self._ask("GET", f"/images/{_segment(libpod.normalize_image(image))}/exists")
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
        timeout = aiohttp.ClientTimeout(
            total=PULL_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=PULL_SILENCE_SECONDS
        )
        failure = None
        async with self._stream(
            "POST", "/images/pull", {"reference": reference, "policy": "missing"}, timeout
        ) as response:
            if response.status != HTTPStatus.OK:
                raise self._image_error(image, libpod.parse_error(await response.read()))
            # a missing digest is 200 with an error line: only the whole stream tells
            async for line in _lines(response.content):
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
        answer = await self._ask("GET", f"/images/{_segment(name)}/json")
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        self._expect(answer, f"look at {name}", HTTPStatus.OK)
        return f"{name.rpartition(':')[0]}@{_parse(libpod.parse_digest, answer)}"

    def _image_error(self, image: str, reason: str) -> EngineError | ImageError:
        if libpod.mentions(reason, libpod.DISK_FULL):
            return _disk_full(f"pull {image}", reason)
        return ImageError(
            f"{image} could not be pulled: {reason}",
            hint="Check the image's name, its digest and that its registry serves it to everybody.",
        )

    # ---- a pod's life ---------------------------------------------------------------------------

    async def create(self, spec: PodSpec) -> None:
        """Pod and containers, nothing started. What a failure leaves behind, `remove` takes away."""
        if await self._exists(spec.hash):  # podman 4.3 would say so too, and lose a cgroup over it
            raise EngineError(f"pod {spec.hash} already exists", hint="It is being removed: try again.")
        files = await asyncio.to_thread(self._write_files, spec)
        payload = libpod.build_pod(spec, owner=self._owner, runtime=self._runtime)
        answer = await self._ask("POST", "/pods/create", payload=payload)
        self._expect(answer, f"create the pod {spec.hash}", HTTPStatus.CREATED)
        members = []
        for container in spec.containers:  # podman's lock on the pod lets in one at a time anyway
            payload = libpod.build_container(
                container,
                spec,
                owner=self._owner,
                files=files,
                rlimits=self._rlimits,
                runtime=self._runtime,
                stop_timeout=STOP_SECONDS,
            )
            answer = await self._ask("POST", "/containers/create", payload=payload)
            if answer.status == HTTPStatus.CREATED:
                members.append(Member(_parse(libpod.parse_created, answer), container.name))
                continue
            reason = libpod.redact(answer.error, container.environment.values())
            if libpod.mentions(reason, libpod.IMAGE_MISSING):
                raise ImageError(f"{container.image} is not here", hint="Upload the manifest again.")
            raise self._engine_error(f'create container "{container.name}" of {spec.hash}', reason)
        self._created[spec.hash] = tuple(members)

    def _prepare_files(self) -> None:
        self._files.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = libpod.render_resolv_conf(self._resolvers)
        try:
            for path in self._files.glob("*/resolv.conf"):
                if path.read_text(encoding="utf-8") != text:
                    path.write_text(text, encoding="utf-8")  # in its place: containers have this very file
        except OSError as error:
            raise EngineError(
                f"the pods' resolvers could not be written: {error.strerror} ({self._files})",
                hint="Check that the file system has space and can be written.",
            ) from error

    def _write_files(self, spec: PodSpec) -> Path:
        directory = self._files / spec.hash
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name, text in (
                ("hosts", libpod.render_hosts(spec)),
                ("resolv.conf", libpod.render_resolv_conf(self._resolvers)),
            ):
                path = directory / name
                path.write_text(text, encoding="utf-8")
                path.chmod(0o644)  # containers read it as users of their own, whatever our umask
        except OSError as error:
            raise EngineError(
                f"the files of pod {spec.hash} could not be written: {error.strerror} ({directory})",
                hint="Check that the file system has space and can be written.",
            ) from error
        return directory

    async def start_infra(self, hash: ManifestHash) -> None:
        """The container that holds the pod's namespaces; the network is wired before any other starts."""
        name = libpod.infra_name(self._owner, hash)
        answer = await self._ask("POST", f"/containers/{name}/start")
        # 304: it runs already
        self._expect(answer, f"start pod {hash}", HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)

    async def open_netns(self, hash: ManifestHash) -> int:
        """A file descriptor of the pod's network namespace; the caller closes it.

        The process is pinned before its namespace is opened, and podman must name it again afterwards: a
        process that ended in between, and another one with its number, are both noticed.
        """
        name = libpod.infra_name(self._owner, hash)
        pid = (await self._inspect(name)).pid
        if pid <= 0:
            raise EngineError(f"pod {hash} is not started")
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise EngineError(f"the infra container of pod {hash} has ended") from error
        try:
            netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise EngineError(f"the network namespace of pod {hash} is gone: {error.strerror}") from error
        finally:
            ended = _has_ended(pidfd)
        try:
            state = await self._inspect(name)
            if ended or _has_ended(pidfd) or not state.running or state.pid != pid:
                raise EngineError(f"the infra container of pod {hash} has ended")
            if _is_own_netns(netns):
                # whatever the reason: the host's own network must never be wired as a pod's
                raise EngineError(f"pod {hash} has no network namespace of its own")
        except BaseException:
            os.close(netns)
            raise
        finally:
            os.close(pidfd)
        return netns

    async def prepare_members(self, hash: ManifestHash) -> None:
        """Every container but infra as far as it goes without running its program. May be left out.

        This is most of a start's time, and no program is there yet to use a network that is half made.
        """
        await self._advance(hash, "init")

    async def start_members(self, hash: ManifestHash) -> None:
        """Every container but infra. PodStartError for one that cannot start.

        Several failures show a moment later: `check_members` finds them.
        """
        await self._advance(hash, "start")

    async def _advance(self, hash: ManifestHash, action: str) -> None:
        members = await self._members(hash)
        answers = await asyncio.gather(
            *(self._ask("POST", f"/containers/{member.id}/{action}") for member in members)
        )
        for member, answer in zip(members, answers, strict=True):
            # 304: it is as far as that already
            if answer.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
                continue
            reason = answer.error
            if libpod.mentions(reason, libpod.CONTAINER_FAULTS):
                raise PodStartError(
                    f'container "{member.name}" could not be started: {reason}',
                    hint="Check its command, its workdir and the user of its image.",
                )
            raise self._engine_error(f'start container "{member.name}" of {hash}', reason)

    async def check_members(self, hash: ManifestHash) -> None:
        """PodStartError when a container has exited, or was started again because it had."""
        members = await self._members(hash)
        states = await asyncio.gather(*(self._inspect(member.id) for member in members))
        for member, state in zip(members, states, strict=True):
            if state.running and state.restarts == 0:
                continue
            killed = state.oom_killed or state.exit_code == KILLED
            lines = await self._read_last_lines(member.id)
            said = "Its last lines:\n" + "\n".join(lines) if lines else "It wrote nothing."
            # podman starts again only what failed, and forgets with which code when it does
            code = "" if state.restarts and state.exit_code == 0 else f" with code {state.exit_code}"
            raise PodStartError(
                f'container "{member.name}" exited{code}'
                f"{' (killed, as when memory runs out)' if killed else ''}. {said}",
                hint="A pod's containers have to keep running; this one ended within its first moments.",
            )

    async def _members(self, hash: ManifestHash) -> tuple[Member, ...]:
        if (created := self._created.get(hash)) is not None:
            return created
        pod = await self._get_pod(hash)
        return tuple(Member(member.id, self._manifest_name(hash, member)) for member in pod.members)

    async def remove(self, hash: ManifestHash) -> None:
        """Stop the pod and leave nothing of it. May be called again, and for a pod that never was."""
        name = libpod.pod_name(self._owner, hash)
        self._created.pop(hash, None)
        for pod in await self._list(hash):
            states = await asyncio.gather(*(self._find_state(member.id) for member in pod.members))
            # a pod with one container down is "Degraded", and podman's own stop of a pod passes it over
            await asyncio.gather(
                *(
                    self._ask("POST", f"/containers/{member.id}/stop", {"timeout": str(STOP_SECONDS)})
                    for member in pod.members
                    if member.status == "running"
                )
            )
            await self._remove_pod(pod.id, name)
            for volume in (volume for state in states if state is not None for volume in state.volumes):
                await self._remove_volume(hash, volume)
        await self._remove_strays(hash)
        await asyncio.to_thread(shutil.rmtree, self._files / hash, ignore_errors=True)

    async def _remove_pod(self, id: str, name: str) -> None:
        """Podman fails when a container ends or restarts at this very moment: it is asked again then."""
        for attempt in range(1, REMOVE_TRIES + 1):
            answer = await self._ask("DELETE", f"/pods/{id}", {"force": "true", "timeout": "0"})
            if answer.status in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
                return
            if attempt < REMOVE_TRIES:
                await asyncio.sleep(REMOVE_PAUSE_SECONDS * attempt)
        raise self._engine_error(f"remove {name}", answer.error)

    async def _remove_volume(self, hash: ManifestHash, volume: str) -> None:
        """An anonymous one, which podman forgets when it had to be asked twice to remove the pod."""
        answer = await self._ask("DELETE", f"/volumes/{_segment(volume)}", {"force": "true"})
        if answer.status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND}:
            logger.warning("pod %s: its volume %s stays behind: %s", hash, volume, answer.error)

    async def _remove_strays(self, hash: ManifestHash) -> None:
        """Containers of ours whose pod is gone, should a removal have been cut short."""
        filters = libpod.build_filters(self._owner, hash)
        answer = await self._ask("GET", "/containers/json", {"all": "true", "filters": filters})
        self._expect(answer, f"list the containers of {hash}", HTTPStatus.OK)
        for stray in _parse(libpod.parse_ids, answer):
            logger.warning("pod %s: removing container %s, whose pod is gone", hash, stray)
            parameters = {"force": "true", "v": "true", "timeout": "0"}
            answer = await self._ask("DELETE", f"/containers/{stray}", parameters)
            self._expect(
                answer, "remove a container", HTTPStatus.OK, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND
            )

    async def find_pods(self) -> list[FoundPod]:
        """Every pod of this owner, in one request."""
        return [pod.found for pod in await self._list()]

    async def consumption(self, hash: ManifestHash) -> Consumption | None:
        """Of the pod's running containers together; None where podman cannot count all of them."""
        pods = await self._list(hash)
        running = [member.id for pod in pods for member in pod.members if member.status == "running"]
        counted = await asyncio.gather(*map(self._count, running))
        known = [each for each in counted if each is not None]
        if not known or len(known) < len(counted):
            return None
        return Consumption(sum(each.memory for each in known), sum(each.cpu for each in known))

    async def _count(self, id: str) -> Consumption | None:
        answer = await self._ask("GET", "/containers/stats", {"containers": id, "stream": "false"})
        # one that has just exited is an error, and so is a machine without the control groups for it
        return _parse(libpod.parse_stats, answer) if answer.status == HTTPStatus.OK else None

    # ---- logs -----------------------------------------------------------------------------------

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
        timeout = aiohttp.ClientTimeout(
            total=None if follow else ANSWER_SECONDS, sock_connect=CONNECT_SECONDS
        )
        async with self._stream("GET", f"/containers/{id}/logs", parameters, timeout) as response:
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

    # ---- asking ---------------------------------------------------------------------------------

    async def _list(self, hash: ManifestHash | None = None) -> list[libpod.PodListing]:
        answer = await self._ask("GET", "/pods/json", {"filters": libpod.build_filters(self._owner, hash)})
        self._expect(answer, "list its pods", HTTPStatus.OK)
        return _parse(partial(libpod.parse_pods, owner=self._owner), answer)

    async def _exists(self, hash: ManifestHash) -> bool:
        """Whether the pod's name is taken: one look, where a list looks at every pod there is."""
        answer = await self._ask("GET", f"/pods/{libpod.pod_name(self._owner, hash)}/exists")
        self._expect(answer, f"look for pod {hash}", HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND)
        return answer.status == HTTPStatus.NO_CONTENT

    async def _get_pod(self, hash: ManifestHash) -> libpod.PodListing:
        pods = await self._list(hash)
        if not pods:
            raise EngineError(f"pod {hash} is not there")
        return pods[0]

    async def _find_state(self, container: str) -> libpod.ContainerState | None:
        answer = await self._ask("GET", f"/containers/{container}/json")
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        self._expect(answer, f"describe container {container}", HTTPStatus.OK)
        return _parse(libpod.parse_state, answer)

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
        timeout: aiohttp.ClientTimeout | None = None,
        *,
        payload: Json = None,
        body: bytes | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response while it is read; whatever goes wrong with the connection is an EngineError."""
        if self._session is None:
            raise EngineError("podman is not open")
        url = URL(API + path, encoded=True).with_query(dict(parameters or {}))
        try:
            async with self._session.request(
                method, url, json=payload, data=body, timeout=timeout or self._session.timeout
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
            return _disk_full(what, reason)
        return EngineError(f"podman could not {what}: {reason}", hint="See podman's own log.")


def _disk_full(what: str, reason: str) -> EngineError:
    return EngineError(f"the host's disk is full: podman could not {what} ({reason})", hint=FULL_HINT)


def _parse(parse: Callable[[bytes], T], answer: Answer) -> T:
    try:
        return parse(answer.body)
    except ValueError as error:
        raise EngineError(f"podman's answer makes no sense: {error}", hint="Is it podman 4 or 5?") from error


def _segment(text: str) -> str:
    """A reference as part of a path: podman's router takes its slashes as they are."""
    return quote(text, safe="/:@")


def _is_own_netns(netns: int) -> bool:
    ours, theirs = Path("/proc/self/ns/net").stat(), os.fstat(netns)
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _has_ended(pidfd: int) -> bool:
    """A pidfd becomes readable when its process ends (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of a JSON stream; aiohttp's own iterator stops at its buffer's size."""
    buffer = bytearray()
    async for data in content.iter_chunked(READ_SIZE):
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
