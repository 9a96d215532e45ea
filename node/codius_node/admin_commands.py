"""What `codiusd` does for the operator of the node on this machine: pods, network policy, self-test."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

from codius_node import admin_client, config, sentences
from codius_node.admin_client import Change, PodListing, ProbeAnswer
from codius_node.environment import read_environ
from codius_node.errors import RequestError, SettingsError
from codius_node.model import Json
from codius_node.selftest import Report, Verdict
from codius_node.terminal import clean, paint, print_json, print_table, render_length, render_size

COLOURS: Final = {Verdict.PASSED: "32", Verdict.FAILED: "31", Verdict.UNCHECKED: "2"}
LISTS: Final = ("deniedRanges", "allowedRanges", "deniedPorts", "allowedPorts")


def run(arguments: argparse.Namespace) -> int:
    """The command that was typed; its exit status."""
    settings = config.load(read_environ(arguments.env_file))
    command = f"{arguments.command} {arguments.action}" if "action" in arguments else arguments.command
    return COMMANDS[command](arguments, settings.admin_socket)


def _list_pods(arguments: argparse.Namespace, socket: Path) -> int:
    if arguments.host is not None:
        raise SettingsError(
            "hosts do not list their pods to everybody",
            hint="Leave --host out for the node on this machine, or give a HASH.",
        )
    listings = asyncio.run(admin_client.list_pods(socket))
    if arguments.json:
        print_json({"pods": [dict(listing.document) for listing in listings]})
    else:
        _show_listings(listings)
    return 0


def _show_policy(arguments: argparse.Namespace, socket: Path) -> int:
    report, document = asyncio.run(admin_client.get_policy(socket))
    if arguments.json:
        print_json(dict(document))
    else:
        print(clean("\n".join(sentences.describe(report))))
    return 0


def _set_policy(arguments: argparse.Namespace, socket: Path) -> int:
    named = {key: getattr(arguments, key) for key in ("mode", *LISTS) if getattr(arguments, key) is not None}
    if not named:
        raise RequestError(
            "no rule was given",
            hint="`codiusd policy set --help` shows what there is; `codiusd policy show` what is in force.",
        )

    async def change() -> Change:
        report, _ = await admin_client.get_policy(socket)
        return await admin_client.set_egress(
            socket, cast("dict[str, Json]", report.egress.as_document()) | named
        )

    _show_change(asyncio.run(change()), arguments)
    return 0


def _reset_policy(arguments: argparse.Namespace, socket: Path) -> int:
    _show_change(asyncio.run(admin_client.reset_egress(socket)), arguments)
    return 0


def _probe(arguments: argparse.Namespace, socket: Path) -> int:
    """Status 1 when a probe found something else than the policy wants."""
    answers, document = asyncio.run(admin_client.probe(socket, arguments.hash))
    if arguments.json:
        print_json(dict(document))
    else:
        _show_probes(answers)
    return 0 if all(answer.ok for answer in answers) else 1


def _test(arguments: argparse.Namespace, socket: Path) -> int:
    """Status 1 when a step failed."""
    report, document = asyncio.run(admin_client.run_selftest(socket))
    if arguments.json:
        print_json(dict(document))
    else:
        _show_report(report)
    return 1 if report.success is False else 0


def _show_listings(listings: Sequence[PodListing]) -> None:
    if not listings:
        print("No pods.")
        return
    titles = ("HASH", "NAME", "STATE", "TIME LEFT", "SENT", "RECEIVED", "REFUSED", "ADDRESS")
    rows = [
        (
            pod.hash,
            clean(pod.name),
            pod.state,
            render_length(pod.seconds_left),
            render_size(pod.sent),
            render_size(pod.received),
            str(pod.refused),
            pod.address,
        )
        for pod in listings
    ]
    print_table([titles, *rows])


def _show_change(change: Change, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(dict(change.document))
        return
    print(f"In force. Flows that were cut because they are no longer allowed: {change.cut}.")
    print(clean("\n".join(sentences.describe(change.report))))


def _show_probes(answers: Sequence[ProbeAnswer]) -> None:
    if not answers:
        print("Nothing was tried: this host does not touch the network (CODIUS_HYPER_NOOP).")
        return
    rows = [("ok" if a.ok else "WRONG", clean(a.name), a.expected, a.found, clean(a.detail)) for a in answers]
    print_table([("", "PROBE", "EXPECTED", "FOUND", "DETAIL"), *rows])


def _show_report(report: Report) -> None:
    width = max(len(step.name) for step in report.steps)
    for step in report.steps:
        verdict = paint(f"{step.verdict.value:<9}", COLOURS[step.verdict])
        hint = f"  {paint('->', '1')} {clean(step.hint)}" if step.hint else ""
        print(f"{verdict}  {step.name:<{width}}  {clean(step.message)}{hint}")
    for sentence in report.beyond:
        print(f"{paint('unchecked', '2')}  {clean(sentence)}")


COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace, Path], int]]] = {
    "pods": _list_pods,
    "policy show": _show_policy,
    "policy set": _set_policy,
    "policy reset": _reset_policy,
    "policy probe": _probe,
    "selftest": _test,
}
