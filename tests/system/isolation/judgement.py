"""What a volley, a flood and a count of packets must come to; every fault is a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from codius_netpolicy.policy import DEFAULT_GATEWAY, Limits
from codius_netpolicy.traffic import Reason
from tests.harness.namespaces import FAR_ADDRESS, FAR_ADDRESS6
from tests.system.isolation.arena import Arena
from tests.system.isolation.packets import Address
from tests.system.isolation.page import tell
from tests.system.isolation.probe import Group, Probe
from tests.system.isolation.probes import build_probes
from tests.system.isolation.shots import Place
from tests.system.isolation.volley import Arrivals

LIMITS: Final = Limits()
FLOOD: Final = LIMITS.connections + 50
"""Flows at once: more than a pod may have."""
FLOODS: Final = 5
"""At most; two use up the rate unless the machine takes a second for each."""
STREAM: Final = LIMITS.new_connections_burst + LIMITS.new_connections
"""Packets of one flow that nobody answers: more than a pod may begin flows."""
FLOOD_PORTS: Final = 40_000
"""And above: of no probe's own port."""
IN_PROGRESS: Final = 39_999
PINGS: Final = 100
"""To the gateway at once; the pods together have half as many a second."""
METERED: Final = 3


def find_faults(arena: Arena) -> Iterator[str]:
    """Whatever is wrong, the cheapest first; whoever wants no more than one stops after it."""
    yield from find_volley_faults(arena, build_probes(ip6=arena.ip6))
    yield from find_limit_faults(arena)
    yield from find_meter_faults(arena)


def find_volley_faults(arena: Arena, probes: Sequence[Probe]) -> Iterator[str]:
    """Probes that arrived where they must not or did not where they must, and refusals counted wrongly."""
    before = arena.counters()
    found = arena.range.fire(probes)
    after = arena.counters()
    expected: Counter[Reason] = Counter()
    for number, probe in enumerate(probes):
        expectation = probe.expect(arena.ip6)
        if found.places(number) != expectation.arrives:
            yield (
                f"{probe.group}: {probe.name}: seen at {tell(found.places(number), probe.sender)},"
                f" not at {tell(expectation.arrives, probe.sender)}"
            )
        if expectation.reason:
            expected[expectation.reason] += expectation.packets
    yield from _compare(_rise(before.refused, after.refused), expected)
    strangers = sum(1 for probe in probes if probe.stranger)
    if after.strangers - before.strangers != strangers:
        yield f"strangers: {after.strangers - before.strangers} counted, not {strangers}"


def find_limit_faults(arena: Arena) -> Iterator[str]:
    """Of the floods: as many flows as a pod may have, and no more at once than it may begin."""
    for far in (FAR_ADDRESS, FAR_ADDRESS6) if arena.ip6 else (FAR_ADDRESS,):
        yield from _find_flow_faults(arena, far)
    ids = range(FLOOD_PORTS, FLOOD_PORTS + PINGS)
    pings = Probe(Group.HOST, "pings", lambda s: [s.at(id).ping(DEFAULT_GATEWAY) for id in ids])
    found, refused = _fire(arena, pings)
    arrived = found.count(0, Place.HOST)
    if arrived == PINGS:
        yield f"all of {PINGS} pings at once reached the gateway"
    yield from _compare(refused, {Reason.HOST: PINGS - arrived})
    arena.forget_flows()
    arena.table.forget_limits()


def _find_flow_faults(arena: Arena, far: Address) -> Iterator[str]:
    def flood(first: int) -> Probe:
        ports = range(first, first + FLOOD)
        return Probe(Group.WORKS, "flood", lambda s: [s.at(port).udp(far, 8080) for port in ports])

    version = f"IPv{far.version}"
    stream = Probe(Group.WORKS, "stream", lambda s: [s.udp(far, 8080)] * STREAM)
    found, _ = _fire(arena, stream)
    if found.count(0, Place.INTERNET) != STREAM:
        yield f"{version}: {found.count(0, Place.INTERNET)} of {STREAM} packets of one flow arrived"
    ping = Probe(Group.WORKS, "ping", lambda s: s.at(IN_PROGRESS).ping(far))
    arena.forget_flows()
    arena.table.forget_limits()
    _fire(arena, ping)
    found, refused = _fire(arena, flood(FLOOD_PORTS))
    arrived = found.count(0, Place.INTERNET)
    if arrived != LIMITS.connections - 1:  # one is the ping's
        yield f"{version}: {arrived} flows of a flood reached the internet, not {LIMITS.connections - 1}"
    yield from _compare(refused, {Reason.CONNECTIONS: FLOOD - arrived})
    for number in range(1, FLOODS + 1):
        arena.table.forget_connections()  # so that only the rate can refuse
        found, refused = _fire(arena, flood(FLOOD_PORTS + number * FLOOD), ping)
        if refused.get(Reason.RATE):
            break
    else:
        yield f"{version}: {FLOODS} floods in a row, and none was too fast"
    if found.count(1, Place.ATTACKER) != 1:
        yield f"{version}: a flow in progress stops when new ones are too many"


def find_meter_faults(arena: Arena) -> Iterator[str]:
    """Of the bill: every packet that left or came, once, of both IP versions. The node must not run:
    its front door looks whether pods answer, and that is metered, too.
    """
    targets = (FAR_ADDRESS, FAR_ADDRESS6) if arena.ip6 else (FAR_ADDRESS,)
    for far in targets:
        pings = Probe(Group.WORKS, "metered", lambda s, far=far: [s.ping(far)] * METERED)  # type: ignore[misc]
        before = arena.counters()
        arena.range.fire([pings], neighbours=False)
        after = arena.counters()
        if (after.sent - before.sent, after.received - before.received) != (METERED, METERED):
            yield (
                f"IPv{far.version}: {METERED} packets each way, and counted were {after.sent - before.sent}"
                f" sent, {after.received - before.received} received"
            )


def _fire(arena: Arena, *probes: Probe) -> tuple[Arrivals, Mapping[Reason, int]]:
    before = arena.counters().refused
    found = arena.range.fire(probes, neighbours=False)
    return found, _rise(before, arena.counters().refused)


def _rise(before: Mapping[Reason, int], after: Mapping[Reason, int]) -> Counter[Reason]:
    return Counter({reason: number - before.get(reason, 0) for reason, number in after.items()})


def _compare(found: Mapping[Reason, int], expected: Mapping[Reason, int]) -> Iterator[str]:
    for reason in Reason:
        if found.get(reason, 0) != expected.get(reason, 0):
            yield f"refused as {reason}: {found.get(reason, 0)} counted, not {expected.get(reason, 0)}"
