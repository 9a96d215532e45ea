"""A podman of the tests' own, with images made on the spot and a real registry; nothing of it stays.

    async with Registry() as registry, PrivatePodman(insecure=[registry.address]) as podman:
        image = await podman.make_image("hello", command=["/bin/sh", "-c", "echo hi; sleep 99"])
        remote = await registry.push(podman, image)     # 127.0.0.1:41234/hello@sha256:...
        Podman(podman.socket, files=...)

Needs root. No pytest in here: demo and benches use it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp

from codius_node.podman_service import PodmanService

BUSYBOX: Final = Path("/bin/busybox")
"""Debian's busybox-static: one file, and a whole userland."""
APPLETS: Final = (
    *("awk", "cat", "chmod", "chown", "cut", "date", "dd", "df", "echo", "env", "false", "find", "grep"),
    *("head", "hostname", "httpd", "id", "kill", "ls", "mkdir", "mount", "nc", "nproc", "ping", "printf"),
    *("ps", "pwd", "rm", "sed", "seq", "sh", "sleep", "sort", "su", "tail", "tee", "touch", "tr", "true"),
    *("umount", "uniq", "wc", "wget", "yes"),
)
"""What images made here call by name; busybox has more."""
CLI_SECONDS: Final = 60.0
"""For one podman command."""
END_SECONDS: Final = 5.0
"""For processes to end after SIGKILL, and for a registry to start or stop."""
POLL_SECONDS: Final = 0.02
CGROUPS: Final = Path("/sys/fs/cgroup")


def find_missing() -> list[str]:
    """What keeps this machine from running the harness; empty when nothing does."""
    missing = [name for name in ("podman", "conmon", "catatonit", "nsenter") if shutil.which(name) is None]
    if not BUSYBOX.exists():
        missing.append("busybox-static")
    if os.geteuid() != 0:
        missing.append("root")
    return missing


class PrivatePodman:
    """A podman service with storage, configuration and cgroups that are gone when it stops."""

    def __init__(
        self, *, netns: Path | None = None, insecure: Sequence[str] = (), runtime: str | None = None
    ) -> None:
        # short on purpose: the path of a Unix socket has 107 characters
        self.directory = Path(tempfile.mkdtemp(prefix="codius-podman-"))
        registries = self.directory / "registries.conf"
        registries.write_text(
            "unqualified-search-registries = []\n"
            + "".join(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n' for host in insecure)
        )
        self.service = PodmanService(
            self.directory / "run",
            storage=self.directory / "storage",
            storage_driver=find_storage_driver(self.directory),
            runtime=runtime,
            netns=netns,
            environment={"CONTAINERS_REGISTRIES_CONF": str(registries)},
        )

    @property
    def socket(self) -> Path:
        """Of the API; what `Podman` is given."""
        return self.service.socket

    async def start(self) -> Self:
        try:
            await self.service.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def stop(self) -> None:
        """Remove containers, mounts, cgroups, processes and files; may be called twice."""
        if not self.directory.exists():
            return
        if self.socket.exists():
            with contextlib.suppress(RuntimeError, TimeoutError):
                await self.cli("pod", "rm", "--all", "--force", "--time=0")
                await self.cli("rm", "--all", "--force", "--time=0")
        await self.service.stop()
        await asyncio.to_thread(self._clean)

    def _clean(self) -> None:
        end_processes(str(self.directory))
        for mount in find_mounts(self.directory):
            subprocess.run(["umount", "--lazy", str(mount)], check=False, capture_output=True)
        sweep_cgroups(self.service.socket.parent)
        shutil.rmtree(self.directory, ignore_errors=True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def cli(self, *arguments: str) -> str:
        """What a podman command on this storage prints. RuntimeError when it fails."""
        process = await asyncio.create_subprocess_exec(
            *self.service.command(*arguments),
            env=self.service.environment,
            cwd=self.directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(CLI_SECONDS):
                out, err = await process.communicate()
        except BaseException:
            if process.returncode is None:
                process.kill()
                await process.wait()
            raise
        if process.returncode != 0:
            raise RuntimeError(f"podman {' '.join(arguments)}: {err.decode(errors='replace').strip()}")
        return out.decode()

    async def request(
        self, method: str, path: str, *, data: bytes | None = None, **parameters: str | list[str]
    ) -> bytes:
        """An answer of the libpod API. RuntimeError when it refuses."""
        connector = aiohttp.UnixConnector(path=str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(
                method,
                f"http://podman/v4.0.0/libpod{path}",
                params=parameters,
                data=None if data is None else io.BytesIO(data),
                headers={"Content-Type": "application/x-tar"} if data is not None else None,
            ) as response,
        ):
            body = await response.read()
            if response.status >= 300:
                raise RuntimeError(f"{method} {path}: {response.status} {body.decode(errors='replace')}")
            return body

    async def make_image(
        self,
        name: str,
        *,
        command: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
        changes: Sequence[str] = (),
    ) -> str:
        """An image of busybox and these files, `localhost/<name>@sha256:...`.

        `changes` are lines of a Dockerfile, such as `USER 1000` or `VOLUME /data`.
        """
        lines = [f"CMD {json.dumps(list(command))}"] if command else []
        reference = f"localhost/{name}:latest"
        await self.request(
            "POST",
            "/images/import",
            data=await asyncio.to_thread(_make_tree, files or {}),
            reference=reference,
            changes=[*lines, *changes],
        )
        image = json.loads(await self.request("GET", f"/images/{reference}/json"))
        return f"localhost/{name}@{image['Digest']}"


class Registry:
    """Debian's docker-registry on a loopback port, empty at first."""

    def __init__(self, *, netns: Path | None = None) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="codius-registry-"))
        self._netns = netns
        self._process: asyncio.subprocess.Process | None = None
        self._port = _find_free_port()

    @property
    def address(self) -> str:
        """`127.0.0.1:41234`, as it stands in references."""
        return f"127.0.0.1:{self._port}"

    async def start(self) -> Self:
        config = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self._directory / "data")}},
            "http": {"addr": self.address},
        }
        path = self._directory / "config.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        command = ["docker-registry", "serve", str(path)]
        if self._netns is not None:
            command = ["nsenter", f"--net={self._netns}", *command]
        with (self._directory / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._wait_ready()
        except (TimeoutError, RuntimeError) as error:
            said = (self._directory / "log").read_text(errors="replace")[-500:]
            await self.stop()
            raise RuntimeError(f"docker-registry did not start: {said}") from error
        return self

    async def _wait_ready(self) -> None:
        while True:
            # asked in its own network namespace, where a connection from here would not arrive
            if self._netns is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    writer.close()
                    await writer.wait_closed()
                    return
            elif await asyncio.to_thread(_listens, self._netns, self._port):
                return
            if self._process is None or self._process.returncode is not None:
                raise RuntimeError("it ended")
            await asyncio.sleep(POLL_SECONDS)

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(END_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await asyncio.to_thread(shutil.rmtree, self._directory, True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def push(self, podman: PrivatePodman, image: str, *, keep: bool = False) -> str:
        """The image's reference by digest in this registry; the local copy goes unless `keep`."""
        name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
        digest = self._directory / f"{name}.digest"
        source = json.loads(await podman.request("GET", f"/images/{image}/json"))["Id"]
        target = f"docker://{self.address}/{name}:latest"
        await podman.cli("push", "--tls-verify=false", f"--digestfile={digest}", source, target)
        if not keep:
            await podman.request("DELETE", f"/images/{source}", force="true")
        return f"{self.address}/{name}@{digest.read_text().strip()}"


# ---- the parts -----------------------------------------------------------------------------------


def find_storage_driver(directory: Path) -> str:
    """`overlay` where this file system can hold one, else `vfs`."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        base = Path(name)
        for part in ("lower", "upper", "work", "merged"):
            (base / part).mkdir()
        options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
        mounted = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(base / "merged")],
            check=False,
            capture_output=True,
        )
        if mounted.returncode != 0:
            return "vfs"
        subprocess.run(["umount", str(base / "merged")], check=True)
        return "overlay"


def find_mounts(directory: Path) -> list[Path]:
    """Mount points below the directory, innermost first."""
    points = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if directory in point.parents), reverse=True)


def find_processes(mark: str) -> list[int]:
    """Processes with the mark in their command line: a directory's own conmons name it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            # the program itself must be one that podman starts: a shell may have the path in an argument
            if mark.encode() in command and (entry / "comm").read_text().strip() in {"conmon", "podman"}:
                found.append(int(entry.name))
    return found


def end_processes(mark: str) -> None:
    """Kill what is left of a service of ours: conmons first by number, each with its container."""
    for pid in find_processes(mark):
        children = _find_children(pid)
        for each in (*children, pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


def _find_children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def sweep_cgroups(run: Path) -> None:
    """Remove the cgroups podman 4.3 leaves on cgroup v1: empty ones, in hierarchies it sets no limit in.

    Which pods were ours, the removed ones too, is in podman's own record of events.
    """
    with contextlib.suppress(FileNotFoundError):
        pods = set()
        for line in (run / "libpod" / "events" / "events.log").read_text().splitlines():
            event = json.loads(line)
            if event.get("Type") == "pod":
                pods.add(event["ID"])
        for parent in CGROUPS.glob("*/libpod_parent"):
            with contextlib.suppress(OSError):  # of containers without a pod, as `podman run` makes them
                (parent / "conmon").rmdir()
            for pod in pods:
                for cgroup in (*sorted((parent / pod).glob("*/"), reverse=True), parent / pod):
                    with contextlib.suppress(OSError):  # not there, or in use after all
                        cgroup.rmdir()


def _make_tree(files: Mapping[str, bytes]) -> bytes:
    """A tar archive: busybox, links for its applets, the usual directories and these files (mode 755)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("bin", "etc", "tmp", "var", "srv", "proc", "sys", "dev"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(directory)
        known = {"etc/passwd": b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"}
        for name, content in {"bin/busybox": BUSYBOX.read_bytes(), **known, **files}.items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
        for name in APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return buffer.getvalue()


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(netns: Path, port: int) -> bool:
    """Whether something listens on the port in that network namespace."""
    tables = subprocess.run(
        ["nsenter", f"--net={netns}", "cat", "/proc/net/tcp", "/proc/net/tcp6"],
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    return any(f":{port:04X} " in line and " 0A " in line for line in tables.splitlines())
