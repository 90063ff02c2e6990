"""`qrdali demo`: the main job on generated pictures, on any CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

MODEL, INPUT_SIZE, EPOCHS = "test_resnet", 96, 15
SEARCHED, IMAGES = (
    ("baseline", "linear"),
    24,
)  # runs whose MEPIs are compared, and on how many validation images
REDUCED = 0.5  # quality of the reduced test sets


@click.command()
@click.option("--out", default="demo", show_default=True, type=click.Path(), help="Folder for data and runs.")
def demo(out: str) -> None:
    """Generate pictures, index them, train shared, then baseline, linear and adaptive from it, evaluate, build MEPIs, write a report.

    Takes minutes on two cores.

    \b
    Example: qrdali demo --out demo
    """
    import time

    from qrdali.cli.build_mepi import build as build_mepi
    from qrdali.cli.evaluate import Evaluator
    from qrdali.cli.report import make
    from qrdali.cli.signals import terminal_control
    from qrdali.cli.terminal import Bar, say
    from qrdali.data.scan import build_dataset
    from qrdali.data.shapes import ShapesSpec, generate
    from qrdali.errors import InputError
    from qrdali.runs.settings import validate_settings
    from qrdali.workflows.train import run_training

    folder, begun = Path(out), time.monotonic()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty: choose another --out or remove it")
    spec = ShapesSpec()
    with Bar("generate", spec.total, "files") as bar:
        generate(folder / "images", spec, progress=bar.advance)
    data = folder / "data"
    with Bar("index", spec.total, "files") as bar:
        build_dataset(folder / "images", data, progress=lambda split, files: bar.advance(files, split))
    # The CPU even where there is a GPU: the demo shows the same figures everywhere.
    common = {"data": str(data), "model": MODEL, "input_size": INPUT_SIZE, "device": "cpu", "batch_size": 16}
    runs = folder / "runs"
    after: dict[str, Any] = {"init": str(runs / "shared"), "max_epochs": 8, "lr": 5e-4, "patience": 1}
    plans: dict[str, dict[str, Any]] = {
        "shared": {"epochs": EPOCHS, "lr": 2e-3},
        "baseline": after,
        "linear": {**after, "reduction": "combination", "sequence": "paired-epochs"},
        "adaptive": {**after, "reduction": "crop", "sequence": "paired-rounds"},
    }
    for method, values in plans.items():
        say(f"--- {method}")
        with terminal_control() as control:
            settings = validate_settings({"method": method, **common, **values})
            run_training(settings, runs / method, False, control)
    for method in plans:
        result = Evaluator(runs / method, device="cpu", reduced=REDUCED).split(data, "test")
        at = ", ".join(
            f"{reduction} {found['accuracy']:.3f}" for reduction, found in result["reduced"].items()
        )
        say(
            f"{runs / method}: test accuracy {result['accuracy']:.3f} ({result['correct']} of {result['images']}); at quality "
            f"{REDUCED:g}: {at}"
        )
    sets = {}
    for method in SEARCHED:
        say(f"--- MEPIs of {method}")
        sets[method] = build_mepi(
            run=str(runs / method),
            data=str(data),
            out=str(folder / "mepi" / method),
            limit=IMAGES,
            device="cpu",
        )
    say("mean entropy quotient of MEPIs: " + ", ".join(SEARCHED))
    for reduction in sets[SEARCHED[0]]:
        quotients = [sets[method][reduction]["mean_quotient"] for method in SEARCHED]
        say(f"  {reduction:12s}" + "".join("    none" if q is None else f"  {q:.4f}" for q in quotients))
    page = make(
        [runs / method for method in plans],
        [folder / "mepi" / method for method in SEARCHED],
        folder / "report",
    )
    say(f"contact sheets: {', '.join(str(folder / 'mepi' / method) for method in SEARCHED)}")
    say(f"done in {time.monotonic() - begun:.0f} s; run folders in {runs}: {', '.join(plans)}")
    say(str(page))
