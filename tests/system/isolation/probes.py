"""The table of probes: what an attacker with raw sockets in a pod sends, and what must become of it."""

from __future__ import annotations

from tests.system.isolation.forgeries import build_forged_probes
from tests.system.isolation.probe import Probe
from tests.system.isolation.services import build_service_probes
from tests.system.isolation.shots import Place
from tests.system.isolation.targets import build_target_probes
from tests.system.isolation.targets6 import build_ip6_probes


def build_probes(*, ip6: bool) -> tuple[Probe, ...]:
    """All of them. Without IPv6 for pods there is nobody to send it to, only from."""
    found = (
        *build_target_probes(),
        *build_forged_probes(),
        *build_ip6_probes(),
        *build_service_probes(),
    )
    return tuple(p for p in found if ip6 or not p.ip6 or p.sender is Place.ATTACKER)
