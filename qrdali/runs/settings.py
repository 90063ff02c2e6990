"""Everything a training run is told, validated once and written to config.toml."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qrdali.errors import InputError, printable
from qrdali.files.atomic import replace_atomically
from qrdali.reduction.quality import num_levels_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MOST_BYTES = 1_000_000  # of a configuration
MAX_BATCH = 1 << 20  # images of a batch: DALI counts bytes of small things in 32 bits
Method = Literal["shared", "baseline", "fixed", "linear", "adaptive", "random"]


class Settings(BaseModel):
    """One run. Paths as text; `root`: where the images of `data` are now, if they moved;
    `quality` and `reduction` matter to methods with R epochs; `lr` 0 is the network's own;
    `track_sets` are folders by name, `track_reduced` 0 is off; `max_bad`: share of the training images that may turn out unreadable;
    `ema`: decay per step of the average of weights that is validated, 0 is off; `deterministic`: torch's deterministic
    algorithms, or an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    method: Method
    data: str
    root: str = ""
    model: str = "squeezenet1_1"
    init: str = ""
    pretrained: bool = False
    reduction: Literal["color", "crop", "resolution", "combination", "none"] = "none"
    quality: float = Field(0.5, gt=0, le=1)
    step: float = Field(0.25, gt=0, le=0.5)
    sequence: str = "C"
    same_order: bool = False
    direction: Literal["down", "up"] = "down"
    low: float = Field(0.25, gt=0, le=1)
    high: float = Field(1.0, gt=0, le=1)
    feedback: Literal["probe", "online"] = "probe"
    prefer: Literal["confidence", "entropy"] = "confidence"
    windows: Literal[5, 9] = 5
    probe_batch_size: int = Field(0, ge=0, le=MAX_BATCH)
    monitor: Literal["full", "phase"] = "full"
    patience: int = Field(3, ge=1)
    epochs: int = Field(10, ge=1)
    max_epochs: int = Field(300, ge=1)
    match: str = ""
    match_steps: int = Field(0, ge=0)
    batch_size: int = Field(32, ge=1, le=MAX_BATCH)
    lr: float = Field(0.0, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False)
    optimizer: str = "adamw"
    accumulate: int = Field(1, ge=1)
    ema: float = Field(0.0, ge=0, lt=1)
    sync_batch_norm: bool = False
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    input_size: int = Field(0, ge=0, le=4096)
    fit: Literal["whole", "center"] = "whole"
    augment: Literal["flip", "rrc", "none"] = "flip"
    restore_best: bool = True
    save_every: str = ""
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    deterministic: bool = False
    threads: int = Field(0, ge=0, le=1024)
    max_bad: float = Field(0.001, ge=0, le=1)
    track_reduced: float = Field(0.0, ge=0, lt=1)
    track_sets: dict[str, str] = Field(default_factory=dict, max_length=100)

    @property
    def num_levels(self) -> int:
        """Returns n of the step 1/n. Raises InputError for a step that is not 1/n."""
        return num_levels_of(self.step)


def validate_settings(values: dict[str, Any]) -> Settings:
    """Settings from plain values. Raises InputError naming the first key that is wrong, its value and the rule.

    Methods with reductions default to the combination in paired epochs.
    """
    if values.get("method") in ("fixed", "linear", "adaptive", "random"):
        values = {"reduction": "combination", "sequence": "paired-epochs", **values}
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = printable(".".join(map(str, first["loc"])))
        value = (
            first["input"] if isinstance(first["input"], bool | int | float) else printable(first["input"])
        )
        message = first["msg"]
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, Settings.model_fields, 3, 0.5)
            message = (
                f"there is no such setting; near it: {', '.join(near)}"
                if near
                else "there is no such setting"
            )
        raise InputError(f"{key} = {value!r:.80}: {message}") from None


def default_settings() -> dict[str, Any]:
    """The settings that need not be given."""
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in Settings.model_fields.items()
        if not field.is_required()
    }


def read_toml(file: Path) -> dict[str, Any]:
    """The keys of a TOML file. Raises InputError if it is not TOML."""
    try:
        if file.exists() and not file.is_file():  # opening a FIFO would wait for ever
            raise InputError(f"{printable(file)} is no file")
        with open(file, "rb") as data:
            text = data.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise InputError(f"{printable(file)} is larger than 1 MB: that is no configuration")
        values: dict[str, Any] = tomllib.loads(text.decode("utf-8"))
        return values
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of 5,000 digits
        raise InputError(f"{printable(file)} cannot be read as TOML: {printable(error)}") from None


def write_settings(file: Path, settings: Settings) -> None:
    """Writes every setting, defaults included; whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(tomli_w.dumps(settings.model_dump()), "utf-8")
    replace_atomically(partial, file)
