"""The access log's file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from codius_proxy.log_file import KEPT_FILES, LogFile


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_lines_are_appended_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("before\n")
    log = LogFile(path, max_bytes=1000)
    assert log.write(b"one\ntwo\n")
    log.close()
    assert lines(path) == ["before", "one", "two"]


def test_a_full_file_is_moved_aside_and_the_oldest_one_goes(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = LogFile(path, max_bytes=20)
    for number in range(3 * KEPT_FILES):
        assert log.write(f"line number {number:02}\n".encode())
    log.close()
    assert len(list(tmp_path.iterdir())) == KEPT_FILES
    assert lines(path) == ["line number 14"]
    assert lines(path.with_name("access.log.1")) == ["line number 13"]
    assert lines(path.with_name(f"access.log.{KEPT_FILES - 1}")) == ["line number 10"]


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = LogFile(path, max_bytes=1000)
    log.write(b"one\n")
    path.rename(tmp_path / "rotated")
    log.write(b"two\n")
    (tmp_path / "other").write_text("")
    (tmp_path / "other").rename(path)
    log.write(b"three\n")
    log.close()
    assert (lines(tmp_path / "rotated"), lines(path)) == (["one"], ["three"])


def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "access.log"
    log = LogFile(path, max_bytes=1000)
    log._file = os.open("/dev/full", os.O_WRONLY)
    path.unlink()
    path.symlink_to("/dev/full")
    assert not log.write(b"one\n")
    assert not log.write(b"two\n")
    assert [found.levelno for found in caplog.records] == [logging.ERROR]
    log.close()


def test_a_log_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        LogFile(tmp_path / "nowhere" / "access.log", max_bytes=1)
