"""Writes a run to Weights & Biases, or to a folder that `wandb sync` sends there later."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from qrdali.loggers.interface import LoggedEpoch, LoggedRun

_SECONDS = 60  # that a start or an end may wait for W&B


class WandbLogger:
    """Keeps one run of W&B, whose id is the run's key.

    Offline, where each start has a folder of its own, `begin` writes a new one that holds every epoch and
    removes those before it. Online W&B takes no epoch again that it has: what it has first stays."""

    def __init__(self, run: Path) -> None:
        self._folder = Path(os.environ.get("WANDB_DIR") or run)
        self._run: Any = None
        self._place = ""

    def place(self) -> str:
        return self._place

    def begin(self, run: LoggedRun) -> None:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        offline = os.environ.get("WANDB_MODE") == "offline" or not _has_key(wandb)
        pattern = f"wandb/offline-run-*-{run.key}"
        if offline and any(self._folder.glob(pattern)):
            time.sleep(1.1)  # such folders are named by the second
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "qrdali",
            id=run.key,
            name=run.name,
            dir=str(self._folder),
            config=dict(run.config),
            mode="offline" if offline else None,  # None: as W&B's own settings say
            resume=None if offline else "allow",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                init_timeout=_SECONDS,
                finish_timeout=_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self._run.define_metric("stages/*", step_metric="stage_epoch")
        begun = 0 if offline else self._run.step
        for epoch in run.epochs:
            if epoch.number >= begun:
                self.epoch(epoch)
        own = Path(self._run.dir).parent
        self._place = str(own) if offline else (self._run.url or "")
        for old in self._folder.glob(pattern) if offline else ():
            if old.resolve() != own.resolve():
                shutil.rmtree(old, ignore_errors=True)

    def epoch(self, epoch: LoggedEpoch) -> None:
        import wandb

        values: dict[str, Any] = {**epoch.values, **epoch.stage_values}
        if epoch.stage_values:
            values["stage_epoch"] = epoch.stage_epoch
        if epoch.sheet is not None:
            values["preview"] = wandb.Image(str(epoch.sheet))
        self._run.log(values, step=epoch.number, commit=True)

    def end(self, finished: bool) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            run.finish(0 if finished else 1)


def _has_key(wandb: Any) -> bool:
    """Returns whether W&B could log in without asking the person at the terminal, for which training would
    wait."""
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    return bool(settings.api_key or settings.identity_token_file or get_netrc_auth(settings.base_url))
