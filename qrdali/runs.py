"""A run folder: config.toml, metrics.jsonl, best/, last/ and predictions/."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qrdali import checkpoint
from qrdali.errors import InputError, RunError, printable
from qrdali.models import Preprocessing, create


@dataclass(frozen=True)
class Trained:
    """What `best/` says of itself: the network, its classes and preprocessing, and the epoch it comes from."""

    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    epoch: int
    val_accuracy: float

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], file: Path) -> Trained:
        """Raises RunError for anything but what `as_dict` made."""
        try:
            pre = dict(data["preprocessing"])
            pre["mean"], pre["std"] = tuple(map(float, pre["mean"])), tuple(map(float, pre["std"]))
            pre["input_size"], pre["crop_share"] = int(pre["input_size"]), float(pre["crop_share"])
            pre["fit"], pre["interpolation"] = str(pre["fit"]), str(pre["interpolation"])
            return cls(str(data["model"]), tuple(map(str, data["classes"])), Preprocessing(**pre), int(data["epoch"]),
                       float(data["val_accuracy"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RunError(f"{printable(file)} does not describe a trained network: {printable(error)}") from None


def holds_run(folder: Path) -> bool:
    return (folder / "config.toml").exists()


def describe_best(folder: Path) -> Trained:
    """What a run's `best/` says of itself. Raises InputError if there is no run, RunError if it is damaged."""
    if not holds_run(folder):
        raise InputError(f"{printable(folder)} holds no run (no config.toml)")
    if not (folder / "best").exists() and not (folder / "best.old").exists():
        raise RunError(f"{printable(folder)} has no best/ yet: continue it with --resume")
    return Trained.from_dict(checkpoint.load(folder / "best")[0], folder / "best" / "state.json")


def load_best(folder: Path) -> tuple[nn.Module, Trained]:
    """The network of a run's `best/` on the CPU. Raises as `describe_best`, and RunError for weights of another network."""
    trained = describe_best(folder)
    _, (weights,) = checkpoint.load(folder / "best", "model")
    model = create(trained.model, len(trained.classes))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{printable(folder / 'best')} does not fit {trained.model}: {printable(error)[:160]}") from None
    return model, trained


def weights_digest(folder: Path) -> str:
    """SHA-256, hexadecimal, of a run's best weights; "" where there are none (any more). Raises RunError if they cannot be read."""
    file = checkpoint.current(folder / "best") / "model.safetensors"
    try:
        digest = hashlib.sha256()
        with open(file, "rb") as data:
            while block := data.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)}") from None


def optimizer_steps(folder: Path) -> int:
    """How many optimizer steps a run has taken. Raises InputError if `folder` holds no run with an epoch."""
    file = folder / "metrics.jsonl"
    try:
        taken = [int(row["optimizer_steps"]) for row in map(json.loads, file.read_text("utf-8").splitlines()) if row["epoch"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{printable(file)} does not tell optimizer steps ({printable(error)}): is it a run folder?") from None
    if not taken:
        raise InputError(f"{printable(folder)} has trained no epoch yet")
    return taken[-1]


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    """Adds one line to metrics.jsonl."""
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def last_recorded(folder: Path, key: str) -> Any:
    """The value of the last line of metrics.jsonl that has `key`, or None."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return next((row[key] for row in reversed(list(rows)) if key in row), None)


def keep_metrics(folder: Path, epochs: int) -> None:
    """Drops lines of epochs after `epochs`, and a last line cut short: a resumed run writes them again."""
    file = folder / "metrics.jsonl"
    kept = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else []:
        try:
            if json.loads(line)["epoch"] <= epochs:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break
    partial = file.with_suffix(".partial")
    partial.write_text("".join(kept), "utf-8")
    partial.rename(file)
