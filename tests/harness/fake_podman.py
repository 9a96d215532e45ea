"""A server on a Unix socket that answers like podman 4.3.1, for the part of libpod that we use.

    fake = FakePodman(tmp_path / "podman.sock")
    await fake.start()                                  # ... await fake.stop(): podman is away
    fake.images["docker.io/library/web@sha256:..."] = Program(stdout=("hello",))      # is here
    fake.registry["docker.io/library/db@sha256:..."] = Program(exits=1)               # can be pulled
    fake.fail_next("/pods/create", message="write /x: no space left on device")       # once
    fake.write("codius-<hash>-web", "another line"); fake.exit("codius-<hash>-web", code=2)
    fake.pods["codius-<hash>"].containers["codius-<hash>-web"].payload                # as it was asked for

Images are known by their full reference. The same contract tests run against this and the real one
(tests/harness/podman_contract.py), so that it does not drift. Infra containers report the pid of a process
in a network namespace of its own, or of this very process where that cannot be had.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from aiohttp import web

PREFIX: Final = "/v4.0.0/libpod"
LATE_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.002
SIGKILL_CODE: Final = 137

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Program:
    """What a container of an image does: lines it writes at its start, and how it ends at once, if so."""

    stdout: Sequence[str] = ()
    stderr: Sequence[str] = ()
    exits: int | None = None
    start_error: str | None = None
    """What the runtime says instead of starting it."""


@dataclass
class FakeContainer:
    """A container; `payload` is the body it was created with."""

    id: str
    name: str
    payload: dict[str, Any]
    program: Program
    status: str = "created"
    exit_code: int = 0
    restarts: int = 0
    log: list[tuple[int, bytes, str]] = field(default_factory=list)
    """Entries: stream number, text, and the second it was written, RFC 3339."""


@dataclass
class FakePod:
    """A pod; `containers` by name, infra among them."""

    id: str
    name: str
    payload: dict[str, Any]
    infra: str
    containers: dict[str, FakeContainer] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.payload.get("labels") or {})


@dataclass
class _Plan:
    path: str
    method: str | None
    status: int
    message: str


class FakePodman:
    """In-memory pods behind podman's paths. `requests` is what was asked, as `METHOD path`."""

    def __init__(self, socket: Path, *, runtime: str = "runc") -> None:
        self.socket = socket
        self.runtime = runtime
        self.images: dict[str, Program] = {}
        self.registry: dict[str, Program] = {}
        self.pods: dict[str, FakePod] = {}
        self.requests: list[str] = []
        self._digests: dict[str, str] = {}
        self._plans: list[_Plan] = []
        self._ids: Iterator[str] = (f"{number:064x}" for number in itertools.count(1))
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._holder: asyncio.subprocess.Process | None = None

    # ---- what tests do --------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen; pods of before are still there, as with a podman that was restarted."""
        if self._holder is None:
            self._holder = await _start_holder()
        app = web.Application(middlewares=[self._intercept])
        app.add_routes(
            [
                web.get(f"{PREFIX}/info", self._info),
                web.get(f"{PREFIX}/images/{{name:.+}}/exists", self._image_exists),
                web.post(f"{PREFIX}/images/import", self._import),
                web.get(f"{PREFIX}/images/{{name:.+}}/json", self._inspect_image),
                web.post(f"{PREFIX}/images/pull", self._pull),
                web.post(f"{PREFIX}/pods/create", self._create_pod),
                web.get(f"{PREFIX}/pods/json", self._list_pods),
                web.get(f"{PREFIX}/pods/{{pod}}/exists", self._pod_exists),
                web.delete(f"{PREFIX}/pods/{{pod}}", self._remove_pod),
                web.post(f"{PREFIX}/containers/create", self._create_container),
                web.get(f"{PREFIX}/containers/json", self._list_containers),
                web.post(f"{PREFIX}/containers/{{name}}/init", self._init_container),
                web.post(f"{PREFIX}/containers/{{name}}/start", self._start_container),
                web.post(f"{PREFIX}/containers/{{name}}/stop", self._stop_container),
                web.get(f"{PREFIX}/containers/{{name}}/json", self._inspect_container),
                web.get(f"{PREFIX}/containers/{{name}}/logs", self._logs),
                web.get(f"{PREFIX}/containers/stats", self._stats),
                web.delete(f"{PREFIX}/containers/{{name}}", self._remove_container),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()

    async def stop(self) -> None:
        """Be away: connections end, the socket is gone, pods stay."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.socket.unlink(missing_ok=True)
        if self._holder is not None:
            with contextlib.suppress(ProcessLookupError):
                self._holder.kill()
            await self._holder.wait()
            self._holder = None

    def fail_next(
        self,
        path: str,
        *,
        method: str | None = None,
        status: int = 500,
        message: str = "internal libpod error",
    ) -> None:
        """The next request whose path contains this one is answered with an error."""
        self._plans.append(_Plan(path, method, status, message))

    def write(self, name: str, text: str, *, stream: str = "stdout", newline: bool = True) -> None:
        """A container writes a line."""
        container = self._find_container(name)
        assert container is not None, name
        entry = text.encode() + (b"\n" if newline else b"")
        container.log.append((2 if stream == "stderr" else 1, entry, _second()))
        self._change()

    def exit(self, name: str, *, code: int = 0) -> None:
        """A container ends."""
        container = self._find_container(name)
        assert container is not None, name
        container.status, container.exit_code = "exited", code
        self._change()

    # ---- podman's answers -----------------------------------------------------------------------

    @web.middleware
    async def _intercept(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path.removeprefix(PREFIX)}")
        for plan in self._plans:
            if plan.path in request.path and plan.method in {None, request.method}:
                self._plans.remove(plan)
                return _error(plan.status, plan.message)
        return await handler(request)

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"host": {"ociRuntime": {"name": self.runtime}}, "version": {"Version": "4.3.1"}}
        )

    async def _image_exists(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name in self.images:
            return web.Response(status=204)
        return _error(404, f"failed to find image {name}: {name}: No such image", "image not known")

    async def _import(self, request: web.Request) -> web.Response:
        name = request.query["reference"]
        digest = f"sha256:{hashlib.sha256(await request.read()).hexdigest()}"
        self._digests[name] = digest
        self.images[f"{name.rpartition(':')[0]}@{digest}"] = Program()
        return web.json_response({"Id": digest})

    async def _inspect_image(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name in self._digests:
            return web.json_response({"Id": "00", "Digest": self._digests[name]})
        return _error(404, f"failed to find image {name}: {name}: No such image", "image not known")

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        name = request.query["reference"]
        response = web.StreamResponse()
        await response.prepare(request)

        async def say(line: dict[str, Any]) -> None:
            await response.write(json.dumps(line).encode() + b"\n")

        if name not in self.images:
            await say({"stream": f"Trying to pull {name}...\n"})
            if name not in self.registry:
                digest = name.partition("@")[2]
                where = name.partition("@")[0]
                await say(
                    {
                        "error": f"initializing source docker://{name}: reading manifest {digest}"
                        f" in {where}: manifest unknown: manifest unknown"
                    }
                )
                return response
            await say({"stream": "Getting image source signatures\n"})
            await say({"stream": "Copying blob sha256:00\n"})
            await say({"stream": "Storing signatures\n"})
            self.images[name] = self.registry[name]
        await say({"images": ["00"], "id": "00"})
        return response

    async def _create_pod(self, request: web.Request) -> web.Response:
        payload = await request.json()
        name = payload["name"]
        if name in self.pods:
            message = f'failed to make pod: adding pod to state: name "{name}" is in use: pod already exists'
            return _error(409, message, "pod already exists")
        id = next(self._ids)
        infra = payload.get("infra_name") or f"{id[:12]}-infra"
        pod = FakePod(id, name, payload, infra)
        labels = {"labels": dict(pod.labels)}
        pod.containers[infra] = FakeContainer(next(self._ids), infra, labels, Program())
        self.pods[name] = pod
        return web.json_response({"Id": id}, status=201)

    async def _create_container(self, request: web.Request) -> web.Response:
        payload = await request.json()
        pod = self._find_pod(payload.get("pod", ""))
        if pod is None:
            message = f"no pod with name or ID {payload.get('pod')} found: no such pod"
            return _error(500, message, "no such pod")
        if payload["image"] not in self.images:
            return _error(500, f"{payload['image']}: image not known", "image not known")
        name = payload["name"]
        if self._find_container(name) is not None:
            message = f'creating container storage: the container name "{name}" is already in use'
            return _error(500, message, "that name is already in use")
        program = self.images[payload["image"]]
        pod.containers[name] = FakeContainer(next(self._ids), name, payload, program)
        return web.json_response({"Id": pod.containers[name].id, "Warnings": []}, status=201)

    async def _list_pods(self, request: web.Request) -> web.Response:
        wanted = _labels(request)
        return web.json_response(
            [
                {
                    "Id": pod.id,
                    "Name": pod.name,
                    "InfraId": pod.containers[pod.infra].id,
                    "Labels": pod.labels,
                    "Status": "Running",
                    "Containers": [
                        {"Id": container.id, "Names": container.name, "Status": container.status}
                        for container in pod.containers.values()
                    ],
                }
                for pod in self.pods.values()
                if wanted <= pod.labels.items()
            ]
        )

    async def _list_containers(self, request: web.Request) -> web.Response:
        wanted = _labels(request)
        return web.json_response(
            [
                {"Id": container.id, "Names": [container.name], "State": container.status}
                for pod in self.pods.values()
                for container in pod.containers.values()
                if wanted <= (container.payload.get("labels") or {}).items()
            ]
        )

    async def _pod_exists(self, request: web.Request) -> web.Response:
        if self._find_pod(request.match_info["pod"]) is None:
            return _no_pod(request.match_info["pod"])
        return web.Response(status=204)

    async def _remove_pod(self, request: web.Request) -> web.Response:
        pod = self._find_pod(request.match_info["pod"])
        if pod is None:
            return _no_pod(request.match_info["pod"])
        running = any(container.status == "running" for container in pod.containers.values())
        if running and request.query.get("force") != "true":
            return _error(500, f"pod {pod.id} has containers that are running")
        del self.pods[pod.name]
        self._change()
        return web.json_response({"Err": None, "Id": pod.id})

    async def _init_container(self, request: web.Request) -> web.Response:
        container = self._find_container(request.match_info["name"])
        if container is None:
            return _no_container(request.match_info["name"])
        if container.status == "initialized":
            return web.Response(status=304)
        if container.status == "running":
            return _error(500, f"container {container.id} has already been created in runtime")
        if container.program.start_error is not None:
            return _error(500, container.program.start_error, "OCI runtime error")
        container.status = "initialized"
        self._change()
        return web.Response(status=204)

    async def _start_container(self, request: web.Request) -> web.Response:
        container = self._find_container(request.match_info["name"])
        if container is None:
            return _no_container(request.match_info["name"])
        if container.status == "running":
            return web.Response(status=304)
        program = container.program
        if program.start_error is not None:
            return _error(500, program.start_error, "OCI runtime error")
        container.status = "running"
        for stream, texts in ((1, program.stdout), (2, program.stderr)):
            container.log += [(stream, text.encode() + b"\n", _second()) for text in texts]
        if program.exits is not None:
            container.status, container.exit_code = "exited", program.exits
            if program.exits:
                container.restarts = int(container.payload.get("restart_tries") or 0)
        self._change()
        return web.Response(status=204)

    async def _stop_container(self, request: web.Request) -> web.Response:
        container = self._find_container(request.match_info["name"])
        if container is None:
            return _no_container(request.match_info["name"])
        if container.status != "running":
            return web.Response(status=304)
        container.status, container.exit_code = "exited", SIGKILL_CODE
        self._change()
        return web.Response(status=204)

    async def _remove_container(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        for pod in self.pods.values():
            for container in list(pod.containers.values()):
                if name in {container.id, container.name}:
                    del pod.containers[container.name]
                    self._change()
                    return web.json_response([{"Id": container.id, "Err": None}])
        return _no_container(name)

    async def _inspect_container(self, request: web.Request) -> web.Response:
        container = self._find_container(request.match_info["name"])
        if container is None:
            return _no_container(request.match_info["name"])
        running = container.status == "running"
        state = {
            "Status": container.status,
            "Running": running,
            "Pid": self.pid if running else 0,
            "ExitCode": container.exit_code,
            "OOMKilled": False,
        }
        return web.json_response(
            {
                "Id": container.id,
                "Name": container.name,
                "State": state,
                "RestartCount": container.restarts,
            }
        )

    async def _stats(self, request: web.Request) -> web.Response:
        assert request.query["stream"] == "false"
        container = self._find_container(request.query["containers"])
        if container is None:
            return _no_container(request.query["containers"])
        if container.status != "running":
            return web.json_response({"Error": None, "Stats": []})
        stats = {"ContainerID": container.id, "MemUsage": 802816, "CPUNano": 30688109}
        return web.json_response({"Error": None, "Stats": [stats]})

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        container = self._find_container(name)
        if container is None:
            return _no_container(name)
        query = request.query
        response = web.StreamResponse()
        await response.prepare(request)
        start = 0
        if query.get("tail"):
            start = max(0, len(container.log) - int(query["tail"]))
        async for stream, text, second in self._entries(container, start, query.get("follow") == "true"):
            if second < query.get("since", ""):
                continue
            body = second.encode() + b" " + text if query.get("timestamps") == "true" else text
            frame = bytes([stream, 0, 0, 0]) + len(body).to_bytes(4, "big") + body
            await response.write(frame)
        return response

    async def _entries(
        self, container: FakeContainer, start: int, follow: bool
    ) -> AsyncIterator[tuple[int, bytes, str]]:
        position = start
        while True:
            changed = self._changed
            for entry in container.log[position:]:
                yield entry
                position += 1
            # like podman, a followed log ends with its container, restarted or not
            gone = self._find_container(container.id) is None
            if not follow or container.status not in {"running", "created"} or gone:
                return
            await changed.wait()

    # ---- inside ---------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Of every container that runs."""
        return os.getpid() if self._holder is None else self._holder.pid

    def _change(self) -> None:
        """Wake every follower."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _find_pod(self, name: str) -> FakePod | None:
        return next((pod for pod in self.pods.values() if name in {pod.id, pod.name}), None)

    def _find_container(self, name: str) -> FakeContainer | None:
        for pod in self.pods.values():
            for container in pod.containers.values():
                if name in {container.id, container.name}:
                    return container
        return None


async def _start_holder() -> asyncio.subprocess.Process | None:
    """A process in a network namespace of its own; None where this user cannot make one."""
    holder = await asyncio.create_subprocess_exec(
        "unshare", "--user", "--net", "sleep", "infinity", stderr=asyncio.subprocess.DEVNULL
    )
    own = Path("/proc/self/ns/net").stat().st_ino
    deadline = time.monotonic() + LATE_SECONDS
    while holder.returncode is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{holder.pid}/ns/net").stat().st_ino != own:
                return holder
        await asyncio.sleep(POLL_SECONDS)
    if holder.returncode is None:
        holder.kill()
    await holder.wait()
    return None


def _second() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _labels(request: web.Request) -> set[tuple[str, str]]:
    """The pairs of the `label` filter."""
    filters = json.loads(request.query.get("filters", "{}"))
    return {(name, value) for name, _, value in (text.partition("=") for text in filters.get("label", []))}


def _error(status: int, message: str, cause: str | None = None) -> web.Response:
    return web.json_response(
        {"cause": cause or message, "message": message, "response": status}, status=status
    )


def _no_pod(name: str) -> web.Response:
    return _error(404, f"no pod with name or ID {name} found: no such pod", "no such pod")


def _no_container(name: str) -> web.Response:
    message = f'no container with name or ID "{name}" found: no such container'
    return _error(404, message, "no such container")
