"""What a reader must know before any comparison: which networks are the same, which not above chance."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from qrdali.report.findings.accuracy_tests import AccuracyTest, are_same_networks, opponents_of
from qrdali.report.findings.finding import DESCRIBED, Finding, counted, names
from qrdali.report.findings.opponents import OPPONENTS, methods
from qrdali.report.findings.quotient_tests import QuotientTest
from qrdali.report.groups import Group
from qrdali.report.read import Run

_MOST_RUNS = 4  # of the same weights that a sentence names


def findings(group: Group, about: str, number: str) -> list[Finding]:
    """Returns the findings on one network and data set; none where its runs have ended, differ and are above
    chance.
    """
    return [
        *_unfinished(group, about, number),
        *_same_network(group, about, number),
        *_not_above_chance(group, about, number),
    ]


def _unfinished(group: Group, about: str, number: str) -> list[Finding]:
    """Returns which runs were stopped before their end, with the commands that continue them."""
    found = [run for run in group.runs if run.has_not_ended]
    if not found:
        return []
    shown = [f"{run.name} (after epoch {run.last.epoch})" for run in found]
    text = (
        f"Not trained to the end: {names(shown)}. Figures of such a run, and comparisons with it, are of the "
        "best of its epochs so far: they say what these weights do, and nothing of what the method reaches."
    )
    commands = tuple(f"qrdali train --resume --run {shlex.quote(str(run.place))}" for run in found)
    figures = {"unfinished": [run.name for run in found]}
    return [Finding("P1", about, DESCRIBED, text, figures, f"accuracy-{number}", commands)]


def same_networks(group: Group) -> list[list[Run]]:
    """Returns the runs of each network that several runs hold."""
    found: list[list[Run]] = []
    for run in group.runs:
        known = next((runs for runs in found if run.is_network_of(runs[0])), None)
        if known is None:
            found.append([run])
        else:
            known.append(run)
    return [runs for runs in found if len(runs) > 1]


def _same_network(group: Group, about: str, number: str) -> list[Finding]:
    found = same_networks(group)
    if not found:
        return []
    text = (
        f"Runs that hold the same weights are one network: {names(list(map(_alike, found)))}. A run keeps "
        "the weights that it began with where no epoch was better on val (best epoch 0), and runs that are "
        "trained alike up to their best epoch end with the same. Between such runs there is no test; where "
        "that is so in some seeds only, their difference counts as 0 there. What is compared with two "
        "of them is compared with one network twice."
        f"{''.join(_in_every_seed(group))}"
    )
    figures = {"same_network": [[run.name for run in runs] for runs in found]}
    return [Finding("P1", about, DESCRIBED, text, figures, f"accuracy-{number}")]


def _in_every_seed(group: Group) -> list[str]:
    """Returns which methods are the same network as their baseline, or a control, in every seed."""
    sentences = []
    for against in OPPONENTS:
        labels = [
            configuration.label
            for configuration in methods(group)
            if are_same_networks(opponents_of(group, configuration, against))
        ]
        if labels:
            whose = "baseline" if against == "baseline" else f"{against} control"
            sentences.append(
                f" The same network as the {whose} of its seed, wherever there is one: {names(labels)}."
            )
    return sentences


def _alike(runs: list[Run]) -> str:
    shown = [
        f"{run.name} (best epoch {run.trained.epoch})" if run.adoption is None else f"{run.name} (adopted)"
        for run in runs[:_MOST_RUNS]
    ]
    if len(runs) > _MOST_RUNS:
        shown.append(counted(len(runs) - _MOST_RUNS, "more run"))
    return " and ".join([", ".join(shown[:-1]), shown[-1]])


def _not_above_chance(group: Group, about: str, number: str) -> list[Finding]:
    found, each = [], []
    for name in group.sets:
        for configuration in group.configurations:
            evaluated = [run for run in configuration.runs if name in run.sets]
            below = [run for run in evaluated if run.sets[name].chance.is_not_above]
            if below:
                each.append(_below(configuration.label, name, below, len(evaluated)))
                found += [(run, name, run.sets[name].chance) for run in below]
    if not found:
        return []
    text = (
        f"Not above chance, by a one-sided binomial test against always answering the most frequent class of "
        f"the set (p > .05): {names(each)}. A comparison with such a network, and the minimal images of one, "
        "say little."
    )
    figures: dict[str, Any] = {
        "not_above_chance": [
            {
                "run": run.name,
                "set": name,
                "correct": chance.correct,
                "images": chance.images,
                "most_frequent": chance.most_frequent,
                "p": chance.p_value,
            }
            for run, name, chance in found
        ]
    }
    return [Finding("P1", about, DESCRIBED, text, figures, f"accuracy-{number}")]


def _below(label: str, name: str, runs: list[Run], evaluated: int) -> str:
    """Returns one configuration's runs that are not above chance on a set, with the figures of the worst."""
    worst = max((run.sets[name].chance for run in runs), key=lambda chance: chance.p_value)
    if evaluated == 1:
        return f"{label} on {name}: {worst.figures}"
    least = "" if len(runs) == 1 else "at worst "
    return f"{label} on {name} in {len(runs)} of {evaluated} seeds: {least}{worst.figures}"


def runs_text(runs: Sequence[Run], name: str) -> str:
    """Returns which of a claim's runs are not above chance on a set, "" where all are."""
    below = [run.name for run in runs if name in run.sets and run.sets[name].chance.is_not_above]
    return f" With caution, for they are not above chance on {name}: {names(below)}." if below else ""


def cautions_text(tests: Sequence[AccuracyTest] | Sequence[QuotientTest]) -> str:
    """Returns which networks of comparisons are not above chance, "" where all are."""
    sets = {test.set for test in tests if isinstance(test, AccuracyTest)}
    found = dict.fromkeys(
        f"{caution} on {test.set}" if isinstance(test, AccuracyTest) and len(sets) > 1 else caution
        for test in tests
        for caution in test.cautions
    )
    return f" With caution, for they are not above chance: {names(list(found))}." if found else ""
