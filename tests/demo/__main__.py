"""`make demo`: a whole host on loopback, shown step by step, and nothing left of it afterwards."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import dns.message
import dns.query
import dns.rdatatype
from rich.console import Console
from rich.text import Text

from tests.harness.host import Host, HostError
from tests.harness.namespaces import FAR_ADDRESS, HOST_ADDRESS, HostNetwork, missing_privilege, snapshot
from tests.harness.podman_service import PrivatePodman
from tests.harness.sample import SAMPLE_FILES, SAMPLE_NAME, sample_manifest

SECRET: Final = "only the pod knows"
FETCH_SECONDS: Final = 10.0
INTERRUPTED: Final = 130
PRIVATE_NEIGHBOUR: Final = IPv4Address("10.1.2.3")
"""Something in a private range behind the host's uplink, that no pod may reach."""
NC: Final = ("/bin/busybox", "nc", "-w", "1")
METADATA: Final = IPv4Address("169.254.169.254")
"""Where clouds answer with a machine's credentials."""
WEB_PORT: Final = 80
MAIL_PORT: Final = 25


class Failure(Exception):
    """A step did not do what it should; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Story:
    """The steps as they are told: a number, what happened, how long it took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._number = 0
        self.interrupted = False

    @contextmanager
    def step(self, doing: str) -> Iterator[Callable[[str], None]]:
        """Yields `tell`, which takes the sentence about what happened."""
        self._number += 1
        sentences: list[str] = []
        began = time.monotonic()
        with self._console.status(doing):
            yield sentences.append
        took = time.monotonic() - began
        first, *more = sentences
        line = Text.assemble((f"{self._number:>2} ", "bold green"), first)
        line.append(f"  {took:.1f} s" if took >= 1 else f"  {took * 1000:.0f} ms", "dim")
        self._console.print(line, soft_wrap=True)
        for sentence in more:
            self._console.print(Text(f"   {sentence}", "cyan"), soft_wrap=True)


async def tell(story: Story, directory: Path, stack: AsyncExitStack, *, keep: bool) -> None:
    """The whole demo; what it makes is pushed on the stack."""
    before = snapshot()
    with story.step("making network namespaces") as say:
        network = stack.enter_context(HostNetwork())
        network.add_internet_addresses(PRIVATE_NEIGHBOUR, METADATA)
        for address in (FAR_ADDRESS, PRIVATE_NEIGHBOUR, METADATA):
            network.internet.spawn(*_server(address, WEB_PORT))
        network.internet.spawn(*_server(FAR_ADDRESS, MAIL_PORT))
        say("a host of its own: network namespaces for a host and an internet; your machine's are untouched")
    with story.step("starting podman and making an image") as say:
        podman = await stack.enter_async_context(PrivatePodman(netns=network.host.path))
        image = await podman.make_image(SAMPLE_NAME, files=SAMPLE_FILES)
        version = (await podman.cli("--version")).removeprefix("podman version ").strip()
        say(f"podman {version} with a store of its own, and a sample image from busybox-static")
        say(image)
    with story.step("starting the host") as say:
        host = stack.enter_context(Host(directory, network=network, podman_socket=podman.socket))
        host.start()
        say(f"codiusd run: node, front door and DNS responder are up at {host.origin}")
    hash = await _show_pod(story, directory, host, network, podman, image)
    with story.step("asking how long it has") as say:
        pod = host.command("pods", hash)
        left = datetime.fromisoformat(str(pod["expiry"])) - datetime.now().astimezone()
        say(f"codiusd pods: paid for {_duration(left.total_seconds())} more")
    if keep:
        await _wait(host, f"{host.origin.replace('://', f'://{hash}.')}/", image)
    with story.step("cleaning up") as say:
        await stack.aclose()
        if (after := snapshot()) != before:
            changed = ", ".join(key for key in before if before[key] != after[key])
            raise Failure(f"your machine's network changed: {changed}", "please report this")
        say("host stopped, pods removed, namespaces gone; your machine's network is as it was")


async def _tell(story: Story, directory: Path, *, keep: bool) -> None:
    this = asyncio.current_task()
    assert this is not None

    def interrupt() -> None:
        story.interrupted = True
        this.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    stack = AsyncExitStack()
    try:
        await tell(story, directory, stack, keep=keep)
    finally:
        # whatever interrupts us, and however often: what was made is taken away
        closing = asyncio.create_task(stack.aclose(), name="clean-up")
        while not closing.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(closing)
        closing.result()


async def _show_pod(
    story: Story, directory: Path, host: Host, network: HostNetwork, podman: PrivatePodman, image: str
) -> str:
    with story.step("uploading a manifest") as say:
        manifest = directory / "codius.json"
        manifest.write_text(json.dumps(sample_manifest(image, secret=True)))
        (directory / "codiusvars.json").write_text(
            json.dumps({"vars": {"public": {"GREETING": {"value": "hello, world"}},
                                 "private": {"SECRET": {"value": SECRET}}}})
        )  # fmt: skip
        upload = host.command("upload", str(manifest), "--duration", "10m")
        hash, url = str(upload["manifestHash"]), str(upload["url"])
        say("codiusd upload codius.json: a pod, its image pinned by digest, one variable private")
        say(url)
    with story.step("visiting the pod") as say:
        page = _fetch(url)
        if "hello, world" not in page or hash not in page:
            raise Failure(f"the page is not the sample's: {page[:200]!r}", host.tail())
        say(f"GET {url[:16]}…/ through the front door: 200, “{page.splitlines()[0]}”")
    with story.step("asking the DNS responder") as say:
        name = url.split("/")[2].split(":", maxsplit=1)[0]
        query = dns.message.make_query(name, dns.rdatatype.A)
        reply = network.host.call(lambda: dns.query.udp(query, "127.0.0.1", port=5300, timeout=5))
        if not reply.answer:
            raise Failure(f"no address in the answer: {reply}", host.tail())
        say(f"DNS: {reply.answer[0].to_text().replace(hash, hash[:8] + '…')}")
    with story.step("reading its log") as say:
        log = host.codiusd("logs", hash).stdout.strip().splitlines()
        if not log:
            raise Failure("the log is empty", host.tail())
        say(f"codiusd logs: {len(log)} lines; the last one is")
        say(log[-1])
    with story.step("probing from inside the pod") as say:
        say("isolation, tried from inside the pod:")
        for target, port, what, allowed in (
            (str(FAR_ADDRESS), WEB_PORT, "a web server on the internet", True),
            (str(HOST_ADDRESS), host.port, "the host itself", False),
            (str(METADATA), WEB_PORT, "the cloud's metadata service", False),
            (str(PRIVATE_NEIGHBOUR), WEB_PORT, "a private network behind the host", False),
            (str(FAR_ADDRESS), MAIL_PORT, "a mail server", False),
        ):
            reached = await _reaches(podman, f"codius-{hash}-web", target, port)
            if reached != allowed:
                raise Failure(
                    f"{what} ({target}:{port}) is {'open' if reached else 'closed'} to the pod",
                    "this must never happen; please report it with the output of `nft list ruleset`",
                )
            say(f"{'reached' if reached else 'refused':8} {what}, {target}:{port}")
    with story.step("extending it") as say:
        extended = host.command("extend", hash, "--duration", "1h")
        say(f"codiusd extend --duration 1h: from {upload['expiry']} to {extended['expiry']}")
    with story.step("looking for the secret") as say:
        seen = json.dumps(host.command("pods", hash)) + host.log.read_text()
        stored = b"".join(path.read_bytes() for path in (directory / "root").glob("codius.db*"))
        if SECRET in seen or SECRET.encode() in stored:
            raise Failure("the private variable is in a listing, a log or the database", "please report it")
        say("the private variable is nowhere but in the pod: not in listings, logs or the database file")
    return hash


async def _reaches(podman: PrivatePodman, container: str, target: str, port: int) -> bool:
    """Whether a program in the container gets a connection within a second."""
    try:
        await podman.cli("exec", container, *NC, target, str(port), "-e", "/bin/busybox", "true")
    except RuntimeError:
        return False
    return True


def _server(address: IPv4Address, port: int) -> list[str]:
    """A server that accepts every connection, so that a refusal is the host's doing."""
    return ["busybox", "httpd", "-f", "-p", f"{address}:{port}", "-h", "/proc/sys"]


def _fetch(url: str) -> str:
    netloc = urlsplit(url).netloc
    here = f"http://127.0.0.1:{netloc.rpartition(':')[2]}/"  # *.localhost, whatever the resolver knows
    request = urllib.request.Request(here, headers={"Host": netloc})
    try:
        with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as answer:
            text: str = answer.read().decode()
            return text
    except (OSError, urllib.error.HTTPError) as error:
        raise Failure(f"the pod does not answer at {url}: {error}", "look at the host's log above") from error


async def _wait(host: Host, url: str, image: str) -> None:
    console = Console()
    console.print(f"\n   the pod   {url}\n   the host  {host.origin}/\n", soft_wrap=True)
    console.print(f"   codiusd pods, logs, upload … work with --host {host.origin}", soft_wrap=True)
    console.print("   and so do the commands of docs/api.md, after", soft_wrap=True)
    console.print(f"   export HOST={host.origin} IMAGE={image}\n", soft_wrap=True, highlight=False)
    console.print("   Ctrl-C ends it and cleans up.\n")
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(f"{n} {unit}" for n, unit in ((hours, "h"), (minutes, "min"), (seconds, "s")) if n)


def main() -> int:
    """Exit status 0 when every step did what it says."""
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--keep", action="store_true", help="leave it running, for a browser")
    parser.add_argument("--svg", type=Path, help="also save what was printed as a picture")
    options = parser.parse_args()
    console = Console(record=options.svg is not None, width=110 if options.svg else None)
    if (missing := missing_privilege()) is not None:
        console.print(f"[red]make demo:[/red] {missing.replace('make test', 'make demo')}")
        return 1
    with tempfile.TemporaryDirectory(prefix="codius-demo-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # the front door's unprivileged user has to find its sockets below
        story = Story(console)
        try:
            asyncio.run(_tell(story, directory, keep=options.keep))
        except (Failure, HostError, OSError, RuntimeError, asyncio.CancelledError) as error:
            if story.interrupted:  # a Ctrl-C also ends the command that a step was waiting for
                console.print("   interrupted; everything was cleaned up", style="yellow")
                return INTERRUPTED
            console.print(Text(f" ✗ {error}", "red"), soft_wrap=True)
            hint = getattr(error, "hint", "`make test` tells more; `codiusd doctor` looks at the machine")
            console.print(Text(f"   {hint}", "yellow"), soft_wrap=True)
            return 1
    if options.svg:
        picture = console.export_svg(title="make demo")
        # rich names fonts on somebody's server; the reader's own monospace font will do
        options.svg.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
