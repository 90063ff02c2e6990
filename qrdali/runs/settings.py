"""The settings of a training run, validated once and written to config.toml."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from qrdali.errors import InputError, printable
from qrdali.files.atomic import write_whole
from qrdali.files.text_lines import decode_text
from qrdali.reduction.auto_augment import parse_policy
from qrdali.reduction.quality import MAX_OLD_GRID, LevelScale, scale_of
from qrdali.runs.logger_names import normalize_logger_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The version of the definitions in docs/definitions.md that a run is trained by. 1 was that of version 0.1.
DEFINITIONS: Final = 2
_MAX_CONFIG_BYTES = 1_000_000
MAX_BATCH = 1 << 20  # images of a batch: DALI counts the bytes of labels and the like in 32 bits
MAX_EPOCHS = 1_000_000
MAX_THREADS = 1024
# "adopted" is the method of a run that was not trained here.
Method = Literal["shared", "baseline", "fixed", "linear", "adaptive", "random", "adopted"]
RateScheduleName = Literal["constant", "cosine", "plateau", "stage", "wsd"]
_Number = bool | int | Annotated[float, Field(allow_inf_nan=False)]
# Of a keyword of an optimizer or a network: a number, a text, or numbers such as Adam's betas.
OptionValue = _Number | Annotated[str, Field(max_length=100)] | Annotated[list[_Number], Field(max_length=16)]
_Beta = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]  # both parameters of a Beta distribution
Options = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], OptionValue], Field(max_length=50)
]


def _policy_name(value: Any) -> Any:
    """Returns the name of an augmentation policy, "" for none. Raises ValueError for others."""
    if isinstance(value, str) and value:
        return "" if value == "none" else parse_policy(value).name
    return value


class Settings(BaseModel):
    """All settings of one run, checked at construction; keys and values of its config.toml.

    Paths are text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    # What is trained, on what
    method: Method
    data: str  # the data set's folder
    root: str = ""  # where the images of `data` are now, if they moved: NEW or OLD=NEW
    model: str = "squeezenet1_1"
    init: str = ""  # a run whose best weights this one begins with
    pretrained: bool = False
    # Reductions; of methods with reduced epochs
    reduction: Literal["color", "crop", "resolution", "combination", "none"] = "none"
    quality: float = Field(0.5, gt=0, le=1)  # of reduced epochs of method fixed
    step: float = Field(0.25, gt=0, le=0.5)  # between the qualities of two levels
    tail: str = Field("none", max_length=4)  # levels below the grid's: none, full or their number
    sequence: str = "C"  # of reduced (R) and full (C) epochs: paired-epochs, paired-rounds or letters
    same_order: bool = False  # whether the epochs of a round share one order of the images
    direction: Literal["down", "up"] = "down"  # of the stages of method linear
    low: float = Field(0.25, gt=0, le=1)  # lowest and highest quality that method random draws
    high: float = Field(1.0, gt=0, le=1)
    feedback: Literal["probe", "online"] = "probe"  # what decides the descent of method adaptive
    prefer: Literal["confidence", "entropy"] = "confidence"  # which correct candidate the descent takes
    windows: Literal[5, 9] = 5  # candidate positions of a smaller window
    probe_batch_size: int = Field(0, ge=0, le=MAX_BATCH)  # 0: one that suits the device
    # When a stage and the run end
    monitor: Literal["full", "phase"] = "full"  # quality of the validation images
    patience: int = Field(3, ge=1)
    epochs: int = Field(10, ge=1)  # of method shared
    max_epochs: int = Field(300, ge=1)  # of the other methods
    match: str = ""  # a run whose number of optimizer steps this one takes
    match_steps: int = Field(0, ge=0)  # that number; 0: no limit
    # Optimization
    batch_size: int = Field(32, ge=1, le=MAX_BATCH)  # of all ranks together
    lr: float = Field(0.0, ge=0, allow_inf_nan=False)  # 0: the network's own
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False)
    optimizer: str = "adamw"
    optimizer_options: Options = Field(default_factory=dict)  # more keywords of its class
    clip_grad: float = Field(0.0, ge=0, allow_inf_nan=False)  # largest norm of the gradients; 0: any
    layer_decay: float = Field(1.0, gt=0, le=1)  # factor of the rate from each layer to the one before it
    # Its learning rate
    lr_schedule: RateScheduleName = "constant"
    warmup_epochs: float = Field(0.0, ge=0, le=MAX_EPOCHS, allow_inf_nan=False)  # linear, from rate 0
    min_lr: float = Field(0.0, ge=0, allow_inf_nan=False)  # of every schedule but constant
    stage_epochs: int = Field(0, ge=0, le=MAX_EPOCHS)  # of stage: its span; 0: not given
    decay_epochs: int = Field(0, ge=0, le=MAX_EPOCHS)  # of wsd; 0: 20% of the epochs so far
    plateau_factor: float = Field(0.1, gt=0, lt=1)  # of plateau: by which the rate is multiplied
    plateau_patience: int = Field(-1, ge=-1, le=MAX_EPOCHS)  # of plateau; -1: `patience` less 1
    accumulate: int = Field(1, ge=1)  # parts of a batch that are passed one after another
    ema: float = Field(0.0, ge=0, lt=1)  # decay per step of the average of weights that is validated; 0: none
    ema_warmup: bool = False  # a decay that grows up to `ema`, as timm has it
    sync_batch_norm: bool = False
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    freeze: str = Field("", pattern=r"^(head|[1-9][0-9]{0,3})?$")  # all but the classifier, or N stages
    model_options: Options = Field(default_factory=dict)  # keywords of the network's class
    grad_checkpointing: bool = False  # computes activations twice instead of keeping them
    compile: bool = False  # the training step by torch.compile
    # What the network sees
    input_size: int = Field(0, ge=0, le=4096)  # pixels; 0: the network's own
    fit: Literal["whole", "center"] = "whole"
    augment: Literal["flip", "rrc", "none"] = "flip"
    auto_augment: Annotated[str, BeforeValidator(_policy_name)] = ""  # rand-mM, trivial or augmix; "": none
    erase: float = Field(0.0, ge=0, le=1)  # probability that a part of a training image is erased
    mixup: _Beta = 0.0  # alpha of the shares by which images of a step are mixed; 0: they are not
    cutmix: _Beta = 0.0  # alpha of the shares that are cut from other images of a step; 0: none
    # How it runs
    restore_best: bool = True  # whether the best weights return when patience ends
    save_every: str = ""  # steps N, or minutes Nm, between checkpoints within an epoch; "": none
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    deterministic: bool = False  # torch's deterministic algorithms, or an error
    threads: int = Field(0, ge=0, le=MAX_THREADS)  # that decode, per process; 0: as many as it may use
    max_bad: float = Field(0.001, ge=0, le=1)  # share of the training images that may turn out unreadable
    # What it was begun with: no options
    definitions: Literal[1, 2] = DEFINITIONS  # of order, windows, views and stages; see docs/definitions.md
    epochs_before: int = Field(0, ge=0, lt=2**31)  # of the runs that --init continues, for random streams
    # The settings that were left to the machine, which chose what stands in config.toml
    automatic: tuple[Literal["device", "amp", "threads", "probe_batch_size"], ...] = Field((), max_length=4)
    # What is evaluated after each epoch
    track_reduced: float = Field(0.0, ge=0, lt=1)  # quality of the reduced validation set; 0: none
    track_sets: dict[str, str] = Field(default_factory=dict, max_length=100)  # folders by name
    # Where its figures are shown besides metrics.jsonl: names of loggers, separated by commas
    log: Annotated[str, BeforeValidator(normalize_logger_names)] = ""

    @property
    def scale(self) -> LevelScale:
        """Returns the levels that the run has. Raises InputError if `step` or `tail` is none."""
        return scale_of(self.step, self.tail, MAX_OLD_GRID)


def validate_settings(values: dict[str, Any]) -> Settings:
    """Makes settings of plain values. Methods with reductions default to the combination in paired epochs.

    Raises InputError naming the first key that is wrong, its value and the rule.
    """
    if values.get("method") in ("fixed", "linear", "adaptive", "random"):
        values = {"reduction": "combination", "sequence": "paired-epochs", **values}
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place, options = first["loc"], str(first["loc"][0]).endswith("_options")
        # pydantic names every type that a value may have had.
        key = printable(".".join(map(str, place[:2] if options else place)))
        value = first["input"]
        if not isinstance(value, bool | int | float):
            value = printable(value)
        message = "give a number, true, false, a text or several numbers" if options else first["msg"]
        if first["type"] == "value_error":
            message = str(first["ctx"]["error"])
        if first["type"] == "extra_forbidden":
            message = "there is no such setting"
            if near := difflib.get_close_matches(key, Settings.model_fields, 3, 0.5):
                message += f"; near it: {', '.join(near)}"
        raise InputError(f"{key} = {value!r:.80}: {message}") from None


def plain_options(values: Any) -> dict[str, Any]:
    """Returns keywords as `Options` has them. Raises ValueError for others."""
    try:
        return TypeAdapter(Options).validate_python(values)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"][:1]))
        raise ValueError(f"options that cannot be: {printable(place)[:80]}") from None


def default_settings() -> dict[str, Any]:
    """Returns the defaults of the settings that need not be given."""
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in Settings.model_fields.items()
        if not field.is_required()
    }


def read_toml(file: Path) -> dict[str, Any]:
    """Returns the keys of a TOML file, which may begin with a byte order mark.

    Raises InputError if it is not TOML, or larger than 1 MB.
    """
    try:
        if file.exists() and not file.is_file():  # opening a FIFO would wait for ever
            raise InputError(f"{printable(file)} is not a file")
        with open(file, "rb") as data:
            text = data.read(_MAX_CONFIG_BYTES + 1)
        if len(text) > _MAX_CONFIG_BYTES:
            raise InputError(f"{printable(file)} is larger than 1 MB: that is not a configuration")
        values: dict[str, Any] = tomllib.loads(decode_text(text))
        return values
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of 5,000 digits
        raise InputError(f"{printable(file)} cannot be read as TOML: {printable(error)}") from None


def read_settings(file: Path) -> dict[str, Any]:
    """Returns the values in a run's config.toml. Version 0.1 wrote no `definitions`: its are 1.

    Raises InputError as `read_toml`.
    """
    return {"definitions": 1, **read_toml(file)}


def write_settings(file: Path, settings: Settings) -> None:
    """Writes every setting, defaults included, to a config.toml; whole or not at all."""
    write_whole(file, tomli_w.dumps(settings.model_dump()).encode())
