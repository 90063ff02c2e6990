"""`qrdali train`: one subcommand per method, one function that runs any of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qrdali.cli.groups import SuggestingGroup

if TYPE_CHECKING:
    from qrdali.runs.settings import Settings
    from qrdali.schedule.epoch_schedule import Phase

F = TypeVar("F", bound=Callable[..., Any])


def _share(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """Returns a share, given as 0.001 or 0.1%."""
    try:
        return None if text is None else float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a share: give 0.001 or 0.1%") from None


@click.group(cls=SuggestingGroup)
def train() -> None:
    """Train a classifier: shared first, then the other methods from it.

    \b
    Example:
      qrdali train shared   --data data --run runs/shared --model resnet10t --input-size 96 --epochs 20
      qrdali train baseline --data data --run runs/baseline --init runs/shared
      qrdali train fixed    --data data --run runs/fixed --init runs/shared --reduction crop --quality 0.5
    """


def _common(command: F) -> F:
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
        click.option("--init", type=click.Path(), help="Start from the best/ of this run."),
        click.option("--pretrained", is_flag=True, default=None, help="Start from published weights."),
        click.option(
            "--batch-size", type=int, help="Images per step, of all processes together.  [default: 32]"
        ),
        click.option(
            "--lr",
            type=float,
            help="Learning rate.  [default: one at which AdamW trains it from scratch, with --init too]",
        ),
        click.option("--optimizer", help="Any optimizer of timm.  [default: adamw]"),
        click.option("--weight-decay", type=float, help="[default: 0.05]"),
        click.option("--label-smoothing", type=float, help="[default: 0]"),
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
        click.option(
            "--log",
            metavar="NAME[,NAME]",
            help="Also show the run in tensorboard (RUN/tensorboard), wandb, mlflow or trackio: extras to "
            "install; --resume goes on in the same log.  [default: none]",
        ),
        click.option("--save-every", help="Save within an epoch: N steps, or Nm minutes."),
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
            "--sync-batch-norm",
            is_flag=True,
            default=None,
            help="Of several GPUs: statistics of batch norm over all.",
        ),
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
    for option in reversed(options):
        command = option(command)
    return command


def _patience(command: F) -> F:
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


def _reduced(command: F) -> F:
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


@train.command()
@_common
@click.option("--epochs", type=int, help="Number of epochs.  [default: 10]")
def shared(**options: Any) -> None:
    """A set number of full-quality epochs: the common start of all methods.

    \b
    Example: qrdali train shared --data data --run runs/shared --model resnet10t --input-size 96 --epochs 20
    """
    _run("shared", options)


@train.command()
@_common
@_patience
@click.option(
    "--match", type=click.Path(), help="Take as many optimizer steps as this run took, without patience."
)
def baseline(**options: Any) -> None:
    """Full-quality epochs until patience ends them.

    \b
    Example: qrdali train baseline --data data --run runs/baseline --init runs/shared
    """
    _run("baseline", options)


@train.command()
@_common
@_patience
@_reduced
@click.option("--quality", type=float, help="Quality of R epochs, a level of --step.  [default: 0.5]")
def fixed(**options: Any) -> None:
    """R epochs at one quality among C epochs.

    \b
    Example: qrdali train fixed --data data --run runs/fixed --init runs/shared --reduction crop --quality 0.5
    """
    _run("fixed", options)


@train.command()
@_common
@_patience
@_reduced
@click.option(
    "--direction",
    type=click.Choice(["down", "up"]),
    help="From the first level down, or from the lowest up.  [default: down]",
)
def linear(**options: Any) -> None:
    """R epochs whose quality falls by one step per stage, the same for every image.

    \b
    Example: qrdali train linear --data data --run runs/linear --init runs/shared \\
               --reduction crop --sequence paired-rounds
    """
    _run("linear", options)


@train.command()
@_common
@_patience
@_reduced
@click.option(
    "--feedback",
    type=click.Choice(["probe", "online"]),
    help="Ask the network about every neighbour, or use its training predictions.  [default: probe]",
)
@click.option(
    "--prefer",
    type=click.Choice(["confidence", "entropy"]),
    help="Which correct neighbour is taken.  [default: confidence]",
)
@click.option("--windows", type=click.Choice(["5", "9"]), help="Candidate windows of a crop.  [default: 5]")
@click.option(
    "--probe-batch-size",
    type=int,
    help="Candidates per forward pass of a probe.  [default: 16 on a CPU, twice --batch-size on a GPU]",
)
def adaptive(**options: Any) -> None:
    """R epochs in which each image has its own level: one step down per stage where the classifier is still
    right.

    \b
    Example: qrdali train adaptive --data data --run runs/adaptive --init runs/shared \\
               --reduction crop --sequence paired-rounds
    """
    if options["windows"] is not None:
        options["windows"] = int(options["windows"])
    _run("adaptive", options)


@train.command()
@_common
@_patience
@_reduced
@click.option("--low", type=float, help="Lowest quality, a level of --step.  [default: 0.25]")
@click.option("--high", type=float, help="Highest quality.  [default: 1]")
def random(**options: Any) -> None:
    """The control: R epochs whose quality is drawn per image and epoch, which is plain augmentation.

    \b
    Example: qrdali train random --data data --run runs/random --init runs/shared \\
               --reduction color --low 0.25 --high 1
    """
    _run("random", options)


def _run(method: str, options: dict[str, Any]) -> None:
    """Translates the options into settings and trains, or prints the sequence of a --dry-run."""
    from qrdali.cli.signals import terminal_control
    from qrdali.cli.torchrun import job
    from qrdali.data.set_names import parse_named_sets
    from qrdali.system.deterministic import deterministic
    from qrdali.workflows import train as workflow
    from qrdali.workflows.train_settings import settings_of

    sets = parse_named_sets(options.pop("track_sets"), "--track-set")
    run, resume, dry_run = Path(options.pop("run")), options.pop("resume"), options.pop("dry_run")
    values = _values(method, options.pop("config"), {**options, "track_sets": sets or None})
    settings = settings_of(method, run, values, resume)
    if dry_run:
        _show_sequence(settings)
        return
    # Deterministic algorithms come before the processes meet, which begins CUDA.
    with (
        deterministic(settings.deterministic, settings.device),
        job(settings.device) as group,
        terminal_control(group) as control,
    ):
        workflow.run_training(settings, run, resume, control)


def _values(method: str, config: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings in a configuration file and the options, which win. Options that are None are not
    given."""
    from qrdali.errors import InputError, printable
    from qrdali.runs import settings as run_settings
    from qrdali.runs.automatic import without_automatic

    values = without_automatic(run_settings.read_toml(Path(config))) if config else {}
    if values.get("method", method) != method:
        raise InputError(
            f"{config} is for `train {printable(values['method'])[:40]}`, this is `train {method}`: "
            "leave method out, or call the other"
        )
    values.update({key: value for key, value in options.items() if value is not None}, method=method)
    return values


def _show_sequence(settings: Settings) -> None:
    """Prints on stdout what would run at most, epoch by epoch."""
    from qrdali.schedule.epoch_schedule import longest_run
    from qrdali.schedule.methods import check_settings, require_live_levels, schedule_rule_of

    check_settings(settings)
    require_live_levels(settings)
    rule = schedule_rule_of(settings)
    for epoch, stage, phase in longest_run(rule):
        shown = _describe_epoch(settings, epoch, stage, phase)
        click.echo(f"epoch {epoch:3d}  stage {stage}  {phase}  {shown}")
    if rule.patience is None:
        return
    unit = "round" if rule.has_rounds else "stage"
    repeated = "epochs" if rule.has_rounds or len(rule.sequence) == 1 else f"repetitions of {rule.sequence}"
    more = "; stages follow one another until no image moves" if rule.stages is None else ""
    click.echo(
        f"# the longest: each {unit} may end earlier, after {rule.patience} {repeated} without "
        f"improvement{more}"
    )


def _describe_epoch(settings: Settings, epoch: int, stage: int, phase: Phase) -> str:
    """Returns what the images of an epoch look like, in words."""
    import numpy as np

    from qrdali.reduction.quality import DIMENSIONS, quality
    from qrdali.schedule.epoch_schedule import Phase
    from qrdali.schedule.methods import reduced_levels

    if phase is Phase.FULL:
        return "full quality"
    if settings.method == "adaptive":
        return f"{settings.reduction}, each image at its own level"
    if settings.method == "random":
        return f"{settings.reduction}, quality {settings.low:g} to {settings.high:g}, drawn per image"
    levels = reduced_levels(settings, stage, epoch).for_samples(np.zeros(1, np.int64))[0]
    qualities = zip(DIMENSIONS, quality(levels, settings.scale), strict=True)
    reduced = ", ".join(f"{dimension} {value:.4g}" for dimension, value in qualities if value < 1)
    return reduced or "full quality (sham)"
