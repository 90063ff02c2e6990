"""Builds the MEPIs of a split: searches, reads every file back, draws a contact sheet per reduction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from qrdali.data import storage
from qrdali.data.class_matching import first_synonym
from qrdali.data.index import Dataset, Index, Samples
from qrdali.data.scan import Reading, index_folder
from qrdali.distributed import ProcessGroup
from qrdali.errors import Interrupted, RunError, printable
from qrdali.evaluation.chance import chance, most_frequent
from qrdali.evaluation.class_map import MapRule
from qrdali.interfaces import ImageReducer, JobControl, ProgressListener
from qrdali.mepi.build import Builder
from qrdali.mepi.folder import MepiSet, MepiSource
from qrdali.mepi.search import Search, SearchLimits, SearchRule, judge_own_classes
from qrdali.pipelines.image_reducer import open_image_reducer
from qrdali.reduction import quality
from qrdali.reduction.png_entropy import encoder_name
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import DEFINITIONS
from qrdali.system.deterministic import deterministic
from qrdali.system.device import probe_batch_size, resolve_amp
from qrdali.workflows import mepi_sheet
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator, read_map
from qrdali.workflows.mepi_options import make_rules, recorded_options, tail_of


def build_mepi(
    run: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    split: str = "val",
    reduction: str = "all",
    step: float = 0.05,
    tail: str | None = None,
    windows: int = 5,
    prefer: Literal["confidence", "entropy"] = "confidence",
    search: Literal["descend", "exhaustive"] = "descend",
    limit: int | None = None,
    batch_size: int = 32,
    search_batch_size: int | None = None,
    memory: int = 1024,
    device: str = "auto",
    amp: str = "auto",
    threads: int | None = None,
    resume: bool = False,
    root: str | None = None,
    class_map: str | Path | None = None,
    map_rule: MapRule | None = None,
    control: JobControl = JobControl(),
) -> dict[str, Any]:
    """Finds a minimal reduced image, still classified correctly, of each image that `best/` gets right.

    out: the set's folder. A set that was begun with the same options may be there: with `resume` it is
    continued, without it is joined by the reductions that it lacks. reduction: "color", "crop", "resolution",
    "combination" or "all". tail: levels below the grid of `step`: "full", "none" or their number; None for
    the set's own, and "full" for a new set. windows: candidate windows of a crop, 5 or 9. prefer: which
    correct neighbour is taken. search: step by step, or every level (color and resolution). limit: images
    searched, spread evenly over the split. batch_size: of reading the files back. search_batch_size:
    candidates of a forward pass, None for what suits the device. memory: MiB of decoded originals that are
    kept. root: where the images of `data` are now, or OLD=NEW. class_map, map_rule: for a run of other
    classes than the data's, as in `evaluate`; an image is right where its mapped class is.

    Returns the summaries by reduction, as in summary.json. Raises InputError or RunError before anything is
    written where it can, and Interrupted once `control.stop` returns a signal: then what is complete is kept
    and `resume` continues it. Collective: of several ranks all call it; they share the images, and the first
    writes the files of the whole set.
    """
    folder, group = Path(run), control.group
    recorded = group.run_on_all(lambda: recorded_options(Path(out)))
    tail = tail_of(tail, recorded)
    scale = quality.scale_of(step, tail, quality.MAX_OLD_GRID if recorded else quality.MAX_GRID)
    rules = group.run_on_all(lambda: make_rules(reduction, scale, windows, prefer, search))
    with deterministic(run_folder.is_deterministic(folder), device):
        mapping = group.run_on_all(lambda: read_map(class_map, map_rule, folder, data))
        evaluate_options = EvaluateOptions(batch_size, device, amp, threads, class_map=mapping)
        evaluator = Evaluator(folder, evaluate_options, control)
        evaluator.say_start()
        trained, context, engine = evaluator.trained, evaluator.context, evaluator.engine
        dataset, network_labels = group.run_on_all(lambda: _open_data(evaluator, Path(data), root))
        index = group.run_on_all(lambda: dataset.index(split))
        count = min(limit or len(index), len(index))
        samples = [i * len(index) // count for i in range(count)]
        at_once = search_batch_size or probe_batch_size(context.device, 128)
        options = {
            "run": str(folder.absolute()),
            "weights": run_folder.weights_digest(folder),
            "preprocessing": json.loads(json.dumps(asdict(trained.preprocessing))),
            "data": index.fingerprint_like(recorded.get("data")),
            "split": split,
            "step": 1 / scale.grid,
            "tail": tail,
            "windows": windows,
            "prefer": prefer,
            "search": search,
            "limit": limit,
            "batch_size": batch_size,
            "search_batch_size": at_once,
            "device": context.device.type,
            "amp": resolve_amp(amp, context.device),
            "encoder": encoder_name(),
            "definitions": DEFINITIONS,
        }
        if dataset.classes != trained.classes:
            options["classes"] = list(dataset.classes)
        if mapping is not None:
            options |= {
                "class_map": mapping.digest,
                "class_map_file": str(Path(class_map or "").absolute()),
                "map_rule": mapping.rule,
            }
        _require_equal_options(group, options)
        if mapping is not None:
            answers, shown = mapping.answers, None
        else:
            answers = _shown_names(trained, np.arange(len(trained.classes))) or trained.classes
            shown = _shown_names(trained, network_labels)
        source = MepiSource(index, dataset.classes, scale, answers, network_labels, shown)
        mepis = _open_set(control, Path(out), source, options, None if resume else tuple(rules))
        with closing(mepis):
            reducer = open_image_reducer(index, trained.preprocessing, engine)
            control.listener.line(
                f"MEPIs of {count} {split} images, {trained.model} at {trained.preprocessing.input_size} px, "
                f"step {1 / scale.grid:g}, tail {tail}, {'CPU' if context.device.type == 'cpu' else 'GPU'}"
            )
            limits = SearchLimits(at_once, memory << 20, engine.threads)
            job = _SetJob(mepis, samples, reducer, evaluator, limits)
            for name, rule in rules.items():
                job.build(name, rule, is_last=name == [*rules][-1])
            summaries = group.run_on_main(lambda: _summaries(mepis, tuple(rules), data))
            summaries = group.broadcast_object(summaries)
            note = group.run_on_main(lambda: _chance_note(mepis, next(iter(rules)), samples, (folder, split)))
        assert summaries is not None
        if note:
            control.listener.line(note)
        if all(row["mean_quotient"] is None for row in summaries.values()):
            control.listener.line("the run classifies none of these images correctly: there are no MEPIs")
        control.listener.line(f"MEPI set: {out}")
        return summaries


def _open_data(evaluator: Evaluator, data: Path, root: str | None) -> tuple[Dataset, Samples]:
    """Returns a data set, and the network's label of each of its classes."""
    dataset = Dataset.open(data, root)
    return dataset, evaluator.labels_of(dataset)


def _shown_names(trained: run_folder.BestModel, network_labels: Samples) -> tuple[str, ...] | None:
    """Returns the names that people read of the classes with these labels: of readable names the first
    synonym, None where there are none.
    """
    if not trained.readable:
        return None
    return tuple(first_synonym(trained.readable[label]) for label in network_labels.tolist())


def _require_equal_options(group: ProcessGroup, options: dict[str, Any]) -> None:
    """Raises RunError on all ranks if the ranks see other weights, images or settings. Collective."""
    if group.is_single:
        return
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    group.require_equal("weights, images or settings", digest)


def _open_set(
    control: JobControl,
    folder: Path,
    source: MepiSource,
    options: dict[str, Any],
    new: tuple[str, ...] | None,
) -> MepiSet:
    """Opens the set in `folder`: rank 0 locks and loads it before the others read it. Collective.

    new: the reductions that join it, or None to continue it.

    A job that torchrun has started again resumes what it had begun itself, although nobody gave --resume.
    """
    group = control.group
    was_started = group.was_started(str(folder.absolute()))

    def open_and_load() -> MepiSet:
        wanted = None if was_started else new
        mepis = MepiSet.open(folder, source, options, wanted, control.listener.warn)
        group.record_started(str(folder.absolute()))
        if not group.is_single:
            mepis.load()
        return mepis

    opened = group.run_on_main(open_and_load)
    mepis = opened or MepiSet.open_on_other_rank(folder, source, group.rank)
    if not group.is_single:
        group.run_on_all(mepis.load)
    return mepis


class _SetJob:
    """Builds the reductions of an open set, one after the other.

    Every method but `_require_own_files` is collective.
    """

    def __init__(
        self,
        mepis: MepiSet,
        samples: list[int],
        reducer: ImageReducer,
        evaluator: Evaluator,
        limits: SearchLimits,
    ) -> None:
        self.mepis, self.samples, self.reducer = mepis, samples, reducer
        self.evaluator, self.limits, self.context = evaluator, limits, evaluator.context

    def build(self, name: str, rule: SearchRule, is_last: bool) -> None:
        """Builds a reduction unless it is finished.

        Raises Interrupted after a signal, during the search or after it.
        """
        group, listener = self.context.group, self.context.listener
        if self._is_finished(name):
            listener.line(f"{name} is finished; nothing to do")
            if group.is_main and not (self.mepis.folder / f"{name}.png").exists():
                _draw_sheet(self.mepis, name, self.reducer, listener)
            return
        mapping = self.evaluator.class_map
        judge = mapping.judge if mapping else judge_own_classes
        search = Search(self.evaluator.model, self.reducer, rule, self.limits, self.context, judge)
        builder = Builder(
            self.mepis,
            name,
            search,
            lambda check: wrong_when_read_back(self.evaluator, self.mepis, name, check),
            self.context,
        )
        row = builder.build(self.samples)
        if group.is_main:
            _draw_sheet(self.mepis, name, self.reducer, listener)
        listener.line(summary_line(name, row))
        # A signal may reach one rank alone, and all of them have to stop at the same reduction.
        signals = group.all_gather_object(self.context.stop())
        if signum := max(signals):
            more = ", which was the last" if is_last else ": the same command with --resume continues"
            raise Interrupted(f"stopped after {name}{more}", signum)

    def _is_finished(self, name: str) -> bool:
        finished = self.context.group.run_on_main(lambda: self.mepis.finished(name, self.samples))
        return self.context.group.broadcast_object(bool(finished))


def _summaries(mepis: MepiSet, names: Sequence[str], data: str | Path) -> dict[str, Any]:
    """Returns the summaries of `names`. Raises RunError where not one image of them could be read."""
    summaries = mepis.summaries()
    if all(summaries[name]["images"] == summaries[name]["unreadable"] for name in names):
        (first,) = mepis.source.index.paths(np.zeros(1, np.int64))
        if storage.is_url(first) or Path(first).exists():
            advice = "see the lines above, mend the files, then --resume tries again"
        else:
            advice = f"{printable(first)} is gone; --resume --root NEW says where the images are now"
        raise RunError(f"no image of {printable(data)} could be read: {advice}")
    return {name: summaries[name] for name in names}


def _chance_note(mepis: MepiSet, reduction: str, samples: list[int], names: tuple[Path, str]) -> str:
    """Returns the sentence that the run classifies the images searched no better than one answer to all of
    them would; "" where it does. names: the run and the split.
    """
    journal, index = mepis.journal(reduction), mepis.source.index
    readable = np.setdiff1d(np.array(samples, np.int64), journal.unreadable())
    if not len(readable):
        return ""
    right = int(np.isin(readable, journal.with_mepi()).sum())
    run, split = names
    compared = chance(right, len(readable), most_frequent(index.labels(readable)))
    text = compared.sentence(printable(run), split)
    return f"{text}: its minimal images say little" if text else ""


def wrong_when_read_back(
    evaluator: Evaluator, mepis: MepiSet, reduction: str, check: Callable[[], None]
) -> list[int]:
    """Returns the samples whose written MEPI is wrong, classified exactly as `qrdali evaluate --set` does.

    Collective.

    check: is called at every batch and may raise. Raises RunError if the folder holds anything but the set's
    own readable files, since `evaluate` would count it.
    """
    samples = mepis.journal(reduction).with_mepi().tolist()
    expected = {str(mepis.png(reduction, sample).absolute()): sample for sample in samples}
    folder, group, classes = mepis.folder / reduction, evaluator.group, mepis.source.classes
    if not expected:
        group.run_on_main(
            lambda: _require_own_files({str(p.absolute()) for p in folder.rglob("*.*")}, {}, set())
        )
        return []
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "set.arrow"
        rejected = index_folder(
            folder,
            classes,
            file,
            Reading(threads=None if group.is_single else evaluator.engine.threads),
            group,
        )
        index = Index(file, len(classes), network_labels=mepis.source.network_labels)
        readable = set(index.paths(np.arange(len(index))))
        present = readable.union(path for path, _ in rejected)
        group.run_on_main(lambda: _require_own_files(present, expected, readable))
        rows = evaluator.rows(f"{reduction}, read back", index, check)
        wrong = rows.samples[rows.labels != rows.predictions]
        return [expected[path] for path in index.paths(wrong.astype(np.int64))]


def _require_own_files(present: set[str], expected: dict[str, int], readable: set[str]) -> None:
    """Raises RunError for an unexpected file, or an expected one that is unreadable, which is removed."""
    if strays := sorted(present - expected.keys()):
        raise RunError(
            f"{printable(strays[0])} is not a file of this set ({len(strays)} such): remove it, then the "
            "same command with --resume continues"
        )
    if broken := sorted(expected.keys() - readable):
        for path in broken:
            Path(path).unlink(missing_ok=True)
        raise RunError(
            f"{printable(broken[0])} was not as it had been written ({len(broken)} such): the same command "
            "with --resume makes it again"
        )


def _draw_sheet(mepis: MepiSet, reduction: str, reducer: ImageReducer, listener: ProgressListener) -> None:
    """Draws the contact sheet; what hinders it does not hinder the set."""
    try:
        mepi_sheet.draw(mepis, reduction, reducer, mepis.folder / f"{reduction}.png")
    except (OSError, RunError) as error:
        listener.warn(f"no contact sheet of {reduction}: {error}")


def summary_line(name: str, row: dict[str, Any]) -> str:
    """Returns a reduction's row of the summary as a line."""
    if row["mean_quotient"] is None:
        return f"{name}: none of {row['images']} images has a MEPI"
    mepis = row["images"] - row["without_mepi"] - row["unreadable"]
    text = (
        f"{name}: mean quotient {row['mean_quotient']:.4f} of {mepis} MEPIs; "
        f"{row['without_mepi']} images wrong at full quality"
    )
    if row["unreadable"]:
        text += f", {row['unreadable']} unreadable"
    text += f"; {row['lowest_state_share']:.1%} at the lowest state"
    if "near_void_class" in row:
        text += f" (which looks like {row['near_void_class']!r} in {row['near_void_class_share']:.0%})"
    if row["returned"]:
        text += f"; {row['returned']} searched on after reading back"
    return text + f"; {row['images_per_second']:.1f} images/s"
