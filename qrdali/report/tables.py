"""Renders a table in four forms: csv with full precision, Markdown, LaTeX, and the page's."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field, replace
from functools import cached_property

from qrdali.errors import printable
from qrdali.evaluation.stats import p_text

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "÷": r"$\div$",
    "²": r"$^2$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": r"$-$",
    "…": r"\ldots{}",
    "χ": r"$\chi$",
}


@dataclass(frozen=True)
class Cell:
    """Holds a cell. text: what is shown. value: what sorts and goes into the csv.

    sd: standard deviation, where value is a mean of several.
    """

    text: str
    value: float | str | None = None
    sd: float | None = None

    @property
    def numeric(self) -> bool:
        return isinstance(self.value, int | float)


_SHOWN = 2000
NOTHING = Cell("–")


def words(text: object) -> Cell:
    """Returns a cell of text, control characters replaced."""
    shown = printable(text)
    return Cell(shown, shown)


def number(value: float | None, form: str = ",.0f", sd: float | None = None, unit: str = "") -> Cell:
    """Returns a cell of a number in Python's format `form`, with "± sd" if there is one; "–" for None and
    what is not finite.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    spread = f" ± {sd:{form}}" if sd is not None and math.isfinite(sd) else ""
    return Cell(f"{value:{form}}{spread}{unit}", value, sd)


def probability(p: float | None) -> Cell:
    """Returns a cell of a p value with two significant digits, or as many as its stars take."""
    return NOTHING if p is None else Cell(p_text(p), p)


@dataclass(frozen=True)
class Table:
    """Holds a table. slug: names its files. Every row has a cell per column.

    marked: rows that stand out, such as the baseline's. page_rows, page_columns: how many of the first the
    page shows, columns None for all; the files have all.
    """

    slug: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    marked: frozenset[int] = field(default_factory=frozenset)
    page_rows: int = _SHOWN
    page_columns: int | None = None

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of {self.slug} has not {len(self.columns)} cells")

    @cached_property
    def numeric(self) -> tuple[bool, ...]:
        """Returns which columns hold numbers, which are set flush right."""
        filled = [[row[i] for row in self.rows if row[i] != NOTHING] for i in range(len(self.columns))]
        return tuple(bool(cells) and all(cell.numeric for cell in cells) for cells in filled)

    @property
    def shown(self) -> tuple[tuple[Cell, ...], ...]:
        """Returns the rows that the page has; the files have all."""
        return tuple(row[: self.page_columns] for row in self.rows[: self.page_rows])

    @property
    def shown_columns(self) -> tuple[str, ...]:
        """Returns the columns that the page has; the files have all."""
        return self.columns[: self.page_columns]

    def beginning(self, rows: int) -> Table:
        """Returns the table with the columns that the page has, at most so many rows and the first note;
        another says how many rows are left out.
        """
        left = len(self.rows) - rows
        more = (f"{left:,} more rows: tables/{self.slug}.md.",) if left > 0 else ()
        shown = tuple(row[: self.page_columns] for row in self.rows[:rows])
        return replace(
            self, columns=self.shown_columns, rows=shown, notes=(*self.notes[:1], *more), page_columns=None
        )

    def csv(self) -> str:
        """Returns the table as RFC 4180 has it. A column with deviations is followed by one of them.

        Text that a spreadsheet would take for a formula begins with an apostrophe.
        """
        spread = [any(row[i].sd is not None for row in self.rows) for i in range(len(self.columns))]
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(
            [
                _plain(name)
                for column, wide in zip(self.columns, spread, strict=True)
                for name in ([column, f"{column} sd"] if wide else [column])
            ]
        )
        for row in self.rows:
            writer.writerow(
                [
                    value
                    for cell, wide in zip(row, spread, strict=True)
                    for value in ([_raw(cell), "" if cell.sd is None else cell.sd] if wide else [_raw(cell)])
                ]
            )
        return out.getvalue()

    def markdown(self) -> str:
        """Returns the table as Markdown, with its title and notes."""
        lines = [
            "| " + " | ".join(map(_md, self.columns)) + " |",
            "|" + "|".join("---:" if self.numeric[i] else "---" for i in range(len(self.columns))) + "|",
        ]
        lines += ["| " + " | ".join(_md(cell.text) for cell in row) + " |" for row in self.rows]
        return (
            f"### {_md(self.title)}\n\n"
            + "\n".join(lines)
            + "\n"
            + "".join(f"\n{_md(note)}\n" for note in self.notes)
        )

    def latex(self) -> str:
        r"""Returns a tabular with booktabs rules, to be put into a document by \input."""
        align = "".join("r" if self.numeric[i] else "l" for i in range(len(self.columns)))
        # Not \\\\, which would take a cell that begins with [ or * for its argument.
        lines = [" & ".join(map(_tex, self.columns)) + r" \tabularnewline", r"\midrule"]
        lines += [" & ".join(_tex(cell.text) for cell in row) + r" \tabularnewline" for row in self.rows]
        notes = "".join(f"% {printable(note)}\n" for note in self.notes)
        return (
            f"% {printable(self.title)}; needs booktabs\n{notes}\\begin{{tabular}}{{{align}}}\n\\toprule\n"
            + "\n".join(lines)
            + "\n\\bottomrule\n\\end{tabular}\n"
        )


def _raw(cell: Cell) -> float | str:
    return cell.value if isinstance(cell.value, int | float) else _plain(cell.value or "")


def _plain(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _md(text: str) -> str:
    for sign in ("\\", "`", "*", "_", "[", "]", "<", ">", "|", "!", "#"):
        text = text.replace(sign, f"\\{sign}")
    return text


def _tex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
