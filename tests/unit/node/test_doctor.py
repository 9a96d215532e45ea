"""What the doctor finds, on machines made of files and on real sockets."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from codius_node import doctor
from codius_node.config import load
from codius_node.doctor import containers, front_door, kernel, names, ports, rights, room
from codius_node.doctor.findings import Finding, Verdict
from codius_node.doctor.machine import Machine, Podman
from codius_node.firewalls import Blocker
from codius_proxy.tls import KEY_FILE
from tests.harness.certificates import Authority
from tests.harness.serving import serving

GIB = 1024**3
INFO: dict[str, Any] = {
    "version": {"Version": "4.3.1"},
    "host": {"ociRuntime": {"name": "runc"}},
    "store": {"graphRoot": "/var/lib/containers/storage"},
}
SECONDS = 60


def machine(tmp_path: Path, podman: Podman | None = None, euid: int = 0, **settings: str) -> Machine:
    """A machine whose /proc and cgroups are directories below `tmp_path`."""
    environ = {"CODIUS_ROOT": str(tmp_path / "root"), "CODIUS_RUN": str(tmp_path / "run")} | {
        f"CODIUS_{name.upper()}": value for name, value in settings.items()
    }
    (tmp_path / "proc").mkdir(exist_ok=True)
    (tmp_path / "cgroup").mkdir(exist_ok=True)
    return Machine(
        load(environ), environ, podman=podman, euid=euid, proc=tmp_path / "proc", cgroup=tmp_path / "cgroup"
    )


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def check(finding: Finding, verdict: Verdict, said: str = "", fix: str = "") -> None:
    assert finding.verdict is verdict, finding
    assert said in finding.message, finding
    assert fix in (finding.fix or ""), finding
    if verdict is Verdict.BAD:
        assert finding.fix


# ---- the whole ------------------------------------------------------------------------------------


def test_a_bad_setting_is_the_first_thing_to_mend() -> None:
    findings = doctor.examine({"CODIUS_PORT": "0"})
    check(findings[0], Verdict.BAD, "CODIUS_PORT='0' cannot be used")
    check(findings[1], Verdict.SKIP)
    assert len(findings) == 2


def test_settings_that_do_not_go_together_are_told_before_the_rest() -> None:
    findings = doctor.examine({"CODIUS_POD_RESOLVERS": "2620:fe::fe"})
    check(findings[0], Verdict.BAD, "CODIUS_POD_RESOLVERS", "CODIUS_POD_NETWORK_6")
    assert len(findings) == 2


def test_without_containers_the_engine_and_the_kernel_are_left_alone(tmp_path: Path) -> None:
    findings = doctor.examine(
        {"CODIUS_HYPER_NOOP": "true", "CODIUS_ROOT": str(tmp_path), "CODIUS_PORT": str(free_port())}
    )
    assert {finding.name for finding in findings} == set(doctor.CHECKS)
    skipped = {finding.name for finding in findings if finding.verdict is Verdict.SKIP}
    assert skipped >= doctor.ENGINE_CHECKS


def test_a_check_that_crashes_is_a_finding(tmp_path: Path) -> None:
    def crash(_: Machine) -> Finding:
        raise RuntimeError("broken")

    check(doctor.run_check("x", crash, machine(tmp_path)), Verdict.WARN, "RuntimeError: broken")


def test_on_a_machine_without_anything_every_check_is_a_finding(tmp_path: Path) -> None:
    bare = machine(tmp_path)
    for name, each in doctor.CHECKS.items():
        finding = doctor.run_check(name, each, bare)
        assert finding.name == name
        assert "\n" not in finding.message


# ---- settings and rights --------------------------------------------------------------------------


def test_a_variable_that_is_no_setting_is_named_and_the_clients_is_none(tmp_path: Path) -> None:
    here = machine(tmp_path, prot="1", host_uri="http://x")
    check(rights.check_settings(here), Verdict.WARN, "CODIUS_PROT: no setting")
    check(rights.check_settings(machine(tmp_path)), Verdict.OK)


@pytest.mark.parametrize(
    ("euid", "capabilities", "verdict", "said"),
    [
        (0, "000001ffffffffff", Verdict.OK, ""),
        (0, "00000000a80425fb", Verdict.BAD, "CAP_NET_ADMIN and CAP_SYS_ADMIN"),
        (0, "0000000000001000", Verdict.BAD, "without CAP_SYS_ADMIN"),
        (1000, "0000000000000000", Verdict.BAD, "user 1000"),
    ],
)
def test_the_node_needs_root_with_its_rights(
    euid: int, capabilities: str, verdict: Verdict, said: str, tmp_path: Path
) -> None:
    here = machine(tmp_path, euid=euid)
    put(here.proc / "self/status", f"Name:\tx\nCapEff:\t{capabilities}\nCapBnd:\t0\n")
    check(rights.check_privilege(here), verdict, said)


def test_the_directory_and_its_key_are_for_nobody_else(tmp_path: Path) -> None:
    here = machine(tmp_path, euid=os.geteuid())
    check(rights.check_directories(here), Verdict.OK, "first start")
    here.settings.root.mkdir(mode=0o700)
    check(rights.check_directories(here), Verdict.OK, "rights")
    here.settings.key_file.touch(mode=0o600)
    check(rights.check_directories(here), Verdict.OK)
    here.settings.key_file.chmod(0o640)
    check(rights.check_directories(here), Verdict.BAD, "0640", f"chmod 600 {here.settings.key_file}")
    here.settings.key_file.chmod(0o600)
    here.settings.root.chmod(0o777)
    check(rights.check_directories(here), Verdict.BAD, "0777", f"chmod 700 {here.settings.root}")


def test_a_file_in_the_directorys_place_is_told(tmp_path: Path) -> None:
    put(tmp_path / "root", "")
    check(rights.check_directories(machine(tmp_path)), Verdict.BAD, "not a directory")


# ---- podman ---------------------------------------------------------------------------------------


def podman_app(document: object, status: int = 200) -> web.Application:
    async def info(_: web.Request) -> web.Response:
        return web.json_response(document, status=status)

    app = web.Application()
    app.router.add_get("/v4.0.0/libpod/info", info)
    return app


def test_podman_is_asked_for_its_version_and_runtime(tmp_path: Path) -> None:
    path = tmp_path / "podman.sock"
    with serving(podman_app(INFO), path=path):
        found = containers.ask_podman(path)
    assert found == Podman("4.3.1", "runc", Path("/var/lib/containers/storage"))
    here = machine(tmp_path, podman=found, engine_socket=str(path))
    check(containers.check_podman(here), Verdict.OK, "4.3.1")
    assert here.runtime == "runc"


@pytest.mark.parametrize(("document", "status"), [({}, 200), ([], 200), (INFO, 500)])
def test_a_socket_that_is_not_podmans_is_told(document: object, status: int, tmp_path: Path) -> None:
    path = tmp_path / "podman.sock"
    with serving(podman_app(document, status), path=path):
        here = machine(tmp_path, engine_socket=str(path))
        check(containers.check_podman(here), Verdict.BAD, "no good answer", "systemctl restart podman.socket")


def test_a_socket_that_nobody_listens_on_is_told(tmp_path: Path) -> None:
    path = tmp_path / "podman.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    here = machine(tmp_path, engine_socket=str(path))
    check(containers.check_podman(here), Verdict.BAD, "Connection refused")


def test_podman_without_a_service_is_enough_for_codiusd_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(tmp_path, engine_socket=str(tmp_path / "podman.sock"))
    monkeypatch.setenv("PATH", str(program(tmp_path, "podman")))
    check(
        containers.check_podman(here), Verdict.WARN, "`codiusd run` starts one", "enable --now podman.socket"
    )
    monkeypatch.setenv("PATH", "")
    check(containers.check_podman(here), Verdict.BAD, "not installed", "apt install podman")


def program(tmp_path: Path, name: str) -> Path:
    put(tmp_path / "bin" / name, "#!/bin/sh\n")
    (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path / "bin"


def test_the_runtime_fits_the_cgroups_and_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(program(tmp_path, "runc")))
    version_1 = machine(tmp_path)
    check(containers.check_runtime(version_1), Verdict.OK, "runc at")
    put(version_1.cgroup / "cgroup.controllers", "cpu memory pids\n")
    check(containers.check_runtime(version_1), Verdict.BAD, "crun is not installed", "apt install crun")
    program(tmp_path, "crun")
    check(containers.check_runtime(version_1), Verdict.OK, "crun at")
    (version_1.cgroup / "cgroup.controllers").unlink()
    hybrid = machine(tmp_path, podman=Podman("4.3.1", "crun", Path("/")))
    check(containers.check_runtime(hybrid), Verdict.BAD, "crun does not work", "apt install runc")


def test_the_runtime_is_the_operators_where_podman_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    here = machine(tmp_path, oci_runtime="runsc")
    check(containers.check_runtime(here), Verdict.BAD, "runsc is not installed", "apt install runsc")


def test_cgroups_have_what_pods_are_limited_by(tmp_path: Path) -> None:
    here = machine(tmp_path)
    check(containers.check_cgroups(here), Verdict.BAD, "no version, without cpu, memory, pids")
    put(
        here.proc / "cgroups",
        "#subsys_name\thierarchy\tnum\tenabled\ncpu\t1\t1\t1\nmemory\t2\t1\t0\npids\t3\t1\t1\n",
    )
    check(containers.check_cgroups(here), Verdict.BAD, "version 1", "cgroup_enable=memory")
    put(here.cgroup / "cgroup.controllers", "cpuset cpu io memory pids\n")
    check(containers.check_cgroups(here), Verdict.OK, "version 2")


def test_catatonit_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(containers, "CATATONIT", ())
    monkeypatch.setenv("PATH", "")
    check(containers.check_catatonit(machine(tmp_path)), Verdict.BAD, "", "apt install catatonit")
    monkeypatch.setenv("PATH", str(program(tmp_path, "catatonit")))
    check(containers.check_catatonit(machine(tmp_path)), Verdict.OK)


# ---- the kernel's network -------------------------------------------------------------------------


def test_forwarding_may_be_off_as_long_as_the_node_can_turn_it_on(tmp_path: Path) -> None:
    here = machine(tmp_path, euid=os.geteuid())
    put(here.proc / "sys/net/ipv4/ip_forward", "1\n")
    check(kernel.check_forwarding(here), Verdict.OK, "on")
    put(here.proc / "sys/net/ipv4/ip_forward", "0\n")
    check(kernel.check_forwarding(here), Verdict.OK, "the node turns it on")


def test_forwarding_that_cannot_be_turned_on_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(tmp_path)
    put(here.proc / "sys/net/ipv4/ip_forward", "0\n")
    monkeypatch.setattr(os, "access", lambda *_: False)
    check(kernel.check_forwarding(here), Verdict.BAD, "read-only", "sysctl -w net.ipv4.ip_forward=1")


def test_pods_with_ipv6_need_its_forwarding_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(tmp_path, pod_network_6="fd77:c0d1:5::/64")
    put(here.proc / "sys/net/ipv4/ip_forward", "1\n")
    check(kernel.check_forwarding(here), Verdict.BAD, "no IPv6", "CODIUS_POD_NETWORK_6")
    put(here.proc / "sys/net/ipv6/conf/all/forwarding", "0\n")
    check(kernel.check_forwarding(here), Verdict.OK, "the node turns it on")
    monkeypatch.setattr(os, "access", lambda *_: False)
    check(kernel.check_forwarding(here), Verdict.BAD, "read-only", "sysctl -w net.ipv6.conf.all.forwarding=1")
    put(here.proc / "sys/net/ipv6/conf/all/forwarding", "1\n")
    check(kernel.check_forwarding(here), Verdict.OK, "on")


def test_another_firewall_that_drops_is_told_with_its_fix_in_one_line() -> None:
    check(kernel.judge_blockers([]), Verdict.OK, "none that drops")
    docker = Blocker("docker", "ip filter", ("one", "two"), "again")
    ufw = Blocker("ufw", "ip6 filter", ("two", "three"))
    finding = kernel.judge_blockers([docker, ufw])
    check(finding, Verdict.BAD, "docker (table ip filter) drops")
    check(finding, Verdict.BAD, "ufw (table ip6 filter) drops")
    assert finding.fix == "one; two; three  # again"


# ---- ports and names ------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def test_a_free_port_is_free(tmp_path: Path) -> None:
    here = machine(tmp_path, port=str(free_port()), dns_port=str(free_port()))
    check(ports.check_front_door(here), Verdict.OK, "is free")
    check(ports.check_dns_port(here), Verdict.OK, "is free")


def test_a_port_that_somebody_has_is_told_with_who_it_is(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        here = machine(tmp_path, port=port, dns_port=port)
        real = Machine(here.settings, {}, proc=Path("/proc"))
        check(ports.check_front_door(real), Verdict.BAD, "is taken by `", "CODIUS_PORT")
        check(ports.check_dns_port(real), Verdict.BAD, "is taken by `", "CODIUS_DNS_PORT")
        check(ports.check_front_door(here), Verdict.BAD, "by another process")


def test_a_udp_port_that_somebody_has_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        here = machine(tmp_path, dns_port=str(holder.getsockname()[1]))
        check(ports.check_dns_port(here), Verdict.BAD, "is taken")


@pytest.mark.parametrize(
    ("command", "verdict"),
    [
        ("python -m codius_node proxy", Verdict.OK),
        ("/usr/bin/python3 /usr/local/bin/codiusd run", Verdict.OK),
        ("nginx -c /srv/codius/nginx.conf", Verdict.BAD),
    ],
)
def test_a_port_that_our_own_process_has_is_fine(
    command: str, verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        here = machine(tmp_path, port=str(holder.getsockname()[1]))
        monkeypatch.setattr(ports, "find_holder", lambda *_: command)
        check(ports.check_front_door(here), verdict)


def test_the_ports_of_redirect_and_metrics_are_looked_at(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        here = machine(tmp_path, redirect_port=str(taken), metrics=f"127.0.0.1:{taken}")
        check(ports.check_redirect_port(here), Verdict.BAD, "is taken", "CODIUS_REDIRECT_PORT")
        check(ports.check_metrics_port(here), Verdict.BAD, "is taken", "CODIUS_METRICS")
    here = machine(tmp_path, redirect_port=str(free_port()), metrics=f"127.0.0.1:{free_port()}")
    check(ports.check_redirect_port(here), Verdict.OK, "is free")
    check(ports.check_metrics_port(here), Verdict.OK, "is free")
    check(ports.check_redirect_port(machine(tmp_path)), Verdict.SKIP)
    check(ports.check_metrics_port(machine(tmp_path)), Verdict.SKIP)
    check(ports.check_metrics_port(machine(tmp_path, metrics="192.0.2.1:9100")), Verdict.BAD, "no address")


def test_an_address_of_another_machine_is_told(tmp_path: Path) -> None:
    check(ports.check_front_door(machine(tmp_path, bind_ip="192.0.2.1")), Verdict.BAD, "no address of this")


def test_no_responder_needs_no_port(tmp_path: Path) -> None:
    check(ports.check_dns_port(machine(tmp_path, dns_port="0")), Verdict.SKIP)


def test_the_sockets_of_a_port_are_read_from_the_kernels_table() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1\n"
        "   1: 0100007F:0BB8 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 222 1\n"
        "   2: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1\n"
        "short\n"
    )
    assert ports.parse_socket_inodes(table, 3000, listening=True) == {"111"}
    assert ports.parse_socket_inodes(table, 3000, listening=False) == {"111", "222"}


HERE = [ip_address("192.0.2.2"), ip_address("2001:db8::2")]


@pytest.mark.parametrize(
    ("answers", "verdict", "said"),
    [
        ({"h": frozenset({"192.0.2.2"}), "p": frozenset({"2001:DB8:0::2"})}, Verdict.OK, "lead to"),
        ({"h": frozenset({"192.0.2.9"}), "p": frozenset({"192.0.2.2"})}, Verdict.BAD, "h is 192.0.2.9, not"),
        ({"h": frozenset({"192.0.2.2"}), "p": frozenset()}, Verdict.BAD, "p has no address"),
        ({"h": None, "p": None}, Verdict.WARN, "no answer"),
    ],
)
def test_the_public_name_leads_here(
    answers: dict[str, frozenset[str] | None], verdict: Verdict, said: str
) -> None:
    check(names.judge_names("h", HERE, answers), verdict, said)


def test_without_known_addresses_the_setting_is_named() -> None:
    check(names.judge_names("h", [], {}), Verdict.BAD, "", "CODIUS_PUBLIC_ADDRESSES")


def test_a_name_below_localhost_needs_no_check(tmp_path: Path) -> None:
    check(names.check_names(machine(tmp_path)), Verdict.SKIP, "nothing to check")


def test_names_are_looked_up_and_a_slow_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names.resolve(["127.0.0.1"]) == {"127.0.0.1": frozenset({"127.0.0.1"})}
    assert names.resolve(["127.0.0.1"], seconds=0) in (
        {"127.0.0.1": None},
        {"127.0.0.1": frozenset({"127.0.0.1"})},
    )
    assert names.resolve(["a..b"]) == {"a..b": frozenset()}


def test_pods_names_are_shown_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: frozenset[str] = frozenset({"192.0.2.2"})
    monkeypatch.setattr(names, "resolve", lambda names: {names[0]: found, names[1]: frozenset[str]()})
    here = machine(tmp_path, public_uri="https://codius.example.com", public_addresses="192.0.2.2")
    check(names.check_names(here), Verdict.BAD, "<hash>.codius.example.com has no address", "NS records")


# ---- room -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "verdict"), [(50 * GIB, Verdict.OK), (2 * GIB, Verdict.WARN), (GIB // 4, Verdict.BAD)]
)
def test_the_fullest_disk_decides(free: int, verdict: Verdict) -> None:
    finding = room.judge_disk({Path("/a"): 100 * GIB, Path("/b"): free})
    check(finding, verdict, "at /b")


@pytest.mark.parametrize(
    ("available", "fraction", "verdict", "said"),
    [
        (8 * GIB, 0.75, Verdict.OK, "room for 12 pods"),
        (2 * GIB, 0.75, Verdict.WARN, "no room"),
        (8 * GIB, 0.05, Verdict.WARN, "CODIUS_MAX_MEMORY_FRACTION=0.05"),
    ],
)
def test_the_fraction_decides_whether_there_is_memory_for_a_pod(
    available: int, fraction: float, verdict: Verdict, said: str
) -> None:
    check(room.judge_memory(available, 8 * GIB, fraction), verdict, said)


# ---- a real machine -------------------------------------------------------------------------------

DROPPING = (
    "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
)


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("nft") is None, reason="needs root and nft")
def test_in_a_namespace_with_a_firewall_it_is_found_and_nothing_is_changed(tmp_path: Path) -> None:
    script = (
        f"nft '{DROPPING}'; nft list ruleset > before; cat /proc/sys/net/ipv4/ip_forward >> before;"
        f" '{sys.executable}' -m codius_node doctor --json > found;"
        " nft list ruleset > after; cat /proc/sys/net/ipv4/ip_forward >> after"
    )
    subprocess.run(
        ["unshare", "--net", "sh", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "CODIUS_ROOT": str(tmp_path / "root"), "CODIUS_DNS_PORT": "0"},
        check=True,
        timeout=SECONDS,
    )
    found = {finding["name"]: finding for finding in json.loads((tmp_path / "found").read_text())["findings"]}
    assert found["other firewalls"]["verdict"] == "bad"
    assert "--src-group 77" in found["other firewalls"]["fix"]
    assert found["nftables"]["verdict"] == "ok"
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()
    assert not (tmp_path / "root").exists()


# ---- the front door -------------------------------------------------------------------------------

HOST = "codius.example"


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that others may pass through: tmp_path is the user's own."""
    with tempfile.TemporaryDirectory(prefix="doctor-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    ("module", "verdict", "said"),
    [("_ssl", Verdict.OK, "compiled"), ("codius_proxy.log_file", Verdict.WARN, "interpreted")],
)
def test_a_data_path_that_is_interpreted_is_told(
    module: str, verdict: Verdict, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_door, "DATA_PATH", module)
    check(front_door.check_data_path(machine(tmp_path)), verdict, said)


def secured(path: Path) -> Machine:
    return machine(
        path, euid=os.geteuid(), public_uri=f"https://{HOST}", tls_certificates=str(path / "certificates")
    )


@pytest.mark.parametrize(
    ("names", "days", "verdict", "said", "fix"),
    [
        ((HOST, f"*.{HOST}"), 90, Verdict.OK, "until", ""),
        ((HOST,), 90, Verdict.BAD, f"is for *.{HOST}", "all pods"),
        ((f"*.{HOST}",), 90, Verdict.BAD, f"is for {HOST}", "all pods"),
        (("other.example",), 90, Verdict.BAD, f"is for {HOST} and *.{HOST}", ""),
        ((HOST, f"*.{HOST}"), 13, Verdict.WARN, "ends on", "renewed"),
        ((HOST, f"*.{HOST}"), -1, Verdict.BAD, "ended on", "renew"),
    ],
)
def test_certificates_cover_the_host_and_its_pods_for_some_time(
    names: tuple[str, ...], days: int, verdict: Verdict, said: str, fix: str, open_path: Path
) -> None:
    Authority().issue(open_path / "certificates" / "one", *names, days=days)
    check(front_door.check_certificates(secured(open_path)), verdict, said, fix)


def test_of_two_certificates_for_a_name_the_one_that_ends_later_counts(open_path: Path) -> None:
    authority = Authority()
    authority.issue(open_path / "certificates" / "old", HOST, f"*.{HOST}", days=1)
    authority.issue(open_path / "certificates" / "new", HOST, days=90)
    check(front_door.check_certificates(secured(open_path)), Verdict.WARN, f"that for *.{HOST} ends")
    authority.issue(open_path / "certificates" / "pods", f"*.{HOST}", days=90)
    check(front_door.check_certificates(secured(open_path)), Verdict.OK)


def test_certificates_that_cannot_be_served_are_told(open_path: Path) -> None:
    check(front_door.check_certificates(machine(open_path)), Verdict.SKIP)
    check(front_door.check_certificates(secured(open_path)), Verdict.BAD, "No such file")
    (open_path / "certificates").mkdir()
    check(front_door.check_certificates(secured(open_path)), Verdict.WARN, "none in")
    authority = Authority()
    authority.issue(open_path / "certificates" / "one", HOST, f"*.{HOST}")
    authority.issue(open_path / "other", HOST)
    shutil.copy(open_path / "other" / KEY_FILE, open_path / "certificates" / "one" / KEY_FILE)
    check(front_door.check_certificates(secured(open_path)), Verdict.BAD, "is not the key of")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files that the front door's user cannot read")
def test_files_that_the_front_doors_user_cannot_use_are_told(open_path: Path) -> None:
    Authority().issue(open_path / "certificates" / "one", HOST, f"*.{HOST}", days=90)
    key = open_path / "certificates" / "one" / KEY_FILE
    key.chmod(0o600)
    check(front_door.check_certificates(secured(open_path)), Verdict.BAD, f"cannot read {key}", "chgrp")
    key.chmod(0o644)
    check(front_door.check_certificates(secured(open_path)), Verdict.OK)
    key.parent.chmod(0o700)
    check(front_door.check_certificates(secured(open_path)), Verdict.BAD, "cannot read")

    log = open_path / "log" / "access.log"
    logging_host = machine(open_path, access_log=str(log))
    check(front_door.check_access_log(logging_host), Verdict.BAD, "is no directory", "install -d")
    log.parent.mkdir()
    check(front_door.check_access_log(logging_host), Verdict.BAD, f"cannot write to {log.parent}", "install")
    log.parent.chmod(0o777)
    check(front_door.check_access_log(logging_host), Verdict.OK)
    log.touch(mode=0o600)
    check(front_door.check_access_log(logging_host), Verdict.BAD, f"cannot write to {log}", "chown")


def test_a_front_door_without_a_log_needs_no_place_for_it(tmp_path: Path) -> None:
    check(front_door.check_access_log(machine(tmp_path)), Verdict.SKIP)
