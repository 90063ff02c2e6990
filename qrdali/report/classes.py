"""Tables and the figure of which classes are hard, and which are taken for which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure as Canvas

from qrdali.report.figures import Figure, Points, Theme, short_name
from qrdali.report.groups import Configuration
from qrdali.report.read import Run
from qrdali.report.shared_rows import SharedRows
from qrdali.report.tables import NOTHING, Cell, Table, number, words

_PAGE_CLASSES = 4000  # rows of all per-class tables of a group on the page
_PAGE_CONFIGURATIONS = 8  # columns of a table on the page
_MOST_PAIRS = 200  # confusions of a set in a table
_PICTURED_CLASSES = 40  # of a confusion matrix that is drawn


@dataclass(frozen=True)
class Confusions:
    """Holds how often images of a class are taken for another, the most frequent first.

    truth, answer: int64 [P], class numbers as `SharedRows` has them. total: int64 [P], images of all runs
    together. counts: int64 [runs, min(P, 200)], those of each run, of the first pairs: of all pairs they
    would take gigabytes where networks that guess take each of a thousand classes for any other.
    """

    truth: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]
    total: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def confusion_counts(shared: SharedRows, run: Run) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the (pairs, images) of a run: int64 [P] label · (classes + 1) + prediction, ascending, and how
    many images have it, int64 [P]. Right answers are among them.
    """
    span = len(shared.classes) + 1
    pairs, images = np.unique(shared.labels * span + shared.predictions(run), return_counts=True)
    return pairs.astype(np.int64), images.astype(np.int64)


def confusions(shared: SharedRows) -> Confusions:
    """Returns every pair of a class and another that it is taken for, by the number of images of all runs.

    Of equally frequent pairs the one of the lower label, then of the lower answer, is first.
    """
    span = len(shared.classes) + 1
    every, total = _all_runs(shared)
    wrong = every // span != every % span
    every, total = every[wrong], total[wrong]
    order = np.argsort(-total, kind="stable")
    every, total = every[order], total[order]
    shown = every[:_MOST_PAIRS]
    counts = np.zeros((len(shared.runs), len(shown)), np.int64)
    for row, run in zip(counts, shared.runs, strict=True):
        pairs, images = confusion_counts(shared, run)
        _, at, own = np.intersect1d(shown, pairs, assume_unique=True, return_indices=True)
        row[at] = images[own]
    return Confusions(every // span, every % span, total, counts)


def _all_runs(shared: SharedRows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns what `confusion_counts` does, of all runs together."""
    pairs = images = np.zeros(0, np.int64)
    for run in shared.runs:
        own, counts = confusion_counts(shared, run)
        merged, place = np.unique(np.concatenate([pairs, own]), return_inverse=True)
        sums = np.zeros(len(merged), np.int64)
        sums[place[: len(pairs)]] = images  # each of both has a pair once
        sums[place[len(pairs) :]] += counts
        pairs, images = merged, sums
    return pairs, images


def class_accuracy(shared: SharedRows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Returns (images int64 [K], accuracy float64 [runs, K]) of each of the K = len(classes) + 1 numbers of a
    class; NaN for a class without images.
    """
    count = len(shared.classes) + 1
    images = np.bincount(shared.labels, minlength=count)
    right = np.stack(
        [np.bincount(shared.labels[shared.rows(run).correct], minlength=count) for run in shared.runs]
    )
    with np.errstate(invalid="ignore"):
        return images.astype(np.int64), right / images


def accuracy_table(shared: SharedRows, found: Confusions, slug: str, sets: int) -> Table:
    """Returns the table of accuracy per class of a set, the worst class first.

    found: its confusions. sets: how many such tables the page has.
    """
    images, accuracy = class_accuracy(shared)
    present = np.flatnonzero(images)
    mean = accuracy.mean(0)
    order = present[np.argsort(mean[present], kind="stable")]
    columns = _by_configuration(shared, 100 * accuracy)
    # The first pair of a class is its most frequent one.
    labels, pairs = np.unique(found.truth, return_index=True)
    first = dict(zip(labels.tolist(), pairs.tolist(), strict=True))
    several = len(shared.runs) > 1
    rows = tuple(
        (
            words(shared.class_name(label)),
            number(int(images[label])),
            *([number(float(100 * mean[label]), ".1f")] if several else []),
            _most_often(shared, found, first.get(label), int(images[label])),
            *(
                number(float(one[label]), ".1f", None if sd is None else float(sd[label]))
                for one, sd in columns
            ),
        )
        for label in order.tolist()
    )
    fixed = ("class", "images", *(["mean of the runs"] if several else []), "most often taken for")
    notes = [
        f"Percent of the images of each class of {shared.name} that are classified correctly, the worst "
        "class first; a click on a column's head sorts by it. "
        + ("Configurations of several seeds: mean ± standard deviation. " if _has_seeds(shared) else "")
        + "Most often taken for: the wrong answer that most images of the class get, and the share of its "
        + ("images over all runs." if several else "images that do."),
        *shared.notes,
    ]
    return Table(
        slug,
        f"Accuracy per class on {shared.name}",
        (*fixed, *(configuration.label for configuration in shared.configurations)),
        rows,
        tuple(notes),
        page_rows=max(100, _PAGE_CLASSES // max(1, sets)),
        page_columns=len(fixed) + _PAGE_CONFIGURATIONS,
    )


def _has_seeds(shared: SharedRows) -> bool:
    return len(shared.runs) > len(shared.configurations)


def _by_configuration(
    shared: SharedRows, values: npt.NDArray[np.float64]
) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]]:
    """Returns the mean and the standard deviation [K] of each configuration, of values [runs, K].

    A single run has no deviation.
    """
    result, first = [], 0
    for configuration in shared.configurations:
        own = values[first : first + len(configuration.runs)]
        first += len(own)
        result.append((own.mean(0), own.std(0, ddof=1) if len(own) > 1 else None))
    return result


def _most_often(shared: SharedRows, found: Confusions, pair: int | None, images: int) -> Cell:
    if pair is None:
        return NOTHING
    share = found.total[pair] / (images * len(found.counts))
    return words(f"{shared.class_name(int(found.answer[pair]))} ({100 * share:.1f}%)")


def pairs_table(every: list[tuple[SharedRows, Confusions]], slug: str) -> Table | None:
    """Returns the table of the most frequent confusions of each set; None where all runs have all right."""
    configurations = dict.fromkeys(c.label for shared, _ in every for c in shared.configurations)
    rows: list[tuple[Cell, ...]] = []
    for shared, found in every:
        images = np.bincount(shared.labels, minlength=len(shared.classes) + 1)
        for pair in range(found.counts.shape[1]):
            truth, answer = int(found.truth[pair]), int(found.answer[pair])
            share = 100 * found.counts[:, pair] / images[truth]
            means = _by_configuration(shared, share[:, None])
            own = {c.label: mean for c, mean in zip(shared.configurations, means, strict=True)}
            rows.append(
                (
                    words(shared.name),
                    words(shared.class_name(truth)),
                    words(shared.class_name(answer)),
                    number(int(images[truth])),
                    number(float(share.mean()), ".1f"),
                    *(_of_configuration(own.get(label)) for label in configurations),
                )
            )
    if not rows:
        return None
    fixed = ("set", "class", "taken for", "images of the class", "mean of the runs")
    return Table(
        slug,
        "Confusions",
        (*fixed, *configurations),
        tuple(rows),
        (
            "Percent of the images of a class that are taken for another, of the pairs that are most "
            f"frequent over all runs, at most {_MOST_PAIRS} of each set.",
            *(note for shared, _ in every for note in shared.notes),
        ),
        page_columns=len(fixed) + _PAGE_CONFIGURATIONS,
    )


def _of_configuration(
    found: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None] | None,
) -> Cell:
    if found is None:
        return NOTHING
    mean, sd = found
    return number(float(mean[0]), ".1f", None if sd is None else float(sd[0]))


def matrix(shared: SharedRows, configuration: Configuration, slug: str) -> Figure | None:
    """Draws the confusion matrix of a configuration, its seeds together; None of more than 40 classes."""
    numbers = np.unique(
        np.concatenate([shared.labels, *(shared.predictions(run) for run in configuration.runs)])
    )
    classes = len(shared.classes)
    if classes > _PICTURED_CLASSES:
        return None
    shown = sorted({*range(classes), *numbers.tolist()})
    span = classes + 1
    counts = np.zeros((span, span), np.int64)
    for run in configuration.runs:
        pairs, images = confusion_counts(shared, run)
        counts.reshape(-1)[pairs] += images
    counts = counts[np.ix_(shown, shown)]
    names = [shared.class_name(label) for label in shown]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        axes.grid(visible=False)
        drawn = axes.imshow(share, vmin=0, vmax=1, cmap="Greys" if theme.paper == "#ffffff" else "Greys_r")
        ticks = [short_name(name) for name in names]
        axes.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=7)
        axes.set_yticks(range(len(ticks)), ticks, fontsize=7)
        axes.set(xlabel="answer", ylabel="class")
        bar = canvas.colorbar(drawn, ax=axes, shrink=0.8, label="share of the class's images")
        bar.ax.tick_params(labelsize=7)

    side = 3.2 + 0.11 * len(shown)
    return Figure(
        slug,
        f"Confusion matrix of {configuration.label} on {shared.name}",
        f"Confusion matrix of {configuration.label} on {shared.name}: a row per class, a column per answer, "
        f"the darker or brighter the more of the class's images get that answer; {len(shown)} classes.",
        draw,
        Points(
            ("class", "answer", "images"),
            tuple(
                (names[i], names[j], int(counts[i, j]))
                for i in range(len(names))
                for j in range(len(names))
                if counts[i, j]
            ),
        ),
        (side + 0.8, side),
    )
