"""Draws the figures of runs: accuracy against accuracy, cost, epochs and qualities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from qrdali.errors import printable
from qrdali.reduction.names import REDUCING
from qrdali.report.figures import MARKERS, Figure, Points, Theme, legend_below, line_styles, short_name
from qrdali.report.groups import Configuration, Group
from qrdali.report.read import Run

_FEW = 16  # points that have room for a word

Spread = tuple[float, float | None]  # mean, and standard deviation over seeds


def reduced_sets(group: Group) -> tuple[str, ...]:
    """Returns the sets beside the splits that every run with rows of test has rows of, of the same images."""
    runs = [run for run in group.runs if "test" in run.sets]
    return tuple(
        name
        for name in group.sets
        if name.partition("-")[0] not in ("val", "train")
        and name != "test"
        and all(name in run.sets for run in runs)
        and len({run.sets[name].digest for run in runs}) == 1
    )


def _as_rows(x: str, y: str, points: Sequence[tuple[Configuration, Spread, Spread]]) -> Points:
    """Returns configurations with their two figures as rows. x, y: what these are."""
    columns = ("configuration", x, f"{x} sd", y, f"{y} sd")
    return Points(columns, tuple((c.label, *of_x, *of_y) for c, of_x, of_y in points))


def _points(axes: Axes, theme: Theme, points: Sequence[tuple[Configuration, Spread, Spread]]) -> None:
    for configuration, (x, x_sd), (y, y_sd) in points:
        color = theme.color(configuration.reduction)
        axes.errorbar(x, y, xerr=x_sd, yerr=y_sd, color=color, linestyle="none", elinewidth=1, alpha=0.45)
        axes.plot(
            x,
            y,
            color=color,
            marker=_marker(configuration),
            linestyle="none",
            markersize=12 if configuration.is_baseline else 7,
            markerfacecolor=theme.paper if configuration.sequence == "paired-rounds" else color,
        )
    if len(points) > _FEW:
        return
    # Not by colour alone; a word stands on the side that has more room.
    middle = sum(axes.get_xlim()) / 2
    for configuration, (x, _), (y, _) in points:
        left = x > middle
        axes.annotate(
            _word(configuration),
            (x, y),
            (-5 if left else 5, 4),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=7,
            color=theme.faint,
        )


def _word(configuration: Configuration) -> str:
    """Returns what tells a configuration from others of its marker: its reduction, or a control's traits."""
    if configuration.reduction != "–":
        return configuration.reduction
    if configuration.is_baseline or not configuration.method.startswith("baseline "):
        return ""
    return short_name(configuration.method.removeprefix("baseline "))


# Controls that are baselines, by their markers.
_CONTROLS = {"d": "baseline matched", "p": "baseline augmented"}


def _marker(configuration: Configuration) -> str:
    """Returns the marker of a configuration's method."""
    first = configuration.method.split(" ")[0]
    if first == "baseline" and not configuration.is_baseline:
        return "d" if configuration.runs[0].settings.match_steps else "p"
    return {
        "shared": "P",
        "baseline": "*",
        "fixed": "o",
        "linear": "s",
        "adaptive": "^",
        "random": "D",
        "sham": "X",
    }.get(first, "o")


def _keys(canvas: Canvas, theme: Theme, configurations: Sequence[Configuration]) -> None:
    """Adds a legend: markers by method, colours by reduction, open markers for paired rounds."""
    methods = {_CONTROLS.get(_marker(c), c.method.split(" ")[0]): _marker(c) for c in configurations}
    reductions = dict.fromkeys(c.reduction for c in configurations if c.reduction != "–")
    handles = [
        Line2D([], [], color=theme.faint, marker=marker, linestyle="none") for marker in methods.values()
    ]
    handles += [Line2D([], [], color=theme.color(r), marker="o", linestyle="none") for r in reductions]
    labels = [*methods, *reductions]
    if any(c.sequence == "paired-rounds" for c in configurations):
        handles.append(
            Line2D([], [], color=theme.faint, marker="o", markerfacecolor="none", linestyle="none")
        )
        labels.append("open: paired-rounds")
    legend_below(canvas, handles, labels)


def joint(group: Group, slug: str) -> Figure | None:
    """Plots accuracy on full test images against mean accuracy on the reduced sets; None where no run has
    both.
    """
    names = reduced_sets(group)

    def reduced(run: Run) -> float | None:
        accuracies = [run.accuracy[name] for name in names if name in run.accuracy]
        return sum(accuracies) / len(accuracies) if accuracies else None

    points: list[tuple[Configuration, Spread, Spread]] = []
    for c in group.configurations:
        (x, x_sd), (y, y_sd) = c.mean(lambda run: run.accuracy.get("test")), c.mean(reduced)
        if x is not None and y is not None:
            points.append((c, (x, x_sd), (y, y_sd)))
    if not points:
        return None

    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        base = next((p for p in points if p[0].is_baseline), None)
        if base:
            axes.axvline(base[1][0], color=theme.faint, linewidth=1, linestyle=":")
            axes.axhline(base[2][0], color=theme.faint, linewidth=1, linestyle=":")
        _points(axes, theme, points)
        axes.set(
            xlabel="accuracy on test, full quality",
            ylabel=f"mean accuracy on {len(names)} reduced set{'s' * (len(names) > 1)}",
        )
        _keys(canvas, theme, [p[0] for p in points])

    return Figure(
        slug,
        "Full against reduced images",
        f"{len(points)} configurations of {group.network}: accuracy on full test images across, mean "
        "accuracy on "
        f"{', '.join(names)} up; dotted lines at the baseline.",
        draw,
        _as_rows("test", "mean of the reduced sets", points),
        (4.2, 3.9),
    )


def cost(group: Group, unit: str, slug: str) -> Figure | None:
    """Plots accuracy on test against what it took; None without values.

    unit: "optimizer steps" or "seconds".
    """
    name = "test" if any("test" in run.sets for run in group.runs) else "val"

    def spent(run: Run) -> float | None:
        return run.last.total_seconds if unit == "seconds" else run.last.optimizer_steps

    points: list[tuple[Configuration, Spread, Spread]] = []
    for c in (c for c in group.configurations if c.method != "shared"):
        (x, x_sd), (y, y_sd) = c.mean(spent), c.mean(lambda run: run.accuracy.get(name))
        if x and y is not None:
            points.append((c, (x, x_sd), (y, y_sd)))
    if not points:
        return None

    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        _points(axes, theme, points)
        axes.set(
            xlabel="optimizer steps" if unit != "seconds" else "seconds of training and probes",
            ylabel=f"accuracy on {name}",
            xlim=(0, None),
        )
        _keys(canvas, theme, [p[0] for p in points])

    return Figure(
        slug,
        f"Accuracy against {unit}",
        f"Accuracy on {name} of {len(points)} configurations of {group.network} against "
        f"{unit}, without the shared run's.",
        draw,
        _as_rows(unit, name, points),
        (4.2, 3.9),
    )


def evolution(group: Group, configuration: Configuration, slug: str) -> Figure:
    """Plots validation accuracy per epoch: C epochs filled, R epochs open, stages shaded, the baseline as a
    line.

    All of a group but shared have the same range of accuracy, so that they can be compared.
    """
    shared = configuration.runs[0].settings.method == "shared"
    every = [
        e.val_accuracy
        for run in group.runs
        if (run.settings.method == "shared") == shared
        for e in run.epochs
    ]
    room = 0.08 * max(max(every) - min(every), 0.02)

    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        color = theme.color(configuration.reduction)
        baselines = filter(None, map(group.baseline, configuration.runs))
        best = [b.trained.val_accuracy for b in baselines if b.trained.val_accuracy is not None]
        if best and not shared:
            axes.axhline(
                float(np.mean(best)), color=theme.faint, linestyle="--", linewidth=1, label="baseline's best"
            )
        for run in configuration.runs:
            axes.plot(
                [e.epoch for e in run.epochs],
                [e.val_accuracy for e in run.epochs],
                color=color,
                linewidth=1,
                alpha=1 if len(configuration.runs) == 1 else 0.6,
            )
            for phase, (name, marker, face) in {
                "start": ("start", "s", theme.paper),
                "full": ("after C", "o", color),
                "reduced": ("after R", "o", theme.paper),
            }.items():
                points = [(e.epoch, e.val_accuracy) for e in run.epochs if e.phase == phase]
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        color=color,
                        marker=marker,
                        markersize=5 if len(run.epochs) <= 60 else 3,
                        markerfacecolor=face,
                        linestyle="none",
                        label=name if run is configuration.runs[0] else None,
                    )
        axes.set(
            xlabel="epoch", ylabel="validation accuracy", ylim=(min(every) - room, max(every) + 2 * room)
        )
        if len(configuration.runs) == 1:
            _stages(axes, theme, configuration.runs[0])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(canvas, *axes.get_legend_handles_labels())

    return Figure(
        slug,
        f"Validation accuracy of {configuration.label}",
        f"Validation accuracy of {configuration.label} after each of its "
        f"{max(run.last.epoch for run in configuration.runs)} epochs, R epochs open, C epochs filled"
        f"{', stages shaded' if len(configuration.runs) == 1 else ''}.",
        draw,
        Points(
            ("run", "epoch", "phase", "stage", "val_accuracy"),
            tuple(
                (r.name, e.epoch, e.phase, e.stage, e.val_accuracy)
                for r in configuration.runs
                for e in r.epochs
            ),
        ),
        (4.2, 3.2),
    )


def _stages(axes: Axes, theme: Theme, run: Run) -> None:
    """Shades every second stage of a run and writes the stages' numbers where there is room."""
    numbers = sorted({e.stage for e in run.epochs if e.epoch})
    for stage in numbers:
        epochs = [e.epoch for e in run.epochs if e.epoch and e.stage == stage]
        if stage % 2 == 0:
            axes.axvspan(min(epochs) - 0.5, max(epochs) + 0.5, color=theme.grid, linewidth=0, zorder=0)
        if 1 < len(numbers) <= 12:
            axes.annotate(
                f"stage {stage}" if stage == numbers[0] else str(stage),
                ((min(epochs) + max(epochs)) / 2, 1),
                (0, -10),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=theme.faint,
            )


def tracked(group: Group, name: str, slug: str) -> Figure | None:
    """Plots accuracy on one set per epoch of the runs that measured it; None without such runs.

    Where the set's name holds a reduction, only runs of that reduction are shown.
    """
    runs = [run for run in group.runs if sum(e.tracked.get(name) is not None for e in run.epochs) > 1]
    same_reduction = [
        run
        for run in runs
        if run.settings.reduction == "none" or f"-{run.settings.reduction}-" in f"-{name}-"
    ]
    if any(run.settings.reduction != "none" for run in same_reduction):
        runs = same_reduction
    runs = [run for run in runs if run.settings.method != "shared"]
    if not runs:
        return None
    shown = runs[:16]

    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        for run, (color, style) in zip(shown, line_styles(theme, len(shown)), strict=True):
            points = [(e.epoch, e.tracked[name]) for e in run.epochs if e.tracked.get(name) is not None]
            base = group.is_baseline(run)
            axes.plot(
                *zip(*points, strict=True),
                color=theme.faint if base else color,
                linewidth=1.4,
                marker=".",
                linestyle="--" if base else style,
                label=short_name(run.name),
            )
        axes.set(xlabel="epoch", ylabel=f"accuracy on {printable(name)}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(canvas, *axes.get_legend_handles_labels())

    which = f"the first {len(shown)} of {len(runs)} runs" if len(shown) < len(runs) else f"{len(runs)} runs"
    return Figure(
        slug,
        f"On {name}, epoch by epoch: {which}",
        f"Accuracy on {name} after each epoch of {which}.",
        draw,
        Points(
            ("run", "epoch", "accuracy"),
            tuple((run.name, e.epoch, e.tracked.get(name)) for run in shown for e in run.epochs),
        ),
        (4.2, 4.2),
    )


def quality_curve(
    curves: dict[str, dict[str, Any]], chance: float, slug: str, title: str, *, headed: bool = False
) -> Figure:
    """Plots accuracy as a function of quality, a line per reduction, as `evaluate --curve` measures it.

    Qualities stand on a logarithmic axis where a curve goes below the grid: there they are halved.

    headed: whether the title stands in the picture.
    """
    has_tail = any(curve.get("tail") for curve in curves.values())
    area = "log area" if has_tail else "area"

    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        if has_tail:
            axes.set_xscale("log")
        for reduction in (r for r in REDUCING if r in curves):
            curve = curves[reduction]
            axes.plot(
                curve["quality"],
                curve["accuracy"],
                color=theme.color(reduction),
                marker=MARKERS[reduction],
                markersize=4,
                label=f"{reduction} ({area} {curve[area.replace(' ', '_')]:.3f})",
            )
        axes.axhline(chance, color=theme.faint, linestyle=":", linewidth=1)
        axes.annotate(
            "chance", (1, chance), color=theme.faint, fontsize=8, xytext=(0, 3), textcoords="offset points"
        )
        axes.set(xlabel="quality", ylabel="accuracy", ylim=(0, 1.02), title=title if headed else "")
        axes.invert_xaxis()
        legend_below(canvas, *axes.get_legend_handles_labels())

    rows = tuple(
        (reduction, quality, accuracy)
        for reduction, curve in curves.items()
        for quality, accuracy in zip(curve["quality"], curve["accuracy"], strict=True)
    )
    points = Points(("reduction", "quality", "accuracy"), rows)
    return Figure(slug, title, f"Accuracy at each quality, {title}.", draw, points)
