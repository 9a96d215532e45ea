"""What every HTTP answer of the node has in common: the JSON shape, and errors turned into answers once."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web

from codius_node import replies
from codius_node.errors import CodiusError, EngineError, NetworkError, StoreError
from codius_node.model import Json
from codius_node.replies import Error

logger = logging.getLogger(__name__)

MAX_MESSAGE: Final = 2000
"""Characters of an error's message: it may quote what a stranger sent, and that may be a megabyte."""
KEEPALIVE_SECONDS: Final = 75.0
"""How long an idle connection stays open; longer than a reverse proxy in front keeps its own."""

# Clients know these two by the names of RFC 4918 and RFC 2616; later Pythons say "Content".
REASONS: Final[Mapping[int, str]] = {413: "Request Entity Too Large", 422: "Unprocessable Entity"}

SERVER: Final = "codiusd"
INTERNAL_MESSAGE: Final = "an internal error occurred; the request was not carried out"
INTERNAL_HINT: Final = "Try again; if it stays, tell the host's operator: its log has the details."

NO_HTTP_HINT: Final = "It begins with a line such as GET /info HTTP/1.1, its method in capital letters."

OUT_OF_ORDER: Final = HTTPStatus.SERVICE_UNAVAILABLE
OUT_OF_ORDER_MESSAGE: Final = "this host is out of order for the moment; the request was not carried out"
OUT_OF_ORDER_HINT: Final = "Nothing was charged. Try again later, or another host: GET /peers."

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def render_json(
    document: Json, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer as codiusd gives them: compact JSON that no cache keeps."""
    return web.Response(
        status=status,
        reason=_reason(status),
        text=json.dumps(document, separators=(",", ":")),
        content_type="application/json",
        charset="utf-8",
        headers=headers,
    )


def build_error(status: int, message: str, hint: str | None = None) -> Error:
    """What is wrong and, where it helps, what to do next; cut where a stranger's own text is long."""
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + "…"
    return Error(status, _reason(status), message, hint)


def describe(error: Exception, *, to_operator: bool = False) -> Error:
    """The error for anything raised; what nobody foresaw is logged here and told to nobody."""
    match error:
        case EngineError() | NetworkError() | StoreError() if (
            error.status == OUT_OF_ORDER and not to_operator
        ):
            # paths and commands are for the operator, who finds them in the log
            logger.error("answered 503: %s. %s", error, error.hint or "")
            return build_error(error.status, OUT_OF_ORDER_MESSAGE, OUT_OF_ORDER_HINT)
        case CodiusError():
            if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                logger.error("answered 500: %s", error)
            return build_error(error.status, error.message, error.hint)
        case web.HTTPNotFound() | web.HTTPMethodNotAllowed():
            return build_error(404, "no such path", "GET / shows what this host offers.")
        case web.HTTPException():
            return build_error(error.status, error.text or error.reason)
        case web.RequestPayloadError():
            return build_error(400, "the body cannot be decoded: it is not what its headers say")
        case _:
            logger.error("unforeseen error", exc_info=error)
            return build_error(500, INTERNAL_MESSAGE, INTERNAL_HINT)


def render_error(error: Exception, *, to_operator: bool = False) -> web.Response:
    return _render(describe(error, to_operator=to_operator))


def _render(error: Error) -> web.Response:
    return render_json(replies.render(error), status=error.status_code)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one place where errors become answers to strangers."""
    return await _answer(request, handler, to_operator=False)


@web.middleware
async def answer_operators_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The same for the operator, who is told what is the matter with the host."""
    return await _answer(request, handler, to_operator=True)


async def _answer(request: web.Request, handler: Handler, *, to_operator: bool) -> web.StreamResponse:
    try:
        return await handler(request)
    except ConnectionError:
        raise  # the client has left: nobody to answer
    except Exception as error:
        if request.writer.output_size > 0:
            raise  # an answer is under way: only closing the connection can tell that it is broken
        return render_error(error, to_operator=to_operator)


async def set_headers(request: web.Request, response: web.StreamResponse) -> None:
    """What every answer carries, streams and errors included (a signal of aiohttp's)."""
    response.headers.setdefault("Cache-Control", "no-cache")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers["Server"] = SERVER  # without it aiohttp tells its and Python's versions


async def accept_expectation(request: web.Request) -> web.Response | None:
    """RFC 9110 10.1.1: say "go on", or that nothing but 100-continue can be expected of us."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        response = _render(build_error(417, "the only expectation this host can meet is 100-continue"))
        response.force_close()
        return response
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the real answer has not begun
    return None


ANY_PATH: Final = r"/{path:[\s\S]*}"
"""Also with a line feed in it, as %0A is: what no route takes, the library answers in words of its own."""


def add_routes(app: web.Application, routes: Iterable[tuple[str, str, Handler]]) -> None:
    """Method, path and handler of each; what can be had by GET has a HEAD."""
    for method, path, handler in routes:
        for each in ("GET", "HEAD") if method == "GET" else (method,):
            app.router.add_route(each, path, handler, expect_handler=accept_expectation)


class Runner(web.AppRunner):
    """An application ready to be served; even bytes that are no HTTP get an answer in the usual shape."""

    def __init__(self, app: web.Application, *, shutdown_timeout: float) -> None:
        super().__init__(app, shutdown_timeout=shutdown_timeout)

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # Without cancellation: a client that hangs up must not stop an upload half-way.
        return _Server(
            server.request_handler, request_factory=server.request_factory, handler_cancellation=False
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            auto_decompress=False,  # the reader of a body does it, within its own bounds
            access_log=None,  # type: ignore[arg-type]  # aiohttp reads None as "no access log"
            keepalive_timeout=KEEPALIVE_SECONDS,
        )


class _Connection(web.RequestHandler):
    __slots__ = ()

    def log_exception(self, *args: object, **options: object) -> None:
        """Only what is ours to repair is worth an operator's attention."""
        if isinstance(options.get("exc_info"), web.RequestPayloadError | ConnectionError):
            logger.debug("a client sent half a request or left")
        else:
            logger.error("unforeseen error in a connection", exc_info=options.get("exc_info") is not None)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp could not parse, or a handler that broke off in the middle of its answer."""
        if request.writer.output_size > 0:
            level = logging.DEBUG if isinstance(exc, ConnectionError) else logging.ERROR
            logger.log(level, "an answer broke off", exc_info=exc)
            raise ConnectionError("an answer broke off in the middle") from exc
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("unforeseen error", exc_info=exc)
            error = build_error(500, INTERNAL_MESSAGE, INTERNAL_HINT)
        else:
            logger.debug("refused what is not HTTP: %s", message)
            error = build_error(status, "this is not a valid HTTP request", NO_HTTP_HINT)
        response = _render(error)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["Server"] = SERVER
        response.force_close()
        return response


def _reason(status: int) -> str:
    return REASONS.get(status) or HTTPStatus(status).phrase
