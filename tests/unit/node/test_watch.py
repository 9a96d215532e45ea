"""The watch over the pods' network: what is changed is repaired, counted and told once; loops go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from codius_netpolicy.policy import Policy
from codius_node.errors import NetworkError, StoreError
from codius_node.noop import NoopNetwork
from codius_node.policy import Repair, Repairs
from codius_node.watch import NetworkWatch

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GONE = ("the nftables table is gone",)
OFTEN = 0.0001
NEVER = 3600.0


class TouchedNetwork(NoopNetwork):
    """A network that others touch: `problems` are what the next looks find, the last for ever."""

    def __init__(self, *problems: tuple[str, ...] | Exception) -> None:
        super().__init__(Policy())
        self.problems = list(problems)
        self.looks = 0
        self.looked = asyncio.Event()
        self.repaired = 0
        self.error: Exception | None = None

    async def check(self) -> tuple[str, ...]:
        self.looks += 1
        found = self.problems.pop(0) if len(self.problems) > 1 else self.problems[0]
        if len(self.problems) == 1 and self.looks > 5:
            self.looked.set()
        if isinstance(found, Exception):
            raise found
        return found

    async def repair(self) -> None:
        if self.error:
            raise self.error
        self.repaired += 1


async def nothing() -> None: ...


def watch_over(
    network: TouchedNetwork, bank: Callable[[], Awaitable[None]] = nothing, **seconds: float
) -> NetworkWatch:
    often = {"check_seconds": NEVER, "bank_seconds": NEVER} | seconds
    return NetworkWatch(network=network, bank=bank, clock=lambda: NOON, **often)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_what_is_as_we_made_it_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    network = TouchedNetwork(())
    watch = watch_over(network)
    await watch.check()
    assert (network.repaired, watch.repairs, messages(caplog)) == (0, Repairs(), [])


async def test_what_others_changed_is_repaired_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    network = TouchedNetwork(GONE, (), ("the routing wall was changed", "forwarding was switched off"), ())
    watch = watch_over(network)
    for _look in range(4):
        await watch.check()
    assert network.repaired == 2
    assert watch.repairs == Repairs(
        2, Repair(NOON, ("the routing wall was changed", "forwarding was switched off"))
    )
    assert messages(caplog) == [
        "the pods' network was changed by others: the nftables table is gone; repairing it",
        "the pods' network is repaired, number 1 since the start",
        "the pods' network was changed by others: the routing wall was changed; forwarding was switched off;"
        " repairing it",
        "the pods' network is repaired, number 2 since the start",
    ]


async def test_what_somebody_keeps_changing_is_repaired_each_time_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = TouchedNetwork(GONE)
    watch = watch_over(network)
    for _look in range(5):
        await watch.check()
    assert network.repaired == watch.repairs.count == 5
    assert len(messages(caplog)) == 2


@pytest.mark.parametrize(
    "error", [NetworkError("netlink is busy", hint="Wait."), ZeroDivisionError("surprise")]
)
async def test_no_error_ends_the_look_and_each_is_told_once(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    network = TouchedNetwork(error, error, error, ())
    watch = watch_over(network, check_seconds=OFTEN)
    watch.start()
    await network.looked.wait()
    await watch.aclose()
    [message] = messages(caplog)
    assert message.startswith("the pods' network cannot be checked")


async def test_an_error_that_comes_back_after_all_was_well_is_told_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = TouchedNetwork(NetworkError("busy"), (), NetworkError("busy"), ())
    watch = watch_over(network, check_seconds=OFTEN)
    watch.start()
    await network.looked.wait()
    await watch.aclose()
    assert len(messages(caplog)) == 2


async def test_a_repair_that_fails_is_tried_again_and_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    network = TouchedNetwork(GONE)
    network.error = NetworkError("no memory for a table")
    watch = watch_over(network, check_seconds=OFTEN)
    watch.start()
    await network.looked.wait()
    assert watch.repairs.count == network.repaired == 0
    assert messages(caplog) == [
        "the pods' network was changed by others: the nftables table is gone; repairing it",
        "the pods' network cannot be checked: no memory for a table. ",
    ]
    network.error = None
    network.looked.clear()
    await network.looked.wait()
    await watch.aclose()
    assert watch.repairs.count == network.repaired > 0


async def test_traffic_is_kept_now_and_then_and_a_last_time(caplog: pytest.LogCaptureFixture) -> None:
    kept = 0
    often = asyncio.Event()

    async def bank() -> None:
        nonlocal kept
        kept += 1
        if kept == 3:
            often.set()
            raise StoreError("the disk is full")

    watch = watch_over(TouchedNetwork(()), bank, bank_seconds=OFTEN)
    watch.start()
    await often.wait()
    before = kept
    await watch.aclose()
    assert kept > before
    assert messages(caplog) == ["the pods' traffic cannot be kept: the disk is full. "]


async def test_a_last_time_that_fails_does_not_keep_the_node_from_stopping(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def bank() -> None:
        raise StoreError("the disk is full")

    watch = watch_over(TouchedNetwork(()), bank)
    watch.start()
    await watch.aclose()
    assert messages(caplog) == ["the pods' traffic since the last look is not kept: the disk is full"]


async def test_the_loops_have_names_and_end(caplog: pytest.LogCaptureFixture) -> None:
    watch = watch_over(TouchedNetwork(()))
    watch.start()
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert {"network-check", "traffic-bank"} <= names
    await watch.aclose()
    assert not {"network-check", "traffic-bank"} & {task.get_name() for task in asyncio.all_tasks()}
