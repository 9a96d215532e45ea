"""From the settings to the pods' network policy, and what an operator is told of the one in force."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, cast

from codius_netpolicy.policy import Egress, Limits, Policy
from codius_netpolicy.traffic import Reason
from codius_node.config import DECLARED, MEGABIT, Settings
from codius_node.errors import SettingsError
from codius_node.jsontext import wire_name
from codius_node.model import Json

FALLBACK_RESOLVERS: Final = (ip_address("9.9.9.9"), ip_address("1.1.1.1"))
"""Where a host has none that its pods could ask: Quad9 and Cloudflare, which answer everybody."""

SETTING_OF: Final[Mapping[str, str]] = {
    "pool": "pod_network",
    "pool6": "pod_network_6",
    "resolvers": "chosen_pod_resolvers",
    "denied_ranges": "pod_denied_ranges",
    "allowed_ranges": "pod_allowed_ranges",
    "denied_ports": "pod_denied_ports",
    "allowed_ports": "pod_allowed_ports",
    "limits.connections": "pod_connections",
    "limits.new_connections": "pod_new_connections",
    "limits.send_rate": "pod_send_mbit",
    "limits.receive_rate": "pod_receive_mbit",
}
"""The setting behind each value of a policy that its ValueErrors begin with."""
_CULPRIT: Final = re.compile(r"[a-z0-9_.]+")


def build_policy(
    settings: Settings, host_resolvers: Sequence[IPv4Address | IPv6Address] = FALLBACK_RESOLVERS
) -> Policy:
    """The policy the operator chose; SettingsError where values that are fine alone do not go together.

    `host_resolvers` are asked where the settings name none.
    """
    for resolver in settings.chosen_pod_resolvers:
        if resolver.version == 6 and settings.pod_network_6 is None:
            raise SettingsError(
                f"CODIUS_POD_RESOLVERS: pods cannot ask {resolver}, for they have no IPv6",
                hint="Leave it out, or give pods IPv6 with CODIUS_POD_NETWORK_6.",
            )
    try:
        return Policy(
            pool=settings.pod_network,
            pool6=settings.pod_network_6,
            resolvers=settings.chosen_pod_resolvers or tuple(host_resolvers),
            egress=Egress(
                mode=settings.pod_egress,
                denied_ranges=settings.pod_denied_ranges,
                allowed_ranges=settings.pod_allowed_ranges,
                denied_ports=settings.pod_denied_ports,
                allowed_ports=settings.pod_allowed_ports,
            ),
            limits=Limits(
                connections=settings.pod_connections,
                new_connections=settings.pod_new_connections,
                new_connections_burst=max(1, 2 * settings.pod_new_connections),
                send_rate=settings.pod_send_mbit * MEGABIT,
                receive_rate=settings.pod_receive_mbit * MEGABIT,
            ),
        )
    except ValueError as error:
        match = _CULPRIT.match(str(error))
        attribute = SETTING_OF.get(match[0].rstrip("."), "") if match else ""
        name = f"{DECLARED[attribute].name}: " if attribute else ""
        raise SettingsError(
            f"{name}{error}", hint="Correct the settings of the pods' network and start again."
        ) from error


class Origin(StrEnum):
    """Where the operator's rules in force come from."""

    SETTINGS = "settings"
    RUN_TIME = "run time"


@dataclass(frozen=True, slots=True)
class Repair:
    """The rules in the kernel were not as we made them, and were made anew. `at` is an aware UTC datetime."""

    at: datetime
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Repairs:
    """How often since the node started, and the last time."""

    count: int = 0
    last: Repair | None = None


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """What every host of this version denies, and the services it offers to pods; as people write them."""

    denied_ranges: tuple[str, ...]
    denied_ports: tuple[str, ...]
    denied_in_udp: tuple[str, ...]
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """The policy in force, and what came of it: packets `refused` of the pods that run, by reason."""

    egress: Egress
    origin: Origin
    built_in: BuiltIn
    limits: Limits
    pools: tuple[str, ...]
    resolvers: tuple[str, ...]
    refused: Mapping[Reason, int]
    repairs: Repairs

    def as_document(self) -> dict[str, Json]:
        """The answer of the admin API; `from_document` reads it."""
        return {
            "origin": self.origin.value,
            "egress": cast("dict[str, Json]", self.egress.as_document()),
            "builtIn": {wire_name(f.name): list(getattr(self.built_in, f.name)) for f in fields(BuiltIn)},
            "limits": {wire_name(f.name): getattr(self.limits, f.name) for f in fields(Limits)},
            "pools": list(self.pools),
            "resolvers": list(self.resolvers),
            "refused": {reason.value: packets for reason, packets in self.refused.items()},
            "repairs": {"count": self.repairs.count, "last": _render_repair(self.repairs.last)},
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Json]) -> PolicyReport:
        """KeyError, TypeError or ValueError for what is none."""
        built_in = cast("dict[str, list[str]]", document["builtIn"])
        limits = cast("dict[str, int]", document["limits"])
        repairs = cast("dict[str, Json]", document["repairs"])
        return cls(
            egress=Egress.from_document(cast("dict[str, object]", document["egress"])),
            origin=Origin(str(document["origin"])),
            built_in=BuiltIn(**{f.name: tuple(built_in[wire_name(f.name)]) for f in fields(BuiltIn)}),
            limits=Limits(**{f.name: limits[wire_name(f.name)] for f in fields(Limits)}),
            pools=tuple(cast("list[str]", document["pools"])),
            resolvers=tuple(cast("list[str]", document["resolvers"])),
            refused={
                Reason(name): packets for name, packets in cast("dict[str, int]", document["refused"]).items()
            },
            repairs=Repairs(int(str(repairs["count"])), _read_repair(repairs["last"])),
        )


def build_report(
    policy: Policy, origin: Origin, *, refused: Mapping[Reason, int], repairs: Repairs
) -> PolicyReport:
    """What there is to tell of this policy."""
    versions = {pool.version for pool in policy.pools}
    return PolicyReport(
        egress=policy.egress,
        origin=origin,
        built_in=BuiltIn(
            denied_ranges=tuple(str(r) for r in policy.denied_ranges if r.version in versions),
            denied_ports=tuple(map(str, policy.denied_ports)),
            denied_in_udp=tuple(map(str, policy.denied_in_udp)),
            services=tuple(f"{s.address} {s.transport}/{s.port}" for s in policy.services),
        ),
        limits=policy.limits,
        pools=tuple(map(str, policy.pools)),
        resolvers=tuple(map(str, policy.resolvers)),
        refused=refused,
        repairs=repairs,
    )


def _render_repair(repair: Repair | None) -> Json:
    return None if repair is None else {"at": repair.at.isoformat(), "problems": list(repair.problems)}


def _read_repair(document: Json) -> Repair | None:
    if document is None:
        return None
    told = cast("dict[str, Json]", document)
    return Repair(datetime.fromisoformat(str(told["at"])), tuple(cast("list[str]", told["problems"])))
