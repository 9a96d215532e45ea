"""The kernel's network: our table, forwarding, and other people's firewalls."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from codius_netpolicy.nft import Nft
from codius_netpolicy.policy import PolicyError
from codius_netpolicy.ruleset import render_table
from codius_node.doctor.findings import Finding, bad, ok, skip
from codius_node.doctor.machine import Machine
from codius_node.firewalls import Blocker, find_blockers, render_fix
from codius_node.policy import build_policy


def check_nftables(machine: Machine) -> Finding:
    try:
        Nft().check(render_table(build_policy(machine.settings), {}))
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
