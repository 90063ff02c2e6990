"""What makes two runs the same experiment: their settings, and the chain of runs that they began with."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qrdali.errors import InputError, RunError, printable
from qrdali.files.json_objects import read_object
from qrdali.runs import checkpoint
from qrdali.runs import folder as run_folder
from qrdali.runs import settings as run_settings
from qrdali.runs.adoption import read_adoption
from qrdali.runs.option import REDUCED
from qrdali.runs.setting_table import has_setting, settings_table
from qrdali.runs.settings import Settings, default_settings, read_toml, validate_settings

# Settings that do not make two runs different experiments: seeds, places, what is only watched, and what says
# the same twice. `Chain` stands for init and match.
_ASIDE = frozenset(
    {
        "seed",
        "init",
        "match",
        "match_steps",
        "data",
        "root",
        "device",
        "deterministic",
        "threads",
        "save_every",
        "max_bad",
        "track_sets",
        "track_reduced",
        "log",
        "probe_batch_size",
        "compile",
        "definitions",
        "epochs_before",
        "automatic",
    }
)
# Settings of augmentations that act besides `augment`, whose default is none.
AUGMENTATIONS = ("auto_augment", "erase", "mixup", "cutmix")


class Fingerprints(BaseModel):
    """Holds how the index of a split was told from others when a run began.

    content: of its images wherever they are. file: of the index file, as version 0.1 recorded it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    content: str = Field(pattern="^[0-9a-f]{64}$")
    file: str = Field(pattern="^[0-9a-f]{64}$")


class Ancestor(BaseModel):
    """Holds what a run that another began with, or took its steps from, was.

    label: method, sequence and reduction. digest: SHA-256, hexadecimal, of all that makes its experiment.
    known: whether it could be read; if not, the digest is of its path.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    label: str = Field(max_length=400)
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    known: bool = True


class Chain(BaseModel):
    """Holds what a run began with (init) and whose number of steps it took (match), None for none."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    init: Ancestor | None = None
    match: Ancestor | None = None


def read_settings(folder: Path) -> Settings:
    """Returns the settings in a run's config.toml, without keys of other versions.

    Raises InputError if it cannot be read, RunError for settings that cannot be.
    """
    values = run_settings.read_settings(folder / "config.toml")
    try:
        return validate_settings(
            {key: value for key, value in values.items() if key in Settings.model_fields}
        )
    except InputError as error:
        raise RunError(f"{printable(folder / 'config.toml')}: {error}") from None


def read_definitions(folder: Path) -> int:
    """Returns the number of the definitions that a run was begun under: 1 where config.toml has none.

    Raises InputError if config.toml cannot be read, RunError for what is not a number from 1.
    """
    number = read_toml(folder / "config.toml").get("definitions", 1)
    if type(number) is not int or not 1 <= number < 1000:
        raise RunError(f"{printable(folder / 'config.toml')}: definitions = {printable(number)[:80]} is none")
    return number


def applicable(settings: Settings) -> dict[str, Any]:
    """Returns the settings that have an effect with this method, by name."""
    if settings.method == run_folder.ADOPTED:
        return {name: getattr(settings, name) for name in ("method", "model", "input_size", "fit")}
    reduced = settings.method in REDUCED
    sham = settings.reduction == "none"
    matched = bool(settings.match_steps)
    by_probe = probes(settings)
    # Where a setting that the method and the schedule have is without effect all the same.
    applies = {
        **dict.fromkeys(("max_epochs", "patience", "restore_best"), not matched),
        **dict.fromkeys(("match", "match_steps"), matched),
        **dict.fromkeys(("quality", "direction", "low", "high", "feedback"), not sham),
        **dict.fromkeys(("prefer", "windows", "probe_batch_size"), by_probe),
        "same_order": settings.sequence != "paired-rounds",
        "monitor": reduced and not sham,
        "step": settings.method == "linear" or not sham,
        "tail": settings.tail != "none",
        "ema_warmup": bool(settings.ema),
        **{name: bool(getattr(settings, name)) for name in AUGMENTATIONS},
        "init": bool(settings.init),
        "pretrained": not settings.init,
        "amp": settings.device != "cpu" or settings.amp not in ("auto", "off"),  # a CPU has none unless asked
        "root": bool(settings.root),
        "track_sets": bool(settings.track_sets),
        "track_reduced": bool(settings.track_reduced),
        "log": bool(settings.log),
    }
    return {
        name: getattr(settings, name)
        for name, setting in settings_table(Settings).items()
        if has_setting(setting, settings.method, settings.lr_schedule) and applies.get(name, True)
    }


def probes(settings: Settings) -> bool:
    """Returns whether the levels of a run come from probes."""
    return settings.method == "adaptive" and settings.feedback == "probe" and settings.reduction != "none"


def distinguishing(settings: Settings, *, on_gpu: bool | None = None) -> dict[str, Any]:
    """Returns the settings that make a run another experiment than one with others, but for its chain.

    on_gpu: where it was trained, None if that is not known. What --amp auto chose is "auto" on a GPU, which
    older runs recorded, and "off" on a CPU.
    """
    values = {name: value for name, value in applicable(settings).items() if name not in {*_ASIDE, "amp"}}
    if settings.match_steps and not settings.match:
        values["match_steps"] = settings.match_steps  # no chain stands for it
    amp = _amp_as_asked(settings, on_gpu)
    values["amp"] = "auto" if on_gpu and amp == "bf16" else amp
    return values


def _amp_as_asked(settings: Settings, on_gpu: bool | None) -> str:
    amp = "auto" if "amp" in settings.automatic else settings.amp
    return "off" if on_gpu is False and amp == "auto" else amp


def on_gpu(environment: object) -> bool | None:
    """Returns whether a run was trained on a GPU, by the environment it recorded; None if that is silent."""
    if not isinstance(environment, dict) or "gpu" not in environment:
        return None
    return environment["gpu"] is not None


def names_of(settings: Settings) -> tuple[str, str, str]:
    """Returns method, reduction and sequence as the slides' tables name them, "–" where there is none.

    A baseline is named with its policy of augmentation: "baseline rand-m9".
    """
    if settings.method in ("shared", "baseline", run_folder.ADOPTED):
        words = [settings.method, "matched" if settings.match_steps else ""]
        if settings.method == "baseline":  # the control "randaugment" of experiments is one
            words.append(settings.auto_augment)
        return " ".join(filter(None, words)), "–", "–"
    method = {
        "fixed": f"fixed {settings.quality:g}",
        "linear": f"linear{' up' if settings.direction == 'up' else ''}",
        "adaptive": f"adaptive{' online' if settings.feedback == 'online' else ''}",
    }.get(settings.method, settings.method)
    return ("sham" if settings.reduction == "none" else method), settings.reduction, settings.sequence


def label_of(names: tuple[str, str, str]) -> str:
    """Returns method, sequence and reduction on one line."""
    method, reduction, sequence = names
    return printable(" ".join(part for part in (method, sequence, reduction) if part != "–"))[:400]


def chain_of(settings: Settings) -> Chain:
    """Returns the chain of a run that begins now, from the folders of the runs that it names.

    A run that cannot be read is told from others by its path.
    """
    return _Reader().chain(settings)


@dataclass
class _Reader:
    """Reads the ancestors of runs, each folder once; one that leads back to itself is not known."""

    known: dict[Path, Ancestor | None] = field(default_factory=dict)

    def chain(self, settings: Settings) -> Chain:
        return Chain(
            init=self.ancestor(settings.init) if settings.init else None,
            match=self.ancestor(settings.match, settings.match_steps) if settings.match else None,
        )

    def ancestor(self, path: str, steps: int = 0) -> Ancestor:
        """Returns what the run at `path` is. steps: how many were taken from it, for one that is unknown."""
        folder = Path(path).absolute()
        if folder not in self.known:
            self.known[folder] = None
            with suppress(InputError, RunError, OSError, ValueError, RecursionError):
                self.known[folder] = self._read(folder)
        name = printable(folder.name)[:80]
        unknown = Ancestor(label=f"the run {name}", digest=_digest([path, steps]), known=False)
        return self.known[folder] or unknown

    def _read(self, folder: Path) -> Ancestor:
        settings, first = read_settings(folder), next(run_folder.metrics_rows(folder), {})
        recorded = first.get("chain")
        chain = self.chain(settings) if recorded is None else Chain.model_validate(recorded)
        gpu = on_gpu(first.get("environment"))
        # Digests that are recorded tell --amp bf16 from an auto that chose it.
        values = distinguishing(settings, on_gpu=gpu) | {"amp": _amp_as_asked(settings, gpu)}
        defaults = default_settings()
        parts = {
            # A setting that a later version adds does not change what was trained without it.
            "settings": {k: v for k, v in values.items() if v != defaults.get(k)},
            "definitions": definitions_text(folder),
            "images": training_images(folder, first),
            "chain": [one and one.digest for one in (chain.init, chain.match)],
        }
        if adoption := read_adoption(folder):
            parts["weights"] = adoption.sha256
        return Ancestor(label=label_of(names_of(settings)), digest=_digest(parts))


def definitions_text(folder: Path) -> str:
    """Returns the number of the definitions that a run was trained under, or "mixed" of a run that has gone
    on under later ones. Raises as `read_definitions` does, and RunError for metrics that cannot be read.
    """
    begun = read_definitions(folder)
    later = any(row.get("definitions", begun) != begun for row in run_folder.metrics_rows(folder))
    return "mixed" if later else str(begun)


def training_images(folder: Path, first: dict[str, Any]) -> str:
    """Returns the fingerprint of a run's training images, of version 0.1 that of the index file, "" if none
    was recorded. first: the first row of its metrics.
    """
    return next(iter(_fingerprints(folder, first)), "")


def same_training_images(folder: Path, other: Path) -> bool | None:
    """Returns whether two runs were trained on the same images; None where one does not say which."""
    known = [_fingerprints(run, next(run_folder.metrics_rows(run), {})) for run in (folder, other)]
    return not {*known[0]}.isdisjoint(known[1]) if all(known) else None


def _fingerprints(folder: Path, first: dict[str, Any]) -> list[str]:
    """Returns the fingerprints by which a run's training images are known, that of their content first."""
    try:
        recorded = Fingerprints.model_validate(first["fingerprints"]["train"])
    except (KeyError, TypeError, ValueError):
        return [index] if (index := recorded_index(folder)) else []
    return [recorded.content, recorded.file]


def recorded_index(folder: Path) -> str:
    """Returns the fingerprint that a run's checkpoint has of the training images' index, "" without one."""
    try:
        recorded = read_object(checkpoint.current(folder / "last") / "state.json").get("data")
    except (RunError, OSError):
        return ""
    return recorded if isinstance(recorded, str) and len(recorded) == 64 else ""


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
