"""Has `make docs` show docstrings, plain texts, as Markdown: lists of parameters, examples as code."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_PARAMETERS = re.compile(r"^(\w+(?:, \w+)*): (.*)$")
_MARKDOWN = re.compile(r"([\[\]*_<>\\`])")


class ReadableDocstrings(griffe.Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of `obj`, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = markdown_of(obj.docstring.value)


def markdown_of(docstring: str) -> str:
    """Returns a docstring's text as Markdown."""
    paragraphs = re.split(r"\n\s*\n", textwrap.dedent(docstring).strip("\n"))
    return "\n\n".join(map(_paragraph, paragraphs))


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    if lines[0].rstrip(":") in ("Example", "Examples"):
        return f"```pycon\n{textwrap.dedent(chr(10).join(lines[1:]))}\n```"
    if ">>> " in lines[0]:
        return f"```pycon\n{textwrap.dedent(text)}\n```"
    out: list[str] = []
    for line in lines:
        if parameter := _PARAMETERS.match(line):
            names = ", ".join(f"`{name}`" for name in parameter[1].split(", "))
            out.append(f"{'' if out else chr(10)}- {names}: {_escaped(parameter[2])}")
        elif out and out[-1].lstrip().startswith("- "):
            out.append(f"  {_escaped(line.strip())}")
        else:
            out.append(_escaped(line))
    return "\n".join(out)


def _escaped(text: str) -> str:
    """Returns text with Markdown's signs escaped, but for code between backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _MARKDOWN.sub(r"\\\1", text)
    shown = [part if place % 2 else _MARKDOWN.sub(r"\\\1", part) for place, part in enumerate(parts)]
    return "`".join(shown)
