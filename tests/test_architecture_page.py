"""Compares the table of rooms in docs/explanation/architecture.md with the package and with its layers."""

import re
from pathlib import Path

import pytest

from qrdali.runs.settings import read_toml

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/explanation/architecture.md").read_text("utf-8")
WITHOUT_ROW = {"__init__", "__main__", "configs"}  # what starts the package, and a folder without code


def rooms() -> dict[str, int]:
    """Returns the layer of each room that the table has, by the name of its module."""
    rows = re.findall(r"^\| (\d+) \| `(?:qrdali/)?(\w+)(?:/|\.py)` \|", PAGE, re.MULTILINE)
    assert rows
    names = [name for _, name in rows]
    assert len(set(names)) == len(names), "a room stands there twice"
    return {name: int(layer) for layer, name in rows}


def test_every_room_and_file_of_the_package_has_a_row() -> None:
    entries = (ROOT / "qrdali").iterdir()
    modules = {
        entry.stem
        for entry in entries
        if entry.suffix == ".py" or (entry.is_dir() and entry.name != "__pycache__")
    }
    assert set(rooms()) == modules - WITHOUT_ROW


def test_the_layers_are_those_that_lint_holds() -> None:
    contracts = read_toml(ROOT / "pyproject.toml")["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    held = {
        name.removeprefix("qrdali."): number
        for number, layer in enumerate(layers, 1)
        for name in re.split(r"\s*[|:]\s*", layer)
    }
    assert rooms() == held


@pytest.mark.parametrize("file", sorted(set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|tsv))`", PAGE))))
def test_every_file_that_the_page_names_is_there(file: str) -> None:
    assert any((ROOT / folder / file).exists() for folder in (".", "qrdali"))
