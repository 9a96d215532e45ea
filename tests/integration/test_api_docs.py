"""docs/api.md: its commands are run as they stand, and answer what it shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from codius_node import operations
from codius_node.operations import Operation
from tests.harness.noop import open_noop_host

DOCUMENT: Final = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
IMAGE: Final = "codius-sample@sha256:" + "0" * 64
SECONDS: Final = 60.0
MARK: Final = "--- end of block"
BLOCK: Final = re.compile(r"```sh\n(.*?)```\n(?:```json\n(.*?)```)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """Commands, and what they are shown to answer."""

    commands: str
    shown: str | None


BLOCKS: Final = [Block(*match.groups()) for match in BLOCK.finditer(DOCUMENT)]


def fields(document: Any) -> set[str]:
    return set(document) if isinstance(document, dict) else set()


def test_each_operation_has_a_section_with_a_command_and_nothing_else_has() -> None:
    headings = re.findall(r"^## ([A-Z]+ /.*)$", DOCUMENT, re.MULTILINE)
    described = [each for each in vars(operations).values() if isinstance(each, Operation)]
    assert sorted(headings) == sorted(f"{each.method} {each.path}" for each in described)
    for section in re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]:
        method, path = section.splitlines()[0].split(" ")
        [first, *_] = BLOCK.finditer(section)
        command = first[1].splitlines()[-1]
        assert re.search(rf'curl .*"\$HOST{re.escape(path.replace("{hash}", "$HASH"))}["?]', command)
        assert (f"-X {method}" in command) == (method in {"OPTIONS", "PUT"})


def run_document(origin: str, image: str, directory: Path) -> None:
    """All commands as they stand, in one shell; AssertionError unless each answers as is shown."""
    script = f"\necho\necho '{MARK}'\n".join(block.commands.rstrip() for block in BLOCKS)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": os.environ["PATH"], "HOST": origin, "IMAGE": image},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split(MARK)
    assert len(answers) == len(BLOCKS)
    for block, answer in zip(BLOCKS, answers, strict=True):
        if block.shown is not None:
            assert fields(json.loads(answer)) == fields(json.loads(block.shown)), block.commands
        else:
            assert '"statusCode"' not in answer, block.commands


@pytest.mark.skipif(not shutil.which("curl"), reason="the commands need curl")
def test_every_command_works_as_it_stands_and_answers_the_fields_that_are_shown(tmp_path: Path) -> None:
    with open_noop_host() as host:
        run_document(host.origin, IMAGE, tmp_path)
