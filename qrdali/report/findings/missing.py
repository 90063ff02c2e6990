"""P1's findings on what is missing: baselines, controls, rows, with the commands that make them."""

from __future__ import annotations

import shlex
from typing import Any

from qrdali.evaluation.prediction_rows import evaluate_command_for
from qrdali.evaluation.seeded_differences import least_significant
from qrdali.report.findings.accuracy_tests import tested_sets
from qrdali.report.findings.finding import UNKNOWN, Finding, names
from qrdali.report.findings.opponents import CONTROLS, baseline_settings, command_of, methods, opponent
from qrdali.report.groups import Group
from qrdali.report.read import Run
from qrdali.runs.train_command import train_command, with_method

_MEANING = {
    "sham": "whether the reduction or the scheme of training makes their difference",
    "random": "whether their order of qualities does more than plain augmentation",
    "randaugment": "whether they do more than the usual augmentation of full-quality images",
    "matched": "whether they do more than training as long without reductions",
}

_ALIKE = {  # in what a control and the run that it is of agree
    "sham": "seed and sequence",
    "random": "seed, sequence and reduction",
    "randaugment": "seed",
    "matched": "seed and steps",
}


def missing(group: Group, about: str, any_reduced: bool, number: str) -> list[Finding]:
    """Returns findings on what is missing, with the commands that make it."""
    found = []
    without = [run for c in methods(group) for run in c.runs if opponent(group, run, "baseline") is None]
    if without:
        found.append(
            Finding(
                "P1",
                about,
                UNKNOWN,
                f"No baseline of the same seed stands beside {_labels(group, without)}: whether "
                "they gain by training on reduced images cannot be said.",
                {"runs": [run.name for run in without]},
                f"accuracy-{number}",
                tuple(command_of(run, "baseline") for run in without),
            )
        )
    for control in CONTROLS:
        lacking = [
            run
            for c in methods(group)
            for run in c.runs
            if control.applies(run.settings) and opponent(group, run, control.name) is None
        ]
        if lacking:
            found.append(
                Finding(
                    "P1",
                    about,
                    UNKNOWN,
                    f"No {control.name} control of the same {_ALIKE[control.name]} stands beside "
                    f"{_labels(group, lacking)}: {_MEANING[control.name]} cannot be said.",
                    {"control": control.name, "runs": [run.name for run in lacking]},
                    f"accuracy-{number}",
                    _commands(lacking, control.name),
                )
            )
    if not any_reduced:
        found += _nothing_reduced(group, about, number)
    return [*found, *_unevaluated(group, about, number)]


def _labels(group: Group, runs: list[Run]) -> str:
    """Returns the configurations that runs are of, with the number of runs where it is more than one."""
    of_runs = {run.name for run in runs}
    counts = {c.label: sum(run.name in of_runs for run in c.runs) for c in group.configurations}
    return names(
        [f"{label} ({count} runs)" if count > 1 else label for label, count in counts.items() if count]
    )


def _commands(runs: list[Run], control: str) -> tuple[str, ...]:
    """Returns the commands of missing controls, one for all runs that one control serves."""
    commands: dict[tuple[Any, ...], str] = {}
    for run in runs:
        settings = run.settings
        key: tuple[Any, ...] = (run.name,)
        if control == "sham":  # the sham of every reduction is the same
            key = (settings.method, settings.sequence, settings.seed, settings.init)
        elif control == "random":  # and so is the random control of every method
            key = (settings.reduction, settings.sequence, settings.seed, settings.init)
        elif control == "randaugment":  # it has no reduction
            key = (settings.seed, settings.init)
        commands.setdefault(key, command_of(run, control))
    return tuple(commands.values())


def _nothing_reduced(group: Group, about: str, number: str) -> list[Finding]:
    """Returns the finding on a group without any run trained on reduced images."""
    trained = [run for run in group.runs if run.adoption is None]
    commands: list[str] = []
    if trained:
        base = next((run for run in trained if group.is_baseline(run)), None)
        first = base or trained[0]
        start = first.place if first.settings.method == "shared" else None
        settings = baseline_settings(first.settings, start)
        if base is None:
            commands.append(train_command(settings, first.place.with_name("baseline")))
        linear = with_method(settings, method="linear", reduction="crop", sequence="paired-rounds")
        commands.append(train_command(linear, first.place.with_name("linear-paired-rounds-crop")))
    kinds = names(list(dict.fromkeys(c.method for c in group.configurations)))
    return [
        Finding(
            "P1",
            about,
            UNKNOWN,
            f"No run here was trained on reduced images by a method (fixed, linear or adaptive): of "
            f"{kinds} nothing can be said about them. Such runs are made, for instance, by these commands.",
            {"methods": [c.method for c in group.configurations]},
            f"accuracy-{number}",
            tuple(commands),
        )
    ]


def _unevaluated(group: Group, about: str, number: str) -> list[Finding]:
    """Returns the findings on runs without rows of test, or with rows of other images than the baseline's."""
    apart = [
        run
        for c in methods(group)
        for run in c.runs
        if (base := opponent(group, run, "baseline")) is not None
        and {"test"} <= run.sets.keys() & base.sets.keys()
        and run.sets["test"].digest != base.sets["test"].digest
    ]
    found = []
    if apart:
        text = (
            f"The rows of test of {names([run.name for run in apart])} and of the baseline are not of the "
            "same images: they are not compared. Evaluate all on the same data."
        )
        figures = {"runs": [run.name for run in apart]}
        found.append(Finding("P1", about, UNKNOWN, text, figures, f"accuracy-{number}"))
    without = [run for run in group.runs if "test" not in run.sets]
    if not without:
        return found
    commands = []
    for run in without:
        data = shlex.quote(run.settings.data or "DATASET")
        folder = shlex.quote(str(run.place))
        commands.append(f"qrdali evaluate --run {folder} {evaluate_command_for('test', data)}")
    return [
        *found,
        Finding(
            "P1",
            about,
            UNKNOWN,
            f"There are no rows of test of {names([run.name for run in without])}: on images that chose no "
            "epoch nothing can be said of them.",
            {"runs": [run.name for run in without]},
            f"accuracy-{number}",
            tuple(commands),
        ),
    ]


def least_detectable(group: Group, about: str, number: str) -> list[Finding]:
    """Returns the finding on what these sets could show at best, where nothing was compared."""
    least = least_significant()
    sizes = {
        name: max(len(run.sets[name].correct) for run in group.runs if name in run.sets)
        for name in tested_sets(group)
        if any(name in run.sets for run in group.runs)
    }
    if not sizes:
        return []
    shown = [f"{least / images:.2%} of {name}'s {images:,} images" for name, images in sizes.items()]
    figures: dict[str, Any] = {
        "least_images": least,
        "sets": {name: {"images": images, "least": least / images} for name, images in sizes.items()},
    }
    return [
        Finding(
            "P1",
            about,
            UNKNOWN,
            "Nothing is compared here. Whatever is trained, a difference of two networks is significant "
            f"only if at least {least} images tell them apart, all in favour of one: that is "
            f"{names(shown)}. How much it takes beyond that depends on how many images two networks "
            "disagree on.",
            figures,
            f"accuracy-{number}",
        )
    ]
