"""Finds the recipes that came with qrdali, files of settings for `qrdali train --config recipes/NAME`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from qrdali.errors import InputError, printable

_FOLDER = Path(__file__).parents[1] / "configs" / "recipes"
_MOST_COMPARED = 100  # characters of a name that may be of any length
# What says which weights a training begins with: where the command says it, a file does not.
_STARTS = ("init", "pretrained")


def recipe_names() -> tuple[str, ...]:
    """Returns the names of all recipes, such as "recipes/thesis", in alphabetical order."""
    return tuple(sorted(f"recipes/{file.stem}" for file in _FOLDER.glob("*.toml")))


def find_settings_file(name: str) -> Path:
    """Returns the file that `--config` names: a file of the caller's, or else a recipe that came with qrdali.

    name: a path, or the name of a recipe with or without .toml. Raises InputError if there is neither, with
    the recipes whose names are near.
    """
    file = Path(name)
    if os.path.lexists(name):
        return file
    bare = name.removesuffix(".toml").removeprefix("configs/")
    if bare in recipe_names():
        own = Path(f"{name}.toml")
        return own if os.path.lexists(own) else _FOLDER / f"{bare.removeprefix('recipes/')}.toml"
    near = _near(bare)
    raise InputError(
        f"--config {printable(name)[:200]}: there is no such file"
        + (f"; did you mean {' or '.join(near)}?" if near else "")
        + f"; {', '.join(recipe_names())} came with qrdali"
    )


def _near(name: str) -> list[str]:
    """Returns the recipes that someone who wrote `name` may have meant, by their last part."""
    stems = {recipe.rpartition("/")[2]: recipe for recipe in recipe_names()}
    typed = PurePosixPath(name[-_MOST_COMPARED:]).name.lower()
    return [stems[stem] for stem in difflib.get_close_matches(typed, list(stems), 3, 0.6)]


def merge(of_file: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a file and those that are given with the command, which win.

    Weights that the command begins with take the place of the file's, and with a run its network that of the
    file's `model`.
    """
    values = dict(of_file)
    if any(given.get(key) for key in _STARTS):
        values = {key: value for key, value in values.items() if key not in _STARTS}
    if given.get("init"):
        values.pop("model", None)
    return {**values, **given}
