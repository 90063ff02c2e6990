"""What the fields of `Settings` say of each setting, in one form for options, TOML files, checks and docs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qrdali.runs.option import EVERY, Option

_MOST_COMPARED = 200  # characters of a name that may be of any length


class Kind(Enum):
    """Names the types of settings as a reader of the reference knows them."""

    FLAG = "true or false"
    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "text"
    CHOICE = "choice"
    KEYWORDS = "table of numbers, texts and lists"
    FOLDERS = "table of folders by name"
    NAMES = "list of names"


@dataclass(frozen=True)
class Setting:
    """Describes one setting.

    name: the field's, which is the key in TOML files and the keyword in Python. default: of the field, None
    if the setting must be given. choices: of a choice. low, high: the bounds of a number, None for none;
    is_low_open, is_high_open: whether the bound itself is excluded. option: None of a setting that is none.
    """

    name: str
    kind: Kind
    help: str
    default: Any
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    is_low_open: bool = False
    is_high_open: bool = False
    option: Option | None = None

    @property
    def flag(self) -> str:
        """Returns the option on the command line, such as --batch-size; "" of a setting that is none."""
        if self.option is None:
            return ""
        name = self.option.name or self.name.replace("_", "-")
        return f"--no-{name}" if self.is_negated else f"--{name}"

    @property
    def is_negated(self) -> bool:
        """Returns whether the option switches off what is on by default."""
        return self.kind is Kind.FLAG and self.default is True

    @property
    def methods(self) -> tuple[str, ...]:
        """Returns the methods that have the setting as an option."""
        return () if self.option is None else self.option.methods

    def default_of(self, method: str) -> Any:
        """Returns the default of a method."""
        if self.option is None or self.option.method_default is None or method not in self.option.methods:
            return self.default
        return self.option.method_default

    def describe_default(self) -> str:
        """Returns the default of the methods that have the option, as help shows it; "" for none."""
        if self.option is not None and self.option.default is not None:
            return self.option.default
        default = self.default_of(self.methods[0]) if self.methods else self.default
        if isinstance(default, bool) or default is None or default == "":
            return ""
        return f"{default:g}" if isinstance(default, float) else str(default) if self.is_scalar else ""

    @property
    def is_scalar(self) -> bool:
        """Returns whether the value is one number, text or flag."""
        return self.kind not in (Kind.KEYWORDS, Kind.FOLDERS, Kind.NAMES)

    def describe_range(self) -> str:
        """Returns the choices or the bounds, such as "more than 0, at most 0.5"; "" where all is allowed."""
        if self.choices:
            return " | ".join(map(str, self.choices))
        bounds = []
        if self.low is not None:
            bounds.append(f"{'more than' if self.is_low_open else 'at least'} {_number(self.low)}")
        if self.high is not None:
            bounds.append(f"{'less than' if self.is_high_open else 'at most'} {_number(self.high)}")
        return ", ".join(bounds)


@cache
def settings_table(settings: type[BaseModel]) -> dict[str, Setting]:
    """Returns what the fields of a class of settings say, by name, in their order."""
    return {name: _setting(name, field) for name, field in settings.model_fields.items()}


def _setting(name: str, field: FieldInfo) -> Setting:
    # Each bound is metadata of its own, with one of these attributes.
    bounds = {
        key: getattr(item, key)
        for item in field.metadata
        for key in ("ge", "gt", "le", "lt")
        if hasattr(item, key)
    }
    kind = _kind(field.annotation)
    return Setting(
        name,
        kind,
        field.description or "",
        None if field.is_required() else field.get_default(call_default_factory=True),
        get_args(field.annotation) if kind is Kind.CHOICE else (),
        low=bounds.get("ge", bounds.get("gt")),
        high=bounds.get("le", bounds.get("lt")),
        is_low_open="gt" in bounds,
        is_high_open="lt" in bounds,
        option=next((item for item in field.metadata if isinstance(item, Option)), None),
    )


def _kind(annotation: Any) -> Kind:
    """Returns what a field's type is. Raises TypeError for a type that no setting has had so far."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    if origin is Literal:
        return Kind.CHOICE
    if origin is dict:
        return Kind.FOLDERS if get_args(annotation)[1] is str else Kind.KEYWORDS
    if origin is tuple:
        return Kind.NAMES
    plain = {bool: Kind.FLAG, int: Kind.INTEGER, float: Kind.NUMBER, str: Kind.TEXT}
    if annotation in plain:
        return plain[annotation]
    raise TypeError(f"no setting is of type {annotation}: add it to qrdali.runs.setting_table.Kind")


def takes(setting: Setting, method: str) -> bool:
    """Returns whether a method has a setting. Settings that are no options belong to all methods."""
    return setting.option is None or method in setting.option.methods or method not in EVERY


def has_setting(setting: Setting, method: str, schedule: str) -> bool:
    """Returns whether a method with a schedule of the learning rate has a setting."""
    schedules = () if setting.option is None else setting.option.schedules
    return takes(setting, method) and (not schedules or schedule in schedules)


def describe_refusal(setting: Setting, method: str) -> str:
    """Returns the error for a setting that is given to a method that does not have it."""
    *others, last = setting.methods
    owners = f"{', '.join(others)} and {last}" if others else last
    return f"{setting.flag} is for {owners}, not {method}: leave it out"


def near_names(name: str, names: Iterable[str]) -> str:
    """Returns "; near it: a, b" of the names that someone who wrote `name` may have meant, "" for none."""
    near = difflib.get_close_matches(name[:_MOST_COMPARED], list(names), 3, 0.5)
    return f"; near it: {', '.join(near)}" if near else ""


def _number(value: float) -> str:
    if isinstance(value, int) and value >= 1 << 20 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:g}" if isinstance(value, float) else str(value)
