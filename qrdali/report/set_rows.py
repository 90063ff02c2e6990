"""Reads the predictions of a run on its evaluated sets, as arrays: of a hundred runs only what figures need
is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qrdali.data.class_matching import ClassList
from qrdali.errors import InputError, RunError, printable
from qrdali.evaluation.calibration import Calibration, calibration
from qrdali.evaluation.chance import Chance, chance_of_rows
from qrdali.evaluation.prediction_rows import (
    definitions_of,
    has_true_class,
    negative_log_likelihood,
    read_metadata,
    read_rows,
    read_table,
    top5_accuracy,
)
from qrdali.evaluation.suite_figures import KEY as SUITE
from qrdali.runs.folder import BestModel

Warn = Callable[[str], None]


def _none() -> npt.NDArray[np.integer]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class SetRows:
    """Holds predictions on one set.

    digest: of sample numbers, labels and paths; rows with the same digest are of the same images, in the same
    order. content: the same with the fingerprint of the evaluated index instead of the paths, "" where it was
    not recorded. definitions: the number of those that the rows were made under. top5_accuracy,
    negative_log_likelihood: None where the rows hold neither rank nor probability of the true class, as those
    of version 0.1. calibration: None where a confidence is no probability. labels, predictions: integers [N]
    of a type as small as they allow; a prediction of -1 is none of the classes. classes: what they count.
    file: holds the rows, and the images' paths.
    """

    correct: npt.NDArray[np.bool_]
    digest: str
    content: str = ""
    definitions: int = 1
    top5_accuracy: float | None = None
    negative_log_likelihood: float | None = None
    calibration: Calibration | None = None
    labels: npt.NDArray[np.integer] = field(default_factory=_none)
    predictions: npt.NDArray[np.integer] = field(default_factory=_none)
    classes: ClassList = field(default_factory=lambda: ClassList(()))
    file: Path = Path()

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @cached_property
    def chance(self) -> Chance:
        """Returns the comparison with the same answer to every image of the set."""
        return chance_of_rows(self.labels, self.correct)

    def paths(self) -> npt.NDArray[np.object_] | None:
        """Reads the paths of the images again, text [N]; None where the file has changed meanwhile."""
        try:
            paths = read_table(self.file, ["path"])["path"].to_numpy()
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError):
            return None
        return paths if len(paths) == len(self.correct) else None


def read_sets(folder: Path, trained: BestModel, warn: Warn) -> tuple[dict[str, SetRows], str]:
    """Returns the rows of every set of the weights in best/, and a digest of val's images of any epoch.

    Rows of other weights and damaged ones are left out with a warning.
    """
    files = sorted((folder / "predictions").glob("*.parquet"), key=lambda f: (_rank(f.stem), f.stem))
    sets, validated_on = {}, ""
    for file in files:
        metadata = read_metadata(folder, file.stem)
        if SUITE in metadata:
            continue
        try:
            rows = read_rows(folder, file.stem)
        except (InputError, RunError) as error:
            warn(f"{error}: left out")
            continue
        digest = hashlib.sha256(rows["sample"].tobytes() + rows["label"].tobytes())
        fingerprint, content = metadata.get("images"), digest.copy()
        for path in rows["path"]:
            digest.update(str(path).encode("utf-8", "surrogatepass") + b"\0")
        content.update(str(fingerprint).encode("utf-8", "surrogatepass"))
        mapped = metadata.get("map_rule")
        if file.stem == "val" and not mapped:
            validated_on = digest.hexdigest()
        epoch = trained.epoch
        if metadata.get("epoch", epoch) != epoch:
            warn(
                f"{printable(file)} is of epoch {printable(metadata['epoch'])} "
                f"and best/ of epoch {epoch}: left out"
            )
            continue
        if mapped:
            classes = json.dumps([metadata.get("classes"), mapped]).encode()
            digest.update(classes)
            content.update(classes)
        has_probability = has_true_class(rows)
        sets[printable(file.stem)] = SetRows(
            rows["correct"].copy(),
            digest.hexdigest(),
            content.hexdigest() if fingerprint else "",
            definitions_of(metadata),
            top5_accuracy(rows["rank"]) if has_probability else None,
            negative_log_likelihood(rows["true_probability"]) if has_probability else None,
            calibration(rows["confidence"], rows["correct"]),
            _smallest(rows["label"]),
            _smallest(rows["prediction"]),
            _mapped_classes(metadata) if mapped else ClassList(trained.classes, trained.readable),
            file,
        )
    return sets, validated_on


def _rank(name: str) -> int:
    return {"val": 0, "test": 1, "train": 3}.get(name, 2)


def _smallest(values: npt.NDArray[np.int64]) -> npt.NDArray[np.integer]:
    """Returns a copy of int64 [N], N >= 1, in the smallest type that holds all values."""
    bounds = (np.min_scalar_type(int(value)) for value in (values.min(), values.max()))
    kind = np.result_type(*bounds)
    # No integer holds both 2^63 - 1 and -1 but int64, for which numpy names a float.
    return values.astype(kind if np.issubdtype(kind, np.integer) else np.int64)


def _mapped_classes(metadata: dict[str, Any]) -> ClassList:
    """Returns the data's classes that mapped rows count; none where the metadata is damaged."""
    names = metadata.get("classes")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return ClassList(tuple(names) if is_list and names else ())
