"""Podman and what it needs to run pods: a runtime, cgroups, an init."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Final

from codius_node.doctor.findings import Finding, bad, ok, warn
from codius_node.doctor.machine import Machine, Podman
from codius_node.model import Json

PODMAN_SECONDS: Final = 10.0
"""For podman to tell about itself; it answers in tens of milliseconds."""
MAX_ANSWER: Final = 1024 * 1024
"""Bytes of podman's answer; it has some 5 KB."""
NEEDED_CONTROLLERS: Final = ("cpu", "memory", "pids")
"""What the limits of a pod are made of."""
CATATONIT: Final = ("/usr/libexec/podman/catatonit", "/usr/libexec/catatonit/catatonit")
"""Where distributions put it besides PATH."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("podman", timeout=PODMAN_SECONDS)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PODMAN_SECONDS)
        self.sock.connect(self._path)


def ask_podman(path: Path) -> Podman:
    """What podman's service says of itself; OSError, HTTPException or ValueError when it does not."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/v4.0.0/libpod/info")
        response = connection.getresponse()
        body = response.read(MAX_ANSWER)
        if response.status != 200:
            raise ValueError(f"podman answered {response.status}")
    finally:
        connection.close()
    return parse_podman(json.loads(body))


def parse_podman(document: Json) -> Podman:
    """From the answer of libpod's /info; ValueError when it is another."""
    match document:
        case {
            "version": {"Version": str(version)},
            "host": {"ociRuntime": {"name": str(runtime)}},
            "store": {"graphRoot": str(graph_root)},
        }:
            return Podman(version, runtime, Path(graph_root))
        case _:
            raise ValueError("that is no answer of podman's")


def check_podman(machine: Machine) -> Finding:
    path = machine.settings.engine_socket
    if machine.podman is not None:
        return ok("podman", f"{machine.podman.version} at {path}")
    if shutil.which("podman") is None:
        return bad("podman", "not installed", "apt install podman")
    if not path.exists():
        return warn(
            "podman",
            f"installed, no service at {path}: `codiusd run` starts one, `codiusd node` needs it",
            "systemctl enable --now podman.socket",
        )
    try:
        ask_podman(path)
    except PermissionError:
        return bad("podman", f"{path} is not open to user {machine.euid}", "sudo codiusd doctor")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return bad("podman", f"no good answer at {path}: {error}", "systemctl restart podman.socket")
    return ok("podman", f"answers at {path}")


def check_runtime(machine: Machine) -> Finding:
    runtime = machine.runtime
    if shutil.which(runtime) is None:
        return bad("oci runtime", f"{runtime} is not installed", f"apt install {runtime}")
    if runtime == "crun" and not machine.unified_cgroups:
        return bad(
            "oci runtime",
            "crun does not work with the cgroups of this machine (version 1)",
            'apt install runc, then put [engine] runtime="runc" into /etc/containers/containers.conf',
        )
    return ok("oci runtime", f"{runtime} at {shutil.which(runtime)}")


def check_cgroups(machine: Machine) -> Finding:
    if machine.unified_cgroups:
        present = (machine.cgroup / "cgroup.controllers").read_text().split()
        return judge_cgroups("version 2", present)
    try:
        table = (machine.proc / "cgroups").read_text()
    except FileNotFoundError:
        return judge_cgroups("no version", ())
    return judge_cgroups("version 1, so that runc is the runtime", parse_cgroups(table))


def parse_cgroups(table: str) -> list[str]:
    """The enabled controllers of /proc/cgroups (cgroups(7)): name, hierarchy, number, enabled."""
    rows = (line.split() for line in table.splitlines() if not line.startswith("#"))
    return [row[0] for row in rows if len(row) == 4 and row[3] == "1"]


def judge_cgroups(version: str, present: Collection[str]) -> Finding:
    missing = [name for name in NEEDED_CONTROLLERS if name not in present]
    if missing:
        return bad(
            "cgroups",
            f"{version}, without {', '.join(missing)}: pods could not be limited",
            "boot the kernel with cgroup_enable=memory, or systemd.unified_cgroup_hierarchy=1",
        )
    return ok("cgroups", f"{version}, with {', '.join(NEEDED_CONTROLLERS)}")


def check_catatonit(_: Machine) -> Finding:
    found = shutil.which("catatonit") or next((path for path in CATATONIT if Path(path).exists()), None)
    if found is None:
        return bad("catatonit", "not installed; every pod's first process is one", "apt install catatonit")
    return ok("catatonit", found)
