"""A whole node with containers and kernel left alone: its policy by the admin socket, over restarts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest

from codius_node import admin_client
from codius_node.config import Settings, load
from codius_node.daemon import open_node
from codius_node.errors import CodiusError, SettingsError
from codius_node.model import Json
from codius_node.policy import Origin
from tests.harness.engine import make_upload

RULES: Mapping[str, Json] = {"mode": "listed", "allowedRanges": ["203.0.113.0/24"]}


def settings_in(directory: Path, **more: str) -> Settings:
    return load(
        {"CODIUS_HYPER_NOOP": "true", "CODIUS_ROOT": str(directory / "root"), "CODIUS_RUN": str(directory)}
        | more
    )


async def test_rules_set_at_run_time_come_back_after_a_restart_until_they_are_reset(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, CODIUS_POD_DENIED_PORTS="tcp/6667")
    socket = settings.admin_socket
    async with open_node(settings):
        report, _ = await admin_client.get_policy(socket)
        assert (report.origin, [str(p) for p in report.egress.denied_ports]) == (
            Origin.SETTINGS,
            ["tcp/6667"],
        )
        change = await admin_client.set_egress(socket, RULES)
        assert (change.cut, change.report.egress.as_document()["mode"]) == (0, "listed")
    async with open_node(settings):
        report, _ = await admin_client.get_policy(socket)
        assert report.origin is Origin.RUN_TIME
        assert report.egress.as_document()["allowedRanges"] == ["203.0.113.0/24"]
        assert (await admin_client.reset_egress(socket)).report.origin is Origin.SETTINGS
    async with open_node(settings):
        report, _ = await admin_client.get_policy(socket)
        assert (report.origin, [str(p) for p in report.egress.denied_ports]) == (
            Origin.SETTINGS,
            ["tcp/6667"],
        )


async def test_bad_rules_are_refused_in_words_and_the_old_ones_stay(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with open_node(settings):
        with pytest.raises(CodiusError, match="tcp/99999"):
            await admin_client.set_egress(settings.admin_socket, {"deniedPorts": ["tcp/99999"]})
        report, _ = await admin_client.get_policy(settings.admin_socket)
        assert report.origin is Origin.SETTINGS


async def test_settings_that_do_not_go_together_stop_the_start_before_anything_is_made(
    tmp_path: Path,
) -> None:
    settings = settings_in(tmp_path, CODIUS_POD_RESOLVERS="10.77.0.1")
    with pytest.raises(SettingsError, match="CODIUS_POD_RESOLVERS"):
        async with open_node(settings):
            pass
    assert not settings.root.exists()


async def test_a_pod_is_listed_with_its_traffic_and_can_be_probed(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with open_node(settings) as node:
        pod = await node.engine.upload(make_upload(), 600, token=None)
        [listing] = await admin_client.list_pods(settings.admin_socket)
        assert (listing.hash, listing.sent, listing.received, listing.refused) == (pod.hash, 0, 0, 0)
        answers, document = await admin_client.probe(settings.admin_socket, pod.hash)
        assert (answers, json.dumps(document)) == ([], '{"ok": true, "probes": []}')


async def test_what_goes_on_in_the_background_lives_as_long_as_the_node(tmp_path: Path) -> None:
    background = {"network-check", "traffic-bank", "peers", "selftest-daily"}

    def loops() -> set[str]:
        return {task.get_name() for task in asyncio.all_tasks()} & background

    async with open_node(settings_in(tmp_path)):
        assert loops() == background
    assert loops() == set()


async def test_hosts_known_from_the_start_are_told_and_a_selftest_is_made_by_the_admin_socket(
    tmp_path: Path,
) -> None:
    settings = settings_in(
        tmp_path,
        CODIUS_BOOTSTRAP_PEERS="https://a.example, http://plain.example",
        CODIUS_PUBLIC_URI="http://codius.localhost:1",
    )
    async with open_node(settings) as node:
        assert await node.store.peers() == {"https://a.example": 0}
        report, document = await admin_client.run_selftest(settings.admin_socket)
        assert report.success is False
        assert {step.name: step.verdict.value for step in report.steps} == {
            "names": "passed",
            "front door": "failed",
            "sample": "unchecked",
            "upload": "unchecked",
            "visit": "unchecked",
            "websocket": "unchecked",
        }
        assert document["success"] is False
        assert await tell_info(settings) == (False, ["https://a.example"])
    async with open_node(settings):  # what the test found is known from the start
        assert await tell_info(settings) == (False, ["https://a.example"])


async def tell_info(settings: Settings) -> tuple[object, object]:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(settings.api_socket))) as client,
        client.get("http://codius.localhost:1/info?requestPeers=true") as answer,
    ):
        info = await answer.json()
    return info["selfTestSuccess"], info["peers"]
