"""The original's own client, npm `codius` 3.1.0, against a real host: what it does is done."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from codius_node import manifest
from tests.harness.podman_service import find_missing
from tests.harness.sample import sample_manifest
from tests.harness.world import World, open_world

CLIENT: Final = "codius@3.1.0"
INSTALL_SECONDS: Final = 200.0
COMMAND_SECONDS: Final = 60.0
DONE: Final = 'pricePaid: "0"'
"""In what it prints of a host that did as asked; it exits with 0 for one that did not, too."""
HARNESS: Final = Path(__file__).parent.parent / "harness"
SECRET: Final = "only the pod knows this"
MISSING: Final = [
    *find_missing(),
    *(name for name in ("nft", "ip", "docker-registry", "setpriv", "node", "npm") if not shutil.which(name)),
]
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"the original's client needs {', '.join(MISSING)}"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(INSTALL_SECONDS + 120),
]


@dataclass(frozen=True, slots=True)
class Client:
    """The installed command, in a project's directory."""

    command: Path
    project: Path
    host: str

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.project),
            "ILP_PLUGIN": str(HARNESS / "ilp_stub.js"),
            "ILP_CREDENTIALS": "{}",
            "NODE_OPTIONS": f"--require {HARNESS / 'resolve_localhost.js'}",
        }

    async def run(self, *arguments: str) -> str:
        """What it prints; it has to end well within its time."""
        process = await self.start(*arguments)
        async with asyncio.timeout(COMMAND_SECONDS):
            output, _ = await process.communicate()
        text = output.decode()
        assert process.returncode == 0, text
        return text

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            str(self.command),
            *arguments,
            cwd=self.project,
            env=self.environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    def state(self) -> dict[str, Any]:
        """What it has written down of its upload."""
        found: dict[str, Any] = json.loads((self.project / "default.codiusstate.json").read_text())
        return found


@pytest.fixture(scope="module")
def command(request: pytest.FixtureRequest) -> Path:
    """Installed once and kept with pytest's cache."""
    assert request.config.cache is not None
    directory = request.config.cache.mkdir(CLIENT.replace("@", "-"))
    command = directory / "node_modules" / ".bin" / "codius"
    if not command.exists():
        npm = ("npm", "install", "--no-audit", "--no-fund", "--no-save", "--ignore-scripts")
        try:
            done = subprocess.run(
                [*npm, "--prefix", str(directory), CLIENT],
                capture_output=True,
                text=True,
                check=False,
                timeout=INSTALL_SECONDS,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm could not get {CLIENT} within {INSTALL_SECONDS:.0f} s")
        if done.returncode != 0:
            pytest.skip(f"npm could not get {CLIENT}: {done.stderr.strip()[-300:]}")
    return command


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with open_world() as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(
    command: Path, world: World, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Client]:
    """In a project whose pod has been uploaded, with a private variable and with logs."""
    project = tmp_path_factory.mktemp("project")
    document: Any = sample_manifest(world.image, secret=True)
    del document["manifest"]["debug"]  # the client has an option for it
    (project / "codius.json").write_text(json.dumps(document))
    variables = {
        "public": {"GREETING": {"value": "hello, old client"}},
        "private": {"SECRET": {"value": SECRET}},
    }
    (project / "codiusvars.json").write_text(json.dumps({"vars": variables}))
    client = Client(command, project, world.host.origin)
    said = await client.run("upload", "--host", client.host, "--duration", "600", "--debug", "--assume-yes")
    assert DONE in said, said
    yield client


def hash_in(client: Client) -> str:
    return str(client.state()["manifestHash"])


async def moved(client: Client, world: World, hash: str, *arguments: str) -> timedelta:
    """By how much a command moves the pod's expiry, as the host tells it."""
    before = datetime.fromisoformat(await world.expiry(hash))
    assert DONE in await client.run(*arguments, "--assume-yes")
    return datetime.fromisoformat(await world.expiry(hash)) - before


async def test_what_it_uploads_answers_and_has_its_private_variable(client: Client, world: World) -> None:
    hash = hash_in(client)
    page = await world.visitor.get(hash)
    assert page.status == 200
    assert page.body.decode().splitlines()[0] == "hello, old client"
    assert SECRET in (await world.inside(hash, "/bin/busybox", "sh", "-c", "echo $SECRET"))


async def test_it_and_the_host_agree_on_the_hash_and_on_what_is_public(client: Client, world: World) -> None:
    uploaded = client.state()["generatedManifest"]["manifest"]
    assert manifest.hash_manifest(uploaded) == hash_in(client)
    shown = await world.visitor.get(path="/pods", manifestHash=hash_in(client))
    assert shown.document["manifest"] == uploaded
    assert SECRET.encode() not in shown.body


async def test_extend_pays_for_more_time_with_what_it_wrote_down(client: Client, world: World) -> None:
    by = await moved(client, world, hash_in(client), "extend", "--duration", "300")
    assert by == timedelta(seconds=300)


async def test_extend_hash_needs_nothing_but_the_hash(client: Client, world: World, tmp_path: Path) -> None:
    elsewhere = Client(client.command, tmp_path, client.host)
    hash = hash_in(client)
    asked = ("extend-hash", hash, "--host", client.host, "--duration", "60")
    assert await moved(elsewhere, world, hash, *asked) == timedelta(seconds=60)


async def test_tail_shows_the_log_and_goes_on_with_it(client: Client, world: World) -> None:
    hash = hash_in(client)
    process = await client.start("tail", hash, "--host", client.host)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            await read_until(process.stdout, "serving on port 8080")
            # busybox writes a line for each request, with its status
            await world.visitor.get(hash, "/nowhere")
            await read_until(process.stdout, "response:404")
    finally:
        process.kill()
        await process.wait()


async def read_until(stream: asyncio.StreamReader, text: str) -> None:
    while text not in (line := (await stream.readline()).decode()):
        assert line, f"the log ended without {text!r}"
