"""The environment of a command: the process's own, and a settings file as systemd would read it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from codius_node.errors import SettingsError

HOST_VARIABLE: Final = "CODIUS_HOST_URI"
"""The host clients talk to; no setting of a host."""
MAX_ENV_FILE: Final = 64 * 1024
"""Bytes; a settings file has some two hundred lines at most."""
_ENV_LINE: Final = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")


class Environment:
    """What a command was given: the process's own variables, and behind them a file that may change."""

    def __init__(self, own: Mapping[str, str], path: Path | None) -> None:
        self._own = dict(own)
        self._path = path

    def read(self) -> dict[str, str]:
        """As it is now; SettingsError when the file cannot be read."""
        if self._path is None:
            return dict(self._own)
        try:
            with self._path.open(encoding="utf-8") as file:
                text = file.read(MAX_ENV_FILE)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"{self._path} cannot be read: {error}",
                hint="Name a file of NAME=value lines with --env-file.",
            ) from error
        return {**parse_env_file(text, self._path), **self._own}


def read_environ(path: Path | None) -> Mapping[str, str]:
    """The environment, with the file's settings added for us and for the processes we start."""
    os.environ.update(Environment(os.environ, path).read())
    return os.environ


def parse_env_file(text: str, path: Path) -> dict[str, str]:
    """NAME=value lines as in systemd's EnvironmentFile: # or ; begins a comment, quotes may surround."""
    found: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        match = _ENV_LINE.fullmatch(line)
        if match is None:
            raise SettingsError(
                f"{path}, line {number}: {line!r} is not NAME=value", hint="Correct it, or put # in front."
            )
        value = match[2].strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[match[1]] = value
    return found


def render_env_file(values: Mapping[str, str]) -> str:
    """Lines that `parse_env_file` reads as these values, none of which has more than one line."""
    return "".join(f"{name}='{value}'\n" for name, value in values.items())
