"""The table and the figure of whether runs err on the same images: Cohen's kappa of each two of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib.figure import Figure as Canvas

from qrdali.errors import printable
from qrdali.evaluation.consistency import ErrorConsistency, error_consistency, pairwise_right
from qrdali.report.figures import Figure, Points, Theme, short_name
from qrdali.report.shared_rows import SharedRows
from qrdali.report.tables import Cell, Table, number, words

_MOST_PAIRS = 10_000  # rows of the table; beyond, only the pairs with a baseline of the sets that follow
_MOST_NAMED = 6  # pairs of the same network in a note
_MOST_PICTURED = 40  # runs of the figure
KAPPA_NOTE = (
    "Error consistency (Geirhos et al., 2020): Cohen's κ of which images are classified correctly, "
    "(observed − expected) ÷ (1 − expected). Observed: the share of the images that both have right or both "
    "have wrong; expected: that share if two of their accuracies erred independently. κ is 1 where both err "
    "on the same images and 0 where they agree as often as chance has it; a dash where both have all right "
    "or all wrong."
)
Pair = tuple[str, str, ErrorConsistency]


def pairs(shared: SharedRows) -> list[Pair]:
    """Returns the error consistency of each two runs on a set, by their names, in the runs' order."""
    runs, total = shared.runs, shared.images
    both = pairwise_right(shared.correct())
    found = []
    for i, j in combinations(range(len(runs)), 2):
        right, first, second = (int(both[at]) for at in ((i, j), (i, i), (j, j)))
        consistency = error_consistency(right, first - right, second - right, total - first - second + right)
        found.append((runs[i].name, runs[j].name, consistency))
    return found


def table(every: list[SharedRows], slug: str) -> Table | None:
    """Returns the table of each two runs on each set; None where no set has rows of two runs."""
    rows: list[tuple[Cell, ...]] = []
    cut: list[str] = []
    for shared in every:
        found = pairs(shared)
        if len(rows) + len(found) > _MOST_PAIRS:
            baselines = {run.name for c in shared.configurations if c.is_baseline for run in c.runs}
            found = [pair for pair in found if baselines & {pair[0], pair[1]}][
                : max(0, _MOST_PAIRS - len(rows))
            ]
            cut.append(shared.name)
        rows += [
            (
                words(shared.name),
                words(one),
                words(other),
                number(consistency.images),
                number(100 * consistency.observed, ".2f"),
                number(100 * consistency.expected, ".2f"),
                number(consistency.kappa, ".3f"),
            )
            for one, other, consistency in found
        ]
    if not rows:
        return None
    notes = [KAPPA_NOTE, *(note for shared in every for note in shared.notes)]
    if cut:
        notes.append(f"Of {', '.join(cut)} only pairs with a baseline are listed, for want of room.")
    notes += _same_networks(every)
    columns = ("set", "run", "and run", "images", "observed %", "expected %", "κ")
    return Table(slug, "Error consistency of runs", columns, tuple(rows), tuple(notes))


def _same_networks(every: list[SharedRows]) -> list[str]:
    """Returns the note on runs that are the same network, whose κ is 1 whatever they answer."""
    runs = {run.name: run for shared in every for run in shared.runs}
    alike = [
        f"{one.name} and {other.name}"
        for one, other in combinations(runs.values(), 2)
        if one.is_network_of(other)
    ]
    if not alike:
        return []
    more = f" and {len(alike) - _MOST_NAMED} more" if len(alike) > _MOST_NAMED else ""
    return [
        printable(
            f"The same network, by their weights, so that they agree: {'; '.join(alike[:_MOST_NAMED])}{more}."
        )
    ]


def figure(shared: SharedRows, slug: str) -> Figure | None:
    """Draws κ of each two runs on a set as a matrix; None of fewer than three runs or of more than 40."""
    names = [run.name for run in shared.runs]
    if not 2 < len(names) <= _MOST_PICTURED:
        return None
    found = pairs(shared)
    number_of = {name: i for i, name in enumerate(names)}
    kappas = np.full((len(names), len(names)), np.nan)
    for one, other, consistency in found:
        kappa = np.nan if consistency.kappa is None else consistency.kappa
        kappas[number_of[one], number_of[other]] = kappas[number_of[other], number_of[one]] = kappa

    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        axes.grid(visible=False)
        drawn = axes.imshow(kappas, vmin=-1, vmax=1, cmap="PuOr")
        ticks = [short_name(name) for name in names]
        axes.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=7)
        axes.set_yticks(range(len(ticks)), ticks, fontsize=7)
        if len(names) <= 12:  # more leave no room for numbers
            for i, j in zip(*np.nonzero(~np.isnan(kappas)), strict=True):
                ink = "#ffffff" if abs(kappas[i, j]) > 0.6 else "#1c1917"  # on the cell, not on the page
                axes.text(j, i, f"{kappas[i, j]:.2f}", ha="center", va="center", fontsize=7, color=ink)
        bar = canvas.colorbar(drawn, ax=axes, shrink=0.8, label="κ")
        bar.ax.tick_params(labelsize=7)

    side = 3.4 + 0.14 * len(names)
    return Figure(
        slug,
        f"Error consistency on {shared.name}",
        f"Cohen's kappa of each two of {len(names)} runs on {shared.name}: "
        + ", ".join(f"{one} and {other} {c.kappa:.2f}" for one, other, c in found[:6] if c.kappa is not None)
        + (" and more." if len(found) > 6 else "."),
        draw,
        Points(
            ("run", "and run", "images", "observed", "expected", "kappa"),
            tuple((one, other, c.images, c.observed, c.expected, c.kappa) for one, other, c in found),
        ),
        (side + 0.8, side),
    )
