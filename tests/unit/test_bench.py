"""What the benches take hold of by its name."""

from __future__ import annotations

import pytest

from codius_node.launch import Launcher
from codius_node.network import KernelNetwork
from codius_node.podman import Podman
from codius_node.store import Store
from tests.bench.phases import PHASES

OWNERS = {"_store": Store, "_containers": Podman, "_network": KernelNetwork, "_launcher": Launcher}
"""Of an engine, by the name it has there."""


@pytest.mark.parametrize(("owner", "method"), [(owner, method) for owner, method, _ in PHASES])
def test_every_step_of_an_upload_that_is_timed_is_there(owner: str, method: str) -> None:
    assert callable(getattr(OWNERS[owner], method))
