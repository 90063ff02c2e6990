"""Reads and checks MEPI sets without their images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qrdali.errors import InputError, RunError, printable
from qrdali.evaluation.prediction_rows import read_table
from qrdali.files.json_objects import read_object
from qrdali.mepi.folder import MANIFEST, OPTIONS, SEARCHED, SUMMARY
from qrdali.mepi.manifest import SCHEMA, WRITTEN_SCHEMA
from qrdali.report.read import Run


@dataclass(frozen=True)
class Mepis:
    """Holds a MEPI set folder.

    run: the run of this report whose weights it was made with, if any. rows: the manifest's columns per
    reduction; of those on one step further `next_class` (text, "" where nothing is known) and
    `next_confidence`.
    """

    folder: Path
    name: str
    run: Run | None
    options: dict[str, Any]
    summary: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, npt.NDArray[Any]]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Returns the names of the classes that labels count, the data set's; () where they are not known."""
        names = self.options.get("classes")
        if isinstance(names, list):
            return tuple(map(str, names))
        return self.run.trained.classes if self.run is not None else ()

    def tried(self, reduction: str) -> int:
        """Returns the images searched for a reduction, unreadable ones left out."""
        row = self.summary[reduction]
        return int(row["images"]) - int(row["unreadable"])


def read_mepis(folder: Path, name: str, known: list[Run]) -> Mepis:
    """Reads a MEPI set. known: the report's runs.

    Raises InputError if `folder` is not a MEPI set or has no finished reduction, RunError if it is damaged.
    """
    if not (folder / OPTIONS).exists():
        raise InputError(
            f"{printable(folder)} is not a MEPI set (no {OPTIONS}): `qrdali build-mepi --out` makes one"
        )
    options, summary = read_object(folder / OPTIONS), {}
    if (folder / SUMMARY).exists():
        summary = read_object(folder / SUMMARY)
    if not summary:
        raise InputError(
            f"{printable(folder)} has no finished reduction: continue it with `qrdali build-mepi … --resume`"
        )
    try:
        table = read_table(folder / MANIFEST, WRITTEN_SCHEMA.names)
        known_columns = table.schema.equals(SCHEMA) or table.schema.equals(WRITTEN_SCHEMA)
        if not known_columns or any(table[key].null_count for key in SCHEMA.names):
            raise ValueError(f"{MANIFEST} has other columns, or holes in them")
        columns = {key: table[key].to_numpy(zero_copy_only=False) for key in SCHEMA.names}
        columns |= _next_columns(table)
        rows = {}
        for reduction in (r for r in SEARCHED if r in summary):
            chosen = columns["reduction"] == reduction
            rows[reduction] = {key: column[chosen] for key, column in columns.items()}
            _check(summary[reduction], rows[reduction])
        if len(rows) < len(summary):
            raise ValueError(f"{SUMMARY} has other reductions")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        pa.ArrowException,
    ) as error:
        raise RunError(f"{printable(folder)} is damaged: {printable(error)[:160]}") from None
    # Weights of several runs may be the same, as where training never improved them: then the folder decides.
    same = [run for run in known if run.weights and run.weights == options.get("weights")]
    run = next(
        (run for run in same if str(run.folder.absolute()) == options.get("run")), same[0] if same else None
    )
    return Mepis(folder, name, run, options, {r: summary[r] for r in rows}, rows)


def _next_columns(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """Returns what the network answers one step further, of a manifest that may not have these columns."""
    if "next_class" not in table.column_names:
        return {"next_class": np.full(len(table), ""), "next_confidence": np.zeros(len(table))}
    names, confidence = (
        np.where(table[key].is_null().to_numpy(), nothing, table[key].to_numpy(zero_copy_only=False))
        for key, nothing in (("next_class", ""), ("next_confidence", 0.0))
    )
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("next_confidence outside 0 to 1")
    return {"next_class": names, "next_confidence": confidence}


def _check(row: dict[str, Any], columns: dict[str, npt.NDArray[Any]]) -> None:
    """Raises ValueError, KeyError or TypeError unless summary and manifest of a reduction can be of one
    search.
    """
    counts = [row[key] for key in ("images", "without_mepi", "unreadable")]
    if any(type(count) is not int or not 0 <= count < 1 << 53 for count in counts):
        raise ValueError("counts that are none")
    if counts[0] - counts[1] - counts[2] != len(columns["sample"]) or len(np.unique(columns["sample"])) < len(
        columns["sample"]
    ):
        raise ValueError("manifest and summary count other images")
    if not 0 <= float(row["seconds"]) < 1e15:
        raise ValueError("seconds")
    if any(
        (columns[key] < low).any()
        for key, low in (
            ("sample", 0),
            ("label", 0),
            ("top", 0),
            ("left", 0),
            ("height", 1),
            ("width", 1),
            ("entropy_full", 1),
            ("entropy_mepi", 1),
        )
    ):
        raise ValueError("a number below its range")
    if not np.allclose(columns["quotient"], columns["entropy_mepi"] / columns["entropy_full"], rtol=1e-9):
        raise ValueError("a quotient that is not that of its entropies")
