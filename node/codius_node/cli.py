"""The command `codiusd`: what people type, and what they read."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

from codius_node import config
from codius_node.errors import CodiusError, SettingsError

# Everything else is imported by the command that needs it: `codiusd proxy` and `codiusd dns` stay small.
if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from rich.status import Status

    from codius_node.client import Client, PodAnswer, PodListing
    from codius_node.config import Settings
    from codius_node.doctor import Finding
    from codius_node.model import Json, LogLine, ManifestHash

DISTRIBUTION: Final = "codius-host"
HOST_VARIABLE: Final = "CODIUS_HOST_URI"
MAX_ENV_FILE: Final = 64 * 1024
"""Bytes; a settings file has some two hundred lines at most."""

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
_ENV_LINE: Final = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_HASH: Final = re.compile(r"[a-z2-7]{52}")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]{0,16}m")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

OPERATOR_COMMANDS: Final = {
    "run": "the whole host with one command: node, front door and DNS",
    "node": "the node alone: API, pods, network (root)",
    "proxy": "the front door alone (no privilege)",
    "dns": "the DNS responder alone (no privilege); `dns check` looks at the delegation",
    "doctor": "look at this machine, and name what would keep a host from working",
    "pods": "list the pods of the node on this machine; with HASH, ask a host about one",
}
CLIENT_COMMANDS: Final = {
    "quote": "what a host would take for a manifest",
    "upload": "upload a manifest, or extend it where it runs already",
    "extend": "add time to a pod",
    "logs": "what a pod's containers wrote",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; the exit status."""
    arguments = _build_parser().parse_args(argv)
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


# ---- what people type -----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Errors in the same one line as all others."""

    def error(self, message: str) -> NoReturn:
        _say_error(message, f"`{self.prog} --help` shows how it is used.")
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
        return "\n".join(f"  {name:<8} {what}" for name, what in commands.items())

    return f"""\
usage: codiusd COMMAND [OPTION…]

A host for pods that are paid by the second: a manifest goes in, a pod answers at its own name.

For operators:
{group(OPERATOR_COMMANDS)}

For clients (of the host given with --host or {HOST_VARIABLE}):
{group(CLIENT_COMMANDS)}

  codiusd COMMAND --help  tells more; --version tells the version.

Settings of a host: environment variables, with their defaults in brackets.
{config.render_help()}"""


def _build_parser() -> argparse.ArgumentParser:
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
        _add_env_file(add(name, _serve))
    dns = add("dns", _serve)
    _add_env_file(dns)
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
    _add_env_file(check)

    doctor = add("doctor", _doctor)
    _add_env_file(doctor)
    _add_json(doctor)

    pods = add("pods", _pods)
    pods.add_argument("hash", nargs="?", metavar="HASH", type=_hash, help="the hash of a pod's manifest")
    _add_host(pods)
    _add_env_file(pods)
    _add_json(pods)

    for name, handler in (("quote", _quote), ("upload", _upload)):
        command = add(name, handler)
        command.add_argument("file", metavar="FILE", type=Path, help="codius.json, or {manifest, private}")
        _add_upload_options(command)
        if handler is _upload:
            command.add_argument(
                "--save",
                metavar="FILE",
                type=Path,
                help="write what is uploaded to this new file, to upload or extend exactly it again",
            )

    extend = add("extend", _extend)
    extend.add_argument("target", metavar="HASH|FILE", help="the pod's hash, or the file it came from")
    _add_upload_options(extend)

    logs = add("logs", _logs)
    logs.add_argument("hash", metavar="HASH", type=_hash, help="the hash of the pod's manifest")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    _add_host(logs)
    _add_json(logs, "one JSON object; with --follow one for each line")
    return parser


def _add_json(command: argparse.ArgumentParser, what: str = "one JSON object, for scripts") -> None:
    command.add_argument("--json", action="store_true", help=what)


def _add_env_file(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--env-file",
        metavar="FILE",
        type=Path,
        help="settings from a file of NAME=value lines; what is in the environment goes first",
    )


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
    _add_json(command)


def parse_duration(text: str) -> int:
    """Seconds in `90s`, `15m`, `2h`, `7d`, `2w` or plain digits; ValueError for anything else."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or int(match[1]) == 0:
        raise ValueError
    return int(match[1]) * UNIT_SECONDS[match[2]]


def _duration(text: str) -> int:
    from codius_node.schema import MAX_DURATION

    try:
        seconds = parse_duration(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no length of time: give seconds, or a number with s, m, h, d or w, as in 90s or 2h"
        ) from None
    if seconds > MAX_DURATION:
        raise argparse.ArgumentTypeError(f"{text!r} is more than the {MAX_DURATION} s that can be paid for")
    return seconds


def _hash(text: str) -> str:
    if not _HASH.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no hash: that is 52 characters of a-z and 2-7")
    return text


# ---- operators ------------------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> int:
    settings = config.load(_read_environ(arguments.env_file))
    _start_logging(settings)
    for name in config.find_unknown(os.environ):
        if name != HOST_VARIABLE:
            logging.getLogger(__name__).warning("%s is no setting and has no effect", name)
    match arguments.command:
        case "run":
            from codius_node import supervisor

            return supervisor.run(settings)
        case "node":
            from codius_node import daemon

            return daemon.node(settings)
        case "proxy":
            from codius_node import edge

            return edge.proxy(settings)
        case _:
            from codius_node import edge

            return edge.dns(settings)


def _check_dns(arguments: argparse.Namespace) -> int:
    from codius_dns.errors import DnsError
    from codius_node import delegation, edge

    settings = config.load(_read_environ(arguments.env_file))
    try:
        zone = delegation.find_zone(edge.dns_zones(settings, serial=1), arguments.zone)
        well = delegation.check(zone, arguments.resolver, print)
    except DnsError as error:
        raise SettingsError(error.message, hint=error.hint) from error
    return 0 if well else FAILED


def _read_environ(path: Path | None) -> Mapping[str, str]:
    """The environment, with the file's settings added for us and for the processes we start."""
    if path is not None:
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(MAX_ENV_FILE)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"{path} cannot be read: {error}", hint="Name a file of NAME=value lines with --env-file."
            ) from error
        for name, value in parse_env_file(text, path).items():
            os.environ.setdefault(name, value)
    return os.environ


def parse_env_file(text: str, path: Path) -> dict[str, str]:
    """NAME=value lines as in systemd's EnvironmentFile: # or ; begins a comment, quotes may surround."""
    found: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        match = _ENV_LINE.fullmatch(line)
        if match is None:
            raise SettingsError(
                f"{path}, line {number}: {line!r} is not NAME=value", hint="Correct it, or put # in front."
            )
        value = match[2].strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[match[1]] = value
    return found


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

    findings = doctor.examine(_read_environ(arguments.env_file))
    healthy = not any(finding.verdict is doctor.Verdict.BAD for finding in findings)
    if arguments.json:
        _print_json(
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
        verdict = _paint(f"{finding.verdict.value:<4}", colours[finding.verdict.value])
        fix = f"  {_paint('->', '1')} {finding.fix}" if finding.fix else ""
        print(f"{verdict}  {finding.name:<{width}}  {_clean(finding.message)}{_clean(fix, colours=True)}")


def _pods(arguments: argparse.Namespace) -> int:
    import asyncio

    from codius_node import client

    if arguments.hash is None:
        if arguments.host is not None:
            raise SettingsError(
                "hosts do not list their pods to everybody",
                hint="Leave --host out for the node on this machine, or give a HASH.",
            )
        settings = config.load(_read_environ(arguments.env_file))
        listings = asyncio.run(client.list_pods(settings.admin_socket))
        if arguments.json:
            _print_json({"pods": [dict(listing.document) for listing in listings]})
        else:
            _show_listings(listings)
        return 0

    async def ask() -> PodAnswer:
        async with client.Client(_choose_host(arguments)) as host:
            return await host.get(arguments.hash)

    pod = asyncio.run(ask())
    if arguments.json:
        _print_json(dict(pod.document))
    else:
        _show_pod(pod, "The pod runs at", arguments, debug=None)
    return 0


# ---- clients --------------------------------------------------------------------------------------


def _quote(arguments: argparse.Namespace) -> int:
    import asyncio

    from codius_node import client

    document, _fresh = client.read_upload(arguments.file, arguments.vars)

    async def ask() -> client.Offer:
        async with _open_client(arguments) as host:
            with _Teller(arguments, "asking for the price") as teller:
                parcel = await client.prepare(document, registry=host.registry, tell=teller.tell)
                return await host.quote(parcel, _seconds(arguments))

    offer = asyncio.run(ask())
    if arguments.json:
        _print_json(
            {
                "manifestHash": offer.hash,
                "duration": offer.duration,
                "price": str(offer.price),
                "currency": offer.currency,
            }
        )
    else:
        print(f"{client.render_price(offer)} for {render_length(offer.duration)}")
        print(f"  hash  {offer.hash}")
    return 0


def _upload(arguments: argparse.Namespace) -> int:
    import asyncio

    from codius_node import client

    document, _fresh = client.read_upload(arguments.file, arguments.vars)

    async def send() -> tuple[client.Parcel, PodAnswer]:
        async with _open_client(arguments) as host:
            with _Teller(arguments, "uploading") as teller:
                parcel = await client.prepare(document, registry=host.registry, tell=teller.tell)
                if arguments.save is not None:
                    client.save_upload(arguments.save, parcel.document)
                return parcel, await host.upload(parcel, _seconds(arguments), tell=teller.tell)

    parcel, pod = asyncio.run(send())
    if arguments.json:
        _print_json({**pod.document, "images": dict(parcel.resolved)})
    else:
        said = "The pod runs at" if parcel.has_port else "The pod runs; it has no port, so nothing answers at"
        _show_pod(pod, said, arguments, debug=parcel.debug)
    return 0


def _extend(arguments: argparse.Namespace) -> int:
    import asyncio

    from codius_node import client

    document: dict[str, Json] | None = None
    if not _HASH.fullmatch(arguments.target):
        document, fresh = client.read_upload(Path(arguments.target), arguments.vars)
        if fresh:
            raise client.FileError(
                f"{arguments.target} cannot name a pod: its private values are hashed anew each time",
                hint="Give the hash, or the file that `codiusd upload --save` wrote.",
            )

    async def send() -> PodAnswer:
        async with _open_client(arguments) as host:
            hash: ManifestHash = arguments.target
            with _Teller(arguments, "extending") as teller:
                if document is not None:
                    hash = (await client.prepare(document, registry=host.registry, tell=teller.tell)).hash
                return await host.extend(hash, _seconds(arguments))

    pod = asyncio.run(send())
    if arguments.json:
        _print_json(dict(pod.document))
    else:
        _show_pod(pod, "Extended:", arguments, debug=None)
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    import asyncio
    from contextlib import aclosing

    from codius_node import client

    kept: list[Json] = []

    def show(line: LogLine) -> None:
        if not arguments.json:
            print(_render_log_line(line), flush=arguments.follow)
            return
        entry: dict[str, Json] = {"container": line.container, "stream": line.stream, "text": line.text}
        if arguments.follow:
            _print_json(entry)
        else:
            kept.append(entry)

    async def copy() -> None:
        async with (
            client.Client(_choose_host(arguments)) as host,
            aclosing(host.logs(arguments.hash, follow=arguments.follow)) as lines,
        ):
            async for line in lines:
                show(line)

    asyncio.run(copy())
    if arguments.json and not arguments.follow:
        _print_json({"manifestHash": arguments.hash, "lines": kept})
    return 0


def _seconds(arguments: argparse.Namespace) -> int:
    from codius_node.schema import DEFAULT_DURATION

    return DEFAULT_DURATION if arguments.duration is None else int(arguments.duration)


def _choose_host(arguments: argparse.Namespace) -> str:
    from codius_node.client import DEFAULT_HOST

    return arguments.host or os.environ.get(HOST_VARIABLE, "").strip() or DEFAULT_HOST


def _open_client(arguments: argparse.Namespace) -> AbstractAsyncContextManager[Client]:
    from codius_node import client

    return client.Client(_choose_host(arguments), insecure_registries=arguments.insecure_registry)


# ---- what people read -----------------------------------------------------------------------------


class _Teller:
    """Steps on stderr: with a spinner on a terminal, as lines elsewhere, not at all for scripts."""

    def __init__(self, arguments: argparse.Namespace, title: str) -> None:
        self._quiet = bool(arguments.json)
        self._title = title
        self._status: Status | None = None

    def __enter__(self) -> _Teller:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.text import Text

            self._status = Console(stderr=True).status(Text(self._title))
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def tell(self, sentence: str) -> None:
        """Say one step."""
        if self._quiet:
            return
        line = _clean(sentence)
        if self._status is None:
            print(line, file=sys.stderr, flush=True)
            return
        from rich.text import Text

        self._status.console.print(Text(f"  {line}", style="dim"))
        self._status.update(Text(line))


def _show_pod(pod: PodAnswer, said: str, arguments: argparse.Namespace, *, debug: bool | None) -> None:
    """`debug`: whether the pod's logs can be read; None when that is not known."""
    left = (pod.expires_at - datetime.now(UTC)).total_seconds()
    until = pod.expires_at.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    host = f" --host {arguments.host}" if arguments.host else ""
    print(f"{said} {_paint(_clean(pod.url), '1;36')}")
    print(f"  hash    {pod.hash}")
    print(f"  until   {until} ({render_length(round(left))} from now)")
    print(f"  extend  codiusd extend {pod.hash} --duration 1h{host}")
    if debug is False:
        print('  logs    closed: its manifest does not say "debug": true')
    else:
        print(f"  logs    codiusd logs {pod.hash} --follow{host}")


def _show_listings(listings: Sequence[PodListing]) -> None:
    if not listings:
        print("No pods.")
        return
    rows = [("HASH", "NAME", "STATE", "TIME LEFT", "ADDRESS")]
    for pod in listings:
        left = render_length(pod.seconds_left)
        rows.append((pod.hash, _clean(pod.name), pod.state, left, pod.address))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def render_length(seconds: int) -> str:
    """A length of time for people: its two largest units."""
    parts = []
    rest = max(seconds, 0)
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def _render_log_line(line: LogLine) -> str:
    """As the host sent it; on a terminal with colours, and with nothing that could confuse it."""
    prefix = f"{line.container} {line.stream} " if line.container else ""
    if not sys.stdout.isatty():
        return prefix + line.text
    return _paint(_clean(prefix), "33" if line.stream == "stderr" else "36") + _clean(line.text, colours=True)


def _clean(text: str, *, colours: bool = False) -> str:
    """Text of strangers, without what a terminal would obey; `colours` may stay."""
    if not colours:
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    kept = _COLOUR.findall(text)
    plain = [_CONTROL.sub("\N{REPLACEMENT CHARACTER}", part) for part in _COLOUR.split(text)]
    return "".join(part for pair in zip(plain, [*kept, ""], strict=True) for part in pair) + (
        "\x1b[0m" if kept else ""
    )


def _paint(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if _has_colours(sys.stdout) else text


def _has_colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _print_json(document: Json) -> None:
    print(json.dumps(document, ensure_ascii=False), flush=True)


def _fail(error: CodiusError, *, as_json: bool) -> int:
    if as_json:
        problem: dict[str, Json] = {"message": error.message, "hint": error.hint}
        status = getattr(error, "answer_status", None)
        if isinstance(status, int):
            problem["statusCode"] = status
        _print_json({"error": problem})
    _say_error(error.message, error.hint)
    return FAILED


def _say_error(message: str, hint: str | None) -> None:
    """One line, in red on a terminal: what happened, and what to do next."""
    text = _clean(" ".join(message.split()))
    if _has_colours(sys.stderr):
        text = f"\x1b[31m{text}\x1b[0m"
    print(f"codiusd: {text}" + (f" -- {_clean(hint)}" if hint else ""), file=sys.stderr)
