"""Makes command line options of settings: names, types, choices, defaults and help come from their fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from qrdali.runs.setting_table import Kind, Setting, near_names, settings_table
from qrdali.runs.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


class NearChoice(click.Choice[Any]):
    """A choice whose error names those near what was given."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx)
        return message.rstrip(".") + near_names(str(value).lower(), map(str, self.choices))


def train_option(setting: Setting) -> click.Option:
    """Returns the option of `qrdali train` for a setting. Its value is None where it is not given.

    Ranges are checked when all settings are known, those of a TOML file too.
    """
    assert setting.option is not None
    default = setting.describe_default()
    help = setting.option.help or setting.help
    if default:
        help = f"{help}  [default: {default}]"
    given: dict[str, Any] = {"help": help, "default": None}
    if setting.option.metavar:
        given["metavar"] = setting.option.metavar
    if setting.name == "model":
        given["shell_complete"] = complete_network
    declarations = [setting.flag, setting.name]
    if setting.kind is Kind.FLAG:
        if setting.is_negated:
            given |= {"flag_value": False, "type": bool}
        elif setting.option.is_pair:
            declarations = [f"{setting.flag}/--no-{setting.flag[2:]}", setting.name]
        else:
            given["is_flag"] = True
    elif setting.kind in (Kind.KEYWORDS, Kind.FOLDERS):
        given |= {"multiple": True, "callback": _keywords if setting.kind is Kind.KEYWORDS else _folders}
        given.setdefault("metavar", "K=V" if setting.kind is Kind.KEYWORDS else "NAME=FOLDER")
    else:
        given["type"] = _type(setting)
        given["callback"] = _share if setting.option.is_share else _choice_of(setting)
    return click.Option(declarations, **given)


def setting_option(name: str, *, default_text: str = "", **changed: Any) -> Callable[[F], F]:
    """Adds the option of a setting to another command than `train`, where it means the same.

    The type with its range, the choices, the default and the help are the setting's. A value that only stands
    for "not given", as 0 of --threads does, is refused: the option is left out instead. default_text: what
    help shows as the default of an option that has none. changed: what `click.option` is given in place of
    the setting's own, such as default or help.
    """
    setting = settings_table(Settings)[name]
    assert setting.option is not None
    stands_for = _stands_for(setting)
    default_text = default_text or (stands_for if not {"default", "help"} & changed.keys() else "")
    given: dict[str, Any] = {"help": setting.option.help or setting.help, "type": _ranged_type(setting)}
    if setting.kind is Kind.CHOICE:
        given["callback"] = _choice_of(setting)
    if setting.option.metavar:
        given["metavar"] = setting.option.metavar
    default = setting.default
    given["default"] = None if stands_for else str(default) if setting.kind is Kind.CHOICE else default
    given |= changed
    given["show_default"] = given["default"] is not None
    if default_text:
        given["help"] += f"  [default: {default_text}]"
    return click.option(setting.flag, setting.name, **given)


def complete_network(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Returns the names of networks that begin so, for a shell's completion."""
    from qrdali.network_costs import listed_names

    return [name for name in listed_names() if name.startswith(incomplete)]


def _stands_for(setting: Setting) -> str:
    """Returns what the default of a number stands for, "" where it is what it says."""
    if setting.option is None or setting.kind not in (Kind.INTEGER, Kind.NUMBER):
        return ""
    return setting.option.default or ""


def _type(setting: Setting) -> Any:
    if setting.kind is Kind.CHOICE:
        return NearChoice([str(choice) for choice in setting.choices])
    if setting.option is not None and setting.option.is_path:
        return click.Path()
    if setting.option is not None and setting.option.is_share:
        return str  # until its callback has read the percent sign
    return {Kind.INTEGER: int, Kind.NUMBER: float}.get(setting.kind, str)


def _ranged_type(setting: Setting) -> Any:
    if setting.kind is not Kind.INTEGER:
        return _type(setting)
    low, high = (None if bound is None else int(bound) for bound in (setting.low, setting.high))
    if _stands_for(setting) and setting.default == low:
        low = int(setting.default) + 1
    return click.IntRange(low, high, max_open=setting.is_high_open)


def _choice_of(setting: Setting) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Returns a callback that turns the text of a choice into the choice, which may be a number."""
    by_text = {str(choice): choice for choice in setting.choices}
    return lambda context, parameter, text: by_text.get(text, text)


def _share(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Returns a share, given as 0.001 or 0.1%."""
    try:
        return None if text is None else float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a share: give 0.001 or 0.1%") from None


def _keywords(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> Any:
    return parse_keywords(texts, parameter.opts[0]) or None


def _folders(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> Any:
    from qrdali.data.set_names import parse_named_sets

    return (parse_named_sets(texts, parameter.opts[0]) or None) if texts else None


def parse_keywords(texts: tuple[str, ...], option: str) -> dict[str, Any]:
    """Returns the values of K=V texts by keyword: numbers, true or false, texts, or, with commas, lists.

    Raises InputError for a text without a keyword or a value, and for a keyword that is given twice.
    """
    from qrdali.errors import InputError, printable

    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise InputError(f"{option} is {printable(text)[:80]!r}: give KEYWORD=VALUE")
        if key in values:
            raise InputError(f"{option} gives {printable(key)[:80]} twice: once is enough")
        values[key] = [_value(part) for part in value.split(",")] if "," in value else _value(value)
    return values


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
