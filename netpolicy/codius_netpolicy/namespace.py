"""Entering network namespaces by thread, and the settings (sysctls) of the one a thread is in."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from codius_netpolicy.policy import PolicyError

CLONE_NEWNET: Final = 0x40000000
"""linux/sched.h; `os.setns` came with Python 3.12 only."""
OWN_NETNS: Final = Path("/proc/thread-self/ns/net")
"""Not /proc/self: that is the namespace of the main thread."""
SYSCTLS: Final = Path("/proc/sys/net")
"""Shows the namespace of the thread that opens a file below it."""

T = TypeVar("T")


def enter(netns_fd: int) -> None:
    """Moves the calling thread, and no other, into the namespace for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(netns_fd, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise PolicyError(f"cannot enter the network namespace: {os.strerror(error)}", "run as root")


def enter_path(path: Path) -> None:
    try:
        netns_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PolicyError(f"cannot open the network namespace {path}: {error.strerror}") from error
    try:
        enter(netns_fd)
    finally:
        os.close(netns_fd)


def is_own(netns_fd: int) -> bool:
    """Whether it is the namespace the calling thread is in."""
    return os.path.samestat(os.fstat(netns_fd), OWN_NETNS.stat())


def call_inside(netns_fd: int, function: Callable[[], T]) -> T:
    """Runs the function in a thread of its own inside the namespace.

    Coming back from another namespace could fail; a thread that ends cannot be left in the wrong place.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            enter(netns_fd)
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="codius-inside-pod")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def write_sysctls(values: Mapping[str, str]) -> None:
    """Keys are paths below net/, e.g. `ipv4/ip_forward`."""
    for name, value in values.items():
        try:
            (SYSCTLS / name).write_text(value)
        except FileNotFoundError:
            if name.startswith("ipv6/"):
                continue  # a kernel without IPv6 has nothing to switch off
            raise PolicyError(f"the kernel has no setting net/{name}") from None
        except OSError as error:
            raise PolicyError(f"cannot set net/{name} to {value}: {error.strerror}", "run as root") from error


def read_sysctl(name: str) -> str | None:
    """None when the kernel has no such setting."""
    try:
        return (SYSCTLS / name).read_text().strip()
    except OSError:
        return None
