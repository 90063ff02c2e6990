"""The group of commands: their names, what each is for, and the entry point."""

from __future__ import annotations

import importlib

import click
from click.shell_completion import CompletionItem

from qrdali.cli.exit_status import run_and_exit
from qrdali.cli.groups import SuggestingGroup
from qrdali.version import __version__

_GROUPS = {
    "First steps": {
        "demo": "Generate pictures, index, train four methods, evaluate, build MEPIs, report.",
        "doctor": "Whether training works here, and what to do about what does not.",
        "completion": "What makes Tab complete commands and options in bash, zsh and fish.",
    },
    "Data": {
        "data": "Make and look at data sets.",
        "preview": "A contact sheet of one image: every reduction at every level.",
    },
    "Train": {
        "models": "Names, parameters, cost and input size of networks.",
        "train": "Train a classifier by one of the methods.",
        "adopt": "Make a run of published weights, or of a file of one's own.",
    },
    "Judge": {
        "evaluate": "Accuracy of a run on a split and on folders.",
        "predict": "Classes of your own images by a run.",
        "compare": "McNemar's test of two runs on the same images.",
        "noise-floor": "How far runs differ by their seeds alone, and what that hides.",
        "build-mepi": "Minimal-entropy positive images of a run.",
        "minimal": "The minimal images of one's own photographs, and the way there.",
    },
    "Look": {
        "runs": "What runs there are: method, network, state, best accuracy.",
        "report": "One page with tables and figures on runs and MEPI sets.",
        "log": "Show finished runs in TensorBoard, W&B, MLflow or Trackio.",
    },
    "Run many": {
        "reproduce": "The whole experiment matrix of a TOML file, resumable.",
        "bench": "Measure speed.",
    },
}
COMMANDS = {name: text for commands in _GROUPS.values() for name, text in commands.items()}


class _Lazy(SuggestingGroup):
    """Imports a command's file only when that command is called, so that --help answers at once."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would print an empty line before ours
            raise click.Abort() from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"qrdali.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, COMMANDS))
        for heading, commands in _GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(widest), text) for name, text in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)  # Group's would import every command
        return [*(CompletionItem(name, help=COMMANDS[name]) for name in names), *options]


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qrdali")
def cli() -> None:
    """Train image classifiers on quality-reduced images and ask how little information they need.

    \b
    Begin with:  qrdali demo
    Each command explains itself:  qrdali COMMAND --help
    """


def main() -> None:
    """Runs the program on the arguments of this process, and exits."""
    run_and_exit(cli)
