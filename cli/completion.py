"""`qrdali completion`: the script by which a shell completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_QRDALI_COMPLETE"  # the one that click looks at in a program of this name


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that makes Tab complete qrdali's commands, options and choices in SHELL.

    Put it where the shell looks, and start a new shell:

    \b
    bash  mkdir -p ~/.local/share/bash-completion/completions
          qrdali completion bash \\
            > ~/.local/share/bash-completion/completions/qrdali
          (read by the package bash-completion; without it:
          qrdali completion bash >> ~/.bashrc)
    zsh   qrdali completion zsh >> ~/.zshrc
          (after the line compinit there)
    fish  mkdir -p ~/.config/fish/completions
          qrdali completion fish > ~/.config/fish/completions/qrdali.fish

    \b
    For this shell only:
      eval "$(qrdali completion bash)"        bash and zsh
      qrdali completion fish | source         fish

    The script asks the program itself, so that it need not be made again for a newer version.

    \b
    Example: qrdali completion zsh >> ~/.zshrc
    """
    click.echo(script(shell))


def script(shell: str) -> str:
    """Returns the completion script of click for a shell of SHELLS."""
    kind = get_completion_class(shell)
    assert kind is not None
    from qrdali.cli.main import cli

    # The base class's; bash's own would start a bash for its version, and print what it thinks of it.
    return ShellComplete.source(kind(cli, {}, "qrdali", VARIABLE)).strip()
