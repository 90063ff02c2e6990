"""`qrdali log`."""

from __future__ import annotations

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option(
    "--to",
    required=True,
    metavar="NAME[,NAME]",
    help="tensorboard (RUN/tensorboard), wandb, mlflow or trackio: extras to install.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def log(runs: tuple[str, ...], to: str, as_json: bool) -> None:
    """Show RUNS in a logger, from what their folders hold: every row of metrics.jsonl, the settings, and the
    previews that `train --log` has drawn.

    A log that is there is made complete; no epoch is in it twice.

    \b
    Example: qrdali log runs/baseline runs/linear --to tensorboard
             tensorboard --logdir runs
    """
    from dataclasses import asdict

    from qrdali.cli.terminal import TerminalListener, emit, say
    from qrdali.interfaces import JobControl
    from qrdali.workflows.log import log_runs

    logged = log_runs(runs, to, JobControl(TerminalListener()))
    if as_json:
        emit({"runs": [asdict(one) for one in logged]})
        return
    for one in logged:
        places = ", ".join(f"{name} {place}" for name, place in one.places.items())
        say(f"{one.run}: {one.epochs} rows in {places}")
