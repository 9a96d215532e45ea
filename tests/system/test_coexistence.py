"""Beside other firewalls: docker's rules as it writes them, a real ufw and a real firewalld.

They work in the host's namespace, on copies of their directories: this machine's own stay as they are.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from codius_netpolicy.policy import Egress
from codius_netpolicy.ranges import Address
from tests.harness.host import clean_environment
from tests.harness.namespaces import FAR_ADDRESS, FAR_ADDRESS6, HostNetwork, missing_privilege
from tests.harness.world import Visitor, open_world
from tests.system.bare import BOTH, DEFAULT, DUAL, PORT, A, B, World, family_of, pause
from tests.system.test_host import MISSING

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(missing_privilege() is not None, reason=str(missing_privilege())),
]

DOCKER: Final = """
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""
DOCKER_NAT: Final = """
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8088 -j DNAT --to-destination 172.17.0.2:80
COMMIT
"""
DOCKER6: Final = "\n".join(line for line in DOCKER.splitlines() if "172." not in line) + "\n"
NATIVE: Final = """
table inet mine {
  set lan { type ipv4_addr; flags interval; elements = { 192.168.0.0/16 } }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state vmap { established : accept, related : accept, invalid : drop }
    ip saddr @lan accept
    iifname "lan0" tcp dport { 80, 443 } accept
  }
}
"""
WATCH: Final = """
table inet watch {
  chain seen {
    type filter hook forward priority -500
    iifname "cp*" udp dport 8080 counter
  }
  chain passed {
    type filter hook postrouting priority 500
    udp dport 8080 counter
  }
}
"""
"""Counts probes before any firewall has judged them, and behind them all."""
BUS: Final = "unix:abstract=codius-test-bus"
"""Abstract addresses belong to a network namespace: this one is the host's alone."""
BUS_CONFIGURATION: Final = f"""
<busconfig>
  <type>system</type>
  <listen>{BUS}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
"""


@dataclass
class Neighbour:
    """Another firewall on the host, with copies of its directories in their places."""

    net: HostNetwork
    directories: Mapping[str, Path] = field(default_factory=dict)
    """The directories of this machine that it sees copies of, and where these are."""
    env: Mapping[str, str] = field(default_factory=dict)

    def run(self, command: str) -> str:
        """By a shell on the host."""
        return self.net.host.exec(*self.enter("sh", "-c", command), env=self._environment()).stdout

    def spawn(self, *command: str, **streams: Any) -> subprocess.Popen[bytes]:
        return self.net.host.spawn(*self.enter(*command), env=self._environment(), **streams)

    def enter(self, *command: str) -> list[str]:
        hide = ["mount --make-rprivate /", "mount -t tmpfs tmpfs /run"]
        hide += [f"mount --bind '{copy}' {original}" for original, copy in self.directories.items()]
        return ["unshare", "--mount", "sh", "-c", " && ".join((*hide, 'exec "$@"')), "sh", *command]

    def _environment(self) -> dict[str, str]:
        return {**clean_environment(), **self.env}


def copy_directories(tmp_path: Path, *originals: str) -> dict[str, Path]:
    copies = {original: tmp_path / original.strip("/").replace("/", "-") for original in originals}
    for original, copy in copies.items():
        shutil.copytree(original, copy, symlinks=True)
    return copies


def examine(world: World, tmp_path: Path) -> dict[str, Any]:
    """What the doctor finds about other firewalls, on the host."""
    settings = {"CODIUS_ROOT": str(tmp_path / "root"), "CODIUS_DNS_PORT": "0"}
    if world.network.policy.pool6 is not None:
        settings["CODIUS_POD_NETWORK_6"] = str(world.network.policy.pool6)
    done = world.net.host.exec(
        *(sys.executable, "-m", "codius_node", "doctor", "--json"),
        check=False,
        env=clean_environment() | settings,
    )
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    finding: dict[str, Any] = findings["other firewalls"]
    return finding


def listings(net: HostNetwork) -> dict[str, str]:
    """Every table but ours, counters left out."""
    tables = [line.removeprefix("table ") for line in net.exec("nft", "list", "tables").stdout.splitlines()]
    return {
        table: net.exec("nft", "--stateless", "list", "table", *table.split()).stdout
        for table in tables
        if table != "inet codius"
    }


async def is_dead(world: World, to: Address = FAR_ADDRESS) -> bool:
    """Whether what the pod sends is stopped on its way through the host."""
    seen, passed = count(world.net)
    with world.a.socket(family_of(to), socket.SOCK_DGRAM) as sender:
        # Two: when the second has been seen, the first one's fate is sealed.
        for _ in range(2):
            sender.sendto(b"probe", (str(to), PORT))
    while count(world.net)[0] < seen + 2:
        await pause(f"probes to {to}")
    return count(world.net)[1] == passed


def count(net: HostNetwork) -> tuple[int, int]:
    listing = net.exec("nft", "list", "table", "inet", "watch").stdout
    seen, passed = (int(packets) for packets in re.findall(r"counter packets (\d+)", listing))
    return seen, passed


def exchange(world: World, to: Address = FAR_ADDRESS) -> None:
    """A connection of the pod's to the internet, used both ways; it raises when there is none."""
    listener = world.listen(world.net.internet, address=str(to))
    with listener, world.connect(world.a, to) as connection:
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"hello")
            assert connection.recv(64) == b"hello"


async def check_fix(world: World, tmp_path: Path, neighbour: Neighbour, name: str, *targets: Address) -> str:
    """Dead, found, and alive with the command that was printed; the command."""
    for target in targets:
        assert await is_dead(world, target), f"{target} is reached beside {name}"
    finding = examine(world, tmp_path)
    assert finding["verdict"] == "bad"
    assert finding["message"].startswith(f"{name} (table ")
    neighbour.run(finding["fix"])
    check_alive(world, tmp_path, *targets)
    fix: str = finding["fix"]
    return fix


def check_alive(world: World, tmp_path: Path, *targets: Address) -> None:
    for target in targets:
        exchange(world, target)
    finding = examine(world, tmp_path)
    assert finding["verdict"] == "ok", finding


@pytest_asyncio.fixture
async def dual(make_world: Callable[..., Any]) -> AsyncIterator[World]:
    """The bare world, its pods with IPv6, too."""
    world: World = await make_world(DUAL)
    yield world
    await world.network.aclose()


async def test_beside_no_other_firewall_pods_reach_the_internet(dual: World, tmp_path: Path) -> None:
    """The guard of the tests below: their probes are seen to arrive."""
    dual.net.host.nft(WATCH)
    for target in (FAR_ADDRESS, FAR_ADDRESS6):
        assert not await is_dead(dual, target)
    check_alive(dual, tmp_path, FAR_ADDRESS, FAR_ADDRESS6)


async def test_beside_docker(dual: World, tmp_path: Path) -> None:
    docker = Neighbour(dual.net)
    dual.net.host.nft(WATCH)
    for rules, restore in ((DOCKER, "iptables"), (DOCKER_NAT, "iptables"), (DOCKER6, "ip6tables")):
        dual.net.host.exec(f"{restore}-restore", "--noflush", stdin=rules)
    before = examine(dual, tmp_path)["fix"].split("; ")
    docker.run(before[0])
    assert examine(dual, tmp_path)["fix"] == "; ".join(before), "one of the two ways is not enough"
    docker.run(before[0].replace("-I", "-D"))
    fix = await check_fix(dual, tmp_path, docker, "docker", FAR_ADDRESS, FAR_ADDRESS6)
    assert "iptables -I DOCKER-USER -m devgroup --src-group 77 -j ACCEPT" in fix
    assert "ip6tables -I DOCKER-USER -m devgroup --dst-group 77 -j ACCEPT" in fix


async def test_beside_ufw(dual: World, tmp_path: Path) -> None:
    ufw = Neighbour(dual.net, copy_directories(tmp_path, "/etc/ufw", "/etc/default"))
    dual.net.host.nft(WATCH)
    ufw.run("ufw --force enable")
    ufw.run("ufw route deny from 10.0.0.0/8")
    fix = await check_fix(dual, tmp_path, ufw, "ufw", FAR_ADDRESS, FAR_ADDRESS6)
    assert fix == (f"ufw route prepend allow from {DUAL.pool}; ufw route prepend allow from {DUAL.pool6}")
    ufw.run("ufw reload")
    check_alive(dual, tmp_path, FAR_ADDRESS, FAR_ADDRESS6)
    # As at the next boot: everything again, from its files alone.
    ufw.run("/lib/ufw/ufw-init stop; /lib/ufw/ufw-init flush-all; /lib/ufw/ufw-init start")
    check_alive(dual, tmp_path, FAR_ADDRESS, FAR_ADDRESS6)


async def test_beside_docker_and_ufw_the_lasting_fix_is_enough(world: World, tmp_path: Path) -> None:
    both = Neighbour(world.net, copy_directories(tmp_path, "/etc/ufw", "/etc/default"))
    world.net.host.nft(WATCH)
    both.run("ufw --force enable")
    for rules in (DOCKER, DOCKER_NAT):
        world.net.host.exec("iptables-restore", "--noflush", stdin=rules)
    fix = await check_fix(world, tmp_path, both, "ufw", FAR_ADDRESS)
    assert fix == f"ufw route prepend allow from {DEFAULT.pool}"


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
async def test_beside_firewalld(dual: World, tmp_path: Path, backend: str) -> None:
    dual.net.host.nft(WATCH)
    firewalld = await start_firewalld(dual.net, tmp_path, backend)
    fix = await check_fix(dual, tmp_path, firewalld, "firewalld", FAR_ADDRESS, FAR_ADDRESS6)
    assert fix == (
        f"firewall-cmd --permanent --zone=trusted --add-source={DUAL.pool};"
        f" firewall-cmd --permanent --zone=trusted --add-source={DUAL.pool6}; firewall-cmd --reload"
    )
    firewalld.run("firewall-cmd --complete-reload")
    check_alive(dual, tmp_path, FAR_ADDRESS, FAR_ADDRESS6)


async def start_firewalld(net: HostNetwork, tmp_path: Path, backend: str) -> Neighbour:
    """On a bus of its own; both end with the host."""
    (tmp_path / "log").mkdir()
    directories = {**copy_directories(tmp_path, "/etc/firewalld"), "/var/log": tmp_path / "log"}
    configuration = directories["/etc/firewalld"] / "firewalld.conf"
    configuration.write_text(
        re.sub(r"(?m)^FirewallBackend=.*$", f"FirewallBackend={backend}", configuration.read_text())
    )
    firewalld = Neighbour(net, directories, {"DBUS_SYSTEM_BUS_ADDRESS": BUS})
    (tmp_path / "bus.conf").write_text(BUS_CONFIGURATION)
    with (tmp_path / "output").open("wb") as output:
        bus = firewalld.spawn(
            *("dbus-daemon", f"--config-file={tmp_path}/bus.conf", "--nofork", "--nopidfile"),
            "--print-address",
            stdout=subprocess.PIPE,
            stderr=output,
        )
        assert bus.stdout is not None
        assert bus.stdout.readline(), "the bus did not start"
        process = firewalld.spawn("firewalld", "--nofork", "--nopid", stdout=output, stderr=output)
    while "running" not in firewalld.run("firewall-cmd --state || true").split():
        assert process.poll() is None, (tmp_path / "output").read_text()
        await pause("firewalld")
    return firewalld


async def test_beside_a_table_of_the_operators_own(dual: World, tmp_path: Path) -> None:
    dual.net.host.nft(WATCH + NATIVE)
    fix = await check_fix(dual, tmp_path, Neighbour(dual.net), "nftables", FAR_ADDRESS, FAR_ADDRESS6)
    assert fix.startswith("nft insert rule inet mine forward iifgroup 77 accept; ")


async def test_beside_the_kernels_older_tables(world: World, tmp_path: Path) -> None:
    world.net.host.nft(WATCH)
    world.net.host.exec("iptables-legacy-restore", stdin=DOCKER)
    assert "DOCKER" not in world.net.exec("nft", "list", "ruleset").stdout
    fix = await check_fix(world, tmp_path, Neighbour(world.net), "docker", FAR_ADDRESS)
    assert fix.startswith("iptables-legacy -I DOCKER-USER -m devgroup --src-group 77 -j ACCEPT; ")


async def test_other_tables_are_left_as_they_are(
    net: HostNetwork, make_world: Callable[..., Any], tmp_path: Path
) -> None:
    for rules, restore in ((DOCKER, "iptables"), (DOCKER_NAT, "iptables"), (DOCKER6, "ip6tables")):
        net.host.exec(f"{restore}-restore", "--noflush", stdin=rules)
    net.host.nft(WATCH + NATIVE)
    before = listings(net)
    assert len(before) == 5
    world: World = await make_world(DUAL)  # starts, and attaches two pods
    assert listings(net) == before, "start and attach"
    await world.network.change(Egress(denied_ranges=(IPv4Network("203.0.113.0/24"),)))
    assert listings(net) == before, "change"
    await world.network.repair()
    assert listings(net) == before, "repair"
    assert examine(world, tmp_path)["verdict"] == "bad"
    assert listings(net) == before, "doctor"
    net.exec("iptables", "-A", "DOCKER-USER", "-s", "10.77.0.0/16", "-j", "RETURN")
    assert listings(net) != before
    net.exec("iptables", "-D", "DOCKER-USER", "-s", "10.77.0.0/16", "-j", "RETURN")
    assert await world.network.check() == (), "iptables leaves ours alone as well"
    await world.network.detach(A)
    assert listings(net) == before, "detach"
    await world.network.start(BOTH)
    assert listings(net) == before, "start again"
    await world.network.detach(B)
    await world.network.stop()
    assert listings(net) == before, "stop"
    assert "inet codius" not in net.exec("nft", "list", "tables").stdout
    await world.network.aclose()


@pytest.mark.skipif(bool(MISSING), reason=f"a whole host needs {', '.join(MISSING)}: sudo make test")
async def test_a_node_that_starts_beside_docker_names_the_fix_and_serves() -> None:
    async with open_world(units=True) as host_world:
        host, net = host_world.host, host_world.network
        hash = await host_world.run()
        assert "drops what is forwarded" not in host.log.read_text()
        await asyncio.to_thread(host.stop_part, "node")
        net.host.exec("iptables-restore", "--noflush", stdin=DOCKER)
        await asyncio.to_thread(partial(host.start_part, "node", **host_world.settings))
        (line,) = [line for line in host.log.read_text().splitlines() if "drops what is forwarded" in line]
        assert "docker (table ip filter)" in line
        net.host.exec("sh", "-c", line.partition("the fix: ")[2])
        done = host.codiusd("doctor", "--json", inside=True, check=False)
        findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
        assert findings["other firewalls"]["verdict"] == "ok"
        async with Visitor(host.port) as visitor:
            assert (await visitor.get(hash)).status == 200
