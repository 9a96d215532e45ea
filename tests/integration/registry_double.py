"""A registry that speaks enough of the distribution API to be asked for digests, well and badly."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Final

from aiohttp import web

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"


class RegistryDouble:
    """Tags are `repository:tag`. With `token` it wants one, as public registries do."""

    def __init__(self) -> None:
        self.manifests: dict[str, bytes] = {}
        self.token: str | None = None
        self.token_answer: bytes | None = None
        self.challenge: str | None = None
        self.claimed: str | None = None
        self.content_type = INDEX_TYPE
        self.status: int | None = None
        self.redirect: str | None = None
        self.silent = False
        self.requests: list[web.Request] = []

    def add(self, name: str) -> str:
        """A new image under this name; its digest."""
        body = json.dumps({"schemaVersion": 2, "manifests": [], "annotations": {"name": name}}).encode()
        self.manifests[name] = body
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v2/{repository:.+}/manifests/{tag}", self._manifest)
        app.router.add_get("/token", self._token)
        return app

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.silent:
            await asyncio.Event().wait()
        if self.status is not None:
            return web.Response(status=self.status)
        if self.redirect is not None:
            target, self.redirect = self.redirect, None
            return web.Response(status=307, headers={"Location": target})
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            repository = request.match_info["repository"]
            challenge = self.challenge or (
                f'Bearer realm="http://{request.host}/token",service="double",'
                f'scope="repository:{repository}:pull"'
            )
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        body = self.manifests.get(f"{request.match_info['repository']}:{request.match_info['tag']}")
        if body is None:
            return web.Response(status=404)
        headers = {"Content-Type": self.content_type}
        if self.claimed is not None:
            headers["Docker-Content-Digest"] = self.claimed
        return web.Response(body=body, headers=headers)

    async def _token(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        if self.token_answer is not None:
            return web.Response(body=self.token_answer)
        assert request.query["service"] == "double"
        assert request.query["scope"].startswith("repository:")
        return web.json_response({"token": self.token})
