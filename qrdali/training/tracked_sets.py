"""Accuracy of more sets after every epoch. It is written down and used for nothing: training is the same without."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from qrdali.data.index import Index
from qrdali.data.scan import index_folder
from qrdali.errors import InputError, Interrupted, RunError, printable
from qrdali.evaluation.predict import predict
from qrdali.interfaces import BatchSource, RunContext
from qrdali.reduction.levels import FULL_QUALITY, Levels
from qrdali.reduction.quality import REDUCTIONS
from qrdali.runs import folder as run_folder
from qrdali.schedule.epoch_plan import EpochPlan

if TYPE_CHECKING:
    pass

_REDUCED = re.compile(rf"val-({'|'.join(REDUCTIONS)})-([0-9.e-]+)")  # no folder's name: see check_set_name
_FEW = 6  # sets that a line on the terminal has room for


@dataclass(frozen=True)
class TrackedSet:
    """A set by name: its loader, how many images it has, and the levels at which they are shown."""

    name: str
    loader: BatchSource
    images: int
    levels: Levels = FULL_QUALITY


class TrackedSets:
    """Evaluates `sets` when asked. n: of the quality step 1/n of their levels."""

    def __init__(self, sets: Sequence[TrackedSet], batch_size: int, num_levels: int) -> None:
        self._sets, self._batch_size, self._num_levels = sets, batch_size, num_levels

    def evaluate(
        self,
        what: str,
        model: nn.Module,
        context: RunContext,
        on_batch: Callable[[int], None],
    ) -> dict[str, dict[str, float | None]]:
        """{"tracked": accuracy by name}, or nothing without sets. `on_batch` is called with the images of each batch and may raise.
        A set that cannot be read any more has None and a warning: training does not end for it."""
        found: dict[str, float | None] = {}
        for own in self._sets:
            plan = EpochPlan(own.images, self._batch_size, own.levels, self._num_levels)
            context.listener.begin(f"{what} {own.name}", own.images)
            try:
                found[own.name] = predict(model, own.loader, plan, context, on_batch=on_batch).accuracy
                context.listener.end()
            except Interrupted:
                raise
            except RunError as error:
                context.listener.end()
                context.listener.warn(f"the tracked set {own.name} has no accuracy here: {error}")
                found[own.name] = None
        return {"tracked": found} if found else {}


def tracked_summary(row: dict[str, dict[str, float | None]]) -> str:
    """The accuracies of `Tracker.measure` for a line on the terminal, if they are few: folders, then the reduced splits by quality."""
    found = row.get("tracked", {})
    if not 0 < len(found) <= _FEW:
        return ""
    text, at = "", ""
    for name, accuracy in found.items():
        reduced = _REDUCED.fullmatch(name)
        if reduced and reduced[2] != at:
            at = reduced[2]
            text += f" at {at}"
        text += (
            f" {reduced[1] if reduced else name} {'none' if accuracy is None else format(accuracy, '.3f')}"
        )
    return f"  tracked{text}"


def index_sets(
    run: Path, sets: dict[str, str], classes: tuple[str, ...], warn: Callable[[str], None]
) -> dict[str, Index]:
    """Indexes of the folders by name. Each is made once, as RUN/tracked/NAME.arrow, so that all of a run's epochs see the same images.

    Nothing is written unless every folder can be. Raises InputError for a folder that is no set of `classes`, or that has
    another's name; RunError for a damaged index.
    """
    folder = run / "tracked"
    with TemporaryDirectory() as scratch:
        for name, root in sets.items():
            if run_folder.holds_run(run) and (folder / f"{name}.arrow").exists():
                _require_same(folder / f"{name}.arrow", name, root, len(classes))
                continue
            rejected = index_folder(root, classes, Path(scratch) / f"{name}.arrow")
            if rejected:
                warn(
                    f"tracked set {name}: {len(rejected)} files cannot be read and are left out, such as {': '.join(rejected[0])}"
                )
        for file in sorted(Path(scratch).iterdir()):
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f"{file.stem}.partial"
            shutil.copyfile(file, partial)
            partial.rename(folder / file.name)
    return indexed_sets(run, sets, len(classes))


def indexed_sets(run: Path, sets: Iterable[str], classes: int) -> dict[str, Index]:
    """What `index_sets` has made, by name. Raises RunError for a damaged index."""
    return {name: Index(run / "tracked" / f"{name}.arrow", classes) for name in sets}


def _require_same(file: Path, name: str, root: str, classes: int) -> None:
    try:
        before = Index(file, classes).paths(np.zeros(1, np.int64))[0].rsplit("/", 2)[0]
    except (RunError, IndexError, UnicodeDecodeError):
        raise RunError(f"{printable(file)} is damaged: remove it, and the folder is indexed again") from None
    if before != root.rstrip("/") and Path(before).resolve() != Path(root).resolve():
        raise InputError(
            f"the tracked set {name} was {printable(before)} and is now {printable(root)}: give the other folder another NAME"
        )
