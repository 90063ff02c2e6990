"""Draws the SVG files that docs/explanation/method.md shows: `python docs/images/drawings.py`.

What they show is computed: epochs by qrdali's schedule from the accuracies in SEQUENCES, pictures by
qrdali.reduce, and steps of photographs from benchmarks/results/one-image-cpu.json. Text is text, and each
drawing has a background of its own, so that it can be read on a light and on a dark page.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

import qrdali
from qrdali.schedule.epoch_schedule import (
    ScheduleRule,
    begin_stage,
    judges_unit,
    next_phase,
    start,
    update,
)

HERE = Path(__file__).resolve().parent
MEASURED = HERE.parents[1] / "benchmarks" / "results" / "one-image-cpu.json"
STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2328 }
  .small { font-size: 12px } .bold { font-weight: 600 } .soft { fill: #59636e } .mid { text-anchor: middle }
  .end { text-anchor: end } .good { fill: #1a7f37 } .bad { fill: #cf222e }
  .R { fill: #b45309 } .C { fill: #1d4ed8 } text.letter { fill: #ffffff; font-weight: 600 }
  .line { stroke: #59636e; fill: none; stroke-width: 1.5 } .faint { stroke: #d0d7de; fill: none }
  .best { stroke: #1a7f37; fill: none; stroke-width: 3 }
  .back { stroke: #1a7f37; fill: none; stroke-width: 1.5 }
  .wrong { stroke: #cf222e; fill: none; stroke-width: 2 }
  .color { fill: #8250df } .crop { fill: #b45309 } .resolution { fill: #0a7ea4 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #161b22; stroke: #3d444d } text { fill: #f0f6fc } .soft { fill: #9198a1 }
    .good { fill: #3fb950 } .bad { fill: #f85149 } .line { stroke: #9198a1 } .faint { stroke: #3d444d }
    .best, .back { stroke: #3fb950 } .wrong { stroke: #f85149 }
    .color { fill: #ab7df8 } .crop { fill: #db8a2c } .resolution { fill: #39b3d7 }
  }
"""


class Drawing:
    """Collects the elements of one SVG file of `width` by `height` pixels; `title` is read to the blind."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path d="M0 0L8 4L0 8Z" fill="#1a7f37"/></marker></defs>\n'
        )
        self.parts = list[str]()
        self.rect(0.5, 0.5, width - 1, height - 1, "card", round_by=8)

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """Writes words with their baseline at y; `kind` holds classes of STYLE."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>')

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str = "", round_by: float = 0
    ) -> None:
        """Draws a rectangle; a kind that begins with # is its colour."""
        look = f'fill="{kind}"' if kind.startswith("#") else f'class="{kind}"'
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round_by:g}" {look}/>'
        )

    def path(self, d: str, kind: str = "line", more: str = "") -> None:
        """Draws a path."""
        self.parts.append(f'<path d="{d}" class="{kind}" {more}/>')

    def pixels(self, x: float, y: float, image: Any, side: float) -> None:
        """Draws each pixel of an image, uint8 [H, W, 3], as a square."""
        for row, line in enumerate(image.tolist()):
            for column, (red, green, blue) in enumerate(line):
                self.rect(x + column * side, y + row * side, side, side, f"#{red:02x}{green:02x}{blue:02x}")

    def picture(self, x: float, y: float, width: float, height: float, data: str) -> None:
        """Draws an embedded picture, its sides at most these, in their middle."""
        self.parts.append(f'<image x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" href="{data}"/>')

    def __str__(self) -> str:
        return self.head + "\n".join(self.parts) + "\n</svg>\n"


def quality_drawing() -> Drawing:
    """Shows what each reduction keeps of a picture of 16 × 12 pixels at quality 0.25."""
    drawing = Drawing(800, 226, "A picture of 16 by 12 pixels at quality 0.25 of each reduction")
    image = landscape()
    rows = [("original", {}), *((name, {name: 0.25}) for name in ("crop", "resolution", "color"))]
    rows.append(("combination", {"crop": 0.25, "resolution": 0.25, "color": 0.25}))
    for number, (name, qualities) in enumerate(rows):
        x, y = 20 + 156 * number, 44
        made = qrdali.reduce(image, **qualities)
        bits = round(8 * qualities.get("color", 1)) * 3
        # Fewer pixels of a whole scene are shown as large ones, a window of it at its place.
        side = 8 * (2 if "resolution" in qualities else 1)
        inset = (32, 24) if "crop" in qualities else (0, 0)
        drawing.text(x + 68, 30, name, "mid bold")
        drawing.pixels(x + 4 + inset[0], y + inset[1], made, side)
        drawing.rect(x + 4, y, 128, 96, "faint")
        height, width = made.shape[:2]
        drawing.text(x + 68, 164, f"{width} × {height} pixels", "mid small")
        drawing.text(x + 68, 182, f"of {bits} bits each", "mid small")
        drawing.text(x + 68, 206, f"{width * height * bits:,} bits", "mid bold")
    return drawing


def landscape() -> Any:
    """Returns a picture of a sky, a sun and a hill, uint8 [12, 16, 3]."""
    rows, columns = np.mgrid[0:12, 0:16]
    image = np.stack([70 + 9 * rows, 130 + 8 * rows, 235 - 5 * rows], axis=-1)
    image[(rows - 3) ** 2 + (columns - 10) ** 2 <= 5] = (250, 205, 60)
    hill = rows >= 9 - 3 * np.sin(columns / 4)
    image[hill] = np.stack([40 + 4 * columns, 150 - 6 * rows, 60 + 2 * columns], axis=-1)[hill]
    return image.astype(np.uint8)


SEQUENCES = (
    ("Baseline", "full quality only", "C", (0.3, 0.4, 0.4, 0.4, 0.4)),
    ("Paired epochs", "RC | RC | …", "RC", (0.5, 0.6, 0.4, 0.6, 0.5, 0.6, 0.7, 0.6)),
    (
        "Paired rounds",
        "RRR… | CCC…",
        "paired-rounds",
        (0.5, 0.55, 0.6, 0.6, 0.59, 0.58, 0.61, 0.62, 0.63, 0.64, 0.64, 0.63, 0.6),
    ),
)


def sequences_drawing() -> Drawing:
    """Shows one stage of each sequence with patience 3, judged by the accuracies in SEQUENCES."""
    drawing = Drawing(800, 462, "The epochs of one stage: baseline, paired epochs and paired rounds")
    legend(drawing, 20, 18)
    for number, (name, shape, sequence, accuracies) in enumerate(SEQUENCES):
        y = 72 + 132 * number
        drawing.text(20, y + 16, name, "bold")
        drawing.text(20, y + 35, shape, "small soft")
        drawing.text(142, y + 56, "accuracy", "small soft end")
        drawing.text(142, y + 73, "without a gain", "small soft end")
        draw_stage(drawing, y, sequence, accuracies)
    return drawing


def legend(drawing: Drawing, x: float, y: float) -> None:
    """Explains the letters."""
    for phase, words, left in (("C", "epoch at full quality", 0), ("R", "epoch on reduced images", 200)):
        drawing.rect(x + left, y, 22, 22, phase, round_by=3)
        drawing.text(x + left + 11, y + 16, phase, "mid letter")
        drawing.text(x + left + 30, y + 16, words)


def draw_stage(drawing: Drawing, y: float, sequence: str, accuracies: tuple[float, ...]) -> None:
    """Draws the epochs of a stage as boxes, and arrows from where patience runs out to what is restored."""
    rule = ScheduleRule(sequence, 3, 300)
    state = begin_stage(rule, start(0.0))
    for epoch, accuracy in enumerate(accuracies, start=1):
        before, x = state, box_place(epoch, sequence)
        phase = str(next_phase(rule, before))
        state, event = update(rule, before, accuracy)
        judged = judges_unit(rule, before)
        drawing.rect(x, y, 38, 38, phase, round_by=4)
        drawing.text(x + 19, y + 24, phase, "mid letter")
        drawing.text(x + 19, y + 56, f"{accuracy:.2f}", "mid small" + " soft" * (not judged))
        if judged:
            count = "" if event.is_best_of_stage else str(before.wait + 1)
            drawing.text(x + 19, y + 73, count or "better", "mid small" + " good" * (not count))
        if event.stage_end_reason:
            there = box_place(before.best_epoch, sequence)
            drawing.rect(there - 2, y - 2, 42, 42, "best", round_by=5)
            drawing.path(f"M{x + 19:g} {y + 78:g}v9H{there + 19:g}v-7", "back", 'marker-end="url(#tip)"')
            words = f"3 without a gain: back to epoch {before.best_epoch}"
            drawing.text((x + there + 38) / 2, y + 102, words, "mid small good")


def box_place(epoch: int, sequence: str) -> float:
    """Returns where the box of an epoch begins: pairs, and the two rounds, stand apart."""
    gaps = {"C": 0, "RC": (epoch - 1) // 2, "paired-rounds": int(epoch > 6)}
    return 158 + 46 * (epoch - 1) + 10 * gaps[sequence]


def stages_drawing() -> Drawing:
    """Shows a linear run of step 0.25 in both sequences, each epoch at the height of its images' quality."""
    drawing = Drawing(800, 444, "A linear run in paired rounds and in paired epochs: quality of each epoch")
    legend(drawing, 20, 18)
    rounds = [[("R", 6), ("C", 5)], [("R", 5), ("C", 4)], [("R", 4), ("C", 6)]]
    pairs = [[("R", 1), ("C", 1)] * count for count in (6, 5, 4)]
    for top, name, stages in ((62, "Paired rounds", rounds), (252, "Paired epochs", pairs)):
        draw_stages(drawing, top, name, stages)
    return drawing


def draw_stages(drawing: Drawing, top: float, name: str, stages: list[list[tuple[str, int]]]) -> None:
    """Draws the stages side by side: `stages` holds letters and how many epochs of each follow on."""
    drawing.text(20, top + 14, name, "bold")
    top += 30
    for level in range(4):
        height = top + 10 + 30 * level
        drawing.text(
            142, height + 5, ("quality " if not level else "") + f"{1 - level / 4:.2f}", "small soft end"
        )
        drawing.path(f"M150 {height:g}H780", "faint")
    x = 160.0
    for stage, parts in enumerate(stages, start=1):
        begin = x
        for phase, count in parts:
            for _ in range(count):
                y = top + 10 + (30 * stage if phase == "R" else 0)
                drawing.rect(x, y - 10, 17, 20, phase, round_by=3)
                drawing.text(x + 8.5, y + 5, phase, "mid letter small")
                x += 19
        drawing.path(f"M{begin:g} {top + 118:g}v6H{x - 2:g}v-6", "line")
        drawing.text((begin + x) / 2, top + 142, f"stage {stage}", "mid small")
        x += 12


def descent_drawing(measured: dict[str, Any]) -> Drawing:
    """Shows one descent step of a photograph: every neighbour, the network's answer, and the choice."""
    step = measured["descent"]
    drawing = Drawing(
        800, 470, "One descent step: a photograph's seven neighbours, and the one that is chosen"
    )
    drawing.text(20, 34, "the image", "bold")
    picture_box(drawing, 20, 48, step["picture"], step["size"])
    drawing.text(20, 176, f"right: {step['class'].split(',')[0]}", "small good")
    drawing.text(20, 194, f"p = {step['probability']:.3f}", "small")
    for number, neighbor in enumerate(step["neighbors"]):
        x, y = 176 + 156 * (number % 4), 34 + 212 * (number // 4)
        words = {"color": "colour", "crop": "crop"}.get(neighbor["dimension"], neighbor["dimension"])
        if neighbor["dimension"] == "crop":
            words += ", " + PLACES[number - 2]
        drawing.text(x, y, words, "bold")
        picture_box(drawing, x, y + 14, neighbor["picture"], neighbor["size"])
        verdict = "right" if neighbor["correct"] else "wrong: " + neighbor["answer"].split(",")[0]
        drawing.text(x, y + 142, verdict, "small " + ("good" if neighbor["correct"] else "bad"))
        drawing.text(x, y + 160, f"p = {neighbor['probability']:.3f}", "small")
        if number == step["chosen"]:
            drawing.rect(x - 9, y - 19, 150, 204, "best", round_by=6)
            drawing.text(x, y + 178, "highest p: taken", "small good bold")
    return drawing


PLACES = ("top left", "top right", "bottom left", "bottom right", "centre")


def picture_box(
    drawing: Drawing, x: float, y: float, data: str, size: list[int], most: tuple[int, int] = (132, 108)
) -> None:
    """Draws a picture of `size` (height, width), enlarged or not to `most` (width, height) pixels."""
    height, width = size
    scale = min(most[0] / width, most[1] / height)
    drawing.picture(x, y, width * scale, height * scale, data)


LEFT, RIGHT = 70.0, 780.0  # of the charts


def search_drawing(measured: dict[str, Any]) -> Drawing:
    """Shows the search for a photograph's minimal image: quotient and probability after each step."""
    steps = measured["search"]["steps"]
    drawing = Drawing(800, 520, "The search for a minimal image: entropy quotient and probability by step")
    across = np.linspace(LEFT, RIGHT, len(steps))
    shown = [number for number, step in enumerate(steps) if "picture" in step]
    for place, number in enumerate(shown):
        x, step = 20 + 112 * place, steps[number]
        last = number == len(steps) - 1
        minimal = number == len(steps) - 2
        drawing.text(
            x, 30, f"step {number}" + ": wrong" * last, "small bold" + " bad" * last + " good" * minimal
        )
        picture_box(drawing, x, 40, step["picture"], step["size"], (96, 80))
        drawing.text(x, 134, f"{step['quotient']:.1%} of bytes", "small")
        drawing.path(f"M{x + 40:g} 142L{across[number]:.1f} 174", "faint")
    draw_chart(drawing, 178, steps, "quotient")
    draw_chart(drawing, 334, steps, "probability")
    for place, (kind, words) in enumerate(
        (("color", "colour"), ("crop", "crop"), ("resolution", "resolution"))
    ):
        drawing.rect(LEFT + 130 * place, 492, 12, 12, kind, round_by=6)
        drawing.text(LEFT + 18 + 130 * place, 503, f"{words} reduced", "small")
    drawing.text(RIGHT, 503, "steps, from left to right", "small soft end")
    return drawing


def draw_chart(drawing: Drawing, top: float, steps: list[dict[str, Any]], figure: str) -> None:
    """Draws the quotient, on a logarithmic axis, or the probability of the class, against the steps."""
    is_log = figure == "quotient"
    lowest = -2.0 if is_log else 0.0
    marks = (1, 0.1, 0.01) if is_log else (1, 0.5, 0)

    def down(value: float) -> float:
        share = np.log10(value) / lowest if is_log else 1 - value
        return float(top + 26 + 106 * share)

    words = (
        "entropy quotient: bytes of the PNG ÷ those of the original"
        if is_log
        else ("probability that the network gives to the class")
    )
    drawing.text(LEFT, top + 12, words, "small bold")
    for mark in marks:
        drawing.path(f"M{LEFT - 6:g} {down(mark):.1f}H{RIGHT:g}", "faint")
        drawing.text(LEFT - 12, down(mark) + 4, f"{mark:g}", "small soft end")
    across = np.linspace(LEFT, RIGHT, len(steps))
    points = [f"{x:.1f} {down(step[figure]):.1f}" for x, step in zip(across, steps, strict=True)]
    drawing.path("M" + "L".join(points), "line")
    for x, step in zip(across, steps, strict=True):
        drawing.rect(x - 4, down(step[figure]) - 4, 8, 8, step["reduced"] or "soft", round_by=4)
    drawing.rect(across[-1] - 7, down(steps[-1][figure]) - 7, 14, 14, "wrong", round_by=7)


def drawings() -> dict[str, str]:
    """Returns the text of each SVG file by its name."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    return {
        "qualities.svg": str(quality_drawing()),
        "sequences.svg": str(sequences_drawing()),
        "stages.svg": str(stages_drawing()),
        "descent.svg": str(descent_drawing(measured)),
        "search.svg": str(search_drawing(measured)),
    }


if __name__ == "__main__":
    for name, text in drawings().items():
        (HERE / name).write_text(text, encoding="utf-8")
