"""`qrdali doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """Whether training works here and what would make it work better: packages, driver, GPU, decoding, memory, disk.

    What may crash is tried in processes of their own, within a minute each. Exit status 1 when training cannot work.

    \b
    Example: qrdali doctor --run /runs
    """
    from dataclasses import asdict

    from qrdali.cli.terminal import Bar, emit
    from qrdali.system.doctor import PROBLEM, examine, verdict
    from qrdali.version import __version__

    with Bar("look", 4, "checks") as bar:
        facts = gather(Path(run), lambda what: bar.advance(1, what))
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


def gather(run: Path, progress: Callable[[str], None]) -> Facts:
    """Looks at everything. What is found of a GPU's regions of interest is remembered for the loaders. `progress` hears what comes."""
    import os
    import sys

    from qrdali.pipelines.decoder_trial import remember, run_trial, trial_key
    from qrdali.pipelines.survey import survey
    from qrdali.system import machine
    from qrdali.system.doctor import Facts

    parts = survey()
    progress("decoding on the CPU")
    decoding = {"cpu": _reason(run_trial(None, whole=False))}
    gpus = parts["gpus"].get("gpus", [])
    if gpus and gpus[0]["error"] is None:
        progress("decoding on the GPU")
        decoding["gpu"] = _reason(run_trial(0, whole=True))
        progress("regions of interest on the GPU")
        region = run_trial(0, whole=False)
        decoding["region"] = _reason(region)
        place = trial_key(
            parts["dali"].get("version"),
            parts["codec"].get("version"),
            parts["driver"].get("version"),
            gpus[0]["name"],
        )
        if place and (region.works or decoding["gpu"] is None):
            remember(place, region)
    return Facts(
        sys.version_info[:3],
        parts,
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        decoding,
        machine.processors(),
        machine.memory(),
        machine.shared_memory(),
        str(run),
        machine.disk(run),
    )


def _reason(found: Any) -> str | None:
    return None if found.works else found.reason


def _show(findings: list[Finding], state: State, facts: Facts) -> None:
    """A line or a few per finding: its state, its name, its value and below it what to do."""
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
    wrong = [finding.name for finding in findings if finding.state == state]
    device = "on the GPU" if "gpu" in facts.decoding else "on the CPU"
    say(
        f"training cannot work here: {', '.join(wrong)}"
        if state == PROBLEM
        else f"training works {device}"
        + ("" if state == OK else f"; {len(wrong)} warning{'s' if len(wrong) > 1 else ''}")
    )
