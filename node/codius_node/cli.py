"""The command `codiusd`: what people type, and who carries it out."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from codius_node import config
from codius_node.admin_arguments import add_admin_commands
from codius_node.arguments import add_env_file, add_json, parse_hash
from codius_node.declarations import render_help
from codius_node.environment import HOST_VARIABLE, Environment, read_environ
from codius_node.errors import CodiusError, SettingsError
from codius_node.terminal import clean, paint, print_json, say_error

# Everything else is imported by the command that needs it: `codiusd proxy` and `codiusd dns` stay small.
if TYPE_CHECKING:
    from codius_node.config import Settings
    from codius_node.doctor import Finding
    from codius_node.model import Json

DISTRIBUTION: Final = "codius-host"

FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""
PIPE_CLOSED: Final = 141
"""128 + SIGPIPE, as shells have it."""

JOURNAL_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
"""syslog's numbers (sd-daemon(3)), by the lowest level they are for."""
NOISY: Final = frozenset({"asyncio", "aiosqlite", "pyroute2", "aiohttp"})
"""Libraries whose debug lines are about themselves, and there are thousands."""
UNIT_SECONDS: Final[Mapping[str, int]] = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION: Final = re.compile(r"([0-9]{1,12})([smhdw]?)")
OLDER_WORDS: Final = frozenset({"policy", "selftest"})
"""Of `codiusd admin`, which once stood alone: scripts that say them without `admin` are understood."""
EXAMPLE: Final = """\
A codius.json, as short as can be:

  {"manifest": {"name": "hello", "version": "1.0.0", "port": "80",
    "containers": [{"id": "web", "image": "docker.io/library/nginx:1.27"}]}}

`port` is where a container listens for HTTP. A tag is sent as the digest it is now. For `$NAME` in the
environment of a container, codiusvars.json has {"vars": {"public": {"NAME": {"value": …}}, "private": {…}}}.
"""

OPERATOR_COMMANDS: Final = {
    "run": "the whole host with one command: node, front door and DNS",
    "node": "the node alone: API, pods, network (root)",
    "proxy": "the front door alone (no privilege)",
    "dns": "the DNS responder alone (no privilege); `dns check` looks at the delegation",
    "doctor": "look at this machine, and name what would keep a host from working",
    "admin": "the node on this machine: pods, takedowns, denylist, price, usage, network policy",
}
CLIENT_COMMANDS: Final = {
    "quote": "what a host would take for a manifest",
    "upload": "upload a manifest, or extend it where it runs already",
    "extend": "add time to a pod",
    "logs": "what a pod's containers wrote",
    "pods": "a pod by its hash: where it is, and until when",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; the exit status."""
    arguments = build_parser().parse_args(_complete(sys.argv[1:] if argv is None else argv))
    as_json = bool(getattr(arguments, "json", False))
    try:
        status: int = arguments.handler(arguments)
        sys.stdout.flush()
        return status
    except CodiusError as error:
        return _fail(error, as_json=as_json)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has seen enough; Python would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        if arguments.command not in OPERATOR_COMMANDS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(
            SettingsError(
                f"{where}{error.strerror or error}", hint="`codiusd doctor` looks at what a host needs."
            ),
            as_json=as_json,
        )


def _complete(argv: Sequence[str]) -> Sequence[str]:
    """The command as it is spelled today."""
    return ["admin", *argv] if argv and argv[0] in OLDER_WORDS else argv


# ---- what people type -----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Errors in the same one line as all others."""

    def error(self, message: str) -> NoReturn:
        say_error(message, f"`{self.prog} --help` shows how it is used.")
        raise SystemExit(MISUSED)


class _Version(argparse.Action):
    """Prints the version; reading the package's metadata is left for when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib import metadata

        print(f"codiusd {metadata.version(DISTRIBUTION)}")
        parser.exit()


class _Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(_render_help())
        parser.exit()


def _render_help() -> str:
    def group(commands: Mapping[str, str]) -> str:
        return "\n".join(f"  {name:<8}  {what}" for name, what in commands.items())

    return f"""\
usage: codiusd COMMAND [OPTION…]

A host for pods that are paid by the second: a manifest goes in, a pod answers at its own name.

For operators:
{group(OPERATOR_COMMANDS)}

For clients (of the host given with --host or {HOST_VARIABLE}):
{group(CLIENT_COMMANDS)}

  codiusd COMMAND --help  tells more; --version tells the version.

Settings of a host: environment variables, with their defaults in brackets.
{render_help(config.DECLARED.values())}"""


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = _Parser(prog="codiusd", add_help=False)
    parser.add_argument("-h", "--help", action=_Help, nargs=0)
    parser.add_argument("--version", action=_Version, nargs=0)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, handler: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        what = (OPERATOR_COMMANDS | CLIENT_COMMANDS)[name]
        command = commands.add_parser(name, description=f"{what[0].upper()}{what[1:]}.")
        command.set_defaults(handler=handler)
        return command

    for name in ("run", "node", "proxy"):
        add_env_file(add(name, _serve))
    dns = add("dns", _serve)
    add_env_file(dns)
    check = dns.add_subparsers(metavar="check").add_parser(
        "check", description="Look at a zone as a resolver sees it, and say what to enter at the registrar."
    )
    check.set_defaults(handler=_check_dns)
    check.add_argument(
        "zone", nargs="?", metavar="ZONE", help="one of the zones served here (default: the host's)"
    )
    check.add_argument(
        "--resolver", metavar="IP", help="the resolver to begin with (default: this machine's)"
    )
    add_env_file(check)

    doctor = add("doctor", _doctor)
    add_env_file(doctor)
    add_json(doctor)

    admin = add("admin", _administer)
    add_admin_commands(admin)

    for name in ("quote", "upload"):
        command = add(name, _ask_host)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = EXAMPLE
        command.add_argument("file", metavar="FILE", type=Path, help="codius.json, or {manifest, private}")
        _add_upload_options(command)
        if name == "upload":
            command.add_argument(
                "--save",
                metavar="FILE",
                type=Path,
                help="write what is uploaded to this new file, to upload or extend exactly it again",
            )

    extend = add("extend", _ask_host)
    extend.add_argument("target", metavar="HASH|FILE", help="the pod's hash, or the file it came from")
    _add_upload_options(extend)

    logs = add("logs", _ask_host)
    logs.add_argument("hash", metavar="HASH", type=parse_hash, help="the hash of the pod's manifest")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    _add_host(logs)
    add_json(logs, "one JSON object; with --follow one for each line")

    pods = add("pods", _pods)
    pods.set_defaults(words="pods")  # without a hash it is the operator's list, as it has always been
    pods.add_argument(
        "hash", nargs="?", metavar="HASH", type=parse_hash, help="the hash of the pod's manifest"
    )
    _add_host(pods)
    add_env_file(pods)
    add_json(pods)
    return parser


def _add_host(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--host",
        metavar="URL",
        help=f"the host to talk to (default: ${HOST_VARIABLE}, or http://codius.localhost:3000)",
    )


def _add_upload_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-d",
        "--duration",
        metavar="TIME",
        type=_duration,
        help="seconds, or a number with s, m, h, d or w: 90s 15m 2h 7d (default: 1h)",
    )
    command.add_argument(
        "--vars", metavar="FILE", type=Path, help="variables (default: codiusvars.json beside codius.json)"
    )
    command.add_argument(
        "--insecure-registry",
        metavar="HOST",
        action="append",
        default=[],
        help="ask this registry by plain http; on loopback only",
    )
    _add_host(command)
    add_json(command)


def parse_duration(text: str) -> int:
    """Seconds in `90s`, `15m`, `2h`, `7d`, `2w` or plain digits; ValueError for anything else."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or int(match[1]) == 0:
        raise ValueError
    return int(match[1]) * UNIT_SECONDS[match[2]]


def _duration(text: str) -> int:
    from codius_node.parameters import MAX_DURATION

    try:
        seconds = parse_duration(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no length of time: give seconds, or a number with s, m, h, d or w, as in 90s or 2h"
        ) from None
    if seconds > MAX_DURATION:
        raise argparse.ArgumentTypeError(f"{text!r} is more than the {MAX_DURATION} s that can be paid for")
    return seconds


# ---- operators ------------------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> int:
    environment = Environment(os.environ, arguments.env_file)
    settings = config.load(read_environ(arguments.env_file))
    _start_logging(settings)
    for name in config.find_unknown(os.environ):
        if name != HOST_VARIABLE:
            logging.getLogger(__name__).warning("%s is no setting and has no effect", name)
    match arguments.command:
        case "run":
            from codius_node import supervisor

            return supervisor.run(settings, environment)
        case "node":
            from codius_node import daemon

            return daemon.node(settings)
        case "proxy":
            from codius_node import edge

            return edge.proxy(settings, environment)
        case _:
            from codius_node import edge

            return edge.dns(settings, environment)


def _check_dns(arguments: argparse.Namespace) -> int:
    from codius_dns.errors import DnsError
    from codius_node import delegation, edge

    settings = config.load(read_environ(arguments.env_file))
    try:
        zone = delegation.find_zone(edge.dns_zones(settings, serial=1), arguments.zone)
        well = delegation.check(zone, arguments.resolver, print)
    except DnsError as error:
        raise SettingsError(error.message, hint=error.hint) from error
    return 0 if well else FAILED


def _start_logging(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:  # systemd keeps the time, and reads <N> as the priority
        handler.setFormatter(_JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if settings.dev else logging.INFO, handlers=[handler])
    # Not by their loggers' levels: pyroute2 sets its own back when it is imported, and that is late.
    handler.addFilter(
        lambda record: record.levelno >= logging.WARNING or record.name.split(".")[0] not in NOISY
    )


class _JournalFormatter(logging.Formatter):
    """Lines with the priority in front, as sd-daemon(3) has it."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(code for level, code in JOURNAL_PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def _doctor(arguments: argparse.Namespace) -> int:
    from codius_node import doctor

    findings = doctor.examine(read_environ(arguments.env_file))
    healthy = not any(finding.verdict is doctor.Verdict.BAD for finding in findings)
    if arguments.json:
        print_json(
            {
                "ok": healthy,
                "findings": [
                    {"name": f.name, "verdict": f.verdict.value, "message": f.message, "fix": f.fix}
                    for f in findings
                ],
            }
        )
    else:
        _show_findings(findings)
    return 0 if healthy else FAILED


def _show_findings(findings: Sequence[Finding]) -> None:
    colours = {"ok": "32", "warn": "33", "bad": "31", "skip": "2"}
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        verdict = paint(f"{finding.verdict.value:<4}", colours[finding.verdict.value])
        fix = f"  {paint('->', '1')} {finding.fix}" if finding.fix else ""
        print(f"{verdict}  {finding.name:<{width}}  {clean(finding.message)}{clean(fix, colours=True)}")


def _pods(arguments: argparse.Namespace) -> int:
    return _administer(arguments) if arguments.hash is None else _ask_host(arguments)


def _administer(arguments: argparse.Namespace) -> int:
    from codius_node import admin_commands

    return admin_commands.run(arguments)


def _ask_host(arguments: argparse.Namespace) -> int:
    from codius_node import client_commands

    return client_commands.run(arguments)


def _fail(error: CodiusError, *, as_json: bool) -> int:
    if as_json:
        problem: dict[str, Json] = {"message": error.message, "hint": error.hint}
        status = getattr(error, "answer_status", None)
        if isinstance(status, int):
            problem["statusCode"] = status
        print_json({"error": problem})
    say_error(error.message, error.hint)
    return FAILED
