"""Checks the files that describe the project: version, citation, changelog, and what their links name."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from qrdali.runs.settings import read_toml
from qrdali.version import __version__

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/install.md", "docs/pypi.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What the schema of CFF 1.2.0 lists for a person, for a reference and as types of references that are used.
_ADDRESS = {
    "alias",
    "address",
    "city",
    "region",
    "post-code",
    "country",
    "orcid",
    "email",
    "tel",
    "fax",
    "website",
}
PERSON = _ADDRESS | {"family-names", "given-names", "name-particle", "name-suffix", "affiliation"}
ENTITY = _ADDRESS | {"name", "location", "date-start", "date-end"}
REFERENCE_TYPES = {"thesis", "conference-paper", "article", "software", "data"}


def citation() -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def require_agents(agents: Any) -> None:
    """Fails unless `agents` are persons and entities as CFF 1.2.0 has them: at least one, each one once."""
    assert isinstance(agents, list)
    assert agents
    for agent in agents:
        assert all(isinstance(value, str) and value for value in agent.values())
        assert set(agent) <= (ENTITY if "name" in agent else PERSON)
        assert "name" in agent or "family-names" in agent or "alias" in agent
        assert agents.count(agent) == 1


def test_the_citation_has_what_its_schema_requires() -> None:
    content = citation()
    assert {"cff-version", "message", "title", "authors"} <= set(content)
    assert content["cff-version"] == "1.2.0"
    assert content["type"] in ("software", "dataset")
    assert all(isinstance(content[key], str) and content[key] for key in ("message", "title", "license"))
    require_agents(content["authors"])
    released = content.get("date-released")
    assert released is None or isinstance(released, date)
    assert len(set(content["keywords"])) == len(content["keywords"])


def test_the_citation_names_the_thesis_and_the_paper() -> None:
    references = citation()["references"]
    for reference in references:
        assert {"type", "title", "authors"} <= set(reference)
        assert reference["type"] in REFERENCE_TYPES
        require_agents(reference["authors"])
        for group in ("institution", "conference", "publisher"):
            assert isinstance(reference.get(group, {"name": ""})["name"], str)
    thesis, paper = references
    assert (thesis["type"], thesis["authors"][0]["family-names"]) == ("thesis", "Torres Gutiérrez")
    assert re.fullmatch(r"10\.\d{4,9}/[-._;()/:a-zA-Z0-9]+", paper["doi"])
    assert (paper["doi"], paper["year"]) == ("10.1145/3340531.3411984", 2020)


def test_code_citation_and_changelog_have_one_version() -> None:
    assert str(citation()["version"]) == __version__
    headings = re.findall(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0][0] == __version__
    days = [date.fromisoformat(day) for _, day in headings if day != "unreleased"]
    assert len(days) >= len(headings) - 1
    assert days == sorted(days, reverse=True)
    assert headings[-1] == ("0.1.0", "2026-11-25")


def test_the_changelog_has_the_sections_that_keep_a_changelog_names() -> None:
    newest = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## [")[1]
    sections = re.findall(r"^### (.+)$", newest, re.MULTILINE)
    assert sections == ["Added", "Changed", "Deprecated", "Removed", "Fixed"]


def test_the_version_stands_in_one_place_of_the_package() -> None:
    project = read_toml(ROOT / "pyproject.toml")
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "qrdali.version.__version__"}
    for page in ("README.md", "docs/pypi.md", "Makefile", "docker/Dockerfile"):
        assert __version__ not in (ROOT / page).read_text("utf-8"), page


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_name_what_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in LINK.findall(text):
        if link.startswith(("https://", "http://")):
            continue
        target, _, anchor = link.partition("#")
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page} links to {link}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_files_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\b((?:tests|qrdali|cli|configs|benchmarks)/[\w./-]*\w)", text))
    missing = {name for name in named if not (ROOT / name).exists()}
    assert len(named) > 3
    assert not missing


def test_targets_of_make_that_contributing_names_exist() -> None:
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|\$ )make ([.\w/-]+)", text))
    assert {"test", "lint", "dist", ".venv/installed"} <= named
    assert named <= targets
