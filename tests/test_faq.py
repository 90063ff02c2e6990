"""docs/faq.md quotes messages of the program: each must still be one, or the page would mislead."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "faq.md"
SOURCES = ("qrdali", "pipelines", "cli")
_VALUE = "\0"  # stands for what a message puts in: no source holds it
_SHORTEST = 12  # characters that a quotation must share with the source, placeholders left out


def literal(node: ast.expr) -> str | None:
    """Returns the text of a string or an f-string with `_VALUE` for what is put in; None for others."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else _VALUE
            for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (literal(node.left) or _VALUE) + (literal(node.right) or _VALUE)
    return None


def messages_of(source: str) -> set[str]:
    """Returns the strings of a module, but for docstrings."""
    tree = ast.parse(source)
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and id(node) not in statements and (text := literal(node)) is not None:
            found.add(text)
    return found


def quotations(page: str) -> list[str]:
    """Returns what stands in code in headings of the third level; a message may hold code too."""
    return [heading.strip("`").strip() for heading in re.findall(r"^### (`.+`)$", page, re.MULTILINE)]


def is_message(quotation: str, messages: set[str]) -> bool:
    """Returns whether a message contains `quotation`, "…" standing for what is put in or for a part of it."""
    parts = [part for part in (each.strip() for each in quotation.split("…")) if part]
    pattern = re.compile(".*?".join(re.escape(part) for part in parts), re.DOTALL)
    return any(pattern.search(message) for message in messages)


@pytest.fixture(scope="module")
def messages() -> set[str]:
    found: set[str] = set()
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            found |= messages_of(file.read_text("utf-8"))
    return found


@pytest.mark.parametrize("quotation", quotations(PAGE.read_text("utf-8")))
def test_a_quoted_message_is_one(quotation: str, messages: set[str]) -> None:
    assert len(quotation.replace("…", "").strip()) >= _SHORTEST, "too short to be found by its words"
    assert is_message(quotation, messages), f"no source has {quotation!r}: mend docs/faq.md"


def test_the_page_has_the_messages_that_people_meet() -> None:
    found = quotations(PAGE.read_text("utf-8"))
    assert len(found) == len(set(found))
    assert 30 <= len(found) <= 60


def test_every_message_has_an_answer() -> None:
    """Below a heading stands text, or another heading that shares it."""
    sections = re.split(r"^### ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert "\n" in sections[-1].strip()
    for section, following in pairwise(sections):
        answer = section.partition("\n")[2].strip()
        assert answer or following.partition("\n")[2].strip(), section


def test_what_no_source_says_is_found() -> None:
    found = messages_of('"""A docstring about cats."""\nraise E(f"{name} is no cat: " f"give {other}")\n')
    assert is_message("… is no cat: give …", found)
    assert not is_message("… is no dog: give …", found)
    assert not is_message("A docstring about cats.", found)
