"""The probes can fail: with any single rule gone, or a setting of the link wrong, one of them does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio

from codius_netpolicy.wiring import HOST_SIDE_SYSCTLS, WITH_IPV6
from tests.system.isolation.arena import Arena, open_arena
from tests.system.isolation.judgement import find_faults
from tests.system.isolation.page import MODES
from tests.system.isolation.probes import build_probes
from tests.system.isolation.test_isolation import MISSING

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"a whole host needs {', '.join(MISSING)}: sudo make test"),
    pytest.mark.asyncio(loop_scope="module"),
]
OPPOSITES: Final = {"0": "1", "1": "0"}
HARMLESS: Final = {
    "ipv4/conf/{link}/accept_redirects": "one is heard only from the gateway in use, and no pod is one",
    "ipv4/conf/{link}/send_redirects": "one would tell a pod nothing it does not know",
    "ipv6/conf/{link}/accept_redirects": "as for IPv4",
    "ipv6/conf/{link}/autoconf": "means nothing as long as no advertisement is accepted",
    "ipv6/conf/{link}/dad_transmits": "spares a second at the start; nothing to do with what is let through",
    "ipv6/conf/{link}/addr_gen_mode": "matters when the link comes up, which it has done",
}
"""Settings of a link whose opposite opens nothing that a probe could reach, and why."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=MODES, ids=["without-ipv6", "with-ipv6"])
async def arena(request: pytest.FixtureRequest) -> AsyncIterator[Arena]:
    """With the rules alone, and no node that would mend what is broken here."""
    async with open_arena(ip6=request.param) as arena:
        arena.world.host.stop()
        arena.remove_routing_wall()
        yield arena


async def test_without_any_single_rule_a_probe_fails(arena: Arena) -> None:
    whole = arena.table.save()
    rules = arena.table.rules()
    assert len(rules) > 30, "the rules are not seen any more"
    unproven = []
    for rule in rules:
        _start_again(arena, whole)
        arena.table.delete(rule)
        if next(find_faults(arena), None) is None:
            unproven.append(str(rule))
    _start_again(arena, whole)
    assert list(find_faults(arena)) == [], "the rules themselves are in order"
    assert unproven == [], "rules that no probe needs: a probe is missing, or the rule is too much"


async def test_with_any_single_setting_of_the_link_wrong_a_probe_fails(arena: Arena) -> None:
    settings = {**HOST_SIDE_SYSCTLS, **WITH_IPV6}
    del settings["ipv6/conf/{link}/disable_ipv6"]  # 1 would take the link's addresses with it
    whole = arena.table.save()
    needed = set()
    # By what the rules let through, and by what arrives when somebody has flushed them.
    for rules in (True, False):
        _start_again(arena, whole)
        if not rules:
            arena.table.remove()
        right = _observe(arena)
        for name, value in settings.items():
            arena.set_link_settings({name: "2" if name.endswith("/accept_ra") else OPPOSITES[value]})
            if _observe(arena) != right:
                needed.add(name)
            arena.set_link_settings({name: value})
            assert _observe(arena) == right, f"{name} is as it was"
    assert settings.keys() - needed == settings.keys() & HARMLESS.keys()


def _start_again(arena: Arena, whole: str) -> None:
    arena.table.restore(whole)
    arena.forget_flows()


def _observe(arena: Arena) -> tuple[object, ...]:
    """Where every probe arrives, and what the host has learned of its network."""
    arena.forget_flows()
    arena.forget_learned()
    probes = build_probes(ip6=arena.ip6)
    found = arena.range.fire(probes)
    learned = [
        arena.network.exec("ip", "-6", *command).stdout
        for command in (("-o", "addr", "show", "dynamic"), ("route", "show", "proto", "ra"))
    ]
    return *(found.places(number) for number in range(len(probes))), *learned
