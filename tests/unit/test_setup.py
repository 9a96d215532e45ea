"""setup.py: what it asks of the compiler."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SETUP = Path(__file__).parents[2] / "setup.py"
QUESTIONABLE = "int answer(void) {}\n"
"""C that is compiled with a warning."""


def compile_with(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["gcc", "-Wall", *arguments, "-c", "-x", "c", "-", "-o", "/dev/null"],
        input=QUESTIONABLE,
        text=True,
        capture_output=True,
        check=False,
    )


def test_a_warning_of_the_compiler_does_not_keep_anybody_from_installing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: dict[str, list[SimpleNamespace]] = {}
    strict = ["-O0", "-Werror"]
    monkeypatch.setattr("setuptools.setup", lambda **given: made.update(given))
    monkeypatch.setattr(
        "mypyc.build.mypycify", lambda *_, **__: [SimpleNamespace(extra_compile_args=[*strict])]
    )
    monkeypatch.setattr(sys, "argv", ["setup.py", "build_ext"])
    runpy.run_path(str(SETUP))
    [extension] = made["ext_modules"]
    assert compile_with(strict).returncode != 0
    done = compile_with(extension.extra_compile_args)
    assert (done.returncode, "warning" in done.stderr) == (0, True)
