"""What the settings become for the processes that face the internet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codius_node import edge
from codius_node.config import load
from codius_node.environment import Environment
from codius_node.errors import SettingsError
from codius_proxy import server
from codius_proxy.config import AddressError, CertificateError, LogError, ProxyConfig, SetupError

NOTHING = Environment({}, None)
HTTPS = {"CODIUS_PUBLIC_URI": "https://codius.example"}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ProxyConfig]:
    """The configurations a front door was started with."""
    found: list[ProxyConfig] = []

    def run(config: ProxyConfig, **_: Any) -> None:
        found.append(config)

    monkeypatch.setattr(server, "run", run)
    return found


def test_a_host_without_settings_speaks_http_and_writes_nothing(started: list[ProxyConfig]) -> None:
    assert edge.proxy(load({}), NOTHING) == 0
    [config] = started
    assert (config.scheme, config.certificates, config.redirect_port) == ("http", None, None)
    assert (config.access_log, config.metrics, config.trusted_proxies) == (None, None, ())


def test_every_setting_of_the_front_door_reaches_it(started: list[ProxyConfig]) -> None:
    edge.proxy(
        load(
            {
                **HTTPS,
                "CODIUS_PORT": "443",
                "CODIUS_TLS_CERTIFICATES": "/certificates",
                "CODIUS_REDIRECT_PORT": "80",
                "CODIUS_HSTS": "3600",
                "CODIUS_TRUSTED_PROXIES": "10.0.0.0/8",
                "CODIUS_PROXY_PROTOCOL": "true",
                "CODIUS_CONTACT": "operator@codius.example",
                "CODIUS_ACCESS_LOG": "/log",
                "CODIUS_ACCESS_LOG_SIZE": "2",
                "CODIUS_METRICS": "127.0.0.1:9100",
            }
        ),
        NOTHING,
    )
    [config] = started
    assert config.certificates == Path("/certificates")
    assert (config.redirect_port, config.hsts, config.proxy_protocol) == (80, 3600, True)
    assert [str(network) for network in config.trusted_proxies] == ["10.0.0.0/8"]
    assert config.contact == "operator@codius.example"
    assert (config.access_log, config.access_log_bytes) == (Path("/log"), 2 * 1024 * 1024)
    assert config.metrics == ("127.0.0.1", 9100)


@pytest.mark.parametrize(
    "environ",
    [
        {"CODIUS_TLS_CERTIFICATES": "/certificates"},
        {"CODIUS_REDIRECT_PORT": "80"},
        {"CODIUS_PROXY_PROTOCOL": "true"},
    ],
)
def test_settings_that_cannot_be_meant_together_stop_the_start(
    environ: dict[str, str], started: list[ProxyConfig]
) -> None:
    with pytest.raises(SettingsError) as caught:
        edge.proxy(load(environ), NOTHING)
    assert next(iter(environ)) in caught.value.message
    assert caught.value.hint
    assert not started


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (AddressError("cannot listen on 127.0.0.1 port 3000: Address already in use"), "CODIUS_PORT"),
        (CertificateError("/certificates/a/privkey.pem cannot be read: Permission denied"), "0640"),
        (LogError("cannot write the access log /log: Permission denied"), "directory"),
    ],
)
def test_a_front_door_that_cannot_be_set_up_says_why_and_what_to_do(
    error: SetupError, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: ProxyConfig, **__: Any) -> None:
        raise error

    monkeypatch.setattr(server, "run", run)
    with pytest.raises(edge.StartError) as caught:
        edge.proxy(load({}), NOTHING)
    assert str(error) in caught.value.message
    assert caught.value.hint is not None
    assert hint in caught.value.hint
