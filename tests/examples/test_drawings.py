"""Tests that the drawings of docs/explanation/method.md are what docs/images/drawings.py draws."""

from __future__ import annotations

import importlib.util
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
NAMES = ["descent.svg", "qualities.svg", "search.svg", "sequences.svg", "stages.svg"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("drawings", IMAGES / "drawings.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["drawings"] = module
    spec.loader.exec_module(module)
    texts: dict[str, str] = module.drawings()
    return texts


def without_pixels(text: str) -> str:
    """Leaves out the colours of single pixels, which a resize may round otherwise on another processor."""
    return re.sub(r'fill="#[0-9a-f]{6}"', "", text)


def test_the_committed_files_are_what_is_drawn(drawn: dict[str, str]) -> None:
    assert sorted(drawn) == NAMES
    for name, text in drawn.items():
        assert without_pixels((IMAGES / name).read_text("utf-8")) == without_pixels(text), (
            f"{name} is not what is drawn now: python docs/images/drawings.py"
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_stands_alone_in_light_and_dark(name: str) -> None:
    """Text is text, nothing is loaded from elsewhere, and both modes have their colours."""
    file = IMAGES / name
    assert file.stat().st_size < 150_000
    root = ElementTree.parse(file).getroot()
    assert len(root.findtext(f"{SVG}title", "")) > 20
    assert len(root.findall(f"{SVG}text")) >= 10
    assert root.find(f"{SVG}rect").get("class") == "card"  # type: ignore[union-attr]
    assert all(image.get("href", "").startswith("data:image/") for image in root.iter(f"{SVG}image"))
    assert "prefers-color-scheme: dark" in root.findtext(f"{SVG}style", "")


def test_paired_epochs_and_rounds_go_back_where_the_definition_says(drawn: dict[str, str]) -> None:
    """Worked by hand from the accuracies in the drawing, with patience 3."""
    words = re.findall(r"back to epoch (\d+)", drawn["sequences.svg"])
    assert words == ["2", "2", "3", "10"]
