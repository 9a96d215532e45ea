"""The public HTTP API: requests from strangers in, questions to the engine, answers out."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from importlib import metadata
from typing import Any, Final, Protocol, TypeVar

from aiohttp import web

from codius_node import (
    answers,
    bodies,
    jsontext,
    llms,
    manifest,
    openapi,
    operations,
    pages,
    parameters,
    replies,
    schema,
)
from codius_node.config import Settings
from codius_node.errors import CodiusError, HostFullError, NotFoundError, RequestError
from codius_node.model import (
    Capacity,
    Currency,
    Isolation,
    LogLine,
    ManifestHash,
    Pod,
    Quote,
    Upload,
)
from codius_node.operations import Operation
from codius_node.payments import is_free
from codius_node.peers import MAX_EXCHANGED, MAX_LIST_BODY, parse_peer_list

logger = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

NAME: Final = "Codiusd (Python)"
DISTRIBUTION: Final = "codius-host"

MAX_LOG_STREAMS: Final = 256
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

CORS_HEADERS: Final = {
    # There are no cookies and no accounts: any page may read what anybody may.
    "Access-Control-Allow-Origin": "*",
    # and how to pay, which is not among the headers that scripts see by themselves
    "Access-Control-Expose-Headers": operations.PAY,
}
PREFLIGHT_HEADERS: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, OPTIONS",
    "Access-Control-Allow-Headers": f"Accept, Content-Encoding, Content-Type, {operations.PAY_TOKEN}",
    "Access-Control-Max-Age": "86400",
}

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
    async def isolation(self) -> Isolation: ...
    def url(self, hash: ManifestHash) -> str: ...


class Readable(Protocol[T_co]):
    """A query parameter, whatever it holds."""

    @property
    def name(self) -> str: ...
    def parse(self, values: Sequence[str]) -> T_co: ...


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
    routes = [(operation.method, operation.path, handler) for operation, handler in api.routes()]
    answers.add_routes(app, [*routes, ("*", answers.ANY_PATH, _refuse_path)])
    return app


@dataclass(frozen=True, slots=True)
class _State:
    """The host at one moment: its room, how it keeps pods apart, and why it would refuse an upload."""

    capacity: Capacity
    isolation: Isolation | None
    refusal: str | None


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
        self._operations = tuple(operation for operation, _ in self.routes())
        self._description = openapi.build(
            self._operations, uri=settings.public_uri.origin, version=self._version
        )
        self._changes: set[asyncio.Task[Pod]] = set()
        self._streams: set[asyncio.Task[None]] = set()
        self._log_readers = 0

    def routes(self) -> list[tuple[Operation, answers.Handler]]:
        """Everything there is to ask, and who answers; what is described is made from this list."""
        return [
            (operations.PAGE, self.show_page),
            (operations.VERSION, self.tell_version),
            (operations.INFO, self.tell_info),
            (operations.MEMORY, self.tell_memory),
            (operations.PEERS, self.tell_peers),
            (operations.DISCOVER, self.discover),
            (operations.SHOW_POD, self.show_pod),
            (operations.QUOTE, self.quote),
            (operations.UPLOAD, self.upload),
            (operations.EXTEND, self.extend),
            (operations.LOGS, self.stream_logs),
            (operations.OPENAPI, self.tell_openapi),
            (operations.LLMS, self.tell_llms),
        ]

    # ---- the host ---------------------------------------------------------------------------------

    async def show_page(self, _: web.Request) -> web.Response:
        state = await self._look()
        settings = self._settings
        extra = settings.additional_host_info
        page = pages.HostPage(
            uri=settings.public_uri.origin,
            version=self._version,
            refusal=state.refusal,
            cost_per_month=self._engine.cost_per_month,
            currency=self._engine.currency,
            free_of_charge=is_free(self._settings),
            isolation=state.isolation,
            peers=await self._peers.count(),
            some_peers=tuple(await self._peers.sample(pages.PEERS_SHOWN)),
            free_memory=state.capacity.free_memory if extra else None,
            pods=state.capacity.running if extra else None,
            uptime=int(self._host.uptime()) if extra else None,
            service_uptime=int(self._uptime()) if extra else None,
        )
        response = web.Response(text=pages.render(page), content_type=operations.HTML_TYPE, charset="utf-8")
        response.headers["Content-Security-Policy"] = pages.POLICY
        response.headers["Vary"] = "Accept-Encoding"
        response.enable_compression()
        return response

    async def tell_version(self, _: web.Request) -> web.Response:
        return _answer(replies.Version(NAME, self._version))

    async def tell_info(self, request: web.Request) -> web.Response:
        with_peers = _read(parameters.REQUEST_PEERS, request)
        state = await self._look()
        extra = self._settings.additional_host_info
        info = replies.Info(
            full_mem=state.capacity.full,
            accepting_uploads=state.refusal is None,
            num_peers=await self._peers.count(),
            currency=self._engine.currency.code,
            cost_per_month=self._engine.cost_per_month,
            uri=self._settings.public_uri.origin,
            # unknown before the first test, and after one that could not try everything
            self_test_success=self._selftest.success,
            isolation=state.isolation,
            server_free_memory=state.capacity.free_memory if extra else None,
            server_uptime=int(self._host.uptime()) if extra else None,
            service_uptime=round(self._uptime(), 3) if extra else None,
            avg_load=self._host.load() if extra else None,
            running_contracts=state.capacity.running if extra else None,
            peers=tuple(await self._peers.sample(parameters.MAX_PEERS)) if with_peers else None,
        )
        return _answer(info)

    async def tell_memory(self, _: web.Request) -> web.Response:
        available, _total = self._host.memory()
        return _answer(replies.FreeMemory(available))

    async def tell_peers(self, request: web.Request) -> web.Response:
        limit = _read(parameters.LIMIT, request)
        return _answer(replies.PeerList(tuple(await self._peers.sample(limit))))

    async def discover(self, request: web.Request) -> web.Response:
        bodies.check_is_json(request)
        self._peers.suggest(parse_peer_list(await bodies.read_json(request, limit=MAX_LIST_BODY)))
        known = await self._peers.sample(MAX_EXCHANGED)
        return _answer(replies.Discovery(NAME, self._version, tuple(known)))

    async def tell_openapi(self, _: web.Request) -> web.Response:
        return answers.render_json(self._description)

    async def tell_llms(self, _: web.Request) -> web.Response:
        text = llms.render(
            self._operations,
            uri=self._settings.public_uri.origin,
            cost_per_month=self._engine.cost_per_month,
            currency=self._engine.currency,
            free_of_charge=is_free(self._settings),
        )
        return web.Response(text=text, content_type=operations.TEXT_TYPE, charset="utf-8")

    async def _look(self) -> _State:
        """The host as it is now; one whose engine is away takes no uploads."""
        try:
            capacity = await self._engine.capacity()
            isolation = await self._engine.isolation()
        except CodiusError as error:
            logger.warning("the host cannot take uploads: %s", error)
            available, _total = self._host.memory()
            capacity = Capacity(full=False, free_memory=available, running=0)
            return _State(capacity, None, "out of order, for the moment")
        return _State(capacity, isolation, "full, for the moment" if capacity.full else None)

    def _uptime(self) -> float:
        return max((self._clock() - self._started_at).total_seconds(), 0.0)

    # ---- pods -------------------------------------------------------------------------------------

    async def quote(self, request: web.Request) -> web.Response:
        duration = _read(parameters.DURATION, request)
        upload = await self._read_upload(request, require_private=False)
        quote = await self._engine.quote(upload, duration)
        return _answer(replies.Price(quote.hash, str(quote.price)))

    async def upload(self, request: web.Request) -> web.StreamResponse:
        duration = _read(parameters.DURATION, request)
        with_progress = _read(parameters.PROGRESS, request)
        upload = await self._read_upload(request, require_private=True)
        token = request.headers.get(operations.PAY_TOKEN)
        if with_progress:
            return await self._upload_with_progress(request, upload, duration, token)
        pod = await self._finish(self._engine.upload(upload, duration, token=token))
        return _answer(self._describe(pod))

    async def extend(self, request: web.Request) -> web.Response:
        hash = _read(parameters.MANIFEST_HASH, request)
        duration = _read(parameters.DURATION, request)
        if await bodies.read_body(request, limit=schema.MAX_UPLOAD_BODY):
            raise RequestError(
                "PUT /pods takes no body", hint="Name the pod with ?manifestHash=; POST takes a manifest."
            )
        token = request.headers.get(operations.PAY_TOKEN)
        pod = await self._finish(self._engine.extend(hash, duration, token=token))
        return _answer(self._describe(pod))

    async def show_pod(self, request: web.Request) -> web.Response:
        pod = await self._engine.get(_read(parameters.MANIFEST_HASH, request))
        return _answer(replace(self._describe(pod), manifest=pod.manifest.document))

    async def _read_upload(self, request: web.Request, *, require_private: bool) -> Upload:
        bodies.check_is_json(request)
        body = await bodies.read_body(request, limit=schema.MAX_UPLOAD_BODY)

        def parse() -> Upload:
            document = jsontext.decode_json(body, limit=schema.MAX_UPLOAD_BODY)
            return manifest.parse(
                document, require_private=require_private, allow_tags=self._settings.allow_tags
            )

        return parse() if len(body) <= PARSE_INLINE else await asyncio.to_thread(parse)

    def _describe(self, pod: Pod) -> replies.RunningPod:
        return replies.RunningPod(self._engine.url(pod.hash), pod.hash, pod.expires_at)

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
        response = web.StreamResponse(headers={"Content-Type": operations.PROGRESS_TYPE})
        await response.prepare(request)
        while True:
            news.clear()
            while sentences:
                await response.write(_line(replies.Step(progress=sentences.popleft())))
            if work.done():
                break
            await news.wait()
        await response.write(_line(self._conclude(work)))
        await response.write_eof()
        return response

    def _conclude(self, work: asyncio.Task[Pod]) -> replies.Step:
        try:
            return replies.Step(result=self._describe(work.result()))
        except asyncio.CancelledError:
            return replies.Step(error=answers.describe(_stopping()))
        except Exception as error:  # noqa: BLE001  the stream's last line is the only place left to say it
            return replies.Step(error=answers.describe(error))

    async def stream_logs(self, request: web.Request) -> web.StreamResponse:
        hash = parameters.MANIFEST_HASH.parse([request.match_info["hash"]])
        follow = _read(parameters.FOLLOW, request)
        response = web.StreamResponse(headers={"Content-Type": operations.LOG_TYPE})
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


@web.middleware
async def _answer_preflight(request: web.Request, handler: answers.Handler) -> web.StreamResponse:
    """A browser asking whether a page elsewhere may call us (Fetch standard, "CORS-preflight fetch")."""
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        return web.Response(status=204, headers=PREFLIGHT_HEADERS)
    return await handler(request)


async def _allow_any_origin(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(CORS_HEADERS)


async def _refuse_path(request: web.Request) -> web.StreamResponse:
    if _BAD_ESCAPE.search(request.raw_path):
        raise RequestError("the path has a % that is not followed by two hexadecimal digits")
    raise NotFoundError(
        f"there is no {request.method} {request.path}", hint="GET / shows what this host offers."
    )


def _answer(reply: replies.Reply) -> web.Response:
    return answers.render_json(replies.render(reply))


def _read(parameter: Readable[T], request: web.Request) -> T:
    return parameter.parse(request.query.getall(parameter.name, []))


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


def _line(step: replies.Step) -> bytes:
    return json.dumps(replies.render(step), separators=(",", ":")).encode() + b"\n"
