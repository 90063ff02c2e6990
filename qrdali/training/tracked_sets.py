"""Accuracy of more sets after every epoch. It is written down and used for nothing: training is the same
without."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

from qrdali.data.index import Index
from qrdali.data.scan import index_folder
from qrdali.errors import InputError, Interrupted, RunError, printable
from qrdali.evaluation.predict import predict
from qrdali.files.atomic import replace_atomically
from qrdali.interfaces import BatchSource, RunContext
from qrdali.reduction.levels import FULL_QUALITY, Levels
from qrdali.reduction.names import REDUCING
from qrdali.reduction.quality import QUARTERS, LevelScale
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import DEFINITIONS
from qrdali.schedule.epoch_plan import EpochPlan

_REDUCED = re.compile(
    rf"val-({'|'.join(REDUCING)})-([0-9.e-]+)"
)  # no folder has such a name: see check_set_name
_FEW = 6  # sets that a line on the terminal has room for


@dataclass(frozen=True)
class TrackedSet:
    """Holds a set by name: its source, how many images it has, and the levels at which they are shown."""

    name: str
    source: BatchSource
    images: int
    levels: Levels = FULL_QUALITY


class TrackedSets:
    """Evaluates `sets` in batches of `batch_size`. scale: that of their levels.

    definitions: as in `EpochPlan`."""

    def __init__(
        self,
        sets: Sequence[TrackedSet] = (),
        batch_size: int = 1,
        scale: LevelScale = QUARTERS,
        definitions: int = DEFINITIONS,
    ) -> None:
        self._sets, self._batch_size, self._scale = sets, batch_size, scale
        self._definitions = definitions

    def under(self, definitions: int) -> TrackedSets:
        """Returns the same sets under other definitions."""
        return TrackedSets(self._sets, self._batch_size, self._scale, definitions)

    def evaluate(
        self, title: str, model: nn.Module, context: RunContext, on_batch: Callable[[int], None]
    ) -> dict[str, dict[str, float | None]]:
        """Returns {"tracked": accuracy by name}, or {} without sets. Collective.

        on_batch: is called with the images of each batch and may raise. A set that cannot be read any more
        has None and a warning: training does not end for it."""
        accuracies: dict[str, float | None] = {}
        for tracked in self._sets:
            plan = EpochPlan(
                tracked.images,
                self._batch_size,
                tracked.levels,
                self._scale,
                definitions=self._definitions,
            )
            context.listener.begin(f"{title} {tracked.name}", tracked.images)
            try:
                rows = predict(model, tracked.source, plan, context, on_batch=on_batch)
                accuracies[tracked.name] = rows.accuracy
                context.listener.end()
            except Interrupted:
                raise
            except RunError as error:
                context.listener.end()
                context.listener.warn(f"the tracked set {tracked.name} has no accuracy here: {error}")
                accuracies[tracked.name] = None
        return {"tracked": accuracies} if accuracies else {}


def tracked_summary(row: dict[str, dict[str, float | None]]) -> str:
    """Returns the accuracies of `TrackedSets.evaluate` for a line on the terminal, or "" if they are more
    than a few.

    Folders come first, then the reduced splits by quality.
    """
    accuracies = row.get("tracked", {})
    if not 0 < len(accuracies) <= _FEW:
        return ""
    text, quality = "", ""
    for name, accuracy in accuracies.items():
        reduced = _REDUCED.fullmatch(name)
        if reduced and reduced[2] != quality:
            quality = reduced[2]
            text += f" at {quality}"
        text += (
            f" {reduced[1] if reduced else name} {'none' if accuracy is None else format(accuracy, '.3f')}"
        )
    return f"  tracked{text}"


def index_sets(
    run: Path, sets: dict[str, str], classes: tuple[str, ...], warn: Callable[[str], None]
) -> dict[str, Index]:
    """Returns the indexes of the folders by name, and writes those that are not there yet.

    Each is made once, as RUN/tracked/NAME.arrow, so that all of a run's epochs see the same images. Nothing
    is written unless every folder can be. Raises InputError for a folder that is not a set of `classes`, or
    that has another's name; RunError for a damaged index."""
    folder = run / "tracked"
    with TemporaryDirectory() as scratch:
        for name, root in sets.items():
            if run_folder.holds_run(run) and (folder / f"{name}.arrow").exists():
                _require_same(folder / f"{name}.arrow", name, root, len(classes))
                continue
            rejected = index_folder(root, classes, Path(scratch) / f"{name}.arrow")
            if rejected:
                warn(
                    f"tracked set {name}: {len(rejected)} files cannot be read and are left out, such as "
                    f"{': '.join(rejected[0])}"
                )
        for file in sorted(Path(scratch).iterdir()):
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f"{file.stem}.partial"
            shutil.copyfile(file, partial)
            replace_atomically(partial, folder / file.name)
    return indexed_sets(run, sets, len(classes))


def indexed_sets(run: Path, sets: Iterable[str], classes: int) -> dict[str, Index]:
    """Returns what `index_sets` has written, by name. Raises RunError for a damaged index."""
    return {name: Index(run / "tracked" / f"{name}.arrow", classes) for name in sets}


def _require_same(file: Path, name: str, root: str, classes: int) -> None:
    """Raises InputError if the set `name` was indexed from another folder than `root`, RunError for a damaged
    index."""
    try:
        before = Index(file, classes).paths(np.zeros(1, np.int64))[0].rsplit("/", 2)[0]
    except (RunError, IndexError, UnicodeDecodeError):
        raise RunError(f"{printable(file)} is damaged: remove it, and the folder is indexed again") from None
    if before != root.rstrip("/") and Path(before).resolve() != Path(root).resolve():
        raise InputError(
            f"the tracked set {name} was {printable(before)} and is now {printable(root)}: "
            "give the other folder another NAME"
        )
