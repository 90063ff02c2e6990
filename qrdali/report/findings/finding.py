"""A finding: a sentence, the figures that it is made of, and how far it may be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qrdali.errors import printable
from qrdali.evaluation.seeded_differences import ALPHA, SeededDifference
from qrdali.evaluation.stats import p_text
from qrdali.report.tables import Table, number, words

SEEN, NOT_SEEN, UNKNOWN = "seen here", "not seen here", "cannot be said with these runs"
ONE_SEED = "seen in one seed"
DESCRIBED = "measured"
_MOST_NAMES = 6
_MOST_COMMANDS = 200

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
        return {SEEN: "seen", ONE_SEED: "seen", NOT_SEEN: "unseen", UNKNOWN: "unknown"}.get(
            self.verdict, "measured"
        )

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
    """Returns what comparisons could have found, alone and corrected as the first of their family.

    span: shows the smallest and the largest of several differences.
    """
    alone = [result.detectable() for result in results]
    text = f"A true difference of {span(min(alone), max(alone))} would be found in 4 of 5 cases"
    if family > 1:
        first = [result.detectable(ALPHA / family) for result in results]
        text += f"; with Holm's correction for {family} comparisons, one of {span(min(first), max(first))}"
    return f"{text}."


def how_many(count: int, total: int, one: str, several: str) -> str:
    """Returns "1 of 2 methods is", "none of 2 methods is", "3 of 4 methods are", or of a single one "the one
    compared method is not" and "1 of 1 method is".
    """
    if not count:
        return f"none of {total:,} {several} is" if total > 1 else f"the one compared {one} is not"
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


def markdown(title: str, rules: Sequence[str], found: list[Finding], linked: dict[str, str]) -> str:
    """Returns findings.md. linked: the titles of the report's tables by slug, which lie in tables/."""
    lines = [f"# {_md(title)}: findings", "", *(f"{_md(rule)}\n" for rule in rules)]
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
                lines += ["", *(f"      {command}" for command in finding.commands)]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _md(text: str) -> str:
    for sign in ("\\", "`", "*", "_", "[", "]", "<", ">", "|", "!", "#"):
        text = text.replace(sign, f"\\{sign}")
    return text
