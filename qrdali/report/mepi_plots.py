"""Draws the figures of MEPI sets: the distribution of quotients, and how many images are correct with little
entropy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure as Canvas

from qrdali.report.figures import Figure, Points, Theme, legend_below, line_styles, log_axis, short_name
from qrdali.report.quotients import by_reduction, share_curve, thinned, values
from qrdali.report.read_mepis import Mepis


def figures(sets: list[Mepis], number: str) -> list[Figure]:
    """Returns the figures of MEPI sets that can be compared."""
    searched = list(by_reduction(sets))
    with_mepis = [
        (reduction, [mepis for mepis in shown if len(values(mepis, reduction))])
        for reduction, shown in searched
    ]
    return [
        *(boxes(shown, r, f"quotients-{number}-{r}") for r, shown in with_mepis if shown),
        *(share(shown, r, f"share-{number}-{r}") for r, shown in searched),
    ]


def boxes(sets: list[Mepis], reduction: str, slug: str) -> Figure:
    """Plots the distribution of quotients per set, with the mean."""

    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        ink = {"color": theme.ink}
        drawn = axes.boxplot(
            [values(mepis, reduction) for mepis in sets],
            orientation="horizontal",
            showmeans=True,
            patch_artist=True,
            widths=0.6,
            whis=(5, 95),
            showfliers=False,
            boxprops={"edgecolor": theme.ink},
            whiskerprops=ink,
            capprops=ink,
            medianprops=ink,
            meanprops={
                "marker": "D",
                "markerfacecolor": theme.paper,
                "markeredgecolor": theme.ink,
                "markersize": 6,
            },
        )
        for box in drawn["boxes"]:
            box.set_facecolor(theme.color(reduction))
        axes.set_yticks(range(1, len(sets) + 1), [short_name(mepis.name) for mepis in sets])
        axes.invert_yaxis()
        axes.set(xlabel=f"entropy quotient of {reduction}")
        log_axis(axes)

    return Figure(
        slug,
        f"Entropy quotients: {reduction}. Box: quartiles and median, whiskers: 5 to 95%, diamond: mean",
        f"Box plots of the entropy quotients of {reduction} for {', '.join(mepis.name for mepis in sets)}.",
        draw,
        Points(
            ("set", "images", "mean", "5%", "25%", "50%", "75%", "95%"),
            tuple(_box(mepis.name, values(mepis, reduction)) for mepis in sets),
        ),
        (4.2, 1.2 + 0.45 * len(sets)),
    )


def _box(name: str, quotients: npt.NDArray[np.float64]) -> tuple[float | str, ...]:
    """Returns what a box shows of a set: how many quotients, their mean and five percentiles."""
    percentiles = np.percentile(quotients, (5, 25, 50, 75, 95))
    return name, len(quotients), float(quotients.mean()), *percentiles.tolist()


def share(sets: list[Mepis], reduction: str, slug: str) -> Figure:
    """Plots the share of all images classified correctly with at most x of their entropy.

    A set without any MEPI is a line at 0.
    """

    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.add_subplot()
        for mepis, (color, style) in zip(sets, line_styles(theme, len(sets)), strict=True):
            x, y = thinned(share_curve(mepis, reduction))
            x, y = (x[1:], y[1:]) if len(x) > 1 else (np.array([0.01]), y)
            axes.step(
                [*x, max(1.0, float(x[-1]))],
                [*y, y[-1]],
                where="post",
                color=color,
                linestyle=style,
                label=short_name(mepis.name),
            )
        axes.set(
            xlabel=f"entropy quotient of {reduction}, at most",
            ylabel="share of images classified correctly",
            ylim=(-0.01, 1.02),
        )
        log_axis(axes)
        legend_below(canvas, *axes.get_legend_handles_labels())

    return Figure(
        slug,
        f"Images correct with little entropy: {reduction}",
        "For each set, the share of all images that are classified "
        f"correctly with at most a quotient of {reduction}.",
        draw,
        Points(
            ("set", "quotient at most", "share of images"),
            tuple(
                (mepis.name, float(x), float(y))
                for mepis in sets
                for x, y in zip(*thinned(share_curve(mepis, reduction)), strict=True)
            ),
        ),
        (4.2, 3.9),
    )
