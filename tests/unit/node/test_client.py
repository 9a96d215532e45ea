"""What the client decides by itself: hosts' addresses, names below localhost, lines of logs."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node import client
from codius_node.errors import CodiusError
from codius_node.model import LogLine


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://codius.localhost:3000", "http://codius.localhost:3000"),
        ("https://Codius.Example.com/", "https://codius.example.com"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_a_host_is_an_origin(text: str, origin: str) -> None:
    assert str(client.parse_host(text)) == origin


@pytest.mark.parametrize("text", ["http://codius.localhost:0", "https://a.example:00", "https://[::1]:0/"])
def test_port_0_is_nowhere(text: str) -> None:
    with pytest.raises(CodiusError, match="is not the address of a host"):
        client.parse_host(text)


@given(st.text(max_size=60))
def test_any_text_is_a_host_or_an_error_with_a_hint(text: str) -> None:
    try:
        url = client.parse_host(text)
    except CodiusError as error:
        hint = error.hint
    else:
        hint = url.host
    assert hint


@pytest.mark.parametrize("name", ["localhost", "a.b.localhost", "CODIUS.Localhost."])
async def test_names_below_localhost_are_this_machine(name: str) -> None:
    resolver = client.LoopbackResolver()
    found = await resolver.resolve(name, 80, socket.AF_UNSPEC)
    assert [entry["host"] for entry in found] == ["127.0.0.1", "::1"]
    assert [entry["host"] for entry in await resolver.resolve(name, 80, socket.AF_INET)] == ["127.0.0.1"]
    await resolver.close()


async def test_other_names_are_asked_of_the_system() -> None:
    resolver = client.LoopbackResolver()
    [entry] = await resolver.resolve("127.0.0.2", 80, socket.AF_INET)
    assert entry["host"] == "127.0.0.2"
    await resolver.close()


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b"web stdout hello  world", LogLine("web", "stdout", "hello  world")),
        (b"web stderr ", LogLine("web", "stderr", "")),
        (b"web stderr", LogLine("web", "stderr", "")),
        (b"ping", LogLine("", "", "ping")),
        (b"a b c", LogLine("", "", "a b c")),
        (b"web stdout \xff", LogLine("web", "stdout", "\ufffd")),
    ],
)
def test_a_line_of_a_log_is_taken_apart(raw: bytes, line: LogLine) -> None:
    assert client.parse_log_line(raw) == line


@given(st.binary())
def test_no_line_of_a_log_breaks_the_reader(raw: bytes) -> None:
    client.parse_log_line(raw)
