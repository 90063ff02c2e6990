"""Renders figures as SVG for a light and a dark page, and as PNG.

Nothing in the files varies from run to run: no dates, no random ids.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter

_DPI = 172  # of PNGs
_WIDE = 6.0  # inches of a figure that takes the whole width of the page
_SHORT = 34  # characters of a name on an axis

COLORS = {
    "color": "#c2410c",
    "crop": "#1d4ed8",
    "resolution": "#047857",
    "combination": "#7e22ce",
    "–": "#525252",
    "none": "#a16207",
    "gray": "#525252",
    "contrast": "#b45309",
    "blur": "#0891b2",
    "noise": "#be185d",
    "jpeg": "#4d7c0f",
}
MARKERS = {
    "color": "o",
    "crop": "s",
    "resolution": "^",
    "combination": "D",
    "–": "*",
    "none": "X",
    "gray": "v",
    "contrast": "<",
    "blur": ">",
    "noise": "P",
    "jpeg": "h",
}
_BRIGHT = {
    "color": "#fb923c",
    "crop": "#60a5fa",
    "resolution": "#34d399",
    "combination": "#c084fc",
    "–": "#d4d4d4",
    "none": "#facc15",
    "gray": "#d4d4d4",
    "contrast": "#fbbf24",
    "blur": "#22d3ee",
    "noise": "#f472b6",
    "jpeg": "#a3e635",
}
_LINES = ("#1d4ed8", "#c2410c", "#047857", "#7e22ce", "#0891b2", "#be185d", "#4d7c0f", "#525252")
_BRIGHT_LINES = ("#60a5fa", "#fb923c", "#34d399", "#c084fc", "#22d3ee", "#f472b6", "#a3e635", "#d4d4d4")


@dataclass(frozen=True)
class Theme:
    """Holds the colours of a page. colors: by reduction.

    lines: in turn, where reductions do not tell curves apart.
    """

    ink: str
    faint: str
    grid: str
    paper: str
    colors: dict[str, str]
    lines: tuple[str, ...]

    def color(self, reduction: str) -> str:
        """Returns a reduction's colour."""
        return self.colors.get(reduction, self.ink)

    def turn(self, count: int) -> list[str]:
        """Returns `count` colours, over again from the first where they run out."""
        return list(islice(cycle(self.lines), count))


LIGHT = Theme("#1c1917", "#78716c", "#e7e5e4", "#ffffff", COLORS, _LINES)
DARK = Theme("#f5f5f4", "#a8a29e", "#44403c", "#1c1917", _BRIGHT, _BRIGHT_LINES)


@dataclass(frozen=True)
class Points:
    """Holds what a figure shows as rows of columns, which report.json has with full precision."""

    columns: tuple[str, ...]
    rows: tuple[tuple[float | str | None, ...], ...]


@dataclass(frozen=True)
class Figure:
    """Describes a figure that can be drawn in any theme.

    slug: names its files. alt: what it shows, for those who cannot see it. size: inches. draw: puts it on a
    canvas in a theme. points: the rows that it was drawn from.
    """

    slug: str
    title: str
    alt: str
    draw: Callable[[Canvas, Theme], None]
    points: Points
    size: tuple[float, float] = (4.2, 3.4)

    @property
    def is_wide(self) -> bool:
        return self.size[0] > _WIDE

    def render(self, kinds: Sequence[str], theme: Theme = LIGHT) -> list[bytes]:
        """Returns the contents of files of these kinds, "svg" or "png", of one drawing."""
        settings = {
            # Names are shown as they are: a run called $\\frac$ is no formula. Text stays text.
            "text.parse_math": False,
            "svg.hashsalt": "qrdali",
            "svg.fonttype": "none",
            "font.size": 10,
            "axes.titlesize": 10,
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "axes.edgecolor": theme.faint,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
            "axes.facecolor": theme.paper,
            "figure.facecolor": theme.paper,
            "grid.color": theme.grid,
            "axes.grid": True,
            "axes.axisbelow": True,
            "legend.frameon": False,
            "legend.fontsize": 9,
        }
        with rc_context(settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            canvas = Canvas(figsize=self.size, layout="constrained")
            self.draw(canvas, theme)
            # The layout takes as long as everything else: it is made once, not again for each file.
            canvas.draw_without_rendering()
            canvas.set_layout_engine("none")
            return [_saved(canvas, kind) for kind in kinds]


def _saved(canvas: Canvas, kind: str) -> bytes:
    out = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    canvas.savefig(out, format=kind, dpi=_DPI, metadata=metadata)
    return out.getvalue()


def legend_below(canvas: Canvas, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Puts a legend under the plot, with as many columns as its labels leave room for."""
    longest = max(map(len, labels), default=1)
    columns = max(1, min(4, int(canvas.get_figwidth() * 13 // (longest + 6))))
    canvas.legend(
        handles,
        [label if len(label) <= 60 else label[:59] + "…" for label in labels],
        loc="outside lower center",
        ncols=columns,
    )


def short_name(text: str) -> str:
    """Returns a name short enough for an axis or a legend."""
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def log_axis(axes: Axes) -> None:
    """Makes the x axis logarithmic with plain numbers, because formulas are switched off."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / max(low, 1e-12) > 30 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda x, position: f"{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def line_styles(theme: Theme, count: int) -> list[tuple[str, str]]:
    """Returns (colour, style) of lines, of which no two of the first 32 look alike."""
    return [
        (color, ("-", "--", "-.", ":")[i // len(theme.lines) % 4])
        for i, color in enumerate(theme.turn(count))
    ]
