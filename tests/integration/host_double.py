"""A host that speaks the public API, and misbehaves in the ways a client has to survive."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aiohttp import web

from codius_node import manifest

EXPIRY: Final = "2031-01-02T03:04:05.678Z"
REFUSAL: Final = {"statusCode": 503, "error": "Service Unavailable", "message": "no room", "hint": "Wait."}
LOG: Final = b"web stdout hello\nweb stderr oh no\nping\nweb stdout \x1b[31mred\x1b[0m \x1b]0;title\x07\n"


class HostDouble:
    """Its attributes say what to answer; `requests` hold method, path with query, headers and body."""

    def __init__(self) -> None:
        self.price = "12"
        self.currency: object = "DEV"
        self.cost_per_month: object = None
        self.hash: str | None = None
        self.streams = True
        self.knows_progress = True
        self.progress = ["pulling web", "starting"]
        self.error: dict[str, Any] | None = None
        self.stream_error: dict[str, Any] | None = None
        self.breaks_stream = False
        self.ends_early = False
        self.raw: tuple[int, str, bytes] | None = None
        self.expiry = EXPIRY
        self.url: object = None
        self.location: str | None = None
        self.manifests: dict[str, Any] = {}
        self.log = LOG
        self.breaks_log = False
        self.stays = False
        self.requests: list[tuple[str, str, Any, bytes]] = []

    def app(self) -> web.Application:
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_get("/info", self._info)
        app.router.add_get("/pods/{hash}/logs", self._logs)
        app.router.add_route("*", "/pods", self._pods)
        return app

    def find(self, method: str) -> tuple[str, str, Any, bytes]:
        """The last request of this method."""
        return [request for request in self.requests if request[0] == method][-1]

    async def _info(self, _: web.Request) -> web.Response:
        return web.json_response({"currency": self.currency, "costPerMonth": self.cost_per_month})

    async def _pods(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.method, request.path_qs, request.headers.copy(), body))
        if self.location is not None:
            return web.Response(status=307, headers={"Location": self.location})
        if self.raw is not None:
            return self._answer_raw()
        if request.method != "OPTIONS" and self.error is not None:
            return web.json_response(self.error, status=self.error["statusCode"])
        if request.method in {"OPTIONS", "POST"}:
            document = json.loads(body)["manifest"]
            hash = self.hash or str(manifest.hash_manifest(document))
            self.manifests[hash] = document
        else:
            hash = self.hash or request.query["manifestHash"]
        if request.method == "OPTIONS":
            return web.json_response({"manifestHash": hash, "price": self.price})
        if request.query.get("progress") == "true" and not self.knows_progress:
            return web.json_response({"statusCode": 400, "message": '"progress" is not allowed'}, status=400)
        url = f"http://{hash}.{request.host}/" if self.url is None else self.url
        answer: dict[str, Any] = {"url": url, "manifestHash": hash, "expiry": self.expiry}
        if request.method == "GET":
            return web.json_response({**answer, "manifest": self.manifests.get(hash, {})})
        if request.query.get("progress") == "true" and self.streams:
            return await self._stream(request, answer)
        return web.json_response(answer)

    def _answer_raw(self) -> web.Response:
        assert self.raw is not None
        status, content_type, body = self.raw
        return web.Response(status=status, body=body, headers={"Content-Type": content_type})

    async def _stream(self, request: web.Request, answer: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for sentence in self.progress:
            await response.write(json.dumps({"progress": sentence}).encode() + b"\n")
        if self.breaks_stream:
            assert request.transport is not None
            request.transport.close()
            return response
        if self.ends_early:
            await response.write_eof()
            return response
        last = {"result": answer} if self.stream_error is None else {"error": self.stream_error}
        await response.write(json.dumps(last).encode() + b"\n")
        await response.write_eof()
        return response

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs, request.headers.copy(), b""))
        if self.raw is not None:
            return self._answer_raw()
        if self.error is not None:
            return web.json_response(self.error, status=self.error["statusCode"])
        response = web.StreamResponse(headers={"Content-Type": "application/vnd.codius.raw-stream"})
        await response.prepare(request)
        for piece in (self.log[:7], self.log[7:]):
            await response.write(piece)
        if self.breaks_log:
            assert request.transport is not None
            request.transport.close()
            return response
        if self.stays:
            await asyncio.Event().wait()
        await response.write_eof()
        return response


def admin_app(*names: str) -> web.Application:
    """The admin API's list, with a pod of each name."""

    async def pods(_: web.Request) -> web.Response:
        expiry = datetime.now(UTC) + timedelta(hours=1)
        return web.json_response(
            [
                {
                    "hash": letter * 52,
                    "name": name,
                    "state": "running",
                    "url": f"http://{letter * 52}.codius.localhost:3000/",
                    "expiry": expiry.isoformat(),
                    "secondsLeft": 3600,
                    "address": "10.77.0.2",
                    "port": 8080,
                    "debug": True,
                    "containers": [{"id": "web", "image": "nginx"}],
                    "traffic": {
                        "sent": {"bytes": 1_234_000, "packets": 1000},
                        "received": {"bytes": 567, "packets": 5},
                        "refused": {"host": 3, "port": 1},
                    },
                }
                for letter, name in zip("abcdefgh", names, strict=False)
            ]
        )

    app = web.Application()
    app.router.add_get("/pods", pods)
    return app
