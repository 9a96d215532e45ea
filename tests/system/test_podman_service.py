"""A podman service of our own: its start, its failures, its end."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from codius_node.errors import EngineError
from codius_node.podman_service import PodmanService, choose_runtime
from tests.harness.podman_service import PrivatePodman, find_missing, find_mounts, find_processes

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(find_missing()), reason=f"missing: {', '.join(find_missing())}"),
]


@pytest.fixture
async def netns() -> AsyncIterator[Path]:
    process = await asyncio.create_subprocess_exec("unshare", "--net", "sleep", "infinity")
    path, own = Path(f"/proc/{process.pid}/ns/net"), Path("/proc/self/ns/net").stat().st_ino
    async with asyncio.timeout(5):
        while path.stat().st_ino == own:
            await asyncio.sleep(0.005)
    yield path
    process.kill()
    await process.wait()


async def test_a_service_that_answers_already_is_used_and_not_ended() -> None:
    async with PrivatePodman() as podman:
        second = PodmanService(podman.socket.parent, storage=podman.directory / "storage")
        assert await second.start() == podman.socket
        await second.stop()
        assert json.loads(await podman.request("GET", "/info"))["version"]["Version"]


async def test_a_socket_left_by_a_crash_does_not_matter() -> None:
    podman = PrivatePodman()
    podman.socket.parent.mkdir()
    podman.socket.touch()
    try:
        await podman.start()
    finally:
        await podman.stop()


async def test_the_configuration_is_the_service_s_own() -> None:
    async with PrivatePodman() as podman:
        info = json.loads(await podman.request("GET", "/info"))
        assert info["host"]["ociRuntime"]["name"] == choose_runtime()
        assert info["host"]["eventLogger"] == "file"
        assert info["store"]["graphRoot"] == str(podman.directory / "storage")
        assert podman.socket.parent.stat().st_mode & 0o077 == 0


async def test_it_runs_in_the_network_namespace_it_is_given(netns: Path) -> None:
    async with PrivatePodman(netns=netns) as podman:
        (pid,) = find_processes(str(podman.socket))
        assert Path(f"/proc/{pid}/ns/net").stat().st_ino == netns.stat().st_ino
        await podman.make_image("x")


async def test_nothing_of_the_harness_stays() -> None:
    async with PrivatePodman() as podman:
        image = await podman.make_image("sleeper", command=["sleep", "1000"])
        ulimit = "--ulimit=nproc=1000:1000"
        name = (
            await podman.cli("run", "-d", "--network=none", "--ulimit=nofile=100:100", ulimit, image)
        ).strip()
        pid = int((await podman.cli("inspect", "--format", "{{.State.Pid}}", name)).strip())
        assert find_mounts(podman.directory)
        assert len(find_processes(str(podman.directory))) == 2
    assert not podman.directory.exists()
    assert not find_mounts(podman.directory)
    async with asyncio.timeout(5):
        while find_processes(str(podman.directory)) or _is_alive(pid):
            await asyncio.sleep(0.01)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/libpod_parent/*{name}*"))


async def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("not a directory")
    service = PodmanService(tmp_path / "run", storage=tmp_path / "storage")
    with pytest.raises(EngineError, match="ended with code") as caught:
        await service.start()
    assert caught.value.hint is not None
    assert "podman" in caught.value.hint


async def test_a_runtime_that_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    service = PodmanService(tmp_path / "run", storage=tmp_path / "storage", runtime="nonesuch")
    with pytest.raises(EngineError, match="nonesuch") as caught:
        await service.start()
    assert caught.value.hint == "apt install nonesuch"


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one nobody has waited for is not alive."""
    try:
        os.kill(pid, 0)
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
