"""The systemd units: well-formed for systemd itself, hardened, and of one mind with the settings."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from codius_node import daemon, privileges
from codius_node.config import DECLARED, load

SYSTEMD = Path(__file__).parents[2] / "systemd"
SERVICES = ("codius-node.service", "codius-proxy.service", "codius-dns.service")
UNITS = (*SERVICES, "codius.target")
FACING_THE_INTERNET = SERVICES[1:]
COMMAND = "/usr/local/bin/codiusd"
SETTINGS = "/etc/codius/codius.env"
SYSTEMD_SECONDS = 60

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def read(name: str) -> dict[str, list[str]]:
    """Values by `Section.Key`, in order, as systemd reads a unit file."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (SYSTEMD / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


def conf_lines(name: str) -> Iterator[list[str]]:
    for line in (SYSTEMD / name).read_text().splitlines():
        if line and not line.startswith("#"):
            yield line.split()


def test_there_is_nothing_else_in_the_directory() -> None:
    assert {path.name for path in SYSTEMD.iterdir()} == {
        *UNITS,
        "codius.sysusers.conf",
        "codius.tmpfiles.conf",
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_its_own_command_with_the_operators_settings(name: str) -> None:
    unit = read(name)
    part = name.removeprefix("codius-").removesuffix(".service")
    if part == "proxy":  # it reads them again when it is told to
        assert unit["Service.ExecStart"] == [f"{COMMAND} proxy --env-file {SETTINGS}"]
        assert "Service.EnvironmentFile" not in unit
    else:
        assert unit["Service.ExecStart"] == [f"{COMMAND} {part}"]
        assert unit["Service.EnvironmentFile"] == [f"-{SETTINGS}"]
    assert unit["Service.Type"] == ["notify"]
    assert unit["Unit.PartOf"] == unit["Install.WantedBy"] == ["codius.target"]


def test_the_target_starts_all_three() -> None:
    assert read("codius.target")["Unit.Wants"] == [" ".join(SERVICES)]


@pytest.mark.parametrize("name", FACING_THE_INTERNET)
def test_what_faces_the_internet_may_only_open_its_port(name: str) -> None:
    unit = read(name)
    assert unit["Service.CapabilityBoundingSet"] == ["CAP_NET_BIND_SERVICE"]
    assert unit["Service.AmbientCapabilities"] == ["CAP_NET_BIND_SERVICE"]
    assert unit["Service.NoNewPrivileges"] == ["yes"]
    assert unit["Service.ProtectSystem"] == ["strict"]
    assert unit["Service.User"] not in (["root"], [""])
    assert "Service.ReadWritePaths" not in unit


def test_each_part_that_faces_the_internet_has_a_user_of_its_own_and_it_is_made() -> None:
    users = {read(name)["Service.User"][0] for name in FACING_THE_INTERNET}
    assert len(users) == 2
    made = {line[1] for line in conf_lines("codius.sysusers.conf") if line[0] == "u"}
    assert users <= made
    assert privileges.UNPRIVILEGED_USERS[0] in made


def test_the_front_door_has_a_directory_for_its_log() -> None:
    unit = read("codius-proxy.service")
    assert unit["Service.LogsDirectory"] == ["codius"]


@pytest.mark.parametrize(
    ("name", "reload"),
    [("node", None), ("proxy", ["/bin/kill -HUP $MAINPID"]), ("dns", ["/bin/kill -HUP $MAINPID"])],
)
def test_what_takes_up_changes_can_be_reloaded_and_nothing_else(name: str, reload: list[str] | None) -> None:
    assert read(f"codius-{name}.service").get("Service.ExecReload") == reload


def test_the_front_door_may_read_the_settings_and_nobody_else_may() -> None:
    [rights] = [line for line in conf_lines("codius.tmpfiles.conf") if line[1] == SETTINGS]
    assert rights == ["z", SETTINGS, "0640", "root", daemon.SOCKET_GROUP, "-"]


def test_the_front_door_is_in_the_group_of_the_sockets() -> None:
    [group] = read("codius-proxy.service")["Service.SupplementaryGroups"]
    assert group == daemon.SOCKET_GROUP
    assert "Service.SupplementaryGroups" not in read("codius-dns.service")


def test_the_node_keeps_few_capabilities_and_its_pods_alive() -> None:
    unit = read("codius-node.service")
    assert set(unit["Service.CapabilityBoundingSet"][0].split()) == {
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_SYS_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
    }
    assert unit["Unit.Requires"] == ["podman.socket"]
    assert "podman.socket" in unit["Unit.After"][0]
    assert unit["Service.KillMode"] == ["mixed"]


def test_the_directories_are_those_of_the_settings() -> None:
    settings = load({})
    made = {line[1]: line[2] for line in conf_lines("codius.tmpfiles.conf") if line[0] == "d"}
    assert made[str(settings.root)] == "0700"
    assert made[str(settings.run)] == "0755"
    unit = read("codius-node.service")
    assert f"/var/lib/{unit['Service.StateDirectory'][0]}" == str(settings.root)
    assert f"/run/{unit['Service.RuntimeDirectory'][0]}" == str(settings.run)


def test_every_variable_set_in_a_unit_is_a_setting() -> None:
    known = {setting.name for setting in DECLARED.values()}
    for name in SERVICES:
        for assignment in read(name).get("Service.Environment", []):
            assert assignment.partition("=")[0] in known
    environment = read("codius-dns.service")["Service.Environment"]
    assert load(dict(item.split("=", 1) for item in environment)).dns_port == 53


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    # It looks for the programs, which need not be where this is only tested (ours; kill, of procps); verify
    # exits 0 on bad keys.
    for name in UNITS:
        text = (SYSTEMD / name).read_text().replace(COMMAND, "/bin/true").replace("/bin/kill", "/bin/true")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
        timeout=SYSTEMD_SECONDS,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize(
    ("name", "most"), [("codius-node.service", 40), ("codius-proxy.service", 17), ("codius-dns.service", 17)]
)
def test_systemd_finds_the_units_hardened(name: str, most: int) -> None:
    """`most` is the exposure in tenths; 100 is a unit without any hardening."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", str(SYSTEMD / name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SYSTEMD_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_systemd_understands_the_users() -> None:
    done = subprocess.run(
        ["systemd-sysusers", "--dry-run", str(SYSTEMD / "codius.sysusers.conf")],
        capture_output=True,
        text=True,
        check=False,
        timeout=SYSTEMD_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert "Failed" not in done.stderr
