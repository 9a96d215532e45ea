"""For all tests: they are of the sources as they are now."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILED = ROOT / ".venv/.compiled"
"""Made by `make setup`, each time it has compiled the front door's data path."""


def pytest_configure() -> None:
    if not COMPILED.exists():
        return
    sources = [ROOT / "setup.py", *ROOT.glob("proxy/codius_proxy/*.py")]
    if newer := [path.name for path in sources if path.stat().st_mtime > COMPILED.stat().st_mtime]:
        raise pytest.UsageError(f"compiled before {', '.join(sorted(newer))} changed: run `make setup`")
