"""Draws the plots of docs/performance.md, as text of SVG files that are the same for the same figures."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

OURS, LIMIT = "qrdali", "decode alone"
TITLES = {
    "threads": "threads",
    "image_size": "image size in pixels",
    "input_size": "input size in pixels",
    "batch_size": "batch size",
    "images": "number of images",
}
BLUE, GRAY = "#1f6fb4", "#888888"
# A page may be dark or light: the plots bring a white background of their own.
STYLE = {
    "svg.hashsalt": "performance",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}

Row = dict[str, Any]


def svg_text(figure: Any) -> str:
    """Returns a figure as SVG without a date and without its maker's version, and closes it."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _bounds(rows: list[Row]) -> list[list[float]]:
    """Returns how far the minimum and the maximum are from the median, as error bars want it."""
    return [
        [row["median"] - row["min"] for row in rows],
        [row["max"] - row["median"] for row in rows],
    ]


def peers(data: Row) -> str:
    """Returns bars of the loaders' images per second, the fastest first, with minimum and maximum."""
    speeds = {
        name: row
        for name, row in data["images_per_second"].items()
        if name in (OURS, LIMIT) or name in data["speed_ratio"]
    }
    names = sorted(speeds, key=lambda name: speeds[name]["median"])
    rows = [speeds[name] for name in names]
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7, 0.34 * len(names) + 0.8), layout="constrained")
        colors = [BLUE if name == OURS else GRAY for name in names]
        axes.barh(names, [row["median"] for row in rows], xerr=_bounds(rows), color=colors, ecolor="#333333")
        axes.set_xlabel(
            f"images per second, {data['threads']} threads, {data['input_size']} pixels "
            "(median, minimum and maximum over rounds)"
        )
        return svg_text(figure)


def curves(data: Row) -> str:
    """Returns a panel for each curve, of the loader and of decoding alone.

    Threads are against images per second; all else against images per second of processor time, which other
    work on the machine changes little.
    """
    with matplotlib.rc_context(STYLE):
        figure, grid = pyplot.subplots(2, 3, figsize=(9, 5.2), layout="constrained")
        panels = list(grid.flat)
        for axes, (name, points) in zip(panels, data["curves"].items(), strict=False):
            _curve(axes, name, points)
        legend = panels[len(data["curves"])]
        legend.axis("off")
        legend.legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
        return svg_text(figure)


def _speed(name: str, point: Row, loader: str) -> Row:
    """Returns the median, minimum and maximum that a panel shows of a loader."""
    if name == "threads":
        return point["images_per_second"][loader]  # type: ignore[no-any-return]
    seconds = point["cpu_seconds_per_1000_images"][loader]
    return {
        kind: 1000 / seconds[other] for kind, other in (("median", "median"), ("min", "max"), ("max", "min"))
    }


def _curve(axes: Axes, name: str, points: dict[str, Row]) -> None:
    places = range(len(points))
    for loader, label, color in ((LIMIT, "decoding alone", GRAY), (OURS, "qrdali", BLUE)):
        rows = [_speed(name, point, loader) for point in points.values()]
        axes.errorbar(
            places,
            [row["median"] for row in rows],
            yerr=_bounds(rows),
            color=color,
            marker="o",
            markersize=4,
            capsize=2,
            label=label,
        )
    axes.set_xticks(places, [text.replace("x", "×") for text in points], fontsize=7)
    axes.set_xlabel(TITLES[name])
    axes.set_ylabel("images per second" if name == "threads" else "images per CPU second")
    if name == "image_size":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
