"""A real Knot DNS on loopback: the judge of the differential run, and the peer of the benchmark."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

KNOTD: Final = shutil.which("knotd", path="/usr/sbin:/usr/bin")
MISSING: Final = "knotd is not installed (apt install knot)"
STARTED: Final = b"server started"
START_SECONDS: Final = 60.0  # a zone of a hundred thousand names takes two

CONFIGURATION: Final = """\
server:
    rundir: "{directory}"
    listen: 127.0.0.1@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stdout
    any: info
database:
    storage: "{directory}/db"
zone:
"""
ZONE: Final = """\
  - domain: {origin}
    file: "{directory}/{origin}.zone"
    journal-content: none
    zonefile-sync: -1
"""


@contextmanager
def running(
    zones: Mapping[str, str], directory: Path, port: int, *, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Knot serving these zone files by origin, without rate limits; `prefix` is a command to run it with."""
    text = CONFIGURATION.format(directory=directory, port=port)
    for origin, content in zones.items():
        (directory / f"{origin}.zone").write_text(content)
        text += ZONE.format(directory=directory, origin=origin)
    configuration = directory / "knot.conf"
    configuration.write_text(text)
    command = [*prefix, KNOTD or "knotd", "-c", str(configuration)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            assert process.stdout is not None
            said = b""
            while STARTED not in said:
                assert select.select([process.stdout], [], [], START_SECONDS)[0], said.decode()
                more = os.read(process.stdout.fileno(), 65536)
                assert more, said.decode()
                said += more
            yield process
        finally:
            process.terminate()
