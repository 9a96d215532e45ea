"""The podman door against a real podman: the contract, and what a pod may do as seen from inside."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from codius_node import libpod
from codius_node.errors import PodStartError
from codius_node.model import ContainerSpec, FoundState, Limits, LogLine, PodSpec
from codius_node.podman import Podman
from tests.harness.podman_contract import (
    HASH,
    OTHER,
    SECRET,
    Images,
    PodmanContract,
    bring_up,
    make_spec,
)
from tests.harness.podman_service import PrivatePodman, Registry, find_missing

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(find_missing()), reason=f"missing: {', '.join(find_missing())}"),
    pytest.mark.asyncio(loop_scope="module"),
]

DEADLINE_SECONDS = 30.0
MIB = 1024 * 1024
KEEP = "trap 'exit 0' TERM; while true; do sleep 0.1; done"
"""Run on, and end at once when asked to."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[tuple[PrivatePodman, Registry]]:
    async with Registry() as registry, PrivatePodman(insecure=[registry.address]) as podman:
        yield podman, registry


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(service: tuple[PrivatePodman, Registry]) -> Images:
    podman, registry = service
    talker = await podman.make_image(
        "talker", command=["sh", "-c", f"echo ready; echo warned >&2; {KEEP}"], changes=["VOLUME /data"]
    )
    failing = await podman.make_image(
        "failing", command=["sh", "-c", "sleep 0.05; echo cannot go on >&2; exit 3"]
    )
    broken = await podman.make_image("broken", command=["/nonesuch"])
    distant = await podman.make_image("distant", command=["sh", "-c", KEEP])
    remote = await registry.push(podman, distant)
    missing = remote.partition("@")[0] + "@sha256:" + "0" * 64
    return Images(talker, failing, broken, remote, missing)


@pytest_asyncio.fixture(loop_scope="module")
async def images(service: tuple[PrivatePodman, Registry], made: Images) -> Images:
    """With `remote` not here, whatever the test before pulled."""
    podman, _ = service
    for name in json.loads(await podman.request("GET", "/images/json")):
        if any(made.remote.partition("@")[2] in digest for digest in name.get("RepoDigests") or []):
            await podman.request("DELETE", f"/images/{name['Id']}", force="true")
    return made


@pytest_asyncio.fixture(loop_scope="module")
async def podman(service: tuple[PrivatePodman, Registry], tmp_path: Path) -> AsyncIterator[Podman]:
    podman = Podman(service[0].socket, files=tmp_path / "files", resolvers=["192.0.2.53"])
    await podman.open()
    yield podman
    for hash in (HASH, OTHER):
        await podman.remove(hash)
    await podman.aclose()


class TestContract(PodmanContract):
    pass


def make_script_spec(image: str, *scripts: str, limits: Limits | None = None) -> PodSpec:
    spec = make_spec(image, limits=limits)
    containers = tuple(
        ContainerSpec(f"c{number}", image, ("sh", "-c", script), None, {"SECRET": SECRET})
        for number, script in enumerate(scripts)
    )
    return PodSpec(spec.hash, containers, spec.limits, spec.address)


async def read_until(podman: Podman, wanted: Callable[[LogLine], bool]) -> list[LogLine]:
    """The pod's lines up to the wanted one."""
    read: list[LogLine] = []
    async with asyncio.timeout(DEADLINE_SECONDS), aclosing(podman.logs(HASH, follow=True)) as lines:
        async for line in lines:
            read.append(line)
            if wanted(line):
                return read
    raise AssertionError(f"the log ended without it: {read}")


async def run_script(podman: Podman, image: str, script: str) -> list[str]:
    """What a script in a pod of its own prints."""
    await bring_up(podman, make_script_spec(image, f"{script}; echo THE END; {KEEP}"))
    lines = await read_until(podman, lambda line: line.text.endswith("THE END"))
    await podman.remove(HASH)
    return [line.text for line in lines[:-1]]


# ---- what is left --------------------------------------------------------------------------------


async def test_a_removed_pod_leaves_nothing(
    service: tuple[PrivatePodman, Registry], podman: Podman, images: Images
) -> None:
    private, _ = service
    await bring_up(podman, make_spec(images.talker, images.talker))
    id = (await podman._list(HASH))[0].id
    mounts = Path("/proc/self/mountinfo").read_text
    assert str(private.directory) in mounts()
    await podman.remove(HASH)
    assert json.loads(await private.request("GET", "/pods/json")) in ([], None)
    assert json.loads(await private.request("GET", "/containers/json", all="true")) in ([], None)
    assert json.loads(await private.request("GET", "/volumes/json")) in ([], None)
    assert f"{private.directory}/storage/overlay-containers" not in mounts()
    assert "/merged" not in "".join(line for line in mounts().splitlines() if str(private.directory) in line)
    assert not list(podman._files.iterdir())
    assert not list(Path("/sys/fs/cgroup").glob(f"memory/libpod_parent/{id}"))


async def test_what_an_image_calls_a_volume_is_a_writable_directory_of_the_container(
    service: tuple[PrivatePodman, Registry], podman: Podman, images: Images
) -> None:
    private, _ = service
    assert await run_script(podman, images.talker, "echo kept > /data/file; cat /data/file") == ["kept"]
    assert json.loads(await private.request("GET", "/volumes/json")) in ([], None)


async def test_a_volume_goes_with_its_pod_even_when_podman_forgets_it(
    service: tuple[PrivatePodman, Registry], podman: Podman, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, _ = service
    await bring_up(podman, make_spec(images.talker))

    async def forgetful(id: str, name: str) -> None:
        await private.cli("rm", "--force", "--time=0", f"{name}-c0")  # without --volumes
        await type(podman)._remove_pod(podman, id, name)

    monkeypatch.setattr(podman, "_remove_pod", forgetful)
    await podman.remove(HASH)
    assert json.loads(await private.request("GET", "/volumes/json")) in ([], None)


async def test_a_container_deaf_to_sigterm_does_not_hold_up_the_removal(
    podman: Podman, images: Images
) -> None:
    await bring_up(podman, make_script_spec(images.talker, *["trap '' TERM; while :; do sleep 1; done"] * 3))
    async with asyncio.timeout(DEADLINE_SECONDS):
        await podman.remove(HASH)
    assert await podman.find_pods() == []


# ---- what a container may --------------------------------------------------------------------------


async def test_a_container_has_few_capabilities_and_gains_none(podman: Podman, images: Images) -> None:
    status = dict(
        line.split(":\t")
        for line in await run_script(
            podman, images.talker, "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status"
        )
    )
    # capability numbers of linux/capability.h, for the names in CAPABILITIES
    numbers = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5}
    numbers |= {"SETGID": 6, "SETUID": 7, "NET_BIND_SERVICE": 10}
    assert set(numbers) == set(libpod.CAPABILITIES)
    mask = sum(1 << number for number in numbers.values())
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        assert int(status[kind], 16) == mask, kind
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


async def test_a_container_sees_its_own_hosts_file_and_nothing_of_the_host(
    podman: Podman, images: Images
) -> None:
    lines = await run_script(
        podman,
        images.talker,
        "cat /etc/hosts /etc/resolv.conf; hostname; (echo x >> /etc/hosts) 2>&1; ls -d /data;"
        " cat /proc/self/cgroup; echo nofile $(ulimit -n) core $(ulimit -c); cat /proc/self/oom_score_adj;"
        " awk '$2 !~ \"^/(proc|sys|dev)\" {print $2}' /proc/mounts; env | grep -i proxy; env | grep SECRET",
    )
    text = "\n".join(lines)
    assert lines[:4] == ["127.0.0.1 localhost", f"10.77.0.9 {HASH[:12]}", "nameserver 192.0.2.53", HASH[:12]]
    assert "Read-only file system" in lines[4]
    assert lines[5] == "/data"
    assert not re.search(r"libpod", text)
    assert "core 0" in text
    assert str(libpod.OOM_SCORE) in lines
    assert f"SECRET={SECRET}" in lines
    assert "proxy" not in text.lower()
    mounts = {line for line in lines if line.startswith("/") and line not in {"/data"}}
    mounts = {line for line in mounts if not line.startswith("/bin")}
    assert mounts == {"/", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/run/.containerenv"}


async def test_a_plain_user_may_listen_on_a_low_port(podman: Podman, images: Images) -> None:
    lines = await run_script(
        podman,
        images.talker,
        "su user -c 'httpd -f -p 127.0.0.1:80 & sleep 0.2; kill $! && echo listened' 2>&1",
    )
    assert lines == ["listened"]


async def test_containers_of_a_pod_talk_over_loopback(
    service: tuple[PrivatePodman, Registry], podman: Podman, images: Images
) -> None:
    # lo is brought up by whoever wires the pod
    spec = make_script_spec(
        images.talker,
        f"mkdir -p /srv/www; echo hello > /srv/www/index.html; httpd -p 127.0.0.1:8080 -h /srv/www; {KEEP}",
        f"until wget -q -O - http://127.0.0.1:8080/index.html; do sleep 0.05; done; {KEEP}",
    )
    await podman.create(spec)
    await podman.start_infra(HASH)
    netns = await podman.open_netns(HASH)
    try:
        process = await asyncio.create_subprocess_exec(
            "nsenter", f"--net=/proc/self/fd/{netns}", "ip", "link", "set", "lo", "up", pass_fds=[netns]
        )
        assert await process.wait() == 0
    finally:
        os.close(netns)
    await podman.start_members(HASH)
    lines = await read_until(podman, lambda line: line.container == "c1" and line.stream == "stdout")
    assert lines[-1].text == "hello"


async def test_long_and_broken_lines_arrive_in_pieces_and_whole(podman: Podman, images: Images) -> None:
    lines = await run_script(
        podman,
        images.talker,
        "head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'caf\\303\\251 \\377\\n';"
        " printf 'two '; sleep 0.1; printf 'halves\\n'",
    )
    assert [len(line) for line in lines[:3]] == [
        libpod.MAX_LINE,
        libpod.MAX_LINE,
        40000 - 2 * libpod.MAX_LINE,
    ]
    assert lines[3:] == ["café �", "two halves"]


async def test_the_log_of_a_chatty_container_stays_bounded(
    service: tuple[PrivatePodman, Registry], podman: Podman, images: Images
) -> None:
    private, _ = service
    # 4 MiB of log, then one more line
    await bring_up(
        podman,
        make_script_spec(images.talker, f"yes 0123456789abcdef | head -c 4000000; echo THE END; {KEEP}"),
    )
    await read_until(podman, lambda line: line.text.endswith("THE END"))
    logs = list((private.directory / "storage").glob("*-containers/*/userdata/ctr.log*"))
    assert logs
    assert all(log.stat().st_size <= libpod.MAX_LOG_SIZE + 64 * 1024 for log in logs)


# ---- limits ----------------------------------------------------------------------------------------

SMALL = Limits(memory=64 * MIB, vcpus=0.5, pids=64)


async def test_memory_is_limited_for_the_whole_pod(podman: Podman, images: Images) -> None:
    # dd fills its 40 MiB buffer and then waits for a reader that never reads: one fits into 64, two do not
    hog = "(dd if=/dev/zero bs=40M count=2; echo dd ended $? >&2) | sleep 1000"
    await bring_up(podman, make_script_spec(images.talker, hog, limits=SMALL))
    cgroup = await _find_cgroup(podman)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while _read_memory(cgroup) < 40 * MIB:
            await asyncio.sleep(0.02)
    await podman.check_members(HASH)
    assert [line async for line in podman.logs(HASH, follow=False)] == []
    await podman.remove(HASH)
    await bring_up(podman, make_script_spec(images.talker, hog, hog, limits=SMALL))
    lines = await read_until(podman, lambda line: line.text.startswith("dd ended"))
    assert lines[-1].text == "dd ended 137"


async def test_swap_is_no_way_around_the_memory_limit(podman: Podman, images: Images) -> None:
    await bring_up(podman, make_spec(images.talker, limits=SMALL))
    cgroup = await _find_cgroup(podman)
    if (cgroup.memory / "memory.memsw.limit_in_bytes").exists():
        assert int((cgroup.memory / "memory.memsw.limit_in_bytes").read_text()) == SMALL.memory
    else:
        assert (cgroup.memory / "memory.swap.max").read_text().strip() == "0"


async def test_a_fork_bomb_ends_at_the_pod_s_limit(podman: Podman, images: Images) -> None:
    bomb = "trap '' TERM; i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done; echo survived"
    # each container alone would stay below the limit of a container; together they pass the pod's
    bomb = bomb.replace("100", "40")
    keep = "while true; do sleep 0.1; done"
    await bring_up(podman, make_script_spec(images.talker, *[f"{bomb}; {keep}"] * 2, limits=SMALL))
    lines = await read_until(podman, lambda line: "fork" in line.text.lower())
    assert lines
    cgroup = await _find_cgroup(podman)
    assert int((cgroup.pids / "pids.max").read_text()) == SMALL.pids
    assert int((cgroup.pids / "pids.current").read_text()) <= SMALL.pids
    await podman.remove(HASH)
    assert await podman.find_pods() == []


async def test_the_cpu_of_the_whole_pod_is_limited(podman: Podman, images: Images) -> None:
    spin = "echo spinning; while :; do :; done"
    await bring_up(podman, make_script_spec(images.talker, spin, spin, limits=SMALL))
    cgroup = await _find_cgroup(podman)
    if (cgroup.cpu / "cpu.max").exists():
        assert (cgroup.cpu / "cpu.max").read_text().split() == ["50000", "100000"]
    else:
        assert (cgroup.cpu / "cpu.cfs_quota_us").read_text().strip() == "50000"
        assert (cgroup.cpu / "cpu.cfs_period_us").read_text().strip() == "100000"
    async with asyncio.timeout(DEADLINE_SECONDS):
        while "nr_throttled 0\n" in (cgroup.cpu / "cpu.stat").read_text():
            await asyncio.sleep(0.02)


class _Cgroup:
    """The pod's cgroup in each hierarchy; the same directory on v2."""

    def __init__(self, path: str) -> None:
        root = Path("/sys/fs/cgroup")
        unified = (root / "cgroup.controllers").exists()
        self.memory, self.cpu, self.pids = (
            (root if unified else root / kind) / path.lstrip("/") for kind in ("memory", "cpu", "pids")
        )


async def _find_cgroup(podman: Podman) -> _Cgroup:
    answer = await podman._ask("GET", f"/pods/codius-{HASH}/json")
    return _Cgroup(json.loads(answer.body)["CgroupPath"])


def _read_memory(cgroup: _Cgroup) -> int:
    for name in ("memory.usage_in_bytes", "memory.current"):
        if (cgroup.memory / name).exists():
            return int((cgroup.memory / name).read_text())
    raise AssertionError("no memory controller")


# ---- failures --------------------------------------------------------------------------------------


async def test_a_failing_container_is_tried_a_few_times_and_then_left(podman: Podman, images: Images) -> None:
    await podman.create(make_spec(images.failing))
    await podman.start_infra(HASH)
    member = (await podman._list(HASH))[0].members[0]
    await podman._ask("POST", f"/containers/{member.id}/start")
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (await podman._inspect(member.id)).restarts < libpod.MAX_RESTARTS:
            await asyncio.sleep(0.05)
        while (await podman._inspect(member.id)).running:
            await asyncio.sleep(0.05)
    lines = [line.text async for line in podman.logs(HASH, follow=False)]
    assert set(lines) == {"cannot go on"}
    assert len(lines) <= 1 + libpod.MAX_RESTARTS


async def test_a_workdir_that_does_not_exist_is_the_pod_s_own_fault(podman: Podman, images: Images) -> None:
    spec = make_spec(images.talker)
    container = ContainerSpec("c0", images.talker, None, "/nowhere", {})
    await podman.create(PodSpec(spec.hash, (container,), spec.limits, spec.address))
    await podman.start_infra(HASH)
    with pytest.raises(PodStartError, match="/nowhere"):
        await podman.start_members(HASH)


async def test_a_pod_outlives_its_podman_service_and_is_found_again(podman: Podman, images: Images) -> None:
    async with PrivatePodman() as private:
        image = await private.make_image("talker", command=["sh", "-c", KEEP])
        other = Podman(private.socket, files=private.directory / "files")
        await other.open()
        await bring_up(other, make_spec(image))
        await private.service.stop()
        await private.service.start()
        assert [pod.state for pod in await other.find_pods()] == [FoundState.RUNNING]
        await other.check_members(HASH)
        await other.remove(HASH)
        await other.aclose()
        directory = private.directory
    assert not directory.exists()
