"""`codiusd run`: the whole host with one command, for a laptop, a demo or a small host."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from codius_node import systemd
from codius_node.config import DECLARED, Settings, load
from codius_node.daemon import on_hang_up, open_node, settle_memory, stop_signals
from codius_node.environment import Environment, render_env_file
from codius_node.errors import CodiusError, SettingsError
from codius_node.podman_service import PodmanService

logger = logging.getLogger(__name__)

BACKOFF_SECONDS: Final = 1.0
"""Before a child that died is started again; doubled each time up to the most."""
MOST_BACKOFF_SECONDS: Final = 30.0
READY_SECONDS: Final = 30.0
"""For a child to open its port."""
READY_POLL_SECONDS: Final = 0.02
STOP_SECONDS: Final = 15.0
"""For a child to drain before it is killed; above the front door's own drain deadline."""
FIRST_PASSED_SOCKET: Final = 3
"""SD_LISTEN_FDS_START: where passed sockets begin (sd_listen_fds(3))."""


class ChildError(CodiusError):
    """A part of the host did not start."""


def run(settings: Settings, environment: Environment) -> int:
    """The node here, the front door and the responder as children; until SIGTERM or Ctrl-C.

    SIGHUP has the front door and the responder take up their settings anew.
    """
    asyncio.run(_run(settings, environment))
    return 0


async def _run(settings: Settings, environment: Environment) -> None:
    stop = stop_signals()
    handed = HandedSettings()
    handed.keep(environment.read())
    children: list[Child] = []
    on_hang_up(stop, lambda: _reload(environment, handed, children))
    async with AsyncExitStack() as stack:
        if not settings.noop and not settings.engine_socket.exists():
            settings = await _start_podman(settings, stack)
        await stack.enter_async_context(open_node(settings))
        children.append(Child("proxy", settings.bind_ip, settings.port, handed))
        if settings.dns_port and settings.public_addresses:
            children.append(Child("dns", settings.dns_ip, settings.dns_port, handed))
        elif settings.dns_port:
            logger.warning("no DNS responder: it needs CODIUS_PUBLIC_ADDRESSES, and only you know them")
        for child in children:
            await child.start()
            stack.push_async_callback(child.aclose)
        settle_memory()
        systemd.notify("READY=1")
        logger.info("host ready: %s", settings.public_uri)
        await stop.wait()
        systemd.notify("STOPPING=1")
        logger.info("stopping; pods stay up")


def _reload(environment: Environment, handed: HandedSettings, children: Sequence[Child]) -> None:
    """Hand the children what is in the environment now; what they cannot use they refuse, and go on."""
    try:
        environ = environment.read()
        load(environ)
    except SettingsError as error:
        logger.error("the settings stay as they are: %s", error.message)
        return
    handed.keep(environ)
    logger.info("reloading the front door and the responder's records; the rest is read at the start")
    for child in children:
        child.reload()


class HandedSettings:
    """A file in memory that hands settings to a child: it can read it again, whatever rights it gave up."""

    def __init__(self) -> None:
        self.number = os.memfd_create("codius-settings")

    @property
    def path(self) -> str:
        """What the child finds it by."""
        return f"/proc/self/fd/{self.number}"

    def keep(self, environ: Mapping[str, str]) -> None:
        """Replace what is in it by the settings of `environ`."""
        known = {name for setting in DECLARED.values() for name in setting.names}
        text = render_env_file({name: environ[name] for name in sorted(known & environ.keys())})
        os.ftruncate(self.number, 0)
        os.pwrite(self.number, text.encode(), 0)


async def _start_podman(settings: Settings, stack: AsyncExitStack) -> Settings:
    service = PodmanService(settings.run / "podman", runtime=settings.oci_runtime or None)
    await service.start()
    stack.push_async_callback(service.stop)
    logger.info("no podman socket at %s: started a podman service", settings.engine_socket)
    return replace(settings, engine_socket=service.socket)


class Child:
    """`codiusd proxy` or `codiusd dns` as a process of its own, started again when it dies."""

    def __init__(
        self,
        command: str,
        address: IPv4Address | IPv6Address,
        port: int,
        handed: HandedSettings | None = None,
    ) -> None:
        """With `handed` its settings are there, and not in its environment."""
        self._command = command
        self._handed = handed
        self._address = _reachable(address)
        self._port = port
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """ChildError unless its port opens."""
        self._process = await self._spawn()
        ended = asyncio.create_task(self._process.wait(), name=f"{self._command}-start")
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not await self._answers():
                    if ended.done():
                        raise ChildError(
                            f"codiusd {self._command} ended with status {ended.result()}",
                            hint="Its own message is above.",
                        )
                    await asyncio.sleep(READY_POLL_SECONDS)
        except TimeoutError:
            await self.aclose()
            raise ChildError(
                f"codiusd {self._command} does not answer on {self._address} port {self._port}",
                hint="`codiusd doctor` looks at ports, podman and the kernel.",
            ) from None
        self._keeper = asyncio.create_task(self._keep(), name=f"{self._command}-keeper")

    def reload(self) -> None:
        """Have it read its settings again."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGHUP)

    async def aclose(self) -> None:
        """SIGTERM, time to drain, then SIGKILL."""
        if self._keeper is not None:
            self._keeper.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _keep(self) -> None:
        backoff = BACKOFF_SECONDS
        while self._process is not None:
            began = asyncio.get_running_loop().time()
            status = await self._process.wait()
            if asyncio.get_running_loop().time() - began > MOST_BACKOFF_SECONDS:
                backoff = BACKOFF_SECONDS
            logger.error("codiusd %s ended with status %d; again in %.0f s", self._command, status, backoff)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, MOST_BACKOFF_SECONDS)
            self._process = await self._spawn()

    async def _spawn(self) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "codius_node", self._command]
        passed = list(_passed_sockets()) if self._command == "proxy" else []
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        kept = list(passed)
        if self._handed is not None:
            command += ["--env-file", self._handed.path]
            kept.append(self._handed.number)
            for setting in DECLARED.values():
                for name in setting.names:
                    environment.pop(name, None)
        if passed:
            # LISTEN_PID has to name the process that takes the sockets: only itself knows its pid
            command = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *command]
        # killed with us, however we end: a front door of a host that is gone is no use to anybody
        command = ["setpriv", "--pdeathsig", "TERM", *command]
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            env=environment,
            pass_fds=kept,
            start_new_session=True,
        )

    async def _answers(self) -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(self._address, self._port)
            writer.close()
            return True
        return False


def _passed_sockets() -> range:
    """Listening sockets that whoever started us handed over, for the front door."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return range(0)
    return range(FIRST_PASSED_SOCKET, FIRST_PASSED_SOCKET + int(os.environ.get("LISTEN_FDS", "0")))


def _reachable(address: IPv4Address | IPv6Address) -> str:
    """Where a listener on this address can be reached from here."""
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return str(address)
