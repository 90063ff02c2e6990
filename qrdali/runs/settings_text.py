"""Settings as an annotated TOML file: every key with what it means, as `--print-config` prints it."""

from __future__ import annotations

import textwrap
from typing import Any

import tomli_w

from qrdali.runs.option import Topic
from qrdali.runs.setting_table import Kind, Setting, settings_table, takes
from qrdali.runs.settings import Settings

_WIDTH = 100
_OTHER_METHODS = "Of other methods: without effect"
_NO_OPTIONS = "What a run gets when it begins: no options"


def settings_text(settings: Settings) -> str:
    """Returns TOML of which `validate_settings` makes the same settings again, with comments.

    What is still open stands as a comment: the data set of settings that have none, and what the run of init
    decides. Keys stand by topic, those of other methods after them, and tables last, as TOML demands. A
    setting that is no option is left out at its default.
    """
    table, method = settings_table(type(settings)), settings.method
    sections: dict[str, list[Setting]] = {topic.value: [] for topic in Topic}
    sections |= {_OTHER_METHODS: [], _NO_OPTIONS: []}
    for setting in table.values():
        if setting.option is None:
            if getattr(settings, setting.name) == setting.default:
                continue
            title = Topic.START.value if setting.name == "method" else _NO_OPTIONS
        else:
            title = setting.option.topic.value if takes(setting, method) else _OTHER_METHODS
        sections[title].append(setting)
    lines = [f"# Settings of `qrdali train {method}`, for its --config; options on the command line win."]
    for title, members in sections.items():
        if scalars := [setting for setting in members if not _is_table(setting)]:
            lines += ["", f"# === {title} ==="]
            for setting in scalars:
                lines += ["", *_comment(setting, method), _line(setting, settings)]
    for setting in filter(_is_table, table.values()):
        text = tomli_w.dumps({setting.name: getattr(settings, setting.name)}).rstrip()
        lines += ["", *_comment(setting, method), text]
    return "\n".join(lines) + "\n"


def _is_table(setting: Setting) -> bool:
    return setting.kind in (Kind.KEYWORDS, Kind.FOLDERS)


def _line(setting: Setting, settings: Settings) -> str:
    """Returns key and value, as a comment where the value is still open."""
    value = getattr(settings, setting.name)
    line = toml_line(setting.name, value)
    is_open = setting.name == "data" and not value
    if settings.init and setting.option is not None and setting.option.is_of_start:
        is_open = setting.name not in settings.model_fields_set
    return f"# {line}" if is_open else line


def toml_line(key: str, value: Any) -> str:
    """Returns `key = value` as TOML has it. value: a number, a text, true or false, or a list of them."""
    return tomli_w.dumps({key: list(value) if isinstance(value, tuple) else value}).strip()


def _comment(setting: Setting, method: str) -> list[str]:
    """Returns the comment lines before a key: what it means, its range or choices, and its default."""
    text, limits = setting.help, setting.describe_range()
    if limits and setting.option is not None:
        text += f" One of {limits}." if setting.choices else f" {limits[0].upper()}{limits[1:]}."
    if default := describe_toml_default(setting, method):
        text += f" Default: {default}."
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def describe_toml_default(setting: Setting, method: str) -> str:
    """Returns the default as the file has it, and what it stands for in parentheses."""
    if setting.option is None or not setting.is_scalar or setting.default in (None, ""):
        return setting.describe_default()
    value = toml_line("x", setting.default_of(method)).removeprefix("x = ")
    shown, plain = setting.option.default or "", str(setting.default)
    if shown.startswith(plain):
        return value + shown.removeprefix(plain)
    return f"{value} ({shown})" if shown else value
