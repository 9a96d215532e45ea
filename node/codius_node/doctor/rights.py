"""Settings, privileges and directories: what the node is allowed."""

from __future__ import annotations

import os
import re
import stat
from typing import Final

from codius_node import config
from codius_node.doctor.findings import Finding, bad, ok, warn
from codius_node.doctor.machine import Machine

CAP_NET_ADMIN: Final = 12
CAP_SYS_ADMIN: Final = 21
CLIENT_VARIABLES: Final = frozenset({"CODIUS_HOST_URI"})
"""Read by the client commands only, so no settings of the host."""


def check_settings(machine: Machine) -> Finding:
    unknown = [name for name in config.find_unknown(machine.environ) if name not in CLIENT_VARIABLES]
    if unknown:
        return warn(
            "settings",
            f"{', '.join(unknown)}: no setting of that name, so without effect",
            "correct or unset it; `codiusd --help` lists the settings",
        )
    return ok("settings", f"valid; the host is {machine.settings.public_uri}")


def check_privilege(machine: Machine) -> Finding:
    if machine.euid != 0:
        return bad("root", f"user {machine.euid} cannot make pods, links and rules", "sudo codiusd doctor")
    effective = re.search(
        r"^CapEff:\s+([0-9a-f]+)$", (machine.proc / "self/status").read_text(), re.MULTILINE
    )
    capabilities = int(effective[1], 16) if effective else 0
    missing = [
        name
        for name, bit in (("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_SYS_ADMIN", CAP_SYS_ADMIN))
        if not capabilities >> bit & 1
    ]
    if missing:
        return bad(
            "root",
            f"root, but without {' and '.join(missing)}: in a container?",
            "run the node on the machine itself, or give its container these capabilities",
        )
    return ok("root", "root, with the rights to make links and rules")


def check_directories(machine: Machine) -> Finding:
    root, key = machine.settings.root, machine.settings.key_file
    if not root.exists():
        return ok("directory", f"{root} will be made at the first start")
    if not root.is_dir():
        return bad("directory", f"{root} is not a directory", "set CODIUS_ROOT to one")
    if not os.access(root, os.W_OK | os.X_OK):
        return bad("directory", f"{root} is not writable", f"chown {machine.euid} {root}; chmod 700 {root}")
    for path, mask, mode in ((root, 0o022, "700"), (key, 0o077, "600")):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # the key is made at the first start
        if stat.S_IMODE(status.st_mode) & mask:
            return bad(
                "directory",
                f"{path} has mode {stat.S_IMODE(status.st_mode):04o}: others may get at it",
                f"chmod {mode} {path}",
            )
        if machine.euid == 0 and status.st_uid != 0:
            return bad("directory", f"{path} belongs to user {status.st_uid}", f"chown root {path}")
    return ok("directory", f"{root}, with the rights it should have")
