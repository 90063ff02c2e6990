"""What `qrdali train --print-config` prints: all settings as a TOML file for --config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qrdali.cli.train_options import require_run


def show_config(method: str, values: dict[str, Any], run: str | None, resume: bool) -> None:
    """Prints on stdout the settings that a run would have; nothing is touched.

    values: those that are given. run: with `resume` the folder of the run whose settings they complete.
    """
    from qrdali.runs.settings_text import settings_text
    from qrdali.schedule.methods import check_settings
    from qrdali.workflows.train_settings import settings_of

    folder = Path(require_run(run)) if resume else Path()
    settings = settings_of(method, folder, values, resume, needs_data=False)
    check_settings(settings)
    click.echo(settings_text(settings), nl=False)
