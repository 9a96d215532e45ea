"""The podman door against a fake that speaks the protocol over a real Unix socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from codius_node.errors import EngineError, ImageError
from codius_node.model import FoundState
from codius_node.podman import REMOVE_TRIES, Podman
from tests.harness.fake_podman import FakePodman, Program
from tests.harness.podman_contract import (
    HASH,
    OTHER,
    SECRET,
    Images,
    PodmanContract,
    bring_up,
    make_spec,
)

DIGEST = "@sha256:" + "0" * 63


@pytest.fixture
def images(fake: FakePodman) -> Images:
    talker = Program(stdout=("ready",), stderr=("warned",))
    broken = Program(
        start_error='runc: runc create failed: unable to start container process: exec: "/nonesuch": stat'
        " /nonesuch: no such file or directory: OCI runtime attempted to invoke a command that was not found"
    )
    names = Images(*(f"registry.test/{name}{DIGEST}{number}" for number, name in enumerate("abcde")))
    fake.images.update(
        {
            names.talker: talker,
            names.failing: Program(stderr=("cannot go on",), exits=3),
            names.broken: broken,
        }
    )
    fake.registry[names.remote] = talker
    return names


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakePodman]:
    fake = FakePodman(tmp_path / "s")
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def podman(fake: FakePodman, tmp_path: Path) -> AsyncIterator[Podman]:
    podman = Podman(fake.socket, files=tmp_path / "files", resolvers=["192.0.2.53"])
    await podman.open()
    yield podman
    await podman.aclose()


class TestContract(PodmanContract):
    pass


async def test_podman_away_is_said_with_what_to_do(podman: Podman, fake: FakePodman) -> None:
    await fake.stop()
    with pytest.raises(EngineError, match="does not answer") as caught:
        await podman.version()
    assert caught.value.hint is not None
    assert "systemctl start podman.socket" in caught.value.hint
    await fake.start()
    assert await podman.version() == "4.3.1"


async def test_a_podman_that_comes_back_has_its_pods(
    podman: Podman, fake: FakePodman, images: Images
) -> None:
    await bring_up(podman, make_spec(images.talker))
    await fake.stop()
    with pytest.raises(EngineError):
        await podman.find_pods()
    await fake.start()
    assert [pod.state for pod in await podman.find_pods()] == [FoundState.RUNNING]


async def test_another_runtime_than_asked_for_is_refused(fake: FakePodman, tmp_path: Path) -> None:
    podman = Podman(fake.socket, files=tmp_path / "files", runtime="runsc")
    await podman.open()
    with pytest.raises(EngineError, match="runc, not with runsc"):
        await podman.version()
    await podman.aclose()


@pytest.mark.parametrize("path", ["/pods/create", "/containers/create"])
async def test_a_full_disk_is_said_plainly(
    podman: Podman, fake: FakePodman, images: Images, path: str
) -> None:
    fake.fail_next(path, message="creating container storage: write /var/x: no space left on device")
    with pytest.raises(EngineError, match="disk is full"):
        await podman.create(make_spec(images.talker))


async def test_a_value_podman_quotes_is_not_repeated(
    podman: Podman, fake: FakePodman, images: Images
) -> None:
    fake.fail_next("/containers/create", message=f"cannot do SECRET={SECRET} today")
    with pytest.raises(EngineError) as caught:
        await podman.create(make_spec(images.talker))
    assert SECRET not in caught.value.message
    assert "SECRET=***" in caught.value.message


async def test_environment_values_are_in_no_log_record(
    podman: Podman, images: Images, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        await bring_up(podman, make_spec(images.talker))
        await podman.remove(HASH)
    assert SECRET not in caplog.text


async def test_a_pull_podman_refuses_is_an_image_error(podman: Podman, fake: FakePodman) -> None:
    fake.fail_next("/images/pull", message="invalid reference format", status=400)
    with pytest.raises(ImageError, match="invalid reference format"):
        async for _ in podman.pull("x"):
            pass


async def test_all_pods_are_found_with_one_request(podman: Podman, fake: FakePodman, images: Images) -> None:
    for hash in (HASH, OTHER):
        await podman.create(make_spec(images.talker, hash=hash))
    fake.requests.clear()
    assert len(await podman.find_pods()) == 2
    assert fake.requests == ["GET /pods/json"]


async def test_a_start_that_fails_for_the_host_s_reasons_is_no_fault_of_the_pod(
    podman: Podman, fake: FakePodman, images: Images
) -> None:
    await podman.create(make_spec(images.talker))
    await podman.start_infra(HASH)
    fake.fail_next(
        "/start", message="runc create failed: error setting rlimit type 7: operation not permitted"
    )
    with pytest.raises(EngineError, match="rlimit"):
        await podman.start_members(HASH)


async def test_a_running_container_that_was_restarted_has_failed(
    podman: Podman, fake: FakePodman, images: Images
) -> None:
    await bring_up(podman, make_spec(images.talker))
    fake.pods[f"codius-{HASH}"].containers[f"codius-{HASH}-c0"].restarts = 1
    with pytest.raises(Exception, match="exited"):
        await podman.check_members(HASH)


async def test_a_followed_log_goes_on_after_a_restart_without_repeating(
    podman: Podman, fake: FakePodman, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codius_node.podman_logs.FOLLOW_POLL_SECONDS", 0.01)
    await bring_up(podman, make_spec(images.talker))
    name = f"codius-{HASH}-c0"
    texts: list[str] = []
    async with aclosing(podman.logs(HASH, follow=True)) as lines:
        async for line in lines:
            texts.append(line.text)
            if line.text == "warned":
                fake.exit(name, code=1)
                await asyncio.sleep(0)
                fake.pods[f"codius-{HASH}"].containers[name].status = "running"
                fake.write(name, "again")
            if line.text == "again":
                break
    assert texts == ["ready", "warned", "again"]


async def test_a_reader_that_leaves_ends_its_streams(
    podman: Podman, fake: FakePodman, images: Images
) -> None:
    await bring_up(podman, make_spec(images.talker))
    async with aclosing(podman.logs(HASH, follow=True)) as lines:
        async for _ in lines:
            break
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not {name for name in names if name.startswith("logs-")}


async def test_podman_going_away_ends_a_followed_log_with_an_error(
    podman: Podman, fake: FakePodman, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codius_node.podman_logs.FOLLOW_POLL_SECONDS", 0.01)
    await bring_up(podman, make_spec(images.talker))

    async def read() -> None:
        async for line in podman.logs(HASH, follow=True):
            if line.text == "warned":
                await fake.stop()

    with pytest.raises(EngineError):
        await read()


async def test_containers_whose_pod_is_gone_are_removed_too(
    podman: Podman, fake: FakePodman, images: Images
) -> None:
    await podman.create(make_spec(images.talker))
    # the pod's own label is lost: only its containers are found
    fake.pods[f"codius-{HASH}"].payload["labels"] = {}
    await podman.remove(HASH)
    assert fake.pods[f"codius-{HASH}"].containers == {}


@pytest.mark.parametrize("hash", ["../etc", "a/b", "", "A" * 52])
async def test_a_name_that_is_no_hash_never_becomes_a_path(podman: Podman, hash: str) -> None:
    from codius_node.model import ManifestHash

    for step in (podman.remove, podman.start_infra, podman.open_netns):
        with pytest.raises(ValueError, match="not a manifest hash"):
            await step(ManifestHash(hash))


async def test_a_removal_that_met_a_dying_container_is_tried_again(
    podman: Podman, fake: FakePodman, images: Images
) -> None:
    await bring_up(podman, make_spec(images.talker))
    message = "cannot remove container 0 as it could not be stopped: container state improper: stopped"
    fake.fail_next("/pods/", method="DELETE", message=message)
    await podman.remove(HASH)
    assert fake.pods == {}


async def test_a_pod_that_cannot_be_removed_is_said(
    podman: Podman, fake: FakePodman, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codius_node.podman.REMOVE_PAUSE_SECONDS", 0)
    await bring_up(podman, make_spec(images.talker))
    for _ in range(REMOVE_TRIES):
        fake.fail_next("/pods/", method="DELETE", message="device or resource busy")
    with pytest.raises(EngineError, match="busy"):
        await podman.remove(HASH)
    assert (await podman.find_pods())[0].hash == HASH


async def test_the_host_s_own_network_is_never_handed_out(
    podman: Podman, fake: FakePodman, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bring_up(podman, make_spec(images.talker))
    monkeypatch.setattr(FakePodman, "pid", property(lambda _: os.getpid()))
    with pytest.raises(EngineError, match="no network namespace of its own"):
        await podman.open_netns(HASH)


async def test_a_process_that_ended_has_no_netns(
    podman: Podman, fake: FakePodman, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bring_up(podman, make_spec(images.talker))
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    monkeypatch.setattr(FakePodman, "pid", property(lambda _: process.pid))
    with pytest.raises(EngineError, match="has ended"):
        await podman.open_netns(HASH)


async def test_an_infra_container_that_changes_meanwhile_is_noticed(
    podman: Podman, fake: FakePodman, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bring_up(podman, make_spec(images.talker))
    pids = iter([fake.pid, fake.pid + 1])
    monkeypatch.setattr(FakePodman, "pid", property(lambda _: next(pids)))
    before = find_pinned()
    with pytest.raises(EngineError, match="has ended"):
        await podman.open_netns(HASH)
    assert find_pinned() == before


def find_pinned() -> list[str]:
    """Descriptors of this process that hold a namespace or a process."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the directory's own
            links.append(str(entry.readlink()))
    return sorted(link for link in links if link.startswith(("net:", "anon_inode:[pidfd]")))


async def test_a_member_that_was_prepared_has_run_nothing_until_it_is_started(
    podman: Podman, fake: FakePodman, images: Images
) -> None:
    await podman.create(make_spec(images.talker))
    await podman.start_infra(HASH)
    await podman.prepare_members(HASH)
    container = fake.pods[f"codius-{HASH}"].containers[f"codius-{HASH}-c0"]
    assert (container.status, container.log) == ("initialized", [])
    await podman.start_members(HASH)
    assert (container.status, len(container.log)) == ("running", 2)


async def test_a_node_that_did_not_create_the_pod_finds_its_members(
    podman: Podman, fake: FakePodman, images: Images, tmp_path: Path
) -> None:
    await podman.create(make_spec(images.talker, images.talker))
    await podman.start_infra(HASH)
    later = Podman(fake.socket, files=tmp_path / "files")
    await later.open()
    await later.start_members(HASH)
    await later.check_members(HASH)
    await later.aclose()
    assert [pod.state for pod in await podman.find_pods()] == [FoundState.RUNNING]


async def test_pods_of_an_earlier_run_get_todays_resolvers_in_the_file_they_have(
    podman: Podman, fake: FakePodman, images: Images, tmp_path: Path
) -> None:
    await podman.create(make_spec(images.talker))
    path = tmp_path / "files" / HASH / "resolv.conf"
    inode = path.stat().st_ino
    later = Podman(fake.socket, files=tmp_path / "files", resolvers=["192.0.2.54", "192.0.2.55"])
    await later.open()
    await later.aclose()
    assert path.read_text() == "nameserver 192.0.2.54\nnameserver 192.0.2.55\n"
    assert path.stat().st_ino == inode


async def test_a_start_asks_podman_no_more_than_it_has_to(
    podman: Podman, fake: FakePodman, images: Images
) -> None:
    await podman.create(make_spec(images.talker))
    fake.requests.clear()
    await podman.start_infra(HASH)
    await podman.prepare_members(HASH)
    await podman.start_members(HASH)
    await podman.check_members(HASH)
    assert [request.rpartition("/")[2] for request in fake.requests] == ["start", "init", "start", "json"]


async def test_a_name_that_is_taken_is_not_asked_for(
    podman: Podman, fake: FakePodman, images: Images
) -> None:
    await podman.create(make_spec(images.talker))
    fake.requests.clear()
    with pytest.raises(EngineError, match="already exists"):
        await podman.create(make_spec(images.talker))
    assert fake.requests == [f"GET /pods/codius-{HASH}/exists"]
