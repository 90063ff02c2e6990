"""Puts the rows that report.json holds together: those of tables, of figures and of galleries."""

from __future__ import annotations

from typing import Any

from qrdali.report.parts import Part
from qrdali.report.tables import Table


def of_tables(tables: list[Table]) -> dict[str, Any]:
    """Returns every table with full precision, by its slug."""
    return {
        table.slug: {
            "title": table.title,
            "columns": list(table.columns),
            "rows": [[cell.value for cell in row] for row in table.rows],
            "notes": list(table.notes),
        }
        for table in tables
    }


def of_figures(parts: list[Part]) -> dict[str, Any]:
    """Returns of every figure the rows that it was drawn from, by its slug."""
    return {
        figure.slug: {
            "title": figure.title,
            "columns": list(figure.points.columns),
            "rows": [list(row) for row in figure.points.rows],
        }
        for part in parts
        for figure in part.figures
        if figure is not None
    }


def of_galleries(parts: list[Part]) -> dict[str, Any]:
    """Returns of every gallery what its pictures are of, by its section's slug and its number there."""
    return {
        f"{part.slug}-{number}": {
            "title": gallery.title,
            "columns": ["class", "image", "picture", "one step further"],
            "rows": [
                [row.class_name, row.file, picture.text, picture.further]
                for row in gallery.rows
                for picture in row.pictures
            ],
        }
        for part in parts
        for number, gallery in enumerate(part.galleries, 1)
    }
