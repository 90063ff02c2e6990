"""The report's first section: all findings, and the tables of the tests behind them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qrdali.report.findings import (
    accuracy,
    accuracy_tests,
    networks_apart,
    noise,
    published_figures,
    quotients,
    rise_after_reduced,
)
from qrdali.report.findings.finding import Finding
from qrdali.report.findings.opponents import methods
from qrdali.report.groups import Group
from qrdali.report.noise import measure
from qrdali.report.noise import table as noise_table
from qrdali.report.read_mepis import Mepis
from qrdali.report.tables import Table

RULES = (
    "Baseline: trained on full-quality images only. Method: trained on reduced images in some epochs (R) "
    "and on full-quality ones in the others (C). A method's name has three parts. How its quality "
    "changes: fixed keeps one, linear lowers it step by step, adaptive lowers it for each image as long "
    "as the network classifies that correctly. In which order: paired-epochs is R and C in turn, paired-"
    "rounds several epochs of each until they no longer help. What is reduced: crop keeps a window, "
    "resolution fewer pixels, color fewer levels, each at quality 0.5 half of the raw information; "
    "combination reduces all three.",
    "Controls are trained like a method but for one thing: sham reduces nothing, random draws each "
    "image's quality anew in every epoch, matched is a baseline that trains for as many steps, "
    "randaugment one with an automatic augmentation. Seeds are repetitions with other random numbers. A "
    "point is a percentage point. The slides are those of the thesis that these methods come from.",
    "A minimal image is the most reduced one found that a network still classifies correctly. Its entropy "
    "is the size of its PNG file, its entropy quotient that size divided by the original's.",
    "Each sentence is computed by fixed rules from what the runs answered to each image. A difference "
    "counts as shown if its p value is below .05 after Holm's correction over all comparisons of its kind "
    "(with the baseline, or with controls); with several seeds both a test over images and one over seeds "
    "must show it. “Not shown” does not mean that there is no difference. Which difference would be found "
    "is estimated from the spread of these runs; smaller ones may be there unseen.",
)


@dataclass(frozen=True)
class Findings:
    """Holds the findings in their order, and the tables of the tests that they rest on."""

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
        of_quotients = quotients.quotient_tests(group, sets)
        quotient_findings += quotients.findings(group, about, of_quotients, sets, number)
        tables.append(quotients.table(of_quotients, f"quotient-tests-{number}"))
    found += quotient_findings
    found += _claims(groups, abouts, numbers)
    floors = measure(groups, sets)
    found += noise.findings(groups, abouts, floors)
    tables.append(noise_table(floors, noise.SLUG))
    return Findings(tuple(found), tuple(table for table in tables if table))


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
