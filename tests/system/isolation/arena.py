"""A real host with two pods on it, one of them the attacker's, and sockets in every place."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from codius_netpolicy.addressing import host_mac, link_name, pod_mac
from tests.harness.namespaces import INTERNET_ADDRESS, INTERNET_ADDRESS6, UPLINK, HostNetwork, Namespace
from tests.harness.world import World, open_world
from tests.system.isolation.live import Counters, LiveTable
from tests.system.isolation.probe import METADATA, RANGES, RANGES6, RESOLVER, RESOLVER6
from tests.system.isolation.shots import POOL6, Pod, Scene
from tests.system.isolation.volley import Range

SETTINGS: Final = {"CODIUS_DEV": "true", "CODIUS_POD_RESOLVERS": f"{RESOLVER}"}
SETTINGS6: Final = {
    "CODIUS_POD_NETWORK_6": str(POOL6),
    "CODIUS_POD_RESOLVERS": f"{RESOLVER}, {RESOLVER6}, 2001:db8:1::2",
}
SYSCTLS: Final = Path("/proc/sys/net")
SYNACK_RETRIES: Final = SYSCTLS / "ipv4/tcp_synack_retries"
"""A kernel that repeated an answer would be heard, and counted, in somebody else's volley."""
WALL_PRIORITIES: Final = range(70, 80)
"""Of the second wall's `ip rule`s; the kernel's own are 0 and above 32000."""
IMPOSSIBLE: Final = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4")
"""Ranges of which nobody can have an address."""


@dataclass(frozen=True, slots=True)
class Arena:
    """A host, and what attacks it; `ip6` says whether its pods have IPv6."""

    ip6: bool
    world: World
    hashes: tuple[str, str]
    scene: Scene
    range: Range
    table: LiveTable

    @property
    def network(self) -> HostNetwork:
        return self.world.network

    def counters(self) -> Counters:
        """Of pod A."""
        pod = self.scene.attacker
        return self.table.counters(pod.link, (str(pod.address), str(pod.address6)))

    def forget_learned(self) -> None:
        """What the host has learned by pod A's link; neighbours, addresses and routes it was given stay."""
        link = self.scene.attacker.link
        self.network.exec("ip", "neigh", "flush", "dev", link)
        self.network.exec("ip", "-6", "addr", "flush", "dev", link, "dynamic")
        self.network.exec("ip", "-6", "route", "flush", "dev", link, "proto", "ra")

    def set_link_settings(self, values: Mapping[str, str]) -> None:
        """Sysctls of the host; `{link}` in their names is the host's end of pod A's link."""
        for name, value in values.items():
            path = SYSCTLS / name.format(link=self.scene.attacker.link)
            self.network.host.call(partial(path.write_text, value))

    def remove_routing_wall(self) -> None:
        """Nothing puts it back: the node must not run."""
        for family in ("-4", "-6"):
            rules = json.loads(self.network.exec("ip", family, "-json", "rule").stdout)
            for rule in rules:
                if rule["priority"] in WALL_PRIORITIES:
                    self.network.exec("ip", family, "rule", "del", "priority", str(rule["priority"]))

    def forget_flows(self) -> None:
        """As if nothing had been sent so far."""
        self.network.exec("conntrack", "-F")


@asynccontextmanager
async def open_arena(*, ip6: bool) -> AsyncIterator[Arena]:
    settings = {**SETTINGS, **(SETTINGS6 if ip6 else {})}
    async with open_world(None, units=False, **settings) as world:
        hashes = (await world.run(), await world.run())
        pods = [_pod(world.address(hash)) for hash in hashes]
        network = world.network
        _prepare(network)
        attacker, victim = [Namespace.of_process(await _pid(world, hash)) for hash in hashes]
        with attacker, victim:
            for where in (attacker, victim, network.host):
                where.call(partial(SYNACK_RETRIES.write_text, "0"))
            scene = Scene(pods[0], pods[1], _mac(network.host), _mac(network.internet), world.host.port)
            firing = Range(
                scene, attacker=attacker, victim=victim, host=network.host, internet=network.internet
            )
            try:
                yield Arena(ip6, world, hashes, scene, firing, LiveTable(network.host))
            finally:
                firing.close()


def _pod(address: IPv4Address) -> Pod:
    return Pod(address, _bytes(pod_mac(address)), _bytes(host_mac(address)), link_name(address))


def _prepare(network: HostNetwork) -> None:
    """Somebody is there in every range, and nobody has to look for his neighbours."""
    network.add_internet_addresses(
        METADATA, RESOLVER, RESOLVER6, *(a for name, a in RANGES.items() if name not in IMPOSSIBLE)
    )
    network.internet.ip(
        *(f"addr add {address}/128 dev lo" for name, address in RANGES6.items() if name == "unique local")
    )
    internet = _mac(network.internet).hex(":")
    network.host.ip(
        *(
            f"neigh replace {address} lladdr {internet} dev {UPLINK} nud permanent"
            for address in (INTERNET_ADDRESS, INTERNET_ADDRESS6)
        )
    )
    host = _mac(network.host).hex(":")
    network.internet.ip(
        *(
            f"neigh replace {address} lladdr {host} dev {UPLINK} nud permanent"
            for address in ("192.0.2.2", "2001:db8:1::2")
        )
    )


def _mac(where: Namespace) -> bytes:
    return _bytes(where.exec("ip", "-brief", "link", "show", UPLINK).stdout.split()[2])


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


async def _pid(world: World, hash: str) -> int:
    """Of a process in the pod."""
    return int(await world.podman.cli("inspect", "--format", "{{.State.Pid}}", f"codius-{hash}-web"))
