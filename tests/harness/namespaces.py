"""Throw-away network namespaces: a host, an internet of TEST-NET addresses, and bare pods.

Nothing has a name in the file system and nothing is made in the namespace the tests run in: a namespace lives
as long as the descriptor that holds it, so the kernel removes all of it even after a SIGKILL.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self, TypeVar

CLONE_NEWNET: Final = 0x40000000
HOST_ADDRESS: Final = IPv4Address("192.0.2.2")
INTERNET_ADDRESS: Final = IPv4Address("192.0.2.1")
"""The internet's end of the host's uplink, and the host's gateway."""
FAR_ADDRESS: Final = IPv4Address("198.51.100.10")
"""Somebody on the internet, one hop behind the gateway."""
HOST_ADDRESS6: Final = IPv6Address("2001:db8:1::2")
INTERNET_ADDRESS6: Final = IPv6Address("2001:db8:1::1")
FAR_ADDRESS6: Final = IPv6Address("2001:db8:ffff::10")
UPLINK: Final = "wan0"
EXIT_DEADLINE: Final = 5.0
"""Seconds a spawned process has to end after SIGTERM."""
COMMAND_DEADLINE: Final = 30.0

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def missing_privilege() -> str | None:
    """Why namespaces cannot be made here; None when they can."""
    return None if os.geteuid() == 0 else "network namespaces need root: run `sudo make test`"


class Namespace:
    """A network namespace of its own with `lo` up, and the processes started in it."""

    def __init__(self, label: str = "netns") -> None:
        self.label = label
        self.fd = _run_in_thread(_unshare)
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self.ip("link set lo up")
        except BaseException:
            os.close(self.fd)
            raise

    @classmethod
    def of_process(cls, pid: int) -> Self:
        """The one a process is in, such as a container's: as long as this is open, it stays."""
        found = cls.__new__(cls)
        found.label = f"netns of {pid}"
        found.fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        found._processes = []
        return found

    @property
    def path(self) -> Path:
        """Valid while the namespace is open, for this process and others: `nsenter --net=PATH`."""
        return Path(f"/proc/{os.getpid()}/fd/{self.fd}")

    def call(self, function: Callable[[], T]) -> T:
        """Runs the function in a thread inside. Sockets it makes stay inside, whoever uses them later."""

        def inside() -> T:
            _set_namespace(self.fd)
            return function()

        return _run_in_thread(inside)

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        return self.call(lambda: socket.socket(family, kind, protocol))

    def exec(
        self,
        *command: str,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = COMMAND_DEADLINE,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside to its end; with `check`, a failing one raises with what it said."""
        done = subprocess.run(
            self._enter(command),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=env,
        )
        if check and done.returncode != 0:
            raise RuntimeError(
                f"{self.label}: {' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done

    def spawn(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts a command inside; it is stopped when the namespace closes, at the latest."""
        # nsenter executes the command in its own place: the process id is the command's.
        process = subprocess.Popen(self._enter(command), env=env, stdout=stdout, stderr=stderr, cwd=cwd)
        self._processes.append(process)
        return process

    def ip(self, *commands: str) -> None:
        """Runs `ip` commands inside, in one batch."""
        self.exec("ip", "-batch", "-", stdin="\n".join(commands) + "\n")

    def nft(self, text: str) -> None:
        self.exec("nft", "-f", "-", stdin=text)

    def close(self) -> None:
        """Stops what was started inside, last first, and lets the namespace go; twice is fine."""
        if self.fd < 0:
            return
        for process in reversed(self._processes):
            stop_process(process)
        os.close(self.fd)
        self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self, command: Sequence[str]) -> list[str]:
        # Not `ip netns exec`: it hides the cgroup mounts, which podman needs.
        return ["nsenter", f"--net={self.path}", *command]


class HostNetwork:
    """A host with an uplink to an internet: `host` 192.0.2.2 -- 192.0.2.1 `internet` (198.51.100.10).

    By IPv6, too: 2001:db8:1::2 -- 2001:db8:1::1 (2001:db8:ffff::10).
    """

    def __init__(self) -> None:
        with ExitStack() as stack:
            self.internet = stack.enter_context(Namespace("internet"))
            self.host = stack.enter_context(Namespace("host"))
            # Both ends are made where they belong; the tests' own namespace never sees them.
            self.host.exec(
                *("ip", "link", "add", UPLINK, "type", "veth"),
                *("peer", "name", UPLINK, "netns", str(self.internet.path)),
            )
            self.internet.ip(
                f"addr add {INTERNET_ADDRESS}/24 dev {UPLINK}",
                f"addr add {FAR_ADDRESS}/32 dev lo",
                f"addr add {INTERNET_ADDRESS6}/64 dev {UPLINK} nodad",
                f"addr add {FAR_ADDRESS6}/128 dev lo",
                f"link set {UPLINK} up",
            )
            self.host.ip(
                f"addr add {HOST_ADDRESS}/24 dev {UPLINK}",
                f"addr add {HOST_ADDRESS6}/64 dev {UPLINK} nodad",
                f"link set {UPLINK} up",
                f"route add default via {INTERNET_ADDRESS}",
                f"route add default via {INTERNET_ADDRESS6} dev {UPLINK}",
            )
            self._stack = stack.pop_all()

    @contextmanager
    def pod(self, label: str = "pod") -> Iterator[Namespace]:
        """A namespace as podman makes one for a pod with network `none`: `lo` and nothing else."""
        with Namespace(label) as pod:
            yield pod

    def add_internet_addresses(self, *addresses: IPv4Address | IPv6Address) -> None:
        """Makes the internet answer as these, too; the host reaches them by its default route."""
        self.internet.ip(*(f"addr add {address}/{address.max_prefixlen} dev lo" for address in addresses))

    def exec(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command on the host."""
        return self.host.exec(*command, check=check)

    def spawn(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts a command on the host."""
        return self.host.spawn(*command, env=env)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL after the deadline; its pipes are closed."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(EXIT_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def snapshot(where: Namespace | None = None) -> dict[str, str]:
    """What a network is made of, the tests' own without `where`; compare two to see that nothing changed."""
    commands = {
        "links": ("ip", "-o", "link"),
        "addresses": ("ip", "-o", "-4", "addr"),
        "rules": ("ip", "rule"),
        "routes": ("ip", "-4", "route", "show", "table", "all"),
        "tables": ("nft", "list", "tables"),
        "forwarding": ("cat", "/proc/sys/net/ipv4/ip_forward"),
    }
    return {name: _stable(_output(where, command)) for name, command in commands.items()}


def _output(where: Namespace | None, command: Sequence[str]) -> str:
    if where is not None:
        return where.exec(*command).stdout
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _stable(text: str) -> str:
    """Without a link's state, which the kernel settles some time after the change."""
    return re.sub(r"<[A-Z,_-]*>|\bstate [A-Z]+|\blinkdown\b", "", text)


def _unshare() -> int:
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(
            ctypes.get_errno(), f"cannot make a network namespace: {missing_privilege() or 'refused'}"
        )
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")


def _run_in_thread(function: Callable[[], T]) -> T:
    """In a thread that ends afterwards: a thread that changed namespace must do nothing else."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
