"""What people type: commands, options, lengths of time, settings files, and what is loaded for each."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node import admin_arguments, arguments, cli, config, daemon, edge, parcels, supervisor
from codius_node.config import Settings
from codius_node.environment import Environment
from codius_node.errors import EngineError

SECONDS = 30


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings of ours from outside, and none left behind by --env-file."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("CODIUS_")]:
        monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    root.handlers[:], root.level = handlers, level


def test_help_has_every_command_in_its_group_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    operators, clients = text.index("For operators:"), text.index("For clients")
    for name in cli.OPERATOR_COMMANDS:
        assert operators < text.index(f"\n  {name} ") < clients
    for name in cli.CLIENT_COMMANDS:
        assert text.index(f"\n  {name} ", clients) > clients
    for setting in config.DECLARED.values():
        assert setting.name in text


@pytest.mark.parametrize("name", [*cli.OPERATOR_COMMANDS, *cli.CLIENT_COMMANDS])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: codiusd {name}" in capsys.readouterr().out


@pytest.mark.parametrize("word", admin_arguments.COMMANDS)
def test_every_word_of_admin_explains_itself(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    for asked in ([word, "--help"], ["--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["admin", *asked])
        assert caught.value.code == 0
        assert word in capsys.readouterr().out


def find_commands() -> list[str]:
    """Every `codiusd …` that a code block of the documents tells people to type."""
    root = Path(__file__).parents[3]
    blocks = [
        block
        for page in (root / "README.md", *sorted((root / "docs").glob("*.md")))
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    return [line for block in blocks for line in block.splitlines() if line.startswith("codiusd ")]


@pytest.mark.parametrize("line", find_commands())
def test_what_the_documents_tell_people_to_type_is_understood(line: str) -> None:
    words = shlex.split(line.replace("HASH", "a" * 52), comments=True)
    assert cli.build_parser().parse_args(words[1:]).handler


def test_the_documents_name_the_commands() -> None:
    told = {line.split()[1] for line in find_commands()}
    assert {"admin", "run", "doctor", "upload", "extend", "logs", "pods", "quote"} <= told


@pytest.mark.parametrize("word", sorted(cli.OLDER_WORDS))
def test_older_words_are_words_of_admin(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([word, "--help"])
    assert f"usage: codiusd admin {word}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["quote", "upload"])
def test_the_file_that_is_wanted_is_shown_by_an_example_that_can_be_used(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    example = text[text.index('{"manifest"') : text.rindex("`port`")]
    (tmp_path / "codius.json").write_text(example)
    assert parcels.read_upload(tmp_path / "codius.json") == (json.loads(example), False)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("codiusd 2.")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["upload"],
        ["upload", "f", "--duration", "soon"],
        ["upload", "f", "--duration", "0"],
        ["upload", "f", "--duration", "-5"],
        ["upload", "f", "--duration", "99999d"],
        ["logs", "UPPER"],
        ["pods", "short"],
        ["run", "extra"],
        ["quote", "f", "--colour"],
        ["policy"],
        ["policy", "fly"],
        ["policy", "set", "--mode", "shut"],
        ["policy", "set", "--deny-range", "10.0.0.1/8"],
        ["policy", "set", "--deny-port", "25"],
        ["policy", "set", "--allow-port", "tcp/70000"],
        ["policy", "probe"],
        ["policy", "probe", "short"],
        ["admin"],
        ["admin", "fly"],
        ["admin", "stop"],
        ["admin", "stop", "a" * 52],
        ["admin", "stop", "A" * 52, "--reason", "x"],
        ["admin", "deny"],
        ["admin", "deny", "add", "host", "x", "--reason", "x"],
        ["admin", "deny", "add", "image", "nginx"],
        ["admin", "price", "set"],
        ["admin", "price", "set", "-1"],
        ["admin", "price", "set", "NaN"],
        ["admin", "price", "set", "much"],
        ["admin", "price", "set", "1e13"],
        ["admin", "price", "set", "1E+999999999"],
        ["admin", "usage", "short"],
        ["admin", "usage", "--limit", "many"],
    ],
)
def test_misuse_is_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == cli.MISUSED
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "--help" in captured.err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3600", 3600),
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        ("7d", 604800),
        ("2w", 1209600),
        (" 1H ", 3600),
    ],
)
def test_a_length_of_time_is_seconds_or_a_number_with_a_unit(text: str, seconds: int) -> None:
    assert cli.parse_duration(text) == seconds


@given(st.text(max_size=20))
def test_any_text_is_a_length_of_time_or_a_value_error(text: str) -> None:
    try:
        seconds = cli.parse_duration(text)
    except ValueError:
        return
    assert seconds > 0


@pytest.mark.parametrize("text", ["1.5h", "1h30m", "h", "", "٣", "1 h", "0m", "1y"])
def test_other_lengths_of_time_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        cli.parse_duration(text)


Serving = Callable[..., int]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Settings]]:
    calls: list[tuple[str, Settings]] = []

    def note(name: str) -> Serving:
        def serve(settings: Settings, *_: Environment) -> int:
            calls.append((name, settings))
            return 0

        return serve

    monkeypatch.setattr(supervisor, "run", note("run"))
    monkeypatch.setattr(daemon, "node", note("node"))
    monkeypatch.setattr(edge, "proxy", note("proxy"))
    monkeypatch.setattr(edge, "dns", note("dns"))
    return calls


@pytest.mark.parametrize("name", ["run", "node", "proxy", "dns"])
def test_each_part_is_started_with_the_settings(
    name: str, served: list[tuple[str, Settings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODIUS_PORT", "4000")
    assert cli.main([name]) == 0
    assert [(part, settings.port) for part, settings in served] == [(name, 4000)]


def test_a_settings_file_adds_to_the_environment_also_for_child_processes(
    served: list[tuple[str, Settings]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODIUS_PORT", "4000")
    (tmp_path / "env").write_text("CODIUS_PORT=5000\nCODIUS_DNS_PORT=53\n")
    assert cli.main(["run", "--env-file", str(tmp_path / "env")]) == 0
    assert (served[0][1].port, served[0][1].dns_port) == (4000, 53)
    assert os.environ["CODIUS_DNS_PORT"] == "53"


def test_a_file_env_is_not_read_unasked(
    served: list[tuple[str, Settings]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("CODIUS_PORT=5000\n")
    monkeypatch.chdir(tmp_path)
    cli.main(["run"])
    assert served[0][1].port == 3000


def test_a_settings_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--env-file", "/nowhere/env"]) == cli.FAILED
    assert "/nowhere/env cannot be read" in capsys.readouterr().err


def test_a_bad_setting_stops_the_start_with_a_sentence(
    served: list[tuple[str, Settings]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CODIUS_PORT", "99999")
    assert cli.main(["run"]) == cli.FAILED
    assert served == []
    captured = capsys.readouterr()
    assert "CODIUS_PORT='99999' cannot be used: give a port, 1-65535." in captured.err
    assert captured.err.count("\n") == 1


def test_a_variable_that_is_no_setting_is_warned_about(
    served: list[tuple[str, Settings]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CODIUS_PROT", "1")
    monkeypatch.setenv("CODIUS_HOST_URI", "http://x")
    assert cli.main(["run"]) == 0
    assert [record.getMessage() for record in caplog.records] == [
        "CODIUS_PROT is no setting and has no effect"
    ]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            EngineError("podman is away", hint="Start it."),
            cli.FAILED,
            "codiusd: podman is away -- Start it.\n",
        ),
        (EngineError("a\nb"), cli.FAILED, "codiusd: a b\n"),
        (
            OSError(98, "cannot listen on 0.0.0.0 port 80"),
            cli.FAILED,
            "codiusd: cannot listen on 0.0.0.0 port 80",
        ),
        (PermissionError(13, "Permission denied", "/x"), cli.FAILED, "codiusd: /x: Permission denied"),
        (KeyboardInterrupt(), cli.INTERRUPTED, ""),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_status(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(supervisor, "run", fail)
    assert cli.main(["run"]) == status
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == bool(said)


def test_the_journal_gets_priorities_instead_of_times() -> None:
    formatter = cli._JournalFormatter("%(name)s: %(message)s")
    for level, priority in (
        (logging.DEBUG, 7),
        (logging.INFO, 6),
        (logging.WARNING, 4),
        (logging.CRITICAL, 3),
    ):
        record = logging.LogRecord("part", level, "", 0, "two\nlines", (), None)
        assert formatter.format(record) == f"<{priority}>part: two\n<{priority}>lines"


def test_doctor_tells_scripts_and_people_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from codius_node import doctor

    findings = [doctor.ok("podman", "4.3.1"), doctor.warn("memory", "little", "buy some")]
    monkeypatch.setattr(doctor, "examine", lambda _: findings)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok    podman  4.3.1\nwarn  memory  little  -> buy some\n"
    findings.append(doctor.bad("disk", "full", "rm"))
    assert cli.main(["doctor", "--json"]) == cli.FAILED
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["findings"][2] == {"name": "disk", "verdict": "bad", "message": "full", "fix": "rm"}


def test_a_hash_is_what_dns_labels_of_pods_look_like() -> None:
    assert arguments.parse_hash("a" * 52) == "a" * 52
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.parse_hash("a" * 51 + "1")


@pytest.mark.parametrize("part", ["proxy", "dns"])
def test_what_faces_the_internet_loads_nothing_it_does_not_need(part: str) -> None:
    program = f"""
import sys
from codius_node import cli, edge
edge.{part} = lambda *_: 0
assert cli.main(["{part}"]) == 0
import codius_{part}.server
print([name for name in ("aiohttp", "msgspec", "rich", "aiosqlite", "cryptography", "pyroute2", "nftables",
    "codius_node.engine", "codius_node.schema") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
