"""Takes the code blocks out of README.md and the pages of docs, for the tests that run them.

A fenced block has a language. Commands stand in `console` blocks behind "$ ", their output below them; a line
that ends in a backslash goes on in the next. Comments that a reader does not see come before a block:

    <!-- not run: WHY -->        the next block is only checked: options of commands, syntax of Python
    <!-- run first: COMMAND -->  run by the test alone, in place of what the reader has already
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"console", "python", "toml", "yaml", "json", "text", "tsv", "snakemake", "bash", "bibtex"}
_FENCE = re.compile(r"^( *)```(.*)$")
_COMMENT = re.compile(r"^ *<!-- (not run|run first): (.+?) *-->$")
_PROMPT = "$ "


@dataclass(frozen=True)
class Block:
    """Holds a block of a page.

    line: of its first fence, from 1. why_not: why it is not run; empty if it is.
    """

    page: Path
    line: int
    language: str
    text: str
    why_not: str = ""

    @property
    def place(self) -> str:
        """Returns where the block stands, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Returns the commands of a console block, without prompts and output."""
        found: list[str] = []
        goes_on = False
        for line in self.text.splitlines():
            if goes_on:
                found[-1] += "\n" + line.removeprefix("> ")
            elif line.startswith(_PROMPT):
                found.append(line.removeprefix(_PROMPT))
            else:
                continue
            goes_on = line.endswith("\\")
        return found


def name_of(page: Path) -> str:
    """Returns the page's path in the repository, for the names of tests."""
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page, and what is run first, in order.

    Raises ValueError for a fence that is never closed, and for a "not run" without a block.
    """
    return list(_blocks(page, page.read_text(encoding="utf-8").splitlines()))


def _blocks(page: Path, lines: list[str]) -> Iterator[Block]:
    why_not, start = "", 0
    body: list[str] | None = None
    language = indent = ""
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if body is not None:
            if fence and not fence[2]:
                yield Block(page, start, language, "\n".join(body), why_not)
                body, why_not = None, ""
            else:
                body.append(line.removeprefix(indent))
        elif fence:
            body, start, indent, language = [], number, fence[1], fence[2].strip().partition(" ")[0]
        elif comment := _COMMENT.match(line):
            if comment[1] == "run first":
                yield Block(page, number, "console", _PROMPT + comment[2])
            else:
                why_not = comment[2]
        elif line.strip() and why_not:
            raise ValueError(f"{page}:{number}: 'not run' is followed by text, not by a block")
    if body is not None:
        raise ValueError(f"{page}:{start}: a block without an end")


def prose_of(page: Path) -> list[str]:
    """Returns the lines of a page with those of fenced blocks and of comments emptied."""
    text = re.sub(
        r"<!--.*?-->",
        lambda comment: "\n" * comment[0].count("\n"),
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    inside, found = False, []
    for line in text.splitlines():
        is_fence = _FENCE.match(line) is not None
        found.append("" if inside or is_fence else line)
        inside ^= is_fence
    return found
