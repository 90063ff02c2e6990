"""Tables on the entropy quotients of MEPI sets: means with intervals, and pairs of runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.data.class_matching import first_synonym
from qrdali.errors import printable
from qrdali.evaluation.stats import bootstrap_mean, paired
from qrdali.mepi.folder import SEARCHED
from qrdali.report.groups import augmentations, is_unmatched_baseline
from qrdali.report.read_mepis import Mepis
from qrdali.report.tables import NOTHING, Cell, Table, number, probability, words

Floats = npt.NDArray[np.float64]
# Options in which sets must agree to be compared.
_SAME = ("data", "split", "limit", "step", "tail", "windows", "prefer", "search", "definitions")
# Comparisons of sets, and intervals of classes, beyond which only some are made.
_MOST_PAIRS, _MOST_INTERVALS = 40, 4000


def values(mepis: Mepis, reduction: str) -> Floats:
    """Returns the quotients of a set's MEPIs, float64 [N]."""
    return np.asarray(mepis.rows[reduction]["quotient"], np.float64)


def by_reduction(sets: list[Mepis]) -> Iterator[tuple[str, list[Mepis]]]:
    """Yields each reduction with the sets that searched it, those without any MEPI among them."""
    for reduction in SEARCHED:
        searched = [mepis for mepis in sets if reduction in mepis.rows]
        if searched:
            yield reduction, searched


def alike(sets: list[Mepis]) -> list[tuple[str, list[Mepis]]]:
    """Returns the sets that searched the same images in the same way, with what tells them from the others.

    Only those are compared and drawn together.
    """
    parts: dict[str, list[Mepis]] = {}
    for mepis in sets:
        parts.setdefault(json.dumps([_option(mepis, key) for key in _SAME]), []).append(mepis)
    differing = [key for key in _SAME if len({json.dumps(_option(mepis, key)) for mepis in sets}) > 1]
    return [
        (printable(", ".join(_option_text(key, _option(same[0], key)) for key in differing)), same)
        for same in parts.values()
    ]


def _option(mepis: Mepis, key: str) -> object:
    """Returns an option of a set; those of version 0.1 name no definitions, which were 1, and had no tail."""
    return mepis.options.get(key, {"definitions": 1, "tail": "none"}.get(key))


def _option_text(key: str, value: object) -> str:
    return "all images" if key == "limit" and value is None else f"{key} {str(value)[:12]}"


def class_name(mepis: Mepis, label: int, path: str) -> str:
    """Returns the class's name from the run where it is in the report, else the folder in which the original
    lay.

    A shard's folders say nothing about classes.
    """
    classes, trained = mepis.classes, mepis.run.trained if mepis.run is not None else None
    if 0 <= label < len(classes):
        name = classes[label]
        if trained is not None and trained.readable and name in trained.classes:
            return first_synonym(trained.readable[trained.classes.index(name)])
        return name
    return f"class {label}" if path.startswith("tar+") else PurePath(path).parent.name


def class_means(mepis: Mepis, reduction: str) -> dict[int, tuple[float, int]]:
    """Returns (mean quotient, images) of each class that has a MEPI."""
    labels, quotients = mepis.rows[reduction]["label"], values(mepis, reduction)
    return {
        int(label): (float(quotients[labels == label].mean()), int((labels == label).sum()))
        for label in np.unique(labels)
    }


def _interval(low: float, high: float) -> tuple[Cell, Cell]:
    return number(low, ".4f"), number(high, ".4f")


def means(sets: list[Mepis], slug: str) -> Table | None:
    """Returns the table of means over images and over classes, with bootstrap intervals; None
    without sets.
    """
    rows = []
    for reduction, searched in by_reduction(sets):
        for mepis in searched:
            quotients = values(mepis, reduction)
            per_class = np.array([mean for mean, _ in class_means(mepis, reduction).values()])
            row = mepis.summary[reduction]
            share, void = row.get("lowest_state_share"), row.get("near_void_class")
            above = row.get("mean_quotient_above_void")
            cells = (
                [NOTHING] * 7
                if not len(quotients)
                else [
                    number(float(quotients.mean()), ".4f"),
                    *_interval(*bootstrap_mean(quotients)),
                    number(float(np.median(quotients)), ".4f"),
                    number(float(per_class.mean()), ".4f"),
                    *_interval(*bootstrap_mean(per_class)),
                ]
            )
            rows.append(
                (
                    words(reduction),
                    words(mepis.name),
                    number(mepis.tried(reduction)),
                    number(len(quotients)),
                    *cells,
                    number(100 * share, ".1f") if isinstance(share, float) else NOTHING,
                    number(above, ".4f") if isinstance(above, float) else NOTHING,
                    words(void) if void else NOTHING,
                )
            )
    if not rows:
        return None
    return Table(
        slug,
        "Entropy quotients",
        (
            "reduction",
            "set",
            "images",
            "with MEPI",
            "mean",
            "95% low",
            "95% high",
            "median",
            "mean over classes",
            "95% low over classes",
            "95% high over classes",
            "at the lowest state, %",
            "mean of the others",
            "near-void class",
        ),
        tuple(rows),
        (
            "PNG bytes of the minimal image ÷ PNG bytes of the original, over images that have a MEPI: those "
            "classified correctly at full quality. Intervals are percentiles of 2,000 bootstrap samples, of "
            "images and of classes. Images at the lowest state say nothing about their object: the network "
            "takes nearly empty images for some class anyway.",
        ),
    )


def per_class(sets: list[Mepis], slug: str) -> Table | None:
    """Returns the table of mean quotients of classes with intervals: a row per class and set, a column per
    reduction.
    """
    rows = []
    means_of_sets = [
        (mepis, {reduction: class_means(mepis, reduction) for reduction in mepis.rows}) for mepis in sets
    ]
    intervals = sum(len(of_classes) for _, means in means_of_sets for of_classes in means.values())
    with_intervals = intervals <= _MOST_INTERVALS

    def cell(mepis: Mepis, reduction: str, label: int, mean: float, images: int) -> Cell:
        if images < 2 or not with_intervals:
            return number(mean, ".4f")
        low, high = bootstrap_mean(values(mepis, reduction)[mepis.rows[reduction]["label"] == label])
        return Cell(f"{mean:.4f} ({low:.4f} to {high:.4f})", mean)

    for mepis, means in means_of_sets:
        names = {
            int(label): class_name(mepis, int(label), str(path))
            for columns in mepis.rows.values()
            for label, path in zip(columns["label"], columns["path"], strict=True)
        }
        for label, name in sorted(names.items()):
            rows.append(
                (
                    words(name),
                    words(mepis.name),
                    number(max(means[r].get(label, (0, 0))[1] for r in means)),
                    *(
                        cell(mepis, r, label, *means[r][label])
                        if r in means and label in means[r]
                        else NOTHING
                        for r in SEARCHED
                    ),
                )
            )
    rows.sort(key=lambda row: row[0].text)
    note = (
        "Means over a class's images, with their 95% bootstrap intervals where there are two or more."
        if with_intervals
        else "So many classes and sets: the intervals of classes are left out."
    )
    return (
        Table(slug, "Entropy quotients by class", ("class", "set", "images", *SEARCHED), tuple(rows), (note,))
        if rows
        else None
    )


@dataclass(frozen=True)
class Pair:
    """Holds two MEPI sets of one reduction on the images that both have.

    quotients: of the first and of the second, float64 [N] each, in the same order.
    """

    reduction: str
    first: Mepis
    second: Mepis
    quotients: tuple[Floats, Floats]


def _place_among_pairs(mepis: Mepis) -> tuple[bool, int]:
    """Returns where a set stands: baselines first, of these those with the fewest augmentations."""
    if mepis.run is None or not is_unmatched_baseline(mepis.run.settings):
        return True, 0
    return False, len(augmentations(mepis.run.settings))


def pairs(sets: list[Mepis]) -> tuple[list[Pair], list[str]]:
    """Returns every two of sets that are `alike`, the baseline's first, and notes on those left out.

    Where that would be many, each is paired with the baseline's only.
    """
    ordered = sorted(sets, key=_place_among_pairs)
    every, paired_sets, notes = list(combinations(ordered, 2)), [], []
    if len(every) > _MOST_PAIRS:
        every = [(ordered[0], other) for other in ordered[1:]]
        notes.append(f"So many sets: each is compared with {ordered[0].name} only.")
    for first, second in every:
        if _are_of_one_network(first, second):
            notes.append(f"{first.name} and {second.name} are of the same network, and not compared.")
            continue
        for reduction in (r for r in first.rows if r in second.rows):
            one, other = first.rows[reduction], second.rows[reduction]
            _, i, j = np.intersect1d(one["sample"], other["sample"], return_indices=True)
            same_paths = bool((one["path"][i] == other["path"][j]).all())
            if not same_paths and not have_fingerprint(first):
                notes.append(
                    f"{first.name} and {second.name} are not compared on {reduction}: "
                    "their images lie elsewhere."
                )
            elif len(i):
                paired_sets.append(
                    Pair(
                        reduction, first, second, (values(first, reduction)[i], values(second, reduction)[j])
                    )
                )
            else:
                notes.append(
                    f"{first.name} and {second.name} have no image with a MEPI of {reduction} in common."
                )
    return paired_sets, [printable(note) for note in notes]


def _are_of_one_network(first: Mepis, second: Mepis) -> bool:
    """Returns whether two sets were searched with the same weights, pixels and classes."""
    keys = ("weights", "preprocessing", "class_map", "map_rule")
    of_first, of_second = ([mepis.options.get(key) for key in keys] for mepis in (first, second))
    return bool(of_first[0]) and of_first == of_second


def have_fingerprint(mepis: Mepis) -> bool:
    """Returns whether the option data of a set is a fingerprint: sets alike in it are of the same images."""
    images = mepis.options.get("data")
    return isinstance(images, str) and len(images) == 64


def compared(sets: list[Mepis], slug: str) -> Table | None:
    """Returns the table of differences of mean quotients on the images that both runs classify correctly."""
    rows: list[tuple[Cell, ...]] = []
    paired_sets, notes = pairs(sets)
    for pair in paired_sets:
        result = paired(*pair.quotients)
        one, other = (float(q.mean()) for q in pair.quotients)
        rows.append(
            (
                words(pair.reduction),
                words(pair.first.name),
                words(pair.second.name),
                number(result.images),
                number(one, ".4f"),
                number(other, ".4f"),
                number(result.difference, "+.4f"),
                *_interval(result.low, result.high),
                number(100 * result.difference / one, "+.1f"),
                probability(result.p_value),
            )
        )
    if not rows:
        return None
    return Table(
        slug,
        "Two runs on the images that both classify correctly",
        (
            "reduction",
            "first",
            "second",
            "images",
            "mean of first",
            "mean of second",
            "difference",
            "95% low",
            "95% high",
            "difference, %",
            "Wilcoxon p",
        ),
        tuple(rows),
        (
            "Difference: second less first; below 0 the second needs less information. Paired bootstrap of "
            "2,000 samples; Wilcoxon's signed-rank test, two-sided, not corrected for several comparisons. "
            "Images that one of the two misclassifies at full quality are left out here and count in the "
            "curves of shares.",
            *notes,
        ),
    )


def share_curve(mepis: Mepis, reduction: str) -> tuple[Floats, Floats]:
    """Returns quotients ascending [N + 1], and the share of all images tried that are correct with at most
    that quotient [N + 1].

    An image without MEPI never counts.
    """
    quotients = np.sort(values(mepis, reduction))
    return np.concatenate([[0.0], quotients]), np.arange(len(quotients) + 1) / max(mepis.tried(reduction), 1)


def thinned(curve: tuple[Floats, Floats], points: int = 2000) -> tuple[Floats, Floats]:
    """Returns a curve of at most `points` points, first and last kept: no picture shows more."""
    kept: Any = np.unique(np.linspace(0, len(curve[0]) - 1, min(points, len(curve[0]))).astype(int))
    return curve[0][kept], curve[1][kept]


def shares(sets: list[Mepis], slug: str) -> Table | None:
    """Returns the table of the curves of shares at some quotients."""
    at = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    rows = []
    for reduction, searched in by_reduction(sets):
        for mepis in searched:
            quotients, share = share_curve(mepis, reduction)
            rows.append(
                (
                    words(reduction),
                    words(mepis.name),
                    number(mepis.tried(reduction)),
                    *(number(100 * share[np.searchsorted(quotients, x, "right") - 1], ".1f") for x in at),
                )
            )
    if not rows:
        return None
    return Table(
        slug,
        "Images classified correctly with at most a share of their entropy",
        ("reduction", "set", "images", *(f"≤ {x:g}" for x in at)),
        tuple(rows),
        (
            "Percent of all images searched. An image without MEPI never counts as correct; at 1 every image "
            "that is correct at full quality counts, unless its PNG grew.",
        ),
    )
