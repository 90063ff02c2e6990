"""Reads and writes a run folder: config.toml, metrics.jsonl, best/, last/ and predictions/."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import sync_opened, write_whole
from qrdali.files.hashing import sha256_of
from qrdali.files.json_objects import read_objects
from qrdali.files.lock import acquire, silent
from qrdali.models import CROP_MODES, Preprocessing, create, create_on_meta
from qrdali.network_options import ModelOptions
from qrdali.runs import checkpoint, settings
from qrdali.runs.mistaken_folder import CONFIG, what_to_give

LOCK = ".lock"
WEIGHTS = "model.safetensors"  # of best/
ADOPTED = "adopted"  # the method of a run whose weights were not trained here: `qrdali adopt`


@dataclass(frozen=True)
class BestModel:
    """The description in `best/`: the network, its classes and preprocessing, its epoch and accuracy.

    val_accuracy: None of a network that was adopted. readable: a readable name of each class, or ().
    model_options: the keywords that the network was made with.
    """

    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    epoch: int
    val_accuracy: float | None
    readable: tuple[str, ...] = ()
    model_options: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for state.json, without readable names and options where there are none."""
        values = {**asdict(self), "classes": list(self.classes), "readable": list(self.readable)}
        optional = ("readable", "model_options")
        return {key: value for key, value in values.items() if value or key not in optional}

    @property
    def shown_classes(self) -> tuple[str, ...]:
        """Returns the names of the classes that people read."""
        return self.readable or self.classes

    @classmethod
    def from_dict(cls, data: dict[str, Any], file: Path) -> BestModel:
        """Returns what `as_dict` made `data` of. Raises RunError, naming `file`, for anything else."""
        try:
            pre = dict(data["preprocessing"])
            pre["mean"] = tuple(map(float, pre["mean"]))
            pre["std"] = tuple(map(float, pre["std"]))
            pre["input_size"] = int(pre["input_size"])
            pre["crop_share"] = float(pre["crop_share"])
            if not 0.01 <= pre["crop_share"] <= 10:
                raise ValueError(f"crop_share {pre['crop_share']}")
            pre["fit"] = str(pre["fit"])
            pre["interpolation"] = str(pre["interpolation"])
            if pre.setdefault("crop_mode", "center") not in CROP_MODES:
                raise ValueError(f"crop_mode {pre['crop_mode']!r}")
            classes, readable = (tuple(map(str, data.get(key, ()))) for key in ("classes", "readable"))
            if not classes or len(readable) not in (0, len(classes)):
                raise ValueError(f"{len(classes)} classes and {len(readable)} readable names")
            accuracy = data["val_accuracy"]
            return cls(
                str(data["model"]),
                classes,
                Preprocessing(**pre),
                int(data["epoch"]),
                None if accuracy is None else float(accuracy),
                readable,
                settings.plain_options(data.get("model_options", {})),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RunError(
                f"{printable(file)} does not describe a trained network: {printable(error)}"
            ) from None


def holds_run(folder: Path) -> bool:
    """Returns whether `folder` is a run folder, by its config.toml."""
    return (folder / CONFIG).exists()


def require_run(folder: Path) -> None:
    """Raises InputError, which says what to give instead, if `folder` is not a run folder."""
    if not holds_run(folder):
        raise InputError(f"{printable(folder)} is not a run folder (no config.toml): {what_to_give(folder)}")


def is_adopted(folder: Path) -> bool:
    """Returns whether the network of a run was adopted instead of trained.

    Raises InputError if its config.toml cannot be read.
    """
    return holds_run(folder) and settings.read_toml(folder / "config.toml").get("method") == ADOPTED


def begun_with(folder: Path) -> dict[str, Any]:
    """Returns the settings with which a run goes on where nothing else is said: those of its config.toml.

    How many threads decode is each machine's own. Raises InputError if it cannot be read.
    """
    recorded = settings.read_settings(folder / "config.toml")
    return {key: value for key, value in recorded.items() if key != "threads"}


def is_deterministic(folder: Path) -> bool:
    """Returns whether a run is trained under deterministic algorithms.

    What is made with its network then is too.

    Raises InputError if its config.toml cannot be read.
    """
    return holds_run(folder) and settings.read_toml(folder / "config.toml").get("deterministic") is True


def describe_best(folder: Path) -> BestModel:
    """Returns the description of a run's best network.

    Raises InputError if there is no run, RunError if it is damaged.
    """
    return _best(folder)[0]


def _best(folder: Path, *names: str) -> tuple[BestModel, list[checkpoint.Tensors]]:
    """Returns description and tensors of one best/, which a training may replace at any moment."""
    require_run(folder)
    if not (folder / "best").exists() and not (folder / "best.old").exists():
        raise RunError(f"{printable(folder)} has no best/ yet: continue it with --resume")
    state, tensors = checkpoint.load(folder / "best", *names)
    return BestModel.from_dict(state, folder / "best" / "state.json"), tensors


def load_best(folder: Path, options: ModelOptions | None = None) -> tuple[nn.Module, BestModel]:
    """Returns the network of a run's `best/`, on the CPU, and its description.

    options: keywords for the network in place of its own. Raises as `describe_best`, InputError for options
    that the network does not have, and RunError for weights of another network.
    """
    trained, (weights,) = _best(folder, "model")
    options = trained.model_options if options is None else options
    try:
        if options:  # a network that they make too large is found out before it takes memory
            _require_shapes(create_on_meta(trained.model, len(trained.classes), options), weights)
        model = create(trained.model, len(trained.classes), options=options)
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"{printable(folder / 'best')} does not fit {trained.model}: {printable(error)[:160]}"
        ) from None
    return model, trained


def _require_shapes(model: nn.Module, weights: checkpoint.Tensors) -> None:
    """Raises RuntimeError, as torch does, unless `weights` have the names and shapes of the network's."""
    own = {name: value.shape for name, value in model.state_dict().items()}
    other = [name for name in sorted({*own, *weights}) if name not in own or name not in weights]
    other = other or [name for name, shape in own.items() if weights[name].shape != shape]
    if other:
        raise RuntimeError(f"its options make another network: {other[0]} differs")


def weights_digest(folder: Path) -> str:
    """Returns the SHA-256, hexadecimal, of a run's best weights; "" where there are none (any more).

    Raises RunError if they cannot be read.
    """
    file = checkpoint.current(folder / "best") / WEIGHTS
    try:
        return sha256_of(file)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)}") from None


def recorded_weights(folder: Path) -> str:
    """Returns the SHA-256 of a run's best weights as `weights_digest` does, without reading them where it was
    recorded when they were written. Raises RunError if neither can be read.
    """
    return checkpoint.recorded_sum(folder / "best", WEIGHTS) or weights_digest(folder)


def has_checkpoint(folder: Path) -> bool:
    """Returns whether there is a save to go on from."""
    return any((folder / name).exists() for name in ("last", "last.old"))


def has_ended(folder: Path) -> bool:
    """Returns whether a run is finished, as an adopted one always is.

    Raises RunError if neither its last/ nor the one before can be read."""
    if is_adopted(folder):
        return True
    state = checkpoint.load_newest(folder / "last")[0].get("schedule")
    return isinstance(state, dict) and bool(state.get("ended"))


def metrics_rows(folder: Path, whole: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the rows of metrics.jsonl up to the first that is damaged or cut; none of an adopted run.

    With `whole`, that one raises ValueError. Raises RunError if the file cannot be read.
    """
    if not (folder / "metrics.jsonl").exists() and is_adopted(folder):
        return
    for number, row in enumerate(read_objects(folder / "metrics.jsonl", whole), 1):
        if type(row.get("epoch")) is int:
            yield row
        elif whole:
            raise ValueError(f"line {number} names no epoch")
        else:
            return


def optimizer_steps(folder: Path) -> int:
    """Returns how many optimizer steps a run has taken. Raises InputError if it has not trained an epoch."""
    file = folder / "metrics.jsonl"
    try:
        steps = [int(row["optimizer_steps"]) for row in metrics_rows(folder, whole=True) if row["epoch"]]
    except (RunError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{printable(file)} does not hold optimizer steps ({printable(error)[:160]}): is it a run folder?"
        ) from None
    if not steps:
        raise InputError(f"{printable(folder)} has trained no epoch yet")
    return steps[-1]


def epochs_trained(folder: Path) -> int:
    """Returns how many epochs a run's network has been trained, those of the runs that it continued included.

    Raises InputError or RunError if its files cannot be read.
    """
    before = settings.read_settings(folder / "config.toml").get("epochs_before", 0)
    if type(before) is not int or before < 0:
        raise InputError(f"{printable(folder / 'config.toml')}: epochs_before = {before!r:.40} is no number")
    return before + max((row["epoch"] for row in metrics_rows(folder)), default=0)


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    """Appends one row to metrics.jsonl, and waits until it is on the disk."""
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        sync_opened(file.fileno())


def last_recorded(folder: Path, key: str) -> Any:
    """Returns the value of `key` in the last row of metrics.jsonl that has it, or None."""
    return next((row[key] for row in reversed(list(metrics_rows(folder))) if key in row), None)


def keep_metrics(folder: Path, epochs: int) -> None:
    """Drops rows of epochs after `epochs`, and a last line cut short: a resumed run writes them again."""
    file = folder / "metrics.jsonl"
    kept: list[str] = []
    if file.exists():
        kept = [json.dumps(row) + "\n" for row in metrics_rows(folder) if row["epoch"] <= epochs]
    write_whole(file, "".join(kept).encode())


def describe_saved(folder: Path) -> str:
    """Returns, for a message, where `--resume` would continue."""
    try:
        state = checkpoint.load_newest(folder / "last")[0]
        text = f"last/ holds epoch {state['schedule']['epoch']}"
        if state["epoch"]:
            text += f" and {state['epoch']['step']} steps of the next"
        return text
    except (RunError, KeyError, TypeError):
        return "no epoch of it was saved yet"


@contextmanager
def lock_run_folder(folder: Path, warn: Callable[[str], None] = silent) -> Iterator[None]:
    """Makes the run folder and locks it for this process, within the block.

    An empty one is removed afterwards. warn: is called where the file system has no locks.

    Raises RunError if another process trains in it, or if it cannot be written; and for a full disk or
    another error of the system within the block, saying what is saved.
    """
    is_new = not folder.exists()
    file = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = acquire(
            file,
            lambda who: (
                f"{printable(folder)} is being trained by {who}: wait for it, or choose another --run"
            ),
            warn,
        )
    except OSError as error:
        raise RunError(
            f"{printable(folder)} cannot be written ({printable(error.strerror or error)}): nothing has been "
            "changed; choose another --run, in a container mount a volume that its user may write (-v, "
            "--user)"
        ) from None
    try:
        yield
    except OSError as error:
        problem = printable(error)
        if error.strerror:
            problem = f"{error.strerror}: {printable(error.filename or folder)}"
        raise RunError(
            f"{problem}: training stopped, nothing that was complete is damaged, {describe_saved(folder)}; "
            "when that is mended, the same command with --resume continues"
        ) from None
    finally:
        if [entry.name for entry in folder.iterdir()] == [LOCK]:
            file.unlink()
            if is_new:
                folder.rmdir()
        lock.close()
