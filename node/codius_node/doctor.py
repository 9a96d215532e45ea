"""`codiusd doctor`: looks at the machine a host is to run on, and names the fix. It changes nothing."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from codius_node import config
from codius_node.config import Settings
from codius_node.errors import CodiusError
from codius_node.hoststats import HostStats
from codius_node.model import MEMORY_SMALL, Json

PODMAN_SECONDS: Final = 10.0
"""For podman to tell about itself; it answers in tens of milliseconds."""
COMMAND_SECONDS: Final = 10.0
NAMES_SECONDS: Final = 5.0
"""For all look-ups of names; a resolver that is away would hold us for half a minute."""
MAX_ANSWER: Final = 1024 * 1024
"""Bytes of podman's answer; it has some 5 KB."""

NEEDED_CONTROLLERS: Final = ("cpu", "memory", "pids")
"""What the limits of a pod are made of."""
SCARCE_DISK: Final = 5 * 1024**3
"""Bytes free below which a few images fill the disk."""
NO_DISK: Final = 512 * 1024**2
"""Bytes free below which not even the database is safe."""
LINK_GROUP: Final = 77
"""The interface group of all pods' links, as in codius_netpolicy."""
CAP_NET_ADMIN: Final = 12
CAP_SYS_ADMIN: Final = 21
GRAPH_ROOT: Final = Path("/var/lib/containers/storage")
"""Where podman keeps images unless it is told otherwise."""
CATATONIT: Final = ("/usr/libexec/podman/catatonit", "/usr/libexec/catatonit/catatonit")
"""Where distributions put it besides PATH."""
CLIENT_VARIABLES: Final = frozenset({"CODIUS_HOST_URI"})
"""Read by the client commands only, so no settings of the host."""
OWN_COMMAND: Final = re.compile(r"\bcodius(?:d\b|_node)")
"""In the command line of a process of this host, however it was started."""
SAMPLE_LABEL: Final = "a" * 52
"""The first label of a pod's name, of no pod that can ever be."""


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw: a sentence, and what to do where something is not as it should be."""

    name: str
    verdict: Verdict
    message: str
    fix: str | None = None


def ok(name: str, message: str) -> Finding:
    return Finding(name, Verdict.OK, message)


def warn(name: str, message: str, fix: str | None = None) -> Finding:
    return Finding(name, Verdict.WARN, message, fix)


def bad(name: str, message: str, fix: str | None = None) -> Finding:
    return Finding(name, Verdict.BAD, message, fix)


def skip(name: str, message: str) -> Finding:
    return Finding(name, Verdict.SKIP, message)


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


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """All findings, in the order in which they are best mended."""
    try:
        settings = config.load(environ)
    except CodiusError as error:
        rest = skip("the rest", "not looked at: the settings come first")
        return [bad("settings", error.message.replace("\n", " "), error.hint), rest]
    found = None
    if not settings.noop:
        try:
            found = ask_podman(settings.engine_socket)
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


# ---- settings and rights --------------------------------------------------------------------------


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


# ---- podman ---------------------------------------------------------------------------------------


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


# ---- the kernel's network -------------------------------------------------------------------------


def check_nftables(machine: Machine) -> Finding:
    from codius_netpolicy import Policy, PolicyError
    from codius_netpolicy.nft import Nft
    from codius_netpolicy.ruleset import render_table

    try:
        Nft().check(render_table(Policy(pool=machine.settings.pod_network)))
    except PolicyError as error:
        if machine.euid != 0:
            return skip("nftables", "only root can ask the kernel")
        return bad("nftables", error.message, error.hint or "modprobe nf_tables")
    return ok("nftables", "the kernel would take our table (tried without applying it)")


def check_forwarding(machine: Machine) -> Finding:
    switch = machine.proc / "sys/net/ipv4/ip_forward"
    if switch.read_text().strip() == "1":
        return ok("forwarding", "on")
    if machine.euid == 0 and not os.access(switch, os.W_OK):
        return bad(
            "forwarding",
            "off, and /proc/sys is read-only here: pods could not reach the internet",
            "sysctl -w net.ipv4.ip_forward=1, outside of this container",
        )
    return ok("forwarding", "off for now; the node turns it on when it starts")


def check_forward_policy(machine: Machine) -> Finding:
    if machine.euid != 0:
        return skip("other firewalls", "only root can ask the kernel")
    legacy = _read_legacy_policy(machine.proc)
    if shutil.which("nft") is None:
        return bad("other firewalls", "cannot be asked for: nft is not installed", "apt install nftables")
    done = _run("nft", "--json", "--terse", "list", "ruleset")
    return judge_forward_policy(json.loads(done), machine.settings.pod_network, legacy=legacy)


def _read_legacy_policy(proc: Path) -> str:
    """`iptables -S FORWARD` of the old kernel tables, which nft does not list; empty without any."""
    try:
        tables = (proc / "net/ip_tables_names").read_text().split()
    except OSError:
        return ""
    # Only asked when they are in use: asking would make them.
    if "filter" not in tables or shutil.which("iptables-legacy") is None:
        return ""
    return _run("iptables-legacy", "-S", "FORWARD")


def judge_forward_policy(ruleset: Json, pool: IPv4Network, *, legacy: str = "") -> Finding:
    """Whether somebody else's rules drop what pods send; a drop in anybody's table wins."""
    entries = ruleset.get("nftables") if isinstance(ruleset, dict) else None
    if not isinstance(entries, list):
        raise ValueError("that is no listing of nft's")
    chains = [entry["chain"] for entry in entries if isinstance(entry, dict) and "chain" in entry]
    rules = [entry["rule"] for entry in entries if isinstance(entry, dict) and "rule" in entry]
    for chain in chains:
        if not isinstance(chain, dict) or chain.get("hook") != "forward" or chain.get("table") == "codius":
            continue
        if chain.get("family") not in {"ip", "inet"}:
            continue
        family, table = str(chain["family"]), str(chain["table"])
        # firewalld's chain accepts by policy and rejects by its last rule
        if chain.get("policy") != "drop" and table != "firewalld":
            continue
        of_table = [
            rule
            for rule in rules
            if isinstance(rule, dict) and (rule.get("family"), rule.get("table")) == (family, table)
        ]
        if not _lets_pods_through(of_table, pool):
            names = {str(other["name"]) for other in chains if isinstance(other, dict)
                     and (other.get("family"), other.get("table")) == (family, table)}  # fmt: skip
            return _forward_problem(f"table {family} {table}", _firewall_fix(table, names, pool))
    if re.search(r"^-P FORWARD DROP$", legacy, re.MULTILINE) and "devgroup" not in legacy:
        return _forward_problem("iptables (legacy)", _firewall_fix("filter", (), pool, "iptables-legacy"))
    return ok("other firewalls", "none that drops what pods send")


def _lets_pods_through(rules: Sequence[Json], pool: IPv4Network) -> bool:
    text = json.dumps(rules)
    network = json.dumps({"addr": str(pool.network_address), "len": pool.prefixlen})[1:-1]
    return '"devgroup"' in text or '"iifgroup"' in text or network in text


def _firewall_fix(table: str, chains: Collection[str], pool: IPv4Network, iptables: str = "iptables") -> str:
    if table == "firewalld":
        return f"firewall-cmd --permanent --zone=trusted --add-source={pool}; firewall-cmd --reload"
    if table == "filter":
        chain = "DOCKER-USER" if "DOCKER-USER" in chains else "FORWARD"
        insert = f"{iptables} -I {chain} -m devgroup"
        return f"{insert} --src-group {LINK_GROUP} -j ACCEPT; {insert} --dst-group {LINK_GROUP} -j ACCEPT"
    return f"accept iifgroup {LINK_GROUP} and oifgroup {LINK_GROUP} in its forward chain"


def _forward_problem(where: str, fix: str) -> Finding:
    return bad("other firewalls", f"{where} drops what is forwarded: pods could not reach the internet", fix)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()[:200]}")
    return done.stdout


# ---- ports and names ------------------------------------------------------------------------------


def check_front_door(machine: Machine) -> Finding:
    settings = machine.settings
    return _check_port(
        machine, "front door", settings.bind_ip, settings.port, [socket.SOCK_STREAM], "CODIUS_PORT"
    )


def check_dns_port(machine: Machine) -> Finding:
    settings = machine.settings
    if settings.dns_port == 0:
        return skip("dns port", "CODIUS_DNS_PORT=0: no responder")
    kinds = [socket.SOCK_DGRAM, socket.SOCK_STREAM]
    return _check_port(machine, "dns port", settings.dns_ip, settings.dns_port, kinds, "CODIUS_DNS_PORT")


def _check_port(
    machine: Machine,
    name: str,
    address: IPv4Address | IPv6Address,
    port: int,
    kinds: Sequence[socket.SocketKind],
    setting: str,
) -> Finding:
    where = f"{address} port {port}"
    for kind in kinds:
        try:
            _try_to_bind(address, port, kind)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                holder = find_holder(machine.proc, port, kind)
                if holder is not None and OWN_COMMAND.search(holder):
                    return ok(name, f"{where}: this host is running")
                whose = f"by `{holder}`" if holder else "by another process"
                return bad(name, f"{where} is taken {whose}", f"stop it, or set {setting} to a free port")
            if error.errno == errno.EADDRNOTAVAIL:
                return bad(name, f"{address} is no address of this machine", "see `ip address`")
            if error.errno == errno.EACCES:
                return bad(name, f"{where} is not open to user {machine.euid}", "sudo codiusd doctor")
            return bad(name, f"{where}: {error.strerror}", f"set {setting} to another port")
    return ok(name, f"{where} is free")


def _try_to_bind(address: IPv4Address | IPv6Address, port: int, kind: socket.SocketKind) -> None:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the front door does
        probe.bind((str(address), port))


def find_holder(proc: Path, port: int, kind: socket.SocketKind) -> str | None:
    """The command line of a process with this port open; None when it is not ours to see."""
    inodes = set()
    for table in ("tcp", "tcp6") if kind == socket.SOCK_STREAM else ("udp", "udp6"):
        try:
            text = (proc / "net" / table).read_text()
        except OSError:
            continue
        inodes |= parse_socket_inodes(text, port, listening=kind == socket.SOCK_STREAM)
    for descriptor in proc.glob("[0-9]*/fd/*"):
        try:
            target = str(descriptor.readlink())
            if target.startswith("socket:[") and target[8:-1] in inodes:
                command = (descriptor.parents[1] / "cmdline").read_bytes()
                return command.replace(b"\0", b" ").decode(errors="replace").strip()[:120]
        except OSError:
            continue  # it ended, or is somebody else's
    return None


def parse_socket_inodes(table: str, port: int, *, listening: bool) -> set[str]:
    """Inodes of the sockets on a local port, from /proc/net/tcp and its like (proc(5))."""
    rows = (line.split() for line in table.splitlines()[1:])
    return {
        row[9]
        for row in rows
        if len(row) > 9 and row[1].endswith(f":{port:04X}") and (not listening or row[3] == "0A")
    }


def check_names(machine: Machine) -> Finding:
    host = machine.settings.public_uri.host
    if host == "localhost" or host.endswith(".localhost"):
        return skip("public name", f"{host} is this machine by itself; nothing to check")
    names = (host, f"{SAMPLE_LABEL}.{host}")
    return judge_names(host, machine.settings.public_addresses, resolve(names))


def resolve(names: Sequence[str], seconds: float = NAMES_SECONDS) -> dict[str, frozenset[str] | None]:
    """Addresses of each name, empty when there are none; None when no answer came in time."""
    answers: dict[str, frozenset[str] | None] = dict.fromkeys(names)

    def look_up() -> None:
        for name in names:
            try:
                found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                found = []
            answers[name] = frozenset(str(entry[4][0]) for entry in found)

    # A daemon thread, because getaddrinfo cannot be told to stop.
    thread = threading.Thread(target=look_up, name="doctor-names", daemon=True)
    thread.start()
    thread.join(seconds)
    return dict(answers)


def judge_names(
    host: str,
    wanted: Collection[IPv4Address | IPv6Address],
    answers: Mapping[str, frozenset[str] | None],
) -> Finding:
    """Whether the host's name and those below it lead here."""
    name = "public name"
    if not wanted:
        return bad(
            name,
            f"the addresses that {host} should have are not known",
            "set CODIUS_PUBLIC_ADDRESSES to the addresses visitors reach this host by",
        )
    expected = {str(address) for address in wanted}
    shown = ", ".join(sorted(expected))
    for asked, addresses in answers.items():
        what = asked.replace(SAMPLE_LABEL, "<hash>")
        if addresses is None:
            return warn(
                name,
                f"no answer about {what} in {NAMES_SECONDS:.0f} s",
                "is there a resolver? cat /etc/resolv.conf",
            )
        if not addresses:
            return bad(
                name,
                f"{what} has no address",
                f"at your domain's registrar: NS records for {host} to this host, or A records"
                f" for {host} and *.{host} to {shown}",
            )
        if not {str(ip_address(address)) for address in addresses} & expected:
            return bad(
                name,
                f"{what} is {', '.join(sorted(addresses))}, not {shown}",
                "correct the DNS records, or CODIUS_PUBLIC_ADDRESSES",
            )
    return ok(name, f"{host} and the names below it lead to {shown}")


# ---- room -----------------------------------------------------------------------------------------


def check_disk(machine: Machine) -> Finding:
    graph_root = GRAPH_ROOT if machine.podman is None else machine.podman.graph_root
    places = [machine.settings.root] if machine.settings.noop else [machine.settings.root, graph_root]
    return judge_disk({place: HostStats(place).free_disk() for place in places})


def judge_disk(free: Mapping[Path, int]) -> Finding:
    """`free` in bytes, by place."""
    place = min(free, key=lambda path: free[path])
    shown = f"{_gib(free[place])} free at {place}"
    fix = "podman image prune --all, or a larger disk"
    if free[place] < NO_DISK:
        return bad("disk", f"only {shown}", fix)
    if free[place] < SCARCE_DISK:
        return warn("disk", f"only {shown}: a few images fill it", fix)
    return ok("disk", shown)


def check_memory(machine: Machine) -> Finding:
    available, total = HostStats(machine.settings.root, proc=machine.proc, cgroup=machine.cgroup).memory()
    return judge_memory(available, total, machine.settings.max_memory_fraction)


def judge_memory(available: int, total: int, fraction: float) -> Finding:
    """Room for pods in bytes: what the fraction allows, less what is in use."""
    room = int(total * fraction) - (total - available)
    shown = f"{_gib(available)} of {_gib(total)} available"
    if room < MEMORY_SMALL:
        return warn(
            "memory",
            f"{shown}: no room for a pod at CODIUS_MAX_MEMORY_FRACTION={fraction:g}",
            "free some memory, or raise CODIUS_MAX_MEMORY_FRACTION",
        )
    return ok("memory", f"{shown}: room for {room // MEMORY_SMALL} pods")


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"


CHECKS: Final[Mapping[str, Check]] = {
    "settings": check_settings,
    "root": check_privilege,
    "directory": check_directories,
    "podman": check_podman,
    "oci runtime": check_runtime,
    "cgroups": check_cgroups,
    "catatonit": check_catatonit,
    "nftables": check_nftables,
    "forwarding": check_forwarding,
    "other firewalls": check_forward_policy,
    "front door": check_front_door,
    "dns port": check_dns_port,
    "public name": check_names,
    "disk": check_disk,
    "memory": check_memory,
}
ENGINE_CHECKS: Final = frozenset(
    {"root", "podman", "oci runtime", "cgroups", "catatonit", "nftables", "forwarding", "other firewalls"}
)
"""What a host without containers and kernel does not need."""
