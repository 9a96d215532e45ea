"""Other firewalls of this machine: which of them keep pods from the internet, and the command that mends it.

A drop in anybody's table wins; an accept of ours only ends our own. So nothing but a rule of theirs helps.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from codius_netpolicy.addressing import LINK_PREFIX
from codius_netpolicy.policy import Policy
from codius_node import forwarding
from codius_node.forwarding import Key, Network, Packet, Table

logger = logging.getLogger(__name__)

COMMAND_SECONDS: Final = 10.0
"""For a listing; it takes tens of milliseconds."""
MAX_ERROR_TEXT: Final = 200
"""Characters of what a command complained about."""
HTTPS: Final = 443
"""The port of the connection that is tried on the rules: one that no sane firewall means to stop."""
FORGETS: Final = "again after each boot"
"""Of rules in the kernel alone."""
LEGACY: Final = "filter (legacy)"
"""The table of that name in the kernel's older tables, which nft does not list."""
LEGACY_TABLES: Final = (
    ("ip_tables_names", "ip", "iptables-legacy"),
    ("ip6_tables_names", "ip6", "ip6tables-legacy"),
)
"""Below /proc/net, who is in use; of which family; who shows them."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A firewall that stops what pods send, or the answers."""

    name: str
    """Of the firewall: docker, ufw, firewalld, or of the tool its rules were made with."""
    table: str
    commands: tuple[str, ...]
    """What mends it, as root; for good where the firewall has a memory of its own."""
    note: str = ""
    """What else it takes to last."""

    @property
    def message(self) -> str:
        return f"{self.name} (table {self.table}) drops what is forwarded: pods could not reach the internet"


def render_fix(blockers: Iterable[Blocker]) -> str:
    """One line for a root shell; what a shell cannot do follows as its comment."""
    blockers = tuple(blockers)
    commands = [command for blocker in blockers for command in blocker.commands]
    # Of equal ones the last: a reload comes after all that it is to load.
    once = [command for place, command in enumerate(commands) if command not in commands[place + 1 :]]
    notes = dict.fromkeys(blocker.note for blocker in blockers if blocker.note)
    return "; ".join(once) + (f"  # {'; '.join(notes)}" if notes else "")


def report_blockers(policy: Policy) -> None:
    """Logs what keeps pods from the internet. The node starts all the same: a fix needs no restart."""
    try:
        blockers = find_blockers(policy)
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        logger.warning("other firewalls could not be looked at: %s", error)
        return
    for blocker in blockers:
        logger.warning("%s; the fix: %s", blocker.message, render_fix([blocker]))


def find_blockers(policy: Policy, *, proc: Path = Path("/proc")) -> tuple[Blocker, ...]:
    """Reads the rules in force here, as root, and changes none.

    OSError, RuntimeError, ValueError or subprocess.SubprocessError when they cannot be read.
    """
    tables = forwarding.parse_nft(json.loads(_run("nft", "--json", "--terse", "list", "ruleset")))
    texts = {table.family: _read_iptables(table) for table in tables if _is_iptables(table)}
    read = [texts.get(table.family) or table if _is_iptables(table) else table for table in tables]
    return judge((*read, *_read_legacy(proc)), policy, _read_uplinks(proc))


# ---- the decision ---------------------------------------------------------------------------------


def judge(tables: Iterable[Table], policy: Policy, uplinks: Collection[str] = ()) -> tuple[Blocker, ...]:
    """The blockers among the tables, each with the fix for those of the policy's pools that it blocks."""
    pools: list[Network] = [policy.pool] if policy.pool6 is None else [policy.pool, policy.pool6]
    found: list[Blocker] = []
    for table in tables:
        if table.name == policy.table:
            continue
        blocked: dict[str, list[Network]] = {}
        for pool in pools:
            if table.family not in ("inet", "ip" if pool.version == 4 else "ip6"):
                continue
            for packet in describe_packets(pool, policy.group, uplinks):
                chain = table.find_dropping_chain(packet)
                if chain is not None and pool not in blocked.setdefault(chain.name, []):
                    blocked[chain.name].append(pool)
        found.extend(_explain(table, chain, hit, policy.group) for chain, hit in blocked.items())
    return tuple(found)


def describe_packets(pool: Network, group: int, uplinks: Collection[str]) -> tuple[Packet, Packet]:
    """The first packet of a pod's HTTPS connection, and the first of the answer."""
    pods, far = (f"{LINK_PREFIX}*",), tuple(uplinks)
    both: Packet = {
        Key.FAMILY: (f"ipv{pool.version}",),
        Key.TRANSPORT: ("tcp",),
    }
    there: Packet = {
        Key.LINK_IN: pods, Key.GROUP_IN: (group,), Key.LINK_OUT: far,
        Key.SOURCE: (pool,), Key.PORT_TO: (HTTPS,), Key.STATE: ("new",),
    }  # fmt: skip
    back: Packet = {
        Key.LINK_OUT: pods, Key.GROUP_OUT: (group,), Key.LINK_IN: far,
        Key.DESTINATION: (pool,), Key.PORT_FROM: (HTTPS,), Key.STATE: ("established",),
    }  # fmt: skip
    return {**both, **there}, {**both, **back}


def _explain(table: Table, chain: str, pools: Sequence[Network], group: int) -> Blocker:
    shown = f"{table.family} {table.name}"
    if table.name == "firewalld" or "FORWARD_ZONES" in table.chains:
        sources = (f"firewall-cmd --permanent --zone=trusted --add-source={pool}" for pool in pools)
        return Blocker("firewalld", shown, (*sources, "firewall-cmd --reload"))
    if any(name.startswith(("ufw-", "ufw6-")) for name in table.chains):
        # Prepended, for ufw's rules are asked in order and one of the operator's own may deny.
        return Blocker("ufw", shown, tuple(f"ufw route prepend allow from {pool}" for pool in pools))
    if _is_iptables(table) or table.name == LEGACY:
        command = _iptables(table) + ("-legacy" if table.name == LEGACY else "")
        docker = "DOCKER-USER" in table.chains
        insert = f"{command} -I {'DOCKER-USER' if docker else chain} -m devgroup"
        ways = tuple(f"{insert} --{way}-group {group} -j ACCEPT" for way in ("src", "dst"))
        return Blocker("docker" if docker else command, shown, ways, FORGETS)
    ways = tuple(f"nft insert rule {shown} {chain} {way}ifgroup {group} accept" for way in ("i", "o"))
    return Blocker("nftables", shown, ways, "and the same rules into the file that makes this table")


def _is_iptables(table: Table) -> bool:
    """Made by iptables-nft; nobody else writes its chains in capitals."""
    return table.family in ("ip", "ip6") and table.name == "filter" and "FORWARD" in table.chains


def _iptables(table: Table) -> str:
    return "iptables" if table.family == "ip" else "ip6tables"


# ---- reading --------------------------------------------------------------------------------------


def _read_iptables(table: Table) -> Table | None:
    """The table from iptables itself, since nft's JSON names only the module of many of its matches."""
    try:
        return forwarding.parse_iptables(_run(_iptables(table), "-S"), table.family, table.name)
    except (FileNotFoundError, RuntimeError):
        return None  # not installed, or somebody wrote rules into it that iptables does not understand


def _read_legacy(proc: Path) -> Iterator[Table]:
    for names, family, command in LEGACY_TABLES:
        try:
            in_use = (proc / "net" / names).read_text().split()
        except OSError:
            continue
        # Only asked when they are in use: asking would make them.
        if "filter" in in_use and shutil.which(command) is not None:
            yield forwarding.parse_iptables(_run(command, "-S"), family, LEGACY)


def _read_uplinks(proc: Path) -> frozenset[str]:
    """The links of the default routes, from /proc/net/route (proc(5)); IPv6 hardly ever has others."""
    try:
        rows = [line.split() for line in (proc / "net/route").read_text().splitlines()[1:]]
    except OSError:
        return frozenset()
    return frozenset(row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()[:MAX_ERROR_TEXT]}")
    return done.stdout
