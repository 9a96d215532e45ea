"""A podman service of our own, for machines where no podman socket is there."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from codius_node.errors import EngineError
from codius_node.rlimits import RLimit, read_rlimits

logger = logging.getLogger(__name__)

START_SECONDS: Final = 30.0
"""Until the socket answers: the first start of a storage sets it up."""
STOP_SECONDS: Final = 10.0
"""Between SIGTERM and SIGKILL; the service ends what it is asked at the moment."""
POLL_SECONDS: Final = 0.02
LAST_LOG: Final = 2000
"""Bytes of the service's log that an error quotes."""
CGROUP_UNIFIED: Final = Path("/sys/fs/cgroup/cgroup.controllers")
"""There where cgroups are v2 alone; crun and krun want nothing else."""
SYSTEMD: Final = Path("/run/systemd/system")
"""There where systemd is the service manager (sd_booted(3))."""
INSTALL_HINT: Final = "apt install podman crun runc catatonit"
HELPERS: Final = tuple(
    Path(directory, "catatonit")
    for directory in ("/usr/libexec/podman", "/usr/lib/podman", "/usr/bin", "/usr/local/bin")
)
"""Where podman looks for the program of a pod's infra container."""


def choose_runtime(wanted: str | None = None) -> str:
    """The OCI runtime that fits this machine's cgroups, or the wanted one. EngineError when it is missing."""
    fitting = ["crun", "runc"] if CGROUP_UNIFIED.exists() else ["runc"]
    candidates = [wanted] if wanted else fitting
    for name in candidates:
        if shutil.which(name) is not None:
            return name
    raise EngineError(
        f"no OCI runtime for containers is installed (looked for {', '.join(candidates)})",
        hint=f"apt install {candidates[0]}",
    )


def render_containers_conf(
    *, runtime: str, cgroup_manager: str, rlimits: Sequence[RLimit], tmp: Path | None
) -> str:
    """The service's containers.conf."""
    ulimits = ", ".join(f'"{limit.name.lower()}={limit.value}:{limit.value}"' for limit in rlimits)
    lines = [
        "# Written anew at each start of the podman service of Codius Host.",
        "[containers]",
        # the infra containers take theirs from here, and may not ask for more than the service has
        f"default_ulimits = [{ulimits}]",
        "http_proxy = false",
        "[engine]",
        f'cgroup_manager = "{cgroup_manager}"',
        f'runtime = "{runtime}"',
        # with "none" the service cannot tell when a followed log ends
        'events_logger = "file"',
    ]
    if tmp is not None:
        lines.append(f'tmp_dir = "{tmp}"')
    return "\n".join(lines) + "\n"


class PodmanService:
    """A `podman system service` as a child process; its containers outlive it.

    `run` is a directory of its own for the socket and the configuration. `storage` keeps images and
    containers apart from the machine's other podmans; None shares /var/lib/containers, so that the
    operator's `podman ps` shows the pods. `netns` is the path of a network namespace to run in.
    """

    def __init__(
        self,
        run: Path,
        *,
        storage: Path | None = None,
        storage_driver: str | None = None,
        runtime: str | None = None,
        netns: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._run = run
        self._storage = storage
        self._storage_driver = storage_driver
        self._wanted_runtime = runtime
        self._netns = netns
        self._environment = dict(environment or {})
        self._process: asyncio.subprocess.Process | None = None

    @property
    def socket(self) -> Path:
        """Where the service listens."""
        return self._run / "podman.sock"

    @property
    def log(self) -> Path:
        """What the service says."""
        return self._run / "podman.log"

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which any podman command means this service's containers."""
        own = {"CONTAINERS_CONF": str(self._run / "containers.conf")}
        return {**os.environ, **own, **self._environment}

    def command(self, *arguments: str) -> list[str]:
        """A podman command on this service's storage, in its network namespace."""
        command = [] if self._netns is None else ["nsenter", f"--net={self._netns}"]
        command.append("podman")
        if self._storage is not None:
            command += ["--root", str(self._storage), "--runroot", str(self._run / "runroot")]
            # one database cannot serve two: this is also what keeps our events and exit codes apart
            command += ["--tmpdir", str(self._run / "libpod")]
        if self._storage_driver is not None:
            command += ["--storage-driver", self._storage_driver]
        return [*command, *arguments]

    async def start(self) -> Path:
        """Start the service and wait until it answers; the socket's path. EngineError with what to do."""
        if shutil.which("podman") is None:
            raise EngineError("podman is not installed", hint=INSTALL_HINT)
        if os.geteuid() != 0:
            raise EngineError("a podman service for pods needs root", hint="Start it as root, or with sudo.")
        if not any(helper.exists() for helper in HELPERS):
            raise EngineError("catatonit is not installed; pods need it", hint=INSTALL_HINT)
        if await _answers(self.socket):
            logger.info("podman answers at %s already", self.socket)
            return self.socket
        runtime = choose_runtime(self._wanted_runtime)
        await asyncio.to_thread(self._prepare, runtime)
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command("system", "service", "--time=0", f"unix://{self.socket}"),
                env=self.environment,
                cwd=self._run,  # conmon leaves an empty file named "oom" where it stands
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the daemon, which stops this in its turn
            )
        try:
            await self._wait_ready(self._process)
        except BaseException:
            await self.stop()
            raise
        logger.info("podman service started with %s at %s", runtime, self.socket)
        return self.socket

    async def stop(self) -> None:
        """End the service; containers go on running."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            logger.warning("podman service did not end within %s s, killing it", STOP_SECONDS)
            process.kill()
            await process.wait()
        self.socket.unlink(missing_ok=True)

    def _prepare(self, runtime: str) -> None:
        try:
            self._run.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.socket.unlink(missing_ok=True)
            text = render_containers_conf(
                runtime=runtime,
                cgroup_manager="systemd" if SYSTEMD.is_dir() else "cgroupfs",
                rlimits=read_rlimits(),
                tmp=None if self._storage is None else self._run / "libpod",
            )
            (self._run / "containers.conf").write_text(text, encoding="utf-8")
        except OSError as error:
            raise EngineError(
                f"the podman service cannot be set up in {self._run}: {error.strerror}",
                hint="Choose a directory root can write with CODIUS_RUN.",
            ) from error

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        ready = asyncio.create_task(_wait_answer(self.socket), name="podman-ready")
        ended = asyncio.create_task(process.wait(), name="podman-ended")
        try:
            await asyncio.wait({ready, ended}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                return
            said = (
                (await asyncio.to_thread(self.log.read_bytes))[-LAST_LOG:].decode("utf-8", "replace").strip()
            )
            how = (
                f"ended with code {ended.result()}"
                if ended.done()
                else f"did not answer in {START_SECONDS} s"
            )
            raise EngineError(
                f"the podman service {how}{': ' + said if said else ''}",
                hint="Try the same by hand: " + " ".join(self.command("info")),
            )
        finally:
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)


async def _wait_answer(socket: Path) -> None:
    while True:
        if await _answers(socket):
            return
        await asyncio.sleep(POLL_SECONDS)


async def _answers(socket: Path) -> bool:
    """Whether an HTTP server at the socket answers podman's ping."""
    try:
        async with asyncio.timeout(POLL_SECONDS * 50):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(b"GET /_ping HTTP/1.0\r\n\r\n")
                await writer.drain()
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
