"""What the front door is of, and needs as the user it becomes: certificates, and a place for its log."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from codius_node.doctor.findings import Finding, bad, ok, skip, warn
from codius_node.doctor.machine import Machine
from codius_node.privileges import UNPRIVILEGED_USERS
from codius_proxy.config import CertificateError
from codius_proxy.tls import CHAIN_FILE, KEY_FILE, Certificate, load

SOON: Final = timedelta(days=14)
"""Before a certificate ends: those who renew by themselves do it a month before."""
USERS: Final = ("codius-proxy", *UNPRIVILEGED_USERS)
"""Whom the front door becomes: the unit's user, and those of `codiusd run`."""
ACCESS_SECONDS: Final = 10.0
"""For `test`, which takes a millisecond, unless a file system hangs."""
DATA_PATH: Final = "codius_proxy.connection"
"""One of the modules that are compiled, and they are together or not at all."""


def check_data_path(_machine: Machine) -> Finding:
    found = find_spec(DATA_PATH)
    if found is not None and (found.origin or "").endswith(tuple(EXTENSION_SUFFIXES)):
        return ok("data path", "compiled")
    return warn(
        "data path",
        "interpreted: each request costs the front door twice the CPU time",
        "make install compiles it; in a tree that is worked on, make setup",
    )


def check_certificates(machine: Machine) -> Finding:
    settings = machine.settings
    directory = settings.tls_certificates
    if directory is None:
        return skip("certificates", "CODIUS_TLS_CERTIFICATES is not set: the front door speaks http")
    try:
        places = sorted(place for place in directory.iterdir() if (place / CHAIN_FILE).exists())
    except OSError as error:
        return bad("certificates", f"{directory}: {error.strerror}", "set CODIUS_TLS_CERTIFICATES to another")
    loaded: dict[Path, Certificate] = {}
    for place in places:
        try:
            loaded[place] = load(place)
        except CertificateError as error:
            return bad("certificates", str(error), f"give {place} a {CHAIN_FILE} and its {KEY_FILE}")
    user = find_user(machine)
    files = [place / name for place in places for name in (CHAIN_FILE, KEY_FILE)]
    if unreadable := find_denied(user, "-r", files):
        return bad(
            "certificates",
            f"the front door's user {user} cannot read {unreadable[0]}",
            f"chgrp codius {unreadable[0]}; chmod 640 {unreadable[0]}; its directories need the group's x",
        )
    return judge_certificates(settings.public_uri.host, directory, loaded, datetime.now(UTC))


def judge_certificates(
    host: str, directory: Path, loaded: Mapping[Path, Certificate], now: datetime
) -> Finding:
    """Whether both names of the host are covered, and for how long; the one that ends last is served."""
    if not loaded:
        return warn(
            "certificates",
            f"none in {directory} yet: until then no visitor can come",
            f"a folder in it with {CHAIN_FILE} and {KEY_FILE}, for {host} and *.{host}",
        )
    ends: dict[str, datetime] = {}
    for certificate in loaded.values():
        for name in certificate.names:
            ends[name] = max(certificate.expires, ends.get(name, certificate.expires))
    wanted = (host, f"*.{host}")
    if missing := [name for name in wanted if name not in ends]:
        return bad(
            "certificates",
            f"none in {directory} is for {' and '.join(missing)}",
            f"one certificate for {host} and *.{host} serves the host and all pods",
        )
    name = min(wanted, key=lambda wanted: ends[wanted])
    day = ends[name].date()
    if ends[name] <= now:
        return bad("certificates", f"that for {name} ended on {day}", "renew it; no reload is needed")
    if ends[name] <= now + SOON:
        return warn("certificates", f"that for {name} ends on {day}", "look why it was not renewed yet")
    return ok("certificates", f"for {host} and *.{host}, until {day}")


def check_access_log(machine: Machine) -> Finding:
    log = machine.settings.access_log
    if log is None:
        return skip("access log", "CODIUS_ACCESS_LOG is not set: none is written")
    user = find_user(machine)
    make = f"install -d -m 750 -o {user} {log.parent}"
    if not log.parent.is_dir():
        return bad(
            "access log", f"{log.parent} is no directory; codius-proxy.service makes /var/log/codius", make
        )
    # It also moves full files aside, which is writing to the directory.
    if find_denied(user, "-w", [log.parent]) or find_denied(user, "-x", [log.parent]):
        return bad("access log", f"the front door's user {user} cannot write to {log.parent}", make)
    if log.exists() and find_denied(user, "-w", [log]):
        return bad("access log", f"the front door's user {user} cannot write to {log}", f"chown {user} {log}")
    return ok("access log", f"{log}, which {user} can write and move aside")


def find_user(machine: Machine) -> str:
    """Whom the front door becomes: nobody else, where it is not started by root."""
    if machine.euid != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    names = {account.pw_name for account in pwd.getpwall()}
    return next(name for name in USERS if name in names)


def find_denied(user: str, flag: str, paths: Sequence[Path]) -> list[Path]:
    """Those of `paths` that the user may not read (`-r`), write (`-w`) or pass through (`-x`): test(1)."""
    account = pwd.getpwnam(user)
    become: dict[str, object] = {}
    if os.geteuid() == 0:  # asked as that user, the kernel knows of every directory, group and ACL on the way
        groups = os.getgrouplist(user, account.pw_gid)
        become = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
    return [path for path in paths if not _test(flag, path, become)]


def _test(flag: str, path: Path, become: Mapping[str, object]) -> bool:
    done = subprocess.run(  # type: ignore[call-overload]
        ["test", flag, str(path)], check=False, timeout=ACCESS_SECONDS, **become
    )
    return bool(done.returncode == 0)
