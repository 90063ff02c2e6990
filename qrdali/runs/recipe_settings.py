"""The settings of a training recipe: optimizer, learning rate, fine-tuning, and what the network sees."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from qrdali.runs.method_settings import MAX_BATCH, SettingsGroup
from qrdali.runs.number_or_word import NumberOrWord
from qrdali.runs.option import Option, Topic

MAX_EPOCHS: Final = 1_000_000
RateScheduleName = Literal["constant", "cosine", "plateau", "stage", "wsd"]
_Number = bool | int | Annotated[float, Field(allow_inf_nan=False)]
# Of a keyword of an optimizer or a network: a number, a text, or numbers such as Adam's betas.
OptionValue = _Number | Annotated[str, Field(max_length=100)] | Annotated[list[_Number], Field(max_length=16)]
Keywords = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], OptionValue], Field(max_length=50)
]


_MAX_BETA = 1000  # both parameters of a Beta distribution, at most: with these all shares are near 1/2


def _policy_name(value: Any) -> Any:
    """Returns the name of a policy of augmentation, "" for none. Raises ValueError for others."""
    if not isinstance(value, str) or value in ("", "none"):
        return "" if value == "none" else value
    from qrdali.reduction.auto_augment import parse_policy

    return parse_policy(value).name


class OptimizationSettings(SettingsGroup):
    """Says how a step changes the weights."""

    batch_size: Annotated[int, Option(Topic.OPTIMIZATION)] = Field(
        32, ge=1, le=MAX_BATCH, description="Images per step, of all processes together."
    )
    lr: Annotated[
        float,
        Option(Topic.OPTIMIZATION, default="one at which AdamW trains it from scratch, with --init too"),
    ] = Field(0.0, ge=0, allow_inf_nan=False, description="Learning rate.")
    optimizer: Annotated[str, Option(Topic.OPTIMIZATION)] = Field(
        "adamw", description="Any optimizer of timm."
    )
    optimizer_options: Annotated[Keywords, Option(Topic.OPTIMIZATION, name="optimizer-option")] = Field(
        default_factory=dict,
        description="Keyword of the optimizer, such as momentum=0.8 or betas=0.9,0.98; repeatable.",
    )
    weight_decay: Annotated[float, Option(Topic.OPTIMIZATION)] = Field(
        0.05, ge=0, allow_inf_nan=False, description="Weight decay of the optimizer."
    )
    lr_schedule: Annotated[RateScheduleName, Option(Topic.OPTIMIZATION)] = Field(
        "constant",
        description="How the rate falls: not at all; along a cosine over the whole run; by a factor when "
        "accuracy stands still; along a cosine in each stage or round; or only at the run's end (warm-up, "
        "stable, decay).",
    )
    warmup_epochs: Annotated[float, Option(Topic.OPTIMIZATION, metavar="N")] = Field(
        0.0,
        ge=0,
        le=MAX_EPOCHS,
        allow_inf_nan=False,
        description="Epochs in which the rate rises to --lr, before any schedule.",
    )
    min_lr: Annotated[float, Option(Topic.OPTIMIZATION, schedules=("cosine", "plateau", "stage", "wsd"))] = (
        Field(0.0, ge=0, allow_inf_nan=False, description="The rate never falls below it.")
    )
    stage_epochs: Annotated[
        int, Option(Topic.OPTIMIZATION, schedules=("stage",), metavar="N", default="")
    ] = Field(0, ge=0, le=MAX_EPOCHS, description="Of stage: epochs until --min-lr.")
    decay_epochs: Annotated[
        int,
        Option(Topic.OPTIMIZATION, schedules=("wsd",), metavar="N", default="20% of the epochs so far"),
    ] = Field(0, ge=0, le=MAX_EPOCHS, description="Of wsd: C epochs of the decay.")
    plateau_factor: Annotated[float, Option(Topic.OPTIMIZATION, schedules=("plateau",))] = Field(
        0.1, gt=0, lt=1, description="Of plateau: what remains of the rate."
    )
    plateau_patience: Annotated[
        int,
        Option(Topic.OPTIMIZATION, schedules=("plateau",), metavar="N", default="--patience less 1"),
    ] = Field(
        -1,
        ge=-1,
        le=MAX_EPOCHS,
        description="Of plateau: units without improvement that do not lower the rate yet.",
    )
    clip_grad: Annotated[float, Option(Topic.OPTIMIZATION, metavar="NORM", default="off")] = Field(
        0.0, ge=0, allow_inf_nan=False, description="Largest norm of all gradients."
    )
    label_smoothing: Annotated[float, Option(Topic.OPTIMIZATION)] = Field(
        0.0, ge=0, lt=1, description="Probability that the loss spreads over all classes."
    )
    accumulate: Annotated[int, Option(Topic.OPTIMIZATION, metavar="PARTS")] = Field(
        1, ge=1, description="Forward passes of a step, each of a part of its images: less memory."
    )
    ema: Annotated[float, Option(Topic.OPTIMIZATION, metavar="DECAY", default="off")] = Field(
        0.0,
        ge=0,
        lt=1,
        description="Validate, save as best/ and ask in probes a moving average of the weights, such as "
        "0.999.",
    )
    ema_warmup: Annotated[bool, Option(Topic.OPTIMIZATION)] = Field(
        False, description="Begin that average with a small decay, which grows up to --ema."
    )
    sync_batch_norm: Annotated[bool, Option(Topic.OPTIMIZATION)] = Field(
        False, description="Of several GPUs: statistics of batch norm over all."
    )


class NetworkSettings(SettingsGroup):
    """Says how the network is made, and which of its parts are trained."""

    model_options: Annotated[Keywords, Option(Topic.START, name="model-option")] = Field(
        default_factory=dict,
        description="Keyword of the network, such as drop_path_rate=0.1; repeatable. It stays with the "
        "weights.",
    )
    freeze: Annotated[NumberOrWord, Option(Topic.FINE_TUNING, metavar="head|N")] = Field(
        "",
        pattern=r"^(head|[1-9][0-9]{0,3})?$",
        description="Train the classifier alone, or leave the first N stages of the network as they are.",
    )
    layer_decay: Annotated[float, Option(Topic.FINE_TUNING, metavar="FACTOR")] = Field(
        1.0, gt=0, le=1, description="Each layer's rate is that of the next one times this, such as 0.75."
    )


class InputSettings(SettingsGroup):
    """Says what the network sees in training, and what is evaluated after each epoch."""

    input_size: Annotated[
        int, Option(Topic.INPUT, default="that of --init, or the model's", is_of_start=True)
    ] = Field(0, ge=0, le=4096, description="Side of the network's input in pixels.")
    fit: Annotated[
        Literal["whole", "center"],
        Option(Topic.INPUT, default="whole, or that of --init", is_of_start=True),
    ] = Field(
        "whole",
        description="What of an image is seen: the whole of it, resized to the square, or its centre by the "
        "published resize and crop.",
    )
    augment: Annotated[Literal["flip", "rrc", "none"], Option(Topic.INPUT)] = Field(
        "flip",
        description="Mirror half of the images, cut a random resized crop too, or neither.",
    )
    # A name that is not one of a policy is refused.
    auto_augment: Annotated[
        str,
        BeforeValidator(_policy_name),
        Option(Topic.INPUT, metavar="NAME", default="none"),
    ] = Field(
        "",
        description="Operators on each training image: rand-mM, RandAugment's two at magnitude M of 0 to 30, "
        "such as rand-m9; trivial, TrivialAugment's one; or augmix, AugMix's chains, on a CPU only.",
    )
    erase: Annotated[float, Option(Topic.INPUT, metavar="P", default="off")] = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability that a rectangle of a training image becomes the mean colour, such as 0.25.",
    )
    mixup: Annotated[float, Option(Topic.INPUT, metavar="A", default="off")] = Field(
        0.0,
        ge=0,
        le=_MAX_BETA,
        allow_inf_nan=False,
        description="Mix the images of a step in pairs, in shares drawn from Beta(A, A), such as 0.2.",
    )
    cutmix: Annotated[float, Option(Topic.INPUT, metavar="A", default="off")] = Field(
        0.0,
        ge=0,
        le=_MAX_BETA,
        allow_inf_nan=False,
        description="Cut a rectangle of each image from another one of the step, such as 1; with --mixup "
        "each comes in half of the steps.",
    )
    track_sets: Annotated[dict[str, str], Option(Topic.INPUT, name="track-set")] = Field(
        default_factory=dict,
        max_length=100,
        description="A folder of class folders, or s3:// or gs://, whose accuracy every epoch's line holds; "
        "repeatable.",
    )
    track_reduced: Annotated[float, Option(Topic.INPUT, default="off")] = Field(
        0.0,
        ge=0,
        lt=1,
        description="Also that of the validation split at this quality of --step, in each reduction.",
    )
