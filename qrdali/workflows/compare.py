"""McNemar's test and error consistency of two runs on the same images, from the rows of `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.errors import InputError, printable
from qrdali.evaluation.chance import chance_of_rows
from qrdali.evaluation.consistency import ErrorConsistency, error_consistency
from qrdali.evaluation.prediction_rows import definitions_of, read_metadata, read_rows
from qrdali.evaluation.stats import McNemar, mcnemar, wilson
from qrdali.runs import configuration
from qrdali.runs import folder as run_folder
from qrdali.runs.same_weights import same_weights_note
from qrdali.runs.unfinished import unfinished_note


@dataclass(frozen=True)
class ComparedRun:
    """Holds one run's side of a comparison.

    run: the folder as given. correct: images that are right. accuracy: their share. wilson_95: Wilson's 95%
    interval of that share.
    """

    run: str
    correct: int
    accuracy: float
    wilson_95: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Holds McNemar's test of two runs on one set of images.

    a: images that both have right, b: only the first, c: only the second, d: neither. statistic = (b - c)² /
    (b + c), p_value by chi-square with one degree of freedom, exact_p_value by the binomial; stars: *** p <
    .001, ** p < .01, * p < .05. consistency: whether they err on the same images, by Cohen's kappa. notes:
    what a reader must know of the two runs, a sentence each.
    """

    a: int
    b: int
    c: int
    d: int
    statistic: float
    p_value: float
    exact_p_value: float
    stars: str
    set: str
    images: int
    runs: tuple[ComparedRun, ComparedRun]
    consistency: ErrorConsistency
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `qrdali compare --json` prints."""
        return {
            "a": self.a,
            "b": self.b,
            "c": self.c,
            "d": self.d,
            "statistic": self.statistic,
            "p_value": self.p_value,
            "exact_p_value": self.exact_p_value,
            "stars": self.stars,
            "kappa": self.consistency.kappa,
            "observed_agreement": self.consistency.observed,
            "expected_agreement": self.consistency.expected,
            "set": self.set,
            "images": self.images,
            "runs": [
                {"run": one.run, "accuracy": one.accuracy, "wilson_95": list(one.wilson_95)}
                for one in self.runs
            ],
            "notes": list(self.notes),
        }


def compare(run_a: str | Path, run_b: str | Path, *, set: str = "test") -> Comparison:
    """Compares two runs on the images of a set that both have been evaluated on.

    set: "train", "val", "test" or a name given to `evaluate`. Raises InputError where a run has no rows of
    the set, or the rows are not of the same images; RunError where they are damaged.
    """
    if "/" in set or set in ("", ".", ".."):
        raise InputError(f"--set is {printable(set)!r}: give the name of a set, such as test")
    folders = (Path(run_a), Path(run_b))
    first, second = (read_rows(run, set, _best_epoch(run)) for run in folders)
    metadata = [read_metadata(run, set) for run in folders]
    # The same images may have been mounted elsewhere.
    recorded = metadata[0].get("images")
    by_content = recorded is not None and recorded == metadata[1].get("images")
    if not by_content and _class_names(folders[0]) != _class_names(folders[1]):
        # Networks of other classes number labels and order folders otherwise: paths, which hold the class
        # folder, tell the images apart.
        first, second = (rows[np.argsort(rows["path"], kind="stable")] for rows in (first, second))
        keys: tuple[str, ...] = ("path",)
    else:
        # The fingerprint covers the labels, which networks of other classes count otherwise.
        keys = ("sample",) if by_content else ("sample", "path", "label")
    if len(first) != len(second) or any(not np.array_equal(first[key], second[key]) for key in keys):
        common = {*first["path"].tolist()} & {*second["path"].tolist()}
        raise InputError(
            f"the rows of {printable(set)} are not of the same images: {printable(run_a)} has {len(first)}, "
            f"{printable(run_b)} {len(second)}, {len(common)} of them in both; evaluate both on the same data"
        )
    test = mcnemar(first["correct"], second["correct"])
    images = len(first)
    counts = (int(first["correct"].sum()), int(second["correct"].sum()))
    one, other = (
        ComparedRun(str(run), count, count / images, wilson(count, images))
        for run, count in zip((run_a, run_b), counts, strict=True)
    )
    return Comparison(
        test.a,
        test.b,
        test.c,
        test.d,
        test.statistic,
        test.p_value,
        test.exact_p_value,
        test.stars,
        set,
        images,
        (one, other),
        error_consistency(test.a, test.b, test.c, test.d),
        tuple(
            printable(note)
            for note in (
                *_unfinished(folders),
                *_same_weights(folders),
                *_not_above_chance(set, (first, second)),
                *_notes(folders, metadata),
                *_doubts(test),
            )
        ),
    )


def _unfinished(folders: tuple[Path, Path]) -> list[str]:
    """Returns which of the two runs, A and B, have not ended."""
    return [
        note for name, folder in zip("AB", folders, strict=True) if (note := unfinished_note(folder, name))
    ]


def _same_weights(folders: tuple[Path, Path]) -> list[str]:
    note = same_weights_note(*folders)
    return [note] if note else []


def _not_above_chance(name: str, rows: tuple[npt.NDArray[np.void], npt.NDArray[np.void]]) -> list[str]:
    """Returns which of the two runs, A and B, answer no better than one answer to every image would."""
    notes = (
        chance_of_rows(of_run["label"], of_run["correct"]).sentence(run, name)
        for run, of_run in zip("AB", rows, strict=True)
    )
    return [note for note in notes if note]


def _doubts(test: McNemar) -> list[str]:
    few = f"only {test.b + test.c} images tell the two apart: the exact p is the one to go by"
    return [few] if test.is_doubtful else []


def _notes(folders: tuple[Path, Path], metadata: list[dict[str, Any]]) -> list[str]:
    """Returns in what the runs differ that a reader of a comparison does not expect to."""
    made_under = [definitions_of(values) for values in metadata]
    notes = []
    if made_under[0] != made_under[1]:
        notes.append(
            f"the rows of A were made under definitions {made_under[0]}, those of B under {made_under[1]}: "
            "evaluate both again before comparing"
        )
    if not all(run_folder.holds_run(run) for run in folders):
        return notes
    definitions = [configuration.definitions_text(run) for run in folders]
    if definitions[0] != definitions[1]:
        notes.append(
            f"A was trained under definitions {definitions[0]}, B under {definitions[1]}: the difference may "
            "come from them"
        )
    if configuration.same_training_images(*folders) is False:
        notes.append("A and B were trained on different images: the difference may come from them")
    return notes


def _class_names(run: Path) -> tuple[str, ...]:
    """Returns the classes of a run; () of a folder of rows alone."""
    return run_folder.describe_best(run).classes if run_folder.holds_run(run) else ()


def _best_epoch(run: Path) -> int | None:
    """Returns the epoch that a run's rows must be of, its best; None for a folder of rows alone."""
    return run_folder.describe_best(run).epoch if run_folder.holds_run(run) else None
