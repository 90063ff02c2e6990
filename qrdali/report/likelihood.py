"""The table of top-5 accuracy and negative log-likelihood, of every set whose rows hold what they are of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from qrdali.data.set_names import MAPPED
from qrdali.report.accuracy import digits, percent
from qrdali.report.groups import Configuration, Group
from qrdali.report.read import Run
from qrdali.report.set_rows import SetRows
from qrdali.report.tables import NOTHING, Cell, Table, number, words

_FEW_CLASSES = 5
_NOTE = (
    "Top-1 and top-5: percent of images whose class is the most probable answer, or among the five most "
    "probable. NLL: negative log-likelihood, the mean over images of −ln of the true class's probability; "
    "guessing among {classes} classes gives {chance:.3f}. Several seeds: mean ± standard deviation. A dash: "
    "rows written by a version that did not record these figures; `qrdali evaluate` makes them again."
)


def table(group: Group, slug: str) -> Table | None:
    """Returns the table, a line per set and configuration; None where no rows hold these figures."""
    shown = digits(group)
    rows: list[tuple[Cell, ...]] = []
    marked: set[int] = set()
    for name in group.sets:
        for configuration in group.configurations:
            if not any(name in run.sets for run in configuration.runs):
                continue
            if configuration.is_baseline:
                marked.add(len(rows))
            rows.append(
                (
                    words(name),
                    words(configuration.method),
                    words(configuration.reduction),
                    words(configuration.sequence),
                    number(len(configuration.runs)),
                    percent(configuration, name, shown),
                    _over_seeds(configuration, name, lambda rows: _times_100(rows.top5_accuracy), shown),
                    _over_seeds(configuration, name, lambda rows: rows.negative_log_likelihood, 3),
                )
            )
    if all(row[-2] == NOTHING and row[-1] == NOTHING for row in rows):
        return None
    columns = ("set", "method", "reduction", "sequence", "seeds", "top-1", "top-5", "NLL")
    return Table(
        slug,
        "Top-5 accuracy and negative log-likelihood",
        columns,
        tuple(rows),
        (*_notes(len(group.classes)), *_notes_of_mapped(group)),
        frozenset(marked),
    )


def _notes(classes: int) -> list[str]:
    notes = [_NOTE.format(classes=classes, chance=math.log(classes))]
    if classes <= _FEW_CLASSES:
        notes.append(f"There are {classes} classes: top-5 is 100% whatever a network says.")
    return notes


def _notes_of_mapped(group: Group) -> list[str]:
    """Returns a note on each set whose rows count classes of the data, not of the networks."""
    notes = []
    for name in group.sets:
        mapped = MAPPED.search(name)
        classes = next((len(run.sets[name].classes) for run in group.runs if name in run.sets), 0)
        if not mapped or not classes:
            continue
        if mapped[1] == "argmax":
            notes.append(
                f"On {name} the answers are the data's {classes} classes and each class of the network that "
                "maps to none of them."
            )
        else:
            few = "; top-5 is 100% whatever a network says" if classes <= _FEW_CLASSES else ""
            notes.append(
                f"On {name} the answers are the data's {classes} classes: guessing gives an NLL of "
                f"{math.log(classes):.3f}{few}."
            )
    return notes


def _over_seeds(
    configuration: Configuration, name: str, of: Callable[[SetRows], float | None], decimals: int
) -> Cell:
    """Returns the cell of a figure of the rows of a set, mean ± standard deviation over seeds; with their
    number where some seeds lack it.
    """

    def value(run: Run) -> float | None:
        return of(run.sets[name]) if name in run.sets else None

    known = len(configuration.values(value))
    mean, sd = configuration.mean(value)
    cell = number(mean, f".{decimals}f", sd)
    if 0 < known < len(configuration.runs):
        cell = replace(cell, text=f"{cell.text} ({known} of {len(configuration.runs)})")
    return cell


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value
