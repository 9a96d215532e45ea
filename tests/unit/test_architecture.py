"""One door for each outside library: nobody else imports it."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "codius_node": ROOT / "node/codius_node",
    "codius_proxy": ROOT / "proxy/codius_proxy",
    "codius_dns": ROOT / "dns/codius_dns",
    "codius_netpolicy": ROOT / "netpolicy/codius_netpolicy",
}
DOORS = {
    "aiosqlite": {"codius_node.database"},
    "sqlite3": {"codius_node.database"},
    "cryptography": {"codius_node.cipher", "codius_proxy.tls"},
    "dnslib": {"codius_dns.wire"},
    "nftables": {"codius_netpolicy.nft"},
    "pyroute2": {"codius_netpolicy.kernel"},
    "rich": {"codius_node.terminal"},
    "aiohttp": {
        "codius_node.api",
        "codius_node.admin",
        "codius_node.admin_pods",
        "codius_node.admin_client",
        "codius_node.answers",
        "codius_node.bodies",
        "codius_node.client",
        "codius_node.daemon",
        "codius_node.outbound",
        "codius_node.podman_api",
        "codius_node.registry",
    },
}


def imports() -> Iterator[tuple[str, str]]:
    for package, directory in PACKAGES.items():
        for path in sorted(directory.rglob("*.py")):
            module = ".".join((package, *path.relative_to(directory).with_suffix("").parts))
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from ((module, alias.name.split(".")[0]) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield module, node.module.split(".")[0]


@pytest.mark.parametrize("library", DOORS)
def test_an_outside_library_is_imported_behind_its_door_only(library: str) -> None:
    importers = {module for module, name in imports() if name == library}
    assert importers == DOORS[library], "the table of doors, and docs/adr/002-dependencies.md, say who does"


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join((package, *path.parent.relative_to(directory).parts))
        for package, directory in PACKAGES.items()
        for path in directory.rglob("__init__.py")
    }
    assert set(listed) == found, "setuptools leaves out what pyproject.toml does not list"
