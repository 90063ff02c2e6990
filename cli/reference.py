"""Writes docs/reference: the options of `qrdali train` from the settings, and the help of every command.

`python -m qrdali.cli.reference [FOLDER]` writes the pages, by default into docs/reference.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from qrdali.cli.main import cli
from qrdali.cli.train_options import own_options
from qrdali.files.atomic import write_whole
from qrdali.runs.option import EVERY, Topic
from qrdali.runs.setting_table import Kind, Setting, settings_table
from qrdali.runs.settings import Settings
from qrdali.runs.settings_text import describe_toml_default

_COLUMNS = 80
_TRAIN = """\
# Options of `qrdali train`

Made by `make reference` of the settings themselves; what is changed here by hand is lost.

```text
qrdali train METHOD --data DATA --run RUN [OPTIONS]
```

METHOD is {methods}.

Each setting is one option, one key of TOML files (`--config`, a run's `config.toml`, the tables of an
experiment) and one keyword of `qrdali.train`; key and keyword are alike. `--print-config` prints all of them,
as they would be, as a TOML file with this help in it. A value outside its range, an unknown key and an option
of another method are refused in one line. A file may hold settings of several methods: those that a method
does not have are without effect.
"""
_COMMANDS = """\
# Commands

Made by `make reference` of the commands themselves; what is changed here by hand is lost. The options of
`qrdali train` have [a page of their own](train.md), with their ranges and TOML keys.
"""


def main() -> None:
    """Writes the pages into the folder that is the first argument of this process, or docs/reference."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        write_whole(folder / name, text.encode())


def pages() -> dict[str, str]:
    """Returns the text of each page by its file name."""
    return {"train.md": train_page(), "commands.md": commands_page()}


def train_page() -> str:
    """Returns the page on the options of `qrdali train`, in Markdown."""
    methods = ", ".join(f"`{method}`" for method in EVERY)
    parts, own = [_TRAIN.format(methods=methods)], own_options()
    settings = settings_table(Settings).values()
    columns = ("option", "what it does", "value", "default", "methods", "key")
    for topic in Topic:
        rows = [_row(setting) for setting in settings if setting.option and setting.option.topic is topic]
        parts.append(_table(topic.value, columns, rows))
        if options := own.get(topic):
            rows = [(f"`{option.opts[0]}`", option.help or "") for option in options]
            parts.append(_table("", ("option, no setting", "what it does"), rows))
    rows = [
        (f"`{setting.name}`", setting.help, setting.describe_range() or setting.kind.value)
        for setting in settings
        if setting.option is None
    ]
    parts.append(_table("Keys of config.toml that are no options", ("key", "what it holds", "value"), rows))
    return "\n".join(parts)


def _row(setting: Setting) -> tuple[str, ...]:
    assert setting.option is not None
    flag = f"`{setting.flag}`"
    if setting.option.is_pair:
        flag += f", `--no-{setting.flag[2:]}`"
    methods = "all" if setting.methods == EVERY else ", ".join(setting.methods)
    if setting.option.schedules:
        methods += f"; with `--lr-schedule` {', '.join(setting.option.schedules)}"
    return (
        flag,
        setting.option.help or setting.help,
        _value(setting),
        describe_toml_default(setting, setting.methods[0]) or "none",
        methods,
        f"`{setting.name}`",
    )


def _value(setting: Setting) -> str:
    """Returns the type of a value and its range or choices."""
    assert setting.option is not None
    limits = setting.describe_range()
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    if setting.kind is Kind.FLAG:
        return "a flag; true or false in a file"
    if setting.kind is Kind.KEYWORDS:
        return "`K=V`, repeatable; a table in a file"
    if setting.kind is Kind.FOLDERS:
        return "`NAME=FOLDER`, repeatable; a table in a file"
    kind = "path" if setting.option.is_path else setting.kind.value
    if setting.kind is Kind.TEXT and setting.option.metavar:
        kind = f"`{setting.option.metavar}`"
    kind += ", on the command line with % too" if setting.option.is_share else ""
    return f"{kind}, {limits}" if limits else kind


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"## {title}\n"] if title else []
    lines += [_line(columns), _line(("---",) * len(columns)), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def commands_page() -> str:
    """Returns the page with the help of every command, in Markdown."""
    root = click.Context(cli, info_name="qrdali", terminal_width=_COLUMNS, **cli.context_settings)
    shown = (
        f"## {context.command_path}\n\n```text\n{context.get_help().rstrip()}\n```\n"
        for context in _contexts(root)
    )
    return "\n".join([_COMMANDS, *shown])


def _contexts(context: click.Context) -> Iterator[click.Context]:
    """Yields the context of a command, and those of the commands below it, each after its group."""
    yield context
    group = context.command
    if not isinstance(group, click.Group):
        return
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from _contexts(click.Context(command, info_name=name, parent=context))


if __name__ == "__main__":
    main()
