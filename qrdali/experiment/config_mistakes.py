"""Says in one line what is wrong with a TOML file that pydantic has refused."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from qrdali.errors import printable
from qrdali.runs.setting_table import near_names


def first_mistake(error: ValidationError | TypeError, model: type[BaseModel]) -> str:
    """Returns the first key that is wrong, its value and the rule, with names near an unknown one.

    model: of the whole file.
    """
    if isinstance(error, TypeError):
        return printable(error)
    first = error.errors()[0]
    place = first["loc"]
    # People count tables from 1.
    key = printable(".".join(f"{part + 1}" if isinstance(part, int) else str(part) for part in place))
    if first["type"] == "missing":
        return f"{key} is missing"
    near = ""
    if first["type"] == "extra_forbidden":
        near = near_names(str(place[-1]), _keys_at(place[:-1], model))
    elif first["type"] == "literal_error":
        near = near_names(str(first["input"]), re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    return f"{key} = {printable(repr(first['input'])):.80}: {first['msg']}{near}"


def _keys_at(place: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Returns the keys that the table at a place of the file may have."""
    for part in place:
        if isinstance(part, int):
            continue  # one of several tables of the same kind
        annotation = model.model_fields[part].annotation
        model = next(kind for kind in (annotation, *get_args(annotation)) if _is_table(kind))
    return list(model.model_fields)


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
