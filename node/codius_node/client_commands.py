"""What `codiusd` does for clients: quote, upload, extend, logs, and a look at one pod."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from codius_node import client, jsontext, parcels
from codius_node.client import PodAnswer
from codius_node.environment import HOST_VARIABLE
from codius_node.model import Json, LogLine, ManifestHash
from codius_node.parameters import DEFAULT_DURATION
from codius_node.schema import HASH_PATTERN
from codius_node.terminal import Teller, clean, paint, print_json, render_length


def run(arguments: argparse.Namespace) -> int:
    """The command that was typed; its exit status."""
    return COMMANDS[arguments.command](arguments)


def _quote(arguments: argparse.Namespace) -> int:
    document, _fresh = parcels.read_upload(arguments.file, arguments.vars)

    async def ask() -> client.Offer:
        async with _open_client(arguments) as host:
            with Teller("asking for the price", quiet=arguments.json) as teller:
                parcel = await parcels.prepare(document, registry=host.registry, tell=teller.tell)
                return await host.quote(parcel, _seconds(arguments))

    offer = asyncio.run(ask())
    if arguments.json:
        print_json(
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
    document, _fresh = parcels.read_upload(arguments.file, arguments.vars)

    async def send() -> tuple[parcels.Parcel, PodAnswer]:
        async with _open_client(arguments) as host:
            with Teller("uploading", quiet=arguments.json) as teller:
                parcel = await parcels.prepare(document, registry=host.registry, tell=teller.tell)
                if arguments.save is not None:
                    parcels.save_upload(arguments.save, parcel.document)
                return parcel, await host.upload(parcel, _seconds(arguments), tell=teller.tell)

    parcel, pod = asyncio.run(send())
    if arguments.json:
        print_json({**pod.document, "images": dict(parcel.resolved)})
    else:
        said = "The pod runs at" if parcel.has_port else "The pod runs; it has no port, so nothing answers at"
        _show_pod(pod, said, arguments, debug=parcel.debug)
    return 0


def _extend(arguments: argparse.Namespace) -> int:
    document: dict[str, Json] | None = None
    if not HASH_PATTERN.fullmatch(arguments.target):
        if not Path(arguments.target).exists():
            raise parcels.FileError(
                f"{jsontext.quote(arguments.target)} is neither a pod's hash nor a file",
                hint="A hash is 52 characters of a-z and 2-7; `codiusd upload` shows it.",
            )
        document, fresh = parcels.read_upload(Path(arguments.target), arguments.vars)
        if fresh:
            raise parcels.FileError(
                f"{arguments.target} cannot name a pod: its private values are hashed anew each time",
                hint="Give the hash, or the file that `codiusd upload --save` wrote.",
            )

    async def send() -> tuple[PodAnswer, bool | None]:
        async with _open_client(arguments) as host:
            hash, debug = ManifestHash(arguments.target), None
            with Teller("extending", quiet=arguments.json) as teller:
                if document is not None:
                    parcel = await parcels.prepare(document, registry=host.registry, tell=teller.tell)
                    hash, debug = parcel.hash, parcel.debug
                return await host.extend(hash, _seconds(arguments)), debug

    pod, debug = asyncio.run(send())
    if arguments.json:
        print_json(dict(pod.document))
    else:
        _show_pod(pod, "Extended:", arguments, debug=debug)
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    kept: list[Json] = []

    def show(line: LogLine) -> None:
        if not arguments.json:
            print(_render_log_line(line), flush=arguments.follow)
            return
        entry: dict[str, Json] = {"container": line.container, "stream": line.stream, "text": line.text}
        if arguments.follow:
            print_json(entry)
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
        print_json({"manifestHash": arguments.hash, "lines": kept})
    return 0


def _seconds(arguments: argparse.Namespace) -> int:
    return DEFAULT_DURATION if arguments.duration is None else int(arguments.duration)


def _choose_host(arguments: argparse.Namespace) -> str:
    return arguments.host or os.environ.get(HOST_VARIABLE, "").strip() or client.DEFAULT_HOST


def _open_client(arguments: argparse.Namespace) -> client.Client:
    return client.Client(_choose_host(arguments), insecure_registries=arguments.insecure_registry)


def _show(arguments: argparse.Namespace) -> int:
    async def ask() -> PodAnswer:
        async with client.Client(_choose_host(arguments)) as host:
            return await host.get(arguments.hash)

    pod = asyncio.run(ask())
    if arguments.json:
        print_json(dict(pod.document))
    else:
        shown = pod.document.get("manifest")
        debug = shown.get("debug") is True if isinstance(shown, dict) else None
        _show_pod(pod, "The pod runs at", arguments, debug=debug)
    return 0


def _show_pod(pod: PodAnswer, said: str, arguments: argparse.Namespace, *, debug: bool | None) -> None:
    """`debug`: whether the pod's logs can be read; None when that is not known."""
    left = (pod.expires_at - datetime.now(UTC)).total_seconds()
    until = pod.expires_at.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    host = f" --host {arguments.host}" if arguments.host else ""
    print(f"{said} {paint(clean(pod.url), '1;36')}")
    print(f"  hash    {pod.hash}")
    print(f"  until   {until} ({render_length(round(left))} from now)")
    print(f"  extend  codiusd extend {pod.hash} --duration 1h{host}")
    if debug is False:
        print('  logs    closed: its manifest does not say "debug": true')
    else:
        print(f"  logs    codiusd logs {pod.hash} --follow{host}")


def _render_log_line(line: LogLine) -> str:
    """As the host sent it; on a terminal with colours, and with nothing that could confuse it."""
    prefix = f"{line.container} {line.stream} " if line.container else ""
    if not sys.stdout.isatty():
        return prefix + line.text
    return paint(clean(prefix), "33" if line.stream == "stderr" else "36") + clean(line.text, colours=True)


COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "quote": _quote,
    "upload": _upload,
    "extend": _extend,
    "logs": _logs,
    "pods": _show,
}
