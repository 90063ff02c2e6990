"""`qrdali bench`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qrdali.cli.groups import SuggestingGroup
from qrdali.cli.setting_options import setting_option

if TYPE_CHECKING:
    from qrdali.data.index import Dataset
    from qrdali.interfaces import ProgressListener

F = TypeVar("F", bound=Callable[..., Any])

_data = click.option(
    "--data", type=click.Path(), help="Data set whose train split is used.  [default: generated JPEGs]"
)
_model = setting_option("model", default="squeezenet1_1")
_threads = setting_option("threads", default_text="as in training: all cores, at most 16 of DALI for a GPU")
_input_size = click.option("--input-size", type=click.IntRange(8, 4096), help="[default: the model's]")
_batch_size = setting_option("batch_size")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


def _rounds(default: int) -> Callable[[F], F]:
    return click.option("--rounds", type=click.IntRange(1), default=default, show_default=True)


@click.group(cls=SuggestingGroup)
def bench() -> None:
    """Measure speed on this machine, beside peers in the same run.

    \b
    Example: qrdali bench loader --json
    """


@bench.command()
@click.option(
    "--data", type=click.Path(), help="Data set whose train split is read.  [default: 2,048 generated JPEGs]"
)
@_rounds(5)
@_threads
@click.option("--input-size", type=click.IntRange(8, 4096), default=224, show_default=True)
@_batch_size
@_json
def loader(
    data: str | None, rounds: int, threads: int | None, input_size: int, batch_size: int, as_json: bool
) -> None:
    """Measure images per second of the loader, full and reduced, of torchvision's and of a plain DALI graph.

    \b
    Example: qrdali bench loader --rounds 5 --json > loader.json
    """
    from rich.console import Console

    from qrdali.cli.terminal import emit
    from qrdali.workflows.bench_loader import measure

    result = _measured(
        data,
        128,
        lambda dataset, listener: measure(
            dataset.index("train"),
            rounds=rounds,
            side=input_size,
            threads=threads,
            batch_size=batch_size,
            listener=listener,
        ),
    )
    result["command"] = (
        f"qrdali bench loader --rounds {rounds} {_asked(threads)}--input-size {input_size} "
        f"--batch-size {batch_size} --json"
    )
    if as_json:
        emit(result)
        return
    _show(
        ("loader", "images/s", "min", "max"),
        [
            (name, *(f"{rate[key]:,.0f}" for key in ("median", "min", "max")))
            for name, rate in result["images_per_second"].items()
        ],
    )
    for title in ("speed_ratio", "time_reduced_over_full"):
        for name, value in result[title].items():
            line = f"{title.replace('_', ' ')}: {name} {value:.2f}"
            Console(stderr=True).print(line, highlight=False)


@bench.command()
@_data
@_model
@click.option("--images", type=click.IntRange(2), default=256, show_default=True, help="Images of an epoch.")
@_rounds(3)
@_threads
@_input_size
@_batch_size
@_json
def train(
    data: str | None,
    model: str,
    images: int,
    rounds: int,
    threads: int | None,
    input_size: int | None,
    batch_size: int,
    as_json: bool,
) -> None:
    """Measure seconds of full and reduced epochs and of adaptive probes, and ratios beside the thesis'.

    \b
    Example: qrdali bench train --model squeezenet1_1 --json > train.json
    """
    from qrdali.cli.terminal import emit
    from qrdali.workflows.bench_train import measure

    result = _measured(
        data,
        -(-images // 16),
        lambda dataset, listener: measure(
            dataset.index("train"),
            len(dataset.classes),
            name=model,
            rounds=rounds,
            side=input_size,
            threads=threads,
            batch_size=batch_size,
            images=images,
            listener=listener,
        ),
    )
    result["command"] = (
        f"qrdali bench train --model {model} --images {result['images']} --rounds {rounds} {_asked(threads)}"
        f"--input-size {result['input_size']} --batch-size {batch_size} --json"
    )
    if as_json:
        emit(result)
        return
    _show(
        ("epoch or probe", "seconds", "÷ full", "thesis ÷ full"),
        [
            (
                kind,
                f"{seconds['median']:.2f}",
                *(
                    "" if (ratio := result[key].get(kind)) is None else f"{ratio:.2f}"
                    for key in ("over_full", "thesis_over_full")
                ),
            )
            for kind, seconds in result["seconds"].items()
        ],
    )


@bench.command()
@_data
@_model
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
@setting_option("step", default=0.05)
@setting_option("tail", default="full")
@_rounds(1)
@_threads
@_input_size
@_json
def mepi(
    data: str | None,
    model: str,
    images: int,
    naive_images: int,
    step: float,
    tail: str,
    rounds: int,
    threads: int | None,
    input_size: int | None,
    as_json: bool,
) -> None:
    """Measure images per second of build-mepi and of a naive search, per reduction.

    Needs a checkout: the reference is in benchmarks/.

    \b
    Example: qrdali bench mepi --model squeezenet1_1 --json > mepi.json
    """
    from qrdali.cli.terminal import emit
    from qrdali.workflows.bench_mepi import measure, naive_module

    naive_module()  # refused before pictures are generated
    result = _measured(
        data,
        -(-images // 16),
        lambda dataset, listener: measure(
            dataset.index("train"),
            name=model,
            side=input_size,
            threads=threads,
            images=images,
            naive_images=naive_images,
            step=step,
            tail=tail,
            rounds=rounds,
            listener=listener,
        ),
    )
    result["command"] = (
        f"qrdali bench mepi --model {model} --images {result['images']} --naive-images "
        f"{result['naive_images']} "
        f"--step {step:g} --tail {tail} --rounds {rounds} {_asked(threads)}"
        f"--input-size {result['input_size']} --json"
    )
    if as_json:
        emit(result)
        return
    columns = {
        "images/s": "images_per_second",
        "naive": "naive_images_per_second",
        "ratio": "ratio",
        "÷ forward alone": "over_forward_alone",
        "evaluations": "evaluations_per_image",
        "same answer": "same_answer",
    }
    _show(
        ("reduction", *columns),
        [
            (reduction, *(str(row[key]) for key in columns.values()))
            for reduction, row in result["reductions"].items()
        ],
    )


def _measured(
    data: str | None, per_class: int, measure: Callable[[Dataset, ProgressListener], dict[str, Any]]
) -> dict[str, Any]:
    """Returns the result of `measure` on the data set `data`, or on 16 classes of `per_class` pictures."""
    from qrdali.cli.signals import sigterm_exits
    from qrdali.cli.terminal import TerminalListener
    from qrdali.workflows.generated_data import dataset_or_pictures

    listener = TerminalListener()
    with sigterm_exits(), dataset_or_pictures(Path(data) if data else None, per_class, listener) as dataset:
        return measure(dataset, listener)


def _asked(threads: int | None) -> str:
    """Returns --threads as it was given, with a space after it, or nothing."""
    return "" if threads is None else f"--threads {threads} "


def _show(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Prints a table on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console(stderr=True).print(table)
