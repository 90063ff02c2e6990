"""Does the main job on generated pictures: data, four runs, their evaluation, MEPIs and a report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.data.shapes import ShapesSpec
from qrdali.errors import InputError
from qrdali.interfaces import JobControl
from qrdali.runs.settings import validate_settings
from qrdali.workflows.build_mepi import build_mepi
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator
from qrdali.workflows.generated_data import generate_pictures, index_pictures
from qrdali.workflows.report import write_report
from qrdali.workflows.stop_requests import stopping_at_progress
from qrdali.workflows.train import run_training

MODEL, INPUT_SIZE, EPOCHS, LR = "test_resnet", 96, 15, 2e-3
SEARCHED = ("baseline", "linear")  # runs whose MEPIs are compared
IMAGES = 24  # validation images of which MEPIs are built
REDUCED = 0.5  # quality of the reduced test sets


@dataclass(frozen=True)
class DemoResult:
    """Holds where the demo has put what is worth a look.

    page: the report; sheets: contact sheets of MEPIs; runs: the folder of the run folders; images: the root
    that was indexed, with train/, val/ and test/; picture: one of the test images.
    """

    page: Path
    sheets: tuple[Path, ...]
    runs: Path
    images: Path
    picture: Path


def run_demo(folder: Path, control: JobControl = JobControl()) -> DemoResult:
    """Writes pictures, data set, runs, MEPI sets and report into `folder`; returns where they are.

    Takes minutes on two cores. Raises InputError if `folder` is not empty, Interrupted after a signal.
    """
    begun, stopping = time.monotonic(), stopping_at_progress(control)
    listener = stopping.listener
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty: choose another --out or remove it")
    spec, data, images = ShapesSpec(), folder / "data", folder / "images"
    generate_pictures(images, spec, listener)
    index_pictures(images, data, spec.total, listener)
    runs = _train(folder / "runs", data, control)
    for run in runs:
        _evaluate(run, data, stopping)
    sets = {run: folder / "mepi" / run.name for run in runs if run.name in SEARCHED}
    summaries = {run.name: _build_mepis(run, data, out, control) for run, out in sets.items()}
    _compare_quotients(summaries, control)
    page = write_report(runs, folder / "report", mepi=list(sets.values()), control=stopping).page
    listener.line(f"done in {time.monotonic() - begun:.0f} s")
    sheets = tuple(sets[run] / f"{reduction}.png" for run in sets for reduction in summaries[run.name])
    picture = min((images / "test").glob("*/*.jpg"))
    return DemoResult(page, sheets, folder / "runs", images, picture)


def _train(folder: Path, data: Path, control: JobControl) -> list[Path]:
    """Trains shared, and from it baseline, linear and adaptive; returns the run folders."""
    # The CPU even where there is a GPU: the demo shows the same figures everywhere.
    common = {"data": str(data), "model": MODEL, "input_size": INPUT_SIZE, "device": "cpu", "batch_size": 16}
    later: dict[str, Any] = {"init": str(folder / "shared"), "max_epochs": 8, "lr": 5e-4, "patience": 1}
    methods: dict[str, dict[str, Any]] = {
        "shared": {"epochs": EPOCHS, "lr": LR},
        "baseline": later,
        "linear": {**later, "reduction": "combination", "sequence": "paired-epochs"},
        "adaptive": {**later, "reduction": "crop", "sequence": "paired-rounds"},
    }
    for method, values in methods.items():
        control.listener.line(f"--- {method}")
        run_training(
            validate_settings({"method": method, **common, **values}), folder / method, False, control
        )
    return [folder / method for method in methods]


def _evaluate(run: Path, data: Path, control: JobControl) -> None:
    result = Evaluator(run, EvaluateOptions(device="cpu", reduced=REDUCED), control).split(data, "test")
    reduced = ", ".join(f"{name} {row['accuracy']:.3f}" for name, row in result["reduced"].items())
    control.listener.line(
        f"{run}: test accuracy {result['accuracy']:.3f} ({result['correct']} of {result['images']}); "
        f"at quality {REDUCED:g}: {reduced}"
    )


def _build_mepis(run: Path, data: Path, out: Path, control: JobControl) -> dict[str, Any]:
    """Returns the summary of a run's MEPI set by reduction."""
    control.listener.line(f"--- MEPIs of {run.name}")
    return build_mepi(run, data, out=out, limit=IMAGES, device="cpu", control=control)


def _compare_quotients(summaries: dict[str, dict[str, Any]], control: JobControl) -> None:
    """Shows the mean quotients of the sets side by side, a line per reduction."""
    control.listener.line("mean entropy quotient of MEPIs: " + ", ".join(summaries))
    first = next(iter(summaries.values()))
    for reduction in first:
        quotients = [summary[reduction]["mean_quotient"] for summary in summaries.values()]
        columns = "".join("    none" if quotient is None else f"  {quotient:.4f}" for quotient in quotients)
        control.listener.line(f"  {reduction:12s}{columns}")
