"""What is drawn: axes and lines, asked of the canvas before it becomes a file."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from qrdali.report.figures import LIGHT
from qrdali.report.plots import quality_curve

QUALITIES, ACCURACIES = [1, 0.75, 0.5, 0.25], [0.9, 0.8, 0.5, 0.2]
AREAS = {"area": 0.6, "log_area": 0.7}
GRID = {"quality": QUALITIES, "accuracy": ACCURACIES, **AREAS}
BELOW = {"quality": [*QUALITIES, 0.125], "accuracy": [*ACCURACIES, 0.1], "tail": 1, **AREAS}


@pytest.mark.parametrize(("curve", "scale", "label"), [(GRID, "linear", "area"), (BELOW, "log", "log area")])
def test_qualities_below_the_grid_stand_on_a_logarithmic_axis(
    curve: dict[str, Any], scale: str, label: str
) -> None:
    canvas = Canvas()
    quality_curve({"crop": curve}, 0.1, "curve", "Accuracy").draw(canvas, LIGHT)
    (axes,) = canvas.axes
    assert axes.get_xscale() == scale
    line = axes.lines[0]
    assert np.asarray(line.get_xdata()).tolist() == curve["quality"]
    assert np.asarray(line.get_ydata()).tolist() == curve["accuracy"]
    assert line.get_label() == f"crop ({label} {curve[label.replace(' ', '_')]:.3f})"
