"""The machine as the checks see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from codius_node.config import Settings
from codius_node.doctor.findings import Finding


@dataclass(frozen=True, slots=True)
class Podman:
    """What podman says of itself, as far as it matters here."""

    version: str
    runtime: str
    graph_root: Path


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as the checks see it; `podman` is None when nobody answers at its socket."""

    settings: Settings
    environ: Mapping[str, str]
    podman: Podman | None = None
    euid: int = 0
    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")

    @property
    def unified_cgroups(self) -> bool:
        """Version 2 alone: only there the root has this file."""
        return (self.cgroup / "cgroup.controllers").exists()

    @property
    def runtime(self) -> str:
        """The OCI runtime that containers are going to get."""
        if self.podman is not None:
            return self.podman.runtime
        return self.settings.oci_runtime or ("crun" if self.unified_cgroups else "runc")


Check = Callable[[Machine], Finding]
