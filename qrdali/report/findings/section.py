"""The report's first section: all findings, and the tables of the tests behind them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qrdali.report.findings import (
    accuracy,
    accuracy_tests,
    cautions,
    networks_apart,
    noise,
    published_figures,
    quotient_tests,
    quotients,
    rise_after_reduced,
)
from qrdali.report.findings.finding import NOT_COMPARED, Finding, names
from qrdali.report.findings.introduction import introduction
from qrdali.report.findings.opponents import methods
from qrdali.report.groups import Group
from qrdali.report.noise import measure
from qrdali.report.noise import table as noise_table
from qrdali.report.read_mepis import Mepis
from qrdali.report.tables import Table


@dataclass(frozen=True)
class Findings:
    """Holds the findings in their order, the paragraphs before them, and the tables of the tests that they
    rest on.
    """

    text: tuple[str, ...]
    findings: tuple[Finding, ...]
    tables: tuple[Table, ...]


def findings(groups: list[Group], sets: list[Mepis]) -> Findings:
    """Returns what runs and MEPI sets show; every group has findings, whatever its runs are."""
    numbers = [f"{i}" for i in range(1, len(groups) + 1)]
    several = len(groups) > 1
    abouts = [f"{group.network} on {group.data}" if several else "" for group in groups]
    found: list[Finding] = []
    tables: list[Table | None] = []
    quotient_findings: list[Finding] = []
    for group, about, number in zip(groups, abouts, numbers, strict=True):
        tests = accuracy_tests.accuracy_tests(group)
        found += cautions.findings(group, about, number)
        found += accuracy.findings(group, about, tests, number)
        tables.append(accuracy_tests.table(tests, f"finding-tests-{number}"))
        of_quotients = quotient_tests.quotient_tests(group, sets)
        quotient_findings += quotients.findings(group, about, of_quotients, sets, number)
        tables.append(quotient_tests.table(of_quotients, f"quotient-tests-{number}"))
    found += quotient_findings
    found += _claims(groups, abouts, numbers)
    floors = measure(groups, sets)
    found += noise.findings(groups, abouts, floors)
    tables.append(noise_table(floors, noise.SLUG))
    return Findings(introduction(groups), tuple(found), tuple(table for table in tables if table))


def _claims(groups: list[Group], abouts: list[str], numbers: list[str]) -> list[Finding]:
    """Returns the findings on what the slides claim, where the report has what a claim compares, and one that
    names the claims of which it has not.
    """
    trios = list(zip(groups, abouts, numbers, strict=True))
    efficient = [trio for trio in trios if networks_apart.is_efficientnet(trio[0]) and methods(trio[0])]
    by_claim: dict[str, list[Finding | None]] = {
        rise_after_reduced.WHAT: [rise_after_reduced.finding(*trio) for trio in trios],
        networks_apart.WHAT: [*networks_apart.findings(groups, numbers)],
        published_figures.WHAT_FIRST: [published_figures.first(*trio) for trio in efficient or trios],
        published_figures.WHAT_GAIN: [published_figures.gain(groups, numbers)],
    }
    found = [one for ones in by_claim.values() for one in ones if one is not None]
    absent = [claim for claim, ones in by_claim.items() if not any(ones)]
    if absent:
        which = (
            "This report does not have the runs that these claims are about"
            if found
            else ("This report does not have the runs that the claims are about")
        )
        text = f"{which}: {names(absent)}."
        found.append(Finding("claims", "", NOT_COMPARED, text, {"claims": absent}))
    return found


def linked(found: tuple[Finding, ...], slugs: set[str]) -> tuple[Finding, ...]:
    """Returns the findings with links to tables that are there only."""
    return tuple(one if one.table in slugs else replace(one, table="") for one in found)
