"""`qrdali train`: one subcommand per method, one function that runs any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qrdali.cli.groups import SuggestingGroup
from qrdali.cli.train_options import common, parse_keywords, patience, reduced
from qrdali.cli.train_sequence import show_sequence


@click.group(cls=SuggestingGroup)
def train() -> None:
    """Train a classifier: shared first, then the other methods from it.

    \b
    Example:
      qrdali train shared   --data data --run runs/shared --model resnet10t --input-size 96 --epochs 20
      qrdali train baseline --data data --run runs/baseline --init runs/shared
      qrdali train fixed    --data data --run runs/fixed --init runs/shared --reduction crop --quality 0.5
    """


@train.command()
@common
@click.option("--epochs", type=int, help="Number of epochs.  [default: 10]")
def shared(**options: Any) -> None:
    """A set number of full-quality epochs: the common start of all methods.

    \b
    Example: qrdali train shared --data data --run runs/shared --model resnet10t --input-size 96 --epochs 20
    """
    _run("shared", options)


@train.command()
@common
@patience
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
@common
@patience
@reduced
@click.option("--quality", type=float, help="Quality of R epochs, a level of --step.  [default: 0.5]")
def fixed(**options: Any) -> None:
    """R epochs at one quality among C epochs.

    \b
    Example: qrdali train fixed --data data --run runs/fixed --init runs/shared --reduction crop --quality 0.5
    """
    _run("fixed", options)


@train.command()
@common
@patience
@reduced
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
@common
@patience
@reduced
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
@common
@patience
@reduced
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
    for name in ("optimizer_options", "model_options"):
        keywords = parse_keywords(options[name], f"--{name[:-1].replace('_', '-')}")
        options[name] = keywords or None
    values = _values(method, options.pop("config"), {**options, "track_sets": sets or None})
    settings = settings_of(method, run, values, resume)
    if dry_run:
        show_sequence(settings)
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
    from qrdali.runs import recipes
    from qrdali.runs import settings as run_settings
    from qrdali.runs.automatic import without_automatic

    values: dict[str, Any] = {}
    if config is not None:
        values = without_automatic(run_settings.read_toml(recipes.find_settings_file(config)))
    if values.get("method", method) != method:
        raise InputError(
            f"{config} is for `train {printable(values['method'])[:40]}`, this is `train {method}`: "
            "leave method out, or call the other"
        )
    given = {key: value for key, value in options.items() if value is not None}
    return recipes.merge(values, {**given, "method": method})
