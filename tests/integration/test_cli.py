"""The command against a host on a real socket: what people read, what scripts get, what goes wrong."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web

from codius_netpolicy.policy import Egress, EgressMode
from codius_netpolicy.probes import Result, Verdict
from codius_netpolicy.traffic import Reason
from codius_node import cli, selftest
from codius_node.client import NO_HOST_HINT
from codius_node.manifest import hash_manifest, parse
from tests.harness.certificates import make_contexts
from tests.harness.origin import origin as open_origin
from tests.harness.serving import serving
from tests.integration.engine_double import NOON, NodeDouble
from tests.integration.host_double import EXPIRY, REFUSAL, HostDouble, admin_app
from tests.integration.registry_double import RegistryDouble

IMAGE: Final = "nginx@sha256:" + "0" * 63 + "1"
MANIFEST: Final[dict[str, Any]] = {
    "name": "hello",
    "version": "1.0.0",
    "machine": "small",
    "port": "8080",
    "containers": [{"id": "app", "image": IMAGE}],
}
HASH: Final = str(hash_manifest(MANIFEST))
PRIVATE: Final = {"vars": {"private": {"S": {"value": "shh-secret"}}, "public": {"P": {"value": "seen"}}}}
SECONDS: Final = 30


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def host() -> HostDouble:
    return HostDouble()


@pytest.fixture
def origin(host: HostDouble, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(host.app()) as port:
        # Below localhost, so that every test is one of our own resolver too.
        origin = f"http://host.codius.localhost:{port}"
        monkeypatch.setenv("CODIUS_HOST_URI", origin)
        yield origin


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        status = cli.main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "codius.json", {"manifest": MANIFEST})


def with_environment(environment: dict[str, str]) -> dict[str, Any]:
    return {**MANIFEST, "containers": [{"id": "app", "image": IMAGE, "environment": environment}]}


def only_json(out: str) -> dict[str, Any]:
    assert out.count("\n") == 1
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


# ---- upload ---------------------------------------------------------------------------------------


def test_an_upload_tells_its_steps_and_where_the_pod_is(run: Run, file: Path, origin: str) -> None:
    status, out, err = run("upload", file, "--duration", "2h")
    assert status == 0
    assert err == "pulling web\nstarting\n"
    assert f"http://{HASH}." in out.splitlines()[0]
    assert f"codiusd extend {HASH}" in out
    assert HASH in out
    assert re.search(r"until   20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \w+ \(\d+ d \d+ h from now\)", out)
    assert 'does not say "debug": true' in out


def test_an_upload_asks_for_the_price_first_and_sends_a_fresh_token_each_time(
    run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    run("upload", file, "--duration", "90s", "--json")
    assert [(method, path) for method, path, _, _ in host.requests] == [
        ("OPTIONS", "/pods?duration=90"),
        ("POST", "/pods?duration=90&progress=true"),
    ]
    tokens = [headers["Pay-Token"] for _, _, headers, _ in host.requests]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", token) for token in tokens)
    assert len(set(tokens)) == 2
    assert host.find("POST")[2]["Accept"] == "application/codius-v1+json"
    assert host.find("POST")[2]["Content-Type"] == "application/json"


def test_an_upload_for_scripts_is_one_object_and_nothing_else(run: Run, file: Path, origin: str) -> None:
    status, out, err = run("upload", file, "--json")
    answer = only_json(out)
    assert (status, err) == (0, "")
    assert (answer["manifestHash"], answer["expiry"], answer["images"]) == (HASH, EXPIRY, {})


def test_a_host_that_does_not_stream_is_fine_too(run: Run, file: Path, origin: str, host: HostDouble) -> None:
    host.streams = False
    status, out, _ = run("upload", file, "--json")
    assert (status, only_json(out)["manifestHash"]) == (0, HASH)


def test_a_host_that_refuses_to_know_progress_is_asked_without(
    run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    host.knows_progress = False
    status, out, _ = run("upload", file, "--json")
    assert (status, only_json(out)["manifestHash"]) == (0, HASH)
    assert host.find("POST")[1] == "/pods?duration=3600"


def test_variables_beside_codius_json_go_along(run: Run, file: Path, origin: str, host: HostDouble) -> None:
    document = {
        **MANIFEST,
        "containers": [{"id": "app", "image": IMAGE, "environment": {"A": "$S", "B": "$P"}}],
    }
    write(file, {"manifest": document})
    write(file.with_name("codiusvars.json"), PRIVATE)
    status, out, err = run("upload", file)
    assert status == 0
    sent = json.loads(host.find("POST")[3])
    assert sent["private"]["vars"]["S"]["value"] == "shh-secret"
    assert sent["manifest"]["vars"]["P"] == {"value": "seen"}
    assert sent["manifest"]["vars"]["S"]["encoding"] == "private:sha256"
    assert "shh-secret" not in out + err + json.dumps(sent["manifest"])


def test_a_quote_keeps_private_values_here(run: Run, file: Path, origin: str, host: HostDouble) -> None:
    document = with_environment({"A": "$S"})
    write(file, {"manifest": document})
    write(file.with_name("codiusvars.json"), PRIVATE)
    assert run("quote", file)[0] == 0
    assert b"shh-secret" not in host.find("OPTIONS")[3]


def test_what_was_uploaded_can_be_saved_and_extended(
    run: Run, file: Path, origin: str, host: HostDouble, tmp_path: Path
) -> None:
    document = with_environment({"A": "$S"})
    write(file, {"manifest": document})
    write(file.with_name("codiusvars.json"), PRIVATE)
    saved = tmp_path / "saved.json"
    _, out, _ = run("upload", file, "--save", saved, "--json")
    assert saved.stat().st_mode & 0o777 == 0o600
    assert only_json(run("extend", saved, "--json")[1])["manifestHash"] == only_json(out)["manifestHash"]
    status, _, err = run("extend", file)
    assert (status, "--save" in err) == (1, True)
    status, _, err = run("upload", file, "--save", saved)
    assert (status, "cannot be written" in err) == (1, True)


def test_a_complete_file_is_sent_as_it_is(run: Run, tmp_path: Path, origin: str, host: HostDouble) -> None:
    file = write(tmp_path / "pod.json", {"manifest": MANIFEST, "private": {}})
    write(tmp_path / "codiusvars.json", PRIVATE)
    assert run("upload", file)[0] == 0
    assert json.loads(host.find("POST")[3]) == {"manifest": MANIFEST, "private": {}}


# ---- refused before anything is sent --------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not JSON"),
        (b"", "is empty"),
        (b'{"manifest": {}, "manifest": {}}', "manifest"),
        (b"[]", "codius.json"),
        (json.dumps({"manifest": {**MANIFEST, "port": "99999"}}).encode(), "manifest.port"),
        (json.dumps({"manifest": {**MANIFEST, "colour": "red"}}).encode(), "colour"),
        (b" " * 2_000_000, "larger than"),
        (
            json.dumps(
                {"manifest": {**MANIFEST, "containers": [
                    {"id": "app", "image": IMAGE, "environment": {"CODIUS_X": "1"}}]}}
            ).encode(),
            "reserved",
        ),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_before_the_host_hears_of_it(
    content: bytes, said: str, run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    file.write_bytes(content)
    status, out, err = run("upload", file)
    assert (status, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
    assert host.requests == []


def test_a_missing_file_is_named(run: Run, tmp_path: Path, origin: str) -> None:
    status, _, err = run("upload", tmp_path / "nowhere.json")
    assert status == 1
    assert "nowhere.json cannot be read: No such file" in err


# ---- hosts that answer otherwise ------------------------------------------------------------------


def test_a_refusal_is_told_with_its_hint(run: Run, file: Path, origin: str, host: HostDouble) -> None:
    host.error = REFUSAL
    status, out, err = run("upload", file)
    assert (status, out) == (1, "")
    assert err == "codiusd: no room -- Wait.\n"


def test_a_refusal_for_scripts_is_one_object(run: Run, file: Path, origin: str, host: HostDouble) -> None:
    host.error = REFUSAL
    status, out, _ = run("upload", file, "--json")
    assert status == 1
    assert only_json(out) == {"error": {"message": "no room", "hint": "Wait.", "statusCode": 503}}


def test_an_error_at_the_end_of_the_stream_is_told(
    run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    host.stream_error = {"statusCode": 422, "message": "the pod ended at once", "hint": "Look."}
    status, _, err = run("upload", file)
    assert status == 1
    assert err.splitlines()[-1] == "codiusd: the pod ended at once -- Look."


@pytest.mark.parametrize("way", ["breaks_stream", "ends_early"])
def test_an_interrupted_stream_says_how_to_find_out(
    way: str, run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    setattr(host, way, True)
    status, out, err = run("upload", file)
    assert (status, out) == (1, "")
    assert f"codiusd pods {HASH}" in err


def test_a_host_that_answers_another_hash_is_not_sent_the_pod(
    run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    host.hash = "b" * 52
    status, _, err = run("upload", file)
    assert status == 1
    assert "b" * 52 in err
    assert HASH in err
    assert [request[0] for request in host.requests] == ["OPTIONS"]


def test_a_host_that_wants_to_be_paid_is_told_of_with_its_price(
    run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    host.error = {"statusCode": 402, "message": "Payment Required"}
    status, _, err = run("upload", file, "-d", "1m")
    assert status == 1
    assert "12 base units of DEV for 60 s by Interledger, which this client cannot pay yet" in err


def test_an_extension_that_has_to_be_paid_is_told_of(
    run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    host.error = {"statusCode": 402, "message": "Payment Required"}
    status, _, err = run("extend", HASH)
    assert status == 1
    assert "by Interledger" in err


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, "text/html", b"<html>"), "not a JSON object"),
        ((200, "application/json", b"[1]"), "not a JSON object"),
        ((200, "application/json", b"[" * 100_000), "not a JSON object"),
        ((200, "application/json", b" " * 5_000_000), "more than"),
        ((500, "text/html", b"oops"), "answered 500"),
        ((400, "application/json", b'{"message": 5}'), "answered 400"),
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error(
    answer: tuple[int, str, bytes], said: str, run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    host.raw = answer
    status, _, err = run("upload", file)
    assert (status, said in err) == (1, True), err


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("price", "-1"), ("price", 5), ("expiry", "soon"), ("url", "javascript:alert(1)"), ("url", 5)],
)
def test_each_part_of_an_answer_is_checked(
    attribute: str, value: object, run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    setattr(host, attribute, value)
    assert run("upload", file)[0] == 1


def test_a_redirect_is_told_and_not_followed(run: Run, file: Path, origin: str, host: HostDouble) -> None:
    host.location = "https://elsewhere.example/"
    status, _, err = run("upload", file)
    assert status == 1
    assert "https://elsewhere.example/" in err


def test_what_a_terminal_would_obey_is_taken_out_of_a_hosts_words(
    run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    host.error = {"statusCode": 503, "message": "a\x1b]0;b\x07c\x9b"}
    host.progress = ["\x1b[2J"]
    _, _, err = run("upload", file)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", err)


@pytest.mark.parametrize("command", ["quote", "upload", "extend", "logs", "pods"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, "text/html", b"<h1>Welcome to nginx!</h1>"), "Is that a Codius host?"),
        (
            (404, "text/html", b"<h1>404 Not Found</h1>"),
            "answered 404 and did not say why -- Is that a Codius",
        ),
        ((502, "text/html", b"<h1>Bad Gateway</h1>"), "answered 502 and did not say why -- Try again later"),
    ],
)
def test_something_else_at_the_hosts_address_is_told_with_what_to_do(
    command: str,
    answer: tuple[int, str, bytes],
    said: str,
    run: Run,
    file: Path,
    origin: str,
    host: HostDouble,
) -> None:
    host.raw = answer
    status, out, err = run(command, HASH if command in {"logs", "pods", "extend"} else file)
    assert (status, out) == (1, "")
    assert f"codiusd: {origin} answer" in err
    assert said in err


def test_a_certificate_nobody_vouches_for_is_told_in_words(run: Run, file: Path, tmp_path: Path) -> None:
    serving_context, _ = make_contexts(tmp_path, "another.example")
    with serving(HostDouble().app(), tls=serving_context) as port:
        status, _, err = run("quote", file, "--host", f"https://codius.localhost:{port}")
        assert status == 1
        assert (
            "its certificate is not valid (unable to get local issuer certificate) -- Nothing was sent" in err
        )
        status, _, err = run("quote", file, "--host", f"http://codius.localhost:{port}")
        assert status == 1
        assert "hung up without an answer -- Try again; or does it want https:// in front?" in err


def test_tls_asked_of_a_host_without_it_is_told_in_words(run: Run, file: Path, origin: str) -> None:
    status, _, err = run("quote", file, "--host", origin.replace("http:", "https:"))
    assert status == 1
    assert "cannot be reached: it does not speak TLS (" in err
    assert "A host without TLS has http:// in front." in err


async def test_what_is_no_http_is_told_without_its_own_words(run: Run, file: Path) -> None:
    async with open_origin(answer=b"SSH-2.0-OpenSSH_9.2\r\n") as server:
        host = f"http://codius.localhost:{server.port}"
        status, _, err = await asyncio.to_thread(run, "quote", file, "--host", host)
    assert status == 1
    assert err.endswith(f"what answers at {host} does not speak HTTP -- {NO_HOST_HINT}\n")


def test_a_host_that_is_away_is_named(run: Run, file: Path) -> None:
    status, _, err = run("upload", file, "--host", "http://codius.localhost:1")
    assert status == 1
    assert "http://codius.localhost:1 cannot be reached: Connection refused -- Is" in err


@pytest.mark.parametrize("host", ["codius.example.com", "ftp://x", "http://", "http://x/path", "http://u@x"])
def test_what_is_no_host_is_refused(host: str, run: Run, file: Path) -> None:
    status, _, err = run("upload", file, "--host", host)
    assert (status, "is not the address of a host" in err) == (1, True)


# ---- the other commands ---------------------------------------------------------------------------


def test_a_quote_is_a_price_with_its_currency(run: Run, file: Path, origin: str) -> None:
    assert run("quote", file, "--duration", "1d")[:2] == (
        0,
        f"12 base units of DEV for 1 d\n  hash  {HASH}\n",
    )
    assert only_json(run("quote", file, "--json")[1]) == {
        "manifestHash": HASH,
        "duration": 3600,
        "price": "12",
        "currency": "DEV",
    }


def test_a_price_is_shown_in_whole_units_too_by_what_a_month_costs(
    run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    host.cost_per_month = 10
    assert run("quote", file)[1].startswith("12 base units of DEV (about 0.0137 DEV) for 1 h\n")
    for nonsense in (-1, True, "10", 10**15, 1e300, None):
        host.cost_per_month = nonsense
        assert run("quote", file)[1].startswith("12 base units of DEV for 1 h\n")


def test_a_host_without_a_currency_still_has_a_price(
    run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    host.currency = {"\x1b": 5}
    assert run("quote", file)[1].startswith("12 base units for 1 h\n")


def test_a_pod_is_extended_by_its_hash(run: Run, origin: str, host: HostDouble) -> None:
    status, out, _ = run("extend", HASH, "--duration", "7d")
    assert (status, "Extended:" in out) == (0, True)
    assert host.find("PUT")[1] == f"/pods?manifestHash={HASH}&duration=604800"
    assert host.find("PUT")[3] == b""
    assert only_json(run("extend", HASH, "--json")[1])["expiry"] == EXPIRY


def test_a_pod_is_extended_by_its_file(run: Run, file: Path, origin: str, host: HostDouble) -> None:
    assert run("extend", file)[0] == 0
    assert host.find("PUT")[1] == f"/pods?manifestHash={HASH}&duration=3600"


def test_an_extension_says_of_what_when_it_is_neither_hash_nor_file(run: Run, tmp_path: Path) -> None:
    status, _, err = run("extend", "codius.jsn")
    assert status == 1
    assert '"codius.jsn" is neither a pod\'s hash nor a file -- A hash is 52 characters' in err


def test_logs_that_a_manifest_closes_are_not_offered(
    run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    host.manifests[HASH] = MANIFEST
    for command in (("upload", file), ("extend", file), ("pods", HASH)):
        assert "logs    closed" in run(*command)[1]
    open_one = {**MANIFEST, "debug": True}
    hash = str(hash_manifest(open_one))
    host.manifests[hash] = open_one
    write(file, {"manifest": open_one})
    for command in (("upload", file), ("extend", file), ("pods", hash), ("extend", HASH)):
        assert "logs    codiusd logs" in run(*command)[1]


def test_an_extension_answered_for_another_pod_is_refused(run: Run, origin: str, host: HostDouble) -> None:
    host.hash = "b" * 52
    assert run("extend", HASH)[0] == 1


def test_a_pod_is_shown_by_its_hash(run: Run, origin: str, host: HostDouble) -> None:
    host.manifests[HASH] = MANIFEST
    assert "runs at" in run("pods", HASH)[1]
    assert only_json(run("pods", HASH, "--json")[1])["manifest"] == MANIFEST


def test_a_host_that_shows_another_manifest_under_the_hash_is_found_out(
    run: Run, origin: str, host: HostDouble
) -> None:
    host.manifests[HASH] = {**MANIFEST, "name": "another"}
    status, _, err = run("pods", HASH)
    assert (status, "does not have the hash" in err) == (1, True)


def test_logs_are_lines_as_the_host_sent_them(run: Run, origin: str, host: HostDouble) -> None:
    status, out, _ = run("logs", HASH)
    assert status == 0
    assert out.encode() == host.log
    assert host.find("GET")[1] == f"/pods/{HASH}/logs"


def test_logs_are_followed(run: Run, origin: str, host: HostDouble) -> None:
    assert run("logs", HASH, "-f")[0] == 0
    assert host.find("GET")[1] == f"/pods/{HASH}/logs?follow=true"


def test_logs_for_scripts_are_one_object_or_one_for_each_line(
    run: Run, origin: str, host: HostDouble
) -> None:
    host.log = b"web stdout hello\nping\n"
    lines = [
        {"container": "web", "stream": "stdout", "text": "hello"},
        {"container": "", "stream": "", "text": "ping"},
    ]
    assert only_json(run("logs", HASH, "--json")[1]) == {"manifestHash": HASH, "lines": lines}
    assert [json.loads(line) for line in run("logs", HASH, "-f", "--json")[1].splitlines()] == lines


def test_logs_that_may_not_be_read_are_refused_in_the_hosts_words(
    run: Run, origin: str, host: HostDouble
) -> None:
    host.error = {"statusCode": 403, "message": "no debug", "hint": 'Set "debug": true.'}
    status, _, err = run("logs", HASH)
    assert (status, err) == (1, 'codiusd: no debug -- Set "debug": true.\n')


def test_a_log_that_breaks_off_is_an_error_after_its_lines(run: Run, origin: str, host: HostDouble) -> None:
    host.breaks_log = True
    status, out, err = run("logs", HASH)
    assert (status, out.splitlines()[0]) == (1, "web stdout hello")
    assert "broke" in err


def test_a_line_without_an_end_is_cut_into_pieces(run: Run, origin: str, host: HostDouble) -> None:
    host.log = b"web stdout " + b"x" * 300_000
    status, out, _ = run("logs", HASH)
    assert status == 0
    assert out.count("x") == 300_000
    assert max(map(len, out.splitlines())) < 70_000


# ---- the operator's list --------------------------------------------------------------------------


def test_the_operators_list_names_every_pod(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODIUS_RUN", str(tmp_path))
    with serving(admin_app("first", "sec\x1bond"), path=tmp_path / "admin.sock"):
        status, out, _ = run("pods")
        assert status == 0
        titles, first, _ = (re.split(r"  +", line) for line in out.splitlines())
        assert titles == ["HASH", "NAME", "STATE", "TIME LEFT", "SENT", "RECEIVED", "REFUSED", "ADDRESS"]
        assert first == ["a" * 52, "first", "running", "1 h", "1.2 MB", "567 B", "4", "10.77.0.2"]
        assert "\x1b" not in out
        assert [pod["name"] for pod in only_json(run("pods", "--json")[1])["pods"]] == ["first", "sec\x1bond"]


def test_an_empty_list_says_so(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODIUS_RUN", str(tmp_path))
    with serving(admin_app(), path=tmp_path / "admin.sock"):
        assert run("pods")[:2] == (0, "No pods.\n")


def test_without_a_node_the_list_says_how_to_start_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODIUS_RUN", str(tmp_path))
    status, _, err = run("pods")
    assert (status, "codiusd run" in err) == (1, True)


def test_the_list_of_another_host_cannot_be_had(run: Run, origin: str) -> None:
    assert run("pods", "--host", origin)[0] == 1


# ---- the network policy ---------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeDouble]:
    monkeypatch.setenv("CODIUS_RUN", str(tmp_path))
    node = NodeDouble()
    with serving(node.admin(), path=tmp_path / "admin.sock"):
        yield node


def test_the_policy_is_shown_in_plain_words(run: Run, node: NodeDouble) -> None:
    node.rules.counters = {Reason.HOST: 12}
    status, out, _ = run("policy", "show")
    assert status == 0
    assert out.startswith("Pods reach the internet, except:\n  private and reserved ranges: 0.0.0.0/8, ")
    assert "They look up names at 192.0.2.53, on port 53 and no other.\n" in out
    assert "12 to this host" in out


def test_the_policy_for_scripts_is_the_nodes_own_document(run: Run, node: NodeDouble) -> None:
    document = only_json(run("policy", "show", "--json")[1])
    assert (document["origin"], document["egress"]["mode"]) == ("settings", "open")


def test_rules_that_are_not_named_stay_as_they_are_in_force(run: Run, node: NodeDouble) -> None:
    node.rules.cut = 2
    status, out, _ = run("policy", "set", "--deny-range", "203.0.113.0/24", "--deny-range", "2001:db8::/32")
    assert (status, "no longer allowed: 2." in out) == (0, True)
    assert "ranges you denied: 203.0.113.0/24, 2001:db8::/32" in out
    run("policy", "set", "--mode", "listed", "--allow-port", "tcp/443", "--allow-range", "198.51.100.0/24")
    document = only_json(run("policy", "set", "--deny-port", "udp/6000-6063", "--json")[1])
    assert document["egress"] == {
        "mode": "listed",
        "deniedRanges": ["203.0.113.0/24", "2001:db8::/32"],
        "allowedRanges": ["198.51.100.0/24"],
        "deniedPorts": ["udp/6000-6063"],
        "allowedPorts": ["tcp/443"],
    }
    assert document["cut"] == 2


def test_a_list_is_replaced_as_a_whole_and_none_empties_it(run: Run, node: NodeDouble) -> None:
    run("policy", "set", "--deny-range", "203.0.113.0/24", "--deny-port", "tcp/1")
    run("policy", "set", "--deny-range", "198.51.100.0/24")
    assert [str(each) for each in node.rules.policy.egress.denied_ranges] == ["198.51.100.0/24"]
    run("policy", "set", "--deny-range", "none")
    assert node.rules.policy.egress.denied_ranges == ()
    assert [str(each) for each in node.rules.policy.egress.denied_ports] == ["tcp/1"]


def test_a_reset_goes_back_to_the_settings(run: Run, node: NodeDouble) -> None:
    run("policy", "set", "--mode", "listed")
    assert node.rules.policy.egress == Egress(mode=EgressMode.LISTED)
    status, out, _ = run("policy", "reset")
    assert (status, "These rules are those of the settings." in out) == (0, True)
    assert node.rules.policy.egress == Egress()


def test_rules_the_node_refuses_are_told_in_its_words(run: Run, node: NodeDouble) -> None:
    status, _, err = run("policy", "set", "--allow-range", "10.77.4.0/24")
    assert (status, "10.77.4.0/24 is inside the pods' pool" in err) == (1, True)
    assert node.rules.policy.egress == Egress()


def test_a_change_without_a_rule_is_refused(run: Run, node: NodeDouble) -> None:
    status, _, err = run("policy", "set")
    assert (status, "no rule was given" in err) == (1, True)


@pytest.mark.parametrize(
    ("found", "status", "verdict"), [(Verdict.STOPPED, 0, "ok"), (Verdict.REACHED, 1, "WRONG")]
)
def test_a_probe_that_finds_something_else_than_it_should_is_a_failure(
    found: Verdict, status: int, verdict: str, run: Run, node: NodeDouble
) -> None:
    asyncio.run(node.engine.upload(parse({"manifest": MANIFEST}), 600, token=None))
    node.engine.results = (
        Result("a resolver", Verdict.REACHED, Verdict.REACHED, "answered"),
        Result("metadata", Verdict.STOPPED, found, "as \x1bseen"),
    )
    ended, out, _ = run("policy", "probe", HASH)
    assert ended == status
    rows = [re.split(r"  +", line) for line in out.splitlines()]
    assert rows[0] == ["", "PROBE", "EXPECTED", "FOUND", "DETAIL"]
    assert rows[2] == [verdict, "metadata", "stopped", found.value, "as \ufffdseen"]
    ended, out, _ = run("policy", "probe", HASH, "--json")
    assert (ended, only_json(out)["ok"]) == (status, status == 0)


def test_a_pod_that_does_not_run_is_not_probed(run: Run, node: NodeDouble) -> None:
    assert run("policy", "probe", HASH)[0] == 1


def test_without_a_node_there_is_no_policy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODIUS_RUN", str(tmp_path))
    status, _, err = run("policy", "show")
    assert (status, "no node is running on this machine" in err) == (1, True)


@pytest.mark.parametrize(
    "answer", ["[]", "{}", '{"origin": "settings"}', "5", '{"egress": 1, "builtIn": {}}', "not json"]
)
def test_an_answer_of_another_kind_is_told_as_such(
    answer: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def say(_: web.Request) -> web.Response:
        return web.Response(text=answer, content_type="application/json")

    monkeypatch.setenv("CODIUS_RUN", str(tmp_path))
    app = web.Application()
    app.router.add_get("/policy", say)
    with serving(app, path=tmp_path / "admin.sock"):
        status, _, err = run("policy", "show")
    assert (status, "the answer at" in err) == (1, True)


# ---- tags -----------------------------------------------------------------------------------------


def test_a_tag_becomes_a_digest_and_is_told(run: Run, file: Path, origin: str, host: HostDouble) -> None:
    registry = RegistryDouble()
    digest = registry.add("team/app:1.2")
    registry.token = "anonymous"
    with serving(registry.app()) as port:
        image = f"127.0.0.1:{port}/team/app"
        write(file, {"manifest": {**MANIFEST, "containers": [{"id": "app", "image": f"{image}:1.2"}]}})
        status, out, err = run("upload", file, "--insecure-registry", f"127.0.0.1:{port}")
        assert status == 0
        assert f"{image}:1.2 is {image}@{digest}" in err
        sent = json.loads(host.find("POST")[3])["manifest"]
        assert sent["containers"][0]["image"] == f"{image}@{digest}"
        assert str(hash_manifest(sent)) in out
        _, out, _ = run("upload", file, "--insecure-registry", f"127.0.0.1:{port}", "--json")
        assert only_json(out)["images"] == {f"{image}:1.2": f"{image}@{digest}"}


def test_a_tag_that_is_not_there_stops_the_upload(
    run: Run, file: Path, origin: str, host: HostDouble
) -> None:
    with serving(RegistryDouble().app()) as port:
        image = f"127.0.0.1:{port}/app:9"
        write(file, {"manifest": {**MANIFEST, "containers": [{"id": "app", "image": image}]}})
        status, _, err = run("upload", file, "--insecure-registry", f"127.0.0.1:{port}")
    assert (status, f"there is no {image}" in err) == (1, True)
    assert host.requests == []


# ---- as processes ---------------------------------------------------------------------------------


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "codius_node", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_the_command_works_as_a_process(file: Path, origin: str) -> None:
    process = start("upload", str(file), "--json")
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err, only_json(out)["manifestHash"]) == (0, "", HASH)


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(origin: str, host: HostDouble) -> None:
    host.log = b"web stdout x\n" * 100_000
    process = start("logs", HASH)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(SECONDS) == cli.PIPE_CLOSED


def test_ctrl_c_ends_the_command_quietly(origin: str, host: HostDouble) -> None:
    host.stays = True
    # as from a prompt: what a shell runs in the background ignores Ctrl-C, and so does all that it starts
    process = start("logs", HASH, "--follow", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout is not None
    assert process.stdout.readline() == "web stdout hello\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (cli.INTERRUPTED, "")


def test_on_a_terminal_steps_and_result_are_shown_in_colour(file: Path, origin: str) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "codius_node", "upload", str(file)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # EIO: the other side has closed
        while piece := os.read(ours, 4096):
            seen += piece
    os.close(ours)
    assert process.wait(SECONDS) == 0
    assert b"pulling web" in seen
    assert b"starting" in seen
    assert f"\x1b[1;36mhttp://{HASH}.".encode() in seen


# ---- a real registry ------------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed")
def test_a_real_registry_names_the_digest(
    run: Run, file: Path, origin: str, host: HostDouble, tmp_path: Path
) -> None:
    with real_registry(tmp_path) as authority:
        digest = push_empty_image(authority, "team/app", "1")
        image = f"{authority}/team/app"
        write(file, {"manifest": {**MANIFEST, "containers": [{"id": "app", "image": f"{image}:1"}]}})
        _, out, _ = run("upload", file, "--insecure-registry", authority, "--json")
    assert only_json(out)["images"] == {f"{image}:1": f"{image}@{digest}"}


@contextmanager
def real_registry(directory: Path) -> Iterator[str]:
    """Debian's docker-registry on a port of its own choice; its host:port."""
    settings = {
        "version": "0.1",
        "log": {"accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
        "http": {"addr": "127.0.0.1:0"},
    }
    process = subprocess.Popen(
        ["docker-registry", "serve", str(write(directory / "registry.yml", settings))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                yield found[1]
                break
        else:
            pytest.fail("the registry did not start")
    finally:
        process.terminate()
        process.stderr.close()
        process.wait(SECONDS)


def push_empty_image(authority: str, repository: str, tag: str) -> str:
    """An image without layers; its digest."""
    connection = http.client.HTTPConnection(authority, timeout=SECONDS)

    def ask(method: str, path: str, body: bytes = b"", kind: str = "application/octet-stream") -> str:
        connection.request(method, path, body, {"Content-Type": kind})
        response = connection.getresponse()
        response.read()
        assert response.status < 300, (method, path, response.status)
        return response.getheader("Location") or ""

    config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
    location = ask("POST", f"/v2/{repository}/blobs/uploads/").removeprefix(f"http://{authority}")
    config_digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    ask("PUT", f"{location}&digest={config_digest}", config)
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": len(config),
            "digest": config_digest,
        },
        "layers": [],
    }
    body = json.dumps(manifest).encode()
    ask("PUT", f"/v2/{repository}/manifests/{tag}", body, manifest["mediaType"])
    connection.close()
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


# ---- the self-test --------------------------------------------------------------------------------


def make_report(*verdicts: selftest.Verdict) -> selftest.Report:
    steps = tuple(
        selftest.Step(
            f"step {number}",
            verdict,
            "found\x1b[31m this",
            "do that" if verdict is selftest.Verdict.FAILED else None,
        )
        for number, verdict in enumerate(verdicts)
    )
    return selftest.Report(NOON, steps, ("whether others can come in",))


@pytest.mark.parametrize(
    ("verdicts", "status", "success"),
    [
        ((selftest.Verdict.PASSED, selftest.Verdict.PASSED), 0, True),
        ((selftest.Verdict.PASSED, selftest.Verdict.UNCHECKED), 0, None),
        ((selftest.Verdict.UNCHECKED, selftest.Verdict.FAILED), 1, False),
    ],
)
def test_a_selftest_tells_each_step_and_fails_when_one_did(
    run: Run, node: NodeDouble, verdicts: tuple[selftest.Verdict, ...], status: int, success: bool | None
) -> None:
    node.selftest.report = make_report(*verdicts).as_document()
    code, out, _ = run("selftest")
    assert code == status
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [*(verdict.value for verdict in verdicts), "unchecked"]
    assert lines[-1].endswith("whether others can come in")
    assert "\x1b" not in out
    assert ("-> do that" in out) is (selftest.Verdict.FAILED in verdicts)
    code, out, _ = run("selftest", "--json")
    assert (code, only_json(out)["success"]) == (status, success)
    assert only_json(out) == node.selftest.report


def test_a_selftest_needs_a_node(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODIUS_RUN", str(tmp_path))
    status, _, err = run("selftest")
    assert (status, "no node is running" in err) == (1, True)
