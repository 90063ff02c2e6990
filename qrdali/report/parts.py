"""Holds a section of the report before its figures are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from qrdali.report.figures import Figure
from qrdali.report.findings.finding import Finding
from qrdali.report.page import Drawn, Gallery, Section
from qrdali.report.tables import Table


@dataclass(frozen=True)
class Part:
    """Holds a section before its figures are drawn."""

    slug: str
    title: str
    text: tuple[str, ...] = ()
    figures: tuple[Figure | None, ...] = ()
    tables: tuple[Table | None, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    folded: frozenset[str] = frozenset()
    findings: tuple[Finding, ...] = ()

    @property
    def filled_tables(self) -> tuple[Table, ...]:
        return tuple(table for table in self.tables if table)

    def drawn(self, figures: tuple[Drawn, ...]) -> Section:
        """Returns the section with its figures."""
        return Section(
            self.slug,
            self.title,
            self.text,
            figures,
            self.filled_tables,
            self.galleries,
            self.folded,
            self.findings,
        )
