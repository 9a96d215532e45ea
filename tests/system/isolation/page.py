"""docs/isolation.md: every probe, what must become of it, and what did behind each of the walls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from tests.system.isolation.probe import Group, Probe
from tests.system.isolation.probes import build_probes
from tests.system.isolation.shots import Place

PAGE: Final = Path(__file__).parents[3] / "docs" / "isolation.md"
COMMAND: Final = "sudo .venv/bin/python -m tests.system.isolation"
NOWHERE: Final = "–"
UNKNOWN: Final = "?"
MODES: Final[Mapping[bool, str]] = {False: "Pods without IPv6 (the default)", True: "Pods with IPv6"}


class Layer(StrEnum):
    """Which walls stand."""

    NONE = "neither"
    ROUTES = "routes"
    RULES = "rules"
    BOTH = "both"


HEADINGS: Final = ["probe", "must reach", *Layer, "counted as"]

Found = Mapping[tuple[bool, str], Mapping[Layer, str]]
"""Where each probe was seen, in words, by the mode (with IPv6?) and the probe's name."""

INTRODUCTION: Final = f"""\
# What a pod can reach, tried from inside

The attacker is the worst there is: a process in pod A that has shaken off every restriction of its container
and has raw sockets on the pod's network. It sends each of these probes, forged packets and frames among
them, and everything around it watches where they arrive: in pod B, at the host (behind its packet filter,
where its services listen), on the internet, where the cloud's metadata address and private networks are, too,
and in neighbour tables. "And back" means that an answer came back to the sender. The host is a real one, with
podman, node and rules, in network namespaces of its own.

Two walls stand in between. The *rules* are the nftables table `inet codius`. The *routes* are those of
`ip rule` 77: they stay when somebody flushes the rules, until the node has put those back. Each probe is sent
with both, with each alone, and with neither and the kernel's own settings for the pod's link, to see that
there is somebody to reach. What arrives nowhere even then is refused by the link itself: each pod has one of
its own, and no bridge joins them.

The last column is the reason under which a refusal is counted for the pod; without one the kernel refuses
before any rule is asked. `tests/system/isolation/` requires that with both walls every probe ends as it must
and every refused packet is counted once, under its reason; and that at least one probe fails when any single
rule is missing.

Written by `{COMMAND}`; the system tests fail when it differs from
what they find.
"""


def render(found: Found) -> str:
    """The whole page."""
    lines = [INTRODUCTION]
    for ip6, title in MODES.items():
        probes = build_probes(ip6=ip6)
        lines.append(f"## {title}\n")
        lines.append(f"{len(probes)} probes.\n")
        for group in Group:
            chosen = [probe for probe in probes if probe.group is group]
            if chosen:
                lines += [
                    f"### {group.value[0].upper() + group.value[1:]}\n",
                    *_table(chosen, ip6, found),
                    "",
                ]
    return "\n".join(lines).rstrip() + "\n"


def read(page: str) -> Found:
    """What a page says was found: what `render` made it from."""
    found: dict[tuple[bool, str], Mapping[Layer, str]] = {}
    mode = None
    titles = {f"## {title}": ip6 for ip6, title in MODES.items()}
    for line in page.splitlines():
        mode = titles.get(line, mode)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if mode is not None and line.startswith("| ") and cells != HEADINGS:
            found[mode, cells[0]] = dict(zip(Layer, cells[2:-1], strict=True))
    return found


def tell(places: frozenset[Place], sender: Place) -> str:
    """Where a probe was seen, in words; an answer to its sender is "and back"."""
    away = [place.value for place in Place if place in places - {sender}]
    if not away:
        return sender.value if places else NOWHERE
    return ", ".join(away) + (" and back" if sender in places else "")


def _table(probes: Sequence[Probe], ip6: bool, found: Found) -> Iterator[str]:
    yield f"| {' | '.join(HEADINGS)} |"
    yield "|---" * len(HEADINGS) + "|"
    for probe in probes:
        expected = probe.expect(ip6)
        layers = found.get((ip6, probe.name), {})
        cells = [
            probe.name,
            tell(expected.arrives, probe.sender),
            *(layers.get(layer, UNKNOWN) for layer in Layer),
            expected.reason or ("strangers" if probe.stranger else ""),
        ]
        yield f"| {' | '.join(cells)} |"
