"""Gathers the facts of this machine that `qrdali doctor` judges; what may crash is tried in processes of
their own.

Importing this imports neither torch nor DALI nor numpy: it must work where one of them is broken.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qrdali.pipelines import decoder_trial, survey
from qrdali.pipelines.decoder_trial import TrialResult
from qrdali.system import machine
from qrdali.system.doctor import Facts

if TYPE_CHECKING:
    from qrdali.interfaces import ProgressListener

CHECKS = 3  # at most


def gather_facts(run: Path, listener: ProgressListener) -> Facts:
    """Returns the facts of this machine; run: the folder for runs, whose disk is measured."""
    listener.begin("look", CHECKS, "checks")
    try:
        return _gather(run, lambda what: listener.advance(1, lambda: what))
    finally:
        listener.end()


def _gather(run: Path, progress: Callable[[str], None]) -> Facts:
    parts = survey.survey()
    progress("decoding on the CPU")
    decoding = {"cpu": _why_not(decoder_trial.run_trial(None, whole=False))}
    gpus = parts["gpus"].get("gpus", [])
    if gpus and gpus[0]["error"] is None:
        progress("decoding on the GPU")
        decoding["gpu"] = _why_not(decoder_trial.run_trial(0, whole=True))
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


def _why_not(trial: TrialResult) -> str | None:
    """Returns why decoding fails, None where it works."""
    return None if trial.works else trial.reason
