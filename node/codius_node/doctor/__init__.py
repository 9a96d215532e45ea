"""`codiusd doctor`: looks at the machine a host is to run on, and names the fix. It changes nothing."""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping
from typing import Final

from codius_node import config
from codius_node.doctor import containers, front_door, kernel, names, ports, rights, room
from codius_node.doctor.findings import Finding, Verdict, bad, ok, skip, warn
from codius_node.doctor.machine import Check, Machine
from codius_node.errors import CodiusError
from codius_node.policy import build_policy

__all__ = [
    "CHECKS",
    "ENGINE_CHECKS",
    "Finding",
    "Verdict",
    "bad",
    "examine",
    "ok",
    "run_check",
    "skip",
    "warn",
]

CHECKS: Final[Mapping[str, Check]] = {
    "settings": rights.check_settings,
    "root": rights.check_privilege,
    "directory": rights.check_directories,
    "podman": containers.check_podman,
    "oci runtime": containers.check_runtime,
    "cgroups": containers.check_cgroups,
    "catatonit": containers.check_catatonit,
    "nftables": kernel.check_nftables,
    "forwarding": kernel.check_forwarding,
    "other firewalls": kernel.check_firewalls,
    "front door": ports.check_front_door,
    "redirect port": ports.check_redirect_port,
    "metrics port": ports.check_metrics_port,
    "data path": front_door.check_data_path,
    "certificates": front_door.check_certificates,
    "access log": front_door.check_access_log,
    "dns port": ports.check_dns_port,
    "public name": names.check_names,
    "disk": room.check_disk,
    "memory": room.check_memory,
}
ENGINE_CHECKS: Final = frozenset(
    {"root", "podman", "oci runtime", "cgroups", "catatonit", "nftables", "forwarding", "other firewalls"}
)
"""What a host without containers and kernel does not need."""


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """All findings, in the order in which they are best mended."""
    try:
        settings = config.load(environ)
        build_policy(settings)
    except CodiusError as error:
        rest = skip("the rest", "not looked at: the settings come first")
        return [bad("settings", error.message.replace("\n", " "), error.hint), rest]
    found = None
    if not settings.noop:
        try:
            found = containers.ask_podman(settings.engine_socket)
        except (OSError, ValueError, http.client.HTTPException):
            found = None  # `check_podman` says why
    machine = Machine(settings, environ, podman=found, euid=os.geteuid())
    return [run_check(name, check, machine) for name, check in CHECKS.items()]


def run_check(name: str, check: Check, machine: Machine) -> Finding:
    """The check's finding; a check that fails itself is a finding too."""
    if machine.settings.noop and name in ENGINE_CHECKS:
        return skip(name, "not needed: CODIUS_HYPER_NOOP=true")
    try:
        return check(machine)
    except Exception as error:  # noqa: BLE001  one broken check must not hide the others
        return warn(name, f"could not be looked at: {type(error).__name__}: {error}")
