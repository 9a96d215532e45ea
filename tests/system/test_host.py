"""A whole real host, end to end: podman, nft, DNS, the front door's processes, and strangers around it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import aiohttp
import dns.asyncquery
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest
import pytest_asyncio

from codius_node import manifest
from tests.harness.host import CODIUSD, clean_environment
from tests.harness.namespaces import FAR_ADDRESS, HOST_ADDRESS, snapshot
from tests.harness.podman_service import find_missing
from tests.harness.sample import BUSYBOX, SERVE_SOCKETS, START, sample_manifest
from tests.harness.world import Answer, Visitor, World, open_directory, open_world, until

MISSING: Final = [
    *find_missing(),
    *(name for name in ("nft", "ip", "docker-registry", "setpriv") if shutil.which(name) is None),
]
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"a whole host needs {', '.join(MISSING)}: sudo make test"),
    pytest.mark.asyncio(loop_scope="module"),
]

SECRET: Final = "only the pod knows this"
METADATA: Final = IPv4Address("169.254.169.254")
"""Where clouds answer with a machine's credentials."""
PRIVATE_NEIGHBOUR: Final = IPv4Address("10.1.2.3")
"""Something in a private range behind the host's uplink."""
LARGE: Final = 20 * 1024 * 1024
AT_ONCE: Final = 20
GATEWAY: Final = IPv4Address("169.254.77.1")
"""The host's end of each pod's link."""
DNS_PORT: Final = 5300
SLEEP: Final = (BUSYBOX, "sh", "-c", "trap exit TERM; while :; do /bin/busybox sleep 0.1; done")
NOBODY: Final = "65534"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    """A host for all tests that leave it as it is, and its main namespace untouched by all of them."""
    before = snapshot()
    async with open_world(CODIUS_DEV="true") as world:
        yield world
    assert snapshot() == before


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod(world: World) -> str:
    """The sample, for whoever only looks."""
    return await world.run()


def check_error(answer: Answer, status: int) -> str:
    """The recorded shape; the message."""
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    document = answer.document
    recorded = {"statusCode", "error", "message"}
    assert recorded <= set(document) <= recorded | {"hint", "requestId"}
    assert document["statusCode"] == status
    return str(document["message"])


# ---- upload and visit ------------------------------------------------------------------------------


async def test_an_uploaded_pod_answers_at_its_own_name(world: World, pod: str) -> None:
    page = await world.visitor.get(pod)
    assert page.status == 200
    lines = page.body.decode().splitlines()
    assert lines == ["hello, world", f"This page comes from the pod {pod} on {world.host.origin}."]
    assert (await world.visitor.get(pod, "/nowhere")).status == 404


async def test_an_upload_is_answered_as_recorded_and_its_manifest_can_be_read_back(
    world: World, pod: str
) -> None:
    document: Any = world.manifest()
    answer = await world.visitor.upload(document, duration=600)
    hash = manifest.hash_manifest(document["manifest"])
    url = f"http://{hash}.codius.localhost:{world.host.port}/"
    assert answer.document == {"url": url, "manifestHash": hash, "expiry": answer.document["expiry"]}
    left = datetime.fromisoformat(str(answer.document["expiry"])) - datetime.now().astimezone()
    assert timedelta(seconds=540) < left <= timedelta(seconds=600)
    shown = await world.visitor.get(path="/pods", manifestHash=hash)
    assert shown.document == {**answer.document, **document}


async def test_the_host_answers_under_its_own_name(world: World, pod: str) -> None:
    page = await world.visitor.get()
    assert page.status == 200
    assert b"<html" in page.body
    assert set((await world.visitor.get(path="/version")).document) == {"name", "version"}
    info = (await world.visitor.get(path="/info")).document
    assert info["uri"] == world.host.origin
    assert info["acceptingUploads"] is True
    assert isinstance(info["runningContracts"], int)
    assert info["runningContracts"] >= 1
    assert (await world.visitor.get(path="/peers")).document == {"peers": []}
    assert (await world.visitor.get(path="/memory")).document.keys() == {"freeMem"}


async def test_a_hash_without_a_pod_gets_404(world: World) -> None:
    check_error(await world.visitor.get("a" * 52), 404)
    check_error(await world.visitor.get(path="/pods", manifestHash="a" * 52), 404)


async def test_the_processes_that_face_the_internet_have_no_privilege(world: World, pod: str) -> None:
    found = {name: find_processes(world.host.pid(), command(name)) for name in ("proxy", "dns")}
    assert len(found["proxy"]) == 3  # a parent and two workers
    assert found["dns"]
    for pid in (*found["proxy"], *found["dns"]):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert "0" not in status["Uid"].split()
        assert "0" not in status["Gid"].split()
        assert "0" not in status["Groups"].split()
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert status["NoNewPrivs"] == "1"


def command(part: str) -> bytes:
    """What is in the command line of `codiusd <part>` alone."""
    return f"codius_node\0{part}\0".encode()


def find_processes(ancestor: int, words: bytes) -> list[int]:
    """The processes below another one, and itself, whose command lines hold these words."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = []
    for pid in parents:
        above = pid
        while above in parents and above != ancestor:
            above = parents[above]
        with contextlib.suppress(OSError):
            if above == ancestor and words in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


# ---- through the front door ------------------------------------------------------------------------


async def test_a_websocket_reaches_the_pod_and_its_answers_the_visitor(world: World) -> None:
    hash = await world.run(world.manifest(SERVE_SOCKETS))
    async with asyncio.timeout(30), world.visitor.session.ws_connect(world.visitor.url(hash)) as socket:
        for sentence in ("hello", "and once more", ""):
            await socket.send_str(sentence)
            assert await socket.receive_str() == sentence
        await socket.send_bytes(bytes(range(100)))
        assert await socket.receive_bytes() == bytes(range(100))


async def test_a_large_body_arrives_whole_both_ways(world: World) -> None:
    script = f"""
        mkdir -p /www/cgi-bin; dd if=/dev/urandom of=/www/large bs=1048576 count={LARGE >> 20} 2>/dev/null
        (echo '#!/bin/busybox sh'; echo 'printf "Content-Type: text/plain\\r\\n\\r\\n"'
        echo '/bin/busybox sha256sum') > /www/cgi-bin/sum
        chmod 755 /www/cgi-bin/sum; exec httpd -f -p 8080 -h /www"""
    hash = await world.run(world.manifest((BUSYBOX, "sh", "-c", script)))
    await world.until_answering(hash, "/large")
    inside = (await world.inside(hash, BUSYBOX, "sha256sum", "/www/large", container="c0")).split()[0]
    large = await world.visitor.get(hash, "/large")
    assert len(large.body) == LARGE
    assert hashlib.sha256(large.body).hexdigest() == inside
    url = world.visitor.url(hash, "/cgi-bin/sum")
    async with world.visitor.session.post(url, data=io.BytesIO(large.body)) as response:
        assert response.status == 200, (await response.text(), world.host.tail(5))
        assert (await response.text()).split()[0] == inside


# ---- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", [dns.query.udp, dns.query.tcp])
async def test_the_responder_knows_the_zone_and_nothing_else(world: World, pod: str, transport: Any) -> None:
    def ask(name: str, kind: str) -> dns.message.Message:
        query = dns.message.make_query(name, kind)
        answer: dns.message.Message = world.network.host.call(
            lambda: transport(query, "127.0.0.1", port=DNS_PORT, timeout=5)
        )
        return answer

    for name in ("codius.localhost.", f"{pod}.codius.localhost.", f"{'a' * 52}.codius.localhost."):
        answer = ask(name, "A")
        assert [str(record) for record in answer.answer[0]] == [str(HOST_ADDRESS)]
        assert answer.answer[0].name.to_text() == name
        assert answer.flags & dns.flags.AA
    nothing = ask(f"{pod}.codius.localhost.", "AAAA")
    assert (nothing.rcode(), nothing.answer) == (dns.rcode.NOERROR, [])
    assert nothing.authority[0].rdtype == dns.rdatatype.SOA
    unknown = ask("no-hash.codius.localhost.", "A")
    assert unknown.rcode() == dns.rcode.NXDOMAIN
    assert unknown.authority[0].rdtype == dns.rdatatype.SOA
    assert ask("codius.localhost.", "NS").answer[0].rdtype == dns.rdatatype.NS
    assert ask("codius.localhost.", "SOA").answer[0].rdtype == dns.rdatatype.SOA
    assert ask("example.com.", "A").rcode() == dns.rcode.REFUSED


# ---- inside a pod ----------------------------------------------------------------------------------


async def test_a_private_variable_reaches_its_container_and_nothing_else(world: World) -> None:
    variables: Any = {
        "vars": {"public": {"GREETING": {"value": "hello"}}, "private": {"SECRET": {"value": SECRET}}}
    }
    document: Any = sample_manifest(world.image, name="secretive", secret=True)
    hash = await world.run(manifest.generate(document, variables, lambda: "0123456789abcdef" * 2))
    assert f"SECRET={SECRET}" in (await world.inside(hash, BUSYBOX, "env")).splitlines()

    container = json.loads(await world.podman.cli("inspect", f"codius-{hash}-web"))[0]
    assert SECRET in json.dumps(container)  # podman has to know it to give it to the container
    stored = b"".join(path.read_bytes() for path in world.host.root.rglob("*") if path.is_file())
    seen = {
        "GET /pods": (await world.visitor.get(path="/pods", manifestHash=hash)).body,
        "codiusd pods": world.host.codiusd("pods", "--json").stdout.encode(),
        "the host's log": world.host.log.read_bytes(),
        "the database": stored,
        "labels": json.dumps(container["Config"]["Labels"]).encode(),
        "the pod in podman": (await world.podman.cli("pod", "inspect", f"codius-{hash}")).encode(),
        "CODIUS_MANIFEST": find_variable(container["Config"]["Env"], "CODIUS_MANIFEST"),
        "logs": (await world.visitor.get(path=f"/pods/{hash}/logs")).body,
        "command lines": b"".join(read_command_lines()),
    }
    assert b"hello" in seen["GET /pods"]
    assert hash.encode() in seen["codiusd pods"]
    assert hash.encode() in seen["the host's log"]
    assert hash.encode() in seen["the database"]
    assert hash.encode() in seen["labels"]
    assert b"secretive" in seen["CODIUS_MANIFEST"]
    assert [where for where, text in seen.items() if SECRET.encode() in text] == []


def find_variable(environment: list[str], name: str) -> bytes:
    return next(entry for entry in environment if entry.startswith(f"{name}=")).encode()


def read_command_lines() -> Iterator[bytes]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                yield (entry / "cmdline").read_bytes()


async def test_the_containers_of_a_pod_share_127_0_0_1(world: World) -> None:
    backend = (BUSYBOX, "sh", "-c", "mkdir /b; echo from the other > /b/x; httpd -f -p 127.0.0.1:9000 -h /b")
    hash = await world.run(world.manifest(START, backend))
    page = await world.inside(hash, BUSYBOX, "wget", "-qO-", "http://127.0.0.1:9000/x", container="c0")
    assert page == "from the other\n"
    # what listens on the pod's loopback is nobody else's
    address = world.address(hash)
    with pytest.raises(OSError, match="refused"):
        world.network.host.call(lambda: socket.create_connection((str(address), 9000), 5))


# ---- isolation -------------------------------------------------------------------------------------


async def test_a_pod_reaches_the_internet_and_nothing_that_is_private(world: World, pod: str) -> None:
    other = await world.run()
    neighbour = world.address(other)
    world.network.add_internet_addresses(METADATA, PRIVATE_NEIGHBOUR)
    with contextlib.ExitStack() as stack:
        for port in (80, 25, 5060):
            # on every address, so that a refusal is the host's doing
            listener = world.network.internet.call(partial(socket.create_server, ("", port)))
            stack.enter_context(listener)
            listener.setblocking(False)
            if port == 80:
                web = listener
        stack.enter_context(world.network.host.call(lambda: socket.create_server(("", 8081))))
        refused = {
            "another pod": (neighbour, 8080),
            "the host": (HOST_ADDRESS, world.host.port),
            "a program on the host": (HOST_ADDRESS, 8081),
            "the host's end of the link": (GATEWAY, 8081),
            "the host's DNS by TCP": (HOST_ADDRESS, DNS_PORT),
            "metadata": (METADATA, 80),
            "a private neighbour": (PRIVATE_NEIGHBOUR, 80),
            "a mail server": (FAR_ADDRESS, 25),
            "a telephone exchange": (FAR_ADDRESS, 5060),
        }
        # all of them are there for the host itself
        for address, port in refused.values():
            world.network.host.call(partial(socket.create_connection, (str(address), port), 5)).close()
        while True:
            with contextlib.suppress(BlockingIOError):
                web.accept()[0].close()
                continue
            break
        reached = await asyncio.gather(*(reaches(world, pod, *target) for target in refused.values()))
        assert [what for what, yes in zip(refused, reached, strict=True) if yes] == []
        assert await reaches(world, pod, FAR_ADDRESS, 80)
        connection, (source, _) = web.accept()
        connection.close()
        assert source == str(HOST_ADDRESS)  # masqueraded: no pod's address leaves the host


async def reaches(world: World, hash: str, address: IPv4Address, port: int) -> bool:
    """Whether a program in the pod gets a connection within a second."""
    command = (BUSYBOX, "nc", "-w", "1", str(address), str(port), "-e", "/bin/true")
    try:
        await world.inside(hash, *command)
    except RuntimeError:
        return False
    return True


async def test_strangers_reach_a_pod_only_through_the_front_door(world: World, pod: str) -> None:
    address = str(world.address(pod))
    world.network.internet.exec("ip", "route", "replace", f"{address}/32", "via", str(HOST_ADDRESS))
    with pytest.raises(OSError, match="timed out"):
        world.network.internet.call(lambda: socket.create_connection((address, 8080), 1))
    front = world.network.internet.call(
        lambda: socket.create_connection((str(HOST_ADDRESS), world.host.port), 5)
    )
    with front:
        front.sendall(f"GET / HTTP/1.1\r\nHost: {pod}.codius.localhost\r\nConnection: close\r\n\r\n".encode())
        assert front.recv(100).startswith(b"HTTP/1.1 200 ")


# ---- expiry ----------------------------------------------------------------------------------------


async def test_an_expired_pod_is_gone_everywhere(world: World) -> None:
    document = world.manifest()
    hash = await world.run(document, duration=2)
    address = world.address(hash)
    assert (await world.visitor.get(hash)).status == 200
    await world.until_gone(hash)
    check_error(await world.visitor.get(hash), 404)
    check_error(await world.visitor.get(path="/pods", manifestHash=hash), 404)
    check_error(await world.visitor.ask("PUT", "/pods", manifestHash=hash, duration="10"), 404)
    found = await world.inventory()
    assert address not in (*found.links, *found.senders, *found.receivers)
    assert hash not in await world.podman.cli("ps", "--all", "--no-trunc", "--format", "{{.Names}}")
    assert hash not in world.host.codiusd("pods", "--json").stdout
    assert world.ledger(hash) == ["upload"]
    # its time over, the same manifest is a new pod
    assert await world.run(document) == hash
    assert (await world.visitor.get(hash)).status == 200
    assert world.ledger(hash) == ["upload", "upload"]


async def test_a_visitor_in_the_middle_of_a_download_at_expiry_gets_an_end_not_a_hang(world: World) -> None:
    endless = r"printf 'HTTP/1.1 200 OK\r\n\r\n'; while :; do echo tick; sleep 0.1; done"
    command = (BUSYBOX, "nc", "-ll", "-p", "8080", "-e", "/bin/sh", "-c", endless)
    hash = await world.run(world.manifest(command), duration=2)
    async with asyncio.timeout(8):
        async with world.visitor.session.get(world.visitor.url(hash)) as response:
            assert response.status == 200
            with contextlib.suppress(aiohttp.ClientPayloadError, aiohttp.ClientOSError):
                await response.read()
    await world.until_gone(hash)


async def test_time_added_to_a_pod_counts_from_its_old_expiry(world: World) -> None:
    document = world.manifest()
    hash = await world.run(document, duration=100)
    first = datetime.fromisoformat(await world.expiry(hash))
    extended = await world.visitor.ask("PUT", "/pods", manifestHash=hash, duration="50")
    assert datetime.fromisoformat(str(extended.document["expiry"])) == first + timedelta(seconds=50)
    await world.run(document, duration=25)
    assert datetime.fromisoformat(await world.expiry(hash)) == first + timedelta(seconds=75)
    assert world.ledger(hash) == ["upload", "extension", "extension"]


# ---- bad luck --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["198.51.100.10:5000/app", "registry"])
async def test_an_image_that_cannot_be_had_leaves_nothing(world: World, where: str) -> None:
    if where == "registry":
        where = f"{world.registry.address}/app"
    await refuse(
        world, sample_manifest(f"{where}@sha256:{'0' * 64}", name="no-image"), 422, "could not be pulled"
    )


async def test_a_container_that_exits_at_once_is_named_with_its_last_lines(world: World) -> None:
    failing = (BUSYBOX, "sh", "-c", "echo one; echo the configuration is missing >&2; exit 3")
    message = await refuse(world, world.manifest(SLEEP, failing), 422, 'container "c1" exited')
    assert "one\nthe configuration is missing" in message
    assert "code 0" not in message


async def test_a_container_that_cannot_start_is_named(world: World) -> None:
    await refuse(world, world.manifest(("/nonesuch",)), 422, 'container "c0" could not be started')


async def test_a_manifest_that_is_wrong_never_reaches_podman(world: World) -> None:
    document: Any = world.manifest()
    document["manifest"]["containers"][0]["image"] = "nginx:latest"
    await refuse(world, document, 422, "manifest.containers[0].image")
    hash = manifest.hash_manifest(document["manifest"])
    assert f"pod {hash}: upload for" not in world.host.log.read_text()


async def refuse(world: World, document: Any, status: int, says: str) -> str:
    """The upload is refused and undone, nobody pays, and the next one works; the message."""
    hash = manifest.hash_manifest(document["manifest"])
    answer = await world.visitor.upload(document)
    message = check_error(answer, status)
    assert says in message, message
    found = await world.inventory()
    assert hash not in (*found.rows, *found.pods, *found.files, *found.manifests)
    assert (
        sorted(found.links) == sorted(found.senders) == sorted(found.receivers) == sorted(found.rows.values())
    )
    assert world.ledger(hash) == []
    check_error(await world.visitor.get(hash), 404)
    assert (await world.visitor.get(await world.run(duration=5))).status == 200
    return message


async def test_with_podman_away_visitors_are_served_and_uploads_refused(world: World, pod: str) -> None:
    document: Any = world.manifest()
    hash = manifest.hash_manifest(document["manifest"])
    await world.podman.service.stop()
    try:
        message = check_error(await world.visitor.upload(document), 503)
        assert str(world.podman.socket) not in message  # paths are for the operator
        assert (await world.visitor.get(pod)).status == 200
        assert (await world.visitor.get(path="/info")).status == 200
        assert world.host.query("SELECT * FROM pods WHERE hash = ?", hash) == []
    finally:
        await world.podman.service.start()
    assert world.ledger(hash) == []
    assert await world.run(document) == hash
    assert (await world.visitor.get(hash)).status == 200


async def test_twenty_uploads_at_once_all_answer(world: World) -> None:
    hashes = await asyncio.gather(*(world.run(duration=60) for _ in range(AT_ONCE)))
    pages = await asyncio.gather(*(world.visitor.get(hash) for hash in hashes))
    assert [page.status for page in pages] == [200] * AT_ONCE
    assert all(hash.encode() in page.body for hash, page in zip(hashes, pages, strict=True))
    addresses = world.host.query("SELECT DISTINCT address FROM pods")
    assert len(addresses) >= AT_ONCE


async def test_a_full_host_says_so_and_charges_nothing() -> None:
    async with open_world(CODIUS_MAX_MEMORY_FRACTION="0.001") as world:
        message = check_error(await world.visitor.upload(world.manifest()), 503)
        assert "full (memory" in message
        info = (await world.visitor.get(path="/info")).document
        assert (info["fullMem"], info["acceptingUploads"]) == (True, False)
        (await world.inventory()).check()
        assert world.host.query("SELECT * FROM ledger") == []


async def test_a_full_disk_costs_no_pod_and_no_money() -> None:
    with open_directory() as directory, small_disk(directory / "root") as root:
        async with open_world(directory) as world:
            document = world.manifest()
            hash = await world.run(document)
            short = await world.run(duration=2)
            ledger = world.host.query("SELECT * FROM ledger")
            expiry = await world.expiry(hash)
            fill_disk(root)
            refused = world.manifest()
            message = check_error(await world.visitor.upload(refused), 503)
            assert "full (disk: 0 MiB free" in message
            check_error(await world.visitor.ask("PUT", "/pods", manifestHash=hash, duration="9"), 503)
            assert world.host.query("SELECT * FROM ledger") == ledger
            assert await world.expiry(hash) == expiry
            assert (await world.visitor.get(hash)).status == 200

            async def expired() -> bool:
                return (await world.visitor.get(short)).status == 404

            await until(expired, "a full disk keeps an expired pod alive")
            mount(f"remount,size={2**30}", root)
            await world.until_gone(short)
            await world.run(refused)
            await world.run(document)
            assert world.ledger(hash) == ["upload", "extension"]


@contextlib.contextmanager
def small_disk(where: Path) -> Iterator[Path]:
    """A file system of its own whose size can be changed; nothing of it stays."""
    where.mkdir()
    mount(f"size={2**30}", where)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def fill_disk(where: Path) -> None:
    """So small that not a page more fits."""
    found = os.statvfs(where)
    mount(f"remount,size={(found.f_blocks - found.f_bfree) * found.f_frsize}", where)


def mount(options: str, where: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)], check=True)


# ---- the command -----------------------------------------------------------------------------------


async def test_the_command_takes_a_pod_from_a_tag_to_its_end(world: World, tmp_path: Path) -> None:
    def codiusd(*arguments: str) -> str:
        return world.host.codiusd(*arguments, inside=True).stdout

    image = await world.podman.make_image(
        "tagged", files={"/start": b"echo started; exec /bin/busybox httpd -f -v -p 8080 -h /etc"}
    )
    pinned = await world.registry.push(world.podman, image)
    tagged = f"{pinned.partition('@')[0]}:latest"
    project = tmp_path / "codius.json"
    project.write_text(json.dumps(sample_manifest(tagged, name="tagged")))
    kept = tmp_path / "kept.json"
    insecure = ("--insecure-registry", world.registry.address)

    price = json.loads(codiusd("quote", str(project), "-d", "1h", *insecure, "--json"))
    assert int(price["price"]) > 0
    uploaded = json.loads(
        codiusd("upload", str(project), "-d", "4s", *insecure, "--save", str(kept), "--json")
    )
    hash = uploaded["manifestHash"]
    assert hash == price["manifestHash"]
    assert uploaded["images"] == {tagged: pinned}
    assert (await world.visitor.get(hash, "/passwd")).status == 200
    extended = json.loads(codiusd("extend", hash, "-d", "2s", "--json"))
    expiry = datetime.fromisoformat
    assert expiry(extended["expiry"]) - expiry(uploaded["expiry"]) == timedelta(seconds=2)
    again = json.loads(codiusd("extend", str(kept), "-d", "1s", "--json"))
    assert expiry(again["expiry"]) - expiry(extended["expiry"]) == timedelta(seconds=1)
    assert json.loads(codiusd("pods", hash, "--json"))["expiry"] == again["expiry"]
    assert hash in codiusd("pods")
    entry = next(pod for pod in json.loads(codiusd("pods", "--json"))["pods"] if pod["hash"] == hash)
    assert entry["state"] == "running"

    followed = await asyncio.to_thread(codiusd, "logs", hash, "--follow")
    lines = followed.splitlines()
    assert lines[0] == "web stdout started"
    assert any(line.endswith("response:200") for line in lines), lines
    assert datetime.now().astimezone() > expiry(again["expiry"])  # it ended because the pod did
    refused = world.host.codiusd("pods", hash, "--json", check=False)
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["statusCode"] == 404


async def test_the_command_shows_the_steps_of_an_upload(world: World, tmp_path: Path) -> None:
    project = tmp_path / "codius.json"
    project.write_text(json.dumps(world.manifest()))
    told = world.host.codiusd("upload", str(project), "-d", "1m")
    assert re.search(r"^The pod runs at http://[a-z2-7]{52}\.codius\.localhost", told.stdout)
    for step in ("creating the pod", "wiring its network", "starting 1 container"):
        assert step in told.stderr


async def test_doctor_finds_a_running_host_well(world: World) -> None:
    done = world.host.codiusd("doctor", "--json", inside=True, check=False)
    report = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert done.returncode == (0 if report["ok"] else 1)
    for name in ("podman", "dns port", "forwarding", "nftables", "disk", "memory"):
        assert findings[name]["verdict"] == "ok", findings[name]
    assert "this host is running" in findings["dns port"]["message"]
    assert all(finding["fix"] for finding in report["findings"] if finding["verdict"] == "bad")


# ---- without podman and kernel ---------------------------------------------------------------------


async def test_a_noop_host_runs_as_anybody_and_touches_nothing() -> None:
    with open_directory() as directory:
        shutil.chown(directory, int(NOBODY), int(NOBODY))
        await run_noop(directory)


async def run_noop(home: Path) -> None:
    python = sys.executable
    user = (
        *("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--no-new-privs"),
        *("--inh-caps=-all", "--bounding-set=-all"),
    )
    if subprocess.run([*user, python, "-c", "import codius_node"], capture_output=True).returncode:
        pytest.skip(f"user {NOBODY} may not read {python} or the packages here")
    port, dns_port = find_free_ports()
    before = snapshot()
    environment = clean_environment() | {
        "CODIUS_HYPER_NOOP": "true",
        "CODIUS_PORT": str(port),
        "CODIUS_DNS_PORT": str(dns_port),
        "CODIUS_ROOT": str(home / "root"),
        "CODIUS_RUN": str(home / "run"),
        "CODIUS_ENGINE_SOCKET": "/nonexistent/podman.sock",
    }
    log = home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([*user, *CODIUSD, "run"], env=environment, stdout=output, stderr=output)
    try:
        await until(
            lambda: process.poll() is not None or b"host ready" in log.read_bytes(), "it does not start"
        )
        assert process.poll() is None, log.read_text()
        async with Visitor(port) as visitor:
            await check_noop(visitor, sample_manifest(f"example.com/a@sha256:{'0' * 64}"))
        query = dns.message.make_query("codius.localhost.", "A")
        reply = await dns.asyncquery.udp(query, "127.0.0.1", port=dns_port, timeout=5)
        assert [str(record) for record in reply.answer[0]] == ["127.0.0.1"]
        assert snapshot() == before
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)
    assert status == 0, log.read_text()
    assert "Traceback" not in log.read_text()


async def check_noop(visitor: Visitor, document: Any) -> None:
    uploaded = await visitor.upload(document, duration=100)
    assert uploaded.status == 200, uploaded
    hash = str(uploaded.document["manifestHash"])
    quoted = await visitor.ask("OPTIONS", "/pods", document=document, duration="100")
    assert quoted.document["manifestHash"] == hash
    extended = await visitor.ask("PUT", "/pods", manifestHash=hash, duration="1")
    assert extended.document["expiry"] > uploaded.document["expiry"]  # type: ignore[operator]
    shown = await visitor.get(path="/pods", manifestHash=hash)
    assert shown.document["manifest"] == document["manifest"]
    for path in ("/", "/version", "/info", "/memory", "/peers", f"/pods/{hash}/logs"):
        assert (await visitor.get(path=path)).status == 200, path
    # nothing runs, and an address that belongs to somebody else is not asked
    check_error(await visitor.get(hash), 404)


def find_free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        return first.getsockname()[1], second.getsockname()[1]
