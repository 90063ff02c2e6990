"""Figures of evaluation suites, computed from the rows that `evaluate --suite` has written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.data.suite_definitions import suite_definition
from qrdali.data.suite_names import SUITES
from qrdali.errors import InputError, RunError, printable
from qrdali.evaluation.chance import Chance, chance, most_frequent
from qrdali.evaluation.corruption_errors import CorruptionErrors, corruption_errors
from qrdali.evaluation.prediction_rows import (
    has_true_class,
    negative_log_likelihood,
    read_metadata,
    read_rows,
    top5_accuracy,
)
from qrdali.runs.folder import weights_digest

KEY = "suite"  # of what the metadata of rows says of the suite that they are of
# Sets that may hold ImageNet's validation images without corruption; the first that does is taken.
CLEAN_SETS = ("test", "val", "imagenet-val")
_MOST_NAMED = 3  # sets that a sentence names
Warn = Callable[[str], None]


@dataclass(frozen=True)
class SuiteRows:
    """Describes the rows of one set of a suite, as their metadata does.

    suite: its name. corruption, severity: of ImageNet-C, otherwise "" and 0. classes: how many classes have a
    folder. answers: among how many classes the network answered. restricted: whether the network has more.
    files: digest of the listing that was evaluated. names: digest of the images' names. unreadable: files
    that were left out. weights: SHA-256 of the network's weights. computed: device and precision. right:
    digest of the right answers where there are several, otherwise "".
    """

    suite: str
    corruption: str = ""
    severity: int = 0
    classes: int = 0
    answers: int = 0
    restricted: bool = False
    files: str = ""
    names: str = ""
    unreadable: int = 0
    weights: str = ""
    computed: str = ""
    right: str = ""

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> SuiteRows | None:
        """Returns what the metadata of rows says; None where they are of no suite, or it is damaged."""
        values = metadata.get(KEY)
        if not isinstance(values, dict) or values.get("suite") not in SUITES:
            return None
        kinds = {name: type(default) for name, default in asdict(cls("")).items()}
        if any(name not in kinds or type(value) is not kinds[name] for name, value in values.items()):
            return None
        return cls(**values)

    def to_metadata(self) -> dict[str, Any]:
        """Returns the metadata of rows that `from_metadata` reads."""
        return {KEY: asdict(self)}


@dataclass(frozen=True)
class SetFigures:
    """Holds the figures of one set of a suite.

    negative_log_likelihood: None for a network of NaN. most_frequent: images of the most frequent of the
    classes that the rows are of, whatever other classes the network knows.
    """

    rows: SuiteRows
    images: int
    correct: int
    top5_accuracy: float
    negative_log_likelihood: float | None
    most_frequent: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.images

    @property
    def chance(self) -> Chance:
        """Returns the comparison with the same answer to every image of the set."""
        return chance(self.correct, self.images, self.most_frequent)


@dataclass(frozen=True)
class SuiteFigures:
    """Holds the figures of a suite. sets: by the name of their rows. corruption_errors: of ImageNet-C."""

    suite: str
    sets: dict[str, SetFigures]
    corruption_errors: CorruptionErrors | None = None
    clean_set: str | None = None
    map_rule: str = ""

    @property
    def images(self) -> int:
        return sum(figures.images for figures in self.sets.values())

    @property
    def correct(self) -> int:
        return sum(figures.correct for figures in self.sets.values())

    @property
    def accuracy(self) -> float:
        """Returns the share of images that are right, over all sets."""
        return self.correct / self.images

    @property
    def top5_accuracy(self) -> float:
        return sum(f.top5_accuracy * f.images for f in self.sets.values()) / self.images

    @property
    def negative_log_likelihood(self) -> float | None:
        total = 0.0
        for figures in self.sets.values():
            if figures.negative_log_likelihood is None:
                return None
            total += figures.negative_log_likelihood * figures.images
        return total / self.images

    def not_above_chance(self, run: str) -> str:
        """Returns the sentence on which sets a run is not above chance, "" where it is on all."""
        sets = {name: one.chance for name, one in self.sets.items() if one.chance.is_not_above}
        if not sets:
            return ""
        if len(self.sets) == 1:
            ((name, of_chance),) = sets.items()
            return of_chance.sentence(run, name)
        named = [f"{name}: {of_chance.figures}" for name, of_chance in sets.items()][:_MOST_NAMED]
        more = f"; and {len(sets) - _MOST_NAMED} more" if len(sets) > _MOST_NAMED else ""
        return (
            f"{run} is not above chance on {len(sets)} of {len(self.sets)} sets by one-sided binomial tests "
            f"({'; '.join(named)}{more})"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the figures of the suite as a whole."""
        first = next(iter(self.sets.values())).rows
        values: dict[str, Any] = {
            "suite": self.suite,
            "images": self.images,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "top5_accuracy": self.top5_accuracy,
            "negative_log_likelihood": self.negative_log_likelihood,
            "images_published": self.images_published,
            "classes": max(figures.rows.classes for figures in self.sets.values()),
            "answers": first.answers,
            "restricted": first.restricted,
        }
        if self.map_rule:
            values["map_rule"] = self.map_rule
        if self.corruption_errors is not None:
            values |= self.corruption_errors.to_json() | {"clean_set": self.clean_set}
        return values

    @property
    def images_published(self) -> int | None:
        """Returns how many images the whole suite has, of ImageNet-C in each set; None if it is not known."""
        return suite_definition(self.suite).images

    @property
    def is_whole(self) -> bool:
        """Returns whether all published images are there; False where their number is not known."""
        if self.images_published is None:
            return False
        return all(figures.images == self.images_published for figures in self.sets.values())


def names_digest(paths: Iterable[str]) -> str:
    """Returns the SHA-256 of the names of files, in any order."""
    names = sorted(os.path.basename(path) for path in paths)
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).hexdigest()


def read_suites(
    run: Path, epoch: int, warn: Warn, only: Iterable[str] | None = None
) -> dict[str, SuiteFigures]:
    """Returns the figures of each suite that a run has rows of, in the order of SUITES.

    epoch: of the weights that the rows must be of. only: names of rows, where others are left aside. Rows
    that are damaged or of other weights are left out with a warning.
    """
    wanted = None if only is None else set(only)
    found: dict[tuple[str, str], dict[str, SetFigures]] = {}
    for file in sorted((run / "predictions").glob("*.parquet")):
        metadata = read_metadata(run, file.stem)
        described = SuiteRows.from_metadata(metadata)
        if KEY not in metadata or (wanted is not None and file.stem not in wanted):
            continue
        if described is None:
            warn(f"{printable(file)} does not say of which suite it is: left out")
            continue
        if metadata.get("epoch", epoch) != epoch:
            warn(
                f"{printable(file)} is of epoch {printable(metadata['epoch'])} and best/ of epoch {epoch}: "
                "left out"
            )
            continue
        try:
            rows = read_rows(run, file.stem, with_paths=False)
        except (InputError, RunError) as error:
            warn(f"{error}: left out")
            continue
        if not has_true_class(rows):
            warn(f"{printable(file)} lacks the rank and probability of the true class: left out")
            continue
        figures = _figures(described, rows)
        key = described.suite, str(metadata.get("map_rule", ""))
        found.setdefault(key, {})[file.stem] = figures
    suites: dict[str, SuiteFigures] = {}
    for suite, rule in sorted(found, key=lambda key: (SUITES.index(key[0]), key[1])):
        if sets := _of_these_weights(run, found[suite, rule], warn):
            name = f"{suite}-mapped-{rule}" if rule else suite
            suites[name] = _suite(run, epoch, suite, sets, rule)
    return suites


def _figures(described: SuiteRows, rows: npt.NDArray[np.void]) -> SetFigures:
    return SetFigures(
        described,
        len(rows),
        int(rows["correct"].sum()),
        top5_accuracy(rows["rank"]),
        negative_log_likelihood(rows["true_probability"]),
        most_frequent(rows["label"]),
    )


def _of_these_weights(run: Path, sets: dict[str, SetFigures], warn: Warn) -> dict[str, SetFigures]:
    """Returns the sets of the weights in best/ where a suite's rows are not all of the same weights."""
    if len({figures.rows.weights for figures in sets.values()}) == 1:
        return sets
    now = weights_digest(run)
    kept = {name: figures for name, figures in sets.items() if figures.rows.weights == now}
    warn(
        f"{printable(run)}: {len(sets) - len(kept)} of the {len(sets)} sets of "
        f"{next(iter(sets.values())).rows.suite} are of other weights than best/: left out"
    )
    return kept


def _suite(run: Path, epoch: int, suite: str, sets: dict[str, SetFigures], rule: str) -> SuiteFigures:
    definition = suite_definition(suite)
    if definition.layout != "corruptions":
        return SuiteFigures(suite, sets, map_rule=rule)
    errors = {
        (figures.rows.corruption, figures.rows.severity): 1 - figures.accuracy
        for figures in sets.values()
        if 1 <= figures.rows.severity <= definition.severities
    }
    clean = _clean_error(run, epoch, sets)
    clean_set, error = clean if clean is not None else (None, None)
    return SuiteFigures(suite, sets, corruption_errors(definition, errors, error), clean_set, rule)


def _clean_error(run: Path, epoch: int, sets: dict[str, SetFigures]) -> tuple[str, float] | None:
    """Returns a set that holds ImageNet-C's images without corruption, and the share of wrong answers.

    None if there is none, or the sets of the suite are not all of the same images.
    """
    if len({figures.rows.names for figures in sets.values()}) > 1:
        return None
    corrupted = _names(read_rows(run, next(iter(sets))))
    for name in CLEAN_SETS:
        metadata = read_metadata(run, name)
        if KEY in metadata or "map_rule" in metadata:
            continue
        try:
            rows = read_rows(run, name, epoch)
        except (InputError, RunError):
            continue
        is_there = np.isin(_names(rows), corrupted)
        if int(is_there.sum()) == len(corrupted):
            return name, 1 - float(rows["correct"][is_there].mean())
    return None


def _names(rows: npt.NDArray[np.void]) -> npt.NDArray[np.str_]:
    return np.array([os.path.basename(path) for path in rows["path"]])
