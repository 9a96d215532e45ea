"""The door to podman: the life of a pod, from its containers to their removal, over the libpod socket."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from codius_node import libpod
from codius_node.errors import EngineError, ImageError, PodStartError
from codius_node.model import (
    Consumption,
    FoundPod,
    Isolation,
    ManifestHash,
    PodSpec,
)
from codius_node.podman_api import parse, segment
from codius_node.podman_images import PodmanImages
from codius_node.podman_logs import PodmanLogs
from codius_node.rlimits import read_rlimits

logger = logging.getLogger(__name__)

STOP_SECONDS: Final = 2
"""What a container gets between SIGTERM and SIGKILL: enough to flush, and an expiry is no surprise."""
REMOVE_TRIES: Final = 5
REMOVE_PAUSE_SECONDS: Final = 0.1
"""Before the second try to remove a pod, and each time as much longer."""
KILLED: Final = 137
"""Exit code of a process ended by SIGKILL (128 + 9)."""


@dataclass(frozen=True, slots=True)
class Member:
    """A container of a pod; `name` is the manifest's."""

    id: str
    name: str


class Podman(PodmanImages, PodmanLogs):
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
        super().__init__(socket, owner=owner)
        self._files = files
        self._resolvers = tuple(resolvers)
        self._runtime = runtime
        self._rlimits = read_rlimits()
        self._isolation: Isolation | None = None
        # What `create` made, so that the steps after it need not ask; a node that was restarted asks.
        self._created: dict[ManifestHash, tuple[Member, ...]] = {}

    async def open(self) -> None:
        """Ready to ask; podman itself may still be away. Pods of an earlier run get today's resolvers."""
        await asyncio.to_thread(self._prepare_files)
        await super().open()

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
        return parse(libpod.parse_info, answer)

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
                members.append(Member(parse(libpod.parse_created, answer), container.name))
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
        answer = await self._ask("DELETE", f"/volumes/{segment(volume)}", {"force": "true"})
        if answer.status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND}:
            logger.warning("pod %s: its volume %s stays behind: %s", hash, volume, answer.error)

    async def _remove_strays(self, hash: ManifestHash) -> None:
        """Containers of ours whose pod is gone, should a removal have been cut short."""
        filters = libpod.build_filters(self._owner, hash)
        answer = await self._ask("GET", "/containers/json", {"all": "true", "filters": filters})
        self._expect(answer, f"list the containers of {hash}", HTTPStatus.OK)
        for stray in parse(libpod.parse_ids, answer):
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
        return parse(libpod.parse_stats, answer) if answer.status == HTTPStatus.OK else None

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


def _is_own_netns(netns: int) -> bool:
    ours, theirs = Path("/proc/self/ns/net").stat(), os.fstat(netns)
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _has_ended(pidfd: int) -> bool:
    """A pidfd becomes readable when its process ends (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
