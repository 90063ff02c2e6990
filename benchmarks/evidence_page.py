"""Writes the tables and plots of docs/evidence.md from the files in benchmarks/results/photographs.

    python benchmarks/evidence_page.py            # writes what has changed
    python benchmarks/evidence_page.py --check    # exit status 1 if something would change

A table stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->` and ends in a comment that says where
in which file every figure is, as those of docs/performance.md do. photographs/evidence.py writes the files.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import evidence_plots
from performance_page import ABSENT, IMAGES, RESULTS, ROOT, filled, machine_of, value_at, write

PAGE = ROOT / "docs" / "evidence.md"
NETWORKS = ("small", "lite0")
CONTROLS = ("baseline", "sham", "random", "matched")
SETS = {
    "full": "test",
    "color": "test-color-0.5",
    "crop": "test-crop-0.5",
    "resolution": "test-resolution-0.5",
    "combination": "test-combination-0.5",
}

Row = dict[str, Any]


class Marked:
    """Makes the text of figures of one file, and remembers where in it each of them is."""

    def __init__(self, file: str, data: Row) -> None:
        self.file, self.data = file, data
        self.lines: list[str] = []

    def figure(self, keys: str, pattern: str) -> str:
        """Returns the figure at `keys` in a format of Python's, or a dash where there is none."""
        value = value_at(self.data, keys)
        if value is None:
            return ABSENT
        # What rounds to nothing has no sign.
        text = re.sub(r"^[+-](?=[0.]+$)", "", pattern.format(value))
        self.lines.append(f"{text} = {keys}")
        return text

    def below(self, header: list[str], rows: list[list[str]]) -> str:
        """Returns a table in Markdown, where its figures are from, and the comment for their test."""
        lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += ["", f"`{self.file}`: {machine_of(self.data, '')}", ""]
        return "\n".join([*lines, f"<!-- figures of {self.file}", *dict.fromkeys(self.lines), "-->", ""])


def marked(network: str) -> Marked | None:
    """Returns the file of a network, or None where there is none."""
    name = f"{RESULTS}/photographs/{network}.json"
    file = ROOT / name
    return Marked(name, json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def accuracies(found: Marked) -> str:
    """Returns the accuracy of each run on each test set, in percent: the mean over seeds."""
    rows = []
    for run in sorted(found.data["mean_accuracies"], key=_order):
        cells = [found.figure(f"mean_accuracies > {run} > {name} * 100", "{:.1f}") for name in SETS.values()]
        seeds = range(len(found.data["accuracies"][run]["test"]))
        each = ", ".join(found.figure(f"accuracies > {run} > test > {i} * 100", "{:.1f}") for i in seeds)
        rows.append([run, cells[0], f"({each})", *cells[1:]])
    return found.below(["run", "full", "each seed", *[f"{name} .5" for name in [*SETS][1:]]], rows)


def differences(found: Marked, kind: str) -> str:
    """Returns by how many points each run exceeds its controls, with intervals.

    kind: "full", or "reduced" for the test set of the run's own reduction.
    """
    families = found.data["differences"]
    places: dict[str, dict[str, int]] = {}
    for control in CONTROLS:
        for number, row in enumerate(families.get(f"{kind} against {control}", ())):
            places.setdefault(row["run"], {})[control] = number
    rows = []
    for run in sorted(places, key=_order):
        cells = [
            _difference(found, f"{kind} against {control}", number, "{:+.1f}", " * 100")
            if (number := places[run].get(control)) is not None
            else ABSENT
            for control in CONTROLS
        ]
        rows.append([run, *cells])
    return found.below(["run", *[f"− {control}" for control in CONTROLS]], rows)


def quotients(found: Marked) -> str:
    """Returns by how much the mean entropy quotient of each run exceeds the baseline's."""
    family = "quotient against baseline"
    rows = []
    for number, row in enumerate(found.data["differences"].get(family, ())):
        keys = f"differences > {family} > {number}"
        rows.append(
            [
                row["measure"].removeprefix("quotient "),
                row["run"],
                _difference(found, family, number, "{:+.3f}"),
                found.figure(f"{keys} > p_holm", "{:.3f}"),
                found.figure(f"{keys} > images", "{:.0f}"),
            ]
        )
    return found.below(["reduction", "run", "− baseline", "p, Holm", "images"], rows)


def _difference(found: Marked, family: str, number: int, pattern: str, factor: str = "") -> str:
    """Returns a difference with its interval; in bold where Holm's p is below .05."""
    keys = f"differences > {family} > {number}"
    middle = found.figure(f"{keys} > difference{factor}", pattern)
    low, high = (found.figure(f"{keys} > interval > {i}{factor}", pattern) for i in (0, 1))
    bold = "**" if found.data["differences"][family][number]["p_holm"] < 0.05 else ""
    return f"{bold}{middle}{bold} ({low} to {high})"


def _order(run: str) -> tuple[int, str]:
    names = ("shared", "baseline", "sham", "random", "fixed", "linear", "adaptive")
    return next((i for i, name in enumerate(names) if run == name or run.startswith(f"{name}-")), 99), run


def tables() -> dict[str, str]:
    """Returns the text of each region by its name."""
    makers: dict[str, Callable[[Marked], str]] = {
        "accuracy": accuracies,
        "full": partial(differences, kind="full"),
        "reduced": partial(differences, kind="reduced"),
        "quotient": quotients,
    }
    return {
        f"{network}-{name}": make(found)
        for network in NETWORKS
        for name, make in makers.items()
        if (found := marked(network)) is not None
    }


def page() -> str:
    """Returns docs/evidence.md with its regions written anew."""
    return filled(PAGE, tables())


def plots() -> dict[str, str]:
    """Returns each network's plot as SVG by the name of its file."""
    return {
        f"evidence-{network}.svg": evidence_plots.differences(found.data)
        for network in NETWORKS
        if (found := marked(network)) is not None
    }


def main(words: list[str]) -> int:
    return write(words, __doc__, {PAGE: page()} | {IMAGES / name: svg for name, svg in plots().items()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
