"""A finding: a sentence, the figures that it is made of, and how far it may be believed."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from qrdali.errors import printable
from qrdali.evaluation.seeded_differences import ALPHA, SeededDifference
from qrdali.evaluation.stats import p_text
from qrdali.report.tables import NOTHING, Cell, Table, number, words

SEEN, NOT_SEEN, UNKNOWN = "seen here", "not seen here", "cannot be said with these runs"
NOT_COMPARED = "not compared here"
ONE_SEED = "seen in one seed"
DESCRIBED = "measured"
_MOST_NAMES = 6
_MOST_COMMANDS = 200
_MOST_ROWS = 40  # of a table in findings.md

QUESTIONS = {
    "P1": "P1: Which training method is more accurate, on full and on reduced images?",
    "P2": "P2: Do the networks need less information than the baseline's, by the entropy quotient?",
    "claims": "What the thesis' slides claim",
    "noise": "How large is chance?",
}


@dataclass(frozen=True)
class Finding:
    """Holds a finding. Every text is shown with control characters replaced.

    question: a key of `QUESTIONS`. about: the network and data set it is of, "" where the report has one.
    verdict: one of the constants above. text: a few sentences. figures: what they are made of, unrounded.
    table: slug of the table that has more, "" for none. commands: what makes what is missing.
    """

    question: str
    about: str
    verdict: str
    text: str
    figures: dict[str, Any] = field(default_factory=dict)
    table: str = ""
    commands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "about", printable(self.about))
        object.__setattr__(self, "text", printable(self.text))
        shown = tuple(dict.fromkeys(printable(command) for command in self.commands))
        if len(shown) > _MOST_COMMANDS:
            shown = (*shown[:_MOST_COMMANDS], f"# and {len(shown) - _MOST_COMMANDS} more")
        object.__setattr__(self, "commands", shown)

    @property
    def kind(self) -> str:
        """Returns a word for the verdict, a class of the page's style."""
        kinds = {
            SEEN: "seen",
            ONE_SEED: "seen",
            NOT_SEEN: "unseen",
            UNKNOWN: "unknown",
            NOT_COMPARED: "unknown",
        }
        return kinds.get(self.verdict, "measured")

    @property
    def shown_commands(self) -> list[str]:
        """Returns the lines that readers see and can paste, in which a long common folder stands once."""
        return with_common_folder(self.commands)

    def to_json(self) -> dict[str, Any]:
        """Returns the object that report.json holds."""
        return {
            "question": self.question,
            "about": self.about,
            "verdict": self.verdict,
            "text": self.text,
            "figures": self.figures,
            "table": self.table,
            "commands": list(self.commands),
        }


def names(texts: Sequence[str], nothing: str = "none") -> str:
    """Returns at most six texts, separated by semicolons, and how many more there are."""
    if not texts:
        return nothing
    more = f" and {len(texts) - _MOST_NAMES} more" if len(texts) > _MOST_NAMES else ""
    return "; ".join(texts[:_MOST_NAMES]) + more


def counted(count: int, one: str, several: str = "") -> str:
    """Returns a number and its noun, such as "1 seed" and "3 seeds"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def points(share: float, digits: int = 1, sign: str = "+") -> str:
    """Returns a difference of shares as percentage points, such as "+1.5 points"."""
    return f"{100 * share:{sign}.{digits}f} points"


def detectable_text(
    results: Sequence[SeededDifference], family: int, span: Callable[[float, float], str]
) -> str:
    """Returns what comparisons could have found at the threshold in force, that of the first of their family.

    span: shows the smallest and the largest of several differences.
    """
    found = [result.detectable(ALPHA / family) for result in results]
    of = f", at the threshold for {family} comparisons" if family > 1 else ""
    return f"Detectable here{of}: {span(min(found), max(found))}."


def agreeing(result: SeededDifference) -> int:
    """Returns how many seeds' differences have the sign of their mean."""
    return sum(one * result.difference > 0 for one in result.per_seed)


def agreement(result: SeededDifference) -> Cell:
    """Returns a cell such as "2 of 3", "–" for one seed, which has nothing to agree with."""
    count = agreeing(result)
    return Cell(f"{count} of {result.seeds}", count) if result.seeds > 1 else NOTHING


def direction_text(results: Sequence[SeededDifference]) -> str:
    """Returns what the signs of differences say that are not shown, "" where no two seeds or more agree.

    The chance that is given is that of signs which are as likely one way as the other.
    """
    unanimous = [one for one in results if one.seeds > 1 and agreeing(one) == one.seeds]
    if not unanimous:
        return ""
    up = sum(one.difference > 0 for one in unanimous)
    among = "" if len(results) == 1 else " in {} of " + counted(len(results), "such comparison")
    ways = [
        f"{way} in all seeds{among.format(count)}"
        for way, count in (("upwards", up), ("downwards", len(unanimous) - up))
        if count
    ]
    seeds = {one.seeds for one in unanimous}
    chance = ""
    if len(seeds) == 1:
        (number_of_seeds,) = seeds
        chance = (
            f": chance alone makes {number_of_seeds} signs agree in 1 of {2 ** (number_of_seeds - 1)} cases"
        )
    return f" The difference points {' and '.join(ways)}, which these runs do not establish{chance}."


def how_many(count: int, total: int, one: str, several: str) -> str:
    """Returns "1 of 2 methods is", "none of 2 methods is", "3 of 4 methods are" or "1 of 1 method is"."""
    if not count:
        return f"none of {counted(total, one, several)} is"
    return f"{count:,} of {counted(total, one, several)} {'is' if count == 1 else 'are'}"


def seeds_text(seeds: int) -> str:
    """Returns "one seed" or "3 seeds"."""
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def p_is(p: float) -> str:
    """Returns "p = .012" as text."""
    text = p_text(p)
    return f"p {text[0]} {text[1:]}" if text.startswith("<") else f"p = {text}"


def table(found: list[Finding], slug: str) -> Table:
    """Returns the findings as a table, which the report's files have as csv, Markdown and LaTeX."""
    rows = tuple(
        (
            number(i),
            words(finding.question),
            words(finding.about or "–"),
            words(finding.verdict),
            words(finding.text),
            words(finding.table or "–"),
        )
        for i, finding in enumerate(found, 1)
    )
    columns = ("number", "question", "network and data", "verdict", "finding", "table")
    return Table(slug, "Findings", columns, rows)


def markdown(
    title: str, text: Sequence[str], found: list[Finding], linked: dict[str, str], own: Sequence[Table]
) -> str:
    """Returns findings.md.

    linked: the titles of the report's tables by slug, which lie in tables/. own: those that stand below the
    findings of the first question that links to them.
    """
    lines = [f"# {_md(title)}: findings", "", *(f"{_md(paragraph)}\n" for paragraph in text)]
    left = {table.slug: table for table in own}
    for key, question in QUESTIONS.items():
        of_question = [finding for finding in found if finding.question == key]
        if not of_question:
            continue
        lines += [f"## {question}", ""]
        for finding in of_question:
            about = f"{_md(finding.about)}: " if finding.about else ""
            link = f" ([{_md(linked[finding.table])}](tables/{finding.table}.md))" if finding.table else ""
            lines.append(f"- **{finding.verdict}.** {about}{_md(finding.text)}{link}")
            if finding.commands:
                lines += ["", *(f"      {line}" for line in finding.shown_commands), ""]
        linked_here = dict.fromkeys(finding.table for finding in of_question)
        for table in (left.pop(slug) for slug in linked_here if slug in left):
            brief = table.beginning(_MOST_ROWS).markdown().partition("\n\n")[2]
            lines += ["", brief.rstrip()]
        lines.append("")
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def with_common_folder(commands: Sequence[str]) -> list[str]:
    """Returns commands in which the folder that all of their paths lie in stands once, in a shell's
    variable, so that a reader sees the names of runs; as they are where that would shorten nothing.
    """
    try:
        words_of = [shlex.split(command, comments=True) for command in commands]
    except ValueError:  # a quote of a path that had control characters
        return list(commands)
    paths = [PurePosixPath(word) for line in words_of for word in line if word.startswith("/")]
    if len(paths) < 2:
        return list(commands)
    common = os.path.commonpath([path.parent for path in paths])
    if len(PurePosixPath(common).parts) < 3 or shlex.quote(common) != common:
        return list(commands)

    def word(text: str) -> str:
        inside = text.startswith(f"{common}/")
        return f"$ROOT/{shlex.quote(text[len(common) + 1 :])}" if inside else shlex.quote(text)

    shown = [" ".join(map(word, line)) or command for line, command in zip(words_of, commands, strict=True)]
    return [f"ROOT={common}", *shown]


def _md(text: str) -> str:
    for sign in ("\\", "`", "*", "_", "[", "]", "<", ">", "|", "!", "#"):
        text = text.replace(sign, f"\\{sign}")
    return text
