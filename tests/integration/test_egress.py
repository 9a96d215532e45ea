"""Rules changed while pods run: checked first, the kernel before the store, the old ones on any failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from codius_netpolicy.policy import Egress, EgressMode, Policy
from codius_node import config
from codius_node.egress import EGRESS_SETTING, EgressRules, RulesError, find_egress
from codius_node.errors import NetworkError, RequestError, StoreError
from codius_node.model import Json
from codius_node.policy import Origin, build_policy
from tests.harness.engine import World, open_world

LISTED: dict[str, Json] = {
    "mode": "listed",
    "deniedRanges": [],
    "allowedRanges": ["203.0.113.0/24"],
    "deniedPorts": [],
    "allowedPorts": ["tcp/443"],
}
OWN = Egress.from_document({"deniedPorts": ["tcp/6667"]})
POLICY = build_policy(config.load({"CODIUS_POD_DENIED_PORTS": "tcp/6667"}))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        world.network.policy = POLICY
        yield world


def rules_of(world: World, chosen: Egress | None = None) -> EgressRules:
    return EgressRules(network=world.network, store=world.store, own=OWN, chosen=chosen, clock=world.clock)


async def test_rules_set_at_run_time_are_in_force_and_outlive_a_restart(world: World) -> None:
    rules = rules_of(world)
    world.network.cut = 4
    assert await rules.change(LISTED) == 4
    assert rules.policy.egress == Egress.from_document(LISTED)
    assert rules.origin is Origin.RUN_TIME
    assert await find_egress(world.store, POLICY) == rules.policy.egress


async def test_a_reset_goes_back_to_the_settings_for_good(world: World) -> None:
    rules = rules_of(world)
    await rules.change(LISTED)
    await rules.reset()
    assert (rules.policy.egress, rules.origin) == (OWN, Origin.SETTINGS)
    assert await find_egress(world.store, POLICY) is None
    await rules.reset()


async def test_rules_are_refused_before_anything_is_touched(world: World) -> None:
    rules = rules_of(world)
    with pytest.raises(RequestError, match="'shut'"):
        await rules.change({"mode": "shut"})
    with pytest.raises(RequestError, match=r"10\.77\.0\.0/20"):
        await rules.change({"allowedRanges": ["10.77.0.0/20"]})
    assert world.diary.take() == []
    assert (rules.policy.egress, rules.origin) == (OWN, Origin.SETTINGS)


async def test_what_the_kernel_does_not_take_is_not_kept(world: World) -> None:
    rules = rules_of(world)
    await rules.change(LISTED)
    world.diary.fails["change"] = NetworkError("no memory for a set", hint="Buy some.")
    with pytest.raises(RulesError, match="the old ones are in force: no memory for a set") as caught:
        await rules.change({"mode": "open"})
    assert caught.value.hint == "Buy some."
    assert rules.policy.egress.mode is EgressMode.LISTED
    assert await find_egress(world.store, POLICY) == Egress.from_document(LISTED)


@pytest.mark.parametrize("method", ["set_setting", "remove_setting"])
async def test_what_cannot_be_kept_is_not_left_in_force(
    method: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    rules = rules_of(world)
    if method == "remove_setting":
        await rules.change(LISTED)
    before = rules.policy.egress, rules.origin
    monkeypatch.setattr(world.store, method, full)
    with pytest.raises(RulesError, match="the old ones are in force again: the disk is full"):
        await (rules.change(LISTED) if method == "set_setting" else rules.reset())
    assert (rules.policy.egress, rules.origin) == before


async def test_rules_that_can_be_neither_kept_nor_taken_back_are_told_as_such(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        world.diary.fails["change"] = NetworkError("busy")
        raise StoreError("the disk is full")

    rules = rules_of(world)
    monkeypatch.setattr(world.store, "set_setting", full)
    with pytest.raises(RulesError, match="they end with the node: the disk is full"):
        await rules.change(LISTED)
    assert rules.policy.egress == Egress.from_document(LISTED)


async def test_changes_at_once_end_with_the_same_rules_in_kernel_and_store(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, turns = world.store.set_setting, iter(range(20, 0, -1))

    async def save_slowly(key: str, value: Json, now: datetime) -> None:
        for _turn in range(next(turns)):  # whoever comes first takes longest
            await asyncio.sleep(0)
        await save(key, value, now)

    monkeypatch.setattr(world.store, "set_setting", save_slowly)
    rules = rules_of(world)
    documents: list[dict[str, Json]] = [{"deniedPorts": [f"tcp/{port}"]} for port in range(1, 9)]
    await asyncio.gather(*map(rules.change, documents), rules.reset(), *map(rules.change, documents))
    assert rules.origin is Origin.RUN_TIME
    assert await find_egress(world.store, POLICY) == rules.policy.egress


@pytest.mark.parametrize(
    "saved", ["listed", [], {"mode": "shut"}, {"colour": "red"}, {"allowedRanges": ["10.77.4.0/24"]}]
)
async def test_kept_rules_that_can_no_longer_be_used_are_told_and_left_alone(
    saved: Json, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.store.set_setting(EGRESS_SETTING, saved, now=world.clock())
    assert await find_egress(world.store, POLICY) is None
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "those of the settings are in force" in record.getMessage()
    assert await world.store.get_setting(EGRESS_SETTING) == saved


async def test_a_policy_without_kept_rules_says_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    assert await find_egress(world.store, Policy()) is None
    assert caplog.records == []
