"""`qrdali predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qrdali.cli.search_options import machine_options
from qrdali.cli.setting_options import setting_option

if TYPE_CHECKING:
    from qrdali.workflows.predict import ImagePredictions

_INDENT = 2
_LONGEST = 32  # characters that a column of classes is padded to
_SHARE = 8  # characters of a probability


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(), metavar="IMAGE...")
@click.option("--run", required=True, type=click.Path(), help="A run folder; its best/ answers.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes shown per image.")
@click.option("--out", type=click.Path(), metavar="FILE", help="A Parquet file with a row per image.")
@setting_option("batch_size", help="Images per forward pass.")
@machine_options("Decoding threads.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def predict(images: tuple[str, ...], run: str, as_json: bool, **options: Any) -> None:
    """Classes of your own images by a run, the most probable first.

    IMAGE is a file, a folder (with all folders below it), or s3://BUCKET/PREFIX or gs://BUCKET/PREFIX. Files
    that cannot be decoded are named and passed over; the exit status is 1 if none is left.

    \b
    Examples: qrdali predict cat.jpg --run runs/baseline
              qrdali predict photos s3://bucket/more --run runs/baseline
    """
    from qrdali.cli.terminal import TerminalListener, emit, say
    from qrdali.interfaces import JobControl
    from qrdali.workflows import predict as workflow

    control = JobControl(TerminalListener())
    found = workflow.predict(run, images, control=control, **options)
    if as_json:
        predictions = found.rows.to_pylist()
        emit(
            {
                "run": run,
                "images": len(predictions),
                "predictions": predictions,
                "unreadable_files": [list(item) for item in found.unreadable.items()],
            }
        )
        return
    _show(found, options["top"])
    if options["out"] is not None:
        say(f"{options['out']}: {found.rows.num_rows} rows")


def _show(found: ImagePredictions, top: int) -> None:
    """Prints an image's answers below its path, or before it where there is one answer each."""
    from qrdali.cli.terminal import fitted, say

    first = zip(found.rows["name"].to_pylist(), found.rows["class"].to_pylist(), strict=True)
    longest = min(_LONGEST, max(len(str(name or own)) for name, own in first))
    for batch in found.rows.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            if top == 1:
                shown = row["name"] or row["class"]
                say(f"{row['confidence']:{_SHARE}.2%}  {shown:<{longest}}  {row['path']}")
                continue
            say(row["path"])
            for answer in row["top"]:
                text = f"{answer['probability']:{_SHARE}.2%}  {answer['name'] or answer['class']}"
                say(fitted(" " * _INDENT + text))
