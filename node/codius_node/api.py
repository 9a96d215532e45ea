"""The public HTTP API: requests from strangers in, questions to the engine, answers out."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from importlib import metadata
from typing import Any, Final, Protocol, TypeVar

from aiohttp import web

from codius_node import answers, manifest, pages, schema
from codius_node.config import Settings
from codius_node.errors import (
    BodyTooLargeError,
    CodiusError,
    HostFullError,
    MediaTypeError,
    NotFoundError,
    RequestError,
)
from codius_node.model import Capacity, Currency, Json, LogLine, ManifestHash, Pod, Quote, Upload
from codius_node.peers import MAX_EXCHANGED, MAX_LIST_BODY, MAX_SAMPLE, Discovery, parse_peer_list

logger = logging.getLogger(__name__)

T = TypeVar("T")

NAME: Final = "Codiusd (Python)"
DISTRIBUTION: Final = "codius-host"

LOG_TYPE: Final = "application/vnd.codius.raw-stream"
PROGRESS_TYPE: Final = "application/x-ndjson"

MAX_LOG_STREAMS: Final = 64
"""Clients reading logs at once; each holds a connection to the container engine."""
LOG_WRITE_SECONDS: Final = 60.0
"""How long a log's reader may take nothing before it is let go."""
DEPARTURE_SECONDS: Final = 0.5
"""Between two looks whether a silent log's reader is still there."""
MAX_SENTENCES: Final = 256
"""Sentences of progress kept for a client that reads slowly; older ones are dropped."""
PARSE_INLINE: Final = 64 * 1024
"""Bytes of a body parsed on the event loop (about 5 ms); larger ones are parsed in a thread."""
END_SECONDS: Final = 20.0
"""What requests that change a pod get to end when the node stops, before they are cancelled."""
UNDO_SECONDS: Final = 20.0
"""What the cancelled ones get to be undone; what is left then is found at the next start."""

COMPRESSIONS: Final = frozenset({"gzip", "x-gzip", "deflate"})
"""Content codings of RFC 9110 8.4.1 that a request's body may have."""

PREFLIGHT_HEADERS: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, OPTIONS",
    "Access-Control-Allow-Headers": "Accept, Content-Type, Pay-Token",
    "Access-Control-Max-Age": "86400",
}

_CONTENT_TYPE: Final = re.compile(r"\s*([!#$%&'*+.^_`|~\w-]+/[!#$%&'*+.^_`|~\w-]+)\s*(?:;.*)?", re.ASCII)


_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Engine(Protocol):
    """What the API asks of the host's coordinator."""

    @property
    def currency(self) -> Currency: ...
    @property
    def cost_per_month(self) -> Decimal: ...
    async def quote(self, upload: Upload, duration: int) -> Quote: ...
    async def upload(
        self,
        upload: Upload,
        duration: int,
        *,
        token: str | None,
        progress: Callable[[str], None] | None = None,
    ) -> Pod: ...
    async def extend(self, hash: ManifestHash, duration: int, *, token: str | None) -> Pod: ...
    async def get(self, hash: ManifestHash) -> Pod: ...
    async def logs(self, hash: ManifestHash, *, follow: bool) -> AsyncIterator[LogLine]: ...
    async def capacity(self) -> Capacity: ...
    def url(self, hash: ManifestHash) -> str: ...


class Peers(Protocol):
    """The other hosts this one knows."""

    async def sample(self, limit: int) -> Sequence[str]: ...
    async def count(self) -> int: ...
    def suggest(self, uris: Iterable[str]) -> None:
        """Names somebody told; nothing is asked before the answer."""
        ...


class HostStats(Protocol):
    """The machine's own figures."""

    def memory(self) -> tuple[int, int]:
        """Available and total bytes."""
        ...

    def uptime(self) -> float:
        """Seconds since boot."""
        ...

    def load(self) -> float: ...


class SelfTest(Protocol):
    """Whoever tries the host out from time to time."""

    @property
    def success(self) -> bool | None:
        """None: not known."""
        ...


def build_app(
    *,
    engine: Engine,
    peers: Peers,
    host: HostStats,
    selftest: SelfTest,
    settings: Settings,
    started_at: datetime,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> web.Application:
    """The API as an application; serve it with `answers.Runner`."""
    api = _Api(
        engine=engine,
        peers=peers,
        host=host,
        selftest=selftest,
        settings=settings,
        started_at=started_at,
        clock=clock,
    )
    app = web.Application(middlewares=[_answer_preflight, answers.answer_errors])
    app.on_response_prepare.append(answers.set_headers)
    app.on_response_prepare.append(_allow_any_origin)
    app.on_shutdown.append(api.stop)
    answers.add_routes(
        app,
        (
            ("GET", "/", api.show_page),
            ("GET", "/version", api.tell_version),
            ("GET", "/info", api.tell_info),
            ("GET", "/memory", api.tell_memory),
            ("GET", "/peers", api.tell_peers),
            ("POST", "/peers/discover", api.discover),
            ("GET", "/pods", api.show_pod),
            ("OPTIONS", "/pods", api.quote),
            ("POST", "/pods", api.upload),
            ("PUT", "/pods", api.extend),
            ("GET", "/pods/{hash}/logs", api.stream_logs),
            ("*", "/{path:.*}", _refuse_path),
        ),
    )
    return app


class _Api:
    """The handlers. Each checks its query, then its body, and only then asks the engine."""

    def __init__(
        self,
        *,
        engine: Engine,
        peers: Peers,
        host: HostStats,
        selftest: SelfTest,
        settings: Settings,
        started_at: datetime,
        clock: Callable[[], datetime],
    ) -> None:
        self._engine = engine
        self._peers = peers
        self._host = host
        self._selftest = selftest
        self._settings = settings
        self._started_at = started_at
        self._clock = clock
        self._version = metadata.version(DISTRIBUTION)
        self._changes: set[asyncio.Task[Pod]] = set()
        self._streams: set[asyncio.Task[None]] = set()
        self._log_readers = 0

    # ---- the host ---------------------------------------------------------------------------------

    async def show_page(self, _: web.Request) -> web.Response:
        capacity, refusal = await self._look()
        extra = self._settings.additional_host_info
        page = pages.HostPage(
            uri=self._settings.public_uri.origin,
            version=self._version,
            refusal=refusal,
            cost_per_month=self._engine.cost_per_month,
            currency=self._engine.currency,
            free_of_charge=self._settings.payments in {"", "free"},
            peers=await self._peers.count(),
            free_memory=capacity.free_memory if extra else None,
            pods=capacity.running if extra else None,
            uptime=int(self._host.uptime()) if extra else None,
            service_uptime=int(self._uptime()) if extra else None,
        )
        response = web.Response(text=pages.render(page), content_type="text/html", charset="utf-8")
        response.headers["Content-Security-Policy"] = pages.POLICY
        response.headers["Vary"] = "Accept-Encoding"
        response.enable_compression()
        return response

    async def tell_version(self, _: web.Request) -> web.Response:
        return answers.render_json({"name": NAME, "version": self._version})

    async def tell_info(self, request: web.Request) -> web.Response:
        capacity, refusal = await self._look()
        info: dict[str, Json] = {
            "fullMem": capacity.full,
            "acceptingUploads": refusal is None,
            "numPeers": await self._peers.count(),
            "currency": self._engine.currency.code,
            "costPerMonth": _number(self._engine.cost_per_month),
            "uri": self._settings.public_uri.origin,
            # null before the first test, and after one that could not try everything
            "selfTestSuccess": self._selftest.success,
        }
        if self._settings.additional_host_info:
            info |= {
                "serverFreeMemory": capacity.free_memory,
                "serverUptime": int(self._host.uptime()),
                "serviceUptime": round(self._uptime(), 3),
                "avgLoad": self._host.load(),
                "runningContracts": capacity.running,
            }
        if request.query.getall("requestPeers", []) == ["true"]:
            info["peers"] = list(await self._peers.sample(MAX_SAMPLE))
        return answers.render_json(info)

    async def tell_memory(self, _: web.Request) -> web.Response:
        available, _total = self._host.memory()
        return answers.render_json({"freeMem": available})

    async def tell_peers(self, request: web.Request) -> web.Response:
        limit = _parse_limit(request.query.getall("limit", []))
        return answers.render_json({"peers": list(await self._peers.sample(limit))})

    async def discover(self, request: web.Request) -> web.Response:
        _check_content_type(request)
        body = await _read_body(request, limit=MAX_LIST_BODY)
        self._peers.suggest(parse_peer_list(schema.decode_json(body, limit=MAX_LIST_BODY)))
        known = await self._peers.sample(MAX_EXCHANGED)
        return answers.render_json(Discovery(NAME, self._version, tuple(known)).as_document())

    async def _look(self) -> tuple[Capacity, str | None]:
        """The host's room, and why it would refuse an upload now."""
        try:
            capacity = await self._engine.capacity()
        except CodiusError as error:
            logger.warning("the host cannot take uploads: %s", error)
            available, _total = self._host.memory()
            return Capacity(full=False, free_memory=available, running=0), "out of order, for the moment"
        return capacity, "full, for the moment" if capacity.full else None

    def _uptime(self) -> float:
        return max((self._clock() - self._started_at).total_seconds(), 0.0)

    # ---- pods -------------------------------------------------------------------------------------

    async def quote(self, request: web.Request) -> web.Response:
        duration = schema.parse_duration(request.query.getall("duration", []))
        upload = await self._read_upload(request, require_private=False)
        quote = await self._engine.quote(upload, duration)
        return answers.render_json({"manifestHash": quote.hash, "price": str(quote.price)})

    async def upload(self, request: web.Request) -> web.StreamResponse:
        duration = schema.parse_duration(request.query.getall("duration", []))
        with_progress = _parse_flag("progress", request.query.getall("progress", []))
        upload = await self._read_upload(request, require_private=True)
        token = request.headers.get("Pay-Token")
        if with_progress:
            return await self._upload_with_progress(request, upload, duration, token)
        pod = await self._finish(self._engine.upload(upload, duration, token=token))
        return answers.render_json(self._describe(pod))

    async def extend(self, request: web.Request) -> web.Response:
        hash = schema.parse_hash(request.query.getall("manifestHash", []))
        duration = schema.parse_duration(request.query.getall("duration", []))
        if await _read_body(request):
            raise RequestError(
                "PUT /pods takes no body", hint="Name the pod with ?manifestHash=; POST takes a manifest."
            )
        token = request.headers.get("Pay-Token")
        pod = await self._finish(self._engine.extend(hash, duration, token=token))
        return answers.render_json(self._describe(pod))

    async def show_pod(self, request: web.Request) -> web.Response:
        hash = schema.parse_hash(request.query.getall("manifestHash", []))
        pod = await self._engine.get(hash)
        return answers.render_json({**self._describe(pod), "manifest": dict(pod.manifest.document)})

    async def _read_upload(self, request: web.Request, *, require_private: bool) -> Upload:
        _check_content_type(request)
        body = await _read_body(request)

        def parse() -> Upload:
            document = schema.decode_json(body, limit=schema.MAX_UPLOAD_BODY)
            return manifest.parse(
                document, require_private=require_private, allow_tags=self._settings.allow_tags
            )

        return parse() if len(body) <= PARSE_INLINE else await asyncio.to_thread(parse)

    def _describe(self, pod: Pod) -> dict[str, Json]:
        return {
            "url": self._engine.url(pod.hash),
            "manifestHash": pod.hash,
            "expiry": render_time(pod.expires_at),
        }

    def _change(self, work: Coroutine[Any, Any, Pod]) -> asyncio.Task[Pod]:
        """Work that a client may walk away from and that is carried out all the same."""
        task = asyncio.create_task(work, name="change of a pod")
        self._changes.add(task)
        task.add_done_callback(self._forget)
        return task

    async def _finish(self, work: Coroutine[Any, Any, Pod]) -> Pod:
        task = self._change(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise _stopping() from None
            raise

    def _forget(self, task: asyncio.Task[Pod]) -> None:
        self._changes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("a change of a pod failed: %s", error)  # told to the client, if it is still there

    # ---- streams ----------------------------------------------------------------------------------

    async def _upload_with_progress(
        self, request: web.Request, upload: Upload, duration: int, token: str | None
    ) -> web.StreamResponse:
        sentences: deque[str] = deque(maxlen=MAX_SENTENCES)
        news = asyncio.Event()

        def tell(sentence: str) -> None:
            sentences.append(sentence)
            news.set()

        work = self._change(self._engine.upload(upload, duration, token=token, progress=tell))
        work.add_done_callback(lambda _: news.set())
        await news.wait()
        if work.done() and not sentences:
            _result(work)  # refused before anything began (unpaid, full): an ordinary answer says so best
        response = web.StreamResponse(headers={"Content-Type": PROGRESS_TYPE})
        await response.prepare(request)
        while True:
            news.clear()
            while sentences:
                await response.write(_line({"progress": sentences.popleft()}))
            if work.done():
                break
            await news.wait()
        await response.write(_line(self._conclude(work)))
        await response.write_eof()
        return response

    def _conclude(self, work: asyncio.Task[Pod]) -> dict[str, Json]:
        try:
            return {"result": self._describe(work.result())}
        except asyncio.CancelledError:
            return {"error": answers.describe(_stopping())}
        except Exception as error:  # noqa: BLE001  the stream's last line is the only place left to say it
            return {"error": answers.describe(error)}

    async def stream_logs(self, request: web.Request) -> web.StreamResponse:
        hash = _parse_pod_id(request.match_info["hash"])
        follow = request.query.getall("follow", []) == ["true"]
        response = web.StreamResponse(headers={"Content-Type": LOG_TYPE})
        async with self._log_reader():
            lines = await self._engine.logs(hash, follow=follow)
            try:
                await response.prepare(request)
                if request.method != "HEAD":
                    await self._copy(lines, request, response)
            finally:
                # a generator that is left alone would hold its connection until garbage collection
                if (aclose := getattr(lines, "aclose", None)) is not None:
                    await aclose()
        await response.write_eof()
        return response

    @asynccontextmanager
    async def _log_reader(self) -> AsyncIterator[None]:
        if self._log_readers >= MAX_LOG_STREAMS:
            raise HostFullError(
                f"{MAX_LOG_STREAMS} clients are reading logs here already", hint="Try again in a minute."
            )
        self._log_readers += 1
        try:
            yield
        finally:
            self._log_readers -= 1

    async def _copy(
        self, lines: AsyncIterator[LogLine], request: web.Request, response: web.StreamResponse
    ) -> None:
        """All lines, until they end, the reader leaves or the node stops."""

        async def write() -> None:
            async for line in lines:
                text = f"{line.container} {line.stream} {line.text}\n".encode(errors="replace")
                async with asyncio.timeout(LOG_WRITE_SECONDS):
                    await response.write(text)

        writer = asyncio.create_task(write(), name="logs")
        self._streams.add(writer)
        try:
            # A pod may be silent for hours, and aiohttp tells nobody that the reader has left.
            while not writer.done() and not _has_left(request):
                await asyncio.wait({writer}, timeout=DEPARTURE_SECONDS)
        finally:
            writer.cancel()
            self._streams.discard(writer)
            outcome = (await asyncio.gather(writer, return_exceptions=True))[0]
        match outcome:
            case CodiusError():
                logger.warning("logs broke off: %s", outcome)
                raise ConnectionError("logs broke off") from outcome
            case TimeoutError():
                raise ConnectionError("the reader of a log took nothing for too long")
            case asyncio.CancelledError() | None:
                pass
            case BaseException():
                raise outcome

    async def stop(self, _app: web.Application) -> None:
        """End what would keep the server from closing: log readers at once, changes within a deadline."""
        for stream in self._streams:
            stream.cancel()
        if self._changes:
            _, late = await asyncio.wait(self._changes, timeout=END_SECONDS)
            for change in late:
                change.cancel()
            if late:
                await asyncio.wait(late, timeout=UNDO_SECONDS)


def render_time(moment: datetime) -> str:
    """As JavaScript's `toISOString`: UTC, milliseconds, Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@web.middleware
async def _answer_preflight(request: web.Request, handler: answers.Handler) -> web.StreamResponse:
    """A browser asking whether a page elsewhere may call us (Fetch standard, "CORS-preflight fetch")."""
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        return web.Response(status=204, headers=PREFLIGHT_HEADERS)
    return await handler(request)


async def _allow_any_origin(_: web.Request, response: web.StreamResponse) -> None:
    """There are no cookies and no accounts: any page may read what anybody may."""
    response.headers["Access-Control-Allow-Origin"] = "*"


async def _refuse_path(request: web.Request) -> web.StreamResponse:
    if _BAD_ESCAPE.search(request.raw_path):
        raise RequestError("the path has a % that is not followed by two hexadecimal digits")
    raise NotFoundError(
        f"there is no {request.method} {request.path}", hint="GET / shows what this host offers."
    )


def _check_content_type(request: web.Request) -> None:
    given = request.headers.getall("Content-Type", [])
    if not given:
        return  # recorded: clients may leave it out
    match = _CONTENT_TYPE.fullmatch(given[0])
    if len(given) > 1 or match is None:
        raise RequestError("Invalid content-type header", hint="Send Content-Type: application/json.")
    if match[1].lower() != "application/json":
        raise MediaTypeError(
            f"the body's Content-Type is {match[1]}, and only application/json is understood",
            hint="Send Content-Type: application/json.",
        )


async def _read_body(request: web.Request, *, limit: int = schema.MAX_UPLOAD_BODY) -> bytes:
    """The body, decompressed, bounded while it is being read."""
    if (request.content_length or 0) > limit:
        raise BodyTooLargeError(
            f"the body has {request.content_length} bytes; this host accepts at most {limit}"
        )
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    # recorded: an encoding nobody knows is not looked at
    return _decompress(bytes(body), limit) if encoding in COMPRESSIONS and body else bytes(body)


def _decompress(body: bytes, limit: int) -> bytes:
    """What gzip or zlib packed, whichever it is, and no more of it than a body may have."""
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        plain = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(f"the body cannot be decompressed: {error}") from error
    if len(plain) > limit:
        raise _too_large(limit)
    if not decoder.eof:
        raise RequestError("the body cannot be decompressed: its end is missing")
    if decoder.unused_data:
        raise RequestError("the body has bytes behind the end of its compressed part")
    return plain


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body has more than {limit} bytes, which is all this host accepts")


def _parse_limit(values: Sequence[str]) -> int:
    if not values or values == [""]:
        return MAX_SAMPLE
    if len(values) > 1 or not re.fullmatch(r"[0-9]{1,4}", values[0]) or not 1 <= int(values[0]) <= MAX_SAMPLE:
        raise RequestError(f"limit must be one whole number from 1 to {MAX_SAMPLE}")
    return int(values[0])


def _parse_flag(name: str, values: Sequence[str]) -> bool:
    if len(values) > 1 or (values and values[0] not in {"true", "false"}):
        raise RequestError(f"{name} must be true or false, given once")
    return list(values) == ["true"]


def _parse_pod_id(value: str) -> ManifestHash:
    try:
        return schema.parse_hash([value])
    except RequestError as error:
        raise NotFoundError("no pod found with an empty id") from error


def _result(work: asyncio.Task[Pod]) -> Pod:
    if work.cancelled():
        raise _stopping()
    return work.result()


class StoppingError(CodiusError):
    """The node stops before the change is made; it was undone."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


def _stopping() -> StoppingError:
    return StoppingError("the host is stopping, and this was undone", hint="Try again in a minute.")


def _has_left(request: web.Request) -> bool:
    transport = request.transport
    return transport is None or transport.is_closing()


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _line(document: Json) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"
