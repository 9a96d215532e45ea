"""docs/api.md against `make demo KEEP=1`, as it says: real containers, and what the demo says to export."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.harness.namespaces import missing_privilege
from tests.harness.podman_service import find_missing
from tests.integration.test_api_docs import run_document

MISSING: Final = [
    *find_missing(),
    *(name for name in ("curl", "nft", "ip", "setpriv") if not shutil.which(name)),
    *filter(None, [missing_privilege()]),
]
EXPORTED: Final = re.compile(r"export HOST=(\S+) IMAGE=(\S+)")
END_SECONDS: Final = 60.0

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"the demo needs {', '.join(MISSING)}: sudo make test"),
]


def test_every_command_of_the_document_works_against_the_demo_that_is_left_running(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "tests.demo", "--keep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    said: list[str] = []
    try:
        for line in demo.stdout:
            said.append(line)
            if found := EXPORTED.search(line):
                break
        else:
            pytest.fail("".join(said))
        origin, image = found.groups()
        run_document(origin, image, tmp_path)
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=END_SECONDS)
        assert "your machine's network is as it was" in rest
        assert demo.returncode == 0, rest
    finally:
        if demo.poll() is None:
            demo.terminate()
            demo.wait(END_SECONDS)
