"""The DNS process: started, asked, stopped with a signal, its privileges dropped in between."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import dns.message
import dns.query
import pytest

from tests.unit.dns.zones import HASH_NAME, ORIGIN

DEADLINE: Final = 10.0  # seconds for a process to come up or go

PROGRAM: Final = """
import os, sys
from ipaddress import ip_address
from codius_dns.server import DnsConfig, run
from codius_dns.zone import Zone

def drop():
    # Not root's id, so that no port below 1024 could be bound after this.
    if os.geteuid() == 0:
        os.setresuid(65534, 65534, 65534)
    print("dropped", flush=True)

origin, port, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
zone = Zone(origin=origin, ipv4=(ip_address("192.0.2.17"),))
sys.exit(run(DnsConfig(zones=(zone,), port=port, workers=workers), drop_privileges=drop))
"""


def free_port() -> int:
    """Free a moment ago: nothing else on this machine hands out ports of 127.0.0.1 in numbers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def process(workers: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    arguments = (sys.executable, "-c", PROGRAM, ORIGIN, str(port), str(workers))
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert select.select([child.stdout], [], [], DEADLINE)[0]
            assert child.stdout.readline() == "dropped\n"  # its sockets are open: questions wait in them
            yield child, port
        finally:
            child.kill()


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
        return [int(child) for child in file.read().split()]


def ask(port: int) -> None:
    query = dns.message.make_query(HASH_NAME, "A")
    for answer in (
        dns.query.udp(query, "127.0.0.1", port=port, timeout=DEADLINE),
        dns.query.tcp(query, "127.0.0.1", port=port, timeout=DEADLINE),
    ):
        assert [str(value) for value in answer.answer[0]] == ["192.0.2.17"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_answers_until_a_signal_and_then_ends_well(workers: int, number: signal.Signals) -> None:
    with process(workers) as (child, port):
        for _ in range(8):  # each from a new port, so both workers get some
            ask(port)
        if os.geteuid() == 0:
            assert os.stat(f"/proc/{child.pid}").st_uid == 65534  # noqa: PTH116
        workers_seen = children_of(child.pid)
        assert len(workers_seen) == (0 if workers == 1 else workers)
        child.send_signal(number)
        assert child.wait(DEADLINE) == 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", port))  # nobody has it any more


def test_a_dead_worker_ends_the_process_so_that_it_is_started_again() -> None:
    with process(2) as (child, port):
        ask(port)
        os.kill(children_of(child.pid)[0], signal.SIGKILL)
        assert child.wait(DEADLINE) == 1


def test_workers_do_not_outlive_a_killed_parent() -> None:
    with process(2) as (child, port):
        ask(port)
        orphans = [os.pidfd_open(pid) for pid in children_of(child.pid)]
        child.kill()
        for orphan in orphans:
            assert select.select([orphan], [], [], DEADLINE)[0]  # readable once that process has ended
            os.close(orphan)
