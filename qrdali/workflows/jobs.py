"""Whole jobs for Python callers: objects or paths in, objects out; the workflows are the command line's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from qrdali.data.index import Dataset
from qrdali.data.inspect import MAX_PIXELS
from qrdali.interfaces import ProgressListener
from qrdali.workflows.progress import listener_for
from qrdali.workflows.run import Run

PathLike = str | os.PathLike[str]


def index(
    root: PathLike,
    out: PathLike,
    *,
    verify: bool = True,
    hashed: bool = False,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    val_share: float | None = None,
    seed: int = 0,
    progress: bool | ProgressListener = False,
) -> Dataset:
    """Indexes a folder of images into a new data set; the images stay where they are. Returns the data set.

    root: holds train/, val/ and test/ (any of them) with a folder per class, or tar shards; a path, s3:// or
        gs://.
    out: the folder to be made.
    verify: decode every file once; those that fail are listed in out/rejected.tsv.
    hashed: keep every file's SHA-256.
    threads: None for all cores.
    max_pixels: larger images are rejected.
    val_share: for a root without val, the share of each class of train that moves there, in (0, 1).
    seed: of that choice.
    progress: True shows a bar; or a listener.

    Raises InputError if `out` exists or `root` has no such layout, RunError for unusable images; nothing is
    left behind then.

    Example:
        >>> data = qrdali.index("images", "data-2", threads=1)
        >>> data.splits, data.classes[0], len(data["train"])
        (('train', 'val', 'test'), 'orange-striped-disc', 24)
        >>> first = np.array([0])
        >>> data["val"].sizes(first).shape, data["val"].labels(first).tolist(), len(data["val"].paths(first))
        ((1, 2), [0], 1)
    """
    from qrdali.data.build import files_of, index_root
    from qrdali.data.scan import Reading
    from qrdali.data.tree import open_tree

    listener, tree = listener_for(progress), open_tree(os.fspath(root))
    listener.begin("index", files_of(tree) if progress else 0, "files")
    try:
        index_root(
            tree,
            Path(out),
            Reading(verify, hashed, threads, max_pixels),
            val_share=val_share,
            seed=seed,
            progress=lambda split, files: listener.advance(files, lambda: split),
        )
    finally:
        listener.end()
    return Dataset.open(Path(out))


def train(
    method: Literal["shared", "baseline", "fixed", "linear", "adaptive", "random"],
    *,
    data: Dataset | PathLike,
    run: PathLike,
    resume: bool = False,
    progress: bool | ProgressListener = False,
    **options: Any,
) -> Run:
    """Trains a network, as `qrdali train METHOD` does, and returns the finished run.

    method: "shared", "baseline", "fixed", "linear", "adaptive" or "random".
    data: a data set or its folder.
    run: folder of the run.
    resume: continue a run that was stopped, or begin it.
    progress: True shows bars; or a listener with the methods begin, advance, end, line and warn.
    options: those of the command with underscores for dashes, such as model="resnet10t", init=another run,
        epochs=20, reduction="crop", restore_best=False, track_sets={"mine": "folder"}.

    Ctrl-C raises KeyboardInterrupt; `resume` then continues from the last save. Raises InputError for an
    option that cannot be, or that does not exist, naming those near it; RunError for work that cannot be
    done.

    Example:
        >>> small = {"model": "test_resnet", "input_size": 32, "epochs": 1, "device": "cpu"}
        >>> run = qrdali.train("shared", data="data", run="runs/b", **small)
        >>> run.settings.epochs, run.best.epoch in (0, 1)
        (1, True)
    """
    from qrdali.runs.settings import validate_settings
    from qrdali.workflows.train import run_training

    folder, root = _folder_and_root(data)
    given = {name: _plain(value) for name, value in options.items() if value is not None}
    if root is not None:
        given.setdefault("root", root)
    settings = validate_settings({**given, "method": method, "data": folder})
    run_training(settings, Path(run), resume)
    return Run(run)


def _folder_and_root(data: Dataset | PathLike) -> tuple[str, str | None]:
    """Returns a data set's folder, and what says where its images are now, if they moved."""
    if not isinstance(data, Dataset):
        return os.fspath(data), None
    moved = data.moved
    return str(data.folder), None if moved is None else f"{moved.old}={moved.new}"


def _plain(value: Any) -> Any:
    """Returns paths and runs as text, in mappings too."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
