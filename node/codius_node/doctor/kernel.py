"""The kernel's network: our table, forwarding, and other people's firewalls."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from codius_netpolicy.nft import Nft
from codius_netpolicy.policy import PolicyError
from codius_netpolicy.ruleset import render_table
from codius_node.doctor.findings import Finding, bad, ok, skip
from codius_node.doctor.machine import Machine
from codius_node.firewalls import Blocker, find_blockers, render_fix
from codius_node.policy import build_policy

SWITCHES: Final = (Path("sys/net/ipv4/ip_forward"), Path("sys/net/ipv6/conf/all/forwarding"))
"""Below /proc; the second one matters when pods have IPv6."""


def check_nftables(machine: Machine) -> Finding:
    if machine.euid != 0:  # libnftables would write an error of its own between the findings
        return skip("nftables", "only root can ask the kernel")
    try:
        Nft().check(render_table(build_policy(machine.settings), {}))
    except PolicyError as error:
        return bad("nftables", error.message, error.hint or "modprobe nf_tables")
    return ok("nftables", "the kernel would take our table (tried without applying it)")


def check_forwarding(machine: Machine) -> Finding:
    switches = SWITCHES if machine.settings.pod_network_6 is not None else SWITCHES[:1]
    off = [switch for switch in switches if _read_switch(machine.proc / switch) != "1"]
    if not off:
        return ok("forwarding", "on")
    for switch in off:
        if not (machine.proc / switch).exists():
            return bad("forwarding", "this kernel has no IPv6", "unset CODIUS_POD_NETWORK_6")
        if machine.euid == 0 and not os.access(machine.proc / switch, os.W_OK):
            name = switch.relative_to("sys").as_posix().replace("/", ".")
            return bad(
                "forwarding",
                "off, and /proc/sys is read-only here: pods could not reach the internet",
                f"sysctl -w {name}=1, outside of this container",
            )
    return ok("forwarding", "off for now; the node turns it on when it starts")


def _read_switch(path: Path) -> str | None:
    return path.read_text().strip() if path.exists() else None


def check_firewalls(machine: Machine) -> Finding:
    if machine.euid != 0:
        return skip("other firewalls", "only root can ask the kernel")
    if shutil.which("nft") is None:
        return bad("other firewalls", "cannot be asked for: nft is not installed", "apt install nftables")
    return judge_blockers(find_blockers(build_policy(machine.settings), proc=machine.proc))


def judge_blockers(blockers: Sequence[Blocker]) -> Finding:
    if not blockers:
        return ok("other firewalls", "none that drops what pods send")
    return bad("other firewalls", "; ".join(blocker.message for blocker in blockers), render_fix(blockers))
