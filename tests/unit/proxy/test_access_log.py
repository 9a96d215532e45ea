"""The access log's lines and its file."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_proxy.access_log import KEPT_FILES, MAX_SHOWN, MICRO, LogFile, Record, build_id, render

POD = "a" * 52


def record(
    *,
    method: bytes = b"GET",
    host: bytes = b"host.example",
    target: bytes = b"/",
    pod: str = POD,
    status: int = 200,
    ended: float = 1_700_000_000.25,
    took: float = 0.0125,
    received: int = 100,
    sent: int = 2000,
    refusal: str = "",
) -> Record:
    return (
        int(ended * MICRO), int(took * MICRO), "192.0.2.1", "https", method, host, target,
        pod, status, received, sent, 31, refusal, "answered",
    )  # fmt: skip


def test_a_line_is_json_with_everything_there_is_to_know() -> None:
    line = render([record(target=b'/a?b="c"\\')], "c0ffee")
    assert line.endswith("\n")
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250000Z",
        "id": build_id("c0ffee", 31),
        "client": "192.0.2.1",
        "scheme": "https",
        "method": "GET",
        "host": "host.example",
        "target": '/a?b="c"\\',
        "pod": POD,
        "status": 200,
        "received": 100,
        "sent": 2000,
        "seconds": 0.0125,
        "refusal": "",
        "end": "answered",
    }


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_whatever_a_stranger_writes_stays_one_line_of_json(host: bytes, target: bytes) -> None:
    line = render([record(host=host, target=target)], "c0ffee")
    assert line.count("\n") == 1
    assert line.isascii()
    found = json.loads(line)
    assert (found["host"], found["target"]) == (host.decode("latin-1"), target.decode("latin-1"))


def test_a_long_target_is_cut() -> None:
    shown = json.loads(render([record(target=b"/" + b"x" * 9000)], "c0ffee"))["target"]
    assert shown == "/" + "x" * (MAX_SHOWN - 1) + "..."


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_lines_are_appended_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("before\n")
    log = LogFile(path, max_bytes=1000)
    assert log.write("one\ntwo\n")
    log.close()
    assert lines(path) == ["before", "one", "two"]


def test_a_full_file_is_moved_aside_and_the_oldest_one_goes(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = LogFile(path, max_bytes=20)
    for number in range(3 * KEPT_FILES):
        assert log.write(f"line number {number:02}\n")
    log.close()
    assert len(list(tmp_path.iterdir())) == KEPT_FILES
    assert lines(path) == ["line number 14"]
    assert lines(path.with_name("access.log.1")) == ["line number 13"]
    assert lines(path.with_name(f"access.log.{KEPT_FILES - 1}")) == ["line number 10"]


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = LogFile(path, max_bytes=1000)
    log.write("one\n")
    path.rename(tmp_path / "rotated")
    log.write("two\n")
    (tmp_path / "other").write_text("")
    (tmp_path / "other").rename(path)
    log.write("three\n")
    log.close()
    assert (lines(tmp_path / "rotated"), lines(path)) == (["one"], ["three"])


def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "access.log"
    log = LogFile(path, max_bytes=1000)
    log._file = os.open("/dev/full", os.O_WRONLY)
    path.unlink()
    path.symlink_to("/dev/full")
    assert not log.write("one\n")
    assert not log.write("two\n")
    assert [found.levelno for found in caplog.records] == [logging.ERROR]
    log.close()


def test_a_log_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        LogFile(tmp_path / "nowhere" / "access.log", max_bytes=1)
