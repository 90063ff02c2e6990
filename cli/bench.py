"""`qrdali bench`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def bench() -> None:
    """Measure speed on this machine, beside peers in the same run.

    \b
    Example: qrdali bench loader --json
    """


@bench.command()
@click.option(
    "--data", type=click.Path(), help="Data set whose train split is read.  [default: 2,048 generated JPEGs]"
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--input-size", type=click.IntRange(8, 4096), default=224, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def loader(
    data: str | None, rounds: int, threads: int | None, input_size: int, batch_size: int, as_json: bool
) -> None:
    """Images per second of the loader at full and reduced quality, of torchvision's and of a plain DALI graph.

    \b
    Example: qrdali bench loader --rounds 5 --json > loader.json
    """
    import os
    import tempfile

    from rich.console import Console
    from rich.table import Table

    from qrdali.cli.signals import sigterm_exits
    from qrdali.cli.terminal import Bar, emit
    from qrdali.data.index import Dataset
    from qrdali.data.scan import build_dataset
    from qrdali.data.shapes import ShapesSpec, generate
    from qrdali.workflows.bench_loader import measure

    with sigterm_exits(), tempfile.TemporaryDirectory() as folder:
        if data is None:
            spec = ShapesSpec(classes=16, train=128, val=0, test=0)
            with Bar("generate", spec.total, "files") as bar:
                generate(Path(folder) / "images", spec, progress=bar.advance)
            build_dataset(Path(folder) / "images", Path(folder) / "data")
        index = Dataset.open(Path(data) if data else Path(folder) / "data").index("train")
        with Bar("measure", (rounds + 1) * 9, "runs") as bar:
            result = measure(
                index,
                rounds=rounds,
                side=input_size,
                threads=threads or os.cpu_count() or 1,
                batch_size=batch_size,
                progress=lambda name: bar.advance(1, name),
            )
    result["command"] = (
        f"qrdali bench loader --rounds {rounds} --threads {result['threads']} --input-size {input_size} "
        f"--batch-size {batch_size} --json"
    )
    if as_json:
        emit(result)
        return
    table = Table("loader", "images/s", "min", "max")
    for name, rate in result["images_per_second"].items():
        table.add_row(name, *(f"{rate[key]:,.0f}" for key in ("median", "min", "max")))
    console = Console(stderr=True)
    console.print(table)
    for title in ("speed_ratio", "time_reduced_over_full"):
        for name, value in result[title].items():
            console.print(f"{title.replace('_', ' ')}: {name} {value:.2f}", highlight=False)


@bench.command()
@click.option(
    "--data", type=click.Path(), help="Data set whose train split is used.  [default: generated JPEGs]"
)
@click.option("--model", "name", default="squeezenet1_1", show_default=True)
@click.option("--images", type=click.IntRange(2), default=256, show_default=True, help="Images of an epoch.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--input-size", type=click.IntRange(8, 4096), help="[default: the model's]")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def train(
    data: str | None,
    name: str,
    images: int,
    rounds: int,
    threads: int | None,
    input_size: int | None,
    batch_size: int,
    as_json: bool,
) -> None:
    """Seconds of a full epoch, of reduced ones and of adaptive probes, and their ratios, beside the thesis'.

    \b
    Example: qrdali bench train --model squeezenet1_1 --json > train.json
    """
    import os
    import tempfile

    from rich.console import Console
    from rich.table import Table

    from qrdali.cli.signals import sigterm_exits
    from qrdali.cli.terminal import Bar, emit
    from qrdali.data.index import Dataset
    from qrdali.data.scan import build_dataset
    from qrdali.data.shapes import ShapesSpec, generate
    from qrdali.workflows.bench_train import measure

    with sigterm_exits(), tempfile.TemporaryDirectory() as folder:
        if data is None:
            spec = ShapesSpec(classes=16, train=-(-images // 16), val=0, test=0)
            with Bar("generate", spec.total, "files") as bar:
                generate(Path(folder) / "images", spec, progress=bar.advance)
            build_dataset(Path(folder) / "images", Path(folder) / "data")
        dataset = Dataset.open(Path(data) if data else Path(folder) / "data")
        with Bar("measure", (rounds + 1) * 11, "runs") as bar:
            result = measure(
                dataset.index("train"),
                len(dataset.classes),
                name=name,
                rounds=rounds,
                side=input_size,
                threads=threads or os.cpu_count() or 1,
                batch_size=batch_size,
                images=images,
                progress=lambda what: bar.advance(1, what),
            )
    result["command"] = (
        f"qrdali bench train --model {name} --images {result['images']} --rounds {rounds} --threads "
        f"{result['threads']} --input-size {result['input_size']} --batch-size {batch_size} --json"
    )
    if as_json:
        emit(result)
        return
    table = Table("epoch or probe", "seconds", "÷ full", "thesis ÷ full")
    for what, taken in result["seconds"].items():
        ours, theirs = (result[key].get(what) for key in ("over_full", "thesis_over_full"))
        table.add_row(
            what, f"{taken['median']:.2f}", *("" if v is None else f"{v:.2f}" for v in (ours, theirs))
        )
    Console(stderr=True).print(table)


@bench.command()
@click.option(
    "--data", type=click.Path(), help="Data set whose train split is used.  [default: generated JPEGs]"
)
@click.option("--model", "name", default="squeezenet1_1", show_default=True)
@click.option(
    "--images", type=click.IntRange(1), default=32, show_default=True, help="Images searched by ours."
)
@click.option(
    "--naive-images",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Of them, searched by the naive reference.",
)
@click.option("--step", default=0.05, show_default=True, help="Grid of qualities, 1/n.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--input-size", type=click.IntRange(8, 4096), help="[default: the model's]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def mepi(
    data: str | None,
    name: str,
    images: int,
    naive_images: int,
    step: float,
    rounds: int,
    threads: int | None,
    input_size: int | None,
    as_json: bool,
) -> None:
    """Images per second of build-mepi and of a naive search, per reduction. Needs a checkout: the reference is in benchmarks/.

    \b
    Example: qrdali bench mepi --model squeezenet1_1 --json > mepi.json
    """
    import os
    import tempfile

    from rich.console import Console
    from rich.table import Table

    from qrdali.cli.signals import sigterm_exits
    from qrdali.cli.terminal import Bar, emit
    from qrdali.data.index import Dataset
    from qrdali.data.scan import build_dataset
    from qrdali.data.shapes import ShapesSpec, generate
    from qrdali.workflows.bench_mepi import measure, naive_module

    naive_module()
    with sigterm_exits(), tempfile.TemporaryDirectory() as folder:
        if data is None:
            spec = ShapesSpec(classes=16, train=-(-images // 16), val=0, test=0)
            with Bar("generate", spec.total, "files") as bar:
                generate(Path(folder) / "images", spec, progress=bar.advance)
            build_dataset(Path(folder) / "images", Path(folder) / "data")
        index = Dataset.open(Path(data) if data else Path(folder) / "data").index("train")
        with Bar("measure", rounds * 8, "runs") as bar:
            result = measure(
                index,
                name=name,
                side=input_size,
                threads=threads or os.cpu_count() or 1,
                images=images,
                naive_images=naive_images,
                step=step,
                rounds=rounds,
                progress=lambda what: bar.advance(1, what),
            )
    result["command"] = (
        f"qrdali bench mepi --model {name} --images {result['images']} --naive-images {result['naive_images']} --step "
        f"{step:g} --rounds {rounds} --threads {result['threads']} --input-size {result['input_size']} --json"
    )
    if as_json:
        emit(result)
        return
    table = Table("reduction", "images/s", "naive", "ratio", "÷ forward alone", "evaluations", "same answer")
    for what, row in result["reductions"].items():
        table.add_row(
            what,
            *(
                str(row[key])
                for key in (
                    "images_per_second",
                    "naive_images_per_second",
                    "ratio",
                    "over_forward_alone",
                    "evaluations_per_image",
                    "same_answer",
                )
            ),
        )
    Console(stderr=True).print(table)
