"""The counters as a collector reads them: in one place for all workers, where no stranger gets to."""

import http.client
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import dns.message
import dns.query
import pytest

from tests.unit.dns.zones import HASH_NAME, ORIGIN

DEADLINE: Final = 10.0  # seconds until a test gives up
QUESTIONS: Final = 40  # enough for both workers to get some

PROGRAM: Final = """
import sys
from ipaddress import ip_address
from codius_dns.server import DnsConfig, Endpoint, run
from codius_dns.zone import Zone
zone = Zone(origin=sys.argv[1], ipv4=(ip_address("192.0.2.17"),))
port, metrics, workers = map(int, sys.argv[2:5])
config = DnsConfig(zones=(zone,), port=port, workers=workers, metrics=Endpoint("127.0.0.1", metrics))
sys.exit(run(config, drop_privileges=lambda: print("open", flush=True)))
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def responder(workers: int) -> Iterator[tuple[int, int]]:
    ports = free_port(), free_port()
    arguments = (sys.executable, "-c", PROGRAM, ORIGIN, *map(str, ports), str(workers))
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
            yield ports
        finally:
            child.terminate()


def get(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


def value(port: int, sample: str) -> int:
    status, text = get(port)
    assert status == 200
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return int(lines.get(sample, "0"))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_questions_to_all_workers_are_counted_together(workers: int) -> None:
    with responder(workers) as (port, metrics):
        for _ in range(QUESTIONS):  # each from a new port, and so to any of the workers
            dns.query.udp(dns.message.make_query(HASH_NAME, "A"), "127.0.0.1", port=port, timeout=DEADLINE)
        dns.query.tcp(dns.message.make_query(ORIGIN, "TXT"), "127.0.0.1", port=port, timeout=DEADLINE)
        udp = 'codius_dns_queries_total{transport="udp",type="A",rcode="NOERROR"}'
        while value(metrics, udp) < QUESTIONS:
            pass  # the other workers report once a second; what never comes ends in the test's time-out
        assert value(metrics, udp) == QUESTIONS
        while value(metrics, 'codius_dns_queries_total{transport="tcp",type="TXT",rcode="NOERROR"}') < 1:
            pass
        assert value(metrics, "codius_dns_workers") == workers
        assert value(metrics, 'codius_dns_drops_total{reason="short"}') == 0


def test_only_the_metrics_are_there_and_nonsense_is_hung_up_on() -> None:
    with responder(1) as (_, metrics):
        assert get(metrics, "/")[0] == 404
        assert get(metrics, method="POST")[0] == 405
        assert get(metrics, "/metrics?x=1", "HEAD") == (200, "")
        with socket.create_connection(("127.0.0.1", metrics), DEADLINE) as sock:
            sock.sendall(b"x" * 100_000)
            with suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        assert get(metrics)[0] == 200


def test_metrics_are_nowhere_to_be_found_unless_asked_for() -> None:
    from codius_node.config import load

    assert load({}).dns_metrics is None
    assert load({}).dns_query_log is False
