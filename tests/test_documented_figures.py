"""Every figure in README and docs that names a result file is in that file.

Beside such figures stands an HTML comment, which a reader does not see:

    <!-- figures of benchmarks/results/loader-cpu.json
    1.84 = speed_ratio > qrdali full / torchvision, Pillow
    -->

Each line names a figure as it is printed before the comment, and the keys that lead to its value in the file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMENT = re.compile(r"<!-- figures of (\S+)\n(.*?)-->", re.DOTALL)
RESULT_FILE = re.compile(r"benchmarks/results/[\w*-]+\.json")
# Pages and files whose figures are not marked one by one yet: texts that say what a limit was held to.
UNMARKED = {"scale-cpu.json", "scale-ranks-cpu.json", "memory-cpu.json", "ranks-mepi-cpu.json"}


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
    for key in keys.split(" > "):
        data = data[int(key)] if isinstance(data, list) else data[key]
    return float(data)


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
    named = {Path(name).name for name in RESULT_FILE.findall(content) if "*" not in name}
    assert named - marked <= UNMARKED


def test_agreement_is_to_the_digits_that_are_printed() -> None:
    assert agrees("1.84", 1.8449)
    assert not agrees("1.84", 1.846)
    assert agrees("1,195", 1195.3)
    assert not agrees(".45", 0.582)
