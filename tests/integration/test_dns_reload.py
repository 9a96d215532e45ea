"""`codiusd dns` told to read its records again: real processes, real zone files, dnspython as the asker."""

import os
import pty
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dns.message
import dns.query
import pytest

from tests.harness.host import CODIUSD, clean_environment
from tests.harness.processes import alive, until
from tests.harness.world import open_directory
from tests.unit.dns.zones import HASH_NAME, ORIGIN

DEADLINE: Final = 10.0  # seconds for an answer, or for a process to come up or go
IN_A_ROW: Final = (
    16  # answers alike, each to a new port: so many hash to one of two workers once in 32768 times
)
WWW: Final = f"www.{ORIGIN}"


@dataclass(frozen=True)
class Responder:
    """A running `codiusd dns`, and the directory of its zone files."""

    process: subprocess.Popen[bytes]
    port: int
    zones: Path
    log: Path

    def write(self, text: str) -> None:
        (self.zones / f"{ORIGIN}.zone").write_text(text)

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def find(self, name: str) -> list[str]:
        query = dns.message.make_query(name, "A")
        answer = dns.query.udp(query, "127.0.0.1", port=self.port, timeout=DEADLINE)
        return [str(value) for rrset in answer.answer for value in rrset]

    def says(self, name: str, *values: str) -> bool:
        """Whether all workers do, as far as chance tells."""
        return all(self.find(name) == [*values] for _ in range(IN_A_ROW))

    def workers(self) -> list[int]:
        pid = self.process.pid
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def logged(self, text: str, times: int = 1) -> bool:
        return self.log.read_text().count(text) >= times


@contextmanager
def running(place: Path, workers: int, stdin: int = subprocess.DEVNULL) -> Iterator[Responder]:
    zones = place / "zones"
    zones.mkdir()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    environment = clean_environment() | {
        "CODIUS_PUBLIC_URI": f"https://{ORIGIN}",
        "CODIUS_PUBLIC_ADDRESSES": "192.0.2.17",
        "CODIUS_BIND_IP": "127.0.0.1",
        "CODIUS_DNS_PORT": str(port),
        "CODIUS_DNS_WORKERS": str(workers),
        "CODIUS_DNS_RATE_LIMIT": "0",
        "CODIUS_DNS_ZONES": str(zones),
        "CODIUS_RUN": str(place),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, (place / "log").open("wb") as log:
        ready.settimeout(DEADLINE)
        ready.bind(str(place / "notify"))
        process = subprocess.Popen(
            [*CODIUSD, "dns"],
            env=environment | {"NOTIFY_SOCKET": str(place / "notify")},
            stdin=stdin,
            stderr=log,
        )
        responder = Responder(process, port, zones, place / "log")
        try:
            (place / "notify").chmod(0o777)
            assert b"READY=1" in ready.recv(4096)
            yield responder
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def place() -> Iterator[Path]:
    """Where a user who has given up root may read, too."""
    with open_directory() as place:
        yield place


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_hang_up_takes_up_what_the_zone_files_say_by_then(place: Path, workers: int) -> None:
    with running(place, workers) as responder:
        assert responder.says(WWW)
        assert responder.says(HASH_NAME, "192.0.2.17")
        before = responder.workers()
        responder.write("www A 192.0.2.80\n")
        assert responder.says(WWW)  # files are read when somebody says so
        responder.hang_up()
        await until(lambda: responder.says(WWW, "192.0.2.80"))
        responder.write("www A 192.0.2.81\n")
        responder.hang_up()
        await until(lambda: responder.says(WWW, "192.0.2.81"))
        (responder.zones / f"{ORIGIN}.zone").unlink()
        responder.hang_up()
        await until(lambda: responder.says(WWW))
        assert responder.says(HASH_NAME, "192.0.2.17")
        assert responder.workers() == before


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_mistake_in_a_zone_file_is_told_with_its_line_and_changes_nothing(
    place: Path, workers: int
) -> None:
    with running(place, workers) as responder:
        responder.write("www A 192.0.2.80\n")
        responder.hang_up()
        await until(lambda: responder.says(WWW, "192.0.2.80"))
        mistakes = ("www A 192.0.2.81\nweb A nowhere\n", "www A 192.0.2.81\nwww CNAME elsewhere\n")
        for times, text in enumerate(mistakes, 1):
            responder.write(text)
            responder.hang_up()
            await until(lambda times=times: responder.logged("the zones stay as they are: ", times))  # type: ignore[misc]
            assert responder.says(WWW, "192.0.2.80")
        assert responder.logged(f"{responder.zones / ORIGIN}.zone: line 2: 'web A nowhere' cannot be read")
        responder.write("www A 192.0.2.82\n")
        responder.hang_up()
        await until(lambda: responder.says(WWW, "192.0.2.82"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
async def test_a_directory_that_only_root_may_read_is_told_and_its_records_stay(place: Path) -> None:
    with running(place, 1) as responder:
        responder.write("www A 192.0.2.80\n")
        responder.hang_up()
        await until(lambda: responder.says(WWW, "192.0.2.80"))
        responder.zones.chmod(0o700)
        responder.hang_up()
        await until(lambda: responder.logged(f"CODIUS_DNS_ZONES={responder.zones} cannot be read"))
        assert responder.says(WWW, "192.0.2.80")


async def test_a_hang_up_for_the_whole_group_of_processes_ends_none_of_them(place: Path) -> None:
    with running(place, 2) as responder:
        responder.write("www A 192.0.2.80\n")
        for pid in (*responder.workers(), responder.process.pid):
            os.kill(pid, signal.SIGHUP)
        await until(lambda: responder.says(WWW, "192.0.2.80"))
        assert all(map(alive, responder.workers()))
        assert responder.process.poll() is None


@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_of_its_terminal_is_the_end_of_a_responder_that_was_started_there(
    place: Path, workers: int
) -> None:
    ours, theirs = pty.openpty()
    with running(place, workers, stdin=theirs) as responder:
        responder.hang_up()
        assert responder.process.wait(DEADLINE) == 0
    os.close(theirs)
    os.close(ours)
