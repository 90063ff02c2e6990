"""Puts the rows together that a group's runs have of one set, where they are of the same images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from qrdali.data.class_matching import ClassList, first_synonym
from qrdali.errors import printable
from qrdali.report.groups import Configuration, Group, some_names
from qrdali.report.read import Run
from qrdali.report.set_rows import SetRows


@dataclass(frozen=True)
class SharedRows:
    """Holds the rows of one set of all runs that have rows of the same images, in the same order.

    configurations: the baseline first, then in the group's order; each has only the runs with such rows.
    labels: int64 [N], in [0, len(classes)]; the last number stands for whatever is none of the classes.
    left_out: runs with rows of other images.
    """

    name: str
    classes: ClassList
    labels: npt.NDArray[np.int64]
    configurations: tuple[Configuration, ...]
    left_out: tuple[Run, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for configuration in self.configurations for run in configuration.runs)

    @property
    def images(self) -> int:
        return len(self.labels)

    def rows(self, run: Run) -> SetRows:
        """Returns the rows of one of the runs."""
        return run.sets[self.name]

    def correct(self) -> npt.NDArray[np.bool_]:
        """Returns of each run and image whether it is right, bool [runs, N]."""
        return np.stack([self.rows(run).correct for run in self.runs])

    def predictions(self, run: Run) -> npt.NDArray[np.int64]:
        """Returns a run's predictions, int64 [N] in [0, len(classes)], numbered as `labels` are."""
        return bounded(self.rows(run).predictions, len(self.classes))

    def class_name(self, label: int) -> str:
        """Returns the name of a class that people read, control characters replaced; of any number after the
        last one "none of the classes".

        Of a readable name only the first synonym is shown where no other class has the same.
        """
        return self._shown[label] if label < len(self._shown) else "none of the classes"

    @cached_property
    def _shown(self) -> list[str]:
        first = [printable(first_synonym(name)) for name in self.classes.readable]
        counts = Counter(first)
        if not first:
            return [printable(name) for name in self.classes.names]
        return [
            synonym if counts[synonym] == 1 else printable(f"{synonym} ({name})")
            for synonym, name in zip(first, self.classes.names, strict=True)
        ]

    @property
    def notes(self) -> list[str]:
        """Returns what a reader of figures of these rows must know."""
        if not self.left_out:
            return []
        names = some_names(list(self.left_out))
        return [f"The rows of {self.name} of {names} are of other images and left out."]


def bounded(numbers: npt.NDArray[np.integer], classes: int) -> npt.NDArray[np.int64]:
    """Returns class numbers as int64 [N] in [0, classes], where `classes` stands for any other number."""
    wide = numbers.astype(np.int64)
    return np.where((wide < 0) | (wide > classes), classes, wide)


def shared_rows(group: Group) -> list[SharedRows]:
    """Returns the rows of every set of a group, val first, of the images that most runs have rows of."""
    shared = []
    for name in group.sets:
        runs = [run for run in group.runs if name in run.sets]
        if not runs:
            continue
        digests = Counter(run.sets[name].digest for run in runs)
        digest = digests.most_common(1)[0][0]
        alike = {run.name: run for run in runs if run.sets[name].digest == digest}
        chosen = (
            replace(configuration, runs=tuple(run for run in configuration.runs if run.name in alike))
            for configuration in group.configurations
        )
        ordered = sorted(
            (configuration for configuration in chosen if configuration.runs),
            key=lambda configuration: not configuration.is_baseline,
        )
        rows = next(iter(alike.values())).sets[name]
        others = tuple(run for run in runs if run.name not in alike)
        labels = bounded(rows.labels, len(rows.classes))
        shared.append(SharedRows(name, rows.classes, labels, tuple(ordered), others))
    return shared
