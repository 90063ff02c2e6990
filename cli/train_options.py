"""The options of `qrdali train` by topic: decorators that add them to a subcommand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _share(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """Returns a share, given as 0.001 or 0.1%."""
    try:
        return None if text is None else float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a share: give 0.001 or 0.1%") from None


def _all(command: F, options: Sequence[Callable[[Any], Any]]) -> F:
    """Adds options to a command in the order in which its help lists them."""
    for option in reversed(options):
        command = option(command)
    return command


def common(command: F) -> F:
    """Adds the options of every method."""
    for topic in (_running, _input, _fine_tuning, _optimization, _places):
        command = topic(command)
    return command


def _places(command: F) -> F:
    options = [
        click.option(
            "--data", type=click.Path(), help="Data set made by `qrdali data index`; --resume knows it."
        ),
        click.option(
            "--root",
            metavar="[OLD=]NEW",
            help="Where the images are now, if they moved since they were indexed.",
        ),
        click.option("--run", required=True, type=click.Path(), help="Folder for this run."),
        click.option(
            "--model", help="Name from `qrdali models`.  [default: squeezenet1_1, or that of --init]"
        ),
        click.option(
            "--model-option",
            "model_options",
            multiple=True,
            metavar="K=V",
            help="Keyword of the network, such as drop_path_rate=0.1; repeatable. It stays with the weights.",
        ),
        click.option("--init", type=click.Path(), help="Start from the best/ of this run."),
        click.option("--pretrained", is_flag=True, default=None, help="Start from published weights."),
    ]
    return _all(command, options)


def _optimization(command: F) -> F:
    options = [
        click.option(
            "--batch-size", type=int, help="Images per step, of all processes together.  [default: 32]"
        ),
        click.option(
            "--lr",
            type=float,
            help="Learning rate.  [default: one at which AdamW trains it from scratch, with --init too]",
        ),
        click.option("--optimizer", help="Any optimizer of timm.  [default: adamw]"),
        click.option(
            "--optimizer-option",
            "optimizer_options",
            multiple=True,
            metavar="K=V",
            help="Keyword of the optimizer, such as momentum=0.8 or betas=0.9,0.98; repeatable.",
        ),
        click.option("--weight-decay", type=float, help="[default: 0.05]"),
        click.option(
            "--lr-schedule",
            type=click.Choice(["constant", "cosine", "plateau", "stage", "wsd"]),
            help="How the rate falls: not at all; along a cosine over the whole run; by a factor when "
            "accuracy stands still; along a cosine in each stage or round; or only at the run's end "
            "(warm-up, stable, decay).  [default: constant]",
        ),
        click.option(
            "--warmup-epochs",
            type=float,
            metavar="N",
            help="Epochs in which the rate rises to --lr, before any schedule.  [default: 0]",
        ),
        click.option("--min-lr", type=float, help="The rate never falls below it.  [default: 0]"),
        click.option("--stage-epochs", type=int, metavar="N", help="Of stage: epochs until --min-lr."),
        click.option(
            "--decay-epochs",
            type=int,
            metavar="N",
            help="Of wsd: C epochs of the decay.  [default: 20% of the epochs so far]",
        ),
        click.option("--plateau-factor", type=float, help="Of plateau: what remains.  [default: 0.1]"),
        click.option(
            "--plateau-patience",
            type=int,
            metavar="N",
            help="Of plateau: units without improvement that do not lower the rate yet.  "
            "[default: --patience less 1]",
        ),
        click.option("--clip-grad", type=float, metavar="NORM", help="Largest norm of all gradients."),
        click.option("--label-smoothing", type=float, help="[default: 0]"),
        click.option(
            "--accumulate",
            type=int,
            metavar="PARTS",
            help="Forward passes of a step, each of a part of its images: less memory.  [default: 1]",
        ),
        click.option(
            "--ema",
            type=float,
            metavar="DECAY",
            help="Validate, save as best/ and ask in probes a moving average of the weights, such as "
            "0.999.  [default: off]",
        ),
        click.option(
            "--ema-warmup",
            is_flag=True,
            default=None,
            help="Begin that average with a small decay, which grows up to --ema.",
        ),
        click.option(
            "--sync-batch-norm",
            is_flag=True,
            default=None,
            help="Of several GPUs: statistics of batch norm over all.",
        ),
    ]
    return _all(command, options)


def _fine_tuning(command: F) -> F:
    options = [
        click.option(
            "--freeze",
            metavar="head|N",
            help="Train the classifier alone, or leave the first N stages of the network as they are.",
        ),
        click.option(
            "--layer-decay",
            type=float,
            metavar="FACTOR",
            help="Each layer's rate is that of the next one times this, such as 0.75.  [default: 1]",
        ),
    ]
    return _all(command, options)


def _input(command: F) -> F:
    options = [
        click.option(
            "--input-size",
            type=int,
            help="Side of the network's input.  [default: that of --init, or the model's]",
        ),
        click.option(
            "--fit",
            type=click.Choice(["whole", "center"]),
            help="What of an image is seen.  [default: whole]",
        ),
        click.option("--augment", type=click.Choice(["flip", "rrc", "none"]), help="[default: flip]"),
        click.option(
            "--auto-augment",
            metavar="rand-mM|trivial|augmix|none",
            help="Operators on each training image: RandAugment's two at magnitude M of 0 to 30, such as "
            "rand-m9, TrivialAugment, or AugMix (on a CPU only).  [default: none]",
        ),
        click.option(
            "--erase", type=float, metavar="P", help="Erase a rectangle of so many images.  [default: 0]"
        ),
        click.option(
            "--mixup",
            type=float,
            metavar="A",
            help="Mix the images of a step in shares drawn from Beta(A, A), such as 0.2.  [default: 0]",
        ),
        click.option(
            "--cutmix",
            type=float,
            metavar="A",
            help="Cut a rectangle of each image from another of the step, such as 1; with --mixup each comes "
            "in half of the steps.  [default: 0]",
        ),
        click.option(
            "--track-set",
            "track_sets",
            multiple=True,
            metavar="NAME=FOLDER",
            help="A folder of class folders, or s3:// or gs://, whose accuracy every epoch's line "
            "holds; repeatable.",
        ),
        click.option(
            "--track-reduced",
            type=float,
            help="Also that of the validation split at this quality of --step, in each reduction.",
        ),
    ]
    return _all(command, options)


def _running(command: F) -> F:
    options = [
        click.option(
            "--log",
            metavar="NAME[,NAME]",
            help="Also show the run in tensorboard (RUN/tensorboard), wandb, mlflow or trackio: extras to "
            "install; --resume goes on in the same log.  [default: none]",
        ),
        click.option("--save-every", help="Save within an epoch: N steps, or Nm minutes."),
        click.option("--seed", type=int, help="[default: 0]"),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            help="[default: auto, or where the run of --resume was trained]",
        ),
        click.option(
            "--amp",
            type=click.Choice(["auto", "bf16", "fp16", "off"]),
            help="[default: auto, or that of the run of --resume]",
        ),
        click.option(
            "--compile",
            is_flag=True,
            default=None,
            help="Compile the training step by torch.compile; without a compiler it runs as it is.",
        ),
        click.option(
            "--grad-checkpointing",
            is_flag=True,
            default=None,
            help="Compute activations again in the backward pass instead of keeping them: less memory.",
        ),
        click.option(
            "--deterministic/--no-deterministic",
            default=None,
            help="On a GPU the same weights each time, bit for bit, where torch has such algorithms; "
            "slower.  [default: no]",
        ),
        click.option("--threads", type=int, help="Decoding threads.  [default: all it may use]"),
        click.option(
            "--max-bad",
            callback=_share,
            metavar="SHARE",
            help="Training images that may turn out unreadable; 0: none.  [default: 0.1%]",
        ),
        click.option(
            "--config", type=click.Path(), help="TOML file of these options; the command line wins."
        ),
        click.option(
            "--dry-run", is_flag=True, help="Print the epochs that would run at most; no data is touched."
        ),
        click.option(
            "--resume",
            is_flag=True,
            help="Continue this run, with the settings it began with; starts it if it has not begun.",
        ),
    ]
    return _all(command, options)


def patience(command: F) -> F:
    """Adds the options of methods that end by patience."""
    for option in (
        click.option(
            "--no-restore-best",
            "restore_best",
            flag_value=False,
            default=None,
            type=bool,
            help="Keep the last weights instead of the best when patience ends.",
        ),
        click.option(
            "--monitor",
            type=click.Choice(["full", "phase"]),
            help="Validate on full quality, or on that of the epoch.  [default: full]",
        ),
        click.option("--max-epochs", type=int, help="Bound of the whole run.  [default: 300]"),
        click.option("--patience", type=int, help="Units without improvement before the end.  [default: 3]"),
    ):
        command = option(command)
    return command


def reduced(command: F) -> F:
    """Adds the options of methods with reduced epochs."""
    for option in (
        click.option(
            "--same-order", is_flag=True, default=None, help="The epochs of a pair differ in reductions only."
        ),
        click.option(
            "--sequence",
            help="paired-epochs, paired-rounds or a pattern such as CCCCCCCR.  [default: paired-epochs]",
        ),
        click.option("--step", type=float, help="Grid of qualities, 1/n.  [default: 0.25]"),
        click.option(
            "--tail",
            metavar="none|full|N",
            help="Levels below the grid, each of half the quality; linear and adaptive.  [default: none]",
        ),
        click.option(
            "--reduction",
            type=click.Choice(["color", "crop", "resolution", "combination", "none"]),
            help="What R epochs reduce; none is the sham control.  [default: combination]",
        ),
    ):
        command = option(command)
    return command


def parse_keywords(texts: tuple[str, ...], option: str) -> dict[str, Any]:
    """Returns the values of K=V texts by keyword: numbers, true or false, texts, or, with commas, lists.

    Raises InputError for a text without a keyword or a value, and for a keyword that is given twice.
    """
    from qrdali.errors import InputError, printable

    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise InputError(f"{option} is {printable(text)[:80]!r}: give KEYWORD=VALUE")
        if key in values:
            raise InputError(f"{option} gives {printable(key)[:80]} twice: once is enough")
        values[key] = [_value(part) for part in value.split(",")] if "," in value else _value(value)
    return values


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
