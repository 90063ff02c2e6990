"""`qrdali data`: generates, indexes and looks at data sets."""

from __future__ import annotations

from pathlib import Path

import click

from qrdali.cli.data_sets import humanet, imagenet, minival, say_summary, source_lines, verify
from qrdali.cli.groups import SuggestingGroup


@click.group(cls=SuggestingGroup)
def data() -> None:
    """Make and look at data sets.

    \b
    Example:
      qrdali data shapes images
      qrdali data index images --out data
      qrdali data info data

    For ImageNet and HumaNet: imagenet, humanet. For any data set: minival, verify.
    """


@data.command()
@click.argument("root", type=click.Path())
@click.option("--classes", default=20, show_default=True)
@click.option("--train", default=50, show_default=True, help="Pictures per class.")
@click.option("--val", default=10, show_default=True, help="Pictures per class.")
@click.option("--test", default=10, show_default=True, help="Pictures per class.")
@click.option(
    "--size", default="500x375", show_default=True, help="WIDTHxHEIGHT; half of the pictures stand upright."
)
@click.option("--seed", default=0, show_default=True)
def shapes(root: str, classes: int, train: int, val: int, test: int, size: str, seed: int) -> None:
    """Generate JPEG pictures of coloured, textured shapes on cluttered backgrounds into ROOT.

    \b
    Example: qrdali data shapes images --classes 20 --train 50
    """
    from qrdali.cli.terminal import TerminalListener, say
    from qrdali.data.shapes import ShapesSpec
    from qrdali.workflows.generated_data import generate_pictures

    width, cross, height = size.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and len(size) < 12):
        raise click.UsageError(f"--size is {size!r}: give WIDTHxHEIGHT such as 500x375")
    spec = ShapesSpec(classes, train, val, test, (int(width), int(height)), seed)
    generate_pictures(Path(root), spec, TerminalListener())
    say(f"{spec.total} files of {classes} classes in {root}; next: qrdali data index {root} --out DATASET")


@data.command()
@click.argument("root", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="New folder for the data set.")
@click.option("--no-verify", is_flag=True, help="Read headers only; broken files are found in training then.")
@click.option(
    "--hash",
    "hashed",
    is_flag=True,
    help="Keep every file's SHA-256: to find images in two splits, to keep equal ones in one split when "
    "shares are taken, and for `data verify --hash`.",
)
@click.option("--threads", type=click.IntRange(1), help="[default: all cores; 32 for an object store]")
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=128_000_000,
    show_default=True,
    help="Larger images are rejected by their header.",
)
@click.option(
    "--val-share",
    type=float,
    metavar="X",
    help="For a ROOT without val: move this share of each class of train there.",
)
@click.option("--test-share", type=float, metavar="X", help="The same for a ROOT without test.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Of the shares' choice."
)
def index(
    root: str,
    out: str,
    no_verify: bool,
    hashed: bool,
    threads: int | None,
    max_pixels: int,
    val_share: float | None,
    test_share: float | None,
    seed: int,
) -> None:
    """Index ROOT/train, val, test (any of them) into the data set OUT. Images stay in place.

    ROOT is a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX. Each split has class folders, or WebDataset's
    shards *.tar with KEY.jpg and KEY.cls. With --val-share or --test-share, ROOT may also hold the class
    folders themselves. Every file is decoded once; what fails or is not read is listed with its reason in
    OUT/rejected.tsv and never enters the index.

    \b
    Examples: qrdali data index images --out data
              qrdali data index images --out data --val-share 0.05
              qrdali data index pets --out data --val-share .15 --test-share .15
              qrdali data index s3://bucket/images --out data
    """
    from qrdali.data.decoder_process import decoder_process

    if not no_verify:
        decoder_process.start()  # while this process imports the rest and lists the files
    from qrdali.cli.signals import sigterm_exits
    from qrdali.cli.terminal import Bar
    from qrdali.data.build import files_of, index_root
    from qrdali.data.held_out import Shares
    from qrdali.data.scan import Reading
    from qrdali.data.tree import open_tree

    with sigterm_exits():
        tree = open_tree(root)
        shares = Shares(val_share, test_share, seed)
        with Bar("index", files_of(tree, shares), "files") as bar:
            summary = index_root(
                tree,
                Path(out),
                Reading(not no_verify, hashed, threads, max_pixels),
                shares=shares,
                progress=lambda split, files: bar.advance(files, split),
            )
    say_summary(summary, out)


@data.command()
@click.argument("dataset", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def info(dataset: str, as_json: bool) -> None:
    """Show classes, images and sizes of a data set.

    \b
    Example: qrdali data info data --json
    """
    from qrdali.cli.terminal import emit, say
    from qrdali.workflows.dataset_info import describe_dataset

    shown = describe_dataset(Path(dataset))
    if as_json:
        emit(
            {
                "classes": list(shown.classes),
                "splits": {split: row.as_json() for split, row in shown.splits.items()},
                "rejected": shown.rejected,
                "source": shown.source or None,
            }
        )
        return
    first = ", ".join(shown.classes[:5]) + (", …" if len(shown.classes) > 5 else "")
    say(f"{len(shown.classes)} classes: {first}")
    for split, row in shown.splits.items():
        width, height = row.width, row.height
        say(
            f"{split:5}  {row.images:>9,} images, {row.per_class_min}–{row.per_class_max} per class, "
            f"width {width.least}–{width.greatest} (median {width.median}), "
            f"height {height.least}–{height.greatest} (median {height.median})"
        )
    say(f"rejected files: {shown.rejected}")
    for line in source_lines(shown.source):
        say(line)


for _command in (imagenet, humanet, minival, verify):
    data.add_command(_command)
