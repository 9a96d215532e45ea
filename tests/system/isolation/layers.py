"""One volley for each of the walls alone, for both and for none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.system.isolation.arena import Arena
from tests.system.isolation.page import Layer, tell
from tests.system.isolation.probes import build_probes

KERNEL_DEFAULTS: Final = {
    "ipv4/conf/{link}/rp_filter": "0",
    "ipv4/conf/{link}/arp_ignore": "0",
    "ipv6/conf/{link}/disable_ipv6": "0",
    "ipv6/conf/all/forwarding": "1",
}
"""What a link is like that nobody has looked after; and a host that forwards."""


def find_layers(arena: Arena) -> Mapping[str, Mapping[Layer, str]]:
    """Where each probe was seen, in words, by its name. The node is stopped, and the routes stay removed."""
    arena.world.host.stop()  # it would put back what is removed here
    probes = build_probes(ip6=arena.ip6)
    found: dict[str, dict[Layer, str]] = {probe.name: {} for probe in probes}

    def fire(layer: Layer) -> None:
        arena.forget_flows()
        arena.forget_learned()
        arrivals = arena.range.fire(probes)
        for number, probe in enumerate(probes):
            found[probe.name][layer] = tell(arrivals.places(number), probe.sender)

    fire(Layer.BOTH)
    rules = arena.table.save()
    arena.table.remove()
    fire(Layer.ROUTES)
    arena.remove_routing_wall()
    arena.table.restore(rules)
    fire(Layer.RULES)
    arena.table.remove()
    arena.set_link_settings(KERNEL_DEFAULTS)
    fire(Layer.NONE)
    return found
