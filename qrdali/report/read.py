"""Reads and checks what runs left on disk, without their images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qrdali.errors import InputError, RunError, printable
from qrdali.evaluation.prediction_rows import definitions_of
from qrdali.evaluation.suite_figures import SuiteFigures, read_suites
from qrdali.files.json_objects import read_object
from qrdali.reduction.names import REDUCING
from qrdali.report.set_rows import SetRows, Warn, read_sets
from qrdali.runs import configuration
from qrdali.runs import folder as run_folder
from qrdali.runs.adoption import Adoption, read_adoption
from qrdali.runs.configuration import Chain, Fingerprints
from qrdali.runs.same_weights import is_same_network
from qrdali.runs.settings import Settings
from qrdali.runs.unfinished import has_not_ended

_LONGEST = 1 << 20  # bytes of a line


Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]


class Network(BaseModel):
    """Holds a network's figures, of metrics.jsonl's first line; None where they could not be counted."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    parameters: Count | None = None
    gmacs: Amount | None = None


class Epoch(BaseModel):
    """Holds a line of metrics.jsonl; what older runs did not record is None."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    epoch: Count
    phase: str
    stage: Count = 1
    val_accuracy: Share
    seconds: Amount = 0.0
    images_per_second: Amount | None = None
    optimizer_steps: Count | None = None
    forward_images: Count | None = None
    total_seconds: Amount | None = None
    probe_seconds: Amount | None = None
    peak_memory_mb: Amount | None = None
    memory_of: str | None = None
    energy_joules: Amount | None = None
    probe_energy_joules: Amount | None = None
    tracked: dict[str, Share | None] = {}
    environment: dict[str, str | int | float | None] | None = None
    network: Network | None = None
    images: dict[str, Count] | None = None
    fingerprints: dict[str, Fingerprints] = {}
    chain: Chain | None = None
    definitions: Count | None = None


@dataclass(frozen=True)
class Curve:
    """Holds what `evaluate --curve` measured on a set.

    reductions: quality, accuracy, area, log_area and tail by reduction. chance: the accuracy of guessing,
    None where it is not recorded. definitions: the number of those it was measured under.
    """

    reductions: dict[str, dict[str, Any]]
    chance: float | None
    definitions: int = 1


@dataclass(frozen=True)
class Run:
    """Holds a run folder.

    name: what tells it from the report's other runs. sets: by name, val first, of the weights in best/.
    curves: by the set's name. index: the fingerprint of the training images in its checkpoint, "" if there is
    none. validated_on: a digest of the rows of val, "" without them. chain: the runs it began with. adoption:
    what it was adopted from, None if it was trained. suites: figures of published suites, whose rows are not
    among the sets. weights: SHA-256 of the weights in best/, "" where they are gone and it was not recorded.
    has_not_ended: whether its training was stopped before its end, or goes on.
    """

    folder: Path
    name: str
    settings: Settings
    trained: run_folder.BestModel
    epochs: tuple[Epoch, ...]
    sets: dict[str, SetRows]
    curves: dict[str, Curve]
    index: str
    validated_on: str
    chain: Chain
    begun_under: int = 1
    adoption: Adoption | None = None
    suites: dict[str, SuiteFigures] = field(default_factory=dict)
    weights: str = ""
    has_not_ended: bool = False

    @property
    def start(self) -> Epoch:
        return self.epochs[0]

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    @property
    def changed_definitions(self) -> Epoch | None:
        """Returns the first epoch under other definitions than those the run was begun under, if any."""
        return next((e for e in self.epochs if (e.definitions or self.begun_under) != self.begun_under), None)

    @property
    def definitions(self) -> str:
        """Returns the number of the definitions that it was trained under, or "mixed"."""
        return "mixed" if self.changed_definitions else str(self.begun_under)

    @property
    def place(self) -> Path:
        """Returns the folder as commands name it: absolute where the run names its data set so, for then a
        command can be pasted anywhere.
        """
        return self.folder.absolute() if Path(self.settings.data).is_absolute() else self.folder

    def is_network_of(self, other: Run) -> bool:
        """Returns whether another run's best/ is the same network: of the same weights, and built and fed
        alike.
        """
        same = bool(self.weights) and self.weights == other.weights
        return same and is_same_network(self.trained, other.trained)

    @property
    def accuracy(self) -> dict[str, float]:
        """Returns accuracy by set; val as training measured it where there are no rows.

        Unless training measured it on reduced images (--monitor phase): that is another quantity. An adopted
        network has what it was evaluated on alone.
        """
        best = next((e.phase for e in self.epochs if e.epoch == self.trained.epoch), "full")
        accuracy = self.trained.val_accuracy
        by_phase = self.settings.monitor == "phase" and best == "reduced"
        watched = {} if by_phase or accuracy is None else {"val": accuracy}
        return watched | {name: rows.accuracy for name, rows in self.sets.items()}


def read_epochs(file: Path, warn: Warn) -> tuple[Epoch, ...]:
    """Returns the whole lines of a metrics file; what follows a damaged or cut line is left out with one
    warning.

    Raises RunError if none is whole.
    """
    epochs: list[Epoch] = []
    try:
        if file.exists() and not file.is_file():
            raise OSError("it is not a file")
        with open(file, "rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(_LONGEST), b""), 1):
                try:
                    epochs.append(Epoch.model_validate_json(line))
                except ValidationError:
                    warn(
                        f"{printable(file)} line {number} is cut or damaged: "
                        f"the {len(epochs)} lines before it are used"
                    )
                    break
    except OSError as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)}") from None
    if not epochs:
        raise RunError(
            f"{printable(file)} holds no whole line: continue the run with `qrdali train … --resume`"
        )
    return tuple(epochs)


def read_run(folder: Path, name: str, warn: Warn) -> Run:
    """Reads a run; rows and curves that are damaged or of other weights than best/ are left out with a
    warning.

    Raises InputError if `folder` is not a run folder, RunError if it has no weights or epochs yet or what it
    holds is damaged.
    """
    trained = run_folder.describe_best(folder)
    settings, begun_under = configuration.read_settings(folder), configuration.read_definitions(folder)
    adoption = read_adoption(folder)
    epochs = (_before_training(adoption),) if adoption else read_epochs(folder / "metrics.jsonl", warn)
    sets, validated_on = read_sets(folder, trained, warn)
    return Run(
        folder,
        name,
        settings,
        trained,
        epochs,
        sets,
        _read_curves(folder / "curves", trained.epoch, warn),
        configuration.recorded_index(folder),
        validated_on,
        epochs[0].chain or configuration.chain_of(settings),
        begun_under,
        adoption,
        read_suites(folder, trained.epoch, warn),
        run_folder.recorded_weights(folder),
        has_not_ended(folder),
    )


def _before_training(adoption: Adoption) -> Epoch:
    """Returns the only epoch of an adopted run. Nothing was measured in it: no figure shows its accuracy."""
    network = Network(parameters=adoption.parameters, gmacs=adoption.gmacs)
    return Epoch(epoch=0, phase="start", val_accuracy=0.0, network=network)


def _read_curves(folder: Path, epoch: int, warn: Warn) -> dict[str, Curve]:
    """Returns the curves of the weights of `epoch` by set; others and damaged ones are left out with a
    warning.
    """
    curves: dict[str, Curve] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            contents = read_object(file)
            if contents.get("epoch", epoch) != epoch:
                warn(
                    f"{printable(file)} is of epoch {printable(contents['epoch'])} "
                    f"and best/ of epoch {epoch}: left out"
                )
                continue
            reductions = {name: _checked_curve(name, row) for name, row in contents["curves"].items()}
            chance = None if contents.get("chance") is None else float(contents["chance"])
            curves[file.stem] = Curve(reductions, chance, definitions_of(contents))
        except (RunError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            warn(f"{printable(file)} is damaged and left out: `qrdali evaluate --curve` makes it again")
    return curves


def _checked_curve(reduction: str, row: dict[str, Any]) -> dict[str, Any]:
    """Returns quality, accuracy and areas as numbers. Raises ValueError for what cannot be a curve.

    Curves of version 0.1 have no tail and no area over the logarithm.
    """
    quality, accuracy = list(map(float, row["quality"])), list(map(float, row["accuracy"]))
    area = float(row["area"])
    log_area, tail = float(row.get("log_area", 0.0)), int(row.get("tail", 0))
    in_range = all(0 <= value <= 1 for value in (*quality, *accuracy, area, log_area))
    if not 0 <= tail < len(quality) or min(quality) <= 0:
        raise ValueError("no qualities of a curve")
    if reduction not in REDUCING or len(quality) != len(accuracy) or not in_range:
        raise ValueError("no curve")
    return {"quality": quality, "accuracy": accuracy, "area": area, "log_area": log_area, "tail": tail}


def named(folders: list[Path]) -> list[str]:
    """Returns the shortest endings of the paths that tell them apart, control characters replaced.

    Raises InputError if one is given twice.
    """
    parts_of_all = [folder.resolve().parts for folder in folders]
    if len(set(parts_of_all)) < len(parts_of_all):
        twice = next(
            folder
            for folder, parts in zip(folders, parts_of_all, strict=True)
            if parts_of_all.count(parts) > 1
        )
        raise InputError(f"{printable(twice)} is given twice")
    for length in range(1, max(map(len, parts_of_all), default=1) + 1):
        names = [printable("/".join(parts[-length:])) for parts in parts_of_all]
        if len(set(names)) == len(names):
            return names
    return [f"{i}: {printable(folder)}" for i, folder in enumerate(folders, 1)]
