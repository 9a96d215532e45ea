"""What `Podman` promises, asserted alike against the fake and the real podman."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import aclosing
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from codius_node import sample
from codius_node.errors import EngineError, ImageError, PodStartError
from codius_node.model import (
    ContainerSpec,
    FoundPod,
    FoundState,
    Isolation,
    Limits,
    LogLine,
    ManifestHash,
    PodSpec,
)
from codius_node.podman import Podman

HASH = ManifestHash("a2" * 26)
OTHER = ManifestHash("b3" * 26)
DEADLINE_SECONDS = 10.0
SECRET = "a-secret-value"


@dataclass(frozen=True)
class Images:
    """References that both podmans are prepared with."""

    talker: str
    """Writes `ready` to stdout and `warned` to stderr, and keeps running."""
    failing: str
    """Writes `cannot go on` to stderr and exits with 3."""
    broken: str
    """Its command does not exist."""
    remote: str
    """Not here; a registry has it."""
    missing: str
    """Not here, and the registry does not know the digest."""


def make_spec(*images: str, hash: ManifestHash = HASH, limits: Limits | None = None) -> PodSpec:
    """A pod with containers named c0, c1..."""
    containers = tuple(
        ContainerSpec(f"c{number}", image, None, None, {"SECRET": SECRET})
        for number, image in enumerate(images)
    )
    return PodSpec(hash, containers, limits or Limits(), IPv4Address("10.77.0.9"))


async def bring_up(podman: Podman, spec: PodSpec) -> None:
    await podman.create(spec)
    await podman.start_infra(spec.hash)
    await podman.start_members(spec.hash)


class PodmanContract:
    """Subclass it with fixtures `podman` and `images`."""

    async def test_version_is_a_version(self, podman: Podman) -> None:
        assert (await podman.version()).split(".")[0].isdecimal()

    async def test_it_says_what_keeps_pods_apart(self, podman: Podman) -> None:
        assert await podman.isolation() is Isolation.CONTAINER

    async def test_a_pod_goes_through_its_states(self, podman: Podman, images: Images) -> None:
        assert await podman.find_pods() == []
        spec = make_spec(images.talker, images.talker)
        await podman.create(spec)
        assert await podman.find_pods() == [FoundPod(HASH, FoundState.STOPPED)]
        await podman.start_infra(HASH)
        assert await podman.find_pods() == [FoundPod(HASH, FoundState.DEGRADED)]
        await podman.start_members(HASH)
        await podman.check_members(HASH)
        assert await podman.find_pods() == [FoundPod(HASH, FoundState.RUNNING)]
        await podman.remove(HASH)
        assert await podman.find_pods() == []

    async def test_what_a_pod_takes_is_counted_while_it_runs(self, podman: Podman, images: Images) -> None:
        assert await podman.consumption(HASH) is None
        await podman.create(make_spec(images.talker))
        assert await podman.consumption(HASH) is None
        await podman.remove(HASH)
        await bring_up(podman, make_spec(images.talker))
        one = await podman.consumption(HASH)
        assert one is not None
        assert one.memory > 100_000
        assert one.cpu > 0
        await podman.remove(HASH)
        assert await podman.consumption(HASH) is None

    async def test_a_prepared_pod_starts_and_a_prepared_pod_can_be_removed(
        self, podman: Podman, images: Images
    ) -> None:
        for go_on in (True, False):
            await podman.create(make_spec(images.talker, images.talker))
            await podman.start_infra(HASH)
            await podman.prepare_members(HASH)
            assert await podman.find_pods() == [FoundPod(HASH, FoundState.DEGRADED)]
            if go_on:
                await podman.start_members(HASH)
                await podman.check_members(HASH)
                assert await podman.find_pods() == [FoundPod(HASH, FoundState.RUNNING)]
            await podman.remove(HASH)
            assert await podman.find_pods() == []

    async def test_steps_that_were_done_may_be_done_again(self, podman: Podman, images: Images) -> None:
        await podman.remove(HASH)
        await bring_up(podman, make_spec(images.talker))
        await podman.start_infra(HASH)
        await podman.start_members(HASH)
        await podman.remove(HASH)
        await podman.remove(HASH)

    async def test_a_second_pod_of_the_same_name_is_refused(self, podman: Podman, images: Images) -> None:
        await podman.create(make_spec(images.talker))
        with pytest.raises(EngineError, match="already exists"):
            await podman.create(make_spec(images.talker))

    async def test_the_netns_is_not_ours(self, podman: Podman, images: Images) -> None:
        await bring_up(podman, make_spec(images.talker))
        netns = await podman.open_netns(HASH)
        try:
            assert os.fstat(netns).st_ino != Path("/proc/self/ns/net").stat().st_ino
            assert str(Path(f"/proc/self/fd/{netns}").readlink()).startswith("net:")
        finally:
            os.close(netns)

    async def test_a_pod_that_is_not_started_has_no_netns(self, podman: Podman, images: Images) -> None:
        await podman.create(make_spec(images.talker))
        with pytest.raises(EngineError, match="not started"):
            await podman.open_netns(HASH)

    async def test_nothing_can_be_done_with_a_pod_that_is_not_there(self, podman: Podman) -> None:
        for step in (podman.start_infra, podman.open_netns, podman.start_members, podman.check_members):
            with pytest.raises(EngineError):
                await step(HASH)
        assert [line async for line in podman.logs(HASH, follow=True)] == []

    async def test_a_container_that_exits_is_named_with_its_last_words(
        self, podman: Podman, images: Images
    ) -> None:
        await podman.create(make_spec(images.talker, images.failing))
        await podman.start_infra(HASH)
        with pytest.raises(PodStartError) as caught:
            await _start_until_failed(podman)
        assert '"c1" exited' in caught.value.message
        assert "cannot go on" in caught.value.message
        await podman.remove(HASH)
        assert await podman.find_pods() == []

    async def test_a_command_that_does_not_exist_is_the_pod_s_own_fault(
        self, podman: Podman, images: Images
    ) -> None:
        await podman.create(make_spec(images.broken))
        await podman.start_infra(HASH)
        for step in (podman.prepare_members, podman.start_members):
            with pytest.raises(PodStartError, match=r'"c0" could not be started: .*/nonesuch'):
                await step(HASH)

    async def test_a_container_that_fails_later_is_found(self, podman: Podman, images: Images) -> None:
        await bring_up(podman, make_spec(images.talker))
        await self.stop_container(podman, "c0")
        assert await podman.find_pods() == [FoundPod(HASH, FoundState.DEGRADED)]
        with pytest.raises(PodStartError, match='"c0" exited'):
            await podman.check_members(HASH)

    async def stop_container(self, podman: Podman, name: str) -> None:
        """End a container behind the door's back."""
        await podman._ask("POST", f"/containers/codius-{HASH}-{name}/stop", {"timeout": "0"})

    async def test_an_image_is_made_of_an_archive_once_and_named_by_its_digest(self, podman: Podman) -> None:
        name, archive = sample.build_image(b"#!/nothing")
        image = await podman.import_image(name, archive)
        assert re.fullmatch(r"localhost/codius-selftest@sha256:[0-9a-f]{64}", image)
        assert await podman.find_image(image)
        assert [step async for step in podman.pull(image)] == []
        assert await podman.import_image(name, archive) == image

    async def test_an_image_that_is_not_here_is_named(self, podman: Podman, images: Images) -> None:
        with pytest.raises(ImageError) as caught:
            await podman.create(make_spec(images.missing))
        assert images.missing in caught.value.message
        assert SECRET not in caught.value.message
        await podman.remove(HASH)
        assert await podman.find_pods() == []

    async def test_a_pull_tells_what_it_does_and_is_over_when_the_image_is_here(
        self, podman: Podman, images: Images
    ) -> None:
        assert not await podman.find_image(images.remote)
        steps = [step async for step in podman.pull(images.remote)]
        assert len(steps) >= 3
        assert steps[0].image == images.remote
        assert "Trying to pull" in steps[0].message
        assert await podman.find_image(images.remote)
        assert [step async for step in podman.pull(images.remote)] == []

    async def test_a_digest_nobody_knows_is_an_error_after_all(self, podman: Podman, images: Images) -> None:
        with pytest.raises(ImageError, match="manifest unknown"):
            async for _ in podman.pull(images.missing):
                pass
        assert not await podman.find_image(images.missing)

    async def test_logs_are_of_all_containers_and_named_as_in_the_manifest(
        self, podman: Podman, images: Images
    ) -> None:
        await bring_up(podman, make_spec(images.talker, images.talker))
        found: set[tuple[str, str, str]] = set()
        async with aclosing(podman.logs(HASH, follow=True)) as lines:
            async for line in lines:
                found.add((line.container, line.stream, line.text))
                if len(found) == 4:
                    break
        expected = {
            (name, stream, text)
            for name in ("c0", "c1")
            for stream, text in (("stdout", "ready"), ("stderr", "warned"))
        }
        assert found == expected
        read = [line async for line in podman.logs(HASH, follow=False)]
        assert {(line.container, line.stream, line.text) for line in read} == expected
        assert len(read) == 4

    async def test_a_followed_log_ends_when_the_pod_is_removed(self, podman: Podman, images: Images) -> None:
        await bring_up(podman, make_spec(images.talker))
        lines: list[LogLine] = []
        async for line in podman.logs(HASH, follow=True):
            lines.append(line)
            if len(lines) == 2:
                await podman.remove(HASH)
        assert sorted(line.text for line in lines) == ["ready", "warned"]

    async def test_pods_of_other_owners_are_not_seen_and_not_touched(
        self, podman: Podman, images: Images, tmp_path: Path
    ) -> None:
        other = Podman(podman._socket, files=tmp_path / "other", owner="somebody")
        await other.open()
        try:
            await other.create(make_spec(images.talker))
            await podman.create(make_spec(images.talker, hash=OTHER))
            await podman.remove(HASH)
            assert await podman.find_pods() == [FoundPod(OTHER, FoundState.STOPPED)]
            assert await other.find_pods() == [FoundPod(HASH, FoundState.STOPPED)]
        finally:
            await other.remove(HASH)
            await other.aclose()

    async def test_files_of_a_pod_come_and_go_with_it(self, podman: Podman, images: Images) -> None:
        await podman.create(make_spec(images.talker))
        directory = podman._files / HASH
        assert (directory / "hosts").read_text() == f"127.0.0.1 localhost\n10.77.0.9 {HASH[:12]}\n"
        assert (directory / "resolv.conf").read_text() == "nameserver 192.0.2.53\n"
        await podman.remove(HASH)
        assert not directory.exists()


async def _start_until_failed(podman: Podman) -> None:
    """Start and look again until there is something to say."""
    await podman.start_members(HASH)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            await podman.check_members(HASH)
