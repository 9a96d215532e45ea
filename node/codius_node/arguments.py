"""What several commands take from the command line: hashes, settings files, JSON for scripts."""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_hash(text: str) -> str:
    """A manifest's hash; for argparse."""
    from codius_node.schema import HASH_PATTERN

    if not HASH_PATTERN.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no hash: that is 52 characters of a-z and 2-7")
    return text


def add_json(command: argparse.ArgumentParser, what: str = "one JSON object, for scripts") -> None:
    command.add_argument("--json", action="store_true", help=what)


def add_env_file(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--env-file",
        metavar="FILE",
        type=Path,
        help="settings from a file of NAME=value lines; what is in the environment goes first",
    )
