"""The self-test: what a client and a visitor would do, done by the host itself, by its own public address."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Protocol, cast
from urllib.parse import urlsplit

from codius_node import client, jsontext, parcels, sample, sample_program
from codius_node.config import Settings
from codius_node.errors import CodiusError, NotFoundError
from codius_node.model import Capacity, Json, ManifestHash, Pod
from codius_node.payments import is_free
from codius_node.uri import DEFAULT_PORTS, is_loopback_name

logger = logging.getLogger(__name__)

FIRST_SECONDS: Final = 60.0
"""From the start to the first test: the front door comes up after the node."""
INTERVAL_SECONDS: Final = 24 * 3600.0
"""Between two tests; chance makes it up to a tenth shorter or longer."""
KNOWN_SECONDS: Final = 2 * INTERVAL_SECONDS
"""How long a report says anything of the host: one that is older has missed the next."""
REPORT_SETTING: Final = "selftest"
"""The store's key of the last report and of the address it is about."""
TEST_SECONDS: Final = 300.0
"""For a test as a whole; an operator's own image may have to be pulled."""
STEP_SECONDS: Final = 20.0
"""For a step that waits for a name or a visit."""
CONNECT_SECONDS: Final = 5.0
"""For one of a name's addresses, so that a silent one leaves time for the next."""
PAUSE_SECONDS: Final = 0.1
"""Between two visits: each process of the front door hears of a new pod by itself, within milliseconds."""
SAMPLE_SECONDS: Final = 60
"""What the sample is paid for. It ends by itself, also where this node has ended before it."""
MAX_HEAD: Final = 16 * 1024
"""Bytes of an answer that are read."""
PROBE_LABEL: Final = "a" * 52
"""The first label of a pod's name, of no pod that can ever be."""
PAYMENT_REQUIRED: Final = 402
MESSAGE: Final = "codius self-test"

UNCHECKED_ANYWHERE: Final = (
    "whether firewalls and routers in front of this machine let visitors in: the test began behind them",
)
UNCHECKED_OF_A_ZONE: Final = (
    "whether the rest of the internet finds this host's name: only this machine's own resolver was asked",
    *UNCHECKED_ANYWHERE,
)
UNCHECKED_OF_LOCALHOST: Final = (
    "whether others reach this host: names below localhost are every machine's own",
)
UNCHECKED_OF_PAYMENT: Final = ("whether clients can pay: the test's own upload was on the house",)


class Verdict(StrEnum):
    """What came of a step."""

    PASSED = "passed"
    FAILED = "failed"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what was found, and for one that failed what to do next."""

    name: str
    verdict: Verdict
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A test that was made. `beyond` is what no test from inside can tell."""

    began_at: datetime
    steps: tuple[Step, ...]
    beyond: tuple[str, ...]

    @property
    def success(self) -> bool | None:
        """None: nothing failed, and not everything could be tried."""
        verdicts = {step.verdict for step in self.steps}
        if Verdict.FAILED in verdicts:
            return False
        return None if Verdict.UNCHECKED in verdicts or not verdicts else True

    def as_document(self) -> dict[str, Json]:
        return {
            "success": self.success,
            "beganAt": self.began_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "steps": [
                {"name": step.name, "verdict": step.verdict.value, "message": step.message, "hint": step.hint}
                for step in self.steps
            ],
            "unchecked": list(self.beyond),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Json]) -> Report:
        """From the JSON that `as_document` makes; KeyError, TypeError or ValueError for anything else."""
        steps = cast("list[dict[str, Json]]", document["steps"])
        return cls(
            datetime.fromisoformat(str(document["beganAt"])),
            tuple(
                Step(
                    str(step["name"]),
                    Verdict(str(step["verdict"])),
                    str(step["message"]),
                    None if step["hint"] is None else str(step["hint"]),
                )
                for step in steps
            ),
            tuple(map(str, cast("list[Json]", document["unchecked"]))),
        )


class Engine(Protocol):
    """What the test asks of the host's coordinator: whether what it uploaded has arrived."""

    async def get(self, hash: ManifestHash) -> Pod: ...
    async def capacity(self) -> Capacity: ...


class Images(Protocol):
    """Where the built-in sample is put."""

    async def import_image(self, name: str, archive: bytes) -> str: ...


class Passes(Protocol):
    """Where the test's upload is paid for: it has no money."""

    def grant(self, hash: ManifestHash, seconds: int) -> AbstractContextManager[str]:
        """A Pay-Token that pays for this, once, until the block is left."""
        ...


class Store(Protocol):
    """Where the last report outlives the node."""

    async def get_setting(self, key: str) -> Json: ...
    async def set_setting(self, key: str, value: Json, now: datetime) -> None: ...


class StepError(CodiusError):
    """A step was tried and did not work."""


class UncheckedError(CodiusError):
    """A step cannot be tried here, which says nothing about the host."""


@dataclass(slots=True)
class _Trial:
    """One test under way: what its steps have found for those after them."""

    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    key: str = field(default_factory=lambda: b64encode(secrets.token_bytes(16)).decode())
    built_in: bool = True
    image: str = ""
    url: str = ""


class SelfTest:
    """Tests the host once a day, from `start` to `aclose`, and whenever it is asked to. It never raises:
    whatever goes wrong is a step of the report.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        engine: Engine,
        images: Images,
        passes: Passes,
        store: Store,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        first_seconds: float = FIRST_SECONDS,
        step_seconds: float = STEP_SECONDS,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._images = images
        self._passes = passes
        self._store = store
        self._clock = clock
        self._first_seconds = first_seconds
        self._step_seconds = step_seconds
        self._last: Report | None = None
        self._running: asyncio.Task[Report] | None = None
        self._daily: asyncio.Task[None] | None = None

    @property
    def success(self) -> bool | None:
        """Of the last test; None when there was none, it is long past, or it could not tell."""
        if self._last is None:
            return None
        age = self._clock() - self._last.began_at
        return self._last.success if timedelta(0) <= age <= timedelta(seconds=KNOWN_SECONDS) else None

    async def load(self) -> None:
        """Take up the report an earlier run left, where it is about the address the host has now."""
        try:
            match await self._store.get_setting(REPORT_SETTING):
                case {"uri": str(uri), "report": dict(report)} if uri == self._settings.public_uri.origin:
                    self._last = Report.from_document(report)
        except (CodiusError, KeyError, TypeError, ValueError) as error:
            logger.warning("the last self-test's report cannot be read: %s", error)

    def start(self) -> None:
        """Begin to test once a day, where the settings say so."""
        if self._settings.selftest:
            self._daily = asyncio.create_task(self._repeat(), name="selftest-daily")

    async def aclose(self) -> None:
        tasks = [task for task in (self._daily, self._running) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self) -> Report:
        """A test, or the one that is under way."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(), name="selftest")
        return await asyncio.shield(self._running)

    async def _repeat(self) -> None:
        await asyncio.sleep(self._first_seconds)
        while True:
            await self.run()
            await asyncio.sleep(INTERVAL_SECONDS * random.SystemRandom().uniform(0.9, 1.1))

    # ---- one test ---------------------------------------------------------------------------------

    async def _run(self) -> Report:
        began = self._clock()
        steps: dict[str, Step] = {}
        trial = _Trial()
        with suppress(TimeoutError):
            async with asyncio.timeout(TEST_SECONDS):
                for name, needs, work in self._plan():
                    steps[name] = await _try(name, needs, steps, work, trial)
        for name, _, _ in self._plan():
            steps.setdefault(name, Step(name, Verdict.FAILED, f"not done within {TEST_SECONDS:.0f} s"))
        self._last = Report(began, tuple(steps.values()), self._name_unchecked())
        self._log(self._last)
        await self._keep(self._last)
        return self._last

    def _name_unchecked(self) -> tuple[str, ...]:
        local = is_loopback_name(self._settings.public_uri.host)
        return (
            *(UNCHECKED_OF_LOCALHOST if local else UNCHECKED_OF_A_ZONE),
            *(() if is_free(self._settings) else UNCHECKED_OF_PAYMENT),
        )

    async def _keep(self, report: Report) -> None:
        document: Json = {"uri": self._settings.public_uri.origin, "report": report.as_document()}
        try:
            await self._store.set_setting(REPORT_SETTING, document, now=self._clock())
        except CodiusError as error:
            logger.warning("the self-test's report ends with this node: %s", error)

    def _plan(self) -> tuple[tuple[str, tuple[str, ...], Callable[[_Trial], Awaitable[str]]], ...]:
        """The steps in order, each with those that it cannot do without."""
        return (
            ("names", (), self._look_up_names),
            ("front door", ("names",), self._ask_the_host),
            ("sample", (), self._find_sample),
            ("upload", ("front door", "sample"), self._upload),
            ("visit", ("upload",), self._visit),
            ("websocket", ("upload",), self._talk),
        )

    def _log(self, report: Report) -> None:
        for step in report.steps:
            if step.verdict is Verdict.FAILED:
                logger.warning("self-test: %s: %s. %s", step.name, step.message, step.hint or "")
        told = {True: "passed", False: "failed", None: "not everything could be tried"}
        logger.info("self-test: %s", told[report.success])

    # ---- its steps --------------------------------------------------------------------------------

    async def _look_up_names(self, _: _Trial) -> str:
        host = self._settings.public_uri.host
        # names below localhost are loopback for everybody, whatever the zone says
        wanted = () if is_loopback_name(host) else self._settings.public_addresses
        try:
            async with asyncio.timeout(self._step_seconds):
                found = {name: await _look_up(name) for name in (host, f"{PROBE_LABEL}.{host}")}
        except TimeoutError as error:
            raise StepError(
                f"no answer about {host} and the names below it within {self._step_seconds:.0f} s",
                hint="Has this machine a resolver (/etc/resolv.conf), and does the zone's server answer?",
            ) from error
        return judge_names(host, wanted, found)

    async def _ask_the_host(self, _: _Trial) -> str:
        origin = self._settings.public_uri.origin
        hint = (
            "Is the front door running, and does whatever stands before it send this name here? From behind"
            " some routers their own public address cannot be reached; others may reach it all the same."
        )
        try:
            async with client.Client(origin) as host:
                named = (await host.info(seconds=self._step_seconds)).get("uri")
        except client.RefusedError as error:
            raise StepError(
                f"{origin} answers {error.answer_status} to GET /info: {error.message}", hint=hint
            ) from error
        except client.HostError as error:
            raise StepError(error.message, hint=hint) from error
        if named != origin:
            raise StepError(f"what answers at {origin} calls itself {named}", hint=hint)
        return f"the API answers at {origin}"

    async def _find_sample(self, trial: _Trial) -> str:
        if self._settings.noop:
            raise UncheckedError("this host starts no containers (CODIUS_HYPER_NOOP)")
        if self._settings.selftest_image:
            trial.image, trial.built_in = self._settings.selftest_image, False
            return f"{trial.image}, as CODIUS_SELFTEST_IMAGE says"
        architecture = sample_program.find_architecture()
        if architecture is None:
            raise UncheckedError(
                "there is no built-in sample for this kind of processor",
                hint="Name an image with CODIUS_SELFTEST_IMAGE.",
            )
        program = sample_program.build_program(architecture, sample.PORT)
        trial.image = await self._images.import_image(*sample.build_image(program))
        return trial.image

    async def _upload(self, trial: _Trial) -> str:
        if (await self._engine.capacity()).full:
            raise UncheckedError("this host is full, and takes no upload now", hint="Try again later.")
        document = sample.build_upload(trial.image, nonce=trial.nonce, key=trial.key, built_in=trial.built_in)
        try:
            async with client.Client(self._settings.public_uri.origin) as host:
                parcel = await parcels.prepare(document, registry=host.registry)
                with self._passes.grant(parcel.hash, SAMPLE_SECONDS) as token:
                    answer = await host.upload(parcel, SAMPLE_SECONDS, token=token)
        except client.RefusedError as error:
            if error.answer_status == PAYMENT_REQUIRED:
                raise StepError(
                    f"what answers at {self._settings.public_uri} wants money for what is paid for",
                    hint="Another host answers to this name.",
                ) from error
            raise
        try:
            await self._engine.get(parcel.hash)
        except NotFoundError as error:
            raise StepError(
                f"the upload was accepted at {self._settings.public_uri}, and this node has not got it",
                hint="Another host answers to this name.",
            ) from error
        trial.url = answer.url
        return f"{parcel.hash} for {SAMPLE_SECONDS} s"

    async def _visit(self, trial: _Trial) -> str:
        request = "GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: codius-host\r\nConnection: close\r\n\r\n"

        async def visit() -> str:
            async with _open(trial.url) as (host, reader, writer):
                writer.write(request.format(host=host).encode())
                answer = await _read_all(reader)
            if answer.split(b" ", 2)[1:2] != [b"200"]:
                raise StepError(f"the pod's address answers {_first_line(answer)}")
            if trial.built_in and not answer.endswith(f"\r\n\r\n{trial.nonce}".encode()):
                raise StepError("what answers at the pod's address is not the pod")
            return f"the pod answers at {trial.url}"

        return await self._insist(visit)

    async def _talk(self, trial: _Trial) -> str:
        """The handshake of RFC 6455 section 4.1, and one message there and back."""
        request = (
            f"GET {sample.WEBSOCKET_PATH} HTTP/1.1\r\nHost: {{host}}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {trial.key}\r\n\r\n"
        )
        echo = sample.build_echo(MESSAGE)

        async def talk() -> str:
            async with _open(trial.url) as (host, reader, writer):
                writer.write(request.format(host=host).encode())
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                    raise StepError("the answer to a WebSocket's handshake is none") from error
                if head.split(b" ", 2)[1:2] != [b"101"]:
                    raise StepError(f"a WebSocket's handshake is answered by {_first_line(head)}")
                if sample.build_accept(trial.key).encode() not in head:
                    raise StepError("a WebSocket's handshake is answered by somebody who did not read it")
                writer.write(sample.build_frame(MESSAGE))
                if await reader.readexactly(len(echo)) != echo:
                    raise StepError("a WebSocket's message comes back as another one")
            return "a message went to the pod and came back"

        return await self._insist(talk)

    async def _insist(self, work: Callable[[], Awaitable[str]]) -> str:
        """Until it works, or the step's time is up; then with the last reason why it did not."""
        last = "no answer"
        hint = "Does the front door run, and does whatever stands before it pass on all names and WebSockets?"
        with suppress(TimeoutError):
            async with asyncio.timeout(self._step_seconds):
                while True:
                    try:
                        return await work()
                    except StepError as error:
                        last = error.message
                    except OSError as error:
                        last = f"the connection broke: {client.explain(error)}"
                    except EOFError:
                        last = "the connection ended too early"
                    await asyncio.sleep(PAUSE_SECONDS)
        raise StepError(last, hint=hint)


async def _try(
    name: str,
    needs: Collection[str],
    before: Mapping[str, Step],
    work: Callable[[_Trial], Awaitable[str]],
    trial: _Trial,
) -> Step:
    missing = [need for need in needs if before[need].verdict is not Verdict.PASSED]
    if missing:
        return Step(name, Verdict.UNCHECKED, f"not tried: it needs {' and '.join(missing)}")
    try:
        return Step(name, Verdict.PASSED, await work(trial))
    except UncheckedError as error:
        return Step(name, Verdict.UNCHECKED, error.message, error.hint)
    except CodiusError as error:
        return Step(name, Verdict.FAILED, error.message, error.hint)
    except Exception as error:
        logger.exception("self-test: unforeseen error")
        return Step(
            name, Verdict.FAILED, f"unforeseen: {error!r}", "Tell the authors: the log has the details."
        )


def judge_names(
    host: str, wanted: Sequence[IPv4Address | IPv6Address], found: Mapping[str, Sequence[str]]
) -> str:
    """What is to be said of the addresses of the host's name and of one below it; StepError when they do not
    lead here. `wanted` is empty where the operator did not say.
    """
    for name, addresses in found.items():
        shown = name.replace(PROBE_LABEL, "<hash>")
        if not addresses:
            raise StepError(
                f"{shown} has no address",
                hint=f"Give {host} and *.{host} an address, or delegate the zone to this host's DNS.",
            )
        if wanted and not {ip_address(address) for address in addresses} & set(wanted):
            raise StepError(
                f"{shown} is {', '.join(addresses)}, not {', '.join(map(str, wanted))}",
                hint="Correct the DNS records, or CODIUS_PUBLIC_ADDRESSES.",
            )
    return f"{host} and the names below it are {', '.join(found[host])}"


async def _look_up(name: str, port: int = 0) -> list[str]:
    resolver = client.LoopbackResolver()
    try:
        return [entry["host"] for entry in await resolver.resolve(name, port, socket.AF_UNSPEC)]
    except OSError:
        return []
    finally:
        await resolver.close()


@asynccontextmanager
async def _open(url: str) -> AsyncIterator[tuple[str, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the URL's host, by the first address that takes it; and what goes into Host."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    secure = parts.scheme == "https"
    port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    problems = []
    for address in await _look_up(name):
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    address,
                    port,
                    limit=MAX_HEAD,
                    ssl=ssl.create_default_context() if secure else None,
                    server_hostname=name if secure else None,
                )
        except OSError as error:
            problems.append(f"{address}: {client.explain(error)}")
            continue
        try:
            yield parts.netloc, reader, writer
        finally:
            writer.close()
        return
    raise StepError("; ".join(problems) or f"{name} has no address")


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    answer = bytearray()
    while len(answer) < MAX_HEAD and (data := await reader.read(MAX_HEAD)):
        answer += data
    return bytes(answer)


def _first_line(answer: bytes) -> str:
    line = answer.split(b"\r\n", 1)[0].decode("latin-1")
    return jsontext.quote(line) if line else "nothing"
