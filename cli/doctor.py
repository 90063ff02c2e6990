"""`qrdali doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qrdali.system.doctor import Facts, Finding, State


@click.command()
@click.option(
    "--run",
    default=".",
    type=click.Path(),
    help="Folder for runs, whose disk is looked at.  [default: the working directory]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def doctor(run: str, as_json: bool) -> None:
    """Tell whether training works here and what would help: packages, driver, GPU, decoding, memory, disk.

    What may crash is tried in processes of their own, within a minute each. Exit status 1 when training
    cannot work.

    \b
    Example: qrdali doctor --run /runs
    """
    from dataclasses import asdict

    from qrdali.cli.terminal import TerminalListener, emit
    from qrdali.system.doctor import PROBLEM, examine, verdict
    from qrdali.version import __version__
    from qrdali.workflows.doctor import gather_facts

    facts = gather_facts(Path(run), TerminalListener())
    findings = examine(facts)
    state = verdict(findings)
    if as_json:
        emit(
            {
                "qrdali": __version__,
                "state": state,
                "works": state != PROBLEM,
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        _show(findings, state, facts)
    if state == PROBLEM:
        raise SystemExit(1)


def _show(findings: list[Finding], state: State, facts: Facts) -> None:
    """Prints a line or a few per finding: its state, its name, its value and below it what to do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from qrdali.cli.terminal import say
    from qrdali.errors import printable
    from qrdali.system.doctor import OK, PROBLEM

    styles = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(printable(finding.value))
        if finding.advice:
            text.append(f"\n→ {printable(finding.advice)}", style="italic")
        table.add_row(Text(finding.state, style=styles[finding.state]), Text(finding.name), text)
    Console(stderr=True, highlight=False).print(table)
    worst = [finding.name for finding in findings if finding.state == state]
    if state == PROBLEM:
        say(f"training cannot work here: {', '.join(worst)}")
        return
    device = "on the GPU" if "gpu" in facts.decoding else "on the CPU"
    warnings = "" if state == OK else f"; {len(worst)} warning{'s' if len(worst) > 1 else ''}"
    say(f"training works {device}{warnings}")
