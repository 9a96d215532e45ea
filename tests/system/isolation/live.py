"""The ruleset as it is in the kernel: its rules one by one, taken out and put back; its counters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import nftables

from codius_netpolicy.traffic import REASONS, Reason
from tests.harness.namespaces import Namespace

TABLE: Final = "inet codius"
DYNAMIC_SETS: Final = ("refused", "conns", "newrate")
"""What traffic fills; each may have a second one for IPv6, with a 6 behind its name."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule by its chain and position in it, which stay when the table is loaded again."""

    chain: str
    position: int
    text: str

    def __str__(self) -> str:
        return f"{self.chain}: {self.text}"


@dataclass(frozen=True, slots=True)
class Counters:
    """What the ruleset has counted of one pod."""

    refused: Mapping[Reason, int]
    sent: int
    received: int
    strangers: int


class LiveTable:
    """Our table in the host's namespace, by a libnftables of its own."""

    def __init__(self, host: Namespace) -> None:
        # A context belongs to the namespace of the thread that makes it.
        self._nft: Any = host.call(nftables.Nftables)
        self._nft.set_json_output(True)
        self._nft.set_handle_output(True)

    def run(self, text: str) -> str:
        """RuntimeError when the kernel or the grammar refuses."""
        status, output, error = self._nft.cmd(text)
        if status != 0:
            raise RuntimeError(f"nft: {text.splitlines()[0]}: {error}")
        return str(output)

    def save(self) -> str:
        """Text for `restore`, with the pods' elements and without anything that traffic has left."""
        self._flush(*DYNAMIC_SETS)
        self._nft.set_json_output(False)
        self._nft.set_stateless_output(True)
        self._nft.set_handle_output(False)
        try:
            return self.run(f"list table {TABLE}")
        finally:
            self._nft.set_json_output(True)
            self._nft.set_stateless_output(False)
            self._nft.set_handle_output(True)

    def restore(self, saved: str) -> None:
        """In one transaction, whatever is there now."""
        self.run(f"add table {TABLE}\ndelete table {TABLE}\n{saved}")

    def remove(self) -> None:
        self.run(f"delete table {TABLE}")

    def rules(self) -> list[Rule]:
        """Every rule there is."""
        self._nft.set_json_output(False)
        try:
            text = self.run(f"list table {TABLE}")
        finally:
            self._nft.set_json_output(True)
        texts = {}
        for line in text.splitlines():
            rule, separator, handle = line.strip().rpartition(" # handle ")
            if separator and not rule.endswith("{"):
                texts[int(handle)] = rule
        found = []
        for chain, handles in self._handles().items():
            found += [Rule(chain, position, texts[handle]) for position, handle in enumerate(handles)]
        return found

    def delete(self, rule: Rule) -> None:
        handle = self._handles()[rule.chain][rule.position]
        self.run(f"delete rule {TABLE} {rule.chain} handle {handle}")

    def forget_connections(self) -> None:
        """What pods have used up of their connections is theirs again; of their rates, it is not."""
        self._flush("conns")

    def forget_limits(self) -> None:
        """Pods may do as much as if they had done nothing so far."""
        self._flush("conns", "newrate")

    def counters(self, link: str, addresses: tuple[str, ...]) -> Counters:
        refused: dict[Reason, int] = {}
        sent = received = strangers = 0
        listed = json.loads(self.run(f"list table {TABLE}"))["nftables"]
        for part in listed:
            if "counter" in part:
                strangers += part["counter"]["packets"] if part["counter"]["name"] == "strangers" else 0
            if "set" not in part:
                continue
            name = part["set"]["name"]
            for element in part["set"].get("elem", ()):
                value, packets = _element(element)
                if name == "refused" and value[0] == link:
                    refused[REASONS[int(value[1])]] = packets
                elif name.startswith("pod_tx") and value[0] == link:
                    sent += packets
                elif name.startswith("pod_rx") and value[0] in addresses:
                    received += packets
        return Counters(refused, sent, received, strangers)

    def _flush(self, *names: str) -> None:
        """The sets of both IP versions, those that there are."""
        for part in json.loads(self.run("list sets inet"))["nftables"]:
            name = part.get("set", {}).get("name", "")
            if name.removesuffix("6") in names:
                self.run(f"flush set {TABLE} {name}")

    def _handles(self) -> dict[str, list[int]]:
        handles: dict[str, list[int]] = {}
        for part in json.loads(self.run(f"list table {TABLE}"))["nftables"]:
            if "rule" in part:
                handles.setdefault(part["rule"]["chain"], []).append(part["rule"]["handle"])
        return handles


def _element(element: Any) -> tuple[list[Any], int]:
    """Its key, and its counter's packets."""
    packets = 0
    if isinstance(element, dict) and "elem" in element:
        packets = element["elem"].get("counter", {}).get("packets", 0)
        element = element["elem"]["val"]
    if isinstance(element, dict) and "concat" in element:
        return list(element["concat"]), packets
    return [element], packets
