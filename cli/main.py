"""The `qrdali` group of commands, and one line on stderr for every failure."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from qrdali.cli import terminal
from qrdali.errors import InputError, OtherRankFailed, RunError, printable
from qrdali.version import __version__

COMMANDS = {
    "demo": "Generate pictures, index, train four methods, evaluate, build MEPIs, report.",
    "doctor": "Whether training works here, and what to do about what does not.",
    "models": "Names, parameters, cost and input size of networks.",
    "preview": "A contact sheet of one image: every reduction at every level.",
    "data": "Make and look at data sets.",
    "train": "Train a classifier by one of the methods.",
    "evaluate": "Accuracy of a run on a split and on folders.",
    "compare": "McNemar's test of two runs on the same images.",
    "build-mepi": "Minimal-entropy positive images of a run.",
    "report": "One page with tables and figures on runs and MEPI sets.",
    "reproduce": "The whole experiment matrix of a TOML file, resumable.",
    "bench": "Measure speed.",
}


_MAX_ERROR = 1000  # characters of an error's line: a name may be of any length


class _Lazy(click.Group):
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
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qrdali")
def cli() -> None:
    """Train image classifiers on quality-reduced images and ask how little information they need.

    \b
    Begin with:  qrdali demo
    """


def main() -> None:
    """Runs the program. Exit status: 2 for usage, 1 for a failed run, 130 and 143 after SIGINT and
    SIGTERM."""
    try:
        status = cli.main(prog_name="qrdali", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        _fail(error.format_message() + hint, 2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except InputError as error:
        _fail(str(error), 2)
    except OtherRankFailed:
        sys.exit(1)
    except (RunError, OSError) as error:
        _fail(str(error), 1)
    except ImportError as error:
        _fail(f"{error}: the installation is incomplete, install qrdali again", 1)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    line = printable(message)
    print(
        f"qrdali: {terminal.who}error: {line if len(line) <= _MAX_ERROR else line[:_MAX_ERROR] + '…'}",
        file=sys.stderr,
    )
    sys.exit(status)
