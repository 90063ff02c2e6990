"""Whole jobs for Python callers: objects or paths in, objects out; the workflows are the command line's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qrdali.data.index import Dataset
from qrdali.data.inspect import MAX_PIXELS
from qrdali.interfaces import JobControl, ProgressListener
from qrdali.workflows.progress import listener_for
from qrdali.workflows.public import public, require_kind
from qrdali.workflows.run import Run

if TYPE_CHECKING:
    from qrdali.workflows.compare import Comparison
    from qrdali.workflows.log import LoggedTo
    from qrdali.workflows.predict import ImagePredictions
    from qrdali.workflows.report import WrittenReport
    from qrdali.workflows.reproduce import MatrixResult

PathLike = str | os.PathLike[str]


@public
def index(
    root: PathLike,
    out: PathLike,
    *,
    verify: bool = True,
    hashed: bool = False,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    val_share: float | None = None,
    test_share: float | None = None,
    seed: int = 0,
    progress: bool | ProgressListener = False,
) -> Dataset:
    """Indexes a folder of images into a new data set; the images stay where they are. Returns the data set.

    root: holds train/, val/ and test/ (any of them) with a folder per class, or tar shards; a path, s3:// or
        gs://. With a share it may hold the class folders themselves.
    out: the folder to be made.
    verify: decode every file once; those that fail are listed in out/rejected.tsv.
    hashed: keep every file's SHA-256; images that are equal then stay in one split when shares are taken.
    threads: None for all cores.
    max_pixels: larger images are rejected.
    val_share: for a root without val, the share of each class of train that moves there, in (0, 1).
    test_share: the same for a root without test.
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
    from qrdali.data.held_out import Shares
    from qrdali.data.scan import Reading
    from qrdali.data.tree import open_tree

    shares = Shares(val_share, test_share, seed)
    listener, tree = listener_for(progress), open_tree(os.fspath(root))
    listener.begin("index", files_of(tree, shares) if progress else 0, "files")
    try:
        summary = index_root(
            tree,
            Path(out),
            Reading(verify, hashed, threads, max_pixels),
            shares=shares,
            progress=lambda split, files: listener.advance(files, lambda: split),
        )
    finally:
        listener.end()
    for note in summary.notes:
        listener.line(note)
    for warning in summary.warnings:
        listener.warn(warning)
    return Dataset.open(Path(out))


@public
def train(
    method: Literal["shared", "baseline", "fixed", "linear", "adaptive", "random"],
    *,
    data: Dataset | PathLike | None = None,
    run: PathLike,
    resume: bool = False,
    progress: bool | ProgressListener = False,
    **options: Any,
) -> Run:
    """Trains a network, as `qrdali train METHOD` does, and returns the finished run.

    method: "shared", "baseline", "fixed", "linear", "adaptive" or "random".
    data: a data set or its folder; a run that is continued knows it.
    run: folder of the run.
    resume: continue a run that was stopped, with the settings it began with, or begin it.
    progress: True shows bars; or a listener (qrdali.ProgressListener) with the methods begin, advance, end,
        line and warn.
    options: those of the command with underscores for dashes, such as model="resnet10t", init=another run,
        epochs=20, reduction="crop", restore_best=False, track_sets={"mine": "folder"}.

    Ctrl-C raises KeyboardInterrupt; `resume` then continues from the last save. Raises InputError for an
    option that is out of range, is another method's, or does not exist, naming those near it; RunError
    for work that cannot be done.

    Example:
        >>> small = {"model": "test_resnet", "input_size": 32, "epochs": 1, "device": "cpu"}
        >>> run = qrdali.train("shared", data="data", run="runs/b", **small)
        >>> run.settings.epochs, run.best.epoch in (0, 1)
        (1, True)
    """
    from qrdali.workflows.train import run_training
    from qrdali.workflows.train_settings import require_own_options, settings_of

    for name in ("init", "match"):
        require_kind(name, options.get(name), Run | PathLike | None)
    given = {name: _plain(value) for name, value in options.items() if value is not None}
    if data is not None:
        given["data"], root = _folder_and_root(data)
        if root is not None:
            given.setdefault("root", root)
    require_own_options(method, given)
    settings = settings_of(method, Path(run), given, resume)
    run_training(settings, Path(run), resume, JobControl(listener_for(progress)))
    return Run(run)


@public
def adopt(
    model: str,
    *,
    run: PathLike,
    weights: PathLike | None = None,
    classes: Dataset | PathLike | None = None,
    fit: Literal["whole", "center"] = "whole",
    input_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: Literal["bilinear", "bicubic"] | None = None,
    progress: bool | ProgressListener = False,
) -> Run:
    """Makes a run of a network that was trained elsewhere, which all functions take like any other.

    model: its name in timm or torchvision.
    run: folder of the run, which must not be there.
    weights: a .safetensors or .pth file, of which nothing is executed, or "hf_hub:NAME" for a repository of
        the Hugging Face hub; None for the published weights, which are downloaded.
    classes: of the outputs, in their order: "imagenet", a data set, or a TSV file of names; None for
        ImageNet's, by the number of outputs.
    fit: what of an image the network sees.
    input_size, mean, std, interpolation: of the preprocessing that the weights were made for; None for the
        published one.
    progress: True shows what is done; or a listener.

    Raises InputError for weights that are not the network's and for a list of classes of another length,
    RunError where published weights cannot be loaded, saying what to do; nothing is left behind then.

    Example:
        >>> mine = {"weights": "runs/shared/best/model.safetensors", "classes": "data", "input_size": 32}
        >>> run = qrdali.adopt("test_resnet", run="runs/mine", **mine)
        >>> run.adopted.source, run.best.val_accuracy, len(run.classes)
        ('file', None, 4)
        >>> (result,) = qrdali.evaluate(run, "data", split="val", device="cpu")
        >>> result["images"]
        12
    """
    from qrdali.runs.adoption import AdoptRequest
    from qrdali.workflows import adopt as workflow

    folder = classes.folder if isinstance(classes, Dataset) else classes
    request = AdoptRequest(
        model,
        _text(weights) or "",
        _text(folder) or "",
        fit,
        input_size or 0,
        tuple(map(float, mean or ())),
        tuple(map(float, std or ())),
        interpolation or "",
    )
    workflow.adopt(request, Path(run), JobControl(listener_for(progress)))
    return Run(run)


@public
def evaluate(
    run: Run | PathLike,
    data: Dataset | PathLike | None = None,
    *,
    split: str = "test",
    sets: Mapping[str, PathLike] | None = None,
    suites: Mapping[str, PathLike] | None = None,
    curve: bool = False,
    reduced: float | None = None,
    reductions: Sequence[str] | None = None,
    step: float = 0.25,
    tail: str = "full",
    class_map: PathLike | None = None,
    map_rule: Literal["argmax", "sum"] | None = None,
    batch_size: int = 32,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto",
    threads: int | None = None,
    root: str | None = None,
    progress: bool | ProgressListener = False,
) -> list[dict[str, Any]]:
    """Evaluates best/ of a run on a split of a data set and on named folders, and writes a row per image.

    run, data: objects or folders. Without `data` only `sets` and `suites` are evaluated. `data` and a set may
        hold any subset of the run's classes, matched by name.
    split: "train", "val" or "test" of `data`.
    sets: folders of class folders by name, such as {"mine": "folder"}; paths, s3:// or gs://.
    suites: folders of published suites, such as {"imagenet-a": "/data/imagenet-a"}: imagenet-c, imagenet-a,
        imagenet-r, imagenet-sketch, imagenet-v2, real and human.
    curve: also measure accuracy at every level of `step` in each reduction.
    tail: levels of the curve below the grid of `step`: "full", "none" or their number, such as "3".
    reduced: also evaluate the split at this quality of `step`, in each reduction, such as 0.5.
    reductions: those of `curve` and `reduced`: "color", "crop", "resolution", "combination" (None: all four),
        and distortions: "gray", "contrast", "blur", "noise", "jpeg"; such as ["crop", "blur"], or ["all"].
    class_map: for data of other classes: a TSV file of the run's class, a tab, the data's class.
    map_rule: "argmax" (the default) or "sum".
    batch_size, device, amp, threads: as in `train`.
    root: where the images of `data` are now, if they moved: NEW or OLD=NEW.
    progress: True shows bars; or a listener.

    Returns one result for the split, then one per set: {"set", "images", "correct", "accuracy",
    "top5_accuracy", "negative_log_likelihood", "expected_calibration_error", "unreadable", "rows"} and what
    was asked for besides; `Run.rows(name)` has the rows. Last comes one per suite: {"suite", "images",
    "accuracy", …, "sets"}, for "imagenet-c" with "mce", "relative_mce" and "corruptions". Raises InputError
    for what cannot be evaluated, RunError for a damaged run or images that are gone.

    Example:
        >>> (result,) = qrdali.evaluate("runs/shared", "data", split="val", device="cpu")
        >>> result["set"], result["images"], result["correct"] / result["images"] == result["accuracy"]
        ('val', 12, True)
        >>> len(qrdali.Run("runs/shared").rows("val"))
        12
    """
    from qrdali.workflows import evaluate as workflow

    folder, moved = _folder_and_root(data)
    return workflow.evaluate(
        os.fspath(run),
        folder,
        split=split,
        sets={name: os.fspath(place) for name, place in (sets or {}).items()},
        suites={name: os.fspath(place) for name, place in (suites or {}).items()},
        curve=curve,
        reduced=reduced,
        reductions=reductions,
        step=step,
        tail=tail,
        class_map=_text(class_map),
        map_rule=map_rule,
        batch_size=batch_size,
        device=device,
        amp=amp,
        threads=threads,
        root=root or moved,
        control=JobControl(listener_for(progress)),
    )


@public
def predict(
    run: Run | PathLike,
    images: PathLike | Sequence[PathLike],
    *,
    top: int = 5,
    out: PathLike | None = None,
    batch_size: int = 32,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto",
    threads: int | None = None,
    progress: bool | ProgressListener = False,
) -> ImagePredictions:
    """Classifies your own images with best/ of a run, which sees them as in `evaluate`.

    run: an object or a folder.
    images: a file or a folder (with all folders below it), on the disk or s3:// or gs://, or several of them.
    top: classes per image, the most probable first; at most as many as there are.
    out: a Parquet file for the rows.
    batch_size, device, amp, threads: as in `train`.
    progress: True shows bars; or a listener.

    Returns qrdali.ImagePredictions: rows, a pyarrow table with a row per image in the order given (path;
    prediction, class, name and confidence of the most probable class; top, its likes for each of the `top`),
    and unreadable, by path why an image is not among them. Raises InputError for a place that does not exist
    or holds no image, RunError for a damaged run or if no image can be read.

    Example:
        >>> found = qrdali.predict("runs/shared", "photo.jpg", top=2, device="cpu")
        >>> found.rows["class"][0].as_py() in qrdali.Run("runs/shared").classes, found.unreadable
        (True, {})
        >>> [0 < answer["probability"] <= 1 for answer in found.rows["top"][0].as_py()]
        [True, True]
    """
    from qrdali.workflows import predict as workflow

    places = [images] if isinstance(images, str | os.PathLike) else images
    return workflow.predict(
        os.fspath(run),
        [os.fspath(place) for place in places],
        top=top,
        out=_text(out),
        batch_size=batch_size,
        device=device,
        amp=amp,
        threads=threads,
        control=JobControl(listener_for(progress)),
    )


@public
def compare(run_a: Run | PathLike, run_b: Run | PathLike, *, set: str = "test") -> Comparison:
    """Compares two runs on the same images by McNemar's test, from the rows that `evaluate` has written.

    set: "val", "test" or a name given to `evaluate`.

    Returns a qrdali.Comparison: a, b, c and d, images that both have right, only the first, only the second,
    neither; statistic, p_value, exact_p_value, stars, images; consistency with kappa, observed and expected;
    runs, each with accuracy and wilson_95, the interval of it; and notes, such as that the two were trained
    on different images. Raises InputError where a run has no rows of the set, or rows of other images.

    Example:
        >>> result = qrdali.compare("runs/shared", "runs/shared", set="val")
        >>> result.b, result.c, result.p_value
        (0, 0, 1.0)
    """
    from qrdali.workflows import compare as workflow

    return workflow.compare(os.fspath(run_a), os.fspath(run_b), set=set)


@public
def build_mepi(
    run: Run | PathLike,
    data: Dataset | PathLike,
    *,
    out: PathLike,
    split: str = "val",
    reduction: Literal["color", "crop", "resolution", "combination", "all"] = "all",
    step: float = 0.05,
    tail: str | None = None,
    windows: Literal[5, 9] = 5,
    prefer: Literal["confidence", "entropy"] = "confidence",
    search: Literal["descend", "exhaustive"] = "descend",
    limit: int | None = None,
    batch_size: int = 32,
    search_batch_size: int | None = None,
    memory: int = 1024,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto",
    threads: int | None = None,
    resume: bool = False,
    root: str | None = None,
    class_map: PathLike | None = None,
    map_rule: Literal["argmax", "sum"] | None = None,
    progress: bool | ProgressListener = False,
) -> dict[str, Any]:
    """Finds a minimal reduced image, still classified correctly, of each image that a run gets right.

    run, data: objects or folders.
    out: folder of the set: REDUCTION/CLASS/SAMPLE.png, manifest.parquet, summary.json, contact sheets.
    split: "train", "val" or "test".
    reduction: one of the four, or "all" of them.
    step: the grid of qualities, 1/n.
    tail: levels below the grid: "full", "none" or their number, such as "3"; None for those that the set at
        `out` was begun with, and all of them in a new set.
    windows: candidate windows of a crop.
    prefer: which correct neighbour is taken: of the highest confidence, or of the fewest PNG bytes.
    search: step by step, or every level ("exhaustive": color and resolution).
    limit: images searched, spread evenly over the split.
    batch_size: of reading back.
    search_batch_size: candidates per forward pass; None for what suits the device.
    memory: MiB of decoded originals that are kept.
    device, amp, threads: as in `train`.
    resume: continue a set that was begun with the same options.
    root: where the images of `data` are now, if they moved: NEW or OLD=NEW.
    class_map, map_rule: for a run of other classes than the data's, as in `evaluate`: an image is right where
        its mapped class is.
    progress: True shows bars; or a listener.

    Returns a summary per reduction, as in summary.json: images, mean_quotient (None without a MEPI) and more.
    Raises InputError for what cannot be searched, RunError for what is damaged.

    Example:
        >>> options = {"split": "val", "reduction": "color", "step": 0.25, "device": "cpu"}
        >>> summaries = qrdali.build_mepi("runs/shared", "data", out="mepi", **options)
        >>> summaries["color"]["images"]
        12
    """
    from qrdali.workflows import build_mepi as workflow

    folder, moved = _folder_and_root(data)
    assert folder is not None
    return workflow.build_mepi(
        os.fspath(run),
        folder,
        out=os.fspath(out),
        split=split,
        reduction=reduction,
        step=step,
        tail=tail,
        windows=windows,
        prefer=prefer,
        search=search,
        limit=limit,
        batch_size=batch_size,
        search_batch_size=search_batch_size,
        memory=memory,
        device=device,
        amp=amp,
        threads=threads,
        resume=resume,
        root=root or moved,
        class_map=_text(class_map),
        map_rule=map_rule,
        control=JobControl(listener_for(progress)),
    )


@public
def write_report(
    runs: Sequence[Run | PathLike],
    *,
    out: PathLike,
    mepi: Sequence[PathLike] = (),
    humans: PathLike | None = None,
    title: str = "",
    gallery: int = 8,
    usd_per_kwh: float = 0.17,
    watts: float | None = None,
    progress: bool | ProgressListener = False,
) -> WrittenReport:
    """Writes a page on runs: findings, accuracy, calibration, entropy quotients, minimal images and cost.

    runs: objects or folders, one or more. out: folder for report.html, tables/ and figures/; a report there
    is replaced. mepi: folders that `build_mepi` made. humans: what people answered to the same images: a CSV
    or Parquet file with the columns path (or file name), person and answer, and optionally set. title:
    heading of the page. gallery: images of each MEPI set that are shown, and images on which runs disagree.
    usd_per_kwh: price of electricity. watts: power drawn by runs whose energy could not be measured.
    progress: True shows a bar; or a listener.

    Returns a qrdali.WrittenReport: page, the path of report.html, and contents, what report.json holds.
    Raises InputError for folders that are no runs or MEPI sets, RunError for damaged files.

    Example:
        >>> report = qrdali.write_report(["runs/shared"], out="report")
        >>> report.page.name, "runs" in str(report.contents)
        ('report.html', True)
    """
    from qrdali.workflows import report as workflow

    return workflow.write_report(
        [Path(run) for run in runs],
        Path(out),
        mepi=[Path(folder) for folder in mepi],
        humans=None if humans is None else Path(humans),
        title=title,
        gallery=gallery,
        usd_per_kwh=usd_per_kwh,
        watts=watts,
        control=JobControl(listener_for(progress)),
    )


@public
def log(
    runs: Sequence[Run | PathLike],
    *,
    to: str | Sequence[str],
    progress: bool | ProgressListener = False,
) -> list[LoggedTo]:
    """Shows runs in loggers, from what their folders hold; a log that is there is made complete.

    runs: objects or folders, finished or stopped.
    to: "tensorboard", "wandb", "mlflow" or "trackio"; several in a list or separated by commas.
    progress: True shows a bar; or a listener.

    Returns a qrdali.LoggedTo for each run: run (its folder), epochs (logged, the start included) and places
    (where to look, by logger). Raises InputError for a logger that is not installed and for what is not a
    run, RunError for a run that is being trained and for a log that cannot be written.

    Example:
        >>> (logged,) = qrdali.log(["runs/shared"], to="tensorboard")
        >>> logged.epochs, logged.places
        (3, {'tensorboard': 'runs/shared/tensorboard'})
    """
    from qrdali.workflows import log as workflow

    control = JobControl(listener_for(progress))
    return workflow.log_runs([os.fspath(run) for run in runs], to, control)


@public
def reproduce(
    config: PathLike,
    *,
    only: Sequence[str] = (),
    out: PathLike | None = None,
    data: Dataset | PathLike | None = None,
    root: PathLike | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    threads: int | None = None,
    retries: int = 1,
    workers: int | None = None,
    gpus: str | None = None,
    task: str | None = None,
    wait: bool = False,
    progress: bool | ProgressListener = False,
) -> MatrixResult:
    """Carries out an experiment matrix: its runs, their evaluation, minimal images and the report.

    config: a TOML file; humanet.toml, humanet-study.toml, imagenet.toml and demo.toml are part of qrdali.
    only: runs of these names, and those they start from; * and ? as in a shell.
    out, data, root, device, threads: in place of the file's own.
    retries: how often a task that failed is tried again.
    workers: so many processes on this host share the tasks.
    gpus: "all", how many, or which as "0,2,5": one process for each shares the tasks.
    task: the key of the only one to do, as "train NETWORK/RUN"; its needs must be done.
    wait: with task, wait for what it needs, and for another process that has it.
    progress: True shows bars; or a listener.

    Any number of such calls, on any hosts that share the folder, share the tasks. The same call continues
    where it was stopped, skips what is done and tries again what failed. Returns a qrdali.MatrixResult: tasks
    (their number), runs (each with name, state, val, accuracy, seconds) and page, the report's path. Raises
    InputError for a file or an option that cannot be used, RunError where tasks failed; the others are done
    then.

    Example:
        >>> result = qrdali.reproduce("matrix.toml", only=["shared"], out="matrix", device="cpu")
        >>> [run.name for run in result.runs], result.failed
        (['test_resnet/shared'], {})
    """
    from qrdali.errors import InputError
    from qrdali.workflows import reproduce as workflow
    from qrdali.workflows.matrix_launch import ListenerView, plans_for

    if wait and task is None:
        raise InputError("wait is for task: without one, all that is left is done anyway")
    folder, moved = _folder_and_root(data)
    listener = listener_for(progress)
    options: dict[str, Any] = {
        "only": tuple(only),
        "out": _text(out),
        "data": folder,
        "root": _text(root) or moved,
        "device": device,
        "threads": threads,
        "retries": retries,
        "control": JobControl(listener),
    }
    if plans := plans_for(workers, gpus, threads, lambda: workflow.gpus_needed(os.fspath(config), **options)):
        if task is not None:
            raise InputError("task: one process does it; leave out workers and gpus")
        return workflow.reproduce_in_workers(os.fspath(config), plans, ListenerView(listener), **options)
    return workflow.reproduce(os.fspath(config), task=task, wait=wait, **options)


def _folder_and_root(data: Dataset | PathLike | None) -> tuple[str | None, str | None]:
    """Returns a data set's folder, and what says where its images are now, if they moved."""
    if not isinstance(data, Dataset):
        return _text(data), None
    relocation = data.relocation
    return str(data.folder), None if relocation is None else f"{relocation.old}={relocation.new}"


def _text(path: PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)


def _plain(value: Any) -> Any:
    """Returns paths and runs as text, in mappings too."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
