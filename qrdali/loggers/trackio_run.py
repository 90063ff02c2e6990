"""Writes a run to Trackio's local folder, TRACKIO_DIR, where `trackio show` and `trackio sync` find it."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from qrdali.loggers.interface import LoggedEpoch, LoggedRun

_REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class TrackioLogger:
    """Keeps one run of Trackio, named by the folder and the run's key, which `begin` deletes and writes anew,
    so that no epoch is in it twice.

    Elsewhere than on this machine a run cannot be deleted, so that TRACKIO_SPACE_ID and TRACKIO_SERVER_URL
    are refused."""

    def __init__(self, run: Path) -> None:
        self._run: Any = None
        self._project = os.environ.get("TRACKIO_PROJECT") or "qrdali"
        self._name = ""

    def place(self) -> str:
        return f"project {self._project}, run {self._name}"

    def begin(self, run: LoggedRun) -> None:
        if given := [name for name in _REMOTE if os.environ.get(name)]:
            raise RuntimeError(f"{given[0]} is set: unset it, and send the local log with `trackio sync`")
        with redirect_stdout(sys.stderr):  # stdout is for --json
            import trackio

            self._name = f"{run.name}-{run.key[:6]}"
            with suppress(ValueError):  # there is no such project yet
                for old in list(trackio.Api().runs(self._project)):
                    if old.name == self._name:
                        old.delete()
            self._run = trackio.init(
                self._project,
                self._name,
                config=dict(run.config),
                resume="never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        for epoch in run.epochs:
            self.epoch(epoch)

    def epoch(self, epoch: LoggedEpoch) -> None:
        import trackio

        values: dict[str, Any] = {**epoch.values, **epoch.stage_values}
        if epoch.stage_values:
            values["stage_epoch"] = epoch.stage_epoch
        if epoch.sheet is not None:
            values["preview"] = trackio.Image(str(epoch.sheet))
        self._run.log(values, step=epoch.number)

    def end(self, finished: bool) -> None:
        if self._run is not None:
            import trackio

            self._run = None
            with redirect_stdout(sys.stderr):
                trackio.finish()  # not the run's own: Trackio would finish it again, on stdout, at exit
