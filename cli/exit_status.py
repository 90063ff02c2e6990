"""Turns how a command ended into an exit status, and a failure into one line on stderr.

0: it did what was asked. 1: work failed that was asked for rightly. 2: an option, a name or a value that
cannot be used. 130, 143, 138 and 140: SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 stopped it (128 + the signal's
number), with everything saved.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from qrdali.cli import terminal
from qrdali.errors import InputError, OtherRankFailed, RunError, printable

_MAX_ERROR = 1000  # characters of an error's line: a name may be of any length


def run_and_exit(command: click.Command) -> NoReturn:
    """Runs `command` with the arguments of this process, and exits with its status."""
    try:
        status = command.main(prog_name="qrdali", standalone_mode=False)
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
    except OtherRankFailed:  # the process that failed has printed why
        sys.exit(1)
    except (RunError, OSError) as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):  # click's is a RuntimeError: it comes before those
        _fail("interrupted", 130)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for its name alone
            raise
        _fail(f"the GPU's memory does not suffice: lower --batch-size ({_first_sentences(error)})", 1)
    except ImportError as error:
        _fail(f"{error}: the installation is incomplete, install qrdali again", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _first_sentences(error: RuntimeError) -> str:
    """Returns how much was asked for and how much there is, without torch's advice on its allocator."""
    return str(error).partition(" Including non-PyTorch memory")[0].rstrip(".")


def _fail(message: str, status: int) -> NoReturn:
    line = printable(message)
    if len(line) > _MAX_ERROR:
        line = line[:_MAX_ERROR] + "…"
    print(f"qrdali: {terminal.who}error: {line}", file=sys.stderr)
    sys.exit(status)
