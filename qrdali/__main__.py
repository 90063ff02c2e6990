"""`python -m qrdali` and the `qrdali` script."""

from __future__ import annotations

from qrdali.cli import main as command_line
from qrdali.cli import process
from qrdali.cli.decoder_messages import keep_out_of_stderr


def main() -> None:
    """Runs the program on the arguments of this process, and exits."""
    process.prepare()
    keep_out_of_stderr()
    command_line.main()


if __name__ == "__main__":
    main()
