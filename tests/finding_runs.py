"""Runs of several seeds whose accuracies and quotients are planted, and the findings on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np

from qrdali.interfaces import SilentListener
from qrdali.report.build import ReportOptions, contents
from qrdali.report.findings.finding import Finding
from qrdali.report.inputs import read_inputs

VAL = np.arange(40) % 2 == 0
LINEAR = {"method": "linear", "reduction": "crop", "sequence": "paired-rounds", "letters": "RC"}
FIXED = {"method": "fixed", "reduction": "color", "sequence": "paired-epochs", "letters": "RC"}
ADAPTIVE = {**LINEAR, "method": "adaptive"}
SHAM = {**LINEAR, "reduction": "none"}
RANDOM = {**LINEAR, "method": "random"}
HARDNESS = np.random.default_rng(0).random(2000)


def answers(level: float, noise: int, images: int = 2000) -> "np.ndarray[Any, Any]":
    """A network that gets about `level` of the images right, the easy ones first."""
    return np.asarray(HARDNESS[:images] + 0.1 * np.random.default_rng(noise).standard_normal(images) < level)


def run(folder: Path, test: "np.ndarray[Any, Any] | None", **more: Any) -> Path:
    sets = {"val": VAL} if test is None else {"val": VAL, "test": test}
    accuracies = more.pop("accuracies", [0.5, 0.6, 0.65, 0.6, 0.7])
    return fake_runs.run(folder, accuracies, sets | more.pop("sets", {}), **more)


def seeds(root: Path, name: str, level: float, count: int = 3, **more: Any) -> list[Path]:
    """Runs of several seeds about a level, each begun with the shared run of its seed."""
    folders = []
    for seed in range(count):
        noise = 1000 * seed + sum(map(ord, name))
        shared, start = root / f"shared-{seed}", {}
        if more.get("method") != "shared":
            start = {"init": str(shared)}
            if not shared.exists():
                run(shared, None, seed=seed, method="shared")
        test = answers(level + 0.004 * (seed - 1), noise)
        folders.append(run(root / f"{name}-{seed}", test, seed=seed, **start, **more))
    return folders


def findings(*folders: Path, mepis: Sequence[Path] = ()) -> list[Finding]:
    return list(parts([*folders], [*mepis])[0].findings)


def parts(folders: list[Path], mepis: list[Path]) -> list[Any]:
    return contents(*read_inputs(folders, mepis, SilentListener()), ReportOptions())


def of(found: list[Finding], question: str, *words: str) -> list[Finding]:
    return [one for one in found if one.question == question and all(word in one.text for word in words)]


def minimal(root: Path, runs: list[Path], mean: float, spread: float = 0.02) -> list[Path]:
    folders = []
    for i, made_of in enumerate(runs):
        draw = np.random.default_rng(sum(map(ord, made_of.name)) + i)
        values = {n: round(mean + spread * float(draw.standard_normal()), 3) for n in range(30)}
        folders.append(fake_runs.mepis(root / f"{made_of.name}-mepi", made_of, {"crop": values}, 30))
    return folders
