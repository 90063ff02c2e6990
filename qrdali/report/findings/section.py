"""The report's first section: all findings, and the tables of the tests behind them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qrdali.report.findings import (
    accuracy,
    accuracy_tests,
    networks_apart,
    noise,
    published_figures,
    quotient_tests,
    quotients,
    rise_after_reduced,
)
from qrdali.report.findings.finding import Finding
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
    """Returns the findings on what the slides claim, claim by claim."""
    trios = list(zip(groups, abouts, numbers, strict=True))
    asked = [trio for trio in trios if methods(trio[0])] or trios[:1]
    efficient = [trio for trio in asked if networks_apart.is_efficientnet(trio[0])] or asked
    return [
        *(rise_after_reduced.finding(group, about, number) for group, about, number in asked),
        *networks_apart.findings(groups, numbers),
        *(published_figures.first(group, about, number) for group, about, number in efficient),
        published_figures.gain(groups, numbers),
    ]


def linked(found: tuple[Finding, ...], slugs: set[str]) -> tuple[Finding, ...]:
    """Returns the findings with links to tables that are there only."""
    return tuple(one if one.table in slugs else replace(one, table="") for one in found)
