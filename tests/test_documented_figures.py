"""Every figure in README and docs that names a result file is in that file.

Beside such figures stands an HTML comment, which a reader does not see:

    <!-- figures of benchmarks/results/loader-cpu.json
    1.84 = speed_ratio > qrdali full / torchvision, Pillow
    -->

Each line names a figure as it is printed before the comment, and the keys that lead to its value in the file;
`* 1e-3` behind them says that the figure has another unit than the file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMENT = re.compile(r"<!-- figures of (\S+)\n(.*?)-->", re.DOTALL)
# In a page, a file is named by its whole path or by its name alone.
RESULT_FILES = {file.name for file in (ROOT / "benchmarks" / "results").glob("*.json")}
NAME = re.compile(r"[\w-]+\.json")


class Figure(NamedTuple):
    page: str
    file: str
    text: str
    keys: str
    before: str


def figures() -> list[Figure]:
    found = []
    for page in PAGES:
        content = page.read_text(encoding="utf-8")
        for comment in COMMENT.finditer(content):
            for line in comment[2].splitlines():
                if line.strip():
                    text, _, keys = line.strip().partition(" = ")
                    before = content[: comment.start()]
                    found.append(Figure(page.name, comment[1], text, keys, before))
    return found


def value_at(data: Any, keys: str) -> float:
    path, _, factor = keys.partition(" * ")
    for key in path.split(" > "):
        data = data[int(key)] if isinstance(data, list) else data[key]
    return float(data) * float(factor or 1)


def agrees(text: str, value: float) -> bool:
    """Returns whether `text` is `value` rounded to its digits; a half may be rounded either way."""
    plain = text.replace(",", "")
    digits = len(plain.partition(".")[2])
    return abs(float(plain) - value) <= 0.5 * 10**-digits + 1e-9


@pytest.mark.parametrize("figure", figures(), ids=lambda figure: f"{figure.page} {figure.text} {figure.keys}")
def test_a_figure_is_in_the_file_that_it_names(figure: Figure) -> None:
    value = value_at(json.loads((ROOT / figure.file).read_text(encoding="utf-8")), figure.keys)
    assert agrees(figure.text, value), f"{figure.text} stands in {figure.page}, {value} in {figure.file}"
    # The text says it, not too far above.
    passage = figure.before[-2500:]
    assert re.search(rf"(?<![\d.,]){re.escape(figure.text)}(?![\d])", passage), f"{figure.page} lacks it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_that_names_a_result_file_marks_its_figures(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    marked = {Path(comment[1]).name for comment in COMMENT.finditer(content)}
    named = RESULT_FILES.intersection(NAME.findall(COMMENT.sub("", content)))
    assert named <= marked


def test_agreement_is_to_the_digits_that_are_printed() -> None:
    assert agrees("1.84", 1.8449)
    assert not agrees("1.84", 1.846)
    assert agrees("1,195", 1195.3)
    assert not agrees(".45", 0.582)


def test_a_figure_may_have_another_unit_than_its_file() -> None:
    milliseconds = value_at({"steps": [{"microseconds": 5301}]}, "steps > 0 > microseconds * 1e-3")
    assert milliseconds == pytest.approx(5.301)
