"""What people type after `codiusd admin`: one family of words for all that the admin API can do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Final

from codius_netpolicy.policy import EgressMode, TransportPorts, parse_range
from codius_node.arguments import add_env_file, add_json, parse_hash
from codius_node.pricing import MAX_COST

NONE: Final = "none"
"""What empties a list of the operator's rules."""
ENTRY_KINDS: Final = ("manifest", "image", "registry")

COMMANDS: Final[Mapping[str, str]] = {
    "pods": "list the pods that run here, with their time and traffic",
    "stop": "take a pod down, and tell its visitors so",
    "deny": "what this host does not run: manifests, images, registries",
    "price": "the price of a month: show it, change it while the node runs",
    "usage": "time paid and used, traffic and payments, also of pods that are gone",
    "policy": "whom pods reach on the network: show it, change it, try it out in a pod",
    "selftest": "have the node upload a sample to itself by its public address, and tell each step",
}


def add_admin_commands(command: argparse.ArgumentParser) -> None:
    """The words, each with its own options; what was typed is in `words`, for whoever carries it out."""
    words = command.add_subparsers(dest="word", required=True, metavar="COMMAND")

    def add(name: str, more: str = "") -> argparse.ArgumentParser:
        what = COMMANDS[name]
        return words.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.{more}")

    _finish(add("pods"), "pods")
    _add_stop(
        add(
            "stop",
            " Its route is gone at once; requests under way are cut. It can be uploaded again: `codiusd admin"
            " deny add manifest HASH` keeps it out.",
        )
    )
    _add_deny_actions(add("deny"))
    _add_price_actions(add("price"))
    usage = add("usage")
    usage.add_argument(
        "hash", nargs="?", metavar="HASH", type=parse_hash, help="one manifest, with its ledger"
    )
    usage.add_argument("--limit", metavar="N", type=int, default=50, help="lines of a page (default: 50)")
    usage.add_argument("--before", metavar="N", type=int, help="go on with the next page")
    _finish(usage, "usage")
    _add_policy_actions(add("policy"))
    _finish(add("selftest"), "selftest")


def _finish(command: argparse.ArgumentParser, words: str) -> None:
    add_env_file(command)
    add_json(command)
    command.set_defaults(words=words)


def _add_actions(command: argparse.ArgumentParser) -> Callable[..., argparse.ArgumentParser]:
    word = command.prog.rpartition(" ")[2]
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, what: str, more: str = "") -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.{more}")
        _finish(action, f"{word} {name}")
        return action

    return add


def _add_terms(command: argparse.ArgumentParser) -> None:
    command.add_argument("--reason", required=True, metavar="TEXT", help="why: for your books, in one line")
    command.add_argument("--public", action="store_true", help="tell visitors and uploaders the reason, too")
    command.add_argument(
        "--legal",
        action="store_true",
        help="the law demands it: visitors get status 451 (RFC 7725) instead of 410",
    )
    command.add_argument(
        "--credit",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what is left of the paid time for the next upload of the same manifest",
    )
    command.add_argument("-y", "--yes", action="store_true", help="do not ask on a terminal")


def _add_stop(command: argparse.ArgumentParser) -> None:
    command.add_argument("hash", metavar="HASH", type=parse_hash, help="the hash of the pod's manifest")
    _add_terms(command)
    _finish(command, "stop")


def _add_deny_actions(command: argparse.ArgumentParser) -> None:
    add = _add_actions(command)
    entry = add(
        "add",
        "deny something, or change the terms on which it is denied",
        " An image is denied by its name, in every version and spelling, or by its digest, under every name;"
        " a registry with its port. Uploads, extensions and quotes are refused from now on. Pods that run"
        " already are taken down unless you say --no-takedown.",
    )
    entry.add_argument("kind", choices=ENTRY_KINDS)
    entry.add_argument(
        "value", metavar="NAME", help="a manifest's hash, an image's name or digest, a registry"
    )
    _add_terms(entry)
    entry.add_argument(
        "--takedown",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take down what runs already; otherwise it stays until its time is over",
    )
    gone = add(
        "remove", "take something off the list", " What was taken down for it does not come back by itself."
    )
    gone.add_argument("kind", choices=ENTRY_KINDS)
    gone.add_argument("value", metavar="NAME")
    add("list", "all that is denied")


def _add_price_actions(command: argparse.ArgumentParser) -> None:
    add = _add_actions(command)
    add("show", "the price, and lower ones that were quoted a moment ago and still count")
    change = add(
        "set",
        "set a price while the node runs",
        " It replaces that of the settings until `codiusd admin price reset`, also across restarts. Who was"
        " quoted a lower price pays that one for ten minutes more.",
    )
    change.add_argument("cost", metavar="COST", type=_cost, help="units of the currency for a month")
    add("reset", "go back to the price of the settings")


def _cost(text: str) -> Decimal:
    try:
        cost = Decimal(text)
    except InvalidOperation:
        cost = Decimal(-1)
    if not cost.is_finite() or not 0 <= cost <= MAX_COST:
        raise argparse.ArgumentTypeError(f"{text!r} is no price: give a number from 0 to {MAX_COST}")
    return cost


def _add_policy_actions(command: argparse.ArgumentParser) -> None:
    add = _add_actions(command)
    add("show", "what pods may do on the network, in plain words")
    change = add(
        "set",
        "set rules of your own while the node runs",
        " They replace those of the settings until `codiusd admin policy reset`, also across restarts. A list"
        f" that is not named stays as it is in force; `{NONE}` empties it. The most specific range decides,"
        " and a denied port wins over an allowed one; nothing opens pods to each other, or this host to them."
        " Flows that are no longer allowed are cut, all others go on.",
    )
    change.add_argument(
        "--mode",
        choices=[mode.value for mode in EgressMode],
        help="open: pods reach everything but what is denied; listed: nothing but what is allowed",
    )
    for name, key, parse, what in (
        ("--deny-range", "deniedRanges", parse_range, "a range of addresses that pods do not reach"),
        (
            "--allow-range",
            "allowedRanges",
            parse_range,
            "a range that pods reach even if a wider one is denied",
        ),
        ("--deny-port", "deniedPorts", TransportPorts.parse, "a port pods do not reach, as in tcp/6667"),
        ("--allow-port", "allowedPorts", TransportPorts.parse, "a port that pods reach, as in tcp/25"),
    ):
        change.add_argument(
            name, dest=key, metavar="RULE", action=_Rules, type=_rule(parse), help=f"{what}; may be repeated"
        )
    add("reset", "go back to the rules of the settings")
    probe = add("probe", "try from inside a pod what it reaches, without doing harm")
    probe.add_argument("hash", metavar="HASH", type=parse_hash, help="the hash of the pod's manifest")


class _Rules(argparse.Action):
    """Appends; NONE begins an empty list."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: object, *_: object
    ) -> None:
        before = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [] if value == NONE else [*before, value])


def _rule(parse: Callable[[str], object]) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            return text if text == NONE else str(parse(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return check
