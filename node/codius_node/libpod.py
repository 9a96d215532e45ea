"""What is said to podman and what its answers mean: payloads, names, log frames, errors. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from codius_node.model import (
    Consumption,
    ContainerSpec,
    FoundPod,
    FoundState,
    Isolation,
    Json,
    ManifestHash,
    PodSpec,
)
from codius_node.rlimits import RLimit

OWNER_LABEL: Final = "codius.owner"
MANIFEST_LABEL: Final = "codius.manifest"
CONTAINER_LABEL: Final = "codius.container"

HASH_PATTERN: Final = re.compile(r"[a-z0-9]{1,63}")
"""What may become part of a name in podman and of a path of ours."""
HOSTNAME_LENGTH: Final = 12
"""Characters of the manifest hash that a pod sees as its hostname."""

CPU_PERIOD: Final = 100_000
"""Microseconds over which the CPU quota counts; the kernel's default."""
MAX_LOG_SIZE: Final = 1024 * 1024
"""Bytes of log kept per container; podman starts a new file beyond it."""
MAX_RESTARTS: Final = 3
"""Times a container that failed is started again before it stays down."""
OOM_SCORE: Final = 500
"""When the whole machine is short of memory the kernel takes a pod's process before the host's own."""
CAPABILITIES: Final = (
    "CHOWN",  # entrypoints give their data directory to the user they will run as
    "DAC_OVERRIDE",  # root of an image writes where that user owns the files
    "FOWNER",  # chmod by an entrypoint on files it has just given away
    "FSETID",  # keeps set-gid bits of shared directories in that chmod
    "KILL",  # a root supervisor signals workers of another user
    "NET_BIND_SERVICE",  # ports below 1024, and binaries with exactly this file capability
    "SETGID",  # both: leaving root for the service's own user
    "SETUID",
)
"""All a container gets of what root can do. Not NET_RAW (spoofing), MKNOD, AUDIT_WRITE, SETFCAP,
SETPCAP or SYS_CHROOT: no ordinary image needs them to start."""
SYSCTLS: Final = {"net.ipv4.ip_unprivileged_port_start": "0"}
"""In the pod's own network namespace: an image that runs as a plain user may still listen on 80."""
NO_HEALTH_CHECK: Final[Mapping[str, Json]] = {"Test": ["NONE"]}
"""An image's HEALTHCHECK would become a timer of the host's systemd."""
RUNSC_ANNOTATIONS: Final = {
    "io.kubernetes.cri-o.ContainerType": "sandbox",
    "io.kubernetes.cri-o.SandboxID": "",
}
"""gVisor takes a pod's member for part of a sandbox it never saw, unless told it is one itself."""

MAX_FRAME: Final = 1024 * 1024
"""Bytes of one frame of a log stream. conmon's entries are 8 KiB: beyond this the stream is broken."""
MAX_LINE: Final = 16 * 1024
"""Bytes of a log line; a longer one is handed on in pieces of this size."""
MAX_ERROR: Final = 500
"""Characters of podman's own words in an error of ours."""
MIN_SECRET: Final = 4
"""Characters; shorter values cannot be told from the words around them."""
FRAME_HEADER: Final = 8
STREAMS: Final = {0: "stdout", 1: "stdout", 2: "stderr"}

DISK_FULL: Final = ("no space left on device", "disk quota exceeded", "enospc")
IMAGE_MISSING: Final = ("image not known", "no such image")
CONTAINER_FAULTS: Final = (
    "exec: ",  # runc: exec: "x": not found, permission denied, is a directory
    "executable file ",  # crun
    "workdir ",
    "chdir to cwd",
    "unable to find user",
    "unable to find group",
    "exec format error",
    "no command or entrypoint",
)
"""What podman says when a container cannot start for a reason its manifest or image gave."""


# ---- names ---------------------------------------------------------------------------------------


def pod_name(owner: str, hash: ManifestHash) -> str:
    """`codius-<hash>`. ValueError for what could not be a manifest hash."""
    if HASH_PATTERN.fullmatch(hash) is None:
        raise ValueError(f"not a manifest hash: {hash!r}")
    return f"{owner}-{hash}"


def infra_name(owner: str, hash: ManifestHash) -> str:
    """No member's name: those go on with a hyphen."""
    return f"{pod_name(owner, hash)}_infra"


def member_name(owner: str, hash: ManifestHash, container: str) -> str:
    """`codius-<hash>-<id>`."""
    return f"{pod_name(owner, hash)}-{container}"


def normalize_image(image: str) -> str:
    """The full reference: Docker Hub where no registry is named; no tag beside a digest.

    podman would look short names up in lists of the operator's machine, and refuses tag and digest together.
    """
    name, at, digest = image.partition("@")
    registry, slash, rest = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in registry and ":" not in registry and registry != "localhost":
        name = f"docker.io/{registry}/{rest}"
    if at:
        head, slash, last = name.rpartition("/")
        name = f"{head}{slash}{last.partition(':')[0]}"
    return f"{name}{at}{digest}"


# ---- payloads ------------------------------------------------------------------------------------


def build_labels(owner: str, hash: ManifestHash) -> dict[str, Json]:
    return {OWNER_LABEL: owner, MANIFEST_LABEL: hash}


def build_filters(owner: str, hash: ManifestHash | None = None) -> str:
    """The `filters` parameter that finds what we made and nothing else."""
    labels = [f"{OWNER_LABEL}={owner}"]
    if hash is not None:
        labels.append(f"{MANIFEST_LABEL}={hash}")
    return json.dumps({"label": labels})


def build_pod(spec: PodSpec, *, owner: str, runtime: str | None = None) -> dict[str, Json]:
    """The body of `pods/create`: limits that count for all containers together, a network of its own."""
    payload: dict[str, Json] = {
        "name": pod_name(owner, spec.hash),
        "infra_name": infra_name(owner, spec.hash),
        "hostname": spec.hash[:HOSTNAME_LENGTH],
        "labels": build_labels(owner, spec.hash),
        "exit_policy": "continue",
        "netns": {"nsmode": "none"},
        # otherwise podman writes the host's name and addresses into the pod's /etc/hosts
        "no_manage_hosts": True,
        "no_manage_resolv_conf": True,
        "sysctl": dict(SYSCTLS),
        "resource_limits": {
            # swap counts memory and swap together: equal means no swap at all
            "memory": {"limit": spec.limits.memory, "swap": spec.limits.memory},
            "cpu": {"period": CPU_PERIOD, "quota": round(spec.limits.vcpus * CPU_PERIOD)},
            "pids": {"limit": spec.limits.pids},
        },
    }
    if runtime is not None:
        payload["oci_runtime"] = runtime
    return payload


def build_container(
    container: ContainerSpec,
    spec: PodSpec,
    *,
    owner: str,
    files: Path,
    rlimits: Sequence[RLimit],
    runtime: str | None = None,
    stop_timeout: int,
) -> dict[str, Json]:
    """The body of `containers/create` for a member; `files` holds the pod's `hosts` and `resolv.conf`."""
    payload: dict[str, Json] = {
        "name": member_name(owner, spec.hash, container.name),
        "pod": pod_name(owner, spec.hash),
        "image": normalize_image(container.image),
        "labels": {**build_labels(owner, spec.hash), CONTAINER_LABEL: container.name},
        "env": dict(container.environment),
        "env_host": False,
        "httpproxy": False,  # containers.conf's default hands on the service's own proxy variables
        "sdnotifyMode": "ignore",
        "systemd": "false",  # else a command named systemd or init gets a writable cgroup mount
        "healthconfig": dict(NO_HEALTH_CHECK),
        "image_volume_mode": "anonymous",  # they go with the pod; a tmpfs would count as its memory
        "mounts": [
            _bind(files / "hosts", "/etc/hosts"),
            _bind(files / "resolv.conf", "/etc/resolv.conf"),
        ],
        "cgroupns": {"nsmode": "private"},  # the default on cgroup v1 shows every other pod's cgroup
        "cap_drop": ["ALL"],
        "cap_add": list(CAPABILITIES),
        "no_new_privileges": True,
        "oom_score_adj": OOM_SCORE,
        "r_limits": [{"type": limit.name, "soft": limit.value, "hard": limit.value} for limit in rlimits],
        # the second fence: where podman does not pass the pod's own pids limit on
        "resource_limits": {"pids": {"limit": spec.limits.pids}},
        "log_configuration": {"driver": "k8s-file", "size": MAX_LOG_SIZE},
        "restart_policy": "on-failure",
        "restart_tries": MAX_RESTARTS,
        "stop_timeout": stop_timeout,
    }
    if container.command is not None:
        payload["command"] = list(container.command)
    if container.workdir is not None:
        payload["work_dir"] = container.workdir
    if runtime is not None:
        payload["oci_runtime"] = runtime
        if Path(runtime).name == "runsc":
            payload["annotations"] = dict(RUNSC_ANNOTATIONS)
    return payload


def _bind(source: Path, destination: str) -> Json:
    options: list[Json] = ["bind", "ro", "nosuid", "nodev", "noexec"]
    return {"type": "bind", "source": str(source), "destination": destination, "options": options}


def render_hosts(spec: PodSpec) -> str:
    """`/etc/hosts` of a pod: itself, and nothing about the host."""
    return f"127.0.0.1 localhost\n{spec.address} {spec.hash[:HOSTNAME_LENGTH]}\n"


def render_resolv_conf(resolvers: Iterable[str]) -> str:
    """`/etc/resolv.conf` of a pod."""
    return "".join(f"nameserver {resolver}\n" for resolver in resolvers) or "# no resolver\n"


# ---- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FoundContainer:
    """A container in podman's list of a pod; `status` in podman's words."""

    id: str
    name: str
    status: str


@dataclass(frozen=True, slots=True)
class PodListing:
    """A pod in podman's list, with what belongs to it."""

    id: str
    hash: ManifestHash
    infra: FoundContainer | None
    members: tuple[FoundContainer, ...]

    @property
    def state(self) -> FoundState:
        """From the containers: podman's own word for a pod whose member never started is `Degraded` too."""
        running = [member.status == "running" for member in self.members]
        infra = self.infra is not None and self.infra.status == "running"
        if infra and running and all(running):
            return FoundState.RUNNING
        return FoundState.DEGRADED if infra or any(running) else FoundState.STOPPED

    @property
    def found(self) -> FoundPod:
        return FoundPod(self.hash, self.state)


def parse_pods(body: bytes, *, owner: str) -> list[PodListing]:
    """The answer of `pods/json`. Pods that are not this owner's are left out. ValueError for nonsense."""
    document = json.loads(body)
    if document is None:  # podman's empty list, at times
        return []
    pods = []
    for pod in _objects(document):
        labels = _object(pod.get("Labels") or {})
        hash = labels.get(MANIFEST_LABEL)
        if labels.get(OWNER_LABEL) != owner or not isinstance(hash, str):
            continue
        infra = None
        members = []
        for entry in _objects(pod.get("Containers") or []):
            container = FoundContainer(
                _text(entry, "Id"), _text(entry, "Names"), _text(entry, "Status").lower()
            )
            if container.id == pod.get("InfraId"):
                infra = container
            else:
                members.append(container)
        members.sort(key=lambda member: member.name)
        pods.append(PodListing(_text(pod, "Id"), ManifestHash(hash), infra, tuple(members)))
    return pods


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What podman's inspection of one container says."""

    status: str
    pid: int
    exit_code: int
    restarts: int
    oom_killed: bool
    volumes: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        return self.status == "running" and self.pid > 0


def parse_state(body: bytes) -> ContainerState:
    """The answer of `containers/X/json`. ValueError for nonsense."""
    document = _object(json.loads(body))
    state = _object(document.get("State"))
    pid, code, restarts = state.get("Pid"), state.get("ExitCode"), document.get("RestartCount", 0)
    if not isinstance(pid, int) or not isinstance(code, int) or not isinstance(restarts, int):
        raise ValueError("a container's state lacks its numbers")
    mounts = _objects(document.get("Mounts") or [])
    volumes = tuple(_text(mount, "Name") for mount in mounts if mount.get("Type") == "volume")
    return ContainerState(
        _text(state, "Status"), pid, code, restarts, state.get("OOMKilled") is True, volumes
    )


def parse_info(body: bytes) -> tuple[str, str]:
    """Podman's version and the name of the OCI runtime it uses. ValueError for nonsense."""
    document = _object(json.loads(body))
    runtime = _object(_object(document.get("host")).get("ociRuntime"))
    return _text(_object(document.get("version")), "Version"), _text(runtime, "name")


def classify_runtime(name: str) -> Isolation:
    """What an OCI runtime of this name puts between a pod and the host; of one nobody knows the least."""
    return {"runsc": Isolation.GVISOR, "krun": Isolation.VM}.get(name, Isolation.CONTAINER)


def parse_stats(body: bytes) -> Consumption | None:
    """The one container's in the answer of `containers/stats`; None when podman cannot count it.

    ValueError for nonsense. A program that runs has memory: 0 is what a runtime without cgroups leaves.
    """
    document = _object(json.loads(body))
    stats = _objects(document.get("Stats") or [])
    if document.get("Error") is not None or len(stats) != 1:
        return None
    memory, cpu = _count(stats[0], "MemUsage"), _count(stats[0], "CPUNano")
    return Consumption(memory, cpu) if memory else None


def parse_digest(body: bytes) -> str:
    """The image's digest in the answer of `images/X/json`. ValueError for nonsense."""
    return _text(_object(json.loads(body)), "Digest")


def parse_ids(body: bytes) -> list[str]:
    """The answer of `containers/json`. ValueError for nonsense."""
    return [_text(entry, "Id") for entry in _objects(json.loads(body) or [])]


def parse_created(body: bytes) -> str:
    """The id in the answer of `containers/create`. ValueError for nonsense."""
    return _text(_object(json.loads(body)), "Id")


def parse_error(body: bytes) -> str:
    """Podman's words for what went wrong, on one line, cut to a readable length."""
    text = body.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("message"), str):
        text = document["message"]
    text = " ".join(text.split())
    return text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}..."


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without values that must never be shown, should podman have quoted one."""
    known = {secret for secret in secrets if len(secret) >= MIN_SECRET}
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def mentions(text: str, phrases: Sequence[str]) -> bool:
    lowered = text.lower()
    return any(phrase in lowered for phrase in phrases)


@dataclass(frozen=True, slots=True)
class PullReport:
    """One line of a pull's stream: a sentence, or why it failed."""

    message: str
    failed: bool = False


def parse_pull(line: bytes) -> PullReport | None:
    """None for lines that say nothing to people. ValueError for nonsense."""
    document = _object(json.loads(line))
    if isinstance(error := document.get("error"), str) and error:
        return PullReport(" ".join(error.split())[:MAX_ERROR], failed=True)
    if isinstance(text := document.get("stream"), str) and text.strip():
        return PullReport(text.strip())
    return None


def _object(value: object) -> Mapping[str, Json]:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    return value


def _objects(value: object) -> list[Mapping[str, Json]]:
    if not isinstance(value, list):
        raise ValueError("expected a list")
    return [_object(entry) for entry in value]


def _text(document: Mapping[str, Json], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise ValueError(f"expected a string at {key}")
    return value


def _count(document: Mapping[str, Json], key: str) -> int:
    value = document.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"expected a count at {key}")
    return value


# ---- log streams ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogCursor:
    """Where a log was read to: the second of the last entry, and how many entries of it were seen."""

    stamp: str
    entries: int


class LogParser:
    """A container's multiplexed log stream, with `timestamps=true`: bytes in, whole lines out.

    A frame is 8 bytes (stream, three zeros, length as big-endian uint32), then the time (to the second),
    a space and the text. The text of a long line is spread over several frames. With a cursor, entries
    that were read before are passed over: podman's `since` knows whole seconds only.
    """

    def __init__(self, cursor: LogCursor | None = None) -> None:
        self._buffer = bytearray()
        self._partial: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._skip = cursor
        self._stamp = cursor.stamp if cursor else ""
        self._entries = 0

    @property
    def cursor(self) -> LogCursor | None:
        """What to give the next parser of the same log."""
        if self._skip is not None:  # nothing new was read
            return self._skip
        return LogCursor(self._stamp, self._entries) if self._stamp else None

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """Lines completed by these bytes, as (stream, text). ValueError when it is no log stream."""
        self._buffer += data
        lines: list[tuple[str, str]] = []
        start = 0
        while len(self._buffer) - start >= FRAME_HEADER:
            stream = STREAMS.get(self._buffer[start])
            length = int.from_bytes(self._buffer[start + 4 : start + FRAME_HEADER], "big")
            if stream is None or length > MAX_FRAME:
                raise ValueError(
                    f"not a log frame: {bytes(self._buffer[start : start + FRAME_HEADER]).hex()}"
                )
            end = start + FRAME_HEADER + length
            if len(self._buffer) < end:
                break
            self._add_entry(stream, bytes(self._buffer[start + FRAME_HEADER : end]), lines)
            start = end
        del self._buffer[:start]
        return lines

    def flush(self) -> list[tuple[str, str]]:
        """What was written without a newline, once nothing more comes."""
        lines = []
        for stream, partial in self._partial.items():
            if partial:
                lines.append((stream, partial.decode("utf-8", "replace")))
                partial.clear()
        return lines

    def _add_entry(self, stream: str, entry: bytes, lines: list[tuple[str, str]]) -> None:
        stamp, _, text = entry.partition(b" ")
        second = stamp.decode("ascii", "replace")
        if second == self._stamp:
            self._entries += 1
        else:
            self._stamp, self._entries = second, 1
        if self._skip is not None:
            if second == self._skip.stamp and self._entries <= self._skip.entries:
                return
            self._skip = None
        partial = self._partial[stream]
        partial += text
        start = 0
        while True:
            newline = partial.find(b"\n", start, start + MAX_LINE + 1)
            if newline >= 0:
                end, following = newline, newline + 1
            elif len(partial) - start > MAX_LINE:
                end = following = start + MAX_LINE
            else:
                break
            lines.append((stream, partial[start:end].decode("utf-8", "replace")))
            start = following
        del partial[:start]
