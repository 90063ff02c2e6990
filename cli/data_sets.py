"""`qrdali data imagenet`, `humanet`, `minival` and `verify`: makes real data sets, and checks them later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from qrdali.data.scan import Summary

F = TypeVar("F", bound=Callable[..., Any])
_SEED = click.IntRange(0, 2**63 - 1)


def _indexing(command: F) -> F:
    """Adds the options of every command that makes a data set."""
    for option in (
        click.option("--threads", type=click.IntRange(1), help="[default: all cores]"),
        click.option(
            "--hash",
            "hashed",
            is_flag=True,
            help="Keep every file's SHA-256: to find images in two splits, and for `data verify --hash`.",
        ),
        click.option(
            "--no-verify", is_flag=True, help="Read headers only; broken files are found in training then."
        ),
        click.option("--seed", default=0, show_default=True, type=_SEED, help="Of the choice of images."),
        click.option("--out", required=True, type=click.Path(), help="New folder for the data set."),
    ):
        command = option(command)
    return command


def _labels(command: F) -> F:
    """Adds options for the labels of a flat val/, which are not always in a usual place."""
    for option in (
        click.option(
            "--synsets",
            type=click.Path(),
            metavar="FILE",
            help="What the ground truth's numbers mean: the devkit's meta.mat, "
            "or a synset per line in the order of the ids.",
        ),
        click.option(
            "--val-labels",
            type=click.Path(),
            metavar="FILE",
            help="LOC_val_solution.csv or ILSVRC2012_validation_ground_truth.txt.  [default: found in ROOT]",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("root", type=click.Path())
@_indexing
@_labels
@click.option(
    "--per-class",
    default=25,
    show_default=True,
    type=click.IntRange(1),
    help="Validation images of each class, cut from train.",
)
def imagenet(
    root: str,
    out: str,
    seed: int,
    no_verify: bool,
    hashed: bool,
    threads: int | None,
    val_labels: str | None,
    synsets: str | None,
    per_class: int,
) -> None:
    """Index ImageNet: ROOT/train/SYNSET/ and ROOT/val, flat or in class folders, into the data set OUT.

    Test is the official validation set; validation is cut from train and listed in OUT/minival.tsv.

    \b
    Example: qrdali data imagenet /data/imagenet --out data/imagenet
    """
    from qrdali.cli.signals import sigterm_exits
    from qrdali.cli.terminal import Bar, say
    from qrdali.data.imagenet import build, recognise
    from qrdali.data.scan import Reading

    tree = recognise(Path(root), _path(val_labels), _path(synsets))
    say(f"{len(tree.synsets)} synsets in {tree.train}; {tree.found}")
    with sigterm_exits(), Bar("index", tree.files, "files") as bar:
        summary = build(
            tree,
            Path(out),
            per_class=per_class,
            seed=seed,
            reading=Reading(not no_verify, hashed, threads),
            progress=lambda split, files: bar.advance(files, split),
        )
    say_summary(summary, out)


@click.command()
@click.argument("imagenet", type=click.Path())
@_indexing
@click.option(
    "--mapping",
    required=True,
    type=click.Path(),
    metavar="TSV",
    help="Lines of synset, tab, class; or class, tab, synsets.",
)
@click.option("--train", default=1250, show_default=True, type=click.IntRange(1), help="Images per class.")
@click.option("--val", default=25, show_default=True, type=click.IntRange(0), help="Images per class.")
@click.option("--test", default=50, show_default=True, type=click.IntRange(0), help="Images per class.")
@click.option(
    "--test-from",
    type=click.Choice(["train", "val"]),
    default="train",
    show_default=True,
    help="ImageNet's set that the test images are of.",
)
@click.option("--allow-missing", is_flag=True, help="Do without synsets of the mapping that are not on disk.")
@_labels
def humanet(
    imagenet: str,
    out: str,
    seed: int,
    no_verify: bool,
    hashed: bool,
    threads: int | None,
    mapping: str,
    train: int,
    val: int,
    test: int,
    test_from: str,
    allow_missing: bool,
    val_labels: str | None,
    synsets: str | None,
) -> None:
    """Index HumaNet, a few classes made of IMAGENET's synsets by a mapping, into the data set OUT.

    \b
    Example: qrdali data humanet imagenet --mapping humanet.tsv --out humanet
    """
    from qrdali.cli.signals import sigterm_exits
    from qrdali.cli.terminal import Bar, warn
    from qrdali.data.humanet import HumaNetSpec, build, read_mapping
    from qrdali.data.imagenet import ImageNet, recognise, train_folder
    from qrdali.data.scan import Reading
    from qrdali.errors import InputError

    if (val_labels or synsets) and test_from != "val":
        raise InputError("--val-labels and --synsets are of --test-from val: give that too")
    class_mapping = read_mapping(Path(mapping))
    if test_from == "val":
        tree = recognise(Path(imagenet), _path(val_labels), _path(synsets))
    else:
        tree = ImageNet(*train_folder(Path(imagenet)), {}, "")
    present, missing = class_mapping.present(tree.synsets)
    if missing:
        names = f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
        if not allow_missing:
            raise InputError(
                f"{len(missing)} synsets of {mapping} are not in {tree.train}: {names}; "
                "--allow-missing does without them"
            )
        warn(f"{len(missing)} synsets of {mapping} are not in {tree.train}: {names}")
    counts = {"train": train, "val": val, "test": test}
    with sigterm_exits(), Bar("index", len(present.synsets) * sum(counts.values()), "files") as bar:
        summary = build(
            tree,
            HumaNetSpec(present, counts, seed, test_from == "val", tuple(missing)),
            Path(out),
            reading=Reading(not no_verify, hashed, threads),
            progress=lambda split, files: bar.advance(files, split),
        )
    say_summary(summary, out)


@click.command()
@click.argument("dataset", type=click.Path())
@click.option(
    "--per-class", default=25, show_default=True, type=click.IntRange(1), help="Images of each class to move."
)
@click.option("--seed", default=0, show_default=True, type=_SEED)
def minival(dataset: str, per_class: int, seed: int) -> None:
    """Move a validation set out of DATASET's train: as many images per class, listed in DATASET/minival.tsv.

    \b
    Example: qrdali data minival data --per-class 25 --seed 0
    """
    from qrdali.cli.terminal import say, warn
    from qrdali.data.minival import cut

    result = cut(Path(dataset), per_class, seed, warn=warn)
    if result.resumed:
        say("an earlier call had begun it: its cut is whole now, with its --per-class and --seed")
    say(f"train {result.train}, val {result.val} images in {dataset}")


@click.command()
@click.argument("dataset", type=click.Path())
@click.option("--root", metavar="[OLD=]NEW", help="Where the images are now, if they moved.")
@click.option("--hash", "hashed", is_flag=True, help="Compare SHA-256 too; of a data set made with --hash.")
@click.option(
    "--most",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    help="Changed files to name; all are counted.",
)
@click.option("--threads", type=click.IntRange(1), help="[default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def verify(
    dataset: str, root: str | None, hashed: bool, most: int, threads: int | None, as_json: bool
) -> None:
    """Check that the files of DATASET are still what was indexed: there, as many bytes, as many pixels.

    Exit status 1 if not.

    \b
    Example: qrdali data verify data --hash
    """
    from qrdali.cli.terminal import Bar, emit, say
    from qrdali.data.index import Dataset
    from qrdali.data.verify import KINDS, changes
    from qrdali.errors import RunError

    opened = Dataset.open(Path(dataset), root)
    files = sum(len(opened.rows(split)) for split in opened.splits)
    counts: Counter[str] = Counter()
    named: list[dict[str, str]] = []
    with Bar("verify", files, "files") as bar:
        for change in changes(opened, hashed, threads, lambda split, done: bar.advance(done, split)):
            counts[change.kind] += 1
            if len(named) < most:
                named.append(
                    {"split": change.split, "path": change.path, "kind": change.kind, "detail": change.detail}
                )
                if not as_json:
                    say(f"{change.split}  {change.kind}  {change.path}: {change.detail}")
    changed = sum(counts.values())
    if as_json:
        emit(
            {
                "files": files,
                "changed": changed,
                "kinds": {kind: counts[kind] for kind in KINDS},
                "changes": named,
            }
        )
    if changed:
        kinds = ", ".join(f"{counts[kind]:,} {kind}" for kind in KINDS if counts[kind])
        raise RunError(f"{changed:,} of {files:,} files of {dataset} are not what was indexed: {kinds}")
    say(f"{files:,} files are what was indexed")


def say_summary(summary: Summary, out: str) -> None:
    """Prints what was made, in one line, and in further lines what was left out and what may be wrong."""
    from qrdali.cli.terminal import say, warn

    not_used = [
        f"{count:,} {what}"
        for count, what in ((summary.rejected, "rejected"), (summary.left_out, "left out"))
        if count
    ]
    say(
        f"{', '.join(f'{split} {images}' for split, images in summary.images.items())} images of "
        f"{len(summary.classes)} classes in {out}"
        + (f"; {' and '.join(not_used)}, see {out}/rejected.tsv" if not_used else "")
        + (f"; {summary.damaged} damaged but readable, see {out}/warnings.tsv" if summary.damaged else "")
    )
    for note in summary.notes:
        say(note)
    for warning in summary.warnings:
        warn(warning)


def source_lines(source: dict[str, Any]) -> list[str]:
    """Returns what a data set was made of, a line per key."""
    from qrdali.data.provenance import brief

    return [
        f"{key}: {', '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}"
        for key, value in brief(source).items()
    ]


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
