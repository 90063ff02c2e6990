"""Draws the plots of docs/evidence.md, as text of SVG files that are the same for the same figures."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib import pyplot
from performance_plots import BLUE, GRAY, STYLE, svg_text

PANELS = {"full": "full quality", "reduced": "images of the run's own reduction at .5"}
AGAINST = {"sham": (BLUE, "o", -0.13), "random": (GRAY, "s", 0.13)}

Row = dict[str, Any]


def differences(data: Row) -> str:
    """Returns the methods' differences from sham and random in accuracy, with their intervals, in points.

    data: what photographs/evidence.py writes. The left panel is of full quality, the right one of images
    reduced as the run's were.
    """
    families = data["differences"]
    runs = [row["run"] for row in families["full against sham"]][::-1]
    places = {run: place for place, run in enumerate(runs)}
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "evidence"}):
        figure, panels = pyplot.subplots(
            1, 2, figsize=(9, 0.42 * len(runs) + 1.3), layout="constrained", sharey=True
        )
        for axes, (kind, title) in zip(panels, PANELS.items(), strict=True):
            axes.axvline(0, color="#333333", linewidth=0.8)
            for control, (color, marker, offset) in AGAINST.items():
                rows = [row for row in families.get(f"{kind} against {control}", ()) if row["run"] in places]
                middles = [100 * row["difference"] for row in rows]
                spans = [
                    [100 * (row["difference"] - row["interval"][0]) for row in rows],
                    [100 * (row["interval"][1] - row["difference"]) for row in rows],
                ]
                axes.errorbar(
                    middles,
                    [places[row["run"]] + offset for row in rows],
                    xerr=spans,
                    fmt=marker,
                    color=color,
                    markersize=4,
                    label=f"minus {control}",
                )
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("points of accuracy, with 95% interval")
        panels[0].set_yticks(list(places.values()), list(places))
        panels[0].set_ylim(-0.5, len(runs) - 0.5)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2)
        return svg_text(figure)
