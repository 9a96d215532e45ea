"""What `codiusd admin` does, and what people read of it."""

from __future__ import annotations

import argparse
import asyncio
import sys
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
    return COMMANDS[arguments.words](arguments, settings.admin_socket)


def _list_pods(arguments: argparse.Namespace, socket: Path) -> int:
    if getattr(arguments, "host", None) is not None:
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


def _stop(arguments: argparse.Namespace, socket: Path) -> int:
    _confirm(f"Take the pod {arguments.hash} down?", arguments)
    stop = asyncio.run(admin_client.stop_pod(socket, arguments.hash, _terms(arguments)))
    if arguments.json:
        print_json(dict(stop))
        return 0
    print(f"Taken down: {stop['hash']}. {_tell_visitors(stop)}")
    print(f"{_tell_rest(stop)} It is {render_length(int(str(stop['seconds'])))}.")
    print(
        "Unless it is denied it can be uploaded again;"
        f" `codiusd admin deny add manifest {stop['hash']} --reason …` keeps it out."
    )
    return 0


def _deny(arguments: argparse.Namespace, socket: Path) -> int:
    if arguments.takedown:
        _confirm(
            f"Deny the {arguments.kind} {arguments.value}, and take down the pods that run it?", arguments
        )
    entry = {"kind": arguments.kind, "value": arguments.value, "takedown": arguments.takedown}
    answer = asyncio.run(admin_client.deny(socket, entry | _terms(arguments)))
    if arguments.json:
        print_json(dict(answer))
        return 0
    denial = cast("dict[str, Json]", answer["denial"])
    stopped = cast("list[str]", answer["stopped"])
    print(f"Denied: {denial['kind']} {denial['value']}. Uploads, extensions and quotes are refused.")
    for hash in stopped:
        print(f"Taken down: {hash}")
    for hash in cast("list[str]", answer["waiting"]):
        print(f"Not yet taken down, and reached by nobody: {hash}. The node goes on trying; see its log.")
    if stopped:
        print(f"{_tell_visitors(denial)} {_tell_rest(denial)}")
    else:
        print("No pod had to be taken down." if denial["takedown"] else "Pods that run stay until their end.")
    return 0


def _admit(arguments: argparse.Namespace, socket: Path) -> int:
    answer = asyncio.run(admin_client.admit(socket, arguments.kind, arguments.value))
    if arguments.json:
        print_json(dict(answer))
    else:
        print(f"No longer denied: {answer['kind']} {answer['value']}. What was taken down stays so.")
    return 0


def _list_denials(arguments: argparse.Namespace, socket: Path) -> int:
    denials = asyncio.run(admin_client.list_denials(socket))
    if arguments.json:
        print_json({"denials": [dict(denial) for denial in denials]})
    elif not denials:
        print("Nothing is denied.")
    else:
        titles = ("KIND", "NAME", "SINCE", "TAKEDOWN", "CREDIT", "TOLD", "REASON")
        rows = [
            (
                str(denial["kind"]),
                clean(str(denial["value"])),
                str(denial["since"])[:10],
                _yes(denial["takedown"]),
                _yes(denial["credit"]),
                f"{_status(denial)}{', with reason' if denial['public'] else ''}",
                clean(str(denial["reason"])),
            )
            for denial in denials
        ]
        print_table([titles, *rows])
    return 0


def _show_price(arguments: argparse.Namespace, socket: Path) -> int:
    _tell_price(asyncio.run(admin_client.get_price(socket)), arguments)
    return 0


def _set_price(arguments: argparse.Namespace, socket: Path) -> int:
    _tell_price(asyncio.run(admin_client.set_price(socket, arguments.cost)), arguments)
    return 0


def _reset_price(arguments: argparse.Namespace, socket: Path) -> int:
    _tell_price(asyncio.run(admin_client.reset_price(socket)), arguments)
    return 0


def _show_usage(arguments: argparse.Namespace, socket: Path) -> int:
    page = arguments.limit, arguments.before
    if arguments.hash is not None:
        document = asyncio.run(admin_client.get_usage(socket, arguments.hash, *page))
    else:
        document = asyncio.run(admin_client.list_usage(socket, *page))
    if arguments.json:
        print_json(dict(document))
    elif arguments.hash is not None:
        _tell_usage(document)
    else:
        _tell_usages(document)
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
            hint="`codiusd admin policy set --help` shows what there is, `show` what is in force.",
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


def _terms(arguments: argparse.Namespace) -> dict[str, Json]:
    return {name: getattr(arguments, name) for name in ("reason", "public", "legal", "credit")}


def _confirm(question: str, arguments: argparse.Namespace) -> None:
    """Where somebody sits at a terminal; scripts are not asked."""
    if arguments.yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    print(f"{clean(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise RequestError("nothing was done", hint="Answer y, or give --yes.")


def _status(terms: Mapping[str, Json]) -> str:
    return "451" if terms["legal"] else "410"


def _yes(value: Json) -> str:
    return "yes" if value else "no"


def _tell_visitors(terms: Mapping[str, Json]) -> str:
    what = "with the reason" if terms["public"] else "without the reason"
    return f"Visitors get {_status(terms)}, {what}."


def _tell_rest(terms: Mapping[str, Json]) -> str:
    kept = "is kept for the next upload of the same manifest" if terms["credit"] else "is lost"
    return f"What is left of the paid time {kept}."


def _tell_price(price: Mapping[str, Json], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(dict(price))
        return
    where = "that of the settings" if price["origin"] == "settings" else "set at run time"
    print(f"A month costs {price['hostCostPerMonth']} {price['currency']}, {where}.")
    if price["origin"] != "settings":
        print(f"The settings say {price['settings']}; `codiusd admin price reset` goes back to them.")
    for earlier in cast("list[dict[str, Json]]", price["earlier"]):
        print(
            f"Whoever pays until {earlier['until']} pays {earlier['hostCostPerMonth']}: it was quoted before."
        )


def _tell_usages(document: Mapping[str, Json]) -> None:
    usages = cast("list[dict[str, Json]]", document["usage"])
    if not usages:
        print("Nothing was ever paid for here.")
        return
    titles = ("HASH", "STATE", "PAID", "USED", "LEFT", "HELD", "PRICE", "SENT", "RECEIVED", "REFUSED")
    print_table([titles, *map(_usage_row, usages)])
    if document["next"] is not None:
        print(f"There are more: codiusd admin usage --before {document['next']}")


def _usage_row(usage: Mapping[str, Json]) -> tuple[str, ...]:
    traffic = cast("dict[str, dict[str, int]]", usage["traffic"])
    times = (usage[f"seconds{what}"] for what in ("Paid", "Used", "Left", "Held"))
    return (
        str(usage["hash"]),
        str(usage["state"]),
        *(render_length(int(str(seconds))) for seconds in times),
        _render_prices(usage),
        render_size(traffic["sent"]["bytes"]),
        render_size(traffic["received"]["bytes"]),
        str(sum(traffic["refused"].values())),
    )


def _count(number: Json, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _render_prices(usage: Mapping[str, Json]) -> str:
    prices = cast("list[dict[str, Json]]", usage["prices"])
    return ", ".join(f"{price['amount']} {price['currency']}" for price in prices) or "-"


def _tell_usage(usage: Mapping[str, Json]) -> None:
    traffic = cast("dict[str, dict[str, int]]", usage["traffic"])
    name = f" ({clean(str(usage['name']))})" if usage["name"] is not None else ""
    lengths = {
        key.removeprefix("seconds"): render_length(int(str(value)))
        for key, value in usage.items()
        if key.startswith("seconds")
    }
    print(f"{usage['hash']}{name}: {usage['state']}")
    print(f"  time      {lengths['Paid']} paid, {lengths['Used']} used, {lengths['Left']} left")
    print(
        f"  given     {lengths['OfOutage']} back for outages, {lengths['Restored']} after takedowns,"
        f" {lengths['Held']} held for the next upload"
    )
    print(f"  price     {_render_prices(usage)}, in {_count(usage['entries'], 'entry', 'entries')}")
    print(
        f"  traffic   {render_size(traffic['sent']['bytes'])} sent,"
        f" {render_size(traffic['received']['bytes'])} received"
    )
    refused = ", ".join(f"{packets} ({reason})" for reason, packets in traffic["refused"].items())
    print(f"  refused   {refused or 'nothing'}")
    if "memory" in usage:
        print(f"  machine   {render_size(int(str(usage['memory'])))} memory, {usage['cpuSeconds']} s of CPU")
    for stop in cast("list[dict[str, Json]]", usage["stops"]):
        left = render_length(int(str(stop["seconds"])))
        credit = "credited" if stop["credit"] else "not credited"
        print(f"  stopped   {stop['stoppedAt']} with {left} left, {credit}: {clean(str(stop['reason']))}")
    entries = cast("list[dict[str, Json]]", usage["ledger"])
    titles = ("ENTRY", "AT", "KIND", "TIME", "PRICE", "RAIL")
    rows = [
        (
            str(entry["id"]),
            str(entry["at"]),
            str(entry["kind"]),
            render_length(int(str(entry["seconds"]))),
            f"{entry['amount']} {entry['currency']}",
            str(entry["rail"]),
        )
        for entry in entries
    ]
    print_table([titles, *rows])
    if usage["next"] is not None:
        print(f"There are more: codiusd admin usage {usage['hash']} --before {usage['next']}")


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
    "stop": _stop,
    "deny add": _deny,
    "deny remove": _admit,
    "deny list": _list_denials,
    "price show": _show_price,
    "price set": _set_price,
    "price reset": _reset_price,
    "usage": _show_usage,
    "policy show": _show_policy,
    "policy set": _set_policy,
    "policy reset": _reset_policy,
    "policy probe": _probe,
    "selftest": _test,
}
