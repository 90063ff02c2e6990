"""`qrdali train`: one subcommand per method, one function that runs any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qrdali.cli.groups import SuggestingGroup
from qrdali.cli.train_config import show_config
from qrdali.cli.train_options import given_settings, method_command, require_run
from qrdali.cli.train_sequence import show_sequence


@click.group(cls=SuggestingGroup)
def train() -> None:
    """Train a classifier: shared first, then the other methods from it.

    \b
    Example:
      qrdali train shared --data data --run runs/shared --model resnet10t
      qrdali train baseline --data data --run runs/baseline --init runs/shared
      qrdali train linear --data data --run runs/linear --init runs/shared
    """


@method_command(train, "shared")
def shared(**options: Any) -> None:
    """A set number of full-quality epochs: the common start of all methods.

    \b
    Example: qrdali train shared --data data --run runs/shared \\
               --model resnet10t --input-size 96 --epochs 20
    """
    _run("shared", options)


@method_command(train, "baseline")
def baseline(**options: Any) -> None:
    """Full-quality epochs until patience ends them.

    \b
    Example: qrdali train baseline --data data --run runs/baseline \\
               --init runs/shared
    """
    _run("baseline", options)


@method_command(train, "fixed")
def fixed(**options: Any) -> None:
    """R epochs at one quality among C epochs.

    \b
    Example: qrdali train fixed --data data --run runs/fixed \\
               --init runs/shared --reduction crop --quality 0.5
    """
    _run("fixed", options)


@method_command(train, "linear")
def linear(**options: Any) -> None:
    """R epochs whose quality falls by one step per stage, the same for every image.

    \b
    Example: qrdali train linear --data data --run runs/linear \\
               --init runs/shared --reduction crop --sequence paired-rounds
    """
    _run("linear", options)


@method_command(train, "adaptive")
def adaptive(**options: Any) -> None:
    """R epochs in which each image has its own level: one step down per stage where the classifier is still
    right.

    \b
    Example: qrdali train adaptive --data data --run runs/adaptive \\
               --init runs/shared --reduction crop --sequence paired-rounds
    """
    _run("adaptive", options)


@method_command(train, "random")
def random(**options: Any) -> None:
    """The control: R epochs whose quality is drawn per image and epoch, which is plain augmentation.

    \b
    Example: qrdali train random --data data --run runs/random \\
               --init runs/shared --reduction color --low 0.25 --high 1
    """
    _run("random", options)


def _run(method: str, options: dict[str, Any]) -> None:
    """Trains with the settings that the options give, or prints the sequence of a --dry-run."""
    from qrdali.cli.signals import terminal_control
    from qrdali.cli.torchrun import job
    from qrdali.system.deterministic import deterministic
    from qrdali.workflows import train as workflow
    from qrdali.workflows.train_settings import settings_of

    resume, dry_run, print_config = (options.pop(name) for name in ("resume", "dry_run", "print_config"))
    run, config = options.pop("run"), options.pop("config")
    values = _values(method, config, options)
    if print_config:
        show_config(method, values, run, resume)
        return
    run = Path(require_run(run))
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
    from qrdali.runs import settings as run_settings
    from qrdali.runs.automatic import without_automatic

    values = without_automatic(run_settings.read_toml(Path(config))) if config else {}
    if values.get("method", method) != method:
        raise InputError(
            f"{config} is for `train {printable(values['method'])[:40]}`, this is `train {method}`: "
            "leave method out, or call the other"
        )
    values.update(given_settings(options), method=method)
    return values
