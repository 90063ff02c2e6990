"""Reads the table of what networks cost, which comes with qrdali because counting them all takes minutes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, resources

TABLE = "network_costs.tsv"
FIELDS = ("library", "version", "name", "parameters", "multiply_adds", "input_size")


@dataclass(frozen=True)
class Cost:
    """Holds a network's parameters with 1000 classes and 10^9 multiply-adds of an image of input_size pixels.

    gmacs is None where torch cannot count them.
    """

    parameters: int
    gmacs: float | None
    input_size: int


def installed_version(library: str) -> str:
    """Returns the version of a distribution without its local part: 0.29.2 of 0.29.2+cu126."""
    return metadata.version(library).partition("+")[0]


def cost_of(library: str, name: str) -> Cost | None:
    """Returns what a network of "timm" or "torchvision" costs.

    None if the table lacks it, or was counted with another version of the library than is installed.
    """
    return _table().get((library, name))


def listed_names() -> list[str]:
    """Returns the names of the table, sorted, whatever version it was counted with. Imports no library."""
    return sorted({row["name"] for row in _rows()})


def _rows() -> Iterator[dict[str, str]]:
    text = (resources.files("qrdali") / TABLE).read_text(encoding="utf-8")
    return csv.DictReader(text.splitlines(), delimiter="\t")


@lru_cache
def _table() -> dict[tuple[str, str], Cost]:
    installed = {library: installed_version(library) for library in ("timm", "torchvision")}
    return {
        (row["library"], row["name"]): Cost(
            int(row["parameters"]),
            int(row["multiply_adds"]) / 1e9 if row["multiply_adds"] else None,
            int(row["input_size"]),
        )
        for row in _rows()
        if installed.get(row["library"]) == row["version"]
    }
