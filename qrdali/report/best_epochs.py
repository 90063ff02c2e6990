"""The table of the epochs in which the best of each run was found, beside the slides'."""

from __future__ import annotations

from pathlib import Path

from qrdali.report import thesis
from qrdali.report.groups import Configuration, Group
from qrdali.report.read import Run
from qrdali.report.tables import NOTHING, Cell, Table, number, words


def table(group: Group, slug: str) -> Table | None:
    """Returns the table, a line per configuration; None where the slides give no epoch for the network, and
    no run of the group began with another one of it.
    """
    rows: list[tuple[Cell, ...]] = []
    marked = set()
    for configuration in group.configurations:
        if configuration.is_baseline:
            marked.add(len(rows))
        own, own_sd = configuration.mean(lambda run: run.trained.epoch)
        counted, counted_sd = configuration.mean(lambda run: counted_on(group, run))
        theirs = _slides(group, configuration)
        rows.append(
            (
                words(configuration.method),
                words(configuration.reduction),
                words(configuration.sequence),
                number(len(configuration.runs)),
                number(own, ".0f", own_sd),
                number(counted, ".0f", counted_sd),
                NOTHING if theirs is None else number(theirs),
            )
        )
    begun = any(start_of(group, run) for run in group.runs)
    if not begun and all(row[-1] == NOTHING for row in rows):
        return None
    fixed = ("method", "reduction", "sequence", "seeds")
    return Table(
        slug,
        "Epoch of the best",
        (*fixed, "best epoch", "counted on", "the slides'"),
        tuple(rows),
        (
            "Best epoch: of the run itself, 0 are the weights that it began with. Counted on: from the best "
            "epoch of the run that it began with, as the slides count (SqueezeNet, ResNet-152 and "
            "EfficientNet-B3 on HumaNet: shared 21, 11 and 19, baseline 29, 11 and 143); a dash where that "
            "run is not in this report. Several seeds: mean ± standard deviation.",
        ),
        frozenset(marked),
    )


def _slides(group: Group, configuration: Configuration) -> int | None:
    """Returns the slides' epoch of a configuration, of those that they give one for."""
    run = configuration.runs[0]
    is_named = run.settings.method == "shared" or configuration.is_baseline
    if not is_named:
        return None
    return thesis.best_epoch(run.trained.model, len(group.classes), run.settings.method)


def start_of(group: Group, run: Run) -> Run | None:
    """Returns the run of a group that another one began with, by its folder; None where it is not there."""
    init = run.settings.init
    if not init:
        return None
    others = [other for other in group.runs if other.name != run.name]
    named = [other for other in others if other.folder.resolve().parts[-2:] == Path(init).parts[-2:]]
    if len(named) != 1:
        named = [other for other in others if other.folder.resolve() == Path(init).resolve()]
    return named[0] if len(named) == 1 else None


def counted_on(group: Group, run: Run) -> int | None:
    """Returns the best epoch of a run, counted on from the best epochs of those it began with; None where one
    of them is not in the group.
    """
    total = run.trained.epoch
    seen = {run.name}
    while run.settings.init:
        start = start_of(group, run)
        if start is None or start.name in seen:
            return None
        seen.add(start.name)
        total += start.trained.epoch
        run = start
    return total
