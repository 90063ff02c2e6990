"""The settings of a training run, validated once and written to config.toml."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import tomli_w
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from qrdali.errors import InputError, printable
from qrdali.files.atomic import write_whole
from qrdali.files.text_lines import decode_text
from qrdali.runs.logger_names import normalize_logger_names
from qrdali.runs.method_settings import (
    MAX_BATCH,
    EndSettings,
    ReductionSettings,
    SettingsGroup,
    StartSettings,
)
from qrdali.runs.option import Option, Topic
from qrdali.runs.recipe_settings import InputSettings, Keywords, NetworkSettings, OptimizationSettings
from qrdali.runs.setting_table import near_names, settings_table

if TYPE_CHECKING:
    from qrdali.reduction.quality import LevelScale

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "DEFINITIONS",
    "MAX_BATCH",
    "MAX_THREADS",
    "Settings",
    "default_settings",
    "plain_options",
    "read_settings",
    "read_toml",
    "validate_settings",
    "write_settings",
]

# The version of the definitions in docs/explanation/definitions.md of a run; 0.1 had version 1.
DEFINITIONS: Final = 2
_MAX_CONFIG_BYTES = 1_000_000
MAX_THREADS = 1024


class RunningSettings(SettingsGroup):
    """Says where and how the training runs."""

    # A name that is not one of a logger is refused.
    log: Annotated[
        str,
        BeforeValidator(normalize_logger_names),
        Option(Topic.RUNNING, metavar="NAME[,NAME]", default="none"),
    ] = Field(
        "",
        description="Also show the run in tensorboard (RUN/tensorboard), wandb, mlflow or trackio: extras to "
        "install; --resume goes on in the same log.",
    )
    save_every: Annotated[str, Option(Topic.RUNNING, metavar="N|Nm")] = Field(
        "", description="Save within an epoch: N steps, or Nm minutes."
    )
    seed: Annotated[int, Option(Topic.RUNNING)] = Field(
        0, ge=0, lt=2**63, description="Of everything that is drawn."
    )
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Option(Topic.RUNNING, default="auto, or where the run of --resume was trained"),
    ] = Field("auto", description="Where it computes; auto: on a GPU if there is one.")
    amp: Annotated[
        Literal["auto", "bf16", "fp16", "off"],
        Option(Topic.RUNNING, default="auto, or that of the run of --resume"),
    ] = Field("auto", description="Mixed precision; auto: bf16 or fp16 on a GPU, off on a CPU.")
    compile: Annotated[bool, Option(Topic.RUNNING)] = Field(
        False,
        description="Compile the training step by torch.compile; without a compiler it runs as it is.",
    )
    grad_checkpointing: Annotated[bool, Option(Topic.RUNNING)] = Field(
        False,
        description="Compute activations again in the backward pass instead of keeping them: less memory.",
    )
    deterministic: Annotated[bool, Option(Topic.RUNNING, is_pair=True, default="no")] = Field(
        False,
        description="On a GPU the same weights each time, bit for bit, where torch has such algorithms; "
        "slower.",
    )
    threads: Annotated[int, Option(Topic.RUNNING, default="all it may use")] = Field(
        0, ge=0, le=MAX_THREADS, description="Decoding threads of each process."
    )
    max_bad: Annotated[float, Option(Topic.RUNNING, metavar="SHARE", default="0.1%", is_share=True)] = Field(
        0.001, ge=0, le=1, description="Training images that may turn out unreadable; 0: none."
    )


class Settings(
    RunningSettings,
    InputSettings,
    NetworkSettings,
    OptimizationSettings,
    EndSettings,
    ReductionSettings,
    StartSettings,
):
    """All settings of one run, checked at construction; keys and values of its config.toml.

    A field is all that a setting needs: options, help, checks of TOML files and the reference are made of it.
    """

    # What a run gets when it begins: no options.
    definitions: Literal[1, 2] = Field(
        DEFINITIONS, description="Of order, windows, views and stages; see docs/explanation/definitions.md."
    )
    epochs_before: int = Field(
        0, ge=0, lt=2**31, description="Epochs of the runs that --init continues, for random streams."
    )
    automatic: tuple[Literal["device", "amp", "threads", "probe_batch_size"], ...] = Field(
        (), max_length=4, description="The settings that were left to the machine, which chose their values."
    )

    @property
    def scale(self) -> LevelScale:
        """Returns the levels that the run has. Raises InputError if `step` or `tail` is none."""
        from qrdali.reduction.quality import MAX_OLD_GRID, scale_of

        return scale_of(self.step, self.tail, MAX_OLD_GRID)


def validate_settings(values: dict[str, Any]) -> Settings:
    """Makes settings of plain values. Methods with reductions default to the combination in paired epochs.

    Raises InputError naming the first key that is wrong, its value and the rule.
    """
    method = values.get("method")
    if isinstance(method, str):
        table = settings_table(Settings)
        of_method = {name: setting.default_of(method) for name, setting in table.items()}
        values = {name: value for name, value in of_method.items() if value != table[name].default} | values
    try:
        return Settings(**values)
    except ValidationError as error:
        raise InputError(_first_mistake(error)) from None


def _first_mistake(error: ValidationError) -> str:
    """Returns the first key that is wrong, its value and the rule."""
    first = error.errors()[0]
    place, keywords = first["loc"], str(first["loc"][0]).endswith("_options")
    # pydantic names every type that a value may have had.
    key = printable(".".join(map(str, place[:2] if keywords else place)))
    value, message = first["input"], first["msg"]
    if not isinstance(value, bool | int | float):
        value = printable(value)
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
    elif first["type"] == "extra_forbidden":
        message = "there is no such setting" + near_names(key, Settings.model_fields)
    elif first["type"] == "missing":
        return f"{key} is missing"
    elif keywords:
        message = "give a number, true, false, a text or several numbers"
    elif first["type"] == "literal_error" and isinstance(value, str):
        message += near_names(value, map(str, settings_table(Settings)[str(place[0])].choices))
    return f"{key} = {value!r:.80}: {message}"


def plain_options(values: Any) -> dict[str, Any]:
    """Returns keywords as `Keywords` has them. Raises ValueError for others."""
    try:
        return TypeAdapter(Keywords).validate_python(values)
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
            raise InputError(f"{printable(file)} is not a file: give one of TOML")
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
