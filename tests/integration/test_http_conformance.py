"""Every requirement of the table, over real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from codius_proxy.routes import Target
from tests.harness.front import POD, ZONE, front, name
from tests.harness.origin import DEADLINE, Line, origin
from tests.integration.http_requirements import REQUIREMENTS
from tests.integration.http_requirements.others import ELSEWHERE, Elsewhere
from tests.integration.http_requirements.row import Requirement

TESTS = Path(__file__).parents[1]
LAST = f"GET /last HTTP/1.1\r\nHost: {ZONE}\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize("row", REQUIREMENTS, ids=lambda row: f"{row.section}: {row.says}")
async def test_the_front_door_does_what_http_demands(row: Requirement) -> None:
    seen: list[bytes] = []

    async def script(line: Line) -> None:
        while (request := await line.read_request()) is not None:
            answer = row.pod_answers[len(seen)] if row.pod_answers else row.pod
            seen.append(request.head + request.body)
            await line.send(answer)
            if row.pod_ends or not answer:
                return

    host = name().encode()
    async with origin(script) as pod, front({POD: pod.port}) as proxy:
        client = await proxy.client()
        await client.send(row.visitor.replace(b"{host}", host) + LAST)
        async with asyncio.timeout(DEADLINE):
            got = await client.reader.read()
        asked = b"".join(seen)
        went_on = bool(proxy.api.requests) and got.endswith(b"api")
        connections = pod.connections
    at = 0
    for expected in row.visitor_gets:
        found = got.find(expected.replace(b"{host}", host), 0 if b"\r\n" in expected else at)
        assert found >= 0, f"the visitor did not get {expected!r}: {got!r}"
        at = max(at, found)
    answers = got[: got.rindex(b"HTTP/1.1 200 ")] if went_on else got  # the last one is the API's
    for unexpected in row.visitor_misses:
        assert unexpected not in answers
    for expected in row.pod_gets:
        assert expected.replace(b"{host}", host) in asked
    for unexpected in row.pod_misses:
        assert unexpected not in asked
    assert bool(connections) is row.reaches_pod, asked
    if row.pod_connections is not None:
        assert connections == row.pod_connections
    assert went_on is row.goes_on, got
    assert b"/last" not in asked, "the pod was sent a request of somebody else's"


@pytest.mark.parametrize("kept", ELSEWHERE, ids=lambda kept: f"{kept.section}: {kept.says}")
def test_what_another_test_is_to_keep_has_that_test(kept: Elsewhere) -> None:
    path, _, found = kept.test.partition("::")
    assert f"def {found}(" in (TESTS / path).read_text()


async def test_a_request_that_comes_back_to_us_does_not_go_round_for_ever() -> None:
    """No target of the node's is the front door. Were one, each round would add to Via, up to the bound."""
    async with front() as proxy:
        proxy.feed.add(POD, Target("127.0.0.1", proxy.port))
        async with asyncio.timeout(DEADLINE):
            while (answer := await proxy.get(name())).status == 404:
                pass  # the feed has not told yet
        assert answer.status == 431
        assert (await proxy.get(ZONE)).body == b"api"
