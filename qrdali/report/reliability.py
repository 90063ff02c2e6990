"""The tables and the diagrams of how far confidence is from accuracy."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add

from matplotlib.figure import Figure as Canvas

from qrdali.evaluation.calibration import BINS, Calibration, bin_edges
from qrdali.report.accuracy import digits
from qrdali.report.figures import Figure, Points, Theme, legend_below, line_styles, short_name
from qrdali.report.groups import Configuration, Group
from qrdali.report.read import Run
from qrdali.report.tables import Cell, Table, number, words

_MOST_LINES = 12  # of a diagram
_NOTE = (
    "Confidence: the probability that a network gives its answer. ECE: the expected calibration error, the "
    f"mean over images of the distance between the mean confidence and the accuracy of their bin, of {BINS} "
    "bins of equal width (Guo et al., 2017); all in percent. Confidence less accuracy: above 0 a network "
    "claims too much. Several seeds: mean ± standard deviation. A dash: confidences that are no "
    "probabilities."
)
_BIN_COLUMNS = ("configuration", "above", "at most", "images", "mean confidence", "accuracy")


def table(group: Group, slug: str) -> Table | None:
    """Returns the table of calibration, a line per set and configuration; None without rows."""
    shown = digits(group)
    rows: list[tuple[Cell, ...]] = []
    marked: set[int] = set()
    for name in group.sets:
        for configuration in (c for c in group.configurations if any(name in run.sets for run in c.runs)):
            if configuration.is_baseline:
                marked.add(len(rows))
            rows.append(
                (
                    words(name),
                    words(configuration.method),
                    words(configuration.reduction),
                    words(configuration.sequence),
                    number(len(configuration.runs)),
                    _percent(configuration, name, _confidence, shown),
                    _percent(configuration, name, _excess, shown),
                    _percent(configuration, name, _error, 2),
                )
            )
    if not rows:
        return None
    fixed = ("set", "method", "reduction", "sequence", "seeds")
    columns = (*fixed, "mean confidence", "confidence less accuracy", "ECE")
    return Table(slug, "Calibration", columns, tuple(rows), (_NOTE,), frozenset(marked))


def _confidence(found: Calibration) -> float:
    return found.mean_confidence


def _excess(found: Calibration) -> float:
    return found.mean_confidence - found.accuracy


def _error(found: Calibration) -> float:
    return found.error


def _percent(
    configuration: Configuration, name: str, of: Callable[[Calibration], float], decimals: int
) -> Cell:
    """Returns the cell of a figure of calibration in percent, mean ± standard deviation over seeds."""
    mean, sd = _mean(configuration, name, of)
    return number(mean, f".{decimals}f", sd)


def _mean(
    configuration: Configuration, name: str, of: Callable[[Calibration], float]
) -> tuple[float | None, float | None]:
    """Returns mean and standard deviation over seeds of a figure of calibration, in percent."""

    def value(run: Run) -> float | None:
        found = run.sets[name].calibration if name in run.sets else None
        return None if found is None else 100 * of(found)

    return configuration.mean(value)


def bins_table(group: Group, slug: str) -> Table | None:
    """Returns the table of the bins that hold images, of each set and configuration, its seeds together."""
    rows = tuple(
        (
            words(name),
            words(line[0]),
            number(line[1], ".3f"),
            number(line[2], ".3f"),
            number(line[3]),
            number(line[4], ".4f"),
            number(line[5], ".4f"),
        )
        for name in group.sets
        for line in _bins(group, name)
    )
    if not rows:
        return None
    note = "Confidences and accuracies as shares; the images of all seeds of a configuration are together."
    return Table(slug, "Bins of the reliability diagrams", ("set", *_BIN_COLUMNS), rows, (note,))


_Line = tuple[str, float, float, int, float, float]  # of _BIN_COLUMNS


def _bins(group: Group, name: str) -> list[_Line]:
    """Returns each configuration's bins that hold images."""
    edges = bin_edges()
    return [
        (
            label,
            float(edges[i]),
            float(edges[i + 1]),
            int(found.images[i]),
            float(found.confidence[i] / found.images[i]),
            float(found.correct[i] / found.images[i]),
        )
        for label, found in _of_configurations(group, name).items()
        for i in range(BINS)
        if found.images[i]
    ]


def _of_configurations(group: Group, name: str) -> dict[str, Calibration]:
    """Returns the calibration of each configuration on a set, that of its seeds together, by its label."""
    result = {}
    for configuration in group.configurations:
        seeds = [run.sets[name].calibration for run in configuration.runs if name in run.sets]
        known = [found for found in seeds if found is not None]
        if known:
            result[configuration.label] = reduce(add, known)
    return result


def diagram(group: Group, name: str, slug: str) -> Figure | None:
    """Draws the reliability diagram of a set, a line per configuration; None without confidences."""
    every = _of_configurations(group, name)
    shown = dict(list(every.items())[:_MOST_LINES])
    if not shown:
        return None
    lines = [line for line in _bins(group, name) if line[0] in shown]
    errors = {c.label: _mean(c, name, _error)[0] for c in group.configurations}

    def draw(canvas: Canvas, theme: Theme) -> None:
        above, below = canvas.subplots(2, sharex=True, height_ratios=(4, 1))
        above.plot((0, 1), (0, 1), color=theme.faint, linestyle=":", linewidth=1, label="calibrated")
        for label, (color, style) in zip(shown, line_styles(theme, len(shown)), strict=True):
            own = [line for line in lines if line[0] == label]
            confidence, images = [line[4] for line in own], [line[3] for line in own]
            above.plot(
                confidence,
                [line[5] for line in own],
                color=color,
                linestyle=style,
                marker="o",
                markersize=3,
                label=f"{short_name(label)} (ECE {errors[label]:.2f}%)",
            )
            share = [count / sum(images) for count in images]
            below.plot(confidence, share, color=color, linestyle=style, marker="o", markersize=2)
        above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        below.set(xlabel="confidence", ylabel="images", ylim=(0, None))
        below.yaxis.set_major_formatter(lambda share, position: f"{100 * share:.0f}%")
        legend_below(canvas, *above.get_legend_handles_labels())

    which = f", the first {len(shown)} of {len(every)} configurations" if len(shown) < len(every) else ""
    return Figure(
        slug,
        f"Reliability on {name}{which}. Below: the share of the images in each bin",
        f"Reliability diagram on {name}: accuracy against mean confidence in bins of confidence, of "
        f"{', '.join(shown)}; below the diagonal a network claims too much.",
        draw,
        Points(_BIN_COLUMNS, tuple(lines)),
        (4.2, 4.4),
    )
