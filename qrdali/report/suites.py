"""Tables of published suites: one with all of them, and the figures of each suite and corruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from qrdali.data.suite_definitions import suite_definition
from qrdali.data.suite_names import SUITES
from qrdali.errors import printable
from qrdali.evaluation.suite_figures import SuiteFigures
from qrdali.report.groups import Configuration, Group, some_names
from qrdali.report.read import Run
from qrdali.report.tables import Cell, Table, number, words

Value = Callable[[SuiteFigures], float | None]
_HEAD = ("network", "method", "reduction", "sequence", "seeds")
_MOST_NOTES = 6  # on runs that are not above chance
_NOTE = (
    "Percent of images whose class is the most probable answer; of ImageNet-C corruption errors, where "
    "100 is AlexNet's and less is better. Several seeds: mean ± standard deviation. On ImageNet-A and -R the "
    "network answers among their 200 classes; ReaL has several right answers for an image."
)


@dataclass(frozen=True)
class _Column:
    """Holds a column of the table of all suites. key: of `Run.suites`."""

    key: str
    title: str
    of: Value
    note: str = ""


def table(groups: list[Group], slug: str) -> Table | None:
    """Returns the table with a column per suite, a line per network and configuration; None without any."""
    columns = _columns(groups)
    if not columns:
        return None
    rows: list[tuple[Cell, ...]] = []
    marked: set[int] = set()
    for group, configuration in _evaluated(groups):
        if configuration.is_baseline:
            marked.add(len(rows))
        cells = [_over_seeds(configuration, column.key, column.of, 1) for column in columns]
        rows.append((*_head(group, configuration, len(groups)), *cells))
    notes = (_NOTE, *(column.note for column in columns if column.note), *_doubts(groups))
    notes = (*notes, *_not_above_chance(groups))
    titles = (*_HEAD, *(column.title for column in columns))
    return Table(slug, "Published suites", titles, tuple(rows), notes, frozenset(marked))


def figures(groups: list[Group], slug: str) -> Table | None:
    """Returns the table of top-1, top-5 and negative log-likelihood, a line per suite and configuration."""
    rows = [
        (
            words(_title(key, run.suites[key])),
            *_head(group, configuration, len(groups)),
            _over_seeds(configuration, key, lambda one: one.images, 0),
            _over_seeds(configuration, key, lambda one: 100 * one.accuracy, 2),
            _over_seeds(configuration, key, lambda one: 100 * one.top5_accuracy, 2),
            _over_seeds(configuration, key, lambda one: one.negative_log_likelihood, 3),
        )
        for key, run in _keys(groups).items()
        for group, configuration in _evaluated(groups)
        if any(key in one.suites for one in configuration.runs)
    ]
    if not rows:
        return None
    note = (
        "Over all images of a suite; of ImageNet-C all corruptions and severities that are there. NLL: "
        "negative log-likelihood, natural logarithm, among the classes that the network could answer."
    )
    columns = ("suite", *_HEAD, "images", "top-1", "top-5", "NLL")
    return Table(slug, "Figures of each suite", columns, tuple(rows), (note,))


def corruptions(groups: list[Group], slug: str) -> Table | None:
    """Returns the table of ImageNet-C's errors, a line per corruption and configuration; None without any."""
    key, definition = "imagenet-c", suite_definition("imagenet-c")
    rows = []
    for name in definition.corruptions:
        for group, configuration in _evaluated(groups):
            if not any(_has(run, key, name) for run in configuration.runs):
                continue
            by_severity = [
                _over_seeds(configuration, key, _error(name, severity), 1)
                for severity in range(1, definition.severities + 1)
            ]
            rows.append(
                (
                    words(name + (" (extra)" if name in definition.alexnet_error_extra else "")),
                    *_head(group, configuration, len(groups)),
                    *by_severity,
                    _over_seeds(configuration, key, _error(name, 0), 1),
                    _over_seeds(configuration, key, _ce(name, relative=False), 1),
                    _over_seeds(configuration, key, _ce(name, relative=True), 1),
                )
            )
    if not rows:
        return None
    severities = tuple(f"severity {severity}" for severity in range(1, definition.severities + 1))
    note = (
        "Percent of images that are wrong at each severity and on average; CE is that average divided by "
        "AlexNet's published one, relative CE the same of the increase over the error without corruption. "
        f"Extra corruptions are not part of mCE. {definition.source}."
    )
    columns = ("corruption", *_HEAD, *severities, "average", "CE", "relative CE")
    return Table(slug, "ImageNet-C by corruption", columns, tuple(rows), (note,))


def _not_above_chance(groups: list[Group]) -> list[str]:
    """Returns the notes on the suites on which runs are not above chance, among the classes of each set."""
    runs = [run for group in groups for run in group.runs]
    found = [note for run in runs for one in run.suites.values() if (note := one.not_above_chance(run.name))]
    more = [f"{len(found) - _MOST_NOTES} more such runs or suites."] if len(found) > _MOST_NOTES else []
    return [printable(f"{note}.") for note in found[:_MOST_NOTES]] + more


def _evaluated(groups: list[Group]) -> Iterator[tuple[Group, Configuration]]:
    """Yields the configurations of which a run has been evaluated on a suite."""
    for group in groups:
        for configuration in group.configurations:
            if any(run.suites for run in configuration.runs):
                yield group, configuration


def _head(group: Group, configuration: Configuration, groups: int) -> tuple[Cell, ...]:
    network = f"{group.network} on {group.data}" if groups > 1 else group.network
    return (
        words(network),
        words(configuration.method),
        words(configuration.reduction),
        words(configuration.sequence),
        number(len(configuration.runs)),
    )


def _keys(groups: list[Group]) -> dict[str, Run]:
    """Returns the suites that any run has, in their order, each with a run that has it."""
    keys: dict[str, Run] = {}
    for group in groups:
        for run in group.runs:
            for key in run.suites:
                keys.setdefault(key, run)
    ordered = sorted(keys, key=lambda key: (SUITES.index(keys[key].suites[key].suite), key))
    return {key: keys[key] for key in ordered}


def _title(key: str, one: SuiteFigures) -> str:
    title = suite_definition(one.suite).title
    return f"{title}, mapped ({one.map_rule})" if key != one.suite else title


def _columns(groups: list[Group]) -> list[_Column]:
    columns: list[_Column] = []
    for key, run in _keys(groups).items():
        every = [one.suites[key] for group in groups for one in group.runs if key in one.suites]
        title = _title(key, run.suites[key])
        if run.suites[key].corruption_errors is not None:
            columns += _corruption_columns(key, title, every)
            continue
        columns.append(_Column(key, title, lambda one: 100 * one.accuracy))
        parts = dict.fromkeys(name for one in every for name in one.sets if len(one.sets) > 1)
        for name in parts:
            part = name.removeprefix(f"{run.suites[key].suite}-").partition("-mapped-")[0]
            columns.append(_Column(key, f"{title}, {part}", _of_set(name)))
    return columns


def _corruption_columns(key: str, title: str, every: list[SuiteFigures]) -> list[_Column]:
    """Returns the columns of mCE, or of a mean for each choice of corruptions that are not all of them."""
    columns = []
    errors = [one.corruption_errors for one in every if one.corruption_errors is not None]
    if any(one.mce is not None for one in errors):
        columns.append(_Column(key, f"{title} mCE", _mce))
    if any(one.relative_mce is not None for one in errors):
        columns.append(_Column(key, f"{title} relative mCE", _relative_mce))
    choices = dict.fromkeys(one.complete for one in errors if one.complete and not one.is_whole)
    for i, names in enumerate(choices, 1):
        number_of_it = f" ({i})" if len(choices) > 1 else ""
        note = (
            f"Mean CE{number_of_it} is of {', '.join(names)}: mCE is of all {errors[0].wanted} corruptions."
        )
        columns.append(_Column(key, f"{title} mean CE{number_of_it}", _mean_ce(names), note))
    return columns


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _mce(one: SuiteFigures) -> float | None:
    return _times_100(one.corruption_errors.mce) if one.corruption_errors else None


def _relative_mce(one: SuiteFigures) -> float | None:
    return _times_100(one.corruption_errors.relative_mce) if one.corruption_errors else None


def _mean_ce(names: tuple[str, ...]) -> Value:
    def of(one: SuiteFigures) -> float | None:
        errors = one.corruption_errors
        return _times_100(errors.mean_ce) if errors and errors.complete == names else None

    return of


def _of_set(name: str) -> Value:
    return lambda one: 100 * one.sets[name].accuracy if name in one.sets else None


def _has(run: Run, key: str, corruption: str) -> bool:
    one = run.suites.get(key)
    return bool(one and one.corruption_errors and corruption in one.corruption_errors.corruptions)


def _error(corruption: str, severity: int) -> Value:
    """Returns what gives the percentage of wrong images at a severity, on average for severity 0."""

    def of(one: SuiteFigures) -> float | None:
        errors = one.corruption_errors and one.corruption_errors.corruptions.get(corruption)
        if not errors:
            return None
        return _times_100(errors.errors.get(severity) if severity else errors.error)

    return of


def _ce(corruption: str, *, relative: bool) -> Value:
    def of(one: SuiteFigures) -> float | None:
        errors = one.corruption_errors and one.corruption_errors.corruptions.get(corruption)
        if not errors:
            return None
        return _times_100(errors.relative_ce if relative else errors.ce)

    return of


def _over_seeds(configuration: Configuration, key: str, of: Value, decimals: int) -> Cell:
    """Returns the cell of a figure, mean ± standard deviation over seeds; with their number where some seeds
    lack it.
    """

    def value(run: Run) -> float | None:
        return of(run.suites[key]) if key in run.suites else None

    known = len(configuration.values(value))
    mean, sd = configuration.mean(value)
    cell = number(mean, f",.{decimals}f", sd)
    if 0 < known < len(configuration.runs):
        cell = replace(cell, text=f"{cell.text} ({known} of {len(configuration.runs)})")
    return cell


def _doubts(groups: list[Group]) -> list[str]:
    """Returns notes on suites that are not whole, or not of the same images in all runs."""
    notes = []
    runs = [run for group in groups for run in group.runs]
    for key, one in _keys(groups).items():
        having = [run for run in runs if key in run.suites]
        title = _title(key, one.suites[key])
        partial = [run for run in having if run.suites[key].images_published and not run.suites[key].is_whole]
        if partial:
            notes.append(
                f"{title}: fewer images than the {partial[0].suites[key].images_published:,} published were "
                f"evaluated, or others, of {some_names(partial)}."
            )
        images = {tuple((name, s.rows.names) for name, s in run.suites[key].sets.items()) for run in having}
        if len(images) > 1:
            notes.append(f"{title}: the runs were not evaluated on the same images.")
        if missing := [run for run in runs if run.suites and key not in run.suites]:
            notes.append(
                f"No rows of {title} for {some_names(missing)}: qrdali evaluate --run {missing[0].folder} "
                f"--suite {one.suites[key].suite}=ROOT"
            )
    return [printable(note) for note in notes]
