"""`qrdali demo`: the main job on generated pictures, on any CPU."""

from __future__ import annotations

from pathlib import Path

import click

MODEL, INPUT_SIZE, EPOCHS = "test_resnet", 96, 18


@click.command()
@click.option("--out", default="demo", show_default=True, type=click.Path(), help="Folder for data and runs.")
def demo(out: str) -> None:
    """Generate pictures, index them, train shared and then baseline from it; minutes on two cores.

    \b
    Example: qrdali demo --out demo
    """
    import time

    from qrdali.cli.evaluate import evaluate_run
    from qrdali.cli.terminal import Bar, say
    from qrdali.cli.train import run_training
    from qrdali.data.scan import build
    from qrdali.data.shapes import ShapesSpec, generate
    from qrdali.errors import InputError
    from qrdali.settings import Settings

    folder, begun = Path(out), time.monotonic()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty: choose another --out or remove it")
    spec = ShapesSpec()
    with Bar("generate", spec.total, "files") as bar:
        generate(folder / "images", spec, progress=bar.advance)
    data = folder / "data"
    with Bar("index", spec.total, "files") as bar:
        build(folder / "images", data, progress=lambda split, files: bar.advance(files, split))
    # The CPU even where there is a GPU: the demo shows the same figures everywhere.
    common = {"data": str(data), "model": MODEL, "input_size": INPUT_SIZE, "device": "cpu", "batch_size": 16}
    shared, baseline = folder / "runs" / "shared", folder / "runs" / "baseline"
    run_training(Settings(method="shared", epochs=EPOCHS, lr=2e-3, **common), shared, False)  # type: ignore[arg-type]
    run_training(Settings(method="baseline", init=str(shared), max_epochs=6, lr=5e-4, **common), baseline, False)  # type: ignore[arg-type]
    for run in (shared, baseline):
        result = evaluate_run(run, data, "test", device="cpu")
        say(f"{run}: test accuracy {result['accuracy']:.3f} ({result['correct']} of {result['images']})")
    say(f"done in {time.monotonic() - begun:.0f} s; run folders: {shared} and {baseline}")
