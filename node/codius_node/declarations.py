"""Settings as such: how one is declared, read from an environment, and shown to operators."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from codius_node.errors import SettingsError
from codius_node.values import WordError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting: what --help, the docs table and the templates are made from."""

    name: str
    accepts: str
    default: str
    help: str
    parse: Callable[[str], object]
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names it may be given by, its own first."""
        return (self.name, *self.aliases)


def declare(
    name: str,
    parse: Callable[[str], T],
    default: str,
    accepts: str,
    help: str,
    *,
    aliases: tuple[str, ...] = (),
) -> T:
    setting = Setting(name, accepts, default, help, parse, aliases)
    value: T = field(default=parse(default), metadata={"setting": setting})
    return value


def read(declared: Mapping[str, Setting], environ: Mapping[str, str]) -> dict[str, Any]:
    """The values that an environment gives, by attribute; SettingsError with one sentence per bad one."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for attribute, setting in declared.items():
        given = [name for name in setting.names if environ.get(name, "").strip()]
        if not given:
            continue
        texts = {environ[name].strip() for name in given}
        if len(texts) > 1:
            problems.append(f"{' and '.join(given)} are two names of one setting and differ; keep one.")
            continue
        try:
            values[attribute] = setting.parse(texts.pop())
        except (ValueError, ArithmeticError) as error:
            word = f" ({error.args[0]!r} is the trouble)" if isinstance(error, WordError) else ""
            problems.append(f"{given[0]}={environ[given[0]]!r} cannot be used{word}: give {setting.accepts}.")
    if problems:
        raise SettingsError(
            "\n".join(problems),
            hint="Correct the variable (or unset it for its default) and start again;"
            " `codiusd --help` lists them all.",
        )
    return values


def render_env(settings: Iterable[Setting]) -> str:
    """The environment file of an operator: every setting, commented out at its default."""
    lines = [
        "# Settings of Codius Host. Remove the # in front of a line to change it.",
        "# Generated from node/codius_node/config.py by `make docs`.",
    ]
    for setting in settings:
        lines += ["", f"# {setting.help}", f"# ({setting.accepts})", f"#{setting.name}={setting.default}"]
    return "\n".join(lines) + "\n"


def render_table(settings: Iterable[Setting]) -> str:
    """The Markdown table of the docs."""
    rows = ["| setting | default | accepts | what it does |", "|---|---|---|---|"]
    for setting in settings:
        names = "<br>".join(f"`{name}`" for name in setting.names)
        default = f"`{setting.default}`" if setting.default else ""
        rows.append(f"| {names} | {default} | {setting.accepts} | {setting.help} |")
    return "\n".join(rows) + "\n"


def render_help(settings: Collection[Setting]) -> str:
    """The settings for --help, as plain text."""
    width = max(len(setting.name) for setting in settings)
    lines = []
    for setting in settings:
        default = f" [{setting.default}]" if setting.default else ""
        lines.append(f"  {setting.name:<{width}}  {setting.help}{default}")
    return "\n".join(lines)
