"""Renders the page: one file that loads nothing, from a template that escapes everything."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qrdali.report.findings.finding import QUESTIONS, Finding
from qrdali.report.gallery import Row
from qrdali.report.tables import Table

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Drawn:
    """Holds a figure as the page shows it: SVG for light and for dark.

    is_wide: whether it takes the whole width of the page.
    """

    slug: str
    title: str
    alt: str
    light: bytes
    dark: bytes
    is_wide: bool = False

    @property
    def uris(self) -> tuple[str, str]:
        """Returns the data URIs of the light and of the dark figure."""
        first, second = (
            "data:image/svg+xml;base64," + base64.b64encode(svg).decode() for svg in (self.light, self.dark)
        )
        return first, second


@dataclass(frozen=True)
class Gallery:
    """Holds the rows of a gallery, such as that of one MEPI set.

    enlarged: whether every pixel is to be seen of pictures that are smaller than their place.
    """

    title: str
    rows: tuple[Row, ...]
    enlarged: bool = True


@dataclass(frozen=True)
class Section:
    """Holds a section of the page, shown in this order: text, findings, figures, tables, galleries.

    folded: slugs of tables that are closed until opened.
    """

    slug: str
    title: str
    text: tuple[str, ...] = ()
    figures: tuple[Drawn, ...] = ()
    tables: tuple[Table, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    folded: frozenset[str] = frozenset()
    findings: tuple[Finding, ...] = ()

    @property
    def by_question(self) -> list[tuple[str, list[Finding]]]:
        """Returns the findings under the question that each is of."""
        asked = [
            (text, [finding for finding in self.findings if finding.question == key])
            for key, text in QUESTIONS.items()
        ]
        return [(text, found) for text, found in asked if found]

    @property
    def titles(self) -> dict[str, str]:
        """Returns the titles of its tables by slug."""
        return {table.slug: table.title for table in self.tables}


def page(title: str, facts: list[tuple[str, str]], sections: list[Section]) -> str:
    """Returns the page as HTML.

    Its content security policy allows its own style, script and embedded pictures, and no connection.
    """
    style, script = ((_TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    titles = {slug: title for section in sections for slug, title in section.titles.items()}
    values: dict[str, Any] = {
        "titles": titles,
        "title": title,
        "facts": facts,
        "sections": sections,
        "policy": policy,
        "style": Markup(style),
        "script": Markup(script),
    }
    return environment.get_template("report.html").render(values)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
